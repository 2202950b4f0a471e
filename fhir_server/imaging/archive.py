"""The DICOMweb services of a picture archive (PS3.18). Addresses come from the facility's profile alone: nothing that a message or a
request says can name another host. Redirects and proxies of the environment are not followed."""

from __future__ import annotations

import secrets
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import httpx
import orjson

from mappings.facility import Pacs

_JSON: Final = "application/dicom+json"
_ANSWER: Final = 256 * 1024 * 1024
_CHUNK: Final = 1024 * 1024
_LATER: Final = frozenset({408, 423, 425, 429})


class ArchiveAway(Exception):
    """The archive does not answer now, or not as PS3.18 says; the text is free of patient data."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of an object sent on. ``reason`` is free of patient data. verdict: stored, away (not reached), again (an error that
    may pass), refused."""

    verdict: Literal["stored", "away", "again", "refused"]
    reason: str


class Archive:
    """One archive's client; nothing is opened before the first request."""

    def __init__(self, pacs: Pacs) -> None:
        """Raises OSError or ssl.SSLError when its certificates cannot be used."""
        self.pacs = pacs
        self._verify: ssl.SSLContext | bool = True
        if pacs.dicomweb.startswith("https:"):
            self._verify = ssl.create_default_context(cafile=pacs.ca or None)
            self._verify.minimum_version = ssl.TLSVersion.TLSv1_2
            if pacs.certificate:
                self._verify.load_cert_chain(pacs.certificate, pacs.key or None)
        self._client: httpx.AsyncClient | None = None

    async def close(self) -> None:
        """Ends its connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _opened(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(
                verify=self._verify, timeout=self.pacs.timeout, follow_redirects=False, trust_env=False
            )
        return self._client

    def _headers(self, accept: str) -> dict[str, str]:
        headers = {"Accept": accept}
        if self.pacs.token_file:
            headers["Authorization"] = f"Bearer {Path(self.pacs.token_file).read_text('utf-8').strip()}"
        return headers

    @asynccontextmanager
    async def get(
        self, path: str, accept: str, parameters: dict[str, str] | None = None
    ) -> AsyncIterator[httpx.Response]:
        """A GET below the base address, its body not read yet. Raises ArchiveAway when the archive is not reached."""
        try:
            async with self._opened().stream(
                "GET", f"{self.pacs.dicomweb}/{path}", params=parameters, headers=self._headers(accept)
            ) as response:
                yield response
        except httpx.HTTPError as fault:
            raise ArchiveAway(type(fault).__name__) from fault
        except OSError as fault:
            raise ArchiveAway(f"token file ({fault.strerror})") from fault

    async def json(self, path: str, parameters: dict[str, str] | None = None) -> list[dict[str, Any]]:
        """A list in the DICOM JSON model (PS3.18 annex F); empty for 204. Raises ArchiveAway."""
        async with self.get(path, _JSON, parameters) as response:
            if response.status_code == 204:
                return []
            if response.status_code != 200:
                raise ArchiveAway(f"HTTP {response.status_code}")
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > _ANSWER:
                    raise ArchiveAway("the answer is too large")
        try:
            found = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise ArchiveAway("the answer is no JSON") from None
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            raise ArchiveAway("the answer is no list of objects")
        return found

    async def store(self, path: Path) -> Stored:
        """STOW-RS of one Part 10 file (PS3.18 section 10.5), read while it is sent."""
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        tail = f"\r\n--{boundary}--\r\n".encode()

        async def parts() -> AsyncIterator[bytes]:
            yield head
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    yield chunk
            yield tail

        try:
            size = len(head) + path.stat().st_size + len(tail)  # noqa: ASYNC240
            headers = {
                **self._headers(_JSON),
                "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
                "Content-Length": str(size),
            }
            answer = await self._opened().post(f"{self.pacs.dicomweb}/studies", content=parts(), headers=headers)
        except httpx.TransportError as fault:
            return Stored("away", type(fault).__name__)
        except OSError as fault:
            return Stored("away", f"file ({fault.strerror})")
        return _judged(answer)


def _judged(answer: httpx.Response) -> Stored:
    """PS3.18 table 10.5.3-1: 200 all stored; 202 and 409 some or none, which the failed SOP sequence tells apart."""
    status = answer.status_code
    reason = f"HTTP {status}"
    if status == 200 or (status == 202 and not _failed(answer.content)):
        return Stored("stored", reason)
    if status in (502, 503, 504):
        return Stored("away", reason)
    if status >= 500 or status in _LATER:
        return Stored("again", reason)
    return Stored("refused", reason)


def _failed(body: bytes) -> bool:
    """Failed SOP Sequence (0008,1198) of a store response; an answer that cannot be read says nothing good."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return True
    return not isinstance(found, dict) or bool(found.get("00081198", {}).get("Value"))
