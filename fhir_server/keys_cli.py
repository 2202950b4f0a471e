"""``tongjian keys``: the keys that tokens are signed with. A running server takes up what changes within a second."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from fhir_server.audit_cli import DataDir, fail, settings

keys = typer.Typer(no_args_is_help=True, help="Keys that tokens are signed with.")


@keys.command("list")
def shown(data: DataDir = None) -> None:
    """The keys, oldest first, as tab-separated lines: id, algorithm, made at, and what it does."""
    from fhir_server.keys import ID_ALGORITHM, LONGEST, AccessError, listed  # noqa: PLC0415

    try:
        found = listed(settings(data_dir=data).data_dir)
    except FileNotFoundError:
        raise fail("There are no keys yet; the first start of the server makes one.") from None
    except (AccessError, OSError) as fault:
        raise fail(str(fault)) from None
    for key in found:
        signs = "signs id tokens" if key.algorithm == ID_ALGORITHM else "signs access tokens"
        state = signs if key.replaced is None else f"checks older tokens, until {_day(key.replaced + LONGEST)} at most"
        typer.echo(f"{key.kid}\t{key.algorithm}\t{_day(key.created)}\t{state}")


@keys.command("rotate")
def rotated(
    algorithm: Annotated[
        str, typer.Option(help="ES256, ES384 or RS384 for access tokens; RS256: the key of id tokens.")
    ] = "ES256",
    data: DataDir = None,
) -> None:
    """Make a new signing key. Tokens signed before stay good until they end; both keys are published."""
    from fhir_server.keys import AccessError, rotate  # noqa: PLC0415

    try:
        kid = rotate(settings(data_dir=data).data_dir, datetime.now(UTC), algorithm)
    except (AccessError, OSError) as fault:
        raise fail(str(fault)) from None
    typer.echo(f"{kid} signs from now on.")


@keys.command("retire")
def retired(
    kid: Annotated[str, typer.Argument(help="Id of a key that was replaced.")],
    data: DataDir = None,
) -> None:
    """Take a replaced key away at once, when it may be known to others: tokens it signed end."""
    from fhir_server.keys import AccessError, retire  # noqa: PLC0415

    try:
        retire(settings(data_dir=data).data_dir, kid)
    except (AccessError, OSError) as fault:
        raise fail(str(fault)) from None
    typer.echo(f"{kid} is no longer accepted.")


def _day(at: datetime | None) -> str:
    return "unknown" if at is None else at.date().isoformat()
