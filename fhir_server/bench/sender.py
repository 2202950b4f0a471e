"""The sending side of the ingest bench, a process of its own: ``python -m fhir_server.bench.sender FILE HOST PORT``.

It only frames and waits for acknowledgements (HL7 v2 Transport: MLLP), so that what is measured is the server. Closed loop: each
connection sends its next message as soon as the one before is acknowledged. Open loop (``--rate``): every message has its moment
whether or not the server keeps up, and its time to acknowledgement counts from that moment.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Annotated

import orjson
import typer

from fhir_server.bench.messages import Message

_HEAD = Struct(">BI")
_END = b"\x1c\r"
_GOOD = (b"MSA|AA|", b"MSA|CA|", b"MSA$AA$", b"MSA$CA$")
_LONGEST_WAIT = 60.0


@dataclass(frozen=True, slots=True)
class Sent:
    """What the sender saw. ack_ms: each message's time to acknowledgement, ascending; refused: answers other than AA and CA."""

    messages: int
    seconds: float
    refused: int
    ack_ms: list[float]

    def percentile(self, part: float) -> float:
        """The time that ``part`` (0 to 1) of the acknowledgements did not exceed, in ms."""
        return percentile(self.ack_ms, part)


def percentile(ascending: list[float], part: float) -> float:
    """Nearest-rank percentile of ascending values; 0 when there are none."""
    return ascending[min(len(ascending) - 1, int(part * len(ascending)))] if ascending else 0.0


def write(path: Path, messages: Iterable[Message]) -> int:
    """Messages -> a file for the sender; gives their number."""
    count = 0
    with path.open("wb") as out:
        for m in messages:
            address = m.address.encode()
            out.write(_HEAD.pack(len(address), len(m.raw)) + address + m.raw)
            count += 1
    return count


def read(path: Path) -> Iterator[tuple[str, bytes]]:
    """The messages of such a file: (own address to send from, bytes)."""
    data = path.read_bytes()
    at = 0
    while at < len(data):
        size, length = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        yield data[at : at + size].decode(), data[at + size : at + size + length]
        at += size + length


class _Line:
    """One MLLP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, raw: bytes) -> bool:
        """True when the message was acknowledged with AA or CA."""
        self._writer.write(b"\x0b" + raw + _END)
        async with asyncio.timeout(_LONGEST_WAIT):
            answer = await self._reader.readuntil(_END)
        return any(good in answer for good in _GOOD)

    async def close(self) -> None:
        """Ends the connection."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


async def send(
    host: str, port: int, messages: Iterable[tuple[str, bytes]], *, connections: int, rate: float | None
) -> Sent:
    """Sends all; ``connections`` of each own address; ``rate`` in messages a second for an open loop. Raises OSError, TimeoutError."""
    queues: dict[str, deque[tuple[float, bytes]]] = {}
    total = 0
    for total, (address, raw) in enumerate(messages, 1):
        queues.setdefault(address, deque()).append(((total - 1) / rate if rate else 0.0, raw))
    lines = [
        (_Line(*await asyncio.open_connection(host, port, local_addr=(address, 0))), queue)
        for address, queue in queues.items()
        for _ in range(connections)
    ]
    times: list[float] = []
    refused = 0
    began = time.perf_counter()

    async def run(line: _Line, queue: deque[tuple[float, bytes]]) -> None:
        nonlocal refused
        while queue:
            due, raw = queue.popleft()
            start = time.perf_counter()
            if rate:
                if began + due > start:
                    await asyncio.sleep(began + due - start)
                start = began + due
            if not await line.send(raw):
                refused += 1
            times.append((time.perf_counter() - start) * 1000)

    try:
        async with asyncio.TaskGroup() as tasks:
            for line, queue in lines:
                tasks.create_task(run(line, queue))
    finally:
        for line, _ in lines:
            await line.close()
    return Sent(total, time.perf_counter() - began, refused, sorted(times))


def main(
    file: Path,
    host: str,
    port: int,
    connections: Annotated[int, typer.Option()] = 2,
    rate: Annotated[float, typer.Option()] = 0.0,
) -> None:
    """Sends the messages of FILE; prints what it saw as one JSON line."""
    seen = asyncio.run(send(host, port, read(file), connections=connections, rate=rate or None))
    sys.stdout.write(orjson.dumps(seen).decode() + "\n")


if __name__ == "__main__":
    typer.run(main)
