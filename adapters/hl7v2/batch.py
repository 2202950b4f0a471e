"""What a batch file says of itself: the number of messages in BTS-1 and of batches in FTS-1 (HL7 v2.5.1 sections 2.10.3, 2.15.3 and
2.15.7). Both are optional; one that is there and wrong means that messages were lost on the way."""

from __future__ import annotations

import re
from mmap import mmap

from conformance.issue import Issue

_SEGMENT = re.compile(rb"(?:\A|[\r\n\x0b])(?:\xef\xbb\xbf)?(MSH|BHS|BTS|FHS|FTS)([^\r\n]{0,4096})")
_NUMBER = re.compile(rb"[^A-Za-z0-9\r\n](\d{1,9})(?![^\s|^~\\&])")


def shortage(raw: bytes | mmap) -> Issue | None:
    """The first wrong count of a file of messages; None when all are right, or none is told.

    A continued message (DSC) counts once or in its parts: senders do both.
    """
    if raw.find(b"BTS") < 0 and raw.find(b"FTS") < 0:
        return None
    messages = parts = batches = 0
    ordinal = {b"BTS": 0, b"FTS": 0}
    for found in _SEGMENT.finditer(raw):
        name, rest = found[1], found[2]
        if name == b"MSH":
            fields = rest.split(rest[:1]) if rest else []
            messages += 1
            parts += len(fields) > 13 and bool(fields[13].strip())
        elif name == b"BHS":
            messages = parts = 0
        elif name in ordinal:
            ordinal[name] += 1
            told = _NUMBER.match(rest)
            if name == b"BTS":
                batches += 1
                counts, what = (messages - parts, messages), "messages"
                messages = parts = 0
            else:
                counts, what = (batches, batches), "batches"
                batches = 0
            if told and int(told[1]) not in counts:
                words = (
                    f"The trailer counts {int(told[1])} {what}, there are {counts[0]}; what is there was taken."
                    " Ask the sender for the rest, or for a right count."
                )
                return Issue("batch-count", "warning", f"{name.decode()}[{ordinal[name]}]-1", words)
    return None
