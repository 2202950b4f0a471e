"""A batch of messages on the way from a relay to the server: one line of JSON, then the bytes of the messages one after the other, all
in one zstd frame. Both ends use this module."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import zstandard
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

MEDIA_TYPE: Final = "application/vnd.tongjian.relay"
PATH: Final = "/relay/messages"
MOST_UNPACKED: Final = 96 * 1024 * 1024
"""Bytes of a batch once unpacked."""
_MOST_MESSAGES: Final = 2000


class BadBatch(Exception):
    """The bytes are no batch; the text says why and quotes nothing of them."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Head(_Part):
    """What is said of one message.

    seq          number in the relay's queue; with the relay's id it names the message for ever
    received_at  by the clock of the relay, when it was durable there
    offset_ms    what had to be added to that clock then to have the server's, as last measured; None: it had never been measured
    channel      ``mllp`` or ``folder``; format: ``hl7v2``, or empty when the server is to find out
    size         bytes; sha256: of them, hexadecimal
    """

    seq: int = Field(ge=1)
    received_at: AwareDatetime
    offset_ms: int | None = None
    channel: str = Field(pattern="^(mllp|folder)$")
    format: str = Field(default="", pattern="^(hl7v2)?$")
    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Said(_Part):
    """What a relay says with a batch. offset_ms: as Head, now; waiting, dead: messages in its queue; oldest: when the oldest came."""

    relay: str = Field(pattern="^[0-9a-f]{32}$")
    name: str = Field(default="", max_length=80)
    version: str = Field(default="", max_length=40)
    offset_ms: int | None = None
    waiting: int = Field(default=0, ge=0)
    dead: int = Field(default=0, ge=0)
    oldest: AwareDatetime | None = None
    messages: tuple[Head, ...] = Field(default=(), max_length=_MOST_MESSAGES)


class Held(_Part):
    """A message the server keeps and cannot read: its number and the reason (issue key)."""

    seq: int
    reason: str


class Answer(_Part):
    """What the server answers: its time, the messages that are durable there now, those of them that were before, and those held."""

    at: AwareDatetime
    stored: tuple[int, ...] = ()
    known: tuple[int, ...] = ()
    held: tuple[Held, ...] = ()


def pack(said: Said, messages: Sequence[bytes]) -> bytes:
    """The body of a request."""
    head = said.model_dump_json(exclude_defaults=True).encode()
    return zstandard.ZstdCompressor(level=9, write_content_size=True).compress(b"\n".join((head, b"".join(messages))))


def unpack(body: bytes) -> tuple[Said, list[bytes]]:
    """What was said, and the messages. Raises BadBatch, also for what would unpack to more than MOST_UNPACKED."""
    try:
        size = zstandard.frame_content_size(body)
        if size < 0 or size > MOST_UNPACKED:
            raise BadBatch(f"The batch has to say its size, at most {MOST_UNPACKED} bytes.")
        plain = zstandard.ZstdDecompressor().decompress(body, max_output_size=MOST_UNPACKED, allow_extra_data=False)
    except zstandard.ZstdError:
        raise BadBatch("The body is not one whole zstd frame.") from None
    line, _, rest = plain.partition(b"\n")
    try:
        said = Said.model_validate_json(line)
    except ValidationError as fault:
        places = {".".join(map(str, e["loc"])) for e in fault.errors(include_input=False, include_url=False)}
        raise BadBatch(
            f"The first line is not what a relay says: {', '.join(sorted(places)[:5]) or 'no JSON'}."
        ) from None
    if sum(m.size for m in said.messages) != len(rest):
        raise BadBatch("The sizes of the messages do not add up to the bytes that follow.")
    out, at = [], 0
    for m in said.messages:
        out.append(rest[at : at + m.size])
        at += m.size
    return said, out


def offset(sent: datetime, got: datetime, at: datetime) -> int:
    """What has to be added to the relay's clock, in ms: the server said ``at`` between ``sent`` and ``got``, taken as half way."""
    return round((at - (sent + (got - sent) / 2)).total_seconds() * 1000)
