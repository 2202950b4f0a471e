"""What the running server hands to its interactions: built once by the composition root (app), never global."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncpg
    import psycopg_pool

    from fhir_server.audit_event import AuditLog
    from fhir_server.keys import Keys
    from fhir_server.oidc_keys import Issuers
    from fhir_server.recognition.ledger import Ledger
    from fhir_server.recognition.rules import Rules
    from fhir_server.settings import Settings
    from fhir_server.store.body import Codec
    from mappings.profile import Profile


@dataclass(frozen=True, slots=True)
class Services:
    """pool: asyncpg, for reads. writer: psycopg pool, for writes (run in threads). clock: aware datetimes in UTC.

    keyed: asyncpg, for statements that find their rows by a key, whose plan is the same for every value; None: ``pool`` runs them.
    issuers: OpenID Connect providers whose tokens are accepted beside our own; None: none.
    """

    settings: Settings
    pool: asyncpg.Pool
    writer: psycopg_pool.ConnectionPool
    codec: Codec
    audit: AuditLog
    keys: Keys
    profiles: Mapping[str, Profile]
    rules: Rules
    ledger: Ledger
    clock: Callable[[], datetime]
    keyed: asyncpg.Pool | None = None
    issuers: Issuers | None = None
