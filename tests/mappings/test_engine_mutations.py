"""Spoilt messages: whatever a sender writes, the converter answers, and what it gives is valid and unique."""

from __future__ import annotations

import io
import random
from collections import Counter
from pathlib import Path

import pytest

from adapters.contract import Unreadable
from adapters.convert import convert, split
from conformance import validator
from mappings.profile import load_profiles
from tests.seeds import seed_of

HERE = Path(__file__).parent
_FILES = sorted((HERE.parent / "data" / "corpus").glob("*/*")) + sorted((HERE / "golden").glob("*.hl7"))
_JUNK = (
    "", '""', "^", "^^^", "&", "~", "\\X0D\\", "^^^&PATID", "123^456&7^8", "99999999999999", "20240230", "男", "-", "***", "0", "<1",
    " ", "A~B~C", '"" ^""', "\\S\\", "^" * 30 + "x", "&&&x", "x&y^z&w~&^",
)  # fmt: skip


def _messages() -> list[bytes]:
    out: list[bytes] = []
    for path in _FILES:
        try:
            out += [m.replace(b"\r\n", b"\r").replace(b"\n", b"\r") for m in split(io.BytesIO(path.read_bytes()))]
        except Unreadable:
            continue
    return out


def _spoil(message: bytes, other: bytes, dice: random.Random) -> bytes:
    """Move, drop, double or borrow segments, and put junk into fields."""
    segments = [s for s in message.split(b"\r") if s]
    for _ in range(dice.randint(1, 4)):
        last = len(segments)
        match dice.randint(0, 5):
            case 0 if last > 2:
                segments.insert(dice.randrange(1, last), segments.pop(dice.randrange(1, last)))
            case 1 if last > 2:
                segments.pop(dice.randrange(1, last))
            case 2 if last > 1:
                segments.insert(dice.randrange(1, last + 1), segments[dice.randrange(1, last)])
            case 3:
                segments += [s for s in other.split(b"\r") if s][1:3]
            case _:
                row = dice.randrange(last)
                fields = segments[row].split(b"|")
                column = dice.randrange(3 if row == 0 else 1, len(fields) + 4)
                fields += [b""] * (column + 1 - len(fields))
                fields[column] = dice.choice(_JUNK).encode()
                segments[row] = b"|".join(fields)
    return b"\r".join(segments)


@pytest.mark.parametrize("profile", ["generic", "county-hospital"])
def test_spoilt_messages_are_answered_with_valid_resources_and_never_a_crash(profile: str) -> None:
    seed = seed_of("engine_mutations")
    dice = random.Random(seed)
    known = load_profiles()[profile]
    messages = _messages()
    for _ in range(400):
        raw = _spoil(dice.choice(messages), dice.choice(messages), dice)
        try:
            found = convert(raw, known)
        except Unreadable:
            continue
        places = Counter((e.resource["resourceType"], e.resource["id"]) for e in found.entries)
        assert [place for place, number in places.items() if number > 1] == [], raw
        faults = [i for e in found.entries for i in validator.check(e.resource) if i.severity in ("error", "fatal")]
        assert faults == [], raw
