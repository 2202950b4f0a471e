"""Three invented facilities, messages they send, and a receiver on a real socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import asyncpg
import pytest

from adapters.transports import mllp
from fhir_server.ingest.receive import Receiver
from fhir_server.store import database
from mappings.profile import Profile, load_profiles

PROFILES = {
    "alpha": """
id: alpha
organization: {name: 甲县人民医院}
senders: [{application: LIS, facility: ALPHA}, {application: HIS, facility: ALPHA}]
channels:
  - {name: default, addresses: [127.0.3.1/32, 127.0.0.1/32]}
  - {name: old, addresses: [127.0.3.9/32], backfill: true}
identifiers: {patient: [PI, ""], resident_id: [NI]}
default_performer: sender
""",
    "beta": """
id: beta
organization: {name: 乙镇卫生院}
senders: [{facility: BETA}]
channels: [{addresses: [127.0.3.2/32], messages_per_second: 20, max_bytes: 4000}]
identifiers: {patient: [PI, ""], resident_id: [NI]}
charset: gb18030
""",
    "gamma": """
id: gamma
organization: {name: 丙村卫生室}
senders: [{facility: GAMMA}]
channels: [{addresses: [127.0.3.3/32]}]
identifiers: {patient: [PI, ""], resident_id: [NI]}
""",
}
ADDRESS = {"alpha": "127.0.3.1", "beta": "127.0.3.2", "gamma": "127.0.3.3"}


@pytest.fixture(scope="session")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Profile]:
    """alpha, beta and gamma, each bound to an address of its own; and generic."""
    folder = tmp_path_factory.mktemp("profiles")
    for name, text in PROFILES.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return load_profiles(folder)


Oru = Callable[..., bytes]


def oru_message(
    control_id: str,
    patient: str = "100001",
    *,
    facility: str = "ALPHA",
    application: str = "LIS",
    values: tuple[str, ...] = ("5.6",),
    status: str = "F",
    report: str = "",
    accept: str = "",
    application_ack: str = "",
    sent: str = "20260301080000",
    name: str = "王建国",
    number: str = "",
) -> bytes:
    """An ORU^R01 of HL7 2.5.1 with one OBX for each value; ``report``: filler order number; ``number``: resident ID."""
    header = f"MSH|^~\\&|{application}|{facility}|TJ|TJ|{sent}||ORU^R01^ORU_R01|{control_id}|P|2.5.1|||{accept}|{application_ack}"
    identifiers = f"{patient}^^^{facility}^PI" + (f"~{number}^^^^NI" if number else "")
    lines = [
        header.rstrip("|"),
        f"PID|1||{identifiers}||{name}||19620517|M",
        f"OBR|1||{report or 'R' + control_id}|BIO^生化|||{sent}|||||||||||||||{sent}|||{status}",
    ]
    lines += [
        f"OBX|{n}|NM|T{n}^项目{n}||{value}|mmol/L|3.9-6.1|N|||{status}|||{sent}" for n, value in enumerate(values, 1)
    ]
    return ("\r".join(lines) + "\r").encode()


@pytest.fixture(scope="session")
def oru() -> Oru:
    """Builds result messages; see ``oru_message``."""
    return oru_message


class Running:
    """A receiver on a socket, and the pool it writes with."""

    def __init__(self, port: int, pool: asyncpg.Pool, receiver: Receiver) -> None:
        self.port = port
        self.pool = pool
        self.receiver = receiver

    def sender(self, facility: str = "alpha", **options: float) -> mllp.Sender:
        """A connection from the address of a facility."""
        return mllp.Sender("127.0.0.1", self.port, local_address=ADDRESS.get(facility, facility), **options)

    async def inbox(self, columns: str = "control_id, status") -> list[tuple[object, ...]]:
        """Rows of the inbox, oldest first."""
        return [tuple(r) for r in await self.pool.fetch(f"SELECT {columns} FROM inbox ORDER BY id")]


@asynccontextmanager
async def running(url: str, profiles: Mapping[str, Profile], **options: object) -> AsyncIterator[Running]:
    """Serves MLLP on a free port into the database."""
    pool = await database.open_pool(url, 4, statement_timeout=5)
    receiver = Receiver(pool, profiles, clock=lambda: datetime.now(UTC), **options)
    await receiver.open()
    server = await mllp.serve(
        [mllp.Listener(socket.create_server(("127.0.0.1", 0)))],
        receiver.receive,
        report=receiver.report,
        max_bytes=receiver.max_bytes,
    )
    try:
        yield Running(server.ports[0], pool, receiver)
    finally:
        await server.stop()
        await receiver.close()
        async with asyncio.timeout(5):
            await pool.close()


@pytest.fixture
def serve(database_url: str, profiles: Mapping[str, Profile]) -> Callable[..., object]:
    """``async with serve() as running``; ``url``: another way to the database."""

    def start(url: str = "", **options: object) -> object:
        return running(url or database_url, profiles, **options)

    return start
