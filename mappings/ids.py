"""Derived logical ids: the same message twice gives the same ids (FHIR R4 id: http://hl7.org/fhir/R4/datatypes.html#id).

``<2 characters shard><22 characters digest>``, alphabet 0-9a-v (base32hex, RFC 4648 section 7, lower case). The shard comes from
the facility's Patient, so that everything of one patient lives in one shard and a read by id needs no look-up.
"""

from __future__ import annotations

import hashlib
import re

SHARDS = 1024
_ALPHABET = "0123456789abcdefghijklmnopqrstuv"
_VALUE = {c: i for i, c in enumerate(_ALPHABET)}
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
"""Two characters, 10 bits: a shard, and a tenth of the digest."""
ID_LENGTH = 24
_DERIVED = re.compile(f"[{_ALPHABET}]{{{ID_LENGTH}}}")


def _digest(parts: tuple[str, ...], size: int) -> int:
    # 0x1F cannot appear in HL7, XML or JSON text that passed the readers, so the join is unambiguous.
    return int.from_bytes(hashlib.blake2b("\x1f".join(parts).encode(), digest_size=size).digest(), "big")


def shard_of(facility: str, patient_key: str) -> int:
    """Shard (0..1023) of a facility's Patient. ``patient_key`` is the business identifier, ``<authority>|<value>``."""
    return _digest((facility, patient_key), 8) % SHARDS


def logical_id(shard: int, facility: str, resource_type: str, *business: str) -> str:
    """Logical id of a resource: shard prefix + 110-bit digest of facility, type and business identifier parts."""
    n = _digest((facility, resource_type, *business), 14) >> 2
    p = _PAIRS
    return (
        f"{p[shard]}{p[n >> 100]}{p[n >> 90 & 1023]}{p[n >> 80 & 1023]}{p[n >> 70 & 1023]}{p[n >> 60 & 1023]}"
        f"{p[n >> 50 & 1023]}{p[n >> 40 & 1023]}{p[n >> 30 & 1023]}{p[n >> 20 & 1023]}{p[n >> 10 & 1023]}{p[n & 1023]}"
    )


def directory_id(facility: str, resource_type: str, *business: str) -> str:
    """Logical id of a resource without a patient (Organization, Location, Practitioner): its shard is that of its own key."""
    return logical_id(shard_of(facility, "\x1e".join((resource_type, *business))), facility, resource_type, *business)


def home_shard(resource_type: str, logical: str) -> int:
    """The shard of a resource that stands by itself, such as a Patient: the one its id names, else that of its own key."""
    derived = shard_of_id(logical)
    return shard_of("", f"{resource_type}\x1e{logical}") if derived is None else derived


def shard_of_id(logical: str) -> int | None:
    """The shard a derived id names, or None when the id was not derived here (given by a client)."""
    if _DERIVED.fullmatch(logical) is None:
        return None
    return (_VALUE[logical[0]] << 5) | _VALUE[logical[1]]
