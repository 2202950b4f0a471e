"""Registered system clients (SMART App Launch 2.2, backend services): one TOML file, read at the start.

    [[client]]
    id = "north-his"                       # client_id the system signs with
    name = "北岭镇卫生院 HIS"
    facility = "north-township"            # facility its tokens speak for; empty: the consortium
    scopes = ["system/Patient.rs", "system/Observation.rs"]
    jwks = "north-his.jwks.json"           # its public keys (RFC 7517), beside this file

A system that can sign nothing (an old HIS at ``/messages`` or ``/soap``, over HTTPS) has, instead of ``jwks``, the SHA-256 of a
random secret:

    secret_sha256 = "9f86d0..."            # of 32 or more random characters: openssl rand -hex 32

People log in with public apps (authorization code with PKCE):

    [[app]]
    id = "results-app"
    name = "结果浏览"
    redirect_uris = ["https://app.example/back"]
    scopes = ["user/*.rs", "offline_access"]

Keys come from files and never from an address, so that no request makes this server call another one.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet, RSAKey

from fhir_server.access import check_scopes
from fhir_server.keys import AccessError

SHORTEST_SECRET: Final = 32
"""Characters of a client's secret; only what is random and long may be kept as a plain digest."""
_KNOWN: Final = frozenset({"id", "name", "facility", "scopes", "jwks", "secret_sha256"})
_NEEDED: Final = ("id", "scopes")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_RSA_BITS: Final = 2048


@dataclass(frozen=True, slots=True)
class Client:
    """A system that may ask for tokens: its id, name, facility id (may be empty), scopes it may hold, public keys, and the SHA-256 of
    its secret (hexadecimal, empty: none)."""

    id: str
    name: str
    facility: str
    scopes: frozenset[str]
    keys: KeySet
    secret: str = ""


@dataclass(frozen=True, slots=True)
class App:
    """A public app that people log in with: its id, name, the addresses answers may go to, the scopes it may be given."""

    id: str
    name: str
    redirect_uris: frozenset[str]
    scopes: frozenset[str]


def load_apps(path: Path | None) -> Mapping[str, App]:
    """The ``[[app]]`` tables of the file by id. Raises AccessError."""
    out: dict[str, App] = {}
    for number, entry in enumerate(_read(path).get("app", []), start=1):
        place = f"{path}: app {number}"
        texts = [entry.get("id"), entry.get("name", "")]
        lists = [entry.get("redirect_uris"), entry.get("scopes")]
        if not all(isinstance(t, str) for t in texts) or not all(
            isinstance(found, list) and found and all(isinstance(t, str) for t in found) for found in lists
        ):
            raise AccessError(f"{place}: id is a text, redirect_uris and scopes are lists of texts")
        if unknown := sorted(set(entry) - {"id", "name", "redirect_uris", "scopes"}):
            raise AccessError(f"{place}: {unknown[0]} is not one of id, name, redirect_uris, scopes")
        for uri in entry["redirect_uris"]:
            if not uri.startswith(("https://", "http://127.0.0.1", "http://localhost")) or "#" in uri:
                raise AccessError(
                    f"{place}: redirect_uri {uri} is not an https address (or one of this machine) without #"
                )
        if entry["id"] in out:
            raise AccessError(f"{place}: id {entry['id']} stands twice")
        out[entry["id"]] = App(entry["id"], entry.get("name", ""), *(frozenset(found) for found in lists))
    return out


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as fault:
        raise AccessError(f"{path}: the file of clients cannot be read: {fault}") from None
    if set(found) - {"client", "app"} or not all(isinstance(v, list) for v in found.values()):
        raise AccessError(f"{path}: only [[client]] and [[app]] tables may stand here")
    return found


def load_clients(path: Path | None) -> Mapping[str, Client]:
    """The clients of the file by id; none without a file. Raises AccessError naming file, client and what to change."""
    if path is None:
        return {}
    found = _read(path)
    out: dict[str, Client] = {}
    for number, entry in enumerate(found.get("client", []), start=1):
        place = f"{path}: client {number}"
        client = _client(entry, path.parent, place)
        if client.id in out:
            raise AccessError(f"{place}: id {client.id} stands twice")
        out[client.id] = client
    return out


def _client(entry: Mapping[str, Any], folder: Path, place: str) -> Client:
    if unknown := sorted(set(entry) - _KNOWN):
        raise AccessError(f"{place}: {unknown[0]} is not one of {', '.join(sorted(_KNOWN))}")
    for name in _NEEDED:
        if not entry.get(name):
            raise AccessError(f"{place}: {name} is missing")
    scopes = entry["scopes"]
    jwks, secret = entry.get("jwks", ""), entry.get("secret_sha256", "")
    texts = [entry["id"], jwks, secret, entry.get("name", ""), entry.get("facility", "")]
    if not all(isinstance(t, str) for t in texts) or not isinstance(scopes, list):
        raise AccessError(f"{place}: id, name, facility, jwks and secret_sha256 are texts, scopes is a list of texts")
    if not jwks and not secret:
        raise AccessError(f"{place}: jwks is missing (or secret_sha256, for a system that can sign nothing)")
    if secret and not _DIGEST.fullmatch(secret):
        raise AccessError(f"{place}: secret_sha256 is the SHA-256 of the secret as 64 small hexadecimal digits")
    try:
        granted = check_scopes("system", frozenset(str(s) for s in scopes))
    except AccessError as fault:
        raise AccessError(f"{place}: {fault}") from None
    keys = _key_set(folder / jwks, place) if jwks else KeySet([])
    return Client(entry["id"], entry.get("name", ""), entry.get("facility", ""), granted, keys, secret)


def _key_set(path: Path, place: str) -> KeySet:
    try:
        found = KeySet.import_key_set(json.loads(path.read_text("utf-8")))
    except OSError as fault:
        raise AccessError(f"{place}: jwks {path.name} cannot be read: {fault.strerror}") from None
    except (JoseError, ValueError, KeyError, TypeError):
        raise AccessError(f"{place}: jwks {path.name} is not a JSON Web Key Set") from None
    usable = [
        key
        for key in found.keys
        if (isinstance(key, ECKey) and key.curve_name == "P-384")
        or (isinstance(key, RSAKey) and key.raw_value.key_size >= _RSA_BITS)
    ]
    if len(usable) != len(found.keys) or not usable:
        raise AccessError(
            f"{place}: jwks {path.name} may hold EC P-384 (ES384) and RSA keys of {_RSA_BITS} bits or more"
        )
    if any(key.is_private for key in usable):
        raise AccessError(f"{place}: jwks {path.name} holds a private key; register the public keys alone")
    if any(not key.kid for key in usable):
        raise AccessError(f"{place}: jwks {path.name} has a key without kid")
    return found
