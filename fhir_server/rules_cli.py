"""``tongjian rules``: try rules out before they go live."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

rules = typer.Typer(no_args_is_help=True, help="Test, exchange and try out the recognition rules.")
err = Console(stderr=True, soft_wrap=True)

Folder = Annotated[
    Path | None, typer.Option("--rules", help="Rules folder, laid over the shipped rules.", file_okay=False)
]


def fail(text: str, code: int = 1) -> typer.Exit:
    """Prints a fault; raise what it returns."""
    err.print(text, style="red", markup=False)
    return typer.Exit(code)


@rules.command("test")
def test(
    files: Annotated[list[Path], typer.Argument(help="Case files (YAML), or folders of them.")],
    folder: Folder = None,
    only: Annotated[str, typer.Option("--case", help="Only the case with this id.")] = "",
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print every case, with the sentence for the clinician.")
    ] = False,
) -> None:
    """Run decision cases and print what differs. Exit code 0: all as expected. 1: some differ. 2: a file cannot be used."""
    from fhir_server.recognition.case_file import CaseError, load_what_can_be  # noqa: PLC0415 - keeps `--help` fast
    from fhir_server.recognition.case_run import run  # noqa: PLC0415

    paths = [p for f in files for p in (sorted([*f.glob("*.yaml"), *f.glob("*.yml")]) if f.is_dir() else [f])]
    done = failed = 0
    faulty = False
    for path in paths:
        try:
            found = load_what_can_be(path)
        except CaseError as fault:
            err.print(str(fault), style="red", markup=False)
            faulty = True
            continue
        for problem in found.problems:
            err.print(problem, style="red", markup=False)
            faulty = True
        for case in found.cases:
            if only and case.id != only:
                continue
            try:
                result = run(case, path, folder, found.lines[case.id])
            except CaseError as fault:
                err.print(str(fault), style="red", markup=False)
                faulty = True
                continue
            done += 1
            failed += bool(result.differs)
            for line in result.differs:
                typer.echo(f"{path}: case {case.id}: {line}")
            if verbose or result.differs:
                for note in result.notes:
                    typer.echo(f"  note: {note}")
            if verbose and not result.differs and result.decision is not None:
                typer.echo(f"{path}: case {case.id}: {result.decision.outcome.value}, as expected")
    typer.echo(f"{done} cases, {failed} differ." if done or not faulty else "No case could be run.")
    if not done and not faulty:
        raise fail("There is no case to run.", 2)
    if faulty or failed:
        raise typer.Exit(2 if faulty else 1)


@rules.command("export")
def export(
    target: Annotated[Path, typer.Argument(help="Folder to write to.", file_okay=False)],
    form: Annotated[
        str, typer.Option("--format", help="csv (all files of the rules) or fhir (catalogue as R4 resources).")
    ] = "csv",
    folder: Folder = None,
) -> None:
    """Write the rules as files: catalogue, orderables, marks, quality assessment and policies, or the catalogue as FHIR."""
    from fhir_server.rules_exchange import export_fhir, export_files  # noqa: PLC0415
    from mappings.catalogue import DIRECTORY, CatalogueError  # noqa: PLC0415

    if form not in ("csv", "fhir"):
        raise fail("--format is csv or fhir.", 2)
    try:
        names = (export_files if form == "csv" else export_fhir)(folder or DIRECTORY, target)
    except (OSError, CatalogueError) as fault:
        raise fail(str(fault), 2) from None
    typer.echo(f"{len(names)} files in {target}.")


@rules.command("import")
def take_in(
    source: Annotated[Path, typer.Argument(help="Folder with changed files.", file_okay=False, exists=True)],
    target: Annotated[Path, typer.Argument(help="Folder of the new rules.", file_okay=False)],
    folder: Folder = None,
) -> None:
    """Check changed rule files over the present rules and write the whole to a new folder; every fault is named with file and line."""
    from fhir_server.recognition.rules import RulesError  # noqa: PLC0415
    from fhir_server.rules_exchange import import_files  # noqa: PLC0415
    from mappings.catalogue import DIRECTORY, CatalogueError  # noqa: PLC0415
    from mappings.sensitive import SensitiveError  # noqa: PLC0415

    try:
        version = import_files(source, target, folder or DIRECTORY)
    except (RulesError, CatalogueError, SensitiveError) as fault:
        raise fail(str(fault)) from None
    typer.echo(f"Rules {version} in {target}.")


@rules.command("simulate")
def simulate(
    new: Annotated[Path, typer.Option("--rules", help="Folder of the new rules.", file_okay=False, exists=True)],
    start: Annotated[datetime, typer.Option("--from", help="First day of the period.")],
    end: Annotated[datetime, typer.Option("--to", help="End of the period, exclusive.")],
    form: Annotated[
        str, typer.Option("--format", help="table or csv (one line for each order that changes).")
    ] = "table",
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of the embedded database (default: ./var).")
    ] = None,
    profiles: Annotated[Path | None, typer.Option("--profiles", help="Folder of facility profiles.")] = None,
) -> None:
    """Show what new rules would have changed on past orders, before they go live; nothing is written."""
    from fhir_server import settings as settings_module  # noqa: PLC0415
    from fhir_server.recognition import rules as rules_module  # noqa: PLC0415
    from fhir_server.recognition import simulate as dry_run  # noqa: PLC0415
    from fhir_server.serve import database  # noqa: PLC0415
    from mappings import catalogue  # noqa: PLC0415
    from mappings.profile import ProfileError, load_profiles  # noqa: PLC0415

    if form not in ("table", "csv"):
        raise fail("--format is table or csv.", 2)
    try:
        chosen = settings_module.load(data_dir=data, profiles_dir=profiles)
        known = load_profiles(chosen.profiles_dir, catalogue=catalogue.of(chosen.rules_dir))
        old, wanted = rules_module.load(chosen.rules_dir), rules_module.load(new)
    except (settings_module.SettingsError, ProfileError, catalogue.CatalogueError, rules_module.RulesError) as fault:
        raise fail(str(fault)) from None
    period = [t if t.tzinfo else t.replace(tzinfo=chosen.zone) for t in (start, end)]
    if period[0] >= period[1]:
        raise fail("--to must be later than --from.", 2)
    with database(chosen) as url:
        found = asyncio.run(dry_run.simulate(url, old, wanted, known, period[0], period[1]))
    typer.echo(dry_run.as_csv(found.changed) if form == "csv" else "\n".join(dry_run.lines(found)) + "\n", nl=False)
