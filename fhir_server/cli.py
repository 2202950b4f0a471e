"""The command ``tongjian`` (Typer): one function per command, each only gathers what it needs and calls the part that does it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fhir_server import clock
from fhir_server import settings as settings_module
from fhir_server.access_cli import refresh_access
from fhir_server.audit_cli import audit, measures, review
from fhir_server.audit_log_cli import audit_log
from fhir_server.bench.commands import bench
from fhir_server.deliveries_cli import deliveries
from fhir_server.export_cli import export
from fhir_server.feed_cli import check
from fhir_server.keys_cli import keys
from fhir_server.map_cli import worklist
from fhir_server.poll_cli import poll
from fhir_server.relay_cli import relay
from fhir_server.rules_cli import rules
from fhir_server.settings import Settings, SettingsError
from fhir_server.user_cli import user

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mappings.profile import Profile

cli = typer.Typer(
    name="tongjian",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Tongjian (通检): turns HIS and LIS messages into FHIR R4 and recognizes test results across a county.",
)
send = typer.Typer(no_args_is_help=True, help="Send files to a server, as a HIS or LIS would.")
cli.add_typer(send, name="send")
cli.add_typer(bench, name="bench")
cli.add_typer(deliveries, name="deliveries")
cli.add_typer(rules, name="rules")
cli.add_typer(worklist, name="map")
cli.command("check")(check)
cli.add_typer(audit_log, name="audit-log")
cli.add_typer(user, name="user")
cli.add_typer(keys, name="keys")
cli.command()(poll)
cli.add_typer(relay, name="relay")
cli.command()(audit)
cli.command()(export)
cli.command("refresh-access")(refresh_access)
cli.command()(measures)
cli.add_typer(review, name="review")
err = Console(stderr=True, soft_wrap=True)

DataDir = Annotated[
    Path | None, typer.Option("--data", help="Folder of the embedded database and the keys (default: ./var).")
]
Profiles = Annotated[
    Path | None, typer.Option("--profiles", help="Folder of facility profiles (default: the shipped example county).")
]


def _fail(text: str, code: int = 1) -> typer.Exit:
    err.print(text, style="red", markup=False)
    return typer.Exit(code)


def _settings(**given: object) -> Settings:
    try:
        return settings_module.load(**given)
    except SettingsError as fault:
        raise _fail(str(fault)) from None


def _profiles(chosen: Settings) -> Mapping[str, Profile]:
    """The profiles, with the installation's own rules taken up: its catalogue, its table of sensitive data."""
    from mappings import catalogue, sensitive  # noqa: PLC0415 - keeps `--help` fast
    from mappings.profile import ProfileError, load_profiles  # noqa: PLC0415

    try:
        sensitive.install(chosen.rules_dir)
        return load_profiles(chosen.profiles_dir, catalogue=catalogue.of(chosen.rules_dir))
    except (ProfileError, catalogue.CatalogueError, sensitive.SensitiveError) as fault:
        raise _fail(str(fault)) from None


@contextmanager
def _database(settings: Settings, *, as_it_is: bool = False) -> Iterator[str]:
    from fhir_server.serve import CannotServe, database  # noqa: PLC0415

    try:
        with database(settings, as_it_is=as_it_is) as url:
            yield url
    except CannotServe as fault:
        raise _fail(str(fault)) from None


@cli.command()
def demo(
    leave: Annotated[bool, typer.Option("--exit", help="End after the report instead of staying up.")] = False,
    data: DataDir = None,
    port: Annotated[int | None, typer.Option(help="HTTP port (0: any free one).")] = None,
    mllp_port: Annotated[int | None, typer.Option(help="MLLP port (0: any free one).")] = None,
) -> None:
    """Run a small example county on the embedded database: send its messages, recognize a result, audit the repeats."""
    from fhir_server.demo.run import DemoFailed, run  # noqa: PLC0415

    try:
        run(_settings(data_dir=data, port=port, mllp_port=mllp_port), leave=leave)
    except DemoFailed as fault:
        raise _fail(str(fault)) from None


@cli.command()
def serve(
    port: Annotated[int | None, typer.Option(help="HTTP port (default 8080; 0: any free one).")] = None,
    mllp_port: Annotated[int | None, typer.Option(help="MLLP port (default 2575; 0: any free one).")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (default 127.0.0.1).")] = None,
    workers: Annotated[int | None, typer.Option(help="Converter processes (default 2).")] = None,
    data: DataDir = None,
    profiles: Profiles = None,
) -> None:
    """Serve the FHIR API and MLLP and convert messages, all in one go. Ctrl-C stops gracefully."""
    from fhir_server.serve import CannotServe, run  # noqa: PLC0415

    chosen = _settings(
        port=port, mllp_port=mllp_port, host=host, mllp_host=host, workers=workers, data_dir=data, profiles_dir=profiles
    )
    try:
        run(chosen, _profiles(chosen))
    except CannotServe as fault:
        raise _fail(str(fault)) from None


@cli.command()
def work(
    data: DataDir = None,
    profiles: Profiles = None,
    attached: Annotated[
        bool, typer.Option("--attached", hidden=True, help="End when standard input closes (a child of `serve`).")
    ] = False,
) -> None:
    """Run one more converter process beside a running server (same database, same profiles)."""
    from fhir_server.ingest import worker  # noqa: PLC0415
    from fhir_server.search import params  # noqa: PLC0415

    chosen = _settings(data_dir=data, profiles_dir=profiles)
    params.install(chosen.zone, chosen.fhir_base())
    # A child of `serve` finds the schema as it should be, and waits when the database is away.
    with _database(chosen, as_it_is=attached) as url:
        worker.run(
            url,
            _profiles(chosen),
            batch=chosen.claim_batch,
            lease=chosen.lease_seconds,
            log_level=chosen.log_level,
            otlp_endpoint=chosen.otlp_endpoint,
            trace_ratio=chosen.trace_ratio,
            attached=attached,
            clock=clock.of(chosen),
        )


@cli.command()
def images(
    bound: Annotated[
        int | None, typer.Option("--socket", hidden=True, help="Listening socket inherited from `serve`.")
    ] = None,
    data: DataDir = None,
    profiles: Profiles = None,
    attached: Annotated[
        bool, typer.Option("--attached", hidden=True, help="End when standard input closes (a child of `serve`).")
    ] = False,
) -> None:
    """Receive images (DICOM) and poll picture archives; `serve` starts this itself when dicom_port or a polled archive is set."""
    import socket  # noqa: PLC0415

    from fhir_server.imaging import run as imaging  # noqa: PLC0415
    from fhir_server.serve import CannotServe, server_tls  # noqa: PLC0415

    chosen = _settings(data_dir=data, profiles_dir=profiles)
    try:
        tls = server_tls(chosen.dicom_certificate, chosen.dicom_key, chosen.dicom_client_ca)
        if bound is not None:
            line: socket.socket | None = socket.socket(fileno=bound)
        elif chosen.dicom_port is not None and not attached:
            line = socket.create_server((chosen.dicom_host, chosen.dicom_port))
        else:
            line = None
        with _database(chosen, as_it_is=attached) as url:
            imaging.run(chosen, _profiles(chosen), url, bound=line, tls=tls, attached=attached)
    except (CannotServe, imaging.CannotReceive) as fault:
        raise _fail(str(fault)) from None
    except OSError as fault:
        raise _fail(f"The DICOM server cannot start: {fault.strerror or fault}.") from None


@cli.command()
def migrate(data: DataDir = None) -> None:
    """Bring the database to this version's schema; safe to run again, forward only."""
    from fhir_server.store.database import current_revision  # noqa: PLC0415

    with _database(_settings(data_dir=data)) as url:
        typer.echo(f"The database is at revision {current_revision(url)}.")


@send.command("hl7")
def send_hl7(
    files: Annotated[
        list[Path], typer.Argument(exists=True, dir_okay=False, help="Files with one or many HL7 v2 messages.")
    ],
    host: Annotated[str, typer.Option(help="Server address.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="MLLP port of the server.")] = 2575,
    from_address: Annotated[
        str, typer.Option("--from", help="Local address to send from (the server tells facilities apart by it).")
    ] = "",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for each acknowledgement.")] = 30.0,
) -> None:
    """Send HL7 v2 files over MLLP, one message after the other on one connection; print what was not accepted."""
    from fhir_server.send import SendFailed, send_files  # noqa: PLC0415

    try:
        refused = asyncio.run(send_files(files, host, port, from_address, timeout))
    except SendFailed as fault:
        raise _fail(str(fault)) from None
    if refused:
        raise typer.Exit(1)


@cli.command()
def convert(
    file: Annotated[Path, typer.Argument(help="File with one or many messages; - reads standard input.")],
    facility: Annotated[str, typer.Option(help="Facility profile id; 'generic' needs no profile.")] = "generic",
    profiles: Profiles = None,
    pretty: Annotated[bool, typer.Option(help="Indent the Bundle.")] = True,
) -> None:
    """Convert a message without a database: Bundle on stdout, issues and unread fields as JSON on stderr.

    Several messages in one file give one Bundle, each resource in its newest state.

    Exit code 0: clean. 1: converted with issues. 2: nothing could be converted.
    """
    from fhir_server.convert_file import convert_file  # noqa: PLC0415

    known = _profiles(_settings(profiles_dir=profiles))
    if facility not in known:
        raise _fail(f"There is no facility profile '{facility}'. Known: {', '.join(sorted(known))}.", 2)
    try:
        raw = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as fault:
        raise _fail(f"{file} cannot be read: {fault.strerror}.", 2) from None
    outcome = convert_file(raw, known[facility], pretty=pretty, at=datetime.now(UTC).isoformat())
    if outcome.bundle:
        sys.stdout.buffer.write(outcome.bundle + b"\n")
    sys.stdout.buffer.flush()
    sys.stderr.buffer.write(outcome.notes + b"\n")
    raise typer.Exit(outcome.exit_code)


@cli.command()
def watch(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder files are dropped into.")],
    facility: Annotated[str, typer.Option(help="Facility profile id the folder speaks for.")],
    once: Annotated[bool, typer.Option("--once", help="Take what is there, then end.")] = False,
    data: DataDir = None,
    profiles: Profiles = None,
) -> None:
    """Take files into the inbox (HL7 v2, CDA, ECG, DICOM, tables) and move them to done or failed; a running server converts them."""
    from fhir_server.watch import watch_folder  # noqa: PLC0415

    chosen = _settings(data_dir=data, profiles_dir=profiles)
    known = _profiles(chosen)
    if facility not in known:
        raise _fail(f"There is no facility profile '{facility}'. Known: {', '.join(sorted(known))}.", 2)
    try:
        with _database(chosen) as url:
            taken = asyncio.run(watch_folder(folder, known[facility], known, url, chosen, once=once))
    except OSError as fault:
        raise _fail(f"{folder} cannot be used: {fault.strerror or fault}.") from None
    except KeyboardInterrupt:
        return
    typer.echo(f"{taken} files were taken.")


@cli.command()
def replay(
    facility: Annotated[str | None, typer.Option(help="Only messages of this facility.")] = None,
    status: Annotated[str, typer.Option(help="held, or done to convert stored messages again.")] = "held",
    reason: Annotated[str | None, typer.Option(help="Only messages held for this reason (issue key).")] = None,
    message: Annotated[
        list[int] | None, typer.Option("--id", help="Only this inbox id; may be given several times.")
    ] = None,
    since: Annotated[datetime | None, typer.Option(help="Only messages received at or after this time.")] = None,
    unmapped: Annotated[
        bool, typer.Option("--unmapped", help="Stored messages whose codes were decided on in the worklist since.")
    ] = False,
    data: DataDir = None,
) -> None:
    """Put messages back into the queue after a mapping was mended; the running workers convert them again."""
    import psycopg  # noqa: PLC0415

    from fhir_server.ingest.replay import Selection, replay_decided  # noqa: PLC0415
    from fhir_server.ingest.replay import replay as put_back  # noqa: PLC0415

    if status not in ("held", "done"):
        raise _fail("--status is held or done.")
    chosen = _settings(data_dir=data)
    if since is not None and since.tzinfo is None:
        since = since.replace(tzinfo=chosen.zone)
    if unmapped and (reason or message or since or status != "held"):
        raise _fail("--unmapped goes with --facility only.")
    with _database(chosen) as url, psycopg.connect(url) as conn:
        selected = Selection(facility=facility, status=status, reason=reason, ids=tuple(message or ()), since=since)
        count = replay_decided(conn, datetime.now(UTC), facility) if unmapped else put_back(conn, selected)
    typer.echo(f"{count} messages are in the queue again.")


@cli.command()
def backup(
    target: Annotated[Path, typer.Argument(help="A new folder; on another disk, best on another machine.")],
    data: DataDir = None,
) -> None:
    """Back up the database, the keys and the spool while everything goes on running. The folder holds patient data."""
    from fhir_server.store.backup import BackupError, back_up  # noqa: PLC0415

    chosen = _settings(data_dir=data)
    try:
        with _database(chosen, as_it_is=True) as url:
            made = back_up(url, chosen.data_dir, target, datetime.now(UTC))
    except BackupError as fault:
        raise _fail(str(fault)) from None
    typer.echo(f"{sum(made.tables.values())} rows of {len(made.tables)} tables, {made.bytes} bytes in {target}.")


@cli.command()
def restore(
    source: Annotated[Path, typer.Argument(help="A folder that `tongjian backup` made.")],
    data: DataDir = None,
) -> None:
    """Check a backup by its hashes and restore it into a new data folder, or with DATABASE_URL into an empty database."""
    from fhir_server.store.backup import BackupError  # noqa: PLC0415
    from fhir_server.store.backup import restore as bring_back  # noqa: PLC0415

    chosen = _settings(data_dir=data)
    try:
        made = bring_back(source, chosen.data_dir, chosen.database_url)
    except BackupError as fault:
        raise _fail(str(fault)) from None
    typer.echo(f"Restored as of {made.made_at}: {sum(made.tables.values())} rows, schema {made.schema}.")


@cli.command()
def token(
    subject: Annotated[str, typer.Option(help="Who holds it: a user or system name.")] = "console",
    role: Annotated[str, typer.Option(help="clinician, integrator, auditor, administrator or system.")] = "system",
    facility: Annotated[str, typer.Option(help="Facility the holder works for; empty for the consortium.")] = "",
    scope: Annotated[
        list[str] | None, typer.Option(help="SMART scope, e.g. user/*.rs; repeatable (default: all the role may hold).")
    ] = None,
    hours: Annotated[float, typer.Option(min=0.01, max=24 * 366, help="How long it is valid.")] = 12,
    data: DataDir = None,
) -> None:
    """Print a bearer token for the API, signed with the installation's key."""
    from fhir_server.access import issue_token  # noqa: PLC0415
    from fhir_server.keys import AccessError, Keys  # noqa: PLC0415

    chosen = _settings(data_dir=data)
    try:
        keys = Keys.load(chosen.data_dir)
        text = issue_token(
            keys,
            subject=subject,
            role=role,
            facility=facility,
            scopes=tuple(scope or ()),
            ttl=timedelta(hours=hours),
            now=datetime.now(UTC),
        )
    except AccessError as fault:
        raise _fail(str(fault)) from None
    typer.echo(text)


@cli.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
    data: DataDir = None,
    profiles: Profiles = None,
) -> None:
    """Show queue, lag, messages on hold, feeds, workers, sizes and versions. Exit code 1: the database cannot be reached."""
    import psycopg  # noqa: PLC0415

    from fhir_server import status as state  # noqa: PLC0415
    from fhir_server.serve import CannotServe, database  # noqa: PLC0415

    chosen = _settings(data_dir=data, profiles_dir=profiles)
    known = _profiles(chosen)
    try:
        with database(chosen, as_it_is=True) as url, psycopg.connect(url, connect_timeout=10) as conn:
            found = state.read(conn, known, chosen.data_dir)
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
        raise _fail(
            "This database has no tables of this version: start tongjian serve, or run tongjian migrate."
        ) from None
    except (CannotServe, psycopg.Error) as fault:
        raise _fail(f"The state cannot be read: {fault}") from None
    if as_json:
        typer.echo(state.as_json(found))
    else:
        state.show(Console(), found)


def main() -> None:
    """Entry point of the ``tongjian`` command."""
    cli()


if __name__ == "__main__":
    main()
