"""Connections and the schema: DATABASE_URL, migrations (forward only), the pools of readers and writers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import psycopg
from psycopg_pool import ConnectionPool

if TYPE_CHECKING:
    from alembic.config import Config

_MIGRATION_LOCK = (
    0x746F6E676A69616E  # "tongjian": one number for everybody, so that parallel starts wait for each other
)
KEEPALIVE: Final[dict[str, Any]] = {
    "keepalives_idle": 20,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 40_000,
}
"""libpq parameters: a server that vanished without a word (power, network, firewall) is noticed within 40 s, not in hours."""
_SCHEMES = ("postgresql", "postgres", "postgresql+psycopg", "postgresql+asyncpg")


def database_url(text: str) -> str:
    """A DATABASE_URL as ``postgresql://...`` (what psycopg and asyncpg read). Raises ValueError for any other kind of database."""
    scheme, separator, rest = text.strip().partition("://")
    if not separator or scheme not in _SCHEMES:
        raise ValueError(
            "DATABASE_URL must begin with postgresql:// (PostgreSQL 15 or newer is the only database spoken)"
        )
    return f"postgresql://{rest}"


def alembic_config() -> Config:
    """Alembic's configuration, made here instead of read from a file: the migrations are part of the package."""
    from alembic.config import Config  # noqa: PLC0415 - 25 MB that no worker needs

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def migrate(url: str) -> None:
    """Brings the schema to the newest revision. Safe to call from many processes at once: one works, the others wait."""
    from alembic import command  # noqa: PLC0415 - see alembic_config
    from sqlalchemy import create_engine, pool  # noqa: PLC0415

    plain = database_url(url)
    engine = create_engine("postgresql+psycopg://" + plain.partition("://")[2], poolclass=pool.NullPool)
    with psycopg.connect(plain, autocommit=True, application_name="tongjian-migrate") as guard:
        guard.execute("SELECT pg_advisory_lock(%s)", (_MIGRATION_LOCK,))
        try:
            with engine.connect() as connection:
                config = alembic_config()
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
                connection.commit()
        finally:
            engine.dispose()


def current_revision(url: str) -> str:
    """The revision the schema is at; empty before the first migration."""
    with psycopg.connect(database_url(url)) as conn:
        if conn.execute("SELECT to_regclass('alembic_version')").fetchone() == (None,):
            return ""
        row = conn.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row[0]) if row else ""


async def open_pool(
    url: str,
    size: int = 8,
    *,
    statement_timeout: float = 30.0,
    application_name: str = "tongjian-read",
    keyed: bool = False,
) -> asyncpg.Pool:
    """The readers' pool (async). ``statement_timeout`` in seconds is enforced by the server, and a little later by the client.

    keyed: for statements that find their rows by a key only. Their plan is made once for a connection, which is half of their cost.
    """
    return await asyncpg.create_pool(
        database_url(url),
        min_size=min(2, size),
        max_size=size,
        command_timeout=statement_timeout + 5,
        reset=_as_it_was,
        server_settings={
            "application_name": application_name,
            # Whatever a role or database was given: what is acknowledged is on disk.
            "synchronous_commit": "on",
            "statement_timeout": str(int(statement_timeout * 1000)),
            "idle_in_transaction_session_timeout": "60000",
            # The best plan of a search depends on its values: a plan made for any value is a trap for some.
            "plan_cache_mode": "force_generic_plan" if keyed else "force_custom_plan",
            "jit": "off",
        },
    )


async def _as_it_was(connection: asyncpg.Connection) -> None:
    """Readers change nothing about their session, so it need not be set back after every use: that is a round trip saved. An open
    transaction is ended by the driver before this is called."""
    del connection


class Borrowed:
    """``async with``: a connection of the pool for a caller with a deadline. On the path of every search.

    When the caller is cancelled or runs out of time, the connection is thrown away: to give it back would mean waiting until the
    server has let go of the query, and a server that does not answer never does.
    """

    __slots__ = ("_connection", "_pool")

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def __aenter__(self) -> asyncpg.Connection:
        self._connection = await self._pool.acquire()
        return self._connection

    async def __aexit__(self, fault: type[BaseException] | None, *_: object) -> None:
        try:
            if fault is not None and issubclass(fault, asyncio.CancelledError | TimeoutError):
                self._connection.terminate()
        finally:
            await self._pool.release(self._connection)


def open_writer(
    url: str, size: int = 4, *, statement_timeout: float = 60.0, application_name: str = "tongjian-write"
) -> ConnectionPool[psycopg.Connection[Any]]:
    """The writers' pool (sync, psycopg). Connections are checked before use, so an outage heals by itself."""
    milliseconds = int(statement_timeout * 1000)
    return ConnectionPool(
        database_url(url),
        min_size=min(1, size),
        max_size=size,
        open=True,
        check=ConnectionPool.check_connection,
        timeout=10.0,
        kwargs={
            **KEEPALIVE,
            "application_name": application_name,
            # Plans made for an empty table must not outlive it: a bulk load starts from nothing.
            "options": f"-c synchronous_commit=on -c statement_timeout={milliseconds} -c idle_in_transaction_session_timeout=60000"
            " -c plan_cache_mode=force_custom_plan",
        },
    )
