"""The ordering side of the recognition bench, a process of its own: ``python -m fhir_server.bench.askers FILE ADDRESS``.

FILE has the body of one CDS Hooks call in each line; every call is sent with a ``hookInstance`` of its own. Without a rate each client
sends its next call when the last one is answered (closed loop); with a rate calls are due at fixed times, whatever became of the ones
before, and a call's time counts from when it was due (open loop). The bearer token stands in the environment variable BENCH_TOKEN.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated, Final

import orjson
import typer

from fhir_server.bench.clients import Asked, at_work
from fhir_server.bench.http import Connection, post
from fhir_server.bench.server import BenchFailed, Running

INSTANCE: Final = b"00000000-0000-0000-0000-000000000000"
"""Stands in a body where each call has its own hookInstance."""


def ask(running: Running, address: str, bodies: Sequence[bytes], *, seconds: float, clients: int, rate: float) -> Asked:
    """Calls for so long, in another process; ``rate`` 0: closed loop. Raises BenchFailed when an answer is not 200."""
    with NamedTemporaryFile("wb", suffix=".jsonl") as file:
        file.write(b"\n".join(bodies))
        file.flush()
        command = [sys.executable, "-m", "fhir_server.bench.askers", file.name, address]
        command += ["--clients", str(clients), "--seconds", str(seconds), "--rate", str(rate)]
        environment = dict(os.environ, BENCH_TOKEN=running.token)
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=False)  # noqa: S603
    if done.returncode:
        raise BenchFailed("The clients failed; their messages stand above.")
    return Asked(**orjson.loads(done.stdout))


async def drive(
    address: str, token: str, bodies: Sequence[bytes], *, seconds: float, clients: int, rate: float
) -> Asked:
    """The clients at work. Raises Refused for an answer other than 200."""
    connections = [await Connection.open(address) for _ in range(clients)]
    times: list[float] = []
    size = place = 0
    began = time.perf_counter()
    end = began + seconds

    async def run(connection: Connection) -> None:
        nonlocal place, size
        while True:
            number, place = place, place + 1
            start = time.perf_counter()
            if rate:
                due = began + number / rate
                if due >= end:
                    return
                if due > start:
                    await asyncio.sleep(due - start)
                start = due
            if start >= end:
                return
            body = bodies[number % len(bodies)].replace(INSTANCE, str(uuid.uuid4()).encode())
            got = await connection.get(post(address, token, body))
            size += got
            times.append((time.perf_counter() - start) * 1000)

    await at_work(connections, run)
    return Asked(time.perf_counter() - began, size, sorted(times))


def main(
    file: Path,
    address: str,
    clients: Annotated[int, typer.Option()] = 16,
    seconds: Annotated[float, typer.Option()] = 10.0,
    rate: Annotated[float, typer.Option()] = 0.0,
) -> None:
    """Sends the calls of FILE to ADDRESS; prints what the clients saw as one JSON line."""
    bodies = file.read_bytes().split(b"\n")
    token = os.environ["BENCH_TOKEN"]
    seen = asyncio.run(drive(address, token, bodies, seconds=seconds, clients=clients, rate=rate))
    sys.stdout.write(orjson.dumps(seen).decode() + "\n")


if __name__ == "__main__":
    typer.run(main)
