"""Segments of a message -> groups, tolerant to their order (guide: message maps; HL7 v2.5.1 chapters 3, 4, 7).

What belongs to what is told by the segments themselves, not by a fixed grammar: a PID opens a patient, an OBR an order, an OBX
belongs to the order before it, an NTE or PRT to the segment before it. Two habits are told apart per message: ORC before or after its
OBR, and specimens before (OUL^R22, OML^O33) or after (ORU^R01, OML^O21) their orders.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mappings.source import Record

_DETAILS = frozenset(
    {"RXO", "RXE", "RXA", "RXD", "RXG", "RQD", "RQ1", "ODS", "ODT", "BPO", "BPX", "AIS", "AIG", "AIL", "AIP"}
)
"""Order details other than OBR: the ORC before them is not an order for a test."""


@dataclass(slots=True)
class Described:
    """A segment with what comments on it: NTE and PRT."""

    record: Record
    notes: list[Record] = field(default_factory=list)
    participations: list[Record] = field(default_factory=list)
    containers: list[Record] = field(default_factory=list)
    """SAC of a specimen."""


@dataclass(slots=True)
class Result(Described):
    """OBX; ``specimen`` when it stands below an SPM."""

    specimen: Described | None = None


@dataclass(slots=True)
class Study:
    """STUDY with its SERIES, records of DICOM (mappings.imaging_study)."""

    record: Record
    series: list[Record] = field(default_factory=list)


@dataclass(slots=True)
class Document(Described):
    """TXA with the OBX below it."""

    results: list[Result] = field(default_factory=list)


@dataclass(slots=True)
class Order:
    """ORC and OBR with timing, diagnoses, specimens and results; either of the two may be missing."""

    orc: Record | None = None
    obr: Record | None = None
    notes: list[Record] = field(default_factory=list)
    participations: list[Record] = field(default_factory=list)
    timings: list[Record] = field(default_factory=list)
    imaging: list[Record] = field(default_factory=list)
    diagnoses: list[Described] = field(default_factory=list)
    specimens: list[Described] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    other_detail: bool = False
    """The ORC is for something that is not a test (RXO, ODS ...)."""


@dataclass(slots=True)
class Patient:
    """PID with everything up to the next PID."""

    pid: Record | None = None
    notes: list[Record] = field(default_factory=list)
    participations: list[Record] = field(default_factory=list)
    pd1: Record | None = None
    merged: list[Record] = field(default_factory=list)
    relatives: list[Described] = field(default_factory=list)
    allergies: list[Described] = field(default_factory=list)
    visit: Described | None = None
    visit_more: Record | None = None
    roles: list[Record] = field(default_factory=list)
    diagnoses: list[Described] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)
    documents: list[Document] = field(default_factory=list)
    studies: list[Study] = field(default_factory=list)
    loose_specimens: list[Described] = field(default_factory=list)


@dataclass(slots=True)
class Groups:
    """The whole message: header segments, patients, and the segments no group takes."""

    header: dict[str, list[Record]] = field(default_factory=dict)
    patients: list[Patient] = field(default_factory=list)
    rest: list[Record] = field(default_factory=list)


_HEADER = frozenset({"MSH", "EVN", "SFT"})


def group(records: Sequence[Record], *, results_are_documents: bool = False) -> Groups:
    """Group the records of one message.

    results_are_documents  OBX after TXA are the document's content (MDM)
    """
    groups = Groups()
    builder = _Builder(groups, records)
    for record in records:
        builder.take(record)
    builder.close()
    return groups


class _Builder:
    def __init__(self, groups: Groups, records: Sequence[Record]) -> None:
        self.groups = groups
        self.orc_after = self.specimen_first = False
        self.patient: Patient | None = None
        self.order: Order | None = None
        self.specimen: Described | None = None
        self.last: Described | Order | Patient | None = None
        self.waiting: list[Result] = []
        self._habits(records)

    def _habits(self, records: Iterable[Record]) -> None:
        """Which of ORC/OBR comes first, and whether specimens come before orders."""
        first_order = first_specimen = ""
        for record in records:
            name = record.name
            if name in ("ORC", "OBR") and not first_order:
                first_order = name
                self.specimen_first = bool(first_specimen)
            elif name == "SPM":
                first_specimen = first_specimen or name
        self.orc_after = first_order == "OBR"

    def take(self, record: Record) -> None:
        name = record.name
        handler = _TAKE.get(name)
        if handler is not None:
            handler(self, record)
        elif name in _HEADER:
            self.groups.header.setdefault(name, []).append(record)
            self.last = None
        else:
            if name in _DETAILS and self.order is not None and self.order.obr is None:
                self.order.other_detail = True
            self.groups.rest.append(record)
            self.last = None

    def close(self) -> None:
        """End of a patient: results that waited for an order go to the patient."""
        if self.waiting and self.patient is not None:
            self.patient.results.extend(self.waiting)
        self.waiting = []

    # --- patient level -----------------------------------------------------------------------------------------------------

    def _here(self) -> Patient:
        if self.patient is None:
            self.patient = Patient()
            self.groups.patients.append(self.patient)
        return self.patient

    def pid(self, record: Record) -> None:
        if self.patient is not None and self.patient.pid is None:
            # Segments that came before their PID belong to it.
            self.patient.pid = record
        else:
            self.close()
            self.patient = Patient(record)
            self.groups.patients.append(self.patient)
            self.order = self.specimen = None
        self.last = self.patient

    def pd1(self, record: Record) -> None:
        self._here().pd1 = record
        self.last = self._here()

    def mrg(self, record: Record) -> None:
        self._here().merged.append(record)
        self.last = None

    def nk1(self, record: Record) -> None:
        self.last = Described(record)
        self._here().relatives.append(self.last)

    def al1(self, record: Record) -> None:
        self.last = Described(record)
        self._here().allergies.append(self.last)

    def pv1(self, record: Record) -> None:
        patient = self._here()
        if patient.visit is not None:
            self.groups.rest.append(record)
            self.last = None
            return
        patient.visit = self.last = Described(record)

    def pv2(self, record: Record) -> None:
        patient = self._here()
        if patient.visit_more is not None:
            self.groups.rest.append(record)
        else:
            patient.visit_more = record

    def rol(self, record: Record) -> None:
        self._here().roles.append(record)

    def dg1(self, record: Record) -> None:
        self.last = Described(record)
        (self.order.diagnoses if self.order is not None else self._here().diagnoses).append(self.last)

    def txa(self, record: Record) -> None:
        self.last = Document(record)
        self._here().documents.append(self.last)
        self.order = self.specimen = None

    def study(self, record: Record) -> None:
        self._here().studies.append(Study(record))
        self.last = None

    def series(self, record: Record) -> None:
        studies = self._here().studies
        if studies:
            studies[-1].series.append(record)
        else:
            self.groups.rest.append(record)
        self.last = None

    # --- orders and results ------------------------------------------------------------------------------------------------

    def _open(self) -> Order:
        self.order = Order()
        self._here().orders.append(self.order)
        if self.specimen_first and self.specimen is not None:
            self.order.specimens.append(self.specimen)
        elif not self.specimen_first:
            self.specimen = None
        return self.order

    def orc(self, record: Record) -> None:
        order = self.order
        # OUL^R22: behind its specimen and OBR an ORC is of that OBR, whatever its numbers; its results would go to the next specimen.
        if (
            self.orc_after
            and order is not None
            and order.orc is None
            and order.obr is not None
            and (_agree(record, order.obr) or (self.specimen_first and not order.results))
        ):
            order.orc = record
        else:
            order = self._open()
            order.orc = record
        self.last = order

    def obr(self, record: Record) -> None:
        order = self.order
        if order is not None and order.obr is None and not order.other_detail:
            order.obr = record
        else:
            shared = order.orc if order is not None and not self.orc_after and _shares(order.orc, record) else None
            order = self._open()
            order.orc, order.obr = shared, record
        order.results.extend(self.waiting)
        self.waiting = []
        self.last = order

    def tq1(self, record: Record) -> None:
        if self.order is None:
            self.groups.rest.append(record)
        else:
            self.order.timings.append(record)

    def ipc(self, record: Record) -> None:
        if self.order is None:
            self.groups.rest.append(record)
        else:
            self.order.imaging.append(record)

    def spm(self, record: Record) -> None:
        self.specimen = self.last = Described(record)
        if self.specimen_first:
            self.order = None
        if self.order is not None:
            self.order.specimens.append(self.specimen)
        elif not self.specimen_first:
            self._here().loose_specimens.append(self.specimen)

    def sac(self, record: Record) -> None:
        if self.specimen is None:
            self.groups.rest.append(record)
        else:
            self.specimen.containers.append(record)

    def obx(self, record: Record) -> None:
        result = Result(record, specimen=self.specimen)
        self.last = result
        if self.order is not None and self.order.obr is not None:
            self.order.results.append(result)
        elif self.order is not None or self.specimen is not None:
            self.waiting.append(result)
        elif self._here().documents:
            self._here().documents[-1].results.append(result)
        else:
            self._here().results.append(result)

    # --- comments ----------------------------------------------------------------------------------------------------------

    def nte(self, record: Record) -> None:
        if self.last is None:
            self.groups.rest.append(record)
        else:
            self.last.notes.append(record)

    def prt(self, record: Record) -> None:
        if self.last is None:
            self.groups.rest.append(record)
        else:
            self.last.participations.append(record)


def _agree(orc: Record, obr: Record) -> bool:
    """True when a placer or filler number is that of both, or none contradicts: a placer number is often written in two ways."""
    contradict = False
    for number in (2, 3):
        one, other = orc.first(number), obr.first(number)
        if one and other:
            if one == other:
                return True
            contradict = True
    return not contradict


def _shares(orc: Record | None, obr: Record) -> bool:
    """Whether an OBR without an ORC of its own is of the ORC before it: it has no number, or the same (several tests of a request)."""
    return orc is not None and all(obr.first(n) in ("", orc.first(n)) for n in (2, 3))


_TAKE = {
    name.upper(): getattr(_Builder, name)
    for name in (
        "pid",
        "pd1",
        "mrg",
        "nk1",
        "al1",
        "pv1",
        "pv2",
        "rol",
        "dg1",
        "txa",
        "study",
        "series",
        "orc",
        "obr",
        "tq1",
        "ipc",
        "spm",
        "sac",
        "obx",
        "nte",
        "prt",
    )
}
