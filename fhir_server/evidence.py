"""``tongjian audit-log verify``: are the audit log and the recognition ledger as they were written?"""

from __future__ import annotations

from dataclasses import dataclass

import asyncpg

from conformance import chain
from fhir_server import audit_event
from fhir_server.recognition.ledger import Link

_PAGE = 5000
_ROWS = """
SELECT chain, number, at, kind, person, facility, orderable, outcome, entry, hash FROM ledger
WHERE (chain, number) > ($1, $2) ORDER BY chain, number LIMIT $3"""


@dataclass(frozen=True, slots=True)
class Break:
    """A place that does not hold. log: audit or ledger; number: of the row; reason: changed, missing or cut."""

    log: str
    chain: str
    number: int
    reason: str


async def verify(url: str) -> list[Break]:
    """Reads both logs as they are at one moment, in pages; empty when every entry follows from the one before it."""
    connection = await asyncpg.connect(url, timeout=10)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            audit = [Break("audit", b.chain, b.number, b.reason) for b in await audit_event.verify(connection)]
            return audit + await _ledger(connection)
    finally:
        await connection.close()


async def _ledger(connection: asyncpg.Connection) -> list[Break]:
    breaks: list[Break] = []
    name, number, previous = "", 0, b""
    while True:
        rows = await connection.fetch(_ROWS, name, number, _PAGE)
        for row in rows:
            link = Link(*row)
            if link.chain != name:
                name, number, previous = link.chain, 0, chain.genesis(link.chain)
            if link.number != number + 1:
                breaks.append(Break("ledger", name, number + 1, "missing"))
            elif chain.verify(previous, [(link.content(), link.hash)]) is not None:
                breaks.append(Break("ledger", name, link.number, "changed"))
            number, previous = link.number, link.hash
        if len(rows) < _PAGE:
            return breaks
