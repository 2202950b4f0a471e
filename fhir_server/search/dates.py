"""Dates as spans of time (http://hl7.org/fhir/R4/search.html#date, http://hl7.org/fhir/R4/datatypes.html#dateTime).

A FHIR date is a span, half open, in UTC order: ``2024-05`` lasts from the first of May up to, not including, the first of June in
the server's zone. A span is a pair of aware datetimes; an open side is EARLIEST or LATEST.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Any, Final
from zoneinfo import ZoneInfo

Span = tuple[datetime, datetime]

# One day away from the ends of datetime, so that no driver overflows when it shifts them into a zone.
EARLIEST: Final = datetime(1, 1, 2, tzinfo=UTC)
LATEST: Final = datetime(9999, 12, 30, tzinfo=UTC)
SHANGHAI: Final = ZoneInfo("Asia/Shanghai")

_DAY = re.compile(r"\d{4}(-\d\d(-\d\d)?)?", re.ASCII)
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d)(:(\d\d)(\.\d+)?)?(Z|[+-]\d\d:\d\d)?", re.ASCII)
_SECOND: Final = timedelta(seconds=1)


@lru_cache(maxsize=8192)
def span(text: str, zone: tzinfo) -> Span:
    """FHIR date, dateTime or instant, or a search value without prefix -> its span. Raises ValueError when it is none of them.

    Search values may stop at the minute and may lack a zone: ``zone`` is then meant.
    """
    if len(text) <= 10:
        if not _DAY.fullmatch(text):
            raise ValueError("not a date")
        return _day(text, zone)
    m = _TIME.fullmatch(text)
    if not m:
        raise ValueError("not a date with time")
    leap = (
        m[3] == "60"
    )  # FHIR allows a leap second; the calendar here does not know it, so it counts as the next second
    low = datetime.fromisoformat(f"{m[1]}:{'59' if leap else m[3] or '00'}{(m[4] or '')[:7]}{m[5] or ''}")
    if low.tzinfo is None:
        low = low.replace(tzinfo=zone)
    low = _clamp(low)
    if leap:
        low += _SECOND
    if m[2] is None:
        return low, _after(low, timedelta(minutes=1))
    digits = min(len(m[4]) - 1, 6) if m[4] else 0
    return low, _after(low, timedelta(microseconds=10 ** (6 - digits)))


def _day(text: str, zone: tzinfo) -> Span:
    year, month, day = int(text[:4]), int(text[5:7] or 1), int(text[8:10] or 1)
    low = datetime(year, month, day, tzinfo=zone)
    if len(text) == 10:
        nxt = low.replace(tzinfo=None) + timedelta(days=1) if (year, month, day) < (9999, 12, 30) else None
    elif len(text) == 7:
        nxt = datetime(year + month // 12, month % 12 + 1, 1) if (year, month) < (9999, 12) else None  # noqa: DTZ001
    else:
        nxt = datetime(year + 1, 1, 1) if year < 9999 else None  # noqa: DTZ001
    return _clamp(low), LATEST if nxt is None else _clamp(nxt.replace(tzinfo=zone))


def _after(low: datetime, length: timedelta) -> datetime:
    return low + length if low < LATEST else LATEST


def _clamp(at: datetime) -> datetime:
    # Comparing aware datetimes near the ends of the calendar overflows, so the years are looked at first.
    if at.year <= 1:
        return EARLIEST
    if at.year >= 9999 and (at.month, at.day) >= (12, 30):
        return LATEST
    return at.astimezone(UTC)


def period(value: Mapping[str, Any], zone: tzinfo) -> Span | None:
    """Period -> span, an absent side open; None when both sides are absent. Raises ValueError for a side that is no date."""
    start, end = value.get("start"), value.get("end")
    if start is None and end is None:
        return None
    return (
        EARLIEST if start is None else span(start, zone)[0],
        LATEST if end is None else span(end, zone)[1],
    )


def timing(value: Mapping[str, Any], zone: tzinfo) -> Span | None:
    """Timing -> the outer limits of its events and bounds (R4: "only the outer limits are considered"); None without any."""
    spans = [span(e, zone) for e in value.get("event", ()) if e is not None]
    bounds = value.get("repeat", {}).get("boundsPeriod")
    if bounds and (outer := period(bounds, zone)):
        spans.append(outer)
    return (min(s[0] for s in spans), max(s[1] for s in spans)) if spans else None
