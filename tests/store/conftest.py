"""Fixtures of the store tests: a connection to a fresh database, and its codec."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from fhir_server.store.body import Codec


@pytest.fixture
def conn(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url) as connection:
        yield connection


@pytest.fixture
def codec(conn: psycopg.Connection[Any]) -> Codec:
    loaded = Codec.load(conn)
    conn.commit()
    return loaded
