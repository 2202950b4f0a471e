"""Signing keys of the installation: kept in one file, replaced while their tokens live on, checked without asking anybody.

A JWK Set (RFC 7517) of mode 0600. ES256, ES384 and RS384 keys sign access tokens, the newest of them; an RS256 key signs id tokens
(OpenID Connect asks every provider for it). The file may be changed by a command beside a running server, which then reads it again.
All cryptography is joserfc's.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, GuestProtocol, RSAKey

from fhir_server.errors import Category, Fault

if TYPE_CHECKING:
    from fhir_server.access import Principal

log = logging.getLogger(__name__)

ISSUER: Final = "tongjian"
KEY_FILE: Final = "token-keys.json"
REVOKED_FILE: Final = "revoked-tokens.json"
ALGORITHMS: Final = ("ES256", "ES384", "RS384")
"""Of access tokens."""
ID_ALGORITHM: Final = "RS256"
LONGEST: Final = timedelta(days=366)
"""No token lives longer, so a key that was replaced this long ago has none."""
_CURVES: Final = {"ES256": "P-256", "ES384": "P-384"}
_BY_CURVE: Final = {curve: algorithm for algorithm, curve in _CURVES.items()}
_RSA_BITS: Final = 3072
_OWN: Final = ("created", "replaced")
_LOOK_EVERY: Final = 1.0

Key = ECKey | RSAKey


class AccessError(ValueError):
    """A token that cannot be issued, or a key file that cannot be used; the text says what to change."""


def algorithm_of(key: Key) -> str:
    """The one algorithm a key is for (RFC 7518)."""
    return key.alg or (_BY_CURVE[key.curve_name] if isinstance(key, ECKey) else "")


@dataclass(slots=True)
class Keys:
    """``keys`` sign access tokens: the last one signs, all are accepted. ``id_keys`` sign id tokens, likewise."""

    keys: list[Key]
    issuer: str = ISSUER
    audience: str = ISSUER
    folder: Path | None = None
    id_keys: list[Key] = field(default_factory=list)
    _revoked: dict[str, int] = field(default_factory=dict, repr=False)
    _verified: OrderedDict[bytes, tuple[dict[str, Any], Principal]] = field(default_factory=OrderedDict, repr=False)
    _state: tuple[object, ...] = ()
    _looked: float = 0.0

    @classmethod
    def load(cls, data_dir: Path, *, issuer: str = ISSUER, audience: str = ISSUER) -> Keys:
        """The keys kept in ``data_dir``; the first start makes one (ES256). Safe when several processes start at once: one wins and
        all read the same file. Raises OSError or AccessError when the file cannot be used."""
        path = data_dir / KEY_FILE
        if not path.exists():
            data_dir.mkdir(parents=True, exist_ok=True)
            _write(path, [_made("ES256", datetime.now(UTC))], replace=False)
        found = cls([], issuer, audience, data_dir)
        found._read(data_dir)
        return found

    def _read(self, folder: Path) -> None:
        state = _state_of(folder)
        read = [_imported(entry) for entry in _entries(folder / KEY_FILE)]
        revoked = folder / REVOKED_FILE
        try:
            ended = json.loads(revoked.read_text("utf-8")) if revoked.exists() else {}
        except ValueError:
            raise AccessError(
                f"{revoked.name} cannot be read: which tokens were revoked is not known. Put it back from a backup, or delete "
                f"it together with {KEY_FILE}, which ends all tokens"
            ) from None
        self.keys = [key for key in read if algorithm_of(key) != ID_ALGORITHM]
        self.id_keys = [key for key in read if algorithm_of(key) == ID_ALGORITHM]
        if not self.keys:
            raise _unusable()
        self._revoked, self._state = ended, state
        self._verified.clear()

    def look(self, *, now: bool = False) -> None:
        """Reads the files again when another process changed them; looks at most once a second, unless ``now``."""
        at = time.monotonic()
        if self.folder is None or (not now and at - self._looked < _LOOK_EVERY):
            return
        self._looked = at
        try:
            if _state_of(self.folder) != self._state:
                self._read(self.folder)
        except (AccessError, OSError):
            log.warning("The key file cannot be read now; the keys known before stay in use.")

    def claims(self, token: str) -> dict[str, Any]:
        """Claims of a token whose signature is ours, whatever its times. Raises Fault UNAUTHENTICATED for any other."""

        def key_of(guest: GuestProtocol) -> Key:
            headers = guest.headers()
            for key in self.keys:
                if headers.get("kid") == key.kid and headers.get("alg") == algorithm_of(key):
                    return key
            raise unauthenticated("The token is signed with a key this server does not know.", "invalid_token")

        try:
            return jwt.decode(token, key_of, algorithms=list(ALGORITHMS)).claims
        except (JoseError, ValueError, UnicodeError):
            raise unauthenticated("The token is not valid. Ask for a new one.", "invalid_token") from None

    def signed(self, claims: Mapping[str, Any]) -> str:
        """An access token with these claims, signed with the newest key."""
        self.look(now=True)
        return _signed(self.keys[-1], claims)

    def signed_id(self, claims: Mapping[str, Any]) -> str:
        """An id token with these claims, signed RS256. Raises OSError when a first key cannot be kept."""
        self.look(now=True)
        self.require_id_key()
        return _signed(self.id_keys[-1], claims)

    def require_id_key(self) -> None:
        """Makes the key of id tokens, where there is none yet. Raises OSError when it cannot be kept."""
        if self.id_keys or self.folder is None:
            return
        with _alone(self.folder):
            self._read(self.folder)
            if not self.id_keys:
                entries = _entries(self.folder / KEY_FILE)
                _write(self.folder / KEY_FILE, [*entries, _made(ID_ALGORITHM, datetime.now(UTC))])
                self._read(self.folder)

    def is_revoked(self, claims: Mapping[str, Any]) -> bool:
        """Whether ``revoke`` ended the token with these claims."""
        return claims.get("jti") in self._revoked

    def revoke(self, claims: Mapping[str, Any], now: datetime) -> None:
        """The token with these claims is refused from now on, also after a restart (RFC 7009). Raises OSError when that cannot be
        kept; then the token still holds."""
        at = int(now.timestamp())
        if self.folder is None:
            self._revoked |= {claims["jti"]: int(claims["exp"])}
            return
        with _alone(self.folder):
            self._read(self.folder)
            held = {jti: ends for jti, ends in self._revoked.items() if ends >= at} | {
                claims["jti"]: int(claims["exp"])
            }
            _write_text(self.folder / REVOKED_FILE, json.dumps(held), replace=True)
            self._read(self.folder)

    def public(self) -> dict[str, Any]:
        """The public JWK Set, for others who check our tokens."""
        self.look()
        found = [(key, key.as_dict(private=False)) for key in (*self.keys, *self.id_keys)]
        return {
            "keys": [
                {**{k: v for k, v in told.items() if k not in _OWN}, "alg": algorithm_of(key), "use": "sig"}
                for key, told in found
            ]
        }


@dataclass(frozen=True, slots=True)
class Listed:
    """A key as ``tongjian keys list`` shows it: id, algorithm, when it was made (None: not known) and replaced (None: it signs)."""

    kid: str
    algorithm: str
    created: datetime | None
    replaced: datetime | None


def listed(data_dir: Path) -> list[Listed]:
    """The keys of an installation, in the order they were made. Raises AccessError."""
    out = []
    for entry in _entries(data_dir / KEY_FILE):
        key = _imported(entry)
        made, gone = (datetime.fromtimestamp(entry[name], UTC) if name in entry else None for name in _OWN)
        out.append(Listed(key.kid or "", algorithm_of(key), made, gone))
    return out


def rotate(data_dir: Path, now: datetime, algorithm: str = "ES256") -> str:
    """Adds a signing key and returns its id. The one that signed before stays for the tokens it signed; keys replaced so long ago that
    none of their tokens lives are dropped. Raises AccessError for another algorithm."""
    if algorithm not in (*ALGORITHMS, ID_ALGORITHM):
        raise AccessError(f"{algorithm} is not one of {', '.join((*ALGORITHMS, ID_ALGORITHM))}")
    Keys.load(data_dir)
    with _alone(data_dir):
        fresh = _made(algorithm, now)
        kept = []
        for entry in _entries(data_dir / KEY_FILE):
            known = algorithm_of(_imported(entry))
            if (known == ID_ALGORITHM) == (algorithm == ID_ALGORITHM) and "replaced" not in entry:
                kept.append({**entry, "replaced": int(now.timestamp())})
            elif "replaced" not in entry or entry["replaced"] > (now - LONGEST).timestamp():
                kept.append(entry)
        _write(data_dir / KEY_FILE, [*kept, fresh])
    return str(fresh["kid"])


def retire(data_dir: Path, kid: str) -> None:
    """Takes a key that was replaced away at once; tokens it signed end. Raises AccessError for one that signs, or is not known."""
    with _alone(data_dir):
        entries = _entries(data_dir / KEY_FILE)
        found = [entry for entry in entries if _imported(entry).kid == kid]
        if not found:
            raise AccessError(f"there is no key {kid}")
        if "replaced" not in found[0]:
            raise AccessError(f"key {kid} signs tokens; put another in its place first (tongjian keys rotate)")
        _write(data_dir / KEY_FILE, [entry for entry in entries if entry is not found[0]])


def unauthenticated(text: str, error: str) -> Fault:
    """401 with its challenge (RFC 6750 section 3)."""
    challenge = 'Bearer realm="tongjian"' + (f', error="{error}"' if error else "")
    return Fault(Category.UNAUTHENTICATED, text, headers={"WWW-Authenticate": challenge})


def _signed(key: Key, claims: Mapping[str, Any]) -> str:
    algorithm = algorithm_of(key)
    return jwt.encode({"alg": algorithm, "kid": key.kid, "typ": "JWT"}, dict(claims), key, algorithms=[algorithm])


def _unusable() -> AccessError:
    return AccessError(f"{KEY_FILE} holds no usable key; delete it to have a new one made (old tokens end)")


def _entries(path: Path) -> list[dict[str, Any]]:
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise AccessError(f"{path.name} can be read by others; set its mode to 0600")
    try:
        entries = json.loads(path.read_text("utf-8"))["keys"]
        if entries and all(isinstance(entry, dict) for entry in entries):
            return list(entries)
    except (ValueError, KeyError, TypeError):
        pass
    raise _unusable()


def _imported(entry: dict[str, Any]) -> Key:
    try:
        if entry.get("kty") == "RSA" and entry.get("alg") in ("RS384", ID_ALGORITHM):
            return RSAKey.import_key(entry)
        key = ECKey.import_key(entry)
        if algorithm_of(key) in ALGORITHMS:
            return key
    except (JoseError, ValueError, KeyError, TypeError):
        pass
    raise _unusable()


def _made(algorithm: str, now: datetime) -> dict[str, Any]:
    curve = _CURVES.get(algorithm)
    key: Key = ECKey.generate_key(curve, auto_kid=True) if curve else RSAKey.generate_key(_RSA_BITS, auto_kid=True)
    return {**key.as_dict(private=True), "alg": algorithm, "use": "sig", "created": int(now.timestamp())}


def _state_of(folder: Path) -> tuple[object, ...]:
    out: list[object] = []
    for name in (KEY_FILE, REVOKED_FILE):
        try:
            found = (folder / name).stat()
            out += [found.st_ino, found.st_mtime_ns, found.st_size]
        except FileNotFoundError:
            out.append(None)
    return tuple(out)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time changes the files."""
    with (folder / f".{KEY_FILE}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(path: Path, entries: Iterable[Mapping[str, Any]], *, replace: bool = True) -> None:
    _write_text(path, json.dumps({"keys": list(entries)}), replace=replace)


def _write_text(path: Path, text: str, *, replace: bool) -> None:
    """Whole file or nothing; without ``replace`` an existing file stays."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    try:
        if replace:
            draft.replace(path)
        else:
            os.link(draft, path)
    except FileExistsError:
        pass  # another process was first; its keys are the ones
    finally:
        draft.unlink(missing_ok=True)
