"""How the receiving facility writes things: its codes, flags, statuses, coding systems, identifier authorities and time zone.

Every choice is checked by reading it back: a word is only written when the receiver's profile reads it as what was meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import unquote
from zoneinfo import ZoneInfo

from conformance import systems
from mappings import times
from mappings.code_table import coding_systems, table
from mappings.codes import LocalOrder, LocalTest
from mappings.outbound.line import trimmed
from mappings.profile import Profile
from mappings.source import Element

_Row = TypeVar("_Row", LocalTest, LocalOrder)
NOBODY_SAYS = "?"
"""Written as a status where an empty field would mean something to the receiver, and the status is not known."""

# Codes in the order they are preferred; tables 0085 and 0123 have several for some statuses.
_OBSERVATION = "FPCXAWIDRSOUVNB"
_REPORT = "FPCXAIRSOMN"


@dataclass(frozen=True, slots=True)
class Dialect:
    """The receiving facility's profile, and the profile of the facility whose codes and numbers the Bundle holds (may be the same)."""

    receiver: Profile
    sender: Profile

    @property
    def zone(self) -> ZoneInfo:
        """The receiver's time zone."""
        return self.receiver.zone

    # --- times -------------------------------------------------------------------------------------------------------------

    def time(self, fhir: str) -> str:
        """FHIR date, dateTime or instant -> HL7 with the same precision; the offset is written where it is not the receiver's own."""
        if "T" not in fhir:
            return fhir.replace("-", "")
        moment = times.parse(fhir, self.zone)
        date, _, clock = fhir.partition("T")
        digits = clock[:8].replace(":", "")
        rest = clock[8:]
        fraction = ""
        if rest.startswith("."):
            end = next((n for n, c in enumerate(rest) if c in "Z+-"), len(rest))
            fraction, rest = rest[:end], rest[end:]
        written = date.replace("-", "") + digits + fraction
        if moment is not None and moment.at.replace(tzinfo=self.zone).utcoffset() == moment.at.utcoffset():
            return written
        return written + ("+0000" if rest in ("Z", "") else rest.replace(":", ""))

    # --- statuses and flags ------------------------------------------------------------------------------------------------

    def observation_status(self, status: str) -> str:
        """Observation.status -> OBX-11 (table 0085)."""
        return _status(status, self.receiver.facility.observation_status, "ObservationStatus", _OBSERVATION)

    def report_status(self, status: str) -> str:
        """DiagnosticReport.status -> OBR-25 (table 0123). What the table lacks: a later form of a report is a correction (C), a report
        entered in error has no results any more (X; its OBX-11 say W)."""
        own = self.receiver.facility.report_status
        for known in (
            status,
            {"amended": "corrected", "appended": "corrected", "entered-in-error": "cancelled"}.get(status, ""),
        ):
            written = _status(known, own, "ReportStatus", _REPORT) if known else ""
            if written not in ("", NOBODY_SAYS):
                return written
        return NOBODY_SAYS if "" in own else ""

    def flag(self, code: str, sent: str = "") -> str:
        """Interpretation code (and the word the laboratory wrote for it) -> OBX-8; empty when the receiver reads no word as that."""
        own = self.receiver.facility.flags
        mine = (sent,) if sent and self.receiver.id == self.sender.id else ()
        for word in (*mine, *(w for w, c in own.items() if c == code and w), code, *_FLAG_WORDS.get(code, ())):
            found = table("Interpretation").get(own.get(word, word))
            if found is not None and found.code == code:
                return str(word)
        return ""

    # --- codes -------------------------------------------------------------------------------------------------------------

    def system_name(self, uri: str, kind: str) -> str:
        """Code system URI -> CWE.3: ``LN``, ``HL70085``, ``L`` for the receiver's own codes of ``kind``, else the URI itself."""
        if uri == systems.local_codes(self.receiver.id, kind):
            return "L"
        own = systems.local_codes(self.receiver.id, "")
        if uri.startswith(own):
            return unquote(uri.removeprefix(own))
        if uri.startswith(systems.V2):
            return "HL7" + uri.removeprefix(systems.V2)
        return _SYSTEM_NAMES.get(uri, uri)

    def coded(self, concept: dict[str, Any], kind: str) -> Element:
        """CodeableConcept -> CWE: two codings and the text people read."""
        sent = [c for c in concept.get("coding", ()) if c.get("code")]
        text = concept.get("text", "")
        if not sent:
            return trimmed("", text or next((c.get("display", "") for c in concept.get("coding", ())), ""))
        first = sent[0]
        shown = text if first.get("system", "").startswith(systems.V2) else first.get("display", "") or text
        out = [first["code"], shown or first["code"], self.system_name(first.get("system", ""), kind)]
        if len(sent) > 1:
            second = sent[1]
            out += [second["code"], second.get("display", ""), self.system_name(second.get("system", ""), kind)]
        else:
            out += ["", "", ""]
        return trimmed(*out, "", "", text if text and text != out[1] else "")

    def test_code(self, concept: dict[str, Any], day: str) -> tuple[Element, LocalTest | None]:
        """Observation.code -> OBX-3 and what the receiver takes it for: its own code of the item, else as the laboratory sent it with
        LOINC and item code beside it."""
        item = _code_of(concept, systems.ITEMS)
        name = _shown(concept)
        own = self._own_test(item, name, day) if item and self.receiver.id != self.sender.id else None
        return self._code(concept, "tests", name, (own.code, own.name) if own else None, systems.ITEMS), own

    def order_code(self, concept: dict[str, Any], day: str) -> Element:
        """DiagnosticReport.code -> OBR-4, in the same way."""
        orderable = _code_of(concept, systems.ORDERABLES)
        name = _shown(concept)
        own = self._own_order(orderable, name, day) if orderable and self.receiver.id != self.sender.id else None
        return self._code(concept, "orders", name, (own.code, own.name) if own else None, systems.ORDERABLES)

    def _code(self, concept: dict[str, Any], kind: str, name: str, own: tuple[str, str] | None, ours: str) -> Element:
        codings = [c for c in concept.get("coding", ()) if c.get("code")]
        loinc = [c for c in codings if c.get("system") == systems.LOINC]
        # A laboratory that sends LOINC as its own code has it twice: once as local code, once as LOINC.
        twice = {c["code"] for c in loinc}
        known = [c for c in codings if c.get("system") not in (ours, systems.LOINC) and c["code"] not in twice]
        ours_ = [c for c in codings if c.get("system") == ours]
        ordered = [*known, *loinc] if self.receiver.id == self.sender.id else [*loinc, *ours_, *known]
        if own is not None:
            ordered = [{"system": systems.local_codes(self.receiver.id, kind), "code": own[0]}, *loinc, *known]
            name = name if _agrees(self.receiver, kind, own[0], name) else own[1]
        out: list[str] = []
        for coding in [c for c in ordered if c["code"]][:2]:
            shown = coding.get("display", "") if out else name or coding.get("display", "")
            shown = "" if shown == coding["code"] and not coding.get("display") else shown
            out += [coding["code"], shown, self.system_name(coding.get("system", ""), kind)]
        if len(out) > 3 and ordered[0].get("system") == systems.LOINC and out[4] not in ("", name):
            # LOINC first: the name is then looked for beside the second code. CWE.9 is the name as sent.
            out += ["", "", name]
        return trimmed(*(out or ["", name]))

    def _own_test(self, item: str, name: str, day: str) -> LocalTest | None:
        rows = [r for r in self.receiver.tests.rows if r.item == item and _holds(r, day)]
        return _best(rows, lambda r: self.receiver.find_test(r.code, r.name, "L", day).mapping is r)

    def _own_order(self, orderable: str, name: str, day: str) -> LocalOrder | None:
        rows = [r for r in self.receiver.orders.rows if r.orderable == orderable and _holds(r, day)]
        return _best(rows, lambda r: self.receiver.orders.find(r.code, r.name, day).mapping is r)

    # --- identifiers -------------------------------------------------------------------------------------------------------

    def authority(self, system: str, kind: str) -> tuple[str, str, str]:
        """Identifier system -> assigning authority (HD: namespace id, universal id, its type). The receiver's own numbers carry the
        namespace it writes itself; everybody else's carry the system, so that no number is taken for another facility's."""
        for name, known in self.receiver.facility.identifiers.authorities.items():
            if known == system:
                return name, "", ""
        own = systems.facility_system(self.receiver.id, kind)
        if system == own:
            return "", "", ""
        if system.startswith(own + "/"):
            return unquote(system.removeprefix(own + "/")), "", ""
        if system.startswith("urn:oid:"):
            return "", system.removeprefix("urn:oid:"), "ISO"
        if system.startswith("urn:uuid:"):
            return "", system.removeprefix("urn:uuid:"), "UUID"
        if not system:
            return "", "", ""
        theirs = systems.facility_system(self.sender.id, "")
        return (sender_name(self.sender) if system.startswith(theirs) else "", system, "URI")

    def facility_word(self, facility_id: str) -> str:
        """The code or name by which the receiver's profile knows a facility as performer; empty when it does not."""
        return next((word for word, known in self.receiver.facility.performers.items() if known == facility_id), "")


def sender_name(profile: Profile) -> str:
    """MSH-4 of a facility: the name it writes itself, else its id."""
    senders = profile.facility.senders
    return senders[0].facility if senders else profile.id


def _status(status: str, own: Mapping[str, str], table_name: str, preferred: Iterable[str]) -> str:
    for word in (*(w for w, meaning in own.items() if meaning == status and w), *preferred):
        found = table(table_name).get(word)
        if own.get(word, found.code if found else "") == status:
            return word
    return NOBODY_SAYS if own.get("", "unknown") != status else ""


def _holds(row: LocalTest | LocalOrder, day: str) -> bool:
    return not day or (row.valid_from or "0") <= day <= (row.valid_to or "9")


def _best(rows: list[_Row], sure: Callable[[_Row], bool]) -> _Row | None:
    return next((r for r in rows if r.code and sure(r)), None)


def _agrees(receiver: Profile, kind: str, code: str, name: str) -> bool:
    found = (receiver.tests if kind == "tests" else receiver.orders).find(code, name)
    return not found.conflict


def _shown(concept: dict[str, Any]) -> str:
    return str(concept.get("text") or next((c["display"] for c in concept.get("coding", ()) if "display" in c), ""))


def _code_of(concept: dict[str, Any], system: str) -> str:
    return str(next((c["code"] for c in concept.get("coding", ()) if c.get("system") == system), ""))


_SYSTEM_NAMES: dict[str, str] = {}
for _name, _uri in coding_systems().items():
    _SYSTEM_NAMES.setdefault(_uri, _name)
_FLAG_WORDS = {
    "N": ("正常",), "A": ("异常",), "H": ("↑", "高"), "L": ("↓", "低"), "HH": ("↑↑",), "LL": ("↓↓",), "POS": ("阳性", "+"),
    "NEG": ("阴性",), "WR": ("弱阳性",), "R": ("耐药",), "S": ("敏感",), "I": ("中介",),
}  # fmt: skip
"""Other words of the shipped table, for a receiver that uses the code itself for something else."""
