"""The recognition ledger: every reminder, missing answer and feedback is on disk before the answer leaves.

Rows are hash-chained, one chain per writer process (conformance.chain), and written in groups. When the database is away or slow, the
same rows, numbered and hashed already, go to a local fsynced spool and are drained later; draining twice changes nothing, because a row
is known by chain and number.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final, Literal

import asyncpg
import orjson

from conformance import chain
from fhir_server.store.database import Borrowed

Kind = Literal["reminder", "no-answer", "visit", "view", "feedback", "decision", "citation", "reopened"]

PATIENCE: Final = 0.15
"""Seconds the database may take for a group before the group goes to the spool."""
_RETRY: Final = 1.0
_ROWS_A_GROUP: Final = 500
_LOST: Final = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)

log = logging.getLogger(__name__)

_INSERT: Final = """
INSERT INTO ledger (chain, number, at, kind, person, facility, orderable, outcome, entry, hash, card, doctor, department, reports)
SELECT chain, number, at, kind, person, facility, orderable, outcome, entry, hash, card, doctor, department,
  string_to_array(reports, ' ')
FROM unnest($1::text[], $2::bigint[], $3::timestamptz[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
  $9::text[], $10::bytea[], $11::text[], $12::text[], $13::text[], $14::text[])
  AS r(chain, number, at, kind, person, facility, orderable, outcome, entry, hash, card, doctor, department, reports)
ON CONFLICT (chain, number) DO NOTHING"""


@dataclass(frozen=True, slots=True)
class Row:
    """One ledger row before it is numbered. ``entry``: JSON values, without names or numbers of a patient, logical ids only."""

    kind: Kind
    at: datetime
    facility: str
    entry: dict[str, Any]
    person: str | None = None
    orderable: str | None = None
    outcome: str | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """A row in its chain, as stored."""

    chain: str
    number: int
    at: datetime
    kind: str
    person: str | None
    facility: str
    orderable: str | None
    outcome: str | None
    entry: str
    hash: bytes

    def content(self) -> bytes:
        """What the hash covers: every column but chain (which the genesis covers) and the hash itself."""
        columns = (self.number, _iso(self.at), self.kind, self.person, self.facility, self.orderable, self.outcome)
        return "\x1f".join(("" if c is None else str(c)) for c in (*columns, self.entry)).encode()


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def canonical(entry: dict[str, Any]) -> str:
    """JSON text with sorted keys and no spaces: the same values always give the same text."""
    return orjson.dumps(entry, option=orjson.OPT_SORT_KEYS).decode()


class Ledger:
    """Writer of one process; start it in the event loop that serves by its first ``record``, ``close`` it at the end."""

    def __init__(self, pool: asyncpg.Pool, spool_dir: Path) -> None:
        self._pool = pool
        self._spool = Spool(spool_dir)
        self._chain = ""
        self._number = 0
        self._previous = b""
        self._waiting: list[tuple[Row, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._closing = False
        self._drained = asyncio.Event()
        self._drained.set()
        self.turns = asyncio.Semaphore(2)
        """For those who hold a connection while they wait for their row: not so many that none is left to write it."""

    async def record(self, *rows: Row) -> None:
        """Returns when all rows are on disk, in the database or in the spool. Raises OSError when neither takes them."""
        if not rows:
            return
        if self._closing:
            raise OSError("the ledger is closed")
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_forever(), name="ledger")
        loop = asyncio.get_running_loop()
        waiting = [(row, loop.create_future()) for row in rows]
        self._waiting.extend(waiting)
        self._wake.set()
        await asyncio.gather(*(done for _, done in waiting))

    async def catch_up(self, patience: float = 2.5) -> bool:
        """Waits until what went to the spool is in the table; False when it is not after so many seconds."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._drained.wait(), patience)
        return self._drained.is_set()

    async def close(self) -> None:
        """Writes what waits and drains the spool if the database is there; then ends. Further records are refused."""
        self._closing = True
        self._wake.set()
        if self._writer is not None:
            await self._writer
            self._writer = None
        self._spool.close()

    async def _write_forever(self) -> None:
        await self._drain(left_behind=True)
        while not (self._closing and not self._waiting):
            if not self._waiting:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), _RETRY if self._spool.holds else None)
                self._wake.clear()
            group, self._waiting = self._waiting[:_ROWS_A_GROUP], self._waiting[_ROWS_A_GROUP:]
            if group:
                await self._write(group)
            elif self._spool.holds:
                await self._drain()
        if self._spool.holds:
            await self._drain()

    async def _write(self, group: Sequence[tuple[Row, asyncio.Future[None]]]) -> None:
        links = [self._link(row) for row, _ in group]
        fault: OSError | None = None
        try:
            if self._spool.holds:
                raise TimeoutError  # away a moment ago: do not make the next order wait for it again
            await self._insert(links)
        except _LOST as lost:
            if not self._spool.holds:
                log.warning("the ledger goes to the spool", extra={"reason": type(lost).__name__})
            self._drained.clear()
            try:
                await asyncio.to_thread(self._spool.write, links)
            except OSError as full:
                fault = full
                self._chain = ""  # whether the rows stand is unknown: the next ones begin another chain
        for _, done in group:
            if done.done():
                continue
            if fault:
                done.set_exception(fault)
            else:
                done.set_result(None)

    def _link(self, row: Row) -> Link:
        if not self._chain:
            self._chain = f"{row.at.astimezone(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex}"
            self._number, self._previous = 0, chain.genesis(self._chain)
        self._number += 1
        columns = (row.at, row.kind, row.person, row.facility, row.orderable, row.outcome, canonical(row.entry))
        link = Link(self._chain, self._number, *columns, b"")
        self._previous = chain.next_hash(self._previous, link.content())
        return Link(self._chain, self._number, *columns, self._previous)

    async def _insert(self, links: Sequence[Link], patience: float = PATIENCE) -> None:
        columns = list(zip(*((*_columns(link), *_looked_up(link.entry)) for link in links), strict=True))
        async with asyncio.timeout(patience), Borrowed(self._pool) as connection:
            await connection.execute(_INSERT, *columns)

    async def _drain(self, *, left_behind: bool = False) -> None:
        """Moves spooled rows into the table; ``left_behind``: also those of processes that are gone."""
        try:
            links = await asyncio.to_thread(self._spool.read, left_behind)
            for start in range(0, len(links), _ROWS_A_GROUP):
                await self._insert(links[start : start + _ROWS_A_GROUP], patience=30)
            await asyncio.to_thread(self._spool.clear)
            self._drained.set()
        except _LOST as lost:
            log.debug("the spool waits", extra={"reason": type(lost).__name__})


def _columns(link: Link) -> tuple[Any, ...]:
    return (
        link.chain, link.number, link.at, link.kind, link.person, link.facility, link.orderable, link.outcome, link.entry, link.hash,
    )  # fmt: skip


def _looked_up(text: str) -> tuple[str | None, str | None, str | None, str | None]:
    """What an entry is looked up by: card, doctor, department, and the reports it names (logical ids, blanks between them)."""
    entry = orjson.loads(text)
    named = (entry.get(key) for key in ("card", "user", "department"))
    card, doctor, department = (v.replace("\x00", "") if isinstance(v, str) and v else None for v in named)
    return card, doctor, department, " ".join(reports_of(entry)) or None


def reports_of(entry: Mapping[str, Any]) -> list[str]:
    """Logical ids of the DiagnosticReports an entry names: those it lists itself, and those of the results its decisions offered.
    A result without a report stands for itself."""
    found = dict.fromkeys(entry.get("reports", ()))
    for decision in (entry.get("decision"), *entry.get("decisions", ())):
        for member in decision["members"] if isinstance(decision, dict) else ():
            result = member.get("result")
            if result:
                found[result.get("report") or result.get("observation", "")] = None
    found.pop("", None)
    return [reference.split("/")[1] if "/" in reference else reference for reference in found]


class Spool:
    """One append-only file per process, locked while the process lives; files of dead processes are taken over."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._taken: list[IO[bytes]] = []
        self.holds = False

    def write(self, links: Iterable[Link]) -> None:
        """Appends rows and returns when they are on disk. Raises OSError."""
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{uuid.uuid4().hex}.jsonl"
            self._file = path.open("a+b")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            folder = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        self.holds = True
        for link in links:
            self._file.write(canonical(_as_json(link)).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def read(self, left_behind: bool = False) -> list[Link]:
        """Every complete row in our file, and with ``left_behind`` in files whose process is gone."""
        if left_behind and self._folder.is_dir():
            for path in sorted(self._folder.glob("*.jsonl")):
                file: IO[bytes] = path.open("a+b")
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    file.close()  # its process lives and drains it
                else:
                    self._taken.append(file)
        found: list[Link] = []
        for file in self._files():
            file.seek(0)
            # A line without its end was never acknowledged: the process died while writing it.
            found.extend(_from_json(json.loads(line)) for line in file.read().split(b"\n")[:-1])
        self.holds = bool(found)
        return found

    def _files(self) -> list[IO[bytes]]:
        return [*self._taken, *([self._file] if self._file else [])]

    def clear(self) -> None:
        """Forgets what ``read`` gave, once it is in the database."""
        for file in self._taken:
            Path(file.name).unlink(missing_ok=True)
            file.close()
        self._taken = []
        if self._file is not None:
            self._file.truncate(0)
            os.fsync(self._file.fileno())
        self.holds = False

    def close(self) -> None:
        """Releases the files; an empty one is removed."""
        for file in self._files():
            if file.seek(0, os.SEEK_END) == 0:
                Path(file.name).unlink(missing_ok=True)
            file.close()
        self._taken, self._file = [], None


def _as_json(link: Link) -> dict[str, Any]:
    out = dict(zip(Link.__slots__, _columns(link), strict=True))
    return out | {"at": _iso(link.at), "hash": link.hash.hex()}


def _from_json(row: dict[str, Any]) -> Link:
    return Link(**(row | {"at": datetime.fromisoformat(row["at"]), "hash": bytes.fromhex(row["hash"])}))


def first_break(links: Sequence[Link]) -> int | None:
    """Position of the first row of one chain (in order of number) that was changed, or before which one is missing; None when whole."""
    for position, link in enumerate(links):
        if link.number != position + 1:
            return position
    if not links:
        return None
    return chain.verify(chain.genesis(links[0].chain), ((link.content(), link.hash) for link in links))
