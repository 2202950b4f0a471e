"""``tongjian audit`` and ``tongjian review``: the duplicate audit, and the review of its cases by people."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    import psycopg

    from fhir_server.duplicates.report import Report, Scope
    from fhir_server.settings import Settings

err = Console(stderr=True, soft_wrap=True)
review = typer.Typer(no_args_is_help=True, help="Case review of the findings of the duplicate audit.")

DataDir = Annotated[
    Path | None, typer.Option("--data", help="Folder of the embedded database and the keys (default: ./var).")
]
From = Annotated[datetime, typer.Option("--from", help="First day of the period.")]
To = Annotated[datetime, typer.Option("--to", help="End of the period, exclusive.")]
Facility = Annotated[str, typer.Option(help="Only orders of this facility.")]
Department = Annotated[str, typer.Option(help="Only orders of this department, as the orders name it.")]
Doctor = Annotated[str, typer.Option(help="Only orders of this doctor (staff number).")]
Item = Annotated[str, typer.Option(help="Only this orderable, or orderables that require this catalogue item.")]
Format = Annotated[str, typer.Option("--format", help="table, csv, xlsx or json.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="File to write to (default: standard output).")]
By = Annotated[str, typer.Option(help="Name of the reviewer.")]
Words = Annotated[str, typer.Option(help="The grounds, 1 to 2000 characters.")]
Finding = Annotated[str, typer.Argument(help="Id of the finding.")]


def fail(text: str, code: int = 1) -> typer.Exit:
    """Prints a fault; raise what it returns."""
    err.print(text, style="red", markup=False)
    return typer.Exit(code)


def settings(**given: object) -> Settings:
    """The settings, or an end with the fault named."""
    from fhir_server import settings as settings_module  # noqa: PLC0415 - keeps `--help` fast

    try:
        return settings_module.load(**given)
    except settings_module.SettingsError as fault:
        raise fail(str(fault)) from None


@contextmanager
def connected(chosen: Settings) -> Iterator[tuple[str, psycopg.Connection[Any]]]:
    """Address of the installation's database and a connection to it; faults of ours end with a sentence."""
    import psycopg  # noqa: PLC0415

    from fhir_server.errors import Fault  # noqa: PLC0415
    from fhir_server.serve import CannotServe, database  # noqa: PLC0415

    try:
        with database(chosen) as url, psycopg.connect(url) as conn:
            yield url, conn
    except CannotServe as fault:
        raise fail(str(fault)) from None
    except Fault as fault:
        raise fail(fault.text) from None


def period(chosen: Settings, start: datetime, end: datetime) -> tuple[datetime, datetime]:
    """Aware times: without a zone they are local."""
    aware = [t if t.tzinfo else t.replace(tzinfo=chosen.zone) for t in (start, end)]
    if aware[1] <= aware[0]:
        raise fail("--to is not after --from; the period is empty.", 2)
    return aware[0], aware[1]


def write(found: str | bytes, output: Path | None) -> None:
    """To a file, else to standard output."""
    data = found.encode() if isinstance(found, str) else found
    if output is not None:
        output.write_bytes(data)
        return
    if isinstance(found, bytes) and sys.stdout.isatty():
        raise fail("A workbook is not for a terminal: name a file with --output.", 2)
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def audit(
    start: From,
    end: To,
    facility: Facility = "",
    department: Department = "",
    doctor: Doctor = "",
    item: Item = "",
    form: Format = "table",
    output: Output = None,
    keep: Annotated[bool, typer.Option(help="Keep the findings for review, measures and the API.")] = True,
    cases: Annotated[
        str,
        typer.Option(
            help="Instead of counts the orders behind one: orders, repeats, avoidable, justified, undetermined, system, partial,"
            " not-understood. Nothing is kept."
        ),
    ] = "",
    processes: Annotated[int, typer.Option(min=1, max=64, help="Processes to share the work among.")] = 1,
    parquet: Annotated[
        Path | None, typer.Option("--parquet", help="Audit an export of `tongjian export` instead; nothing is kept.")
    ] = None,
    data: DataDir = None,
    profiles: Annotated[Path | None, typer.Option("--profiles", help="Folder of facility profiles.")] = None,
) -> None:
    """Duplicate audit: which repeats of a period were avoidable, by the same rules as the order-time answer."""
    from fhir_server.duplicates import detect, findings  # noqa: PLC0415
    from fhir_server.duplicates.cases import FIGURES  # noqa: PLC0415
    from fhir_server.duplicates.report import EVERYTHING, Scope  # noqa: PLC0415
    from fhir_server.recognition.rules import RulesError  # noqa: PLC0415
    from mappings.catalogue import CatalogueError  # noqa: PLC0415
    from mappings.profile import ProfileError  # noqa: PLC0415

    if form not in ("table", "csv", "xlsx", "json"):
        raise fail("--format is table, csv, xlsx or json.", 2)
    if cases and cases not in FIGURES:
        raise fail(f"--cases is {', '.join(FIGURES)}.", 2)
    chosen = settings(data_dir=data, profiles_dir=profiles)
    first, last = period(chosen, start, end)
    scope = Scope(facility, department, doctor, item)
    try:
        if parquet is not None:
            _print(_of_parquet(parquet, chosen, first, last, scope, bool(cases)), form, output, cases)
            return
        with connected(chosen) as (url, conn):
            folders = (chosen.profiles_dir, chosen.rules_dir)
            found = detect.audit_at(url, *folders, first, last, scope, processes, cases=bool(cases))
            if keep and not cases:
                findings.keep(conn, found, datetime.now(UTC))
    except (ProfileError, RulesError, CatalogueError) as fault:
        raise fail(str(fault)) from None
    if scope != EVERYTHING and not found.rows and not found.not_understood:
        # Nothing found is read as no repeats; a filter spelt wrong finds nothing as well.
        typer.echo(
            "No order of the period is inside the filters. Check their spelling: --facility is the id of a profile, --item a code of"
            " the catalogue, --doctor and --department are as the sender writes them (number or code before name).",
            err=True,
        )
    _print(found, form, output, cases)


def _of_parquet(folder: Path, chosen: Settings, start: datetime, end: datetime, scope: Scope, cases: bool) -> Report:
    from fhir_server.duplicates import lake  # noqa: PLC0415
    from fhir_server.recognition import rules  # noqa: PLC0415
    from mappings import catalogue  # noqa: PLC0415
    from mappings.profile import load_profiles  # noqa: PLC0415

    profiles = load_profiles(chosen.profiles_dir, catalogue=catalogue.of(chosen.rules_dir))
    try:
        return lake.audit(lake.Duck(), folder, rules.load(chosen.rules_dir), profiles, start, end, scope, cases=cases)
    except lake.NotAnExport as fault:
        raise fail(str(fault)) from None


def _print(found: Report, form: str, output: Path | None, figure: str) -> None:
    from fhir_server.duplicates import report  # noqa: PLC0415

    if figure:
        _print_cases(found, form, output, figure)
        return
    if form == "table" and output is None:
        Console().print(report.table(found))
        return
    if form == "xlsx":
        write(report.as_xlsx(found), output)
    elif form == "json":
        write(report.as_json(found), output)
    else:
        write(report.as_csv(found) if form == "csv" else report.as_text(found), output)


def _print_cases(found: Report, form: str, output: Path | None, figure: str) -> None:
    from conformance import fhirjson  # noqa: PLC0415
    from fhir_server.duplicates import cases  # noqa: PLC0415

    counted = cases.of(figure, found.cases)
    if form == "xlsx":
        write(cases.as_xlsx(counted), output)
    elif form == "json":
        write(fhirjson.dumps([cases.as_dict(c) for c in counted], pretty=True).decode() + "\n", output)
    elif form == "csv" or output is not None:
        write(cases.as_csv(counted), output)
    else:
        named = ("at", "facility", "doctor", "name", "kind", "cause", "order")
        _tabulate(named, ([str(cases.as_dict(c)[n]) for n in named] for c in counted))


@review.command("sample")
def sample(
    start: From,
    end: To,
    size: Annotated[int, typer.Option(min=1, help="How many findings are drawn.")],
    seed: Annotated[str, typer.Option(help="The lot: the same seed draws the same findings.")],
    by: By,
    kind: Annotated[str, typer.Option(help="Only this kind of finding.")] = "",
    facility: Facility = "",
    department: Department = "",
    doctor: Doctor = "",
    item: Item = "",
    data: DataDir = None,
) -> None:
    """Draw findings by lot for review; prints their ids."""
    from fhir_server.duplicates import review as steps  # noqa: PLC0415
    from fhir_server.duplicates.findings import Wanted  # noqa: PLC0415
    from fhir_server.duplicates.report import Scope  # noqa: PLC0415

    chosen = settings(data_dir=data)
    first, last = period(chosen, start, end)
    wanted = Wanted(first, last, Scope(facility, department, doctor, item), kind, limit=1_000_000)
    with connected(chosen) as (_, conn):
        drawn = steps.sample(conn, wanted, size, seed, steps.Reviewer(by), datetime.now(UTC))
    typer.echo("\n".join(drawn))


@review.command("list")
def waiting(facility: Facility = "", data: DataDir = None) -> None:
    """Findings drawn or appealed against that wait for a verdict, as tab-separated lines."""
    from fhir_server.duplicates import review as steps  # noqa: PLC0415

    with connected(settings(data_dir=data)) as (_, conn):
        for found in steps.waiting(conn, facility):
            typer.echo("\t".join(str(found[k]) for k in ("id", "step", "kind", "cause", "facility", "at")))


@review.command("show")
def show(finding: Finding, data: DataDir = None) -> None:
    """One finding with all its versions and the steps of its review, as JSON."""
    from conformance import fhirjson  # noqa: PLC0415
    from fhir_server.duplicates import findings  # noqa: PLC0415
    from fhir_server.duplicates import review as steps  # noqa: PLC0415

    with connected(settings(data_dir=data)) as (_, conn):
        versions, line = findings.versions(conn, finding), steps.steps(conn, finding)
    if not versions:
        raise fail("There is no finding of that id.")
    content = {"finding": versions[-1], "versions": versions, "review": line, **steps.state(line)}
    typer.echo(fhirjson.dumps(content, pretty=True).decode())


@review.command("verdict")
def verdict(
    finding: Finding,
    found: Annotated[str, typer.Argument(help="avoidable, justified, undetermined or system.")],
    by: By,
    text: Words,
    data: DataDir = None,
) -> None:
    """Record what a reviewer found, with the grounds."""
    from fhir_server.duplicates import review as steps  # noqa: PLC0415

    with connected(settings(data_dir=data)) as (_, conn):
        steps.judge(conn, finding, found, text, steps.Reviewer(by), datetime.now(UTC))
    typer.echo(f"{finding}: {found}")


@review.command("appeal")
def appeal(
    finding: Finding,
    by: By,
    text: Words,
    facility: Annotated[str, typer.Option(help="The facility that appeals.")],
    data: DataDir = None,
) -> None:
    """Record an appeal of the audited facility; it waits for another verdict."""
    from fhir_server.duplicates import review as steps  # noqa: PLC0415

    with connected(settings(data_dir=data)) as (_, conn):
        steps.appeal(conn, finding, text, steps.Reviewer(by, facility), datetime.now(UTC))
    typer.echo(f"{finding}: appealed")


def measures(
    start: From,
    end: To,
    by: Annotated[str, typer.Option(help="Rows by facility, department, doctor or item.")] = "facility",
    form: Annotated[str, typer.Option("--format", help="table, csv, xlsx, json or fhir.")] = "csv",
    trend: Annotated[bool, typer.Option("--trend", help="Also each calendar month (table, xlsx, json).")] = False,
    output: Output = None,
    data: DataDir = None,
) -> None:
    """How much is recognized in a period: three rates with named denominators, and savings in fen."""
    from conformance import fhirjson  # noqa: PLC0415
    from fhir_server.duplicates import measure_report as shown  # noqa: PLC0415
    from fhir_server.recognition import measures as figures  # noqa: PLC0415
    from fhir_server.recognition import rules  # noqa: PLC0415

    named = next((d for d in figures.DIMENSIONS if d == by), None)
    if named is None or form not in ("table", "csv", "xlsx", "json", "fhir"):
        raise fail("--by is facility, department, doctor or item; --format is table, csv, xlsx, json or fhir.", 2)
    chosen = settings(data_dir=data)
    first, last = period(chosen, start, end)
    with connected(chosen) as (_, conn):
        known = rules.load(chosen.rules_dir)
        found = figures.measure(conn, known, first, last, datetime.now(UTC), (named,))
        months = shown.trend(conn, known, found, chosen.zone) if trend else None
    if form == "xlsx":
        write(shown.as_xlsx(found, months or ()), output)
    elif form == "table":
        _tabulate(figures.columns(found), figures.lines(found))
        if months:
            lines = [figures.lines(replace(found, by=(), total=c, rows=()))[0] for _, c in months]
            _tabulate(
                ["month", *figures.columns(found)[1:]], [[m, *x] for (m, _), x in zip(months, lines, strict=True)]
            )
    elif form == "fhir":
        write(fhirjson.dumps(shown.as_fhir(found), pretty=True).decode() + "\n", output)
    else:
        write(figures.as_csv(found) if form == "csv" else shown.as_json(found, months), output)


def _tabulate(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(*header)
    for line in lines:
        table.add_row(*("" if cell is None else str(cell) for cell in line))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
