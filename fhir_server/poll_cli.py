"""``tongjian poll``: new and changed reports of facilities' databases (docs/connect-database.md)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

err = Console(stderr=True, soft_wrap=True)


def fail(text: str) -> typer.Exit:
    """Prints a fault; raise what it returns."""
    err.print(text, style="red", markup=False)
    return typer.Exit(1)


def poll(
    facility: Annotated[str, typer.Option(help="Only the polls of this facility.")] = "",
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether the columns of the profiles are there; nothing is stored.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="Take what is new, then end.")] = False,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of the embedded database and the keys (default: ./var).")
    ] = None,
    profiles: Annotated[
        Path | None, typer.Option("--profiles", help="Folder of facility profiles (default: the shipped ones).")
    ] = None,
    attached: Annotated[
        bool, typer.Option("--attached", hidden=True, help="End when standard input closes (a child of `serve`).")
    ] = False,
) -> None:
    """Poll the databases that profiles name (`polls`) into the inbox; a running server converts what comes."""
    from fhir_server import poll as part  # noqa: PLC0415
    from fhir_server import settings, telemetry  # noqa: PLC0415 - keeps `--help` fast
    from fhir_server.ingest import databases  # noqa: PLC0415
    from fhir_server.serve import CannotServe, database  # noqa: PLC0415
    from mappings import catalogue  # noqa: PLC0415
    from mappings.profile import ProfileError, load_profiles  # noqa: PLC0415

    try:
        chosen = settings.load(data_dir=data, profiles_dir=profiles)
        known = load_profiles(chosen.profiles_dir, catalogue=catalogue.of(chosen.rules_dir))
        polls = list(part.chosen_polls(known, databases.load(chosen.databases_file), facility))
        if check:
            for profile, one, address in polls:
                typer.echo("\n".join(part.examine(profile, one, address)))
            return
        telemetry.configure(chosen.log_level)
        with database(chosen, as_it_is=attached) as url:
            if once:
                typer.echo(f"{asyncio.run(part.look_once(iter(polls), url, chosen))} messages were stored.")
            else:
                asyncio.run(part.poll_databases(iter(polls), url, chosen, attached=attached))
    except (ProfileError, catalogue.CatalogueError, databases.DatabasesError, CannotServe, part.NothingToPoll) as fault:
        raise fail(str(fault)) from None
    except settings.SettingsError as fault:
        raise fail(str(fault)) from None
    except part.PollFault as fault:
        raise fail(fault.words) from None
