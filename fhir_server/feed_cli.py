"""``tongjian check``: the score card of a feed from sample files, before it is connected."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import psycopg
import typer
from rich.console import Console

from fhir_server.rules_cli import fail

if TYPE_CHECKING:
    from fhir_server.settings import Settings
    from mappings.profile import Profile

_UNUSABLE = 2


def check(
    files: Annotated[list[Path], typer.Argument(help="Files with one or many HL7 v2 messages, batches, or folders.")],
    facility: Annotated[str, typer.Option(help="Facility profile id; 'generic' needs no profile.")] = "generic",
    profiles: Annotated[Path | None, typer.Option("--profiles", help="Folder of facility profiles.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output instead of tables.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also write the score card as a page of its own.")] = None,
    worklist: Annotated[
        bool, typer.Option("--worklist", help="Use what was accepted in the mapping worklist as well (database).")
    ] = False,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of the embedded database, for --worklist.")
    ] = None,
) -> None:
    """Check sample messages of a feed: structure, fields read, unmapped codes and units, identifiers, times, orders.

    Nothing is stored and no patient's data is printed. Exit code 0: the feed meets the go-live bar (settings golive_*).
    1: it does not. 2: it cannot be checked.
    """
    from fhir_server import feed_check, feed_report  # noqa: PLC0415 - keeps `--help` fast
    from fhir_server import settings as settings_module  # noqa: PLC0415
    from fhir_server.feed_card import judge, meets  # noqa: PLC0415
    from mappings import catalogue  # noqa: PLC0415
    from mappings.profile import ProfileError, load_profiles  # noqa: PLC0415

    try:
        chosen = settings_module.load(data_dir=data, profiles_dir=profiles)
        known = load_profiles(chosen.profiles_dir, catalogue=catalogue.of(chosen.rules_dir))
        if facility not in known:
            raise fail(f"There is no facility profile '{facility}'. Known: {', '.join(sorted(known))}.", _UNUSABLE)
        profile = _with_worklist(chosen, known[facility]) if worklist else known[facility]
        card = feed_check.check(feed_check.paths(files), profile)
    except (settings_module.SettingsError, ProfileError, feed_check.CannotCheck) as fault:
        raise fail(str(fault), _UNUSABLE) from None
    verdicts = judge(card, chosen)
    if html is not None:
        try:
            html.write_bytes(feed_report.as_html(card, verdicts, datetime.now(UTC).astimezone(chosen.zone)))
        except OSError as fault:
            raise fail(f"{html} cannot be written: {fault.strerror}.", _UNUSABLE) from None
    if as_json:
        sys.stdout.buffer.write(feed_report.as_json(card, verdicts))
        sys.stdout.buffer.flush()
    else:
        feed_report.show(Console(), card, verdicts)
    if not meets(card, verdicts):
        raise typer.Exit(1)


def _with_worklist(chosen: Settings, profile: Profile) -> Profile:
    from fhir_server.code_mappings import LiveProfiles  # noqa: PLC0415
    from fhir_server.serve import CannotServe, database  # noqa: PLC0415

    try:
        with database(chosen, as_it_is=True) as url, psycopg.connect(url) as conn:
            live = LiveProfiles({profile.id: profile})
            live.refresh(conn)
            return live[profile.id]
    except (CannotServe, psycopg.Error) as fault:
        raise fail(f"The worklist cannot be read: {type(fault).__name__}.", _UNUSABLE) from None
