"""``tongjian deliveries``: what was sent on to other facilities, what waits, what was given up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fhir_server.settings import Settings

if TYPE_CHECKING:
    import psycopg

deliveries = typer.Typer(no_args_is_help=True, help="Results on their way to other facilities.")
err = Console(stderr=True, soft_wrap=True)

DataDir = Annotated[Path | None, typer.Option("--data", help="Folder of the embedded database (default: ./var).")]
To = Annotated[str | None, typer.Option("--facility", help="Only deliveries to this facility.")]
Place = Annotated[str | None, typer.Option("--destination", help="Only this destination of its profile.")]
Since = Annotated[datetime | None, typer.Option(help="Only deliveries queued at or after this time.")]


def fail(text: str, code: int = 1) -> typer.Exit:
    """Prints a fault; raise what it returns."""
    err.print(text, style="red", markup=False)
    return typer.Exit(code)


@contextmanager
def _connected(chosen: Settings) -> Iterator[psycopg.Connection[Any]]:
    import psycopg  # noqa: PLC0415 - keeps `--help` fast

    from fhir_server.serve import CannotServe, database  # noqa: PLC0415

    try:
        with database(chosen, as_it_is=True) as url, psycopg.connect(url) as conn:
            yield conn
    except CannotServe as fault:
        raise fail(str(fault)) from None
    except psycopg.Error as fault:
        raise fail(f"The database cannot be used: {type(fault).__name__}.") from None


def _settings(data: Path | None) -> Settings:
    from fhir_server import settings  # noqa: PLC0415

    try:
        return settings.load(data_dir=data)
    except settings.SettingsError as fault:
        raise fail(str(fault)) from None


@deliveries.command("list")
def show(
    facility: To = None,
    destination: Place = None,
    status: Annotated[str | None, typer.Option(help="waiting, delivered, dead or closed.")] = None,
    since: Since = None,
    most: Annotated[int, typer.Option(help="At most so many, the newest.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    data: DataDir = None,
) -> None:
    """List deliveries, newest first, with the reason of the last failure. No patient data."""
    import dataclasses  # noqa: PLC0415 - keeps `--help` fast

    import orjson  # noqa: PLC0415

    from fhir_server.publish.queue import Selection, select  # noqa: PLC0415

    _check(status)
    chosen = _settings(data)
    selection = Selection(facility, destination, status, since=_aware(since, chosen))
    with _connected(chosen) as conn:
        found = select(conn, selection, most)
    if as_json:
        for one in found:
            typer.echo(orjson.dumps(dataclasses.asdict(one)).decode())
        return
    table = Table("id", "to", "topic", "resource", "status", "tried", "queued", "reason")
    for one in found:
        to = f"{one.facility}/{one.destination}"
        queued = one.created.astimezone(chosen.zone).strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(
            str(one.id), to, one.topic, one.resource, one.status, str(one.attempts), queued, one.reason or ""
        )  # fmt: skip
    Console().print(table)


@deliveries.command("replay")
def replay(
    facility: To = None,
    destination: Place = None,
    status: Annotated[str, typer.Option(help="dead, or delivered to send again what was taken.")] = "dead",
    number: Annotated[list[int] | None, typer.Option("--id", help="Only this one; may be given several times.")] = None,
    since: Since = None,
    data: DataDir = None,
) -> None:
    """Send again: the same bytes with the same control id. The running server does it at once.

    What a newer message about the same report has overtaken stays, unless it is named with --id.
    """
    from fhir_server.publish import outbox, queue  # noqa: PLC0415

    if status not in ("dead", "delivered"):
        raise fail("--status is dead or delivered.")
    if status == "delivered" and not (number or since):
        raise fail("To send delivered messages again, name them with --id or --since.")
    chosen = _settings(data)
    selection = queue.Selection(facility, destination, status, tuple(number or ()), _aware(since, chosen))
    with _connected(chosen) as conn:
        count, left = queue.replay(conn, selection, datetime.now(UTC))
        conn.commit()
        conn.execute(f"NOTIFY {outbox.CHANNEL}")
    typer.echo(f"In the queue again: {count}.")
    if left:
        typer.echo(f"Left: {left}, overtaken by a newer message about the same report (--id sends one all the same).")


@deliveries.command("close")
def close(
    number: Annotated[list[int], typer.Option("--id", help="The dead letter; may be given several times.")],
    reason: Annotated[str, typer.Option(help="How it was settled, such as: told by telephone. No patient data.")],
    data: DataDir = None,
) -> None:
    """Settle dead letters that need not be sent any more. They stay on record with the reason."""
    from fhir_server.publish import queue  # noqa: PLC0415

    with _connected(_settings(data)) as conn:
        count = queue.close(conn, number, reason)
    typer.echo(f"Closed: {count}.")
    if count < len(set(number)):
        raise fail("The others are not dead letters: see `tongjian deliveries list`.")


def _check(status: str | None) -> None:
    if status not in (None, "waiting", "delivered", "dead", "closed"):
        raise fail("--status is waiting, delivered, dead or closed.")


def _aware(at: datetime | None, chosen: Settings) -> datetime | None:
    return at.replace(tzinfo=chosen.zone) if at is not None and at.tzinfo is None else at
