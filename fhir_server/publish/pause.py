"""Pauses between attempts, and waiting that something else may end."""

from __future__ import annotations

import asyncio
import random

from mappings.facility import Retry


def pause_before(retry: Retry, attempts: int) -> float:
    """Seconds before the next attempt after so many: doubled each time, the upper half by chance, so that not all come at once."""
    whole = min(retry.first_seconds * 2.0 ** min(attempts - 1, 30), retry.longest_seconds)
    return whole * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not cryptography


async def first(event: asyncio.Event, seconds: float) -> None:
    """Returns when the event is set, or after so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
