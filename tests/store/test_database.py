"""fhir_server.store.database: the schema is what tables.py says, however many processes create it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from fhir_server.ingest import worker
from fhir_server.store import database
from fhir_server.store.tables import metadata


def test_migrated_schema_equals_the_table_definitions(database_url: str) -> None:
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    try:
        with engine.connect() as connection:
            options = {"compare_type": True, "compare_server_default": True}
            differences = compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
    finally:
        engine.dispose()
    assert [d for d in differences if not _only_the_next_number(d)] == []


def _only_the_next_number(difference: Any) -> bool:
    # Alembic compares two defaults by evaluating both, and nextval() never equals itself: here the texts are compared.
    if not isinstance(difference, list) or len(difference) != 1 or difference[0][0] != "modify_default":
        return False
    have, want = difference[0][-2:]
    return have is not None and want is not None and str(have.arg) == str(want.arg) and "nextval" in str(want.arg)


def test_several_processes_may_migrate_an_empty_database_at_once(postgres: str) -> None:
    url = postgres.rpartition("/")[0] + "/parallel"
    with psycopg.connect(postgres, autocommit=True) as conn:
        conn.execute("CREATE DATABASE parallel")
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(database.migrate, [url] * 4))
    with psycopg.connect(url) as conn:
        assert conn.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
        assert conn.execute("SELECT count(*) FROM resource").fetchone() == (0,)
    with psycopg.connect(postgres, autocommit=True) as conn:
        conn.execute("DROP DATABASE parallel WITH (FORCE)")


def test_migrating_again_changes_nothing(database_url: str) -> None:
    with psycopg.connect(database_url) as conn:
        conn.execute("INSERT INTO zstd_dictionary VALUES (99, 'x')")
    database.migrate(database_url)
    with psycopg.connect(database_url) as conn:
        assert conn.execute("SELECT id FROM zstd_dictionary").fetchall() == [(99,)]


@pytest.mark.parametrize(
    "given", ["postgres://h/d", "postgresql+asyncpg://h/d", "postgresql+psycopg://h/d", " postgresql://h/d\n"]
)
def test_reads_every_spelling_of_a_postgresql_url(given: str) -> None:
    assert database.database_url(given) == "postgresql://h/d"


@pytest.mark.parametrize("given", ["mysql://h/d", "sqlite:///x.db", "", "h/d"])
def test_refuses_other_databases(given: str) -> None:
    with pytest.raises(ValueError, match="postgresql://"):
        database.database_url(given)


def test_pools_connect_and_have_statement_timeouts(database_url: str) -> None:
    async def read() -> list[str]:
        pool = await database.open_pool(database_url, 2, statement_timeout=5)
        try:
            return [await pool.fetchval("SHOW statement_timeout"), await pool.fetchval("SHOW application_name")]
        finally:
            await pool.close()

    assert asyncio.run(read()) == ["5s", "tongjian-read"]
    with database.open_writer(database_url, 2, statement_timeout=7) as writer, writer.connection() as conn:
        assert conn.execute("SHOW statement_timeout").fetchone() == ("7s",)
        assert conn.execute("SHOW synchronous_commit").fetchone() == ("on",)


def test_a_server_that_does_not_answer_holds_up_nobody_with_a_deadline(database_url: str) -> None:
    async def story() -> float:
        async with await database.open_pool(database_url, 1) as pool:
            pid = await pool.fetchval("SELECT pg_backend_pid()")
            os.kill(pid, signal.SIGSTOP)
            began = time.monotonic()
            try:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.2), database.Borrowed(pool) as conn:
                        await conn.fetchval("SELECT 1")
                waited = time.monotonic() - began
                assert await pool.fetchval("SELECT pg_backend_pid()") != pid, "the pool goes on with another one"
            finally:
                os.kill(pid, signal.SIGCONT)
            return waited

    assert asyncio.run(story()) < 2


def test_commits_are_durable_whatever_the_database_was_given(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(f"ALTER DATABASE {conn.info.dbname} SET synchronous_commit = off")

    async def of_the_intake() -> Any:
        pool = await database.open_pool(database_url, 1, application_name="tongjian-intake")
        try:
            return await pool.fetchval("SHOW synchronous_commit")
        finally:
            await pool.close()

    assert asyncio.run(of_the_intake()) == "on"
    with database.open_writer(database_url, 1) as pool, pool.connection() as writer:
        assert writer.execute("SHOW synchronous_commit").fetchone() == ("on",)
    with psycopg.connect(database_url, options=worker.OPTIONS) as conn:
        assert conn.execute("SHOW synchronous_commit").fetchone() == ("on",)
