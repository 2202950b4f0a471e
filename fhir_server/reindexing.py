"""A task of the server process: learns posted search parameters every second, and indexes what is stored by new ones."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import psycopg

from fhir_server.services import Services
from fhir_server.store import posted_parameters, reindex

log = logging.getLogger(__name__)

EVERY: Final = 1.0
"""Seconds between two looks while there is nothing to do."""
_PAUSE: Final = 0.02
"""Seconds between two chunks: those who wait for their locks come first."""


def _step(services: Services) -> bool:
    with services.writer.connection() as conn:
        with conn.transaction():
            posted_parameters.learn(conn)
        return reindex.step(conn, services.codec)


async def follow(services: Services) -> None:
    """Runs until cancelled. An outage of the database is waited for."""
    while True:
        try:
            busy = await asyncio.to_thread(_step, services)
        except psycopg.Error as fault:
            log.warning("reindexing_waits fault=%s", type(fault).__name__)
            busy = False
        await asyncio.sleep(_PAUSE if busy else EVERY)
