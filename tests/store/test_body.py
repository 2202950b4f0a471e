"""fhir_server.store.body: what goes in comes out, from any thread, and a missing dictionary is named."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance.fhirjson import dumps
from fhir_server.store.body import PLAIN, Codec, UnknownDictionary, shipped_dictionaries

_CODEC = Codec(shipped_dictionaries())


_NOBODY = (None, None, None)
# Ids of all kinds: derived, given by a client, parts of each other, none at all; and what no id should be.
_IDS = st.sampled_from(
    [
        None,
        "",
        "7",
        "patient-1",
        "patient-11",
        "pk9ub8vungahb5lmqlhf458o",
        "pk9ub8vu",
        "\x01\x02abcdefgh",
        "病人-0000001",
    ]
)


@given(st.binary(max_size=5000))
def test_gives_back_any_bytes(body: bytes) -> None:
    dictionary, data = _CODEC.compress(body, _NOBODY)
    assert dictionary == _CODEC.current != PLAIN
    assert _CODEC.decompress(dictionary, data, _NOBODY) == body


@given(_IDS, _IDS, _IDS, st.text())
def test_gives_back_any_json_of_a_row_with_any_ids(
    logical: str | None, patient: str | None, order: str | None, text: str
) -> None:
    names = (logical, patient, order)
    body = dumps(
        {"id": logical, "a": [*names, f"{patient}{patient}", f"Patient/{patient}"], "text": text, f"{logical}": order}
    )
    assert _CODEC.decompress(*_CODEC.compress(body, names), names) == body


def test_ids_of_the_row_take_no_room_in_the_body() -> None:
    names = ("pk9ub8vungahb5lmqlhf458o", "pks01088v9ss63ntcosccurn", "pkr4qmbodmfou9jt6minbri3")
    body = dumps(
        {
            "id": names[0],
            "subject": {"reference": f"Patient/{names[1]}"},
            "basedOn": [{"reference": f"ServiceRequest/{names[2]}"}],
        }
    )
    assert len(_CODEC.compress(body, names)[1]) < len(_CODEC.compress(body, _NOBODY)[1]) - 40


def test_serves_many_threads_at_once() -> None:
    bodies = [os.urandom(200) * (n % 7 + 1) for n in range(400)]
    with ThreadPoolExecutor(8) as threads:
        again = threads.map(lambda body: _CODEC.decompress(*_CODEC.compress(body, _NOBODY), _NOBODY), bodies)
        assert list(again) == bodies


def test_an_unknown_dictionary_is_a_clear_error() -> None:
    with pytest.raises(UnknownDictionary, match="dictionary 77"):
        _CODEC.decompress(77, b"", _NOBODY)


def test_registers_the_shipped_dictionaries_and_reads_those_of_the_database(
    conn: psycopg.Connection[Any], codec: Codec
) -> None:
    assert {row[0] for row in conn.execute("SELECT id FROM zstd_dictionary")} == set(shipped_dictionaries())
    older = Codec({7: shipped_dictionaries()[1]})
    data = older.compress(b"{}" * 50, _NOBODY)
    conn.execute("INSERT INTO zstd_dictionary (id, data) VALUES (7, %s)", (shipped_dictionaries()[1],))
    assert Codec.load(conn).decompress(*data, _NOBODY) == b"{}" * 50


def test_refuses_a_database_with_another_dictionary_of_the_same_number(conn: psycopg.Connection[Any]) -> None:
    conn.execute("INSERT INTO zstd_dictionary (id, data) VALUES (1, 'other')")
    with pytest.raises(ValueError, match="dictionary 1"):
        Codec.load(conn)
