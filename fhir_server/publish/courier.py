"""Hands one message to one destination, over MLLP or HTTP, and says what became of it.

The address comes from the facility's profile alone: no message, resource or request can name one. Redirects and proxies of the
environment are not followed.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import httpx

from adapters.contract import Unreadable
from adapters.hl7v2 import ack
from adapters.transports import mllp
from mappings.facility import Destination

Verdict = Literal["delivered", "again", "silent", "away", "refused"]

AWAY = "away"
"""Begins the reason of an attempt that did not reach the receiver."""
_OTHER = "silent: the acknowledgement does not name this control id (MSA-2)"
_ANSWER = 64 * 1024
_NOT_NOW = frozenset({429, 502, 503, 504})
"""HTTP statuses of a receiver that is not there or wants nothing now (RFC 9110, RFC 6585)."""
_LATER = frozenset({408, 423, 425})
"""Statuses below 500 of a passing state of this one message (RFC 9110, RFC 4918, RFC 8470)."""
_MEDIA = {
    "hl7v2": "application/hl7-v2; charset={}",
    "fhir": "application/fhir+json; charset=utf-8",
    "json": "application/json; charset=utf-8",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """``reason`` is free of patient data. verdict:

    delivered  the receiver has it
    again      it reports an error that may pass
    silent     it was sent and not answered: whether the receiver has it is unknown
    away       the receiver was not reached
    refused    it never will take it
    """

    verdict: Verdict
    reason: str


class Courier(Protocol):
    """One destination's connection."""

    async def carry(self, message: bytes, control_id: str) -> Outcome:
        """Sends one message and waits for the answer."""
        ...

    async def close(self) -> None:
        """Ends the connection; the next message opens a new one."""
        ...


def courier(destination: Destination) -> Courier:
    """The courier of a destination; nothing is opened yet. Raises OSError or ssl.SSLError when its certificates cannot be used."""
    return _Http(destination) if destination.url else _Mllp(destination)


def _tls(destination: Destination) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=destination.ca or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if destination.certificate:
        context.load_cert_chain(destination.certificate, destination.key or None)
    return context


def judged(answer: ack.Acknowledgement, control_id: str) -> Outcome:
    """An acknowledgement -> what became of the message (table 0008). One whose MSA-2 is not our MSH-10 says nothing about it.
    Texts of the receiver may name a patient and are left out."""
    if answer.control_id != control_id:
        return Outcome("silent", _OTHER)
    reason = " ".join((answer.code, *(e.code for e in answer.errors if e.code.isalnum())))[:80]
    if answer.accepted:
        return Outcome("delivered", reason)
    return Outcome("refused" if answer.code in ("AR", "CR") else "again", reason or "no-code")


class _Mllp:
    def __init__(self, destination: Destination) -> None:
        tls = _tls(destination) if destination.tls else None
        self._sender = mllp.Sender(destination.host, destination.port, tls=tls, timeout=destination.timeout)

    async def carry(self, message: bytes, control_id: str) -> Outcome:
        try:
            await self._sender.connect()
        except mllp.SendError as fault:
            return Outcome("away", f"{AWAY}: {fault}")
        try:
            return judged(await self._sender.send(message), control_id)
        except mllp.SendError as fault:
            return Outcome("silent", _OTHER if self._sender.late else f"silent: {fault}")
        finally:
            # Answers for other control ids: of an earlier attempt, or of the second step of enhanced mode, which nobody asked for.
            self._sender.late.clear()

    async def close(self) -> None:
        await self._sender.close()


class _Http:
    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._verify = _tls(destination) if destination.url.startswith("https:") else True
        self._client: httpx.AsyncClient | None = None

    def _opened(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(
                verify=self._verify,
                timeout=self._destination.timeout,
                follow_redirects=False,
                trust_env=False,
                limits=httpx.Limits(max_connections=1),
            )
        return self._client

    async def carry(self, message: bytes, control_id: str) -> Outcome:
        headers = {
            "Content-Type": _MEDIA[self._destination.content].format(self._destination.charset),
            "X-Request-Id": control_id,
        }
        try:
            if self._destination.token_file:
                token = Path(self._destination.token_file).read_text("utf-8").strip()  # noqa: ASYNC240 - a small local file
                headers["Authorization"] = f"Bearer {token}"
            async with self._opened().stream(
                "POST", self._destination.url, content=message, headers=headers
            ) as response:
                body = b""
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > _ANSWER:
                        break
        except (httpx.ConnectError, httpx.ConnectTimeout) as fault:
            return Outcome("away", f"{AWAY}: {type(fault).__name__}")
        except httpx.HTTPError as fault:
            return Outcome("silent", f"silent: {type(fault).__name__}")
        except OSError as fault:
            return Outcome("away", f"{AWAY}: token file ({fault.strerror})")
        except UnicodeError:
            return Outcome("away", f"{AWAY}: token file (not plain ASCII text)")
        return _answered(response.status_code, body, control_id)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


def _answered(status: int, body: bytes, control_id: str) -> Outcome:
    """HTTP status, and the acknowledgement when the body is one (HL7 over HTTP answers with it, whatever the status)."""
    if b"MSA" in body and body.lstrip(b"\x0b \r\n").startswith(b"MSH"):
        try:
            return judged(ack.parse(body), control_id)
        except Unreadable:
            return Outcome("again", f"HTTP {status}, unreadable acknowledgement")
    if 200 <= status < 300:
        return Outcome("delivered", f"HTTP {status}")
    if status in _NOT_NOW:
        return Outcome("away", f"{AWAY}: HTTP {status}")
    if status >= 500 or status in _LATER:
        return Outcome("again", f"HTTP {status}")
    return Outcome("refused", f"HTTP {status}")
