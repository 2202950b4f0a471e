"""The asking side of the read and search benches, a process of its own: ``python -m fhir_server.bench.clients FILE BASE``.

FILE has one path below BASE in each line. Several clients, each on one kept connection, ask for them in turn, one request at a time.
The bearer token stands in the environment variable BENCH_TOKEN.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated, Any

import orjson
import typer
from uvicorn.loops.auto import auto_loop_factory

from fhir_server.bench.http import Connection, request
from fhir_server.bench.sender import percentile
from fhir_server.bench.server import BenchFailed, Running

CLIENTS = 8


@dataclass(frozen=True, slots=True)
class Asked:
    """What the clients saw: seconds in all, bytes of bodies, time of each request in ms, ascending."""

    seconds: float
    size: int
    ms: list[float]

    def figures(self) -> dict[str, Any]:
        """p50_ms, p95_ms, p99_ms, requests_per_s."""
        return {
            "p50_ms": round(percentile(self.ms, 0.5), 2),
            "p95_ms": round(percentile(self.ms, 0.95), 2),
            "p99_ms": round(percentile(self.ms, 0.99), 2),
            "requests_per_s": round(len(self.ms) / self.seconds, 1),
        }


def ask(running: Running, paths: Sequence[str], *, seconds: float, clients: int = CLIENTS) -> Asked:
    """Asks for ``paths`` again and again for so long, in another process. Raises BenchFailed when an answer is not 200."""
    with NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(paths))
        file.flush()
        command = [sys.executable, "-m", "fhir_server.bench.clients", file.name, running.fhir]
        command += ["--clients", str(clients), "--seconds", str(seconds)]
        environment = dict(os.environ, BENCH_TOKEN=running.token)
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=False)  # noqa: S603
    if done.returncode:
        raise BenchFailed("The clients failed; their messages stand above.")
    return Asked(**orjson.loads(done.stdout))


async def drive(base: str, token: str, paths: Sequence[str], *, seconds: float, clients: int) -> Asked:
    """The clients at work. Raises Refused for an answer other than 200."""
    asked = [request(base, token, path) for path in paths]
    connections = [await Connection.open(base) for _ in range(clients)]
    times: list[float] = []
    size = 0
    place = 0
    end = time.perf_counter() + seconds

    async def run(connection: Connection) -> None:
        nonlocal place, size
        while (start := time.perf_counter()) < end:
            place += 1
            got = await connection.get(asked[place % len(asked)])
            size += got
            times.append((time.perf_counter() - start) * 1000)

    began = time.perf_counter()
    await at_work(connections, run)
    return Asked(time.perf_counter() - began, size, sorted(times))


async def at_work(connections: Sequence[Connection], run: Callable[[Connection], Coroutine[None, None, None]]) -> None:
    """Lets all connections run side by side until each has ended, and closes them."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for connection in connections:
                tasks.create_task(run(connection))
    finally:
        for connection in connections:
            await connection.close()


def main(
    file: Path,
    base: str,
    clients: Annotated[int, typer.Option()] = CLIENTS,
    seconds: Annotated[float, typer.Option()] = 10.0,
) -> None:
    """Asks for the paths of FILE; prints what the clients saw as one JSON line."""
    paths = file.read_text().split("\n")
    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
        seen = runner.run(drive(base, os.environ["BENCH_TOKEN"], paths, seconds=seconds, clients=clients))
    sys.stdout.write(orjson.dumps(seen).decode() + "\n")


if __name__ == "__main__":
    typer.run(main)
