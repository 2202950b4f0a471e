"""Hash chain."""

from __future__ import annotations

import hashlib

import pytest

from conformance import chain

ENTRIES = [b"one", b"two", b"three", b"four"]


def chained(entries: list[bytes], algorithm: str = "sha256") -> list[tuple[bytes, bytes]]:
    previous = chain.genesis("c", algorithm)
    out = []
    for entry in entries:
        previous = chain.next_hash(previous, entry, algorithm)
        out.append((entry, previous))
    return out


def test_a_hash_is_the_digest_of_the_previous_hash_and_the_entry() -> None:
    assert chain.next_hash(b"\x01" * 32, b"entry") == hashlib.sha256(b"\x01" * 32 + b"entry").digest()


@pytest.mark.parametrize("algorithm", ["sha256", "sm3"])
def test_an_untouched_chain_verifies(algorithm: str) -> None:
    assert chain.verify(chain.genesis("c", algorithm), chained(ENTRIES, algorithm), algorithm) is None
    assert chain.verify(chain.genesis("c"), []) is None


def test_sm3_is_the_hash_of_gb_t_32905() -> None:
    # GB/T 32905-2016, appendix A.1: SM3 of "abc".
    expected = "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0"
    assert chain.next_hash(b"", b"abc", "sm3").hex() == expected


@pytest.mark.parametrize("position", range(4))
def test_a_changed_entry_breaks_the_chain_at_its_place(position: int) -> None:
    rows = chained(ENTRIES)
    rows[position] = (b"other", rows[position][1])
    assert chain.verify(chain.genesis("c"), rows) == position


@pytest.mark.parametrize("position", range(3))
def test_a_removed_entry_breaks_the_chain_where_the_next_one_stands(position: int) -> None:
    rows = chained(ENTRIES)
    del rows[position]
    assert chain.verify(chain.genesis("c"), rows) == position


def test_a_part_verifies_from_the_hash_before_it() -> None:
    rows = chained(ENTRIES)
    assert chain.verify(rows[1][1], rows[2:]) is None


def test_a_row_cannot_move_to_another_chain() -> None:
    assert chain.verify(chain.genesis("other"), chained(ENTRIES)) == 0


def test_an_unknown_algorithm_is_refused() -> None:
    with pytest.raises(ValueError, match="unsupported hash"):
        chain.next_hash(b"", b"", "md99")
