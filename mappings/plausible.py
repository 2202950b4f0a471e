"""What holds a message although it can be read: an unknown trigger, no control id, a date in the future, a birth date that the
resident ID number contradicts. Each issue names segment and field and carries the value."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

from conformance import systems
from mappings import resident_id, times
from mappings.context import Context
from mappings.datatypes import plain
from mappings.grouping import Groups
from mappings.header import OWN_CODES
from mappings.source import Record
from mappings.triggers import known_trigger

_FUTURE = "This lies in the future; correct the clock or the date and send again."
_TOLERANCE = timedelta(days=1)
"""So far a sender's clock or zone may be ahead."""
_UTC = ZoneInfo("UTC")
_RESULT_TIMES = (7, 8, 14, 22)
_UNDER_WAY = frozenset({"A01", "A02", "A03", "A06", "A07", "A12", "A13"})
"""Events of a visit that has begun: its admission (PV1-44) is past. Others may announce one."""


def latest(received_at: str) -> str:
    """The last instant (sortable UTC text) a thing that happened may carry: a day after receipt. Empty when that is not known."""
    base = times.parse(received_at, _UTC)
    return times.sortable(base.at + _TOLERANCE) if base else ""


def check_header(header: Record, code: str, x: Context) -> None:
    """MSH-7, 9 and 10."""
    if code not in OWN_CODES and not known_trigger(code, x.trigger):
        words = "The message type or trigger event is in no HL7 table (0076, 0003); the profile may say what it means (triggers)."
        x.issue("unknown-trigger", "error", words, "^".join(v for v in (code, x.trigger) if v), f"{header.where}-9")
    if not x.control_id:
        words = "The message has no control id (MSH-10); without it nobody can be answered and no repeat be known."
        x.issue("no-control-id", "error", words, "", f"{header.where}-10")
    if header.first(14):
        words = "The message is the rest of another one, which has not come; held until it comes (within a day)."
        x.issue("continued-message", "error", words, header.first(14), f"{header.where}-14")
    if x.latest and x.sent_at > x.latest:
        x.issue("future-date", "error", _FUTURE, header.first(7), f"{header.where}-7")


def check_times(groups: Groups, x: Context) -> None:
    """Birth and death; in results when it was measured, analysed, reported and taken; when it was ordered; when a visit began and
    ended, and the event happened. OBX-14 is looked at where it is mapped."""
    for event in groups.header.get("EVN", ()) if x.family == "admission" else ():
        _not_future(event, (2, 6), x)
    for patient in groups.patients:
        if patient.pid is not None:
            _not_future(patient.pid, (7, 29), x)
        if patient.visit is not None and x.family == "admission" and x.trigger in _UNDER_WAY:
            _not_future(patient.visit.record, (44, 45) if x.trigger == "A03" else (44,), x)
        for order in patient.orders:
            if order.orc is not None and x.family == "order":
                _not_future(order.orc, (9,), x)
            if x.family != "result":
                continue
            if order.obr is not None:
                _not_future(order.obr, _RESULT_TIMES, x)
            for specimen in order.specimens:
                _not_future(specimen.record, (17, 18), x)
            for result in order.results:
                if result.record.get(19):
                    _not_future(result.record, (19,), x)


def _not_future(record: Record, fields: tuple[int, ...], x: Context) -> None:
    for field in fields:
        written = record.first(field) if record.get(field) else ""
        moment = x.quiet_time(written) if written else None
        if moment is not None and x.in_future(moment):
            x.issue("future-date", "error", _FUTURE, written, f"{record.where}-{field}")


def check_resident_id(patient: dict[str, Any], pid: Record, x: Context) -> None:
    """Resident ID numbers (GB 11643): one that does not exist is told, and proves nothing to identity matching; one whose birth date
    is not that of PID-7 holds the message: one of them is another person's."""
    born = patient.get("birthDate", "")
    for identifier in patient.get("identifier", ()):
        value = identifier["value"]
        national = identifier.get("system") == systems.RESIDENT_ID
        number = resident_id.read(value) if national else None
        if number is None:
            wrong = national and not resident_id.is_other_document(value)
            if wrong or (len(value) == 18 and resident_id.meant(value) and resident_id.read(value) is None):
                words = "The resident ID number does not exist (form, date or check character); nobody is linked by it."
                x.issue("bad-resident-id", "warning", words, value, f"{pid.where}-{_field_of(value, pid)}")
        elif len(born) == 10 and number.birth_date != born:
            words = (
                "The birth date is not the one in the resident ID number; one of them is wrong, or another person's."
            )
            x.issue("birth-date-conflict", "error", words, pid.first(7), f"{pid.where}-7")


def _field_of(value: str, pid: Record) -> int:
    """The field of PID an identifier came from."""
    return next((n for n in (3, 19, 2, 4, 20) if any(plain(element, 1) == value for element in pid.get(n))), 3)
