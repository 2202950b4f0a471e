"""Migrations over data that is there already."""

from __future__ import annotations

import psycopg
from alembic import command
from sqlalchemy import create_engine

from fhir_server.store import database


def _up_to(url: str, revision: str) -> None:
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    try:
        with engine.connect() as connection:
            config = database.alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
            connection.commit()
    finally:
        engine.dispose()


def test_ledger_rows_of_an_older_schema_are_found_by_card_and_report(postgres: str) -> None:
    url = postgres.rpartition("/")[0] + "/older"
    with psycopg.connect(postgres, autocommit=True) as conn:
        conn.execute("CREATE DATABASE older")
    entries = (
        '{"card":"c1","user":"D001","decision":{"members":[{"result":{"report":"DiagnosticReport/r1"}},{"result":null}]}}',
        '{"reason":"late"}',
        '{"card":"c\\u0000"}',
    )
    try:
        _up_to(url, "0002")
        with psycopg.connect(url) as conn:
            for number, entry in enumerate(entries, 1):
                conn.execute(
                    "INSERT INTO ledger (chain, number, at, kind, facility, entry, hash)"
                    " VALUES ('c', %s, now(), 'reminder', 'f', %s, '')",
                    (number, entry),
                )
        database.migrate(url)
        with psycopg.connect(url) as conn:
            rows = conn.execute("SELECT card, doctor, reports, entry FROM ledger ORDER BY number").fetchall()
        assert [r[:3] for r in rows] == [("c1", "D001", ["r1"]), (None, None, None), (None, None, None)]
        assert tuple(r[3] for r in rows) == entries
    finally:
        with psycopg.connect(postgres, autocommit=True) as conn:
            conn.execute("DROP DATABASE older WITH (FORCE)")
