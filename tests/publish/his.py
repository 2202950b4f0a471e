"""A receiving HIS on a real socket that behaves as a test says, and a store to send from."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from adapters.convert import convert
from adapters.hl7v2 import ack
from adapters.transports.mllp_frames import Frames, frame
from fhir_server.identity import registry
from fhir_server.identity.registry import PatientState
from fhir_server.publish import outbox
from fhir_server.publish.deliver import Deliveries
from fhir_server.store import repository
from fhir_server.store.body import Codec
from fhir_server.store.change import Change, Origin
from fhir_server.store.database import open_pool
from mappings.profile import Profile, load_profiles

LAB = """
id: lab
organization: {name: 甲县人民医院}
senders: [{facility: LAB}]
channels: [{addresses: [127.0.5.1/32]}]
identifiers: {patient: [PI, ""], resident_id: [NI]}
default_performer: sender
performers: {TOWN: town, 乙镇卫生院: town, VILLAGE: village}
"""
TOWN = """
id: town
organization: {{name: 乙镇卫生院}}
senders: [{{facility: TOWN}}]
channels: [{{addresses: [127.0.5.2/32]}}]
identifiers: {{patient: [PI, ""], resident_id: [NI]}}
performers: {{LABX: lab}}
flags: {{M: N, N: NEG}}
destinations:
{destinations}
"""
VILLAGE = """
id: village
organization: {{name: 丙村卫生室}}
senders: [{{facility: VILLAGE}}]
channels: [{{addresses: [127.0.5.3/32]}}]
identifiers: {{patient: [PI, ""], resident_id: [NI]}}
destinations:
{destinations}
"""
QUICK = "retry: {first_seconds: 0.05, longest_seconds: 0.4, most: 3}, timeout: 1"


def write_profiles(folder: Path, town: Sequence[str], village: Sequence[str] = ()) -> Path:
    """Profiles of a laboratory, a township and a village; the texts are the entries of ``destinations`` in flow style."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lab.yaml").write_text(LAB, "utf-8")
    for name, text, entries in (("town", TOWN, town), ("village", VILLAGE, village)):
        lines = "\n".join(f"  - {e}" for e in entries) or "  []"
        (folder / f"{name}.yaml").write_text(text.format(destinations=lines), "utf-8")
    return folder


def profiles_to(folder: Path, town: Sequence[str], village: Sequence[str] = ()) -> Mapping[str, Profile]:
    """The same, loaded."""
    return load_profiles(write_profiles(folder, town, village))


class His:
    """An MLLP server. ``answers``: what it does with each message in turn, the last for all further ones: an MSA-1 code; ``cut``
    (closes after receiving); ``hang`` (never answers); ``other`` (accepts another
    control id); ``nameless`` (accepts without one); ``noise`` (answers with something else)."""

    def __init__(self, *answers: str, tls: ssl.SSLContext | None = None) -> None:
        self.answers = list(answers) or ["AA"]
        self.received: list[bytes] = []
        self.arrived = asyncio.Event()
        self.port = 0
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> His:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._talk, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in list(self._open):
                writer.close()
            await self._server.wait_closed()
            self._server = None

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = Frames(1 << 24)
        self._open.add(writer)
        try:
            while data := await reader.read(65536):
                for item in frames.feed(data):
                    self.received.append(item.data)
                    self.arrived.set()
                    answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                    if answer == "cut":
                        return
                    if answer == "hang":
                        continue
                    known = ack.facts(item.data)
                    if answer == "noise":
                        writer.write(frame(b"OK"))
                        continue
                    if answer in ("other", "nameless"):
                        known = replace(known, control_id="X1" if answer == "other" else "")
                        answer = "AA"
                    writer.write(frame(ack.acknowledge(known, answer, None, "A1", datetime.now(UTC))))
                    await writer.drain()
        except (ConnectionError, ssl.SSLError):
            return
        finally:
            self._open.discard(writer)
            writer.close()

    def numbers(self) -> list[str]:
        """Control ids in order of arrival."""
        return [ack.facts(m).control_id for m in self.received]

    def values(self) -> list[str]:
        """OBX-5 of the first OBX of each message."""
        return [next(s.split("|")[5] for s in m.decode().split("\r") if s.startswith("OBX")) for m in self.received]


class County:
    """Stores messages of facilities as the workers do, and delivers."""

    def __init__(self, url: str, profiles: Mapping[str, Profile]) -> None:
        self.url = url
        self.profiles = profiles
        with psycopg.connect(url, autocommit=True) as conn:
            self.codec = Codec.load(conn)

    def store(self, facility: str, raw: bytes, *, backfill: bool = False) -> list[Change]:
        """Converts and stores one message with its links and outbox rows, in one transaction."""
        conversion = convert(raw, self.profiles[facility])
        assert conversion.held is None, conversion.held
        at = datetime.now(UTC)
        with psycopg.connect(self.url) as conn:
            changes = repository.apply(
                conn, self.codec, [(Origin(facility, 1, None, at, backfill=backfill), conversion.entries)]
            )
            patients = [
                PatientState(c.shard, c.id, facility, c.resource) for c in changes if c.resource_type == "Patient"
            ]
            links = registry.resolve(conn, patients, [], at)
            outbox.write(conn, outbox.rows(changes, () if backfill else links, outbox.asked_for(conn)), at)
        return changes

    @contextlib.asynccontextmanager
    async def delivering(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> AsyncIterator[Deliveries]:
        """Deliveries as in a server, until the block ends."""
        pool = await open_pool(self.url, 4)
        deliveries = Deliveries(pool, self.profiles, self.codec, clock)
        task = asyncio.create_task(deliveries.run())
        try:
            yield deliveries
        finally:
            deliveries.close()
            await asyncio.wait([task], timeout=10)
            done = task.done()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await pool.close()
            assert done

    def until_published(self) -> None:
        """Waits until the outbox is empty."""
        until = time.monotonic() + 30
        while self.sql("SELECT count(*) FROM outbox WHERE published IS NULL") != [(0,)]:
            assert time.monotonic() < until
            time.sleep(0.03)

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True) as conn:
            cursor = conn.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    async def until(self, statement: str, expected: list[tuple[Any, ...]], seconds: float = 15) -> None:
        """Waits until a query gives what is expected."""
        async with asyncio.timeout(seconds):
            while (found := await asyncio.to_thread(self.sql, statement)) != expected:
                try:
                    await asyncio.sleep(0.03)
                except asyncio.CancelledError:
                    raise AssertionError(found) from None


def resident_id(number: int) -> str:
    """An invented resident ID number with a right check character, in a region that does not exist."""
    from mappings.resident_id import check_character

    first = f"99012119620517{number:03d}"
    return first + check_character(first)


def result(
    control: str,
    *,
    value: str = "5.6",
    number: str = "F1",
    placer: str = "P1",
    person: int = 1,
    status: str = "F",
    ordered_by: str = "",
    sent: str = "20260301080000",
    facility: str = "LAB",
) -> bytes:
    """ORU^R01 of the laboratory; ``ordered_by``: ORC-21."""
    return (
        f"MSH|^~\\&|LIS|{facility}|||{sent}||ORU^R01|{control}|P|2.5.1||||||UNICODE UTF-8\r"
        f"PID|1||L{person}^^^{facility}^PI~{resident_id(person)}^^^^NI||王建国{person}||19620517|M\r"
        f"ORC|RE|{placer}|{number}|||||||||D1^李^医|||||||||{ordered_by}\r".rstrip("|\r")
        + f"\rOBR|1|{placer}|{number}|BIO^生化|||20260301070000|||||||||||||||{sent}|||{status}\r"
        f"OBX|1|NM|GLU^葡萄糖||{value}|mmol/L|3.9-6.1|N|||{status}|||20260301070000\r"
    ).encode()


def order(control: str, *, placer: str = "P1", person: int = 1, facility: str = "TOWN") -> bytes:
    """ORM^O01 of the township for the same person, under its own number."""
    return (
        f"MSH|^~\\&|HIS|{facility}|||20260301060000||ORM^O01|{control}|P|2.4||||||UNICODE UTF-8\r"
        f"PID|1||T{person}^^^{facility}^PI~{resident_id(person)}^^^^NI||王建国{person}||19620517|M\r"
        f"PV1|1|O|||||||||||||||||V{person}\r"
        f"ORC|NW|{placer}\rOBR|1|{placer}||SH^生化\r"
    ).encode()
