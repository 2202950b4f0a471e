"""MLLP frames: bytes in, frames out (HL7 v2.5.1 Appendix C.4: ``0x0B message 0x1C 0x0D``). A pure state machine; no sockets here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

START = 0x0B
END = 0x1C
CR = 0x0D
KEPT = 64 * 1024
"""Bytes kept of a frame over the limit, and of noise: enough for the failure record and for the MSH to answer."""

Fault = Literal["", "oversize", "noise", "unfinished", "no-start"]

_BLANK = b"\r\n\0 \t"
_HEADER = re.compile(rb"[ \t\r\n]{0,2}(?:\xef\xbb\xbf)?(?:MSH|FHS|BHS)[^A-Za-z0-9]", re.IGNORECASE)
_HEADER_LENGTH = 10
"""Bytes after a start mark that decide whether a message begins there."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What stood between two frame marks.

    data   the message without its marks; cut to KEPT bytes for ``oversize`` and ``noise``
    fault  empty for a proper frame; ``no-start``: bytes with an end mark but no start mark; ``oversize``: longer than the limit;
           ``unfinished``: a new frame began or the connection ended before its end mark, so it may be cut off; ``noise``: anything else
    size   bytes received
    """

    data: bytes
    fault: Fault
    size: int


def frame(message: bytes) -> bytes:
    """Message bytes -> one frame."""
    return b"\x0b" + message + b"\x1c\r"


class Frames:
    """Collects received bytes into frames. Where the reads cut the bytes makes no difference.

    A frame ends with FS CR. FS followed by LF, a start mark or the end of the connection also ends it; FS followed by anything else is
    text. When FS is the last byte so far (``waiting``) the caller gives the sender a moment and then calls ``settle``.
    """

    def __init__(self, limit: int) -> None:
        """limit: largest message in bytes."""
        self._limit = limit
        self._buffer = bytearray()
        self._inside = False
        self._from = 0
        self._dropped = 0

    @property
    def waiting(self) -> bool:
        """True when FS was the last byte: the frame is over unless CR or text follows."""
        return bool(self._buffer) and self._buffer[-1] == END

    @property
    def inside(self) -> bool:
        """True when a frame has begun and not ended."""
        return self._inside

    def feed(self, data: bytes) -> list[Frame]:
        """Take received bytes; give the frames they complete, in order."""
        self._buffer += data
        return self._run(last=False)

    def settle(self) -> list[Frame]:
        """No more bytes came after FS: that was the end of the frame."""
        return self._run(last=True)

    def close(self) -> list[Frame]:
        """The connection ended: what is left, as ``unfinished`` or ``noise``."""
        found = self._run(last=True)
        if self._buffer or self._dropped:
            fault: Fault = "unfinished" if self._inside else "noise"
            if self._dropped or self._buffer.strip(_BLANK):
                found.append(self._take(len(self._buffer), fault))
        return found

    def _run(self, *, last: bool) -> list[Frame]:
        found: list[Frame] = []
        while (step := self._inside_frame(last) if self._inside else self._outside(last)) is not None:
            if step:
                found.append(step[0])
        return found

    def _outside(self, last: bool) -> tuple[()] | tuple[Frame] | None:
        """Look for a start mark, or an end mark whose start is missing; None when more bytes are needed."""
        buffer = self._buffer
        if buffer and buffer[0] in _BLANK and not self._dropped:
            del buffer[: len(buffer) - len(buffer.lstrip(_BLANK))]
        start, end = buffer.find(START), buffer.find(END)
        if start < 0 and end < 0:
            self._shrink(keep=KEPT)
            return None
        if end >= 0 and (start < 0 or end < start):
            if not last and end + 1 == len(buffer):
                return None
            result = self._take(end, "noise" if self._dropped else "no-start")
            self._skip_end()
            return (result,) if result.data.strip(_BLANK) else ()
        before = self._take(start, "noise")
        del buffer[0]
        self._inside = True
        self._from = 0
        return (before,) if before.data.strip(_BLANK) else ()

    def _inside_frame(self, last: bool) -> tuple[()] | tuple[Frame] | None:
        """Look for the end of the frame; None when more bytes are needed."""
        buffer = self._buffer
        while True:
            end, again = buffer.find(END, self._from), buffer.find(START, self._from)
            if end < 0 and again < 0:
                self._from = len(buffer)
                self._shrink(keep=max(self._limit, KEPT))
                return None
            if end >= 0 and (again < 0 or end < again):
                after = bytes(buffer[end + 1 : end + 2])
                if not after and not last:
                    self._from = end
                    return None
                if after and after not in (b"\r", b"\n", b"\x0b"):
                    self._from = end + 1
                    continue
                return (self._finish(end),)
            if end < 0 and len(buffer) < again + _HEADER_LENGTH and not last:
                self._from = again
                return None
            if _HEADER.match(buffer, again + 1):
                before = self._take(again, "unfinished")
                del buffer[0]
                self._from = 0
                return (before,) if before.data.strip(_BLANK) else ()
            self._from = again + 1

    def _finish(self, end: int) -> Frame:
        size = self._dropped + end
        result = self._take(end, "oversize" if size > self._limit else "")
        self._skip_end()
        self._inside = False
        return result

    def _take(self, end: int, fault: Fault) -> Frame:
        size = self._dropped + end
        data = bytes(self._buffer[: end if fault in ("", "no-start") else min(end, KEPT)])
        if fault == "no-start" and size > self._limit:
            fault, data = "oversize", data[:KEPT]
        del self._buffer[:end]
        self._dropped = 0
        return Frame(data, fault, size)

    def _skip_end(self) -> None:
        del self._buffer[: 2 if bytes(self._buffer[1:2]) in (b"\r", b"\n") else 1]

    def _shrink(self, keep: int) -> None:
        """Forget bytes over the limit; their number is remembered."""
        if len(self._buffer) > (KEPT if self._dropped else keep):
            drop = len(self._buffer) - KEPT
            del self._buffer[KEPT:]
            self._dropped += drop
            self._from = min(self._from, len(self._buffer))
