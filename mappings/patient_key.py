"""The patient key: which of a patient's identifiers names the facility's own Patient (HL7 v2.5.1 section 3.4.2.3, CX; guide PID-3).

The key is ``<authority>|<value>``. It decides the Patient's logical id, the shard and the ordering key, so one function serves the
peek before the acknowledgement and the conversion after it. The authority is CX.4: what the profile maps it to, else the namespace
id, else the universal id (``^^^&PATID`` has only that), else nothing.
"""

from __future__ import annotations

from mappings import resident_id
from mappings.facility import Facility
from mappings.source import Element, Record, part

_RESIDENT_OID = "2.16.156.10011.1.3"
"""WS/T 500: resident ID card number, GB 11643."""

# Table 0203: numbers of a visit or an account. They name an encounter, so they are the last resort for a patient.
VISIT_TYPES = frozenset({"AN", "VN", "ANON", "ANC", "ANT"})

_VISIT_RANK = 1002
"""The rank of visit numbers (``rank``)."""

# PID and MRG (2.5.1 sections 3.4.2 and 3.4.9): the identifier list first, then the fields kept for older versions.
_FIELDS = {"PID": (3, 2, 4, 19, 18), "MRG": (1, 4, 2, 3)}
_ACCOUNT = {("PID", 18), ("MRG", 3)}
_NATIONAL = ("PID", 19)


def authority(element: Element, facility: Facility) -> str:
    """CX.4 of one identifier: the system the profile gives it, else namespace id, else universal id, else empty."""
    name = part(element, 4, 1) or part(element, 4, 2)
    return facility.identifiers.authorities.get(name, name)


def is_resident_id(element: Element, facility: Facility) -> bool:
    """True when CX.5 or CX.4 says "resident ID number" by the profile, or neither says anything and the number is a valid one."""
    words = facility.identifiers.resident_id
    if not part(element, 5) and not part(element, 4, 1) and not part(element, 4, 2):
        # Nothing says what the number is, but its own check character does.
        number = part(element, 1).strip()
        return len(number) == 18 and resident_id.read(number) is not None
    if part(element, 5) in words or part(element, 4, 1) in words:
        return True
    return _RESIDENT_OID in (part(element, 4, 1), part(element, 4, 2))


def rank(element: Element, facility: Facility) -> int:
    """How well one CX names the facility's patient, lower is better: types of the profile, others, resident ID, visit numbers."""
    types = facility.identifiers.patient
    kind = part(element, 5)
    if is_resident_id(element, facility):
        return 1001
    if kind in types:
        return types.index(kind)
    return _VISIT_RANK if kind in VISIT_TYPES else 1000


def _is_filler(value: str) -> bool:
    """One digit all over (``000000000000000000``): what registrars type where the system demands a resident ID number."""
    return len(value) >= 15 and value == value[0] * len(value)


def patient_key(record: Record, facility: Facility) -> str:
    """PID or MRG -> ``<authority>|<value>`` of the best identifier, ``""`` when the record names none.

    PID: the best repetition of PID-3, then PID-2, PID-4, a resident ID in PID-3, PID-19, and at last visit or account numbers
    (PID-3, PID-18). MRG: MRG-1, MRG-4, MRG-2, MRG-3 in the same way. Repetitions without a number (``^^^^51``), HL7 null and
    one digit all over do not count.
    """
    best = 9999
    found = ""
    name = record.name
    for field in _FIELDS.get(name, _FIELDS["PID"]):
        for element in record.get(field):
            score, key = _scored(name, field, element, facility)
            if score < best:
                best, found = score, key
        if best < 1000:
            break
    return found


def patient_keys(record: Record, facility: Facility) -> tuple[str, ...]:
    """PID or MRG -> the key of every number that names the patient, the best first; visit and account numbers only alone."""
    name = record.name
    scored = [
        _scored(name, field, element, facility)
        for field in _FIELDS.get(name, _FIELDS["PID"])
        for element in record.get(field)
    ]
    found = sorted((pair for pair in scored if pair[1]), key=lambda pair: pair[0])
    numbers = [key for score, key in found if score < _VISIT_RANK] or [key for _, key in found[:1]]
    return tuple(dict.fromkeys(numbers))


def _scored(name: str, field: int, element: Element, facility: Facility) -> tuple[int, str]:
    """How well one CX of a field names the patient (``rank``), and its key; empty when it has no number."""
    value = part(element, 1).strip()
    if not value or _is_filler(value):
        return 9999, ""
    score = rank(element, facility)
    if (name, field) in _ACCOUNT:
        score = 1003
    elif (name, field) == _NATIONAL:
        score = 1001
    elif field != _FIELDS[name][0] and score < 1000:
        score = 1000
    known = authority(element, facility)
    prefix = "account" if score >= _VISIT_RANK and not known else known
    return score, f"{prefix}|{value}"
