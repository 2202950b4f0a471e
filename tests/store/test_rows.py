"""Arrays as PostgreSQL reads them (https://www.postgresql.org/docs/16/arrays.html#ARRAYS-IO)."""

from __future__ import annotations

import psycopg

from fhir_server.store import rows


def test_keys_arrive_in_the_database_as_they_are(database_url: str) -> None:
    texts = ["0a0123", "", "NULL", 'a"b', "c\\d", "e,f{g} h", "血"]
    numbers = [0, -32768, 32767, 2**62]
    with psycopg.connect(database_url) as conn:
        asked = conn.execute(
            "SELECT %s::text[], %s::text[], %s::bigint[], %s::bigint[]",
            (rows.texts(texts), rows.texts([]), rows.numbers(numbers), rows.numbers([])),
        ).fetchone()
    assert asked == (texts, [], numbers, [])
