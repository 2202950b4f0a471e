"""The state of one conversion: where the mapping stands, what it found, what it could not read."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from conformance import systems
from conformance.issue import Issue, Severity
from mappings import times
from mappings.model import Conversion, Entry, Recency, Tier, Unmapped, Unread
from mappings.order_state import OrderState
from mappings.profile import Profile
from mappings.source import Element, Record, text

T = TypeVar("T")

Event = tuple[str, int, tuple[Any, ...]]
"""Something a step told the context: name of the method, field number, arguments."""

_MEMO_LIMIT = 10_000


class Memo:
    """Answers that depend on the profile and the source text alone, shared by all messages of a profile, bounded.

    What it hands out is shared between resources: fragments are read, never changed.
    """

    def __init__(self) -> None:
        self._answers: dict[Hashable, Any] = {}

    def find(self, key: Hashable) -> Any:
        """The kept answer, or None."""
        return self._answers.get(key)

    def keep(self, key: Hashable, answer: Any) -> None:
        """Keep an answer."""
        if len(self._answers) >= _MEMO_LIMIT:
            self._answers.clear()
        self._answers[key] = answer

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The kept answer, or ``make()`` kept."""
        found = self._answers.get(key)
        if found is None:
            found = make()
            self.keep(key, found)
        answer: T = found
        return answer


class Context:
    """One conversion under way.

    record, field   the place being read: issues and unread components name it
    reading         which fields of a record (by its identity) some rule has read; None: all of them
    peers           other records of the same group by segment id (conditions of rules look there)
    seen            how often a result of one patient, report, code and sub-id was met: the ordinal of repeated ones
    made            the results of each order so far (mappings.microbiology.Made): susceptibilities look for their organism there
    relation        how a document stands to its parent (MSH-9.3 of a document: RPLC, APND); empty for messages
    order           what the results being mapped share
    family          message family (mappings.grammar.Family); empty until it is known
    event_at        when the event happened (EVN-6, else EVN-2), as sortable UTC text; empty when the message does not say
    study           reference to the ImagingStudy the message states of the patient, None when it states none
    received_at     when the message was received, as sortable UTC text; empty when it does not matter
    subject         reference to the Patient of the group being mapped; patient its logical id; shard its shard
    """

    __slots__ = (
        "_heard",
        "_noted",
        "_places",
        "control_id",
        "conversion",
        "directory",
        "encounter",
        "event_at",
        "facility",
        "family",
        "field",
        "latest",
        "made",
        "memo",
        "order",
        "patient",
        "peers",
        "profile",
        "reading",
        "received_at",
        "record",
        "relation",
        "seen",
        "sent_at",
        "shard",
        "source_uri",
        "study",
        "subject",
        "tag",
        "trigger",
        "zone",
        "zone_noted",
    )

    def __init__(self, profile: Profile, memo: Memo) -> None:
        self.profile = profile
        self.facility = profile.facility
        self.memo = memo
        self.conversion = Conversion()
        self.directory: dict[str, Entry] = {}
        self.reading: dict[int, set[int] | None] = {}
        self.peers: dict[str, Record] = {}
        self.record: Record | None = None
        self.field = 0
        self.shard = 0
        self.patient = ""
        self.subject: dict[str, str] = {}
        self.encounter: dict[str, str] | None = None
        self.event_at = ""
        self.order = OrderState()
        self.family = ""
        self.sent_at = ""
        self.latest = ""
        self.received_at = ""
        self.study: dict[str, str] | None = None
        self.control_id = ""
        self.trigger = ""
        self.relation = ""
        self.source_uri = ""
        self.zone = ZoneInfo(profile.facility.time_zone)
        self.zone_noted = False
        self.tag: dict[str, str] | None = None
        self.seen: dict[tuple[str, ...], int] = {}
        self.made: list[Any] = []
        self._noted: set[tuple[str, str]] = set()
        self._places: dict[str, int] = {}
        self._heard: list[Event] | None = None

    # --- where we are ------------------------------------------------------------------------------------------------------

    def at(self, component: int = 0) -> str:
        """Position for people: ``OBX[3]-5`` or ``OBX[3]-5.1``."""
        if self.record is None:
            return ""
        place = f"{self.record.where}-{self.field}" if self.field else self.record.where
        return f"{place}.{component}" if component else place

    def fields_read(self, record: Record) -> set[int]:
        """The set of field numbers of a record that some rule has read; rules add to it."""
        found = self.reading.get(id(record))
        if found is None:
            found = self.reading[id(record)] = set()
        return found

    # --- listening ---------------------------------------------------------------------------------------------------------

    def listen(self) -> None:
        """From now on only write down what steps say; ``heard`` ends it and the events can be told to any context of the profile."""
        self._heard = []

    def heard(self) -> tuple[Event, ...]:
        """What was said since ``listen``."""
        out, self._heard = tuple(self._heard or ()), None
        return out

    # --- what was found ----------------------------------------------------------------------------------------------------

    def issue(
        self, key: str, severity: Severity, words: str, value: str | None = None, where: str | None = None
    ) -> None:
        """Record a problem at the current place (or ``where``)."""
        if self._heard is not None:
            self._heard.append(("issue", self.field, (key, severity, words, value, where)))
            return
        self.conversion.issues.append(Issue(key, severity, self.at() if where is None else where, words, value))

    def issue_once(self, key: str, severity: Severity, words: str, value: str = "", where: str | None = None) -> None:
        """As ``issue``, but one per key and value in a message."""
        if self._heard is not None:
            self._heard.append(("issue_once", self.field, (key, severity, words, value, where)))
            return
        if (key, value) not in self._noted:
            self._noted.add((key, value))
            self.issue(key, severity, words, value or None, where)

    def unmapped(self, kind: str, code: str, name: str, unit: str = "") -> None:
        """Put a local code or unit on the worklist, once per message."""
        if self._heard is not None:
            self._heard.append(("unmapped", self.field, (kind, code, name, unit)))
            return
        mark = ("unmapped " + kind, f"{code}\x1f{name}\x1f{unit}")
        if mark not in self._noted:
            self._noted.add(mark)
            self.conversion.unmapped.append(Unmapped(kind, self.facility.id, code, name, unit, self.at()))

    def leftover(self, element: Element, components: tuple[int, ...], repetition: int) -> None:
        """List the non-empty components (1-based) of a repetition that its datatype does not read."""
        if self._heard is not None:
            self._heard.append(("leftover", self.field, (element, components, repetition)))
            return
        place = self.at()
        if repetition:
            place = f"{place}[{repetition + 1}]"
        for component in components:
            if component <= len(element):
                value = text(element[component - 1])
                if value:
                    unread = Unread(f"{place}.{component}", value)
                    if unread not in self.conversion.unread:
                        self.conversion.unread.append(unread)

    # --- times -------------------------------------------------------------------------------------------------------------

    def time(self, written: str, severity: Severity = "warning", *, birth: bool = False) -> times.Moment | None:
        """Read a date or time in the facility's zone; an impossible one is an issue ``bad-date`` of ``severity``."""
        if not written:
            return None
        moment = times.parse(self.hl7_time(written), self.zone, birth=birth)
        if moment is None:
            self.issue(
                "bad-date", severity, "This is not a date or time that exists; correct it and send again.", written
            )
            return None
        if moment.zone_assumed and not self.zone_noted and "T" in moment.fhir:
            self.zone_noted = True
            self.issue("zone-assumed", "information", f"Times carry no zone; {self.facility.time_zone} is assumed.")
        return moment

    def severity(self, hold: bool | str) -> Severity:
        """Severity of an impossible date under a rule with ``hold``: ``error`` holds the message."""
        return "error" if hold is True or (hold and hold == self.family) else "warning"

    def in_future(self, moment: times.Moment) -> bool:
        """True when what happened then cannot have happened yet (mappings.plausible.latest)."""
        return bool(self.latest) and moment.instant > self.latest

    def check_period(self, holder: dict[str, Any], key: str = "period") -> None:
        """A Period that ends before it starts (invariant per-1) loses its end, and an issue says so."""
        period = holder.get(key)
        if not period or "start" not in period or "end" not in period:
            return
        start, end = times.parse(period["start"], self.zone), times.parse(period["end"], self.zone)
        if (
            start
            and end
            and start.instant > end.instant
            and not end.fhir.startswith(start.fhir)
            and not start.fhir.startswith(end.fhir)
        ):
            words = "The end lies before the start; the end is left out."
            self.issue("end-before-start", "warning", words, f"{period['start']} - {period['end']}")
            holder[key] = {"start": period["start"]}

    def quiet_time(self, written: str) -> times.Moment | None:
        """Read a time another rule has already read and reported on."""
        return times.parse(self.hl7_time(written), self.zone)

    def hl7_time(self, written: str) -> str:
        """A date or time as HL7 writes it, when the profile names the sender's format."""
        forms = self.facility.date_formats
        return times.hl7(written, tuple(forms)) if forms else written

    def keep(self, entries: list[Entry]) -> None:
        """Only these entries stay; where the others stood is forgotten."""
        self.conversion.entries[:] = entries
        self._places = {e.resource["id"]: at for at, e in enumerate(entries)}

    # --- resources ---------------------------------------------------------------------------------------------------------

    def meta(self) -> dict[str, Any]:
        """meta of a resource of this message; a new dict each time, because the store adds to it."""
        return {"source": self.source_uri}

    def clinical_meta(self) -> dict[str, Any]:
        """The same for orders, reports and results: tagged when the message was not sent for care (MSH-11)."""
        return {"source": self.source_uri, "tag": [self.tag]} if self.tag else {"source": self.source_uri}

    def add(
        self,
        resource: dict[str, Any],
        recency: Recency,
        *,
        business: str = "",
        parent: str = "",
        patient: str | None = None,
    ) -> None:
        """Add a resource of the Patient compartment. Stated twice in one message, the later statement counts, and an issue says so."""
        entry = Entry(resource, recency, patient or self.patient, business, parent)
        entries = self.conversion.entries
        at = self._places.setdefault(resource["id"], len(entries))
        if at == len(entries):
            entries.append(entry)
        elif entries[at].resource != resource:
            words = f"Two segments state the same {resource['resourceType']}; the later one counts."
            self.issue("stated-twice", "warning", words)
            entries[at] = entry

    def stated(self, logical: str) -> dict[str, Any] | None:
        """The resource this message already stated under a logical id."""
        at = self._places.get(logical)
        return None if at is None else self.conversion.entries[at].resource

    def mention(self, resource: dict[str, Any]) -> dict[str, Any]:
        """Add a directory resource once per message, keeping the fullest form; gives the reference to it."""
        logical = resource["id"]
        if self._heard is not None:
            self._heard.append(("mention", self.field, (resource,)))
        else:
            known = self.directory.get(logical)
            if known is None or len(resource) >= len(known.resource):
                recency = Recency(Tier.MENTION, "", self.sent_at)
                self.directory[logical] = Entry({**resource, "meta": self.meta()}, recency, None)
        return {"reference": f"{resource['resourceType']}/{logical}"}

    def enrich(self, reference: dict[str, Any], key: str, value: Any) -> bool:
        """Add an element to a directory resource mentioned in this message; False when it was not."""
        if self._heard is not None:
            self._heard.append(("enrich", self.field, (reference, key, value)))
            return True
        entry = self.directory.get(str(reference.get("reference", "")).partition("/")[2])
        if entry is None:
            return False
        entry.resource[key] = value
        return True

    def local_system(self, name: str) -> str:
        """Code system URI of a coding system only this facility knows."""
        return systems.local_codes(self.facility.id, name)
