"""``tongjian audit-log``: is the record of who saw and changed what as it was written, and how long is it kept?"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated

import typer

from fhir_server.audit_cli import DataDir, fail, settings

audit_log = typer.Typer(no_args_is_help=True, help="The record of who saw and changed what.")


@audit_log.command("verify")
def verify_audit_log(data: DataDir = None) -> None:
    """Check the hash chains of the audit log and of the recognition ledger. Exit code 1: an entry was changed or is missing."""
    import asyncpg  # noqa: PLC0415

    from fhir_server.evidence import verify  # noqa: PLC0415
    from fhir_server.serve import CannotServe, database  # noqa: PLC0415

    try:
        with database(settings(data_dir=data), as_it_is=True) as url:
            breaks = asyncio.run(verify(url))
    except (CannotServe, OSError, asyncpg.PostgresError) as fault:
        raise fail(f"The logs cannot be read: {fault}") from None
    for found in breaks:
        typer.echo(f"{found.log} chain {found.chain} entry {found.number}: {found.reason}")
    if breaks:
        raise fail(f"{len(breaks)} places do not hold.")
    typer.echo("Every entry is as it was written.")


@audit_log.command("prune")
def prune_audit_log(
    dry: Annotated[bool, typer.Option("--dry-run", help="Only count what would be removed.")] = False,
    data: DataDir = None,
) -> None:
    """Remove entries older than the setting audit_keep_days, as the running server does once a day; the log says what was removed."""
    import asyncpg  # noqa: PLC0415

    from fhir_server.audit_retention import Removed, prune  # noqa: PLC0415
    from fhir_server.serve import CannotServe, database  # noqa: PLC0415

    chosen = settings(data_dir=data)

    async def act(url: str) -> Removed:
        connection = await asyncpg.connect(url, timeout=10)
        try:
            return await prune(connection, chosen.audit_keep_days, datetime.now(UTC), dry=dry)
        finally:
            await connection.close()

    try:
        with database(chosen, as_it_is=True) as url:
            found = asyncio.run(act(url))
    except (CannotServe, OSError, asyncpg.PostgresError) as fault:
        raise fail(f"The log cannot be read: {fault}") from None
    typer.echo(f"{found.entries} entries of {found.chains} chains {'would be' if dry else 'were'} removed.")
