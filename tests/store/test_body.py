"""fhir_server.store.body: what goes in comes out, from any thread, and a missing dictionary is named."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhir_server.store.body import PLAIN, Codec, UnknownDictionary, shipped_dictionaries

_CODEC = Codec(shipped_dictionaries())


@given(st.binary(max_size=5000))
def test_gives_back_any_bytes(body: bytes) -> None:
    dictionary, data = _CODEC.compress(body)
    assert dictionary == _CODEC.current != PLAIN
    assert _CODEC.decompress(dictionary, data) == body


def test_serves_many_threads_at_once() -> None:
    bodies = [os.urandom(200) * (n % 7 + 1) for n in range(400)]
    with ThreadPoolExecutor(8) as threads:
        again = threads.map(lambda body: _CODEC.decompress(*_CODEC.compress(body)), bodies)
        assert list(again) == bodies


def test_an_unknown_dictionary_is_a_clear_error() -> None:
    with pytest.raises(UnknownDictionary, match="dictionary 77"):
        _CODEC.decompress(77, b"")


def test_registers_the_shipped_dictionaries_and_reads_those_of_the_database(
    conn: psycopg.Connection[Any], codec: Codec
) -> None:
    assert {row[0] for row in conn.execute("SELECT id FROM zstd_dictionary")} == set(shipped_dictionaries())
    older = Codec({7: shipped_dictionaries()[1]})
    data = older.compress(b"{}" * 50)
    conn.execute("INSERT INTO zstd_dictionary (id, data) VALUES (7, %s)", (shipped_dictionaries()[1],))
    assert Codec.load(conn).decompress(*data) == b"{}" * 50


def test_refuses_a_database_with_another_dictionary_of_the_same_number(conn: psycopg.Connection[Any]) -> None:
    conn.execute("INSERT INTO zstd_dictionary (id, data) VALUES (1, 'other')")
    with pytest.raises(ValueError, match="dictionary 1"):
        Codec.load(conn)
