"""From the relay's queue to the server, in order: a message leaves the queue when the server says that it has it.

On a bad line batches become smaller, on a good one larger. A message the server will never take is given up and passed over; a server
that is away, or an account that is refused, is waited for.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import random
import re
import socket
import sqlite3
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

import httpx
from pydantic import ValidationError

from fhir_server.relay.batch import MEDIA_TYPE, PATH, Answer, Head, Said, offset, pack
from fhir_server.relay.queue import Queue, Waiting

log = logging.getLogger(__name__)

HEARTBEAT: Final = 60.0
"""Seconds without a message after which the relay says that it lives, and measures its clock."""
FIRST_PAUSE: Final = 1.0
_MOST: Final = 500
_LEAST_BYTES: Final = 16 * 1024
_TOO_LARGE: Final = 413
_NEVER: Final = (400, 415, 422)
"""What the server answers to a message it will not take however often it is sent. Without an OperationOutcome it was something on
the way that answered, such as a proxy: nothing is given up for that. A message too large for it will never pass either."""
_CLOCK = re.compile("expired|not yet valid")


@dataclass(frozen=True, slots=True)
class Way:
    """How the server is reached. address: without a path; secret_file: a bearer token, or with ``client`` its secret; tls: verifies the
    server; None only for this machine. most_bytes: of a batch; seconds: to wait for an answer; longest_pause:
    seconds between two attempts at most."""

    address: str
    secret_file: Path
    client: str = ""
    tls: ssl.SSLContext | None = None
    name: str = ""
    most_bytes: int = 1024 * 1024
    seconds: float = 60.0
    longest_pause: float = 60.0


class Cut(Exception):
    """The server cannot be reached, or does not take anything now; the text says why and names no message."""


class Forwarder:
    """Sends until cancelled."""

    def __init__(self, queue: Queue, way: Way, clock: Callable[[], datetime]) -> None:
        self._queue = queue
        self._way = way
        self._clock = clock
        self._batch = _MOST
        self._bytes = way.most_bytes

    async def run(self) -> None:
        """Forwards what waits and what comes."""
        pause = FIRST_PAUSE
        timeout = httpx.Timeout(self._way.seconds, connect=min(10.0, self._way.seconds))
        async with httpx.AsyncClient(
            base_url=self._way.address,
            verify=self._way.tls or True,
            timeout=timeout,
            follow_redirects=False,
            trust_env=False,
        ) as http:
            while True:
                try:
                    sent = await self.send(http)
                    pause = FIRST_PAUSE
                except (Cut, sqlite3.OperationalError) as fault:
                    self._shrink()
                    words = str(fault) if isinstance(fault, Cut) else "the disk of the queue takes nothing"
                    log.warning("relay_cut fault=%s again_in=%.0f", words, pause)
                    await self._queue.remember(fault=words, fault_at=self._clock().isoformat())
                    pause = min(pause, self._way.longest_pause)
                    await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - spreads relays, hides nothing
                    pause *= 2
                    continue
                if not sent:
                    await self._wait()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(HEARTBEAT):
                await self._queue.fresh.wait()
        except TimeoutError:
            return

    async def send(self, http: httpx.AsyncClient) -> int:
        """One batch, or without a message the word that we live; gives the number of messages that left the queue. Raises Cut."""
        self._queue.fresh.clear()
        waiting = await self._queue.next(self._batch, self._bytes)
        before = self._clock()
        try:
            answer = await http.post(PATH, content=await self._body(waiting), headers=self._headers())
        except httpx.HTTPError as fault:
            raise Cut(f"away ({_why(fault)})") from None
        except OSError as fault:
            raise Cut(f"the secret cannot be read ({type(fault).__name__})") from None
        if answer.status_code == 200:
            return await self._take(answer, waiting, before)
        if answer.status_code == 409:
            # The server knows other messages under our numbers: this queue is a copy from a backup.
            await self._queue.renew()
            raise Cut("numbers used before; a new id was drawn")
        if waiting and (answer.status_code == _TOO_LARGE or (answer.status_code in _NEVER and _sentence(answer))):
            if len(waiting) > 1:
                self._shrink(len(waiting))
                return await self.send(http)
            log.error("relay_given_up seq=%d status=%d", waiting[0].seq, answer.status_code)
            await self._queue.give_up(waiting[0].seq, _reason(answer))
            return 1
        raise Cut(
            f"refused with {answer.status_code}"
            + (": is the account right?" if answer.status_code in (401, 403) else "")
        )

    async def _body(self, waiting: Sequence[Waiting]) -> bytes:
        counts = await self._queue.counts()
        said = Said(
            relay=await self._queue.id(),
            name=self._way.name,
            version=version("tongjian"),
            offset_ms=self._queue.offset_ms,
            waiting=counts.waiting,
            dead=counts.dead,
            oldest=counts.oldest,
            messages=tuple(
                Head(
                    seq=m.seq, received_at=m.received_at, offset_ms=m.offset_ms, channel=m.channel, format=m.format,
                    size=len(m.raw), sha256=m.sha256,
                )
                for m in waiting
            ),
        )  # fmt: skip
        return await asyncio.to_thread(pack, said, [m.raw for m in waiting])

    def _headers(self) -> dict[str, str]:
        # Read each time: who replaces it need not stop the relay.
        shown = self._way.secret_file.read_text("utf-8-sig", "replace").strip()
        if not shown.isascii() or not shown:
            raise Cut("relay_secret_file is empty or holds more than a secret")
        if not self._way.client:
            return {"Content-Type": MEDIA_TYPE, "Authorization": f"Bearer {shown}"}
        basic = base64.b64encode(f"{self._way.client}:{shown}".encode()).decode()
        return {"Content-Type": MEDIA_TYPE, "Authorization": f"Basic {basic}"}

    async def _take(self, answer: httpx.Response, waiting: Sequence[Waiting], before: datetime) -> int:
        after = self._clock()
        try:
            said = Answer.model_validate_json(answer.content)
        except ValidationError:
            raise Cut("the answer is not one of this server's") from None
        self._queue.offset_ms = offset(before, after, said.at)
        ours = {m.seq for m in waiting}
        stored = sorted(ours & {*said.stored, *said.known})
        if ours and not stored:
            raise Cut("the server took nothing")
        await self._queue.done(stored)
        await self._queue.remember(
            fault="",
            contact=after.isoformat(),
            offset_ms=self._queue.offset_ms,
            round_trip_ms=round((after - before).total_seconds() * 1000),
        )
        for held in said.held:
            log.warning("relay_held_by_server seq=%d reason=%s", held.seq, held.reason)
        self._batch, self._bytes = min(self._batch * 2, _MOST), min(self._bytes * 2, self._way.most_bytes)
        return len(stored)

    def _shrink(self, sent: int = 0) -> None:
        self._batch = max(1, min(self._batch, sent or self._batch) // 2)
        self._bytes = max(_LEAST_BYTES, self._bytes // 2)


def _reason(answer: httpx.Response) -> str:
    """What a person reads of a message that was given up: the status, and the server's own sentence when it has one."""
    return f"{answer.status_code} {_sentence(answer)}".strip()[:300]


def _sentence(answer: httpx.Response) -> str:
    """The words of an OperationOutcome; empty when the answer is none."""
    try:
        return str(answer.json()["issue"][0]["diagnostics"])
    except (ValueError, KeyError, IndexError, TypeError):
        return ""


def _why(fault: BaseException) -> str:
    """Why the server cannot be reached, in words about the first cause that says something."""
    cause: BaseException | None = fault
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            clock = "; is the clock of this machine right?" if _CLOCK.search(cause.verify_message) else ""
            return f"its certificate is not accepted: {cause.verify_message}{clock}"
        if isinstance(cause, ssl.SSLError):
            return f"no TLS connection: {cause.reason or type(cause).__name__}"
        if isinstance(cause, socket.gaierror):
            return "its name is not found"
        if isinstance(cause, ConnectionRefusedError):
            return "nothing listens there"
        cause = cause.__cause__ or cause.__context__
    return type(fault).__name__
