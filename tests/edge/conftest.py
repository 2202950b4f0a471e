"""`tongjian serve` as a process of its own, with settings of the test's choice, and one invented facility that may connect."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from fhir_server.access import default_scopes, issue_token
from fhir_server.keys import Keys

PROFILE = """
id: alpha
organization: {name: 甲县人民医院}
senders: [{facility: ALPHA}]
channels: [{addresses: [127.0.0.1/32]}]
identifiers: {patient: [PI, ""], resident_id: [NI]}
default_performer: sender
"""


@dataclass(frozen=True, slots=True)
class Served:
    """A server that answers."""

    fhir: str
    mllp_port: int
    data: Path
    stderr: Path
    pid: int

    @property
    def base(self) -> str:
        """Address without /fhir."""
        return self.fhir.removesuffix("/fhir")

    @property
    def http_port(self) -> int:
        """TCP port of the API."""
        return int(self.base.rpartition(":")[2])

    def token(self, role: str = "system") -> str:
        """A bearer token of the installation."""
        return issue_token(
            Keys.load(self.data),
            subject="test",
            role=role,
            facility="alpha",
            scopes=tuple(default_scopes(role)),
            ttl=timedelta(hours=1),
            now=datetime.now(UTC),
        )

    def client(self, role: str = "system", *, verify: ssl.SSLContext | bool = True, token: bool = True) -> httpx.Client:
        """An HTTP client of the server, with a token."""
        headers = {"Authorization": f"Bearer {self.token(role)}"} if token else {}
        return httpx.Client(base_url=self.base, headers=headers, timeout=20, verify=verify)

    def log(self) -> str:
        """What server and workers wrote to standard error so far."""
        return self.stderr.read_text(encoding="utf-8")


Serve = Callable[..., AbstractContextManager[Served]]


@pytest.fixture
def serve(tmp_path: Path, database_url: str) -> Serve:
    """``with serve(http_read_seconds=1) as served``: settings as keywords; ``profile``: another one; ``database``: another address
    (empty: an embedded server of its own)."""

    @contextmanager
    def start(profile: str = PROFILE, database: str = database_url, **settings: object) -> Iterator[Served]:
        profiles, data = tmp_path / "profiles", tmp_path / "data"
        profiles.mkdir(exist_ok=True)
        (profiles / "alpha.yaml").write_text(profile, encoding="utf-8")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TONGJIAN_") and k != "DATABASE_URL"}
        environment |= {f"TONGJIAN_{name.upper()}": str(value) for name, value in settings.items()}
        environment["TONGJIAN_DATABASE_URL"] = database
        command = [sys.executable, "-m", "fhir_server.cli", "serve", "--port", "0", "--mllp-port", "0"]
        command += ["--data", str(data), "--profiles", str(profiles)]
        errors = tmp_path / "stderr.log"
        with errors.open("ab") as stderr:
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True)
        try:
            assert process.stdout is not None
            said = dict(process.stdout.readline().split() for _ in range(2))
            yield Served(said["FHIR"], int(said["MLLP"].rpartition(":")[2]), data, errors, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            finally:
                process.kill()
                process.communicate()

    return start


def oru(
    control_id: str, *, facility: str = "ALPHA", name: str = "张某", patient: str = "P1", value: str = "5.6"
) -> bytes:
    """An ORU^R01 of HL7 2.5.1 with one result."""
    return (
        f"MSH|^~\\&|LIS|{facility}|TJ|TJ|20260301080000||ORU^R01^ORU_R01|{control_id}|P|2.5.1\r"
        f"PID|1||{patient}^^^{facility}^PI||{name}||19620517|M\r"
        f"OBR|1||R{control_id}|BIO^生化|||20260301080000|||||||||||||||20260301080000|||F\r"
        f"OBX|1|NM|T1^项目||{value}|mmol/L|3.9-6.1|N|||F|||20260301080000\r"
    ).encode()


def exchange(connection: socket.socket, message: bytes) -> bytes:
    """Sends one message in a frame and gives the answer's bytes."""
    connection.sendall(b"\x0b" + message + b"\x1c\r")
    answer = b""
    while not answer.endswith(b"\x1c\r"):
        part = connection.recv(4096)
        if not part:
            break
        answer += part
    return answer


def eventually(true: Callable[[], bool], within: float = 20.0) -> bool:
    """Waits until something is so."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.1)
    return true()
