"""TLS by settings: HTTPS and MLLP, client certificates, and facilities bound to theirs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from adapters.transports.mllp import Sender, SendError
from tests.edge.certificates import Authority, Pair
from tests.edge.conftest import PROFILE, Serve, Served, oru

BY_CERTIFICATE = PROFILE.replace(
    "channels: [{addresses: [127.0.0.1/32]}]", "channels: [{certificate: lis.alpha.example}]"
)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Issues the certificates of one test."""
    return Authority(tmp_path)


def answer(served: Served, tls: ssl.SSLContext, message: bytes) -> str:
    """The acknowledgement code of one message over MLLP with TLS."""

    async def send() -> str:
        async with Sender("127.0.0.1", served.mllp_port, tls=tls, timeout=10) as sender:
            return (await sender.send(message)).code

    return asyncio.run(send())


def test_https_is_served_by_settings(serve: Serve, authority: Authority) -> None:
    pair = authority.issue("localhost", server=True)
    with serve(https_certificate=pair.certificate, https_key=pair.key) as served:
        assert served.fhir.startswith("https://")
        with served.client(verify=authority.client()) as http:
            found = http.get("/fhir/metadata")
            assert found.status_code == 200
            assert found.headers["strict-transport-security"] == "max-age=31536000"
            assert http.get("/fhir/Patient").json()["type"] == "searchset"


def test_versions_of_tls_before_1_2_are_not_spoken(serve: Serve, authority: Authority) -> None:
    pair = authority.issue("localhost", server=True)
    settings = {"https_certificate": pair.certificate, "https_key": pair.key}
    with serve(**settings, mllp_certificate=pair.certificate, mllp_key=pair.key) as served:
        for port in (served.http_port, served.mllp_port):
            context = authority.client()
            context.set_ciphers("DEFAULT:@SECLEVEL=0")
            with pytest.warns(DeprecationWarning):
                context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
            with socket.create_connection(("127.0.0.1", port), timeout=10) as line, pytest.raises(OSError):
                context.wrap_socket(line, server_hostname="localhost")


def test_https_asks_for_a_client_certificate_when_it_should(serve: Serve, authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue("localhost", server=True)
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other", "stranger").issue("portal.example")
    settings = {"https_certificate": pair.certificate, "https_key": pair.key, "https_client_ca": authority.file}
    with serve(**settings) as served:
        with served.client(verify=authority.client(authority.issue("portal.example"))) as http:
            assert http.get("/health/ready").status_code == 200
        for without in (authority.client(), authority.client(stranger)):
            with served.client(verify=without) as http, pytest.raises(httpx.TransportError):
                http.get("/health/ready")


def test_a_facility_is_known_by_its_client_certificate(serve: Serve, authority: Authority) -> None:
    with _mllp(serve, authority) as served:
        lis = authority.client(authority.issue("lis.alpha.example"))
        assert answer(served, lis, oru("C1")) == "AA"
        other = authority.client(authority.issue("lis.beta.example"))
        assert answer(served, other, oru("C2")) == "AR"
        with served.client() as http:
            lines = http.get("/metrics").text
        assert (
            'tongjian_messages_refused_total{channel="unknown",facility="unknown",reason="foreign-facility"} 1.0'
            in lines
        )


def test_mllp_without_a_client_certificate_gets_no_answer(serve: Serve, authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other", "stranger").issue("lis.alpha.example")
    with _mllp(serve, authority) as served:
        for without in (authority.client(), authority.client(stranger)):
            with pytest.raises(SendError):
                answer(served, without, oru("C1"))


def test_plain_mllp_gets_no_answer_where_tls_is_spoken(serve: Serve, authority: Authority) -> None:
    with (
        _mllp(serve, authority) as served,
        socket.create_connection(("127.0.0.1", served.mllp_port), timeout=15) as line,
    ):
        line.sendall(b"\x0b" + oru("C1") + b"\x1c\r")
        with contextlib.suppress(ConnectionError):
            assert b"MSA" not in line.recv(4096)
        assert answer(served, authority.client(authority.issue("lis.alpha.example")), oru("C2")) == "AA"


def test_connections_that_never_finish_the_handshake_keep_nobody_out(serve: Serve, authority: Authority) -> None:
    with _mllp(serve, authority) as served:
        silent = [socket.create_connection(("127.0.0.1", served.mllp_port)) for _ in range(200)]
        try:
            assert answer(served, authority.client(authority.issue("lis.alpha.example")), oru("C1")) == "AA"
        finally:
            for line in silent:
                line.close()


def test_a_certificate_that_cannot_be_used_is_named_at_the_start(tmp_path: Path, database_url: str) -> None:
    (tmp_path / "broken.pem").write_text("no certificate", encoding="ascii")
    done = subprocess.run(
        [sys.executable, "-m", "fhir_server.cli", "serve", "--port", "0", "--mllp-port", "0", "--data", str(tmp_path)],
        env={
            "PATH": "/usr/bin",
            "DATABASE_URL": database_url,
            "TONGJIAN_HTTPS_CERTIFICATE": str(tmp_path / "broken.pem"),
        },
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert b"broken.pem" in done.stderr
    assert b"Traceback" not in done.stderr


def _mllp(serve: Serve, authority: Authority):
    pair: Pair = authority.issue("localhost", server=True)
    return serve(BY_CERTIFICATE, mllp_certificate=pair.certificate, mllp_key=pair.key, mllp_client_ca=authority.file)
