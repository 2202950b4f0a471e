"""A day offline, then online: a relay behind a line that is cut anywhere loses nothing, doubles nothing and keeps the order."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from adapters.transports.mllp import Sender, SendError
from tests.edge.certificates import Authority
from tests.edge.conftest import PROFILE, Serve, Served, eventually, oru
from tests.edge.conftest import serve as serve_fixture

serve = serve_fixture
SEED = 20260301


@dataclass
class Line:
    """A TCP line to the server that a test cuts: ``after_request`` lets that many bytes through to the server, ``mute`` swallows
    answers (the server stored, and nobody hears it)."""

    target: int
    up: bool = True
    mute: bool = False
    after_request: int | None = None
    swallowed: int = 0
    port: int = 0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def serve(self, ready: threading.Event, stop: threading.Event) -> None:
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        while not stop.is_set():
            await asyncio.sleep(0.05)
            if not self.up:
                for writer in self._writers:
                    writer.transport.abort()
        server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if not self.up:
                return
            there, onward = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers.add(onward)
            try:
                await asyncio.gather(self._forth(reader, onward), self._back(there, writer))
            finally:
                self._writers.discard(onward)
                onward.transport.abort()
        except OSError:
            return
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _forth(self, reader: asyncio.StreamReader, onward: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            if self.after_request is not None:
                data = data[: self.after_request]
                self.after_request -= len(data)
            onward.write(data)
            await onward.drain()
            if self.after_request == 0:
                raise ConnectionResetError
        onward.write_eof()

    async def _back(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await there.read(4096):
            if self.mute:
                self.swallowed += 1
                raise ConnectionResetError
            writer.write(data)
            await writer.drain()


@contextmanager
def line_to(port: int) -> Iterator[Line]:
    """A line to a port of this machine, in a thread of its own."""
    line, ready, stop = Line(port), threading.Event(), threading.Event()
    thread = threading.Thread(target=asyncio.run, args=(line.serve(ready, stop),))
    thread.start()
    try:
        assert ready.wait(10)
        yield line
    finally:
        stop.set()
        thread.join(10)


class Relay:
    """``tongjian relay`` as a process, which a test may kill and start again on the same folder and port."""

    def __init__(self, folder: Path, server: str, token: str, ca: Path | None = None, **settings: object) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.drop = folder / "drop"
        self.drop.mkdir(exist_ok=True)
        (folder / "token").write_text(token)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])
        settings = {
            "relay_server": server, "relay_secret_file": folder / "token", "relay_name": "van-1", "drop_seconds": 0.2,
            "relay_drop_dir": self.drop, "relay_keep_free_bytes": 0, "relay_answer_seconds": 5,
            "relay_longest_pause_seconds": 0.5, **settings,
        }  # fmt: skip
        if ca is not None:
            settings["relay_ca"] = ca
        self._environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        self._environment |= {f"TONGJIAN_{k.upper()}": str(v) for k, v in settings.items()}
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "fhir_server.cli",
            "relay",
            "--data",
            str(self.folder),
            "--mllp-port",
            str(self.port),
        ]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=self._environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self._process.stdout is not None
        assert self._process.stdout.readline().startswith("MLLP"), (self.folder / "log").read_text()

    def end(self, number: int = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def status(self) -> dict[str, object]:
        command = [sys.executable, "-m", "fhir_server.cli", "relay", "status", "--json", "--data", str(self.folder)]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=60, check=True)
        return dict(json.loads(done.stdout))

    async def send(self, *messages: bytes) -> list[str]:
        """Codes of the acknowledgements; empty where there was none."""
        codes = []
        async with Sender("127.0.0.1", self.port, timeout=20) as sender:
            for message in messages:
                try:
                    codes.append((await sender.send(message)).code)
                except SendError:
                    codes.append("")
        return codes


@contextmanager
def relaying(relay: Relay) -> Iterator[Relay]:
    """Running for the block."""
    relay.start()
    try:
        yield relay
    finally:
        relay.end()


def cut_of(line: Line) -> Callable[[], bool]:
    """Whether the line was cut at the place the test chose."""
    return lambda: line.after_request == 0


def arrived(database: str) -> list[str]:
    """Control ids of the messages on the server, in the order they were stored."""
    with psycopg.connect(database) as conn:
        return [r[0] for r in conn.execute("SELECT control_id FROM inbox ORDER BY id").fetchall()]


def https(serve: Serve, authority: Authority) -> object:
    pair = authority.issue("localhost", server=True)
    return serve(https_certificate=pair.certificate, https_key=pair.key, workers=0)


def test_a_day_offline_then_online_loses_nothing_and_doubles_nothing_in_order(
    serve: Serve, database_url: str, tmp_path: Path
) -> None:
    dice = random.Random(SEED)
    with serve(workers=0) as served, line_to(served.http_port) as line:
        relay = Relay(tmp_path / "relay", f"http://127.0.0.1:{line.port}", served.token())
        line.up = False
        acknowledged: list[str] = []
        with relaying(relay):
            for batch in range(6):
                names = [f"D{batch}-{n}" for n in range(25)]
                codes = asyncio.run(
                    relay.send(*(oru(n, patient=f"P{n}", name=dice.randbytes(60).hex()) for n in names))
                )
                acknowledged += [name for name, code in zip(names, codes, strict=True) if code == "AA"]
                if dice.random() < 0.6:
                    relay.end(signal.SIGKILL)
                    relay.start()
            assert len(acknowledged) == 150
            (relay.drop / "late.hl7").write_bytes(oru("F1", patient="PF1") + oru("F2", patient="PF2"))
            assert eventually((relay.drop / "done" / "late.hl7").exists)
            assert relay.status()["waiting"] == 151
            assert arrived(database_url) == []
            # The line comes back, bad: cut in the middle of a request, then answers that are never heard.
            for left in (700, 3000, 9000):
                line.after_request, line.up = left, True
                assert eventually(cut_of(line), 60)
                line.after_request, line.up = None, False
            line.mute, line.up = True, True
            assert eventually(lambda: line.swallowed >= 1, 60)
            relay.end(signal.SIGKILL)
            assert arrived(database_url)  # the server stored, and the relay does not know it
            relay.start()
            again = line.swallowed + 1
            assert eventually(lambda: line.swallowed >= again, 60)
            line.mute = False
            assert eventually(lambda: relay.status()["waiting"] == 0, 90)
        assert arrived(database_url) == [*acknowledged, "F1", "F2"]
        with psycopg.connect(database_url) as conn:
            numbers = [r[0] for r in conn.execute("SELECT seq FROM relayed ORDER BY seq").fetchall()]
            held = conn.execute("SELECT count(*) FROM inbox WHERE status <> 'ready'").fetchone()
            name, messages, offset = conn.execute("SELECT name, messages, offset_ms FROM relay").fetchone() or ()
        assert numbers == list(range(1, 152))
        assert held == (0,)
        assert (name, messages) == ("van-1", 151)
        assert abs(offset) < 60_000


def test_a_message_is_sent_to_no_server_that_cannot_prove_who_it_is(
    serve: Serve, database_url: str, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    with https(serve, Authority(tmp_path)) as served:
        assert isinstance(served, Served)
        address, wrong = f"https://127.0.0.1:{served.http_port}", Authority(tmp_path / "other").file
        relay = Relay(tmp_path / "relay", address, served.token(), wrong)
        with relaying(relay):
            assert asyncio.run(relay.send(oru("C1"))) == ["AA"]
            assert eventually(lambda: "away" in str(relay.status().get("fault")))
            assert relay.status()["waiting"] == 1
            assert arrived(database_url) == []
        right = Relay(tmp_path / "relay", address, served.token(), tmp_path / "authority.pem")
        with relaying(right):
            assert eventually(lambda: arrived(database_url) == ["C1"], 60)


def test_who_sends_to_a_full_relay_is_told_and_files_stay_where_they_are(tmp_path: Path) -> None:
    relay = Relay(tmp_path / "relay", "https://127.0.0.1:1", "none", relay_max_bytes=1024**2)
    noise = random.Random(SEED)
    with relaying(relay):
        big = [oru(f"C{n}", name=noise.randbytes(100_000).hex()) for n in range(12)]
        codes = asyncio.run(relay.send(*big))
        assert codes[0] == "AA"
        assert codes[-1] == "AE"
        assert set(codes) == {"AA", "AE"}
        (relay.drop / "a.hl7").write_bytes(big[-1])
        time.sleep(1)
        assert (relay.drop / "a.hl7").exists()
        assert relay.status()["waiting"] == codes.count("AA")
    relay.start()  # and what was taken is there after a restart
    assert relay.status()["waiting"] == codes.count("AA")
    relay.end()


def test_what_the_server_will_never_take_is_given_up_visibly_and_the_rest_goes_on(
    serve: Serve, database_url: str, tmp_path: Path
) -> None:
    with serve(workers=0, max_request=20_000) as served:
        relay = Relay(tmp_path / "relay", served.base, served.token())
        with relaying(relay):
            large = oru("C2", name=random.Random(SEED).randbytes(40_000).hex())
            assert asyncio.run(relay.send(oru("C1"), large, oru("C3"))) == ["AA", "AA", "AA"]
            assert asyncio.run(relay.send(b"no message")) in (["AR"], [""])
            assert eventually(lambda: relay.status()["waiting"] == 0, 60)
        assert arrived(database_url) == ["C1", "C3"]
        assert relay.status()["dead"] == 1
        command = [sys.executable, "-m", "fhir_server.cli", "relay", "dead", "--data", str(relay.folder)]
        told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        assert told.startswith("2\t")
        assert "413" in told


def test_a_relay_of_a_facility_that_is_not_known_keeps_its_messages(
    serve: Serve, database_url: str, tmp_path: Path
) -> None:
    with serve(profile=PROFILE.replace("id: alpha", "id: omega"), workers=0) as served:
        relay = Relay(tmp_path / "relay", served.base, served.token())
        with relaying(relay):
            assert asyncio.run(relay.send(oru("C1"))) == ["AA"]
            assert eventually(lambda: "403" in str(relay.status().get("fault")))
            assert relay.status()["waiting"] == 1
    assert arrived(database_url) == []
