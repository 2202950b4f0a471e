"""``tongjian export``: flat result rows and what an audit needs beside them, as Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fhir_server.audit_cli import DataDir, From, To, connected, fail, period, settings


def export(
    start: From,
    end: To,
    parquet: Annotated[Path, typer.Option("--parquet", help="Folder to write the Parquet files to; empty or new.")],
    sensitive: Annotated[
        bool, typer.Option("--sensitive", help="Also items whose results need a grant to be seen (HIV, syphilis ...).")
    ] = False,
    words: Annotated[
        bool, typer.Option("--words", help="Also long texts of results, which may say who somebody is.")
    ] = False,
    data: DataDir = None,
    profiles: Annotated[Path | None, typer.Option("--profiles", help="Folder of facility profiles.")] = None,
) -> None:
    """Write the flat results, and the orders of a period, as pseudonymised Parquet files; `tongjian audit --parquet` reads them."""
    from fhir_server.duplicates import parquet as files  # noqa: PLC0415 - keeps `--help` fast
    from fhir_server.recognition import rules  # noqa: PLC0415
    from fhir_server.recognition.rules import RulesError  # noqa: PLC0415
    from mappings import catalogue  # noqa: PLC0415
    from mappings.catalogue import CatalogueError  # noqa: PLC0415
    from mappings.profile import ProfileError, load_profiles  # noqa: PLC0415

    chosen = settings(data_dir=data, profiles_dir=profiles)
    wanted = files.Wanted(*period(chosen, start, end), sensitive, words)
    try:
        known = load_profiles(chosen.profiles_dir, catalogue=catalogue.of(chosen.rules_dir))
        with connected(chosen) as (_, conn):
            written = files.export(conn, rules.load(chosen.rules_dir), known, wanted, parquet)
    except (ProfileError, RulesError, CatalogueError, OSError) as fault:
        raise fail(str(fault)) from None
    typer.echo(f"{parquet}: " + ", ".join(f"{count} {name}" for name, count in written.items()))
