"""Accounts of the built-in authorization server: people, their facility, role and scopes, Argon2 passwords, lock-out, TOTP.

Argon2id by argon2-cffi with its defaults (RFC 9106), one-time passwords by pyotp (RFC 6238, 30 s). Pure rules over rows of the table
``account``; the clock is an argument.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import psycopg
import pyotp
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from psycopg.rows import class_row

from fhir_server.access import check_scopes, default_scopes

MOST_FAILURES: Final = 5
LOCKED_FOR: Final = timedelta(minutes=15)
SHORTEST: Final = 12
"""Characters of a password (GB/T 22239-2019 8.1.4.1 asks for complexity; length gives more of it)."""
_HASHER: Final = PasswordHasher()
# Verified for a name nobody has, so that the answer takes as long.
_NOBODY: Final = _HASHER.hash("nobody's password")
_STEP: Final = 30
_FHIR_USER: Final = re.compile(r"(Practitioner|PractitionerRole|Person)/[A-Za-z0-9\-.]{1,64}")


class AccountError(ValueError):
    """An account that cannot be made or changed; the text says what to change."""


@dataclass(frozen=True, slots=True)
class Account:
    """A person: subject (log-in name), name shown, facility id, role, scopes he may grant, hash of the password, TOTP secret (empty:
    none), the time step of the last one-time password used, failures since the last success, locked until, whether it is in use, and
    the resource that stands for him (``Practitioner/<id>``; empty: none)."""

    subject: str
    name: str
    facility: str
    role: str
    scopes: str
    password: str
    totp: str
    totp_step: int
    failures: int
    locked_until: datetime | None
    active: bool
    fhir_user: str = ""


def add(conn: psycopg.Connection[Any], account: Account, password: str, now: datetime) -> None:
    """Adds an account. Raises AccountError for a password too short, an unknown role, a scope it may not hold, a name taken."""
    if not account.subject or len(account.subject) > 100:
        raise AccountError("a log-in name has 1 to 100 characters")
    check_scopes(account.role, frozenset(account.scopes.split()) or default_scopes(account.role))
    if account.fhir_user and not _FHIR_USER.fullmatch(account.fhir_user):
        raise AccountError("the resource of a person is Practitioner/<id>, PractitionerRole/<id> or Person/<id>")
    row = conn.execute(
        "INSERT INTO account (subject, name, facility, role, scopes, password, totp, totp_step, failures, active, created, fhir_user)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, 0, 0, true, %s, %s) ON CONFLICT DO NOTHING RETURNING subject",
        [
            *(account.subject, account.name, account.facility, account.role, account.scopes),
            *(hashed(password), account.totp, now, account.fhir_user),
        ],
    ).fetchone()
    if row is None:
        raise AccountError(f"there is an account {account.subject} already")


def hashed(password: str) -> str:
    """Argon2id hash of a new password. Raises AccountError when it is too short."""
    if len(password) < SHORTEST:
        raise AccountError(f"a password has at least {SHORTEST} characters")
    return _HASHER.hash(password)


def log_in(conn: psycopg.Connection[Any], subject: str, password: str, code: str, now: datetime) -> Account | None:
    """The account when name, password and one-time password are right and it is not locked; None for anything else, without saying
    which. Failures count, the fifth in a row locks for 15 minutes; a one-time password is good once."""
    with conn.cursor(row_factory=class_row(Account)) as cursor:
        found = cursor.execute(
            "SELECT subject, name, facility, role, scopes, password, totp, totp_step, failures, locked_until, active, fhir_user"
            " FROM account WHERE subject = %s FOR UPDATE",
            [subject],
        ).fetchone()
    right = _verified(found.password if found else _NOBODY, password)
    if found is None or not found.active or (found.locked_until is not None and found.locked_until > now):
        return None
    step = _step_of(found, code, now)
    if not right or step is None:
        failures = found.failures + 1
        locked = now + LOCKED_FOR if failures >= MOST_FAILURES else None
        conn.execute(
            "UPDATE account SET failures = %s, locked_until = %s WHERE subject = %s",
            [0 if locked else failures, locked, subject],
        )
        return None
    conn.execute(
        "UPDATE account SET failures = 0, locked_until = NULL, totp_step = %s WHERE subject = %s", [step, subject]
    )
    if _HASHER.check_needs_rehash(found.password):
        conn.execute("UPDATE account SET password = %s WHERE subject = %s", [_HASHER.hash(password), subject])
    return found


def _verified(known: str, password: str) -> bool:
    try:
        return _HASHER.verify(known, password)
    except (VerificationError, InvalidHashError):
        return False


def _step_of(account: Account, code: str, now: datetime) -> int | None:
    """The time step of a good one-time password, later than the last used; the last used when none is needed; else None."""
    if not account.totp:
        return account.totp_step
    totp, at = pyotp.TOTP(account.totp), int(now.timestamp()) // _STEP
    for step in (at - 1, at, at + 1):
        if step > account.totp_step and pyotp.utils.strings_equal(totp.at(step * _STEP), code.strip()):
            return step
    return None


def set_active(conn: psycopg.Connection[Any], subject: str, active: bool) -> None:
    """Locks an account for good, or opens it again (which also ends a lock-out); its refresh tokens end. Raises AccountError."""
    row = conn.execute(
        "UPDATE account SET active = %s, failures = 0, locked_until = NULL WHERE subject = %s RETURNING subject",
        [active, subject],
    ).fetchone()
    if row is None:
        raise AccountError(f"there is no account {subject}")
    conn.execute("DELETE FROM login_grant WHERE subject = %s", [subject])


def set_password(conn: psycopg.Connection[Any], subject: str, password: str) -> None:
    """A new password; refresh tokens given out before end. Raises AccountError."""
    row = conn.execute(
        "UPDATE account SET password = %s, failures = 0, locked_until = NULL WHERE subject = %s RETURNING subject",
        [hashed(password), subject],
    ).fetchone()
    if row is None:
        raise AccountError(f"there is no account {subject}")
    conn.execute("DELETE FROM login_grant WHERE subject = %s", [subject])
