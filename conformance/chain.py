"""Hash chain of evidence rows: each row's hash covers the one before, so that a change, a removal or an insertion shows.

Pure functions, used by the audit log and the recognition ledger. The algorithm is SHA-256 (FIPS 180-4), or SM3 (GB/T 32905) where
the county's OpenSSL offers it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable


def genesis(chain: str, algorithm: str = "sha256") -> bytes:
    """What stands before the first row of a chain: a digest of the chain's id, so that no row can be moved to another chain."""
    return hashlib.new(algorithm, b"tongjian chain " + chain.encode()).digest()


def next_hash(previous: bytes, entry: bytes, algorithm: str = "sha256") -> bytes:
    """Hash of a row: digest of the previous row's hash followed by the row's bytes. Raises ValueError for an unknown algorithm."""
    digest = hashlib.new(algorithm, previous)
    digest.update(entry)
    return digest.digest()


def verify(first: bytes, entries: Iterable[tuple[bytes, bytes]], algorithm: str = "sha256") -> int | None:
    """Position (0-based) of the first row whose hash does not follow, or None when the chain is whole.

    first    the hash before the first row: ``genesis(chain)``, or the last hash of the part already verified
    entries  (row bytes, stored hash) in order
    """
    previous = first
    for position, (entry, stored) in enumerate(entries):
        previous = next_hash(previous, entry, algorithm)
        if not hmac.compare_digest(previous, stored):
            return position
    return None
