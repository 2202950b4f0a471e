"""Records under construction: what a reader of elements or columns found, under the names and field numbers of HL7 v2 segments.

Every format becomes records of one vocabulary (docs/adr/0018), so that mapping, identity, code tables and recognition exist once.
``where`` names the place in the document; issues add the number of the HL7 v2 field the value was read as.
"""

from __future__ import annotations

from collections.abc import Sequence
from zoneinfo import ZoneInfo

from adapters.contract import Envelope
from conformance.issue import Issue
from mappings import times
from mappings.facility import Facility
from mappings.model import Unread
from mappings.outbound.line import Line
from mappings.patient_key import patient_key
from mappings.quality_control import is_quality_control
from mappings.source import Record, Values
from mappings.trigger import trigger_name


class Message:
    """One document or table row group, a ``Source``.

    charset  Python codec the bytes were read with
    issues   everything that was repaired or assumed while reading
    unread   parts of the document no record holds
    """

    __slots__ = ("charset", "format", "issues", "records", "unread")

    def __init__(
        self, format: str, records: Sequence[Record], charset: str, issues: list[Issue], unread: list[Unread]
    ) -> None:
        self.format = format
        self.records = records
        self.charset = charset
        self.issues = issues
        self.unread = unread


class Draft:
    """Segments in message order, being filled."""

    def __init__(self) -> None:
        self._lines: list[tuple[Line, str]] = []

    def add(self, name: str, where: str = "") -> Line:
        """A new segment at the end; ``where``: its place in the document, by default name and ordinal."""
        line = Line(name)
        self._lines.append((line, where or f"{name}[{1 + sum(n.name == name for n, _ in self._lines)}]"))
        return line

    def extend(self, more: Draft) -> None:
        """The segments of another draft after these."""
        self._lines += more._lines

    def has(self, name: str) -> bool:
        """Whether a segment of this name was added."""
        return any(line.name == name for line, _ in self._lines)

    def header(self, code: str) -> None:
        """Another message code in MSH-9.1."""
        msh = next(line for line, _ in self._lines if line.name == "MSH")
        ((_, *rest),) = msh.fields[9]
        msh.fields[9] = ((code, *rest),)

    def records(self) -> list[Record]:
        """The segments that hold something; PID and MSH always."""
        return [
            Values(line.name, where, [line.fields.get(n, ()) for n in range(max(line.fields, default=0) + 1)])
            for line, where in self._lines
            if line.fields or line.name in ("MSH", "PID")
        ]


def authority_type(root: str) -> str:
    """Kind of an assigning authority (table 0301) by its form: a UUID has hyphens, an OID has none."""
    return "UUID" if "-" in root else "ISO"


def envelope(message: Message, facility: Facility) -> Envelope:
    """What must be known before a document is accepted: kind, number, time, patient, and who sent it."""
    header = next(r for r in message.records if r.name == "MSH")
    keys = [patient_key(r, facility) for r in message.records if r.name == "PID"]
    sent = times.parse(times.hl7(header.first(7), tuple(facility.date_formats)), ZoneInfo(facility.time_zone))
    return Envelope(
        format=message.format,
        trigger=trigger_name(header),
        control_id=header.first(10),
        sender=(header.first(3), header.first(4)),
        sent_at=sent.at if sent else None,
        charset=message.charset,
        patient_keys=tuple(dict.fromkeys(key for key in keys if key)),
        quality_control=is_quality_control(message.records, facility),
        issues=tuple(message.issues),
    )
