"""``tongjian rules``: try rules out before they go live."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

rules = typer.Typer(no_args_is_help=True, help="Test, exchange and try out the recognition rules.")
err = Console(stderr=True, soft_wrap=True)

Folder = Annotated[
    Path | None, typer.Option("--rules", help="Rules folder (default: the shipped one).", file_okay=False)
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
    from fhir_server.recognition.case_file import CaseError, load  # noqa: PLC0415 - keeps `--help` fast
    from fhir_server.recognition.case_run import run  # noqa: PLC0415

    paths = [p for f in files for p in (sorted([*f.glob("*.yaml"), *f.glob("*.yml")]) if f.is_dir() else [f])]
    done = failed = 0
    faulty = False
    for path in paths:
        try:
            cases = load(path).cases
        except CaseError as fault:
            err.print(str(fault), style="red", markup=False)
            faulty = True
            continue
        for case in cases:
            if only and case.id != only:
                continue
            try:
                result = run(case, path, folder)
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
