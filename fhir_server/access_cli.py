"""``tongjian refresh-access``: what is stored follows the rules of who may see what, also those that came later."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated, Final

import typer

from fhir_server.audit_cli import DataDir, fail, settings

_PAUSE: Final = 0.005
"""Seconds between two chunks: those who wait for their locks come first."""
_TELL: Final = 2.0
"""Seconds between two lines of progress."""


def refresh_access(
    again: Annotated[
        bool, typer.Option("--again", help="From the start, also when it was done by the rules in force.")
    ] = False,
    data: DataDir = None,
) -> None:
    """Compute again what reading rights of stored data depend on: sensitive classes, treatment, consents. The server goes on
    meanwhile; what is broken off goes on with the same command."""
    import psycopg  # noqa: PLC0415 - keeps `--help` fast

    from fhir_server.search import params  # noqa: PLC0415
    from fhir_server.serve import CannotServe, database  # noqa: PLC0415
    from fhir_server.store import access_refresh  # noqa: PLC0415
    from fhir_server.store.body import Codec  # noqa: PLC0415
    from mappings import catalogue, sensitive  # noqa: PLC0415

    chosen = settings(data_dir=data)
    params.install(chosen.zone, chosen.fhir_base())
    try:
        sensitive.install(chosen.rules_dir)
        with database(chosen, as_it_is=True) as url, psycopg.connect(url, autocommit=True) as conn:
            if not access_refresh.begin(conn, again=again):
                typer.echo("What is stored follows the rules in force already. --again computes it once more.")
                return
            codec = Codec.load(conn)
            row = conn.execute(
                "SELECT greatest(reltuples, 0) FROM pg_class WHERE oid = 'resource'::regclass"
            ).fetchone()
            about = int(row[0]) if row else 0
            told = time.monotonic()
            while True:
                try:
                    now = access_refresh.step(conn, codec, datetime.now(UTC))
                except psycopg.errors.DeadlockDetected:
                    continue
                if now.done:
                    break
                if time.monotonic() - told >= _TELL:
                    told = time.monotonic()
                    typer.echo(
                        f"Round {now.round}: {now.seen} of about {max(about, now.seen)} resources, {now.changed} changed.",
                        err=True,
                    )
                time.sleep(_PAUSE)
    except (catalogue.CatalogueError, sensitive.SensitiveError, LookupError) as fault:
        raise fail(str(fault)) from None
    except psycopg.errors.UndefinedTable:
        raise fail(
            "This database has no tables of this version: start tongjian serve, or run tongjian migrate."
        ) from None
    except (CannotServe, psycopg.OperationalError) as fault:
        raise fail(f"The database cannot be reached: {fault} The same command goes on where this one ended.") from None
    except KeyboardInterrupt:
        raise fail("Broken off. The same command goes on from here.", 130) from None
    typer.echo(f"Done: {now.changed} resources changed, {now.seen} looked at.")
