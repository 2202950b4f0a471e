"""A client that costs little: HTTP/1.1 over one kept connection (RFC 9112), so that two cores measure the server and not the client."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit


class Refused(Exception):
    """An answer other than 200."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and body of an answer."""

    status: int
    body: bytes


class Client:
    """Blocking, one connection. ``base``: address of the FHIR API. Used with ``with``."""

    def __init__(self, base: str, token: str) -> None:
        self._base, self._token = base, token

    def __enter__(self) -> Self:
        host, port, _ = _place(self._base)
        self._socket = socket.create_connection((host, port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def get(self, path: str) -> Answer:
        """GET below the base. Raises Refused unless the answer is 200."""
        self._socket.sendall(request(self._base, self._token, path))
        status = int(self._file.readline().split()[1])
        length = -1
        while line := self._file.readline().strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        body = self._file.read(length) if length >= 0 else self._chunks()
        if status != 200:
            raise Refused(f"{status} to {path}: {body[:300].decode(errors='replace')}")
        return Answer(status, body)

    def _chunks(self) -> bytes:
        out = []
        while size := int(self._file.readline().split(b";")[0], 16):
            out.append(self._file.read(size))
            self._file.readline()
        self._file.readline()
        return b"".join(out)


class Connection:
    """The same for asyncio; it counts the bytes of a body instead of keeping them."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, base: str) -> Connection:
        """Connects to the server of ``base``."""
        host, port, _ = _place(base)
        return cls(*await asyncio.open_connection(host, port, limit=4 * 1024 * 1024))

    async def get(self, asked: bytes) -> int:
        """Sends a request made by ``request`` or ``post``; bytes of the body. Raises Refused unless the answer is 200."""
        self._writer.write(asked)
        head = await self._reader.readuntil(b"\r\n\r\n")
        if head[9:12] != b"200":
            raise Refused(head[:12].decode(errors="replace"))
        at = head.lower().find(b"content-length:")
        if at >= 0:
            size = int(head[at + 15 : head.index(b"\r", at)])
            await self._reader.readexactly(size)
            return size
        total = 0
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            await self._reader.readexactly(size + 2)
            total += size
        await self._reader.readexactly(2)
        return total

    async def close(self) -> None:
        """Closes the connection."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


def request(base: str, token: str, path: str) -> bytes:
    """The bytes of a GET of ``path`` (already percent-encoded) below ``base``."""
    host, port, prefix = _place(base)
    return (
        f"GET {prefix}/{path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {token}\r\nAccept: application/fhir+json\r\n\r\n"
    ).encode()


def post(address: str, token: str, body: bytes) -> bytes:
    """The bytes of a POST of a JSON body to ``address``."""
    host, port, path = _place(address)
    head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _place(base: str) -> tuple[str, int, str]:
    parts = urlsplit(base)
    assert parts.hostname is not None and parts.port is not None
    return parts.hostname, parts.port, parts.path
