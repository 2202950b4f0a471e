"""``tongjian map``: the mapping worklist. Proposals are proposals; every mapping is somebody's decision."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import psycopg
import typer
from rich.console import Console
from rich.table import Table

from fhir_server.rules_cli import fail

if TYPE_CHECKING:
    from fhir_server.code_decisions import Decision
    from fhir_server.worklist import Entry
    from mappings.catalogue import Catalogue
    from mappings.profile import Profile

worklist = typer.Typer(no_args_is_help=True, help="Unmapped local codes: proposals, decisions, spreadsheets.")

Data = Annotated[Path | None, typer.Option("--data", help="Folder of the embedded database (default: ./var).")]
Profiles = Annotated[Path | None, typer.Option("--profiles", help="Folder of facility profiles.")]
OneFacility = Annotated[str | None, typer.Option(help="Only this facility.")]
Who = Annotated[str, typer.Option("--by", help="Who decides (default: the user of the system).")]
Kind = Annotated[str, typer.Option(help="code (test), order or unit.")]
Note = Annotated[str, typer.Option(help="Why, for those who read it later.")]


@contextmanager
def _open(data: Path | None, profiles: Path | None) -> Iterator[tuple[psycopg.Connection[Any], Mapping[str, Profile]]]:
    from fhir_server import settings as settings_module  # noqa: PLC0415 - keeps `--help` fast
    from fhir_server.serve import CannotServe, database  # noqa: PLC0415
    from mappings import catalogue  # noqa: PLC0415
    from mappings.profile import ProfileError, load_profiles  # noqa: PLC0415

    try:
        chosen = settings_module.load(data_dir=data, profiles_dir=profiles)
        known = load_profiles(chosen.profiles_dir, catalogue=catalogue.of(chosen.rules_dir))
        with database(chosen) as url, psycopg.connect(url) as conn:
            yield conn, known
    except (settings_module.SettingsError, ProfileError, catalogue.CatalogueError, CannotServe) as fault:
        raise fail(str(fault)) from None
    except psycopg.OperationalError as fault:
        raise fail(f"The database cannot be used: {type(fault).__name__}.") from None


def _catalogue_of(known: Mapping[str, Profile]) -> Catalogue:
    # All profiles stand on one catalogue, and the generic one is always there.
    return next(iter(known.values())).catalogue


@worklist.command("propose")
def propose(
    facility: OneFacility = None,
    kind: Annotated[str | None, typer.Option(help="Only code, order or unit.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many, the most frequent first.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
    data: Data = None,
    profiles: Profiles = None,
) -> None:
    """Show the open codes with name, unit, range, example values and count, and what each may be. Nothing is decided."""
    from conformance import fhirjson  # noqa: PLC0415
    from fhir_server.worklist import entries  # noqa: PLC0415

    _check_kind(kind)
    with _open(data, profiles) as (conn, _):
        found = entries(conn, facility=facility, kind=kind, limit=limit)
    if as_json:
        sys.stdout.buffer.write(fhirjson.dumps([_plain(e) for e in found], pretty=True) + b"\n")
        return
    Console().print(_table(found))
    typer.echo(f"{len(found)} open. Accept one: tongjian map accept FACILITY CODE ITEM")


@worklist.command("accept")
def accept(
    facility: Annotated[str, typer.Argument(help="Facility id.")],
    code: Annotated[str, typer.Argument(help="Local code as sent; '' with --name when there is none; a unit's text.")],
    target: Annotated[str, typer.Argument(help="Item of the catalogue, orderable, or UCUM code.")],
    name: Annotated[str, typer.Option(help="Local name as sent.")] = "",
    kind: Kind = "code",
    valid_from: Annotated[str, typer.Option(help="First day of results it holds for, YYYY-MM-DD.")] = "",
    valid_to: Annotated[str, typer.Option(help="Last day, inclusive.")] = "",
    who: Who = "",
    note: Note = "",
    data: Data = None,
    profiles: Profiles = None,
) -> None:
    """Map a local code. It counts for the next message; `tongjian replay --unmapped` brings it to stored ones."""
    from fhir_server.code_decisions import Decision  # noqa: PLC0415

    if not target:
        raise fail("A target is needed; to say that there is none: tongjian map reject.")
    _decide(data, profiles, [Decision(facility, kind, code, name, target, valid_from, valid_to, note)], who)


@worklist.command("reject")
def reject(
    facility: Annotated[str, typer.Argument(help="Facility id.")],
    code: Annotated[str, typer.Argument(help="Local code as sent; '' with --name when there is none; a unit's text.")],
    name: Annotated[str, typer.Option(help="Local name as sent.")] = "",
    kind: Kind = "code",
    who: Who = "",
    note: Note = "",
    data: Data = None,
    profiles: Profiles = None,
) -> None:
    """Say that a code has no item: it leaves the worklist and stays with its local coding. Takes an accepted mapping back."""
    from fhir_server.code_decisions import Decision  # noqa: PLC0415

    _decide(data, profiles, [Decision(facility, kind, code, name, "", "", "", note)], who)


@worklist.command("export")
def export(
    file: Annotated[Path, typer.Argument(dir_okay=False, help="CSV file to write.")],
    facility: OneFacility = None,
    decisions: Annotated[
        bool, typer.Option("--decisions", help="What was decided, by whom and when, instead.")
    ] = False,
    data: Data = None,
    profiles: Profiles = None,
) -> None:
    """Write the worklist for a spreadsheet: fill in columns decision and target, then import it."""
    from fhir_server import worklist_csv  # noqa: PLC0415
    from fhir_server.code_decisions import history  # noqa: PLC0415
    from fhir_server.worklist import entries  # noqa: PLC0415

    with _open(data, profiles) as (conn, _):
        if decisions:
            said = history(conn, facility=facility)
            raw, count = worklist_csv.write_history(said), len(said)
        else:
            found = entries(conn, facility=facility)
            raw, count = worklist_csv.write(found), len(found)
    try:
        file.write_bytes(raw)
    except OSError as fault:
        raise fail(f"{file} cannot be written: {fault.strerror}.") from None
    typer.echo(f"{count} rows in {file}.")


@worklist.command("import")
def import_(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="CSV file, filled in.")],
    who: Who = "",
    data: Data = None,
    profiles: Profiles = None,
) -> None:
    """Record the decisions of a filled-in file, all or none of them."""
    from fhir_server import worklist_csv  # noqa: PLC0415
    from fhir_server.worklist import sent  # noqa: PLC0415

    with _open(data, profiles) as (conn, known):
        brought = sent(conn)
        try:
            wanted = worklist_csv.read(file.read_bytes(), known, _catalogue_of(known), brought)
        except worklist_csv.CannotImport as fault:
            raise fail(f"{fault}\nNothing was recorded.") from None
        unseen = [repr(d.code) for d in wanted if d.code and (d.facility, d.kind, d.code) not in brought]
        _record(conn, wanted, who)
    if unseen:
        typer.echo(f"No message has brought these codes without a mapping: {', '.join(unseen)}.")


def _decide(data: Path | None, profiles: Path | None, decisions: list[Decision], who: str) -> None:
    from fhir_server.code_decisions import check  # noqa: PLC0415

    for decision in decisions:
        _check_kind(decision.kind)
    with _open(data, profiles) as (conn, known):
        for decision in decisions:
            if wrong := check(decision, known, _catalogue_of(known)):
                raise fail(wrong)
        _record(conn, decisions, who)


def _record(conn: psycopg.Connection[Any], decisions: list[Decision], who: str) -> None:
    from fhir_server.code_decisions import CannotDecide, record  # noqa: PLC0415

    try:
        changed = record(conn, decisions, who or getpass.getuser(), datetime.now(UTC))
    except (CannotDecide, OSError, KeyError) as fault:
        raise fail(str(fault) if isinstance(fault, CannotDecide) else "Who decides? Give --by.") from None
    typer.echo(f"{changed} of {len(decisions)} decisions recorded, for new messages from now on.")
    if changed:
        typer.echo("For stored messages: tongjian replay --unmapped")


def _check_kind(kind: str | None) -> None:
    if kind not in (None, "code", "order", "unit"):
        raise fail("--kind is code, order or unit.")


def _plain(entry: Entry) -> dict[str, Any]:
    out = asdict(entry)
    for key in ("first_seen", "last_seen"):
        out[key] = out[key].isoformat(timespec="seconds")
    return out


def _table(found: list[Entry]) -> Table:
    table = Table(title="Unmapped codes")
    for column in ("facility", "kind", "code", "name", "unit", "range", "examples"):
        table.add_column(column)
    table.add_column("count", justify="right")
    table.add_column("proposals")
    for e in found:
        likely = "\n".join(f"{p.item} {p.name} {p.score:.2f}" for p in e.proposals[:3])
        cells = (e.facility, e.kind, e.code, e.name, *(", ".join(part) for part in (e.units, e.ranges, e.examples)))
        table.add_row(*map(_text, cells), str(e.count), _text(likely))
    return table


def _text(cell: str) -> str:
    """Without what a terminal or rich would obey."""
    from rich.markup import escape  # noqa: PLC0415

    return escape("".join(c if c.isprintable() or c == "\n" else " " for c in cell))
