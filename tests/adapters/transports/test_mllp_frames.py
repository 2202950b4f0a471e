"""adapters.transports.mllp_frames: bytes to frames (HL7 v2.5.1 Appendix C.4)."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.transports.mllp_frames import KEPT, Frame, Frames, frame


def run(data: bytes, cuts: list[int] | None = None, limit: int = 2000) -> list[tuple[bytes, str]]:
    frames = Frames(limit)
    found: list[Frame] = []
    at = 0
    for cut in [*(cuts or []), len(data)]:
        found += frames.feed(data[at:cut])
        at = cut
    found += frames.close()
    return [(f.data, f.fault) for f in found]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"\x0bMSH|1\r\x1c\r", [(b"MSH|1\r", "")]),
        (b"\x0bMSH|1\x1c\r\x0bMSH|2\x1c\r", [(b"MSH|1", ""), (b"MSH|2", "")]),
        (b"\r\n\r\n\x0bMSH|1\x1c\r\r\n\0 ", [(b"MSH|1", "")]),
        (b"\x0bMSH|1\x1c\x0bMSH|2\x1c\n", [(b"MSH|1", ""), (b"MSH|2", "")]),
        (b"\x0bMSH|1\x1c", [(b"MSH|1", "")]),
        (b"MSH|1\r\x1c\r", [(b"MSH|1\r", "no-start")]),
        (b"hello\x1c\r", [(b"hello", "no-start")]),
        (b"hello\x0bMSH|1\x1c\r", [(b"hello", "noise"), (b"MSH|1", "")]),
        (b"hello", [(b"hello", "noise")]),
        (b"\x0bMSH|1\rPID|", [(b"MSH|1\rPID|", "unfinished")]),
        (b"\x0bMSH|1\rPI\x0bMSH|2\x1c\r", [(b"MSH|1\rPI", "unfinished"), (b"MSH|2", "")]),
        (b"\x0b\x0bMSH|2\x1c\r", [(b"MSH|2", "")]),
        (b"\x0b\x1c\r", [(b"", "")]),
        (b"\x0bnoise\xff\x1c\r", [(b"noise\xff", "")]),
        (b"\x0bMSH|a\x0bb\x1c\r", [(b"MSH|a\x0bb", "")]),
        (b"\x0bMSH|a\x1cb\x1c\r", [(b"MSH|a\x1cb", "")]),
        (b"\x1c\r\x1c\r\x0bMSH|1\x1c\r", [(b"MSH|1", "")]),
    ],
)
def test_finds_frames_and_faults(data: bytes, expected: list[tuple[bytes, str]]) -> None:
    assert run(data) == expected


@given(st.integers(0, 2**32))
def test_where_the_reads_cut_makes_no_difference(seed: int) -> None:
    rng = random.Random(seed)
    parts = [
        b"\x0bMSH|a\r\x1c\r",
        b"MSH|b\r\x1c\r",
        b"noise",
        b"\r\n",
        b"\x0bMSH|c\r",
        b"\x0bMSH|" + b"x" * 3000 + b"\x1c\r",
        b"\x0bMSH|d\x0be\x1c\r",
        b"\x0b\x0bMSH|f\x1c\n",
        b"\x0bMSH|g\x1ch\x1c\r",
        b"\x0bMSH|i\x1c",
        b"\x0b1\x1c\r",
        b"\x0b\x1c\r",
        "张三\x1c\r".encode("gb18030"),
    ]
    data = b"".join(rng.choices(parts, k=rng.randint(1, 8)))
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randint(0, 12)))
    assert run(data, cuts) == run(data)
    assert run(data, list(range(len(data)))) == run(data)


@given(st.lists(st.binary(min_size=1, max_size=50).map(lambda b: b"MSH|" + b.translate(None, b"\x0b\x1c")), max_size=6))
def test_what_is_framed_comes_out(messages: list[bytes]) -> None:
    assert run(b"".join(frame(m) for m in messages)) == [(m, "") for m in messages]


@given(st.binary(max_size=300))
def test_any_bytes_are_taken(data: bytes) -> None:
    assert sum(len(d) for d, _ in run(data)) <= len(data)


def test_a_frame_over_the_limit_is_skipped_and_its_beginning_kept() -> None:
    frames = Frames(100_000)
    found = []
    total = 20_000_000
    frames.feed(b"\x0bMSH|")
    for _ in range(total // 50_000):
        found += frames.feed(b"x" * 50_000)
        assert len(frames._buffer) <= 200_000
    found += frames.feed(b"\x1c\r" + frame(b"MSH|next"))
    assert [(f.fault, len(f.data), f.size) for f in found] == [("oversize", KEPT, total + 4), ("", 8, 8)]
    assert found[0].data.startswith(b"MSH|xxx")


def test_the_limit_itself_is_allowed() -> None:
    assert [fault for _, fault in run(frame(b"x" * 2000))] == [""]
    assert [fault for _, fault in run(frame(b"x" * 2001))] == ["oversize"]
    assert [fault for _, fault in run(b"MSH|" + b"x" * 2001 + b"\x1c\r")] == ["oversize"]


def test_endless_noise_is_not_collected() -> None:
    frames = Frames(1000)
    for _ in range(100):
        frames.feed(b"n" * 50_000)
    assert len(frames._buffer) <= 2 * KEPT
    [noise, good] = frames.feed(frame(b"MSH|1"))
    assert (noise.fault, noise.size, good.data) == ("noise", 5_000_000, b"MSH|1")


def test_an_end_mark_alone_waits_for_a_moment_and_then_ends_the_frame() -> None:
    frames = Frames(1000)
    assert frames.feed(b"\x0bMSH|1\x1c") == []
    assert frames.waiting
    assert frames.inside
    assert [f.data for f in frames.settle()] == [b"MSH|1"]
    assert not frames.waiting
    assert not frames.inside
    assert frames.feed(b"\r") == []
    assert [f.data for f in frames.feed(frame(b"MSH|2"))] == [b"MSH|2"]
