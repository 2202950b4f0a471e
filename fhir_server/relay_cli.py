"""``tongjian relay``: stores messages on a machine with a bad line and forwards them to the county's server (docs/connect-relay.md)."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

relay = typer.Typer(
    invoke_without_command=True, help="Relay messages from a machine with a bad line to the county's server."
)
err = Console(stderr=True, soft_wrap=True)

DataDir = Annotated[Path | None, typer.Option("--data", help="Folder that holds the queue (default: ./var).")]


def fail(text: str) -> typer.Exit:
    """Prints a fault; raise what it returns."""
    err.print(text, style="red", markup=False)
    return typer.Exit(1)


def _settings(**given: Any) -> Any:
    from fhir_server import settings  # noqa: PLC0415 - keeps `--help` fast

    try:
        return settings.load(**given)
    except settings.SettingsError as fault:
        raise fail(str(fault)) from None


@relay.callback()
def run(
    context: typer.Context,
    data: DataDir = None,
    mllp_port: Annotated[int | None, typer.Option(help="MLLP port (default 2575; 0: any free one).")] = None,
) -> None:
    """Take HL7 v2 over MLLP and files of a folder, acknowledge what is on this disk, and forward it to `relay_server` in order."""
    if context.invoked_subcommand is not None:
        return
    from fhir_server import telemetry  # noqa: PLC0415
    from fhir_server.relay.run import CannotRelay  # noqa: PLC0415
    from fhir_server.relay.run import relay as work  # noqa: PLC0415

    chosen = _settings(data_dir=data, mllp_port=mllp_port)
    telemetry.configure(chosen.log_level)
    try:
        asyncio.run(work(chosen))
    except CannotRelay as fault:
        raise fail(str(fault)) from None


@relay.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False, data: DataDir = None
) -> None:
    """Show how many messages wait, since when, the last contact, the clock offset, and why nothing is sent."""
    from fhir_server.relay import queue  # noqa: PLC0415
    from fhir_server.relay.run import folder_of  # noqa: PLC0415

    found = folder_of(_settings(data_dir=data))
    try:
        with queue.looked_into(found) as db:
            counts, known = queue.counts(db), queue.state(db)
    except (OSError, sqlite3.Error) as fault:
        raise fail(f"There is no queue in {found} ({type(fault).__name__}).") from None
    age = (datetime.now(UTC) - counts.oldest).total_seconds() if counts.oldest else None
    if as_json:
        told = {"waiting": counts.waiting, "dead": counts.dead, "bytes": counts.bytes, "oldest_seconds": age, **known}
        typer.echo(json.dumps(told))
        return
    typer.echo(
        f"Queue      {counts.waiting} messages wait" + (f", the oldest for {age:.0f} s" if age is not None else "")
    )
    typer.echo(f"Given up   {counts.dead} messages" + (": see tongjian relay dead" if counts.dead else ""))
    typer.echo(f"Disk       {counts.bytes} bytes")
    typer.echo(f"Server     last contact {known.get('contact', 'never')}" + _fault(known))
    typer.echo(
        f"Clock      {known.get('offset_ms', 'unknown')} ms behind the server's (round trip {known.get('round_trip_ms', '-')} ms)"
    )
    typer.echo(f"Id         {known.get('id', '-')}")
    if known.get("damage"):
        typer.echo(f"Damage     {known['damage']}")


def _fault(known: dict[str, str]) -> str:
    return f"; cut: {known['fault']} ({known.get('fault_at', '')})" if known.get("fault") else ""


@relay.command()
def dead(
    retry: Annotated[bool, typer.Option("--retry", help="Send them again, all or those named.")] = False,
    number: Annotated[list[int] | None, typer.Option("--number", help="Only this one; repeatable.")] = None,
    data: DataDir = None,
) -> None:
    """List messages the server would not take (number, time, channel, bytes, reason), or send them again."""
    from fhir_server.relay import queue  # noqa: PLC0415
    from fhir_server.relay.run import folder_of  # noqa: PLC0415

    found = folder_of(_settings(data_dir=data))
    try:
        with queue.looked_into(found) as db:
            if retry:
                typer.echo(f"{queue.retry(db, number or [])} messages wait again.")
                return
            for row in queue.dead(db):
                typer.echo("\t".join(map(str, row)))
    except (OSError, sqlite3.Error) as fault:
        raise fail(f"There is no queue in {found} ({type(fault).__name__}).") from None
