"""The rows of subscriptions, in the transaction of the write they belong to (psycopg)."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

from conformance.capability import RESOURCE_TYPES
from conformance.fhirjson import loads
from fhir_server.access import Principal
from fhir_server.errors import Category, Fault
from fhir_server.publish.subscription import Before, Wanted
from fhir_server.store import repository
from fhir_server.store.body import Codec
from fhir_server.store.change import Origin

_BODY: Final = 'SELECT dict, body, id, patient, "order" FROM resource WHERE rtype = %s AND id = %s AND NOT deleted'
_ACCOUNT: Final = "SELECT 1 FROM account WHERE subject = %s"
_COLUMNS: Final = (
    "topic", "types", "criteria", "status", "content", "mime", "endpoint", "headers", "heartbeat", "timeout", "most", "ends",
)  # fmt: skip


def before(conn: psycopg.Connection[Any], codec: Codec, logical: str) -> Before | None:
    """The stored Subscription of an id; None when there is none."""
    body = _resource(conn, codec, logical)
    if body is None:
        return None
    with conn.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute("SELECT endpoint, headers, subject FROM subscription WHERE id = %s", [logical]).fetchone()
    found = row or {"endpoint": "", "headers": [], "subject": ""}
    return Before(body, found["endpoint"], tuple(found["headers"]), found["subject"])


def _resource(conn: psycopg.Connection[Any], codec: Codec, logical: str) -> dict[str, Any] | None:
    row = conn.execute(_BODY, [RESOURCE_TYPES["Subscription"], logical]).fetchone()
    if row is None:
        return None
    found: dict[str, Any] = loads(codec.decompress(row[0], bytes(row[1]), (row[2], row[3], row[4])))
    return found


def save(
    conn: psycopg.Connection[Any], logical: str, version: int, wanted: Wanted, asker: Principal, now: datetime
) -> None:
    """What the sender needs of a Subscription just written; numbers of events go on where they were."""
    values = asdict(wanted)
    given = {name: list(v) if isinstance(v := values[name], tuple) else v for name in _COLUMNS}
    given |= {
        "id": logical, "version": version, "subject": asker.subject, "role": asker.role, "facility": asker.facility,
        "scopes": " ".join(sorted(asker.scopes)), "patient": asker.patient, "due": now, "created": now, "failures": 0,
        "reason": None, "known": "account" if conn.execute(_ACCOUNT, [asker.subject]).fetchone() else "token",
    }  # fmt: skip
    names = ", ".join(given)
    changed = ", ".join(f"{n} = excluded.{n}" for n in given if n not in ("id", "created"))
    conn.execute(
        f"INSERT INTO subscription ({names}) VALUES ({', '.join(f'%({n})s' for n in given)})"  # noqa: S608 -- our own names
        f" ON CONFLICT (id) DO UPDATE SET {changed}",
        given,
    )


def remove(conn: psycopg.Connection[Any], logical: str) -> None:
    """Nothing is sent for it any more; its events and headers are forgotten. Whose it was stays: others do not see it later either."""
    conn.execute("DELETE FROM subscription_event WHERE subscription = %s", [logical])
    conn.execute("UPDATE subscription SET status = 'off', headers = '{}' WHERE id = %s", [logical])


def settle(
    conn: psycopg.Connection[Any],
    codec: Codec,
    logical: str,
    version: int,
    status: str,
    reason: str | None,
    now: datetime,
) -> bool:
    """The status the server gives a Subscription, in the resource too; False when a client changed it in the meantime.

    ``reason``: free of patient data; stands in ``Subscription.error`` while the status is error.
    """
    with conn.transaction():
        found = _resource(conn, codec, logical)
        if found is None:
            return False
        found = {k: v for k, v in found.items() if k != "error"} | {"status": status}
        if reason and status in ("error", "off"):
            found["error"] = reason
        try:
            change = repository.put(conn, codec, found, origin=Origin("", None, None, now), expected_version=version)
        except Fault as fault:
            if fault.category is Category.PRECONDITION:
                return False
            raise
        conn.execute(
            "UPDATE subscription SET status = %s, version = %s, reason = %s, failures = 0, due = %s,"
            " contacted = CASE WHEN %s = 'active' THEN %s ELSE contacted END WHERE id = %s AND version = %s",
            [status, change.version, reason, now, status, now, logical, version],
        )
    return True
