"""Every table (SQLAlchemy Core; the migrations create exactly this, checked by a test).

Rules: a table of patient data leads its primary key with ``shard`` (mappings.ids), so that it distributes on Citus; hot search
values are typed columns, tokens and references one indexed array of 64-bit hashes; the body is stored once, compressed.
"""

from __future__ import annotations

from fhir_server.store import (
    access_tables,
    evidence_tables,
    identity_tables,
    imaging_tables,
    intake_tables,
    message_tables,
    resource_tables,
    subscription_tables,
)
from fhir_server.store.columns import metadata

__all__ = [
    "access_tables",
    "evidence_tables",
    "identity_tables",
    "imaging_tables",
    "intake_tables",
    "message_tables",
    "metadata",
    "resource_tables",
    "subscription_tables",
]
