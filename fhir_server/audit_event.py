"""The audit log: who read or changed what, durable before the answer leaves, in a hash chain per process.

An entry is canonical JSON without patient data other than logical ids: ``subject``, ``role``, ``facility``, ``address``, ``action``,
``interaction``, ``types``, ``patients``, ``resource``, ``query`` (parameter names, never values) and ``outcome``
(AuditEvent.action, AuditEvent.outcome: http://hl7.org/fhir/R4/auditevent.html). A chain regularly records the heads of the other chains
(an anchor), so that cutting off the end of a chain shows too.
"""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

import asyncpg

from conformance import chain
from fhir_server import telemetry
from fhir_server.access import Principal
from fhir_server.errors import Category, Fault

Action = Literal["C", "R", "U", "D", "E"]
Outcome = Literal["0", "4", "8", "12"]

ANCHOR_EVERY: Final = timedelta(minutes=10)
_HEADS: Final = 100
SHORTEST_KEPT: Final = timedelta(days=183)
"""6 months (Cybersecurity Law article 21)."""
_BEGAN: Final = "%Y%m%dT%H%M%S"
_TIMEOUT: Final = 5.0
_WAITED: Final = timedelta(minutes=1)
"""More than a request waits for its entry: what comes after an anchor may say a time this much earlier."""
_PAGE: Final = 5000
_ROWS_A_GROUP: Final = 500
_NAME = re.compile(r"[A-Za-z_$][A-Za-z0-9_:.\-]{0,79}")
# InternalClientError: asyncpg's answer when the server closes a connection in the moment it is used.
_LOST = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

_INSERT = """
INSERT INTO audit_entry (chain, number, at, entry, hash)
SELECT $1, * FROM unnest($2::bigint[], $3::timestamptz[], $4::text[], $5::bytea[])"""

# One index probe per chain, newest chain first (ids begin with the time the chain began).
_SELECT_HEADS = """
WITH RECURSIVE head AS (
  (SELECT chain, number, hash, 1 AS place FROM audit_entry ORDER BY chain DESC, number DESC LIMIT 1)
  UNION ALL
  SELECT n.chain, n.number, n.hash, head.place + 1
  FROM head, LATERAL (
    SELECT chain, number, hash FROM audit_entry WHERE chain < head.chain ORDER BY chain DESC, number DESC LIMIT 1) n
  WHERE head.place < $1)
SELECT chain, number, hash FROM head WHERE chain <> $2"""


@dataclass(frozen=True, slots=True)
class Break:
    """A place where the log does not hold: chain, row number, and why (``changed``, ``missing``, ``cut``)."""

    chain: str
    number: int
    reason: str


@dataclass(slots=True)
class _Waiting:
    at: datetime
    entry: str
    done: asyncio.Future[None]


def outcome_of(status: int) -> Outcome:
    """HTTP status -> AuditEvent.outcome: 0 success, 4 refused or wrong request, 8 server fault."""
    return "0" if status < 400 else "4" if status < 500 else "8"


def names_of(query: str) -> str:
    """Query string -> its parameter names in order, ``&`` between; values and anything that is no parameter name are dropped."""
    names = [part.partition("=")[0] for part in query.split("&") if part]
    return "&".join(name if _NAME.fullmatch(name) else "?" for name in names[:50])


def canonical(entry: dict[str, Any]) -> str:
    """An entry as it is hashed and stored."""
    text = json.dumps(entry, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return text.encode("utf-8", "replace").decode()  # a lone surrogate from a client must not stop the writer


def hashed(number: int, at: datetime, entry: str) -> bytes:
    """What the hash of a row covers."""
    # The columns beside the entry are covered too.
    return f"{number}\x1f{at.astimezone(UTC).isoformat(timespec='microseconds')}\x1f{entry}".encode()


class AuditLog:
    """Writer of one process. It starts with the first record, in the event loop that serves; ``close`` it at the end.

    url is a ``postgresql://`` address: the log keeps one connection of its own, so that a full read pool cannot stop it.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: asyncpg.Connection | None = None
        self._chain = ""
        self._number = 0
        self._previous = b""
        self._anchored: datetime | None = None
        self._waiting: list[_Waiting] = []
        self._wake = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._closing = False

    async def close(self) -> None:
        """Writes what waits, then ends. Further records are refused."""
        self._closing = True
        self._wake.set()
        if self._writer is not None:
            await self._writer
            self._writer = None
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(*_LOST):
                await connection.close(timeout=_TIMEOUT)

    async def record(
        self,
        principal: Principal | None,
        action: Action,
        interaction: str,
        types: Sequence[str],
        patients: Sequence[str] = (),
        *,
        query: str = "",
        outcome: Outcome = "0",
        at: datetime,
        resource: str = "",
        address: str = "",
    ) -> None:
        """Returns when the entry is durable; raises Fault UNAVAILABLE when it cannot be, and then the answer must not be given.

        principal    who asked; None when nobody proved who they are
        interaction  RESTful interaction (``read``, ``search-type``) or operation name (``$everything``, ``order-sign``)
        types        resource types touched; patients: logical ids of the Patients whose data is in the answer
        query        query string; only its parameter names are kept
        at           now, aware; resource: ``Observation/<id>`` for an instance; address: network address of the client
        """
        if self._closing:
            raise Fault(Category.UNAVAILABLE, "The server is stopping. Try again later.")
        entry = canonical(
            {
                "action": action,
                "address": address,
                "facility": principal.facility if principal else "",
                "interaction": interaction,
                "outcome": outcome,
                "patients": sorted(set(patients)),
                "query": names_of(query),
                "resource": resource,
                "role": principal.role if principal else "",
                "subject": principal.subject if principal else "",
                "types": sorted(set(types)),
            }
        )
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_forever(), name="audit log")
        waiting = _Waiting(at, entry, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._wake.set()
        with telemetry.AUDIT_SECONDS.time():
            await waiting.done

    async def _write_forever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                group, self._waiting = self._waiting[:_ROWS_A_GROUP], self._waiting[_ROWS_A_GROUP:]
                written = False
                try:
                    await self._write(group)
                    written = True
                except _LOST:
                    self._drop()
                finally:
                    self._settle(group, written)
            if self._closing:
                return

    def _settle(self, group: list[_Waiting], written: bool) -> None:
        if not written:
            # Whether the rows are there is unknown, so this chain ends here and the next record begins another.
            self._chain = ""
        for waiting in group:
            if waiting.done.done():
                continue  # the client went away; its entry stays
            if written:
                waiting.done.set_result(None)
            else:
                text = "The audit log cannot be written, so nothing is answered. Try again later."
                waiting.done.set_exception(Fault(Category.UNAVAILABLE, text))

    async def _write(self, group: list[_Waiting]) -> None:
        """One INSERT, in a transaction of its own: when it returns the rows are on disk."""
        if self._connection is None or self._connection.is_closed():
            self._connection = await asyncpg.connect(self._url, timeout=_TIMEOUT, command_timeout=_TIMEOUT)
            await self._connection.execute("SET synchronous_commit = on")
        rows: list[tuple[datetime, str]] = []
        newest = group[-1].at
        if not self._chain:
            self._chain = f"{newest.astimezone(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex}"
            self._number, self._previous, self._anchored = 0, chain.genesis(self._chain), None
        if self._anchored is None or newest - self._anchored >= ANCHOR_EVERY:
            rows.append((newest, canonical({"anchor": await heads(self._connection, self._chain)})))
            self._anchored = newest
        rows.extend((w.at, w.entry) for w in group)
        number, previous = self._number, self._previous
        numbers, hashes = [], []
        for at, entry in rows:
            number += 1
            previous = chain.next_hash(previous, hashed(number, at, entry))
            numbers.append(number)
            hashes.append(previous)
        await self._connection.execute(
            _INSERT, self._chain, numbers, [r[0] for r in rows], [r[1] for r in rows], hashes
        )
        self._number, self._previous = number, previous

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()


async def heads(connection: asyncpg.Connection, without: str) -> list[list[Any]]:
    """Chain, number and hash (hex) of the last row of each of the newest chains but one."""
    rows = await connection.fetch(_SELECT_HEADS, _HEADS, without)
    return [[r["chain"], r["number"], r["hash"].hex()] for r in rows]


async def verify(connection: asyncpg.Connection) -> list[Break]:
    """Reads the whole log in pages and names every place where it was changed, where rows are missing that no removal states
    (fhir_server.audit_retention), and where the end of a chain was cut off after another chain had anchored it. An empty list means
    the log is whole."""
    breaks: list[Break] = []
    anchors: dict[tuple[str, int], tuple[str, datetime]] = {}
    removed = await _removals(connection)
    current, number, previous = "", 0, b""
    while True:
        rows = await connection.fetch(
            "SELECT chain, number, at, entry, hash FROM audit_entry WHERE (chain, number) > ($1, $2) "
            "ORDER BY chain, number LIMIT $3",
            current,
            number,
            _PAGE,
        )
        for row in rows:
            if row["chain"] != current:
                current, number, previous = row["chain"], 0, chain.genesis(row["chain"])
                stated = removed.get(current, {}).get(row["number"] - 1)
                if stated is not None:
                    number, previous = row["number"] - 1, bytes.fromhex(stated[0])
            if row["number"] != number + 1:
                breaks.append(Break(current, number + 1, "missing"))
            elif chain.verify(previous, [(hashed(row["number"], row["at"], row["entry"]), row["hash"])]) is not None:
                breaks.append(Break(current, row["number"], "changed"))
            number, previous = row["number"], row["hash"]
            for name, at_number, digest in anchors_in(row["entry"]):
                anchors[name, at_number] = digest, row["at"]
            breaks.extend(_too_early(row["at"], removals_in(row["entry"])))
        if len(rows) < _PAGE:
            break
    held = await connection.fetch(
        "SELECT a.chain, a.number, e.hash FROM unnest($1::text[], $2::bigint[]) AS a(chain, number) "
        "LEFT JOIN audit_entry e USING (chain, number)",
        [name for name, _ in anchors],
        [at_number for _, at_number in anchors],
    )
    for row in held:
        digest, anchored = anchors[row["chain"], row["number"]]
        if row["hash"] is None:
            # Removed with others: the anchor must not be younger than what was stated to be older than a day.
            cuts = removed.get(row["chain"], {})
            if not any(row["number"] <= cut for cut in cuts) or cuts.get(row["number"], (digest,))[0] != digest:
                breaks.append(Break(row["chain"], row["number"], "cut"))
            elif any(cut > row["number"] and before + _WAITED <= anchored for cut, (_, before) in cuts.items()):
                breaks.append(Break(row["chain"], row["number"], "removed too early"))
        elif row["hash"].hex() != digest:
            breaks.append(Break(row["chain"], row["number"], "changed"))
    return sorted(set(breaks), key=lambda b: (b.chain, b.number, b.reason))


def _too_early(at: datetime, removals: list[tuple[str, int, str, str]]) -> list[Break]:
    """Removals stated at a time that the rules forbid: of what was too young then, or of a chain that began later than what was
    removed is said to be."""
    out = []
    for name, number, _, before in removals:
        until = datetime.fromisoformat(before)
        try:
            began = datetime.strptime(name[:15], _BEGAN).replace(tzinfo=UTC)
        except ValueError:
            began = at  # no chain of ours has such a name
        if at - until < SHORTEST_KEPT or began > until:
            out.append(Break(name, number, "removed too early"))
    return out


async def _removals(connection: asyncpg.Connection) -> dict[str, dict[int, tuple[str, datetime]]]:
    """Chain -> number of the last row removed -> its hash (hex), and the day before which rows were removed."""
    out: dict[str, dict[int, tuple[str, datetime]]] = {}
    rows = await connection.fetch("SELECT entry FROM audit_entry WHERE entry LIKE '%\"removed\":[%'")
    for row in rows:
        for name, number, digest, before in removals_in(row["entry"]):
            out.setdefault(name, {})[number] = digest, datetime.fromisoformat(before)
    return out


def removals_in(entry: str) -> list[tuple[str, int, str, str]]:
    """(chain, number and hash in hex of the last row removed, time before which) that a removal states; empty for other entries."""
    if '"removed":[' not in entry:
        return []
    return [(name, number, digest, before) for name, number, digest, before in json.loads(entry).get("removed", ())]


def anchors_in(entry: str) -> list[tuple[str, int, str]]:
    """(chain, number, hash in hex) that an anchor entry records; empty for every other entry."""
    if not entry.startswith('{"anchor":'):
        return []
    return [(name, number, digest) for name, number, digest in json.loads(entry)["anchor"]]
