"""The connections of polled databases: one TOML file (setting ``databases_file``), which nobody else may read.

[east-lis]
url = "mysql+pymysql://reader@10.20.0.5:3306/lis"      # an address of SQLAlchemy
password_file = "east-lis.password"                     # beside this file; or password = "..."; or in the address
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

_KNOWN = frozenset({"url", "password", "password_file"})


class DatabasesError(Exception):
    """The file cannot be used; the text names the file and the table, never an address or a password."""


def load(path: Path | None) -> Mapping[str, sa.URL]:
    """Name -> address with its password. Raises DatabasesError."""
    if path is None:
        return {}
    found = _read(path)
    out = {}
    for name, entry in found.items():
        place = f"{path}: [{name}]"
        if not isinstance(entry, dict) or not all(isinstance(v, str) for v in entry.values()) or "url" not in entry:
            raise DatabasesError(f"{place}: needs url, and may have password or password_file; all are texts")
        if unknown := sorted(set(entry) - _KNOWN):
            raise DatabasesError(f"{place}: {unknown[0]} is not one of {', '.join(sorted(_KNOWN))}")
        try:
            url = sa.make_url(entry["url"])
        except (ArgumentError, ValueError):
            raise DatabasesError(
                f"{place}: url is not an address like mysql+pymysql://user@host:3306/database"
            ) from None
        password = entry.get("password", "")
        if file := entry.get("password_file"):
            try:
                password = (path.parent / file).read_text("utf-8").rstrip("\r\n")
            except (OSError, ValueError) as fault:
                raise DatabasesError(f"{place}: password_file cannot be read: {type(fault).__name__}") from None
            _require_private(path.parent / file)
        out[name] = url.set(password=password) if password else url
    return out


def _read(path: Path) -> dict[str, object]:
    try:
        _require_private(path)
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as fault:
        raise DatabasesError(f"{path} cannot be read: {fault.strerror}") from None
    except ValueError:
        # The text of the fault may quote the line.
        raise DatabasesError(f"{path} is not a TOML file in UTF-8") from None


def _require_private(path: Path) -> None:
    if os.name == "posix" and path.stat().st_mode & 0o007:
        raise DatabasesError(f"{path} can be read by everybody; set its mode to 0600 or 0640")
