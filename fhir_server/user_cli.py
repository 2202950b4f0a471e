"""``tongjian user``: accounts of people who log in at the built-in authorization server."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Annotated

import typer

from fhir_server.audit_cli import DataDir, connected, fail, settings

user = typer.Typer(no_args_is_help=True, help="People who may log in: accounts of the built-in authorization server.")

Subject = Annotated[str, typer.Argument(help="Log-in name.")]


def _password() -> str:
    if sys.stdin.isatty():
        return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))
    return sys.stdin.readline().rstrip("\n")


@user.command("add")
def add(
    subject: Subject,
    role: Annotated[str, typer.Option(help="clinician, integrator, auditor or administrator.")],
    facility: Annotated[str, typer.Option(help="Facility id; empty: the consortium.")] = "",
    name: Annotated[str, typer.Option(help="Name shown.")] = "",
    scope: Annotated[list[str] | None, typer.Option(help="SMART scope he may give an app; may be repeated.")] = None,
    fhir_user: Annotated[
        str, typer.Option("--fhir-user", help="Resource that stands for him, Practitioner/<id>: the claim fhirUser.")
    ] = "",
    totp: Annotated[bool, typer.Option(help="One-time passwords; prints the address for the app of the phone.")] = True,
    data: DataDir = None,
) -> None:
    """Add an account. The password is asked for, or read from the first line of standard input."""
    import pyotp  # noqa: PLC0415

    from fhir_server.accounts import Account, AccountError  # noqa: PLC0415
    from fhir_server.accounts import add as put  # noqa: PLC0415
    from fhir_server.keys import AccessError  # noqa: PLC0415

    secret = pyotp.random_base32() if totp else ""
    account = Account(subject, name, facility, role, " ".join(scope or []), "", secret, 0, 0, None, True, fhir_user)
    password = _password()
    try:
        with connected(settings(data_dir=data)) as (_, conn):
            put(conn, account, password, datetime.now(UTC))
    except (AccountError, AccessError) as fault:
        raise fail(str(fault)) from None
    typer.echo(
        pyotp.TOTP(secret).provisioning_uri(name=subject, issuer_name="Tongjian") if secret else f"{subject}: added"
    )


@user.command("list")
def accounts(data: DataDir = None) -> None:
    """All accounts, as tab-separated lines: name, role, facility, one-time password, state."""
    with connected(settings(data_dir=data)) as (_, conn):
        for row in conn.execute(
            "SELECT subject, role, facility, CASE WHEN totp = '' THEN 'no-totp' ELSE 'totp' END,"
            " CASE WHEN NOT active THEN 'locked' WHEN locked_until > now() THEN 'locked-out' ELSE 'active' END"
            " FROM account ORDER BY subject"
        ):
            typer.echo("\t".join(map(str, row)))


@user.command("password")
def password(subject: Subject, data: DataDir = None) -> None:
    """Set a new password; ends his refresh tokens."""
    from fhir_server.accounts import AccountError, set_password  # noqa: PLC0415

    try:
        with connected(settings(data_dir=data)) as (_, conn):
            set_password(conn, subject, _password())
    except AccountError as fault:
        raise fail(str(fault)) from None
    typer.echo(f"{subject}: password set")


@user.command("lock")
def lock(subject: Subject, data: DataDir = None) -> None:
    """Lock an account until it is unlocked; ends his refresh tokens."""
    _set(subject, False, data)


@user.command("unlock")
def unlock(subject: Subject, data: DataDir = None) -> None:
    """Unlock an account, and end a lock-out after wrong passwords."""
    _set(subject, True, data)


def _set(subject: str, active: bool, data: DataDir) -> None:
    from fhir_server.accounts import AccountError, set_active  # noqa: PLC0415

    try:
        with connected(settings(data_dir=data)) as (_, conn):
            set_active(conn, subject, active)
    except AccountError as fault:
        raise fail(str(fault)) from None
    typer.echo(f"{subject}: {'unlocked' if active else 'locked'}")
