"""The clock of a server process: the machine's, or in a sandbox one that is given, so that a window can be tried to the second."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fhir_server.settings import Settings

Clock = Callable[[], datetime]


def now() -> datetime:
    """The machine's clock: aware, UTC."""
    return datetime.now(UTC)


def of(settings: Settings) -> Clock:
    """The clock results, orders and decisions are dated by. Tokens, leases and signs of life go by the real time in any case."""
    given = settings.sandbox_clock
    if not given:
        return now
    fixed = instant(given)
    if fixed is not None:
        return lambda: fixed
    path, last = Path(given), now()

    def read() -> datetime:
        # Read at every look, so that whoever tries something out moves the time while the server runs. A half-written file is not yet
        # the time.
        nonlocal last
        last = instant(path.read_text("utf-8")) or last
        return last

    return read


def instant(text: str) -> datetime | None:
    """RFC 3339 time with zone -> UTC; None when it is none."""
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return found.astimezone(UTC) if found.tzinfo else None
