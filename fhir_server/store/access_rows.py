"""What a stored resource says about who may see what: classes of sensitive data, treatment relationships, consents.

Pure readers of resources, and one function that writes their rows for a whole batch, in its transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import psycopg

from conformance import systems
from conformance.capability import RESOURCE_TYPES
from fhir_server.search import dates
from fhir_server.search.leaves import reference_text
from fhir_server.search.params import INSTALLATION
from fhir_server.store.statement import Key
from mappings.ids import shard_of_id

OPENED_BY: Final = "user:"
"""Begins ``treatment.facility`` of a record that a user opened."""
WRITTEN_BY: Final = "written:"
"""Begins it where a clinician of the facility wrote of a treatment nobody else had told of (scope.claims)."""
MADE_BY: Final = "made:"
"""Begins it in the row of a Patient that a clinician of the facility registered."""
TREATING: Final = ("Encounter", "ServiceRequest", "Task")
LONGEST_VISIT: Final = timedelta(days=180)
"""A visit that nobody ends counts as open for this time after its start."""
KEPT: Final = timedelta(days=366)
"""What ended longer ago gives no treatment relationship, so it is not recorded."""
DIRECTORIES: Final = frozenset(
    {
        "Organization", "Location", "Practitioner", "PractitionerRole", "Device", "Endpoint", "ValueSet", "CodeSystem", "ConceptMap",
        "StructureDefinition", "SearchParameter", "OperationDefinition", "CapabilityStatement", "Measure", "ChargeItemDefinition",
    }
)  # fmt: skip
"""Types about no patient: never sensitive, and seen by everybody whose scopes grant them (unless one is about a patient)."""

_OPEN: Final = frozenset({"planned", "arrived", "triaged", "in-progress", "onleave"})
_ORDERED: Final = frozenset({"active", "on-hold", "completed"})
_REFERRED: Final = frozenset({"requested", "received", "accepted", "ready", "in-progress", "on-hold", "completed"})
_BASE: Final = {"OPTIN": True, "OPTOUT": False}
_RESTRICTIONS: Final = ("action", "securityLabel", "purpose", "class", "code", "dataPeriod", "data")
_EVER: Final = (datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC))
_WATCHED: Final = frozenset(RESOURCE_TYPES[t] for t in (*TREATING, "Consent"))
_TREATMENT: Final = "shard smallint, rtype smallint, id text, facility text, patient text, until timestamptz"
_RULE: Final = (
    "shard int2, id text, ordinal int2, patient text, facility text, permit bool, low timestamptz, high timestamptz"
)


class Said(NamedTuple):
    """A current version on its way into the store. ``first``: nothing of it was stored before."""

    key: Key
    resource: Mapping[str, Any]
    patient: str | None
    facility: str
    recorded: datetime
    first: bool


class Rule(NamedTuple):
    """One rule of a Consent. facility: empty for everybody."""

    facility: str
    permit: bool
    low: datetime
    high: datetime


def treatment(resource: Mapping[str, Any], facility: str, recorded: datetime) -> dict[str, datetime]:
    """Facility (id, or ``Organization/<id>``) -> until when it treats the patient, of an Encounter, ServiceRequest or Task.

    ``facility`` is who sent it. A visit that is open gives a time to come; what ended, the time it ended; nothing for what never
    was (cancelled, entered in error, draft).
    """
    kind, status = resource["resourceType"], resource.get("status")
    if kind == "Encounter":
        low, high = _period(resource.get("period"))
        if status in _OPEN:
            until = (low or recorded) + LONGEST_VISIT
        elif status == "finished":
            until = high or low or recorded
        else:
            return {}
        parties = [resource.get("serviceProvider")]
    elif kind == "ServiceRequest":
        if status not in _ORDERED or resource.get("intent") == "proposal":
            return {}
        until = _instant(resource.get("authoredOn")) or recorded
        parties = [resource.get("requester"), *(resource.get("performer") or [])]
    elif status in _REFERRED:
        until = _instant(resource.get("authoredOn")) or recorded
        parties = [resource.get("requester"), resource.get("owner")]
    else:
        return {}
    named = [facility, *(name for p in parties for name in _facilities(p))]
    return dict.fromkeys((n for n in named if n), until)


def consent(resource: Mapping[str, Any]) -> list[Rule]:
    """A Consent as rules; none unless it is active and about privacy. A denial that is narrower than can be judged counts for
    everything, a permission that is narrower counts for nothing (http://hl7.org/fhir/R4/consent.html)."""
    scopes = {c.get("code") for c in (resource.get("scope") or {}).get("coding") or []}
    if resource.get("status") != "active" or (scopes and scopes <= {"research", "adr", "treatment"}):
        return []
    out = [
        Rule("", _BASE[c["code"]], *_EVER)
        for c in (resource.get("policyRule") or {}).get("coding") or []
        if c.get("code") in _BASE
    ]
    waiting = [resource.get("provision")]
    while waiting:
        provision = waiting.pop()
        if not isinstance(provision, dict):
            continue
        waiting.extend(provision.get("provision") or [])
        if provision.get("type") not in ("permit", "deny"):
            continue
        permit = provision["type"] == "permit"
        actors = provision.get("actor") or []
        known = [name for a in actors for name in _facilities(a.get("reference"))]
        if permit and (any(provision.get(r) for r in _RESTRICTIONS) or (actors and not known)):
            continue
        low, high = _period(provision.get("period"))
        if not permit and len(known) < len(actors):
            known = []
        out.extend(Rule(f, permit, low or _EVER[0], high or _EVER[1]) for f in known or [""])
    # What is said of the whole overrides the policy it stands under.
    said = {r.permit for r in out if not r.facility and (r.low, r.high) == _EVER}
    return [r for r in out if r.facility or len(said) < 2 or not r.permit]


def _facilities(reference: Any) -> Iterable[str]:
    if isinstance(reference, dict):
        literal, identifier = reference.get("reference"), reference.get("identifier") or {}
        if isinstance(literal, str) and "Organization/" in literal:
            yield "Organization/" + literal.rpartition("Organization/")[2].partition("/")[0]
        # With a colon it could be taken for one of the marks above; no facility has one.
        if identifier.get("system") == systems.FACILITY and ":" not in (value := identifier.get("value") or ":"):
            yield value


def _period(period: Any) -> tuple[datetime | None, datetime | None]:
    found = period if isinstance(period, dict) else {}
    return _instant(found.get("start")), _instant(found.get("end"), last=True)


def _instant(text: Any, *, last: bool = False) -> datetime | None:
    if not isinstance(text, str):
        return None
    try:
        return dates.span(text, INSTALLATION.zone)[1 if last else 0]
    except (ValueError, OverflowError):
        return None


def write(cursor: psycopg.Cursor[Any], said: Iterable[Said]) -> None:
    """Records what current versions say about who treats whom and about consents; nothing is asked of the server for other types."""
    watched = [s for s in said if s.key[1] in _WATCHED]
    again = [s.key for s in watched if not s.first]
    if again:
        forget(cursor, again)
    treated: list[tuple[Any, ...]] = []
    rules: list[tuple[Any, ...]] = []
    for s in watched:
        if s.patient is None:
            continue
        if s.resource["resourceType"] == "Consent":
            rules.extend((s.key[0], s.key[2], n, s.patient, *rule) for n, rule in enumerate(consent(s.resource)))
            continue
        for facility, until in treatment(s.resource, s.facility, s.recorded).items():
            if until > s.recorded - KEPT:
                treated.append((*s.key, facility, s.patient, until))
    if treated:
        _insert(cursor, "treatment", _TREATMENT, treated)
    if rules:
        _insert(cursor, "consent_rule", _RULE, rules)


def forget(cursor: psycopg.Cursor[Any], keys: Sequence[Key]) -> None:
    """Drops what earlier versions of the resources said."""
    watched = [key for key in keys if key[1] in _WATCHED]
    if watched:
        arrays = [[key[n] for key in watched] for n in range(3)]
        cursor.execute(
            "WITH k AS (SELECT * FROM unnest(%s::smallint[], %s::smallint[], %s::text[]) AS k(shard, rtype, id)),"
            " c AS (DELETE FROM consent_rule c USING k WHERE k.rtype = %s AND c.shard = k.shard AND c.id = k.id)"
            " DELETE FROM treatment t USING k WHERE t.shard = k.shard AND t.rtype = k.rtype AND t.id = k.id",
            [*arrays, RESOURCE_TYPES["Consent"]],
        )


def _insert(cursor: psycopg.Cursor[Any], table: str, columns: str, rows: Sequence[tuple[Any, ...]]) -> None:
    named = [column.split() for column in columns.split(", ")]
    names = ", ".join(name for name, _ in named)
    arrays = ", ".join(f"%s::{kind}[]" for _, kind in named)
    cursor.execute(
        f"INSERT INTO {table} ({names}) SELECT * FROM unnest({arrays}) ON CONFLICT DO NOTHING",  # noqa: S608 -- our own names
        [list(column) for column in zip(*rows, strict=True)],
    )


def spread(cursor: psycopg.Cursor[Any], reports: Sequence[Key]) -> None:
    """Gives reports the classes of the results that belong to them, and of what they said before."""
    if reports:
        cursor.execute(
            "UPDATE resource r SET sensitivity = k.bits FROM (SELECT k.shard, k.rtype, k.id, (SELECT bit_or(s) FROM ("
            " SELECT sensitivity FROM resource o WHERE o.shard = k.shard AND o.parent = k.id UNION ALL"
            " SELECT sensitivity FROM resource o WHERE o.shard = k.shard AND o.rtype = k.rtype AND o.id = k.id UNION ALL"
            " SELECT sensitivity FROM resource_history h WHERE h.shard = k.shard AND h.rtype = k.rtype AND h.id = k.id"
            " ) x(s)) AS bits FROM unnest(%s::smallint[], %s::smallint[], %s::text[]) AS k(shard, rtype, id) OFFSET 0) k"
            " WHERE r.shard = k.shard AND r.rtype = k.rtype AND r.id = k.id AND k.bits IS DISTINCT FROM r.sensitivity",
            [[key[n] for key in reports] for n in range(3)],
        )


def keep(cursor: psycopg.Cursor[Any], key: Key) -> None:
    """What was deleted stays in the classes it had: that it was there is not told either."""
    cursor.execute(
        "UPDATE resource r SET sensitivity = (SELECT bit_or(h.sensitivity) FROM resource_history h WHERE h.shard = r.shard"
        " AND h.rtype = r.rtype AND h.id = r.id) WHERE r.shard = %s AND r.rtype = %s AND r.id = %s",
        key,
    )


def literals(resource: Mapping[str, Any]) -> set[tuple[str, str]]:
    """(type, logical id) of everything of a served type that a resource refers to by a literal reference to this server."""
    found: set[tuple[str, str]] = set()
    waiting: list[Any] = [resource]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, dict):
            waiting.extend(v for v in value.values() if isinstance(v, (dict, list)))
            literal = value.get("reference")
            kind, _, logical = (
                reference_text(literal, INSTALLATION.base).partition("/") if isinstance(literal, str) else ("", "", "")
            )
            if kind in RESOURCE_TYPES and logical:
                found.add((kind, logical.partition("/")[0]))
    return found


def referred(cursor: psycopg.Cursor[Any], resource: Mapping[str, Any]) -> int:
    """The classes of the stored resources that a resource refers to, together: what refers to them gives them away."""
    bits = 0
    for found in classes_of(cursor, telling(resource)).values():
        bits |= found
    return bits


def telling(resource: Mapping[str, Any]) -> set[tuple[str, str]]:
    """(type, logical id) of what a resource refers to that may be of a class."""
    return {(k, i) for k, i in literals(resource) if k not in DIRECTORIES and k != "Patient"}


def classes_of(cursor: psycopg.Cursor[Any], named: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """The classes of those stored resources (type, logical id) that are of any."""
    wanted = [(kind, RESOURCE_TYPES[kind], logical) for kind, logical in named]
    if not wanted:
        return {}
    cursor.execute(
        "SELECT k.rtype, k.id, r.sensitivity FROM unnest(%s::smallint[], %s::text[], %s::smallint[]) AS k(rtype, id, derived)"
        " CROSS JOIN LATERAL (SELECT r.sensitivity FROM resource r WHERE r.rtype = k.rtype AND r.id = k.id AND r.shard IN"
        " (k.derived, (SELECT c.shard FROM client_id c WHERE c.rtype = k.rtype AND c.id = k.id)) OFFSET 0) r"
        " WHERE r.sensitivity IS NOT NULL",
        [
            [number for _, number, _ in wanted],
            [logical for _, _, logical in wanted],
            [-1 if (d := shard_of_id(logical)) is None else d for _, _, logical in wanted],
        ],
    )
    names = {number: kind for kind, number, _ in wanted}
    return {(names[number], logical): int(bits) for number, logical, bits in cursor.fetchall()}


def is_watched(key: Key) -> bool:
    """True for a resource of a type that says who treats whom, or what a patient consents to."""
    return key[1] in _WATCHED


class Stated(NamedTuple):
    """A watched current version in the store. resource: None when deleted; by_api: it came by no message."""

    key: Key
    resource: Mapping[str, Any] | None
    patient: str | None
    by_api: bool
    updated: datetime


def restate(cursor: psycopg.Cursor[Any], stated: Sequence[Stated]) -> set[Key]:
    """Makes the rows of stored versions what ``write`` would make them now; the keys of which something changed.

    Who sent a message is whose Patient it is about; who wrote through the API only the rows themselves say, so that name stays."""
    if not stated:
        return set()
    arrays = [[s.key[n] for s in stated] for n in range(3)]
    there: dict[Key, set[tuple[Any, ...]]] = {s.key: set() for s in stated}
    cursor.execute(
        "SELECT t.shard, t.rtype, t.id, t.facility, t.until FROM unnest(%s::smallint[], %s::smallint[], %s::text[])"
        " AS k(shard, rtype, id) JOIN treatment t ON t.shard = k.shard AND t.rtype = k.rtype AND t.id = k.id",
        arrays,
    )
    for shard, rtype, logical, facility, until in cursor.fetchall():
        there[shard, rtype, logical].add((facility, until))
    number = RESOURCE_TYPES["Consent"]
    cursor.execute(
        "SELECT c.shard, c.id, c.facility, c.permit, c.low, c.high FROM unnest(%s::smallint[], %s::smallint[], %s::text[])"
        " AS k(shard, rtype, id) JOIN consent_rule c ON k.rtype = %s AND c.shard = k.shard AND c.id = k.id",
        [*arrays, number],
    )
    for shard, logical, *rule in cursor.fetchall():
        there[shard, number, logical].add(tuple(rule))
    homes = {(s.key[0], s.patient) for s in stated if s.patient}
    cursor.execute(
        "SELECT p.shard, p.patient, p.facility FROM unnest(%s::smallint[], %s::text[]) AS k(shard, patient)"
        " JOIN source_patient p ON p.shard = k.shard AND p.patient = k.patient",
        [[shard for shard, _ in homes], [patient for _, patient in homes]],
    )
    senders = {(shard, patient): facility for shard, patient, facility in cursor.fetchall()}
    changed: set[Key] = set()
    for s in stated:
        before = there[s.key]
        sender = "" if s.by_api or not s.patient else senders.get((s.key[0], s.patient), "")
        wanted: set[tuple[Any, ...]] = set()
        if s.resource is not None and s.patient is not None:
            if s.key[1] == number:
                wanted = {tuple(rule) for rule in consent(s.resource)}
            else:
                names = [sender] if sender else sorted(f for f, *_ in before if "/" not in f)
                for name in names or [""]:
                    wanted |= set(treatment(s.resource, name, s.updated).items())
                if any(f.startswith(WRITTEN_BY) for f in names):
                    wanted = {(f, until) for f, until in wanted if f in names}
                wanted = {(f, until) for f, until in wanted if until > s.updated - KEPT}
        if wanted == before:
            continue
        changed.add(s.key)
        forget(cursor, [s.key])
        if s.key[1] == number and wanted:
            _insert(
                cursor,
                "consent_rule",
                _RULE,
                [(s.key[0], s.key[2], n, s.patient, *r) for n, r in enumerate(sorted(wanted))],
            )
        elif wanted:
            _insert(cursor, "treatment", _TREATMENT, [(*s.key, f, s.patient, until) for f, until in sorted(wanted)])
    return changed
