"""Limits of the edge, on a real server: slow, large, many and idle."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.edge.conftest import Serve, Served, eventually, exchange, oru


@contextmanager
def opened(count: int, port: int, first: bytes = b"") -> Iterator[list[socket.socket]]:
    """So many connections, each having sent a few bytes."""
    with ExitStack() as stack:
        found = []
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            if first:
                connection.sendall(first)
            found.append(connection)
        yield found


def closed(connection: socket.socket, within: float) -> bool:
    """The other end closes in time."""
    connection.settimeout(within)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


def metric(served: Served, line: str) -> float:
    """A sample of /metrics."""
    with served.client() as http:
        text = http.get("/metrics").text
    return sum(float(ln.rpartition(" ")[2]) for ln in text.splitlines() if ln.startswith(line))


@pytest.fixture
def http_get() -> Any:
    """Seconds that one ordinary request takes on a connection of its own."""

    def get(served: Served) -> float:
        began = time.monotonic()
        with served.client() as http:
            assert http.get("/fhir/Patient?identifier=x").status_code == 200
        return time.monotonic() - began

    return get


def test_200_slow_connections_keep_nobody_from_http(serve: Serve, http_get: Any) -> None:
    with (
        serve(http_read_seconds=4) as served,
        opened(200, served.http_port, b"GET /fhir/metadata HTTP/1.1\r\nHost: a\r\n") as slow,
    ):
        assert http_get(served) < 2
        for connection in slow:
            connection.sendall(b"X-Drip: 1\r\n")
        assert http_get(served) < 2
        assert all(closed(connection, 10) for connection in slow)
        assert metric(served, 'tongjian_connections_closed_total{reason="slow-head",server="http"}') == 200


def test_200_slow_connections_keep_nobody_from_mllp(serve: Serve) -> None:
    with (
        serve(mllp_frame_seconds=4) as served,
        opened(200, served.mllp_port, b"\x0bMSH|^~\\&|LIS|") as slow,
        opened(1, served.mllp_port) as (normal,),
    ):
        assert b"MSA|AA|C1" in exchange(normal, oru("C1"))
        for connection in slow:
            connection.sendall(b"x")
        assert b"MSA|AA|C2" in exchange(normal, oru("C2"))
        # What they sent is kept at five a second from one address, and then they are closed: the first ones here.
        name = 'tongjian_connections_closed_total{reason="slow-frame",server="mllp"}'
        assert eventually(lambda: metric(served, name) >= 20, 60)
        assert sum(closed(connection, 5) for connection in slow[:5]) == 5
        assert b"MSA|AA|C3" in exchange(normal, oru("C3"))


def test_at_the_limit_of_http_connections_the_idle_ones_make_room(serve: Serve, http_get: Any) -> None:
    with serve(http_max_connections=20) as served, opened(50, served.http_port) as idle:
        assert http_get(served) < 2
        # Which of them is the longest idle is the kernel's order of accepting, about that of connecting.
        assert eventually(lambda: sum(closed(connection, 0.01) for connection in idle) >= 30, 60)
        assert metric(served, 'tongjian_connections{server="http"}') <= 20


def test_at_the_limit_of_mllp_connections_those_that_never_sent_make_room(serve: Serve) -> None:
    with serve(mllp_max_connections=20) as served, opened(1, served.mllp_port) as (known,):
        assert b"MSA|AA|C1" in exchange(known, oru("C1"))
        with opened(50, served.mllp_port), opened(1, served.mllp_port) as (newcomer,):
            assert b"MSA|AA|C2" in exchange(newcomer, oru("C2"))
            assert b"MSA|AA|C3" in exchange(known, oru("C3"))


def test_at_the_limit_senders_that_work_are_not_thrown_out(serve: Serve) -> None:
    with serve(mllp_max_connections=3) as served, opened(3, served.mllp_port) as busy:
        for number, connection in enumerate(busy):
            assert b"MSA|AA|" in exchange(connection, oru(f"C{number}"))
        with opened(1, served.mllp_port) as (further,):
            assert closed(further, 5)
        assert b"MSA|AA|C9" in exchange(busy[0], oru("C9"))


def test_a_slow_body_is_refused_in_time(serve: Serve) -> None:
    with serve(http_read_seconds=2) as served:
        # Made before the connection: making one takes longer than a head may take on a busy machine.
        token = served.token()
        with opened(1, served.http_port) as (connection,):
            head = f"POST /fhir/Patient HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n"
            connection.sendall(f"{head}Content-Type: application/fhir+json\r\nContent-Length: 1000\r\n\r\n{{".encode())
            began = time.monotonic()
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b"OperationOutcome" in answer
            assert 1 < time.monotonic() - began < 20
            assert closed(connection, 5)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_refused_with_413(serve: Serve, chunked: bool) -> None:
    with serve(max_request=2000) as served, served.client() as http:
        body = b'{"resourceType": "Patient", "language": "' + b"a" * 5000 + b'"}'
        content: Any = iter([body[:3000], body[3000:]]) if chunked else body
        answer = http.post("/fhir/Patient", content=content, headers={"Content-Type": "application/fhir+json"})
        assert answer.status_code == 413
        assert answer.json()["resourceType"] == "OperationOutcome"
        assert http.get("/fhir/metadata").status_code == 200


def test_an_endless_head_is_cut_off(serve: Serve) -> None:
    with serve() as served, opened(1, served.http_port, b"GET / HTTP/1.1\r\n") as (connection,):
        with pytest.raises(ConnectionError):
            for _ in range(2000):
                connection.sendall(b"X-Long: " + b"a" * 1000 + b"\r\n")
                time.sleep(0.001)
        assert metric(served, 'tongjian_connections_closed_total{reason="head-size",server="http"}') == 1


def test_a_client_that_does_not_read_its_answers_is_cut_off(serve: Serve) -> None:
    with serve(http_read_seconds=2) as served, socket.socket() as greedy:
        greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        greedy.connect(("127.0.0.1", served.http_port))
        greedy.sendall(b"GET /fhir/metadata HTTP/1.1\r\nHost: a\r\n\r\n" * 60)
        name = 'tongjian_connections_closed_total{reason="slow-read",server="http"}'
        assert eventually(lambda: metric(served, name) == 1, 60)


def test_an_idle_http_connection_is_closed_after_the_keep_alive_time(serve: Serve) -> None:
    with serve(http_keep_alive_seconds=1) as served, opened(1, served.http_port) as (connection,):
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        began = time.monotonic()
        assert closed(connection, 6)
        assert time.monotonic() - began > 0.5


def test_answers_carry_the_security_headers_errors_as_well(serve: Serve) -> None:
    with serve() as served, served.client() as http:
        for path, status in (
            ("/fhir/metadata", 200),
            ("/fhir/Patient/none", 404),
            ("/nothing", 404),
            ("/fhir/Nonsense", 404),
        ):
            answer = http.get(path)
            assert answer.status_code == status
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-frame-options"] == "DENY"
            assert answer.headers["content-security-policy"].startswith("default-src 'none'")
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert "server" not in answer.headers
            assert "strict-transport-security" not in answer.headers


def test_a_websocket_is_not_spoken(serve: Serve) -> None:
    with serve() as served, served.client() as http:
        answer = http.get("/fhir/metadata", headers={"Connection": "Upgrade", "Upgrade": "websocket"})
        assert answer.status_code == 200
