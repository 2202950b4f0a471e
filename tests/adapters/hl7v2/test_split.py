"""adapters.hl7v2.reader.split: the messages of a file."""

from __future__ import annotations

import io
import random
import tracemalloc
from pathlib import Path
from typing import BinaryIO

import pytest

from adapters.contract import Unreadable
from adapters.hl7v2.reader import read, split

ODD = Path(__file__).parents[2] / "data" / "hl7v2-odd"


class Dribble(io.BytesIO):
    """A stream that gives a random number of bytes at each read."""

    def __init__(self, data: bytes, seed: int) -> None:
        self._data = data
        self._rng = random.Random(seed)

    def read(self, size: int | None = -1) -> bytes:
        count = self._rng.randint(1, 40) if size else 0
        found, self._data = self._data[:count], self._data[count:]
        return found


def one(number: int, text: str = "x", end: str = "\r") -> str:
    return end.join(
        [f"MSH|^~\\&|L|H|||20260102||ORU^R01|M{number}|P|2.5", f"PID|1||P{number}||{text}", f"OBX|1|ST|T||{text}", ""]
    )


def ids(stream: BinaryIO) -> list[str]:
    return [read(piece).header.first(10) for piece in split(stream)]


# Trail bytes 5C, 5E, 7C, 7E and letters (4D 53 48 are "MSH"): nothing of a character may be taken for a header or a line end.
TRAP = bytes.fromhex("814D 8153 8148 817C 815E 817E 8130 8130").decode("gb18030")


@pytest.mark.parametrize(
    "between",
    [
        "",
        "\r",
        "\n",
        "\r\n",
        "\r\n\r\n",
        "\x1c\r\x0b",
        "\x1c\r\n\x0b",
        "\x0b",
        "\ufeff",
        "[EOM]\r\n[SOM]",
        "\0\0",
        "\r\n   ",
    ],
)
@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
@pytest.mark.parametrize("codec", ["utf-8", "gb18030"])
def test_finds_every_message_whatever_stands_between(between: str, end: str, codec: str) -> None:
    between_bytes = between.encode()
    raw = between_bytes.join(one(n, f"张{TRAP}三", end).encode(codec) for n in range(5))
    for stream in (io.BytesIO(raw), Dribble(raw, 7)):
        pieces = list(split(stream))
        assert [read(p).header.first(10) for p in pieces] == [f"M{n}" for n in range(5)]
        assert {read(p).records[2].first(5).rstrip("[EOM]") for p in pieces} == {f"张{TRAP}三"}
        assert all(p.startswith(b"MSH") and p.endswith(b"\r") for p in pieces)


def test_batch_segments_are_left_out() -> None:
    raw = f"FHS|^~\\&|f\rBHS|^~\\&|b\r{one(1)}{one(2)}BTS|2\rBHS|^~\\&|b\r{one(3)}BTS|1\rFTS|2\r"
    assert ids(io.BytesIO(raw.encode())) == ["M1", "M2", "M3"]
    assert ids(io.BytesIO(raw.replace("|2\r", "\r").encode().rstrip())) == ["M1", "M2", "M3"]
    assert ids(io.BytesIO(f"BHS|^~\\&|b\r{one(3)}BTS".encode())) == ["M3"]


def test_a_word_inside_a_text_is_no_header() -> None:
    raw = one(1, "MSH|^~\\&| is how it starts") + one(2, "see BTS|1")
    assert ids(io.BytesIO(raw.encode())) == ["M1", "M2"]


def test_bytes_without_a_header_come_out_so_that_reading_them_says_why() -> None:
    pieces = list(split(io.BytesIO(b"PID|1||P1\r" + one(1).encode())))
    assert pieces[0] == b"PID|1||P1\r"
    with pytest.raises(Unreadable) as refused:
        read(pieces[0])
    assert refused.value.issue.key == "no-header"
    assert len(pieces) == 2


def test_parts_that_follow_each_other_become_one_message() -> None:
    def part(number: int, text: str, pointer: str = "", goes_on: str = "") -> bytes:
        lines = [f"MSH|^~\\&|L|H|||20260102||ORU^R01|M{number}|P|2.5||{pointer}", f"OBX|{number}|ST|T||{text}"]
        return "\r".join([*lines, *([f"DSC|{goes_on}|F"] if goes_on else []), ""]).encode()

    parts = [part(1, "first", "", "P1"), part(2, "second", "P1", "P2"), part(3, "third", "P2")]
    found = list(split(io.BytesIO(b"".join(parts))))
    assert len(found) == 1
    assert b"DSC" not in found[0] and found[0].count(b"MSH") == 1
    assert all(text in found[0] for text in (b"first", b"second", b"third"))
    # A part whose continuation is missing, or another's, stays alone.
    assert len(list(split(io.BytesIO(parts[0] + parts[2])))) == 2


def test_an_empty_file_has_no_message() -> None:
    assert list(split(io.BytesIO(b""))) == list(split(io.BytesIO(b"\xef\xbb\xbf\r\n\r\n"))) == []


def test_utf16_files_come_out_as_utf8() -> None:
    raw = (one(1, "张三") + one(2, "李四")).encode("utf-16")
    for stream in (io.BytesIO(raw), Dribble(b"", 1)):
        found = [read(p) for p in split(stream)]
        if found:
            assert [(m.header.first(10), m.records[1].first(5)) for m in found] == [("M1", "张三"), ("M2", "李四")]


@pytest.mark.parametrize("seed", range(20))
def test_where_the_reads_cut_makes_no_difference(seed: int) -> None:
    rng = random.Random(seed)
    parts = [
        "BHS|^~\\&|x\r",
        "BTS|1\r",
        "FTS\r",
        "\x0b",
        "\x1c\r",
        "\n",
        "\ufeff",
        "stray\r",
        *(one(n, TRAP) for n in range(3)),
    ]
    raw = "".join(rng.choices(parts, k=12)).encode("gb18030")
    assert list(split(Dribble(raw, seed))) == list(split(io.BytesIO(raw)))


class Repeated(io.BytesIO):
    """``unit`` over and over, ``total`` bytes, without holding them."""

    def __init__(self, unit: bytes, total: int) -> None:
        self._block = unit * (1 + 300_000 // len(unit))
        self._unit = len(unit)
        self._at = 0
        self._total = total

    def read(self, size: int | None = -1) -> bytes:
        size = min(size or 0, self._total - self._at)
        offset = self._at % self._unit
        self._at += size
        return self._block[offset : offset + size]


@pytest.mark.parametrize(
    "unit",
    [
        one(1, "x" * 2000).encode(),
        b"no header here, only noise \xff\xfe\r" * 100,
        b"BHS|^~\\&|x\r" + b"nothing\r" * 4000,
    ],
)
def test_a_file_of_50_megabytes_takes_constant_memory(unit: bytes) -> None:
    total = 50 * 1024 * 1024 // len(unit) * len(unit)
    tracemalloc.start()
    try:
        count = sum(1 for _ in split(Repeated(unit, total)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == {b"M": total // len(unit), b"n": 1, b"B": 0}[unit[:1]]
    assert peak < 4 * 1024 * 1024


# What the collection's authors put into each file; the number of messages is counted by hand.
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("stream_large-batch.ndhl7", 12),
        ("stream_malformed-mid-stream.hl7", 3),
        ("stream_mixed-terminators.hl7", 2),
        ("stream_split-across-chunks.hl7", 2),
        ("batch_bare-message.hl7", 1),
        ("batch_single-batch.hl7", 2),
        ("batch_multi-batch-file.hl7", 3),
        ("vendor-quirks_duplicate-required-segment.hl7", 2),
        ("vendor-quirks_mllp-framing-stripped.hl7", 1),
    ],
)
def test_finds_the_messages_of_public_odd_files(name: str, count: int) -> None:
    with (ODD / name).open("rb") as stream:
        assert len(list(split(stream))) == count


REFUSED = {
    "malformed_msh-too-short.hl7": ["too-short-header"],
    "malformed_no-msh-segment.hl7": ["no-header"],
    "stream_malformed-mid-stream.hl7": ["too-short-header"],
    "batch_malformed-mid-batch.hl7": ["too-short-header"],
}


@pytest.mark.parametrize("path", sorted(ODD.iterdir()), ids=lambda p: p.name)
def test_every_public_odd_file_is_read_or_refused_for_the_right_reason(path: Path) -> None:
    refused = []
    with path.open("rb") as stream:
        for piece in split(stream):
            try:
                found = read(piece)
            except Unreadable as fault:
                refused.append(fault.issue.key)
            else:
                assert all(r.get(n) for r in found.records for n in r.filled())
                assert not [i for i in found.issues if i.severity == "error"]
    assert refused == REFUSED.get(path.name, [])
