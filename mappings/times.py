"""Dates and times as senders write them -> FHIR date, dateTime and time.

HL7 v2.5.1 chapter 2.A.21 DT, 2.A.22 DTM, 2.A.75 TM, 2.A.77 TS; http://hl7.org/fhir/R4/datatypes.html#dateTime.

The written precision and the written offset are kept. Where no offset was written the facility's zone is assumed, and the Moment
says so. Nothing is guessed: 13 digits, 31 February, day/month/year in an order one cannot be sure of give None, and the caller raises
``bad-date``.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo

_FIRST_YEAR, _LAST_YEAR = 1800, 2199
_LONGEST = 40
_FOREVER = 9999
"""Years outside 1800-2199 are faults of a sender (``240318`` would be the year 2403); 9999 is the usual "without end"."""

_HL7 = re.compile(
    r"(\d{4})(?:(\d\d)(?:(\d\d)(?:[ T]?(\d\d)(?:(\d\d)(?:(\d\d)(?:\.(\d{1,9}))?)?)?)?(Z|[+-]\d\d:?\d\d)?)?)?", re.ASCII
)
_MILLISECONDS = re.compile(r"^(\d{14})(\d{3})((?:[+-]\d\d:?\d\d)?)$", re.ASCII)
_WRITTEN = re.compile(
    r"(\d{4}|\d\d)([-/.年])(\d{1,2})(?:(?:\2|月)(\d{1,2})日?"
    r"(?:(?:\s*T\s*|\s+|(?<=日))(\d{1,2})[:时](\d{1,2})(?:分?$|(?::|分)(\d{1,2})(?:秒|\.(\d{1,9}))?)?)?)?月?\s*(Z|[+-]\d\d(?::?\d\d)?)?",
    re.ASCII,
)
_HALF = re.compile(r"(\d{8})[ T](\d{1,2}):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?\s*(Z|[+-]\d\d(?::?\d\d)?)?", re.ASCII)
_TIME = re.compile(r"(\d\d)(?::?([0-5]\d)(?::?([0-5]\d)(?:\.(\d{1,9}))?)?)?(?:Z|[+-]\d\d:?\d\d)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Moment:
    """A date or time that was read.

    fhir            FHIR date or dateTime with the source's precision (hours without minutes are padded with ``:00:00``)
    date            its calendar date as written: ``YYYY``, ``YYYY-MM`` or ``YYYY-MM-DD``
    instant         earliest instant it can mean, UTC, ``YYYY-MM-DDTHH:MM:SS.ffffffZ``: such texts sort
    at              the same instant as aware datetime, in the written or assumed zone
    zone_assumed    no offset was written, the facility's zone was used
    century_assumed the year was written with two digits and read as 20YY
    """

    fhir: str
    date: str
    instant: str
    at: datetime
    zone_assumed: bool
    century_assumed: bool = False

    @property
    def has_time(self) -> bool:
        """True when at least the hour was written."""
        return "T" in self.fhir


def sortable(at: datetime) -> str:
    """Aware datetime -> UTC text with six fraction digits; such texts sort as their instants do."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")[:-6] + "Z"


_LETTERS = {"yyyy": r"(?P<y>\d{4})", "MM": r"(?P<M>\d{1,2})", "dd": r"(?P<d>\d{1,2})", "HH": r"(?P<H>\d{1,2})", "mm": r"(?P<m>\d{1,2})",
            "ss": r"(?P<s>\d{1,2})"}  # fmt: skip
_LETTER = re.compile("yyyy|MM|dd|HH|mm|ss|[A-Za-z]")


@lru_cache(maxsize=256)
def pattern(form: str) -> re.Pattern[str]:
    """A date format of a profile (``dd/MM/yyyy HH:mm:ss``) as expression. Raises ValueError without a year."""
    out, last = "", 0
    for found in _LETTER.finditer(form):
        if found[0] not in _LETTERS or _LETTERS[found[0]] in out:
            raise ValueError(f"{form!r}: {found[0]!r} is not one of yyyy MM dd HH mm ss, or stands twice")
        out += re.escape(form[last : found.start()]) + _LETTERS[found[0]]
        last = found.end()
    out += re.escape(form[last:])
    if "<y>" not in out:
        raise ValueError(f"{form!r} has no year (yyyy)")
    return re.compile(out, re.ASCII)


@lru_cache(maxsize=4096)
def hl7(text: str, forms: tuple[str, ...]) -> str:
    """Text in one of the profile's date formats -> HL7 digits; any other text as it is."""
    for form in forms:
        found = pattern(form).fullmatch(text.strip())
        if found:
            given = found.groupdict()
            digits = [given.get(k) or "" for k in "yMdHms"]
            return "".join(part.rjust(2, "0") if part else "" for part in digits)
    return text


def parse(text: str, zone: ZoneInfo, *, birth: bool = False) -> Moment | None:
    """Read one date or date-time; None when it is empty, impossible or not sure.

    text   HL7 DT/DTM/TS of any legal precision, ISO 8601, ``2024-03-18 11:04``, ``2024/3/18``, ``2024年3月18日``, ``24-03-18``
    zone   the facility's zone, used where no offset is written
    birth  True for birth dates: a two-digit year is then not read at all (a person of 24 and one of 124 both exist)
    """
    return _parse(text, zone, birth) if 0 < len(text) <= _LONGEST else None


@lru_cache(maxsize=16384)
def _parse(text: str, zone: ZoneInfo, birth: bool) -> Moment | None:
    text = text.strip()
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    # yyyyMMddHHmmssSSS: milliseconds without the point HL7 wants.
    text = _MILLISECONDS.sub(r"\1.\2\3", text)
    if found := _HL7.fullmatch(text):
        year, month, day, hour, minute, second, fraction, offset = found.groups()
    elif found := _WRITTEN.fullmatch(text):
        year, mark, month, day, hour, minute, second, fraction, offset = found.groups()
        if len(year) == 2 and (birth or day is None or mark not in "-/"):
            return None
    elif found := _HALF.fullmatch(text):
        digits, hour, minute, second, fraction, offset = found.groups()
        year, month, day = digits[:4], digits[4:6], digits[6:]
    else:
        return None
    century_assumed = len(year) == 2
    if century_assumed:
        year = "20" + year
    try:
        return _moment((year, month, day, hour, minute, second), fraction, offset, zone, century_assumed)
    except (ValueError, OverflowError):
        return None


def _moment(
    parts: tuple[str | None, ...], fraction: str | None, offset: str | None, zone: ZoneInfo, century_assumed: bool
) -> Moment:
    """Parts as written -> Moment. Raises ValueError for a calendar date or time of day that does not exist."""
    year, month, day, hour, minute, second = (int(p) if p else None for p in parts)
    if year is None or not (_FIRST_YEAR <= year <= _LAST_YEAR or year == _FOREVER):
        raise ValueError("implausible year")
    where: tzinfo = _offset(offset) if offset else zone
    # Fractions beyond microseconds stay in the text; the instant is cut, never rounded up.
    micro = int((fraction or "0")[:6].ljust(6, "0"))
    if month == 0 or day == 0:
        raise ValueError("month or day 0")
    at = datetime(year, month or 1, day or 1, hour or 0, minute or 0, second or 0, micro, tzinfo=where)
    date = (
        f"{year:04}" if month is None else f"{year:04}-{month:02}" if day is None else f"{year:04}-{month:02}-{day:02}"
    )
    fhir = date
    if hour is not None:
        fhir = f"{date}T{hour:02}:{minute or 0:02}:{second or 0:02}{'.' + fraction if fraction else ''}{_suffix(at, offset)}"
    return Moment(fhir, date, sortable(at), at, not offset, century_assumed)


def _offset(text: str) -> timezone:
    if text == "Z":
        return UTC
    digits = text[1:].replace(":", "").ljust(4, "0")
    hours, minutes = int(digits[:2]), int(digits[2:])
    # FHIR allows offsets to +-14:00.
    if minutes > 59 or hours * 60 + minutes > 14 * 60:
        raise ValueError("offset out of range")
    delta = timedelta(hours=hours, minutes=minutes)
    return timezone(-delta if text[0] == "-" else delta)


def _suffix(at: datetime, written: str | None) -> str:
    if written:
        if written == "Z":
            return "Z"
        digits = written[1:].replace(":", "").ljust(4, "0")
        return f"{written[0]}{digits[:2]}:{digits[2:]}"
    minutes = int((at.utcoffset() or timedelta()).total_seconds() // 60)
    sign, minutes = ("-", -minutes) if minutes < 0 else ("+", minutes)
    return f"{sign}{minutes // 60:02}:{minutes % 60:02}"


def time_of_day(text: str) -> str | None:
    """HL7 TM (``HH[MM[SS[.S[S[S[S]]]]]][+/-ZZZZ]``) or ``11:04`` -> FHIR time ``HH:MM:SS[.fff]``; None when impossible.

    A FHIR time has no zone (http://hl7.org/fhir/R4/datatypes.html#time): an offset is dropped, so the caller keeps the source text.
    """
    found = _TIME.fullmatch(text.strip())
    if not found or int(found[1]) > 23:
        return None
    return f"{found[1]}:{found[2] or '00'}:{found[3] or '00'}{'.' + found[4] if found[4] else ''}"
