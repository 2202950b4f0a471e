"""Checks ``polls`` of a facility profile at load, and says what a watermark is: a value, its text, what lies before it (pure)."""

from __future__ import annotations

import math
import re
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

from mappings import times
from mappings.facility import Facility, Watermark
from mappings.peer_files import Wrong

_LETTERS = {"yyyy": "%Y", "MM": "%m", "dd": "%d", "HH": "%H", "mm": "%M", "ss": "%S"}
_LETTER = re.compile("|".join(_LETTERS))

Mark = datetime | date | int | str
"""A value of a watermark column; whole numbers from 0."""


def check(facility: Facility, wrong: Wrong) -> None:
    """Tells the faults to ``wrong``."""
    names = {c.name for c in facility.channels} | {s.name for s in facility.image_sources}
    tables = {t.name: t for t in facility.tables}
    for index, poll in enumerate(facility.polls):
        here = ("polls", index)
        if poll.name in names:
            wrong((*here, "name"), f"{poll.name!r} stands twice among channels and polls")
        names.add(poll.name)
        if poll.table not in tables:
            wrong((*here, "table"), f"{poll.table!r} is not one of tables ({', '.join(sorted(tables)) or 'none'})")
        for part in ("report", "key"):
            columns = getattr(poll, part)
            if len(set(columns)) < len(columns) or not all(columns):
                wrong((*here, part), "a column is empty or stands twice")
        if (poll.watermark is None) == (poll.flag is None):
            wrong(here, "needs one of watermark and flag")
        if poll.watermark is not None:
            _check_watermark(poll.watermark, (*here, "watermark"), wrong)
        if poll.flag is not None:
            if not poll.key:
                wrong((*here, "key"), "columns that tell one row from another are needed to set the flag")
            if poll.flag.unread == poll.flag.read:
                wrong((*here, "flag", "read"), "is the same as unread: no row would ever count as fetched")
        if poll.latin1 and not facility.charset:
            wrong((*here, "latin1"), "needs the facility's charset (gb18030)")


def _check_watermark(mark: Watermark, here: tuple[str | int, ...], wrong: Wrong) -> None:
    if (mark.kind == "text") != bool(mark.format):
        wrong((*here, "format"), "goes with kind: text, and only there")
    if mark.format:
        try:
            times.pattern(mark.format)
        except ValueError as fault:
            wrong((*here, "format"), str(fault))
            return
        if _LETTER.findall(mark.format) != list(_LETTERS)[: len(_LETTER.findall(mark.format))]:
            wrong((*here, "format"), "such texts do not sort as the times do: yyyy, MM, dd, HH, mm, ss in this order")
            return
    if mark.since:
        try:
            since(mark)
        except ValueError:
            wrong((*here, "since"), f"{mark.since!r} is not a value of a watermark of kind {mark.kind}")


def since(mark: Watermark) -> Mark | None:
    """The first value wanted; None: everything. Raises ValueError."""
    if not mark.since:
        return None
    if mark.kind == "text":
        datetime.strptime(mark.since, _strptime(mark.format))  # noqa: DTZ007 - text of the facility's own zone
        return mark.since
    return int(mark.since) if mark.kind == "number" else datetime.fromisoformat(mark.since)


def value_of(mark: Watermark, value: object) -> Mark | None:
    """A value of the column as it can be compared; None for what cannot: NULL, MySQL's ``0000-00-00``, texts of another form."""
    if mark.kind == "text":
        text = value.strip() if isinstance(value, str) else ""
        try:
            datetime.strptime(text, _strptime(mark.format))  # noqa: DTZ007 - text of the facility's own zone
        except ValueError:
            return None
        return text
    if mark.kind == "number":
        # FLOAT and NUMBER columns give whole numbers in other clothes.
        number = value if isinstance(value, int | float | Decimal) and math.isfinite(value) else -1
        return int(number) if number >= 0 and number == int(number) else None
    return value if isinstance(value, date) else None


def written(mark: Mark) -> str:
    """A watermark as text that ``read`` understands, and that sorts (by code point) as the watermarks of one column do."""
    if isinstance(mark, datetime):
        return times.sortable(mark) if mark.tzinfo else mark.isoformat(timespec="microseconds")
    if isinstance(mark, int):
        return f"{mark:030d}"
    return mark.isoformat() if isinstance(mark, date) else mark


def read(poll: Watermark, text: str) -> Mark:
    """The watermark of a text that ``written`` made."""
    if poll.kind == "text":
        return text
    if poll.kind == "number":
        return int(text)
    return datetime.fromisoformat(text) if "T" in text else date.fromisoformat(text)


def before(poll: Watermark, mark: Mark) -> Mark:
    """The smallest value at which a row may still appear once ``mark`` was seen."""
    if isinstance(mark, str):
        form = _strptime(poll.format)
        earlier = datetime.strptime(mark, form) - timedelta(seconds=poll.overlap)  # noqa: DTZ007 - as above
        return earlier.strftime(form)
    if isinstance(mark, int):
        return max(0, mark - int(poll.overlap))
    # A column of dates: the whole day, and the days the overlap reaches into.
    length = timedelta(seconds=poll.overlap)
    return mark - length if isinstance(mark, datetime) else mark - timedelta(days=-(-length // timedelta(days=1)))


def capped(poll: Watermark, mark: Mark, now: datetime, zone: ZoneInfo) -> Mark:
    """A watermark that lies in the future (a wrong clock) counts as now: no row written meanwhile may be passed over."""
    here = now.astimezone(zone)
    if isinstance(mark, datetime):
        return min(mark, now.astimezone(UTC) if mark.tzinfo else here.replace(tzinfo=None))
    if isinstance(mark, date):
        return min(mark, here.date())
    return min(mark, here.strftime(_strptime(poll.format))) if isinstance(mark, str) else mark


def _strptime(form: str) -> str:
    return _LETTER.sub(lambda found: _LETTERS[found[0]], form.replace("%", "%%"))
