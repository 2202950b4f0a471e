"""The audit log read as AuditEvents: which entries a search asks for (http://hl7.org/fhir/R4/auditevent.html#search), newest first.

Entries are found by their time, and looked through within it; nothing is indexed beside the time, so that an entry costs no more when
it is written. Parameters here are read, not run: no web framework.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from fhir_server import audit_balp
from fhir_server.errors import Category, Fault
from fhir_server.search import dates
from fhir_server.search.date_sql import instant_condition
from fhir_server.search.query import DEFAULT_COUNT, MAX_COUNT
from fhir_server.search.statement import Context, Statement

BEFORE: Final = "_before"
"""Our parameter in ``next`` links: the place of the last event shown."""
READ_HERE: Final = (
    "_id", "_lastUpdated", "date", "patient", "entity", "agent:identifier", "altid", "agent-role", "outcome", "action", "subtype",
    "type", "address",
)  # fmt: skip
_ELSEWHERE: Final = frozenset({"_format", "_pretty", "_count", "_sort", "_total", "_summary", "_elements", BEFORE})
_SAME: Final = {
    "outcome": "outcome",
    "action": "action",
    "altid": "subject",
    "agent:identifier": "subject",
    "agent-role": "role",
}
_PLACE: Final = re.compile(r"(\d{8}T\d{6}-[0-9a-f]{32})\.(\d{1,18})(?:\.(\d{1,6}))?")
_PREFIX: Final = re.compile(r"(eq|ne|gt|lt|ge|le|sa|eb|ap)?(\d.*)", re.DOTALL)
_REST: Final = ("rest", "http://terminology.hl7.org/CodeSystem/audit-event-type|rest")


class Place(NamedTuple):
    """One event: chain, number of its entry, and its own number among the events of that entry (1 for the first or only one)."""

    chain: str
    number: int
    part: int


class Event(NamedTuple):
    """An AuditEvent as JSON values, the patient it is about (may be empty), and where it stands."""

    resource: dict[str, Any]
    patient: str
    place: Place


@dataclass(slots=True)
class Asked:
    """A search of the log. patients, ids: only events about one of the patients, of one of the ids; None: all events."""

    conditions: list[str] = field(default_factory=list)
    out: Statement = field(default_factory=Statement)
    patients: frozenset[str] | None = None
    count: int = DEFAULT_COUNT
    ascending: bool = False
    after: Place | None = None
    counted: bool = False
    only_counted: bool = False
    ids: frozenset[str] | None = None


def place_of(text: str) -> Place | None:
    """The place an id of ours names; None for any other id."""
    m = _PLACE.fullmatch(text)
    return Place(m[1], int(m[2]), int(m[3] or 1)) if m else None


def read(pairs: Sequence[tuple[str, str]], context: Context, facility: str) -> Asked:
    """A query string's parameters -> what is asked. ``facility``: only what its people did; empty: all. Raises Fault INVALID."""
    asked = Asked()
    asked.conditions.append("a.entry NOT LIKE '{\"anchor\"%'")
    if facility:
        asked.conditions.append(_contains(asked, {"facility": facility}))
    for name, value in pairs:
        if not value and name not in _ELSEWHERE:
            continue
        if name in ("date", "_lastUpdated"):
            asked.conditions.append(_times(asked, value, context, name))
        elif name in READ_HERE:
            asked.conditions.append(_any(asked, name, value))
        elif name not in _ELSEWHERE:
            told = f"The audit log is searched by {', '.join(READ_HERE)}."
            raise Fault(Category.INVALID, told, where=name)
        else:
            _control(asked, name, value)
    return asked


def _control(asked: Asked, name: str, value: str) -> None:
    if name == "_count":
        if not value.isdecimal():
            raise Fault(Category.INVALID, "_count must be a whole number.", where=name)
        asked.count = min(int(value[:9]), MAX_COUNT)
        asked.only_counted |= asked.count == 0
    elif name == "_sort":
        if value not in ("date", "-date", "_lastUpdated", "-_lastUpdated"):
            raise Fault(Category.INVALID, "The audit log is sorted by date or -date.", where=name)
        asked.ascending = not value.startswith("-")
    elif name == "_total":
        asked.counted = value == "accurate"
    elif name == "_summary":
        asked.only_counted |= value == "count"
    elif name == BEFORE:
        asked.after = place_of(value)
        if asked.after is None:
            raise Fault(Category.INVALID, "The page link is not one of this server.", where=name)


def _any(asked: Asked, name: str, value: str) -> str:
    values = [v for v in value.split(",") if v]
    if name in ("patient", "entity"):
        found = {v.rpartition("/")[2] for v in values if name == "patient" or "Patient/" in v}
        others = [v for v in values if name == "entity" and "Patient/" not in v]
        if found and not others:
            asked.patients = frozenset(found) if asked.patients is None else asked.patients & found
        told = [_contains(asked, {"patients": [p]}) for p in sorted(found)]
        told += [_contains(asked, {"resource": "/".join(v.split("/")[-2:])}) for v in others]
    elif name in _SAME:
        told = [_contains(asked, {_SAME[name]: v.rpartition("|")[2]}) for v in values]
    elif name == "subtype":
        told = [_interaction(asked, v.rpartition("|")[2]) for v in values]
    elif name == "type":
        told = ["true"] if any(v in _REST for v in values) else []
    elif name == "address":
        told = [f"starts_with(a.entry::jsonb ->> 'address', {asked.out.arg(v, 'text')})" for v in values]
    else:
        places = [place for v in values if (place := place_of(v)) is not None]
        asked.ids = frozenset(values) if asked.ids is None else asked.ids & set(values)
        told = [
            f"(a.chain = {asked.out.arg(p.chain, 'text')} AND a.number = {asked.out.arg(p.number, 'bigint')})"
            for p in places
        ]
    return f"({' OR '.join(told)})" if told else "false"


def _interaction(asked: Asked, code: str) -> str:
    if code == "operation":
        return f"NOT a.entry::jsonb ->> 'interaction' = ANY({asked.out.arg(sorted(audit_balp.RESTFUL), 'text[]')})"
    return _contains(asked, {"interaction": code})


def _contains(asked: Asked, part: dict[str, Any]) -> str:
    return f"a.entry::jsonb @> {asked.out.arg(json.dumps(part), 'text')}::jsonb"


def _times(asked: Asked, value: str, context: Context, name: str) -> str:
    told = []
    for one in value.split(","):
        m = _PREFIX.fullmatch(one.replace(" ", "+"))
        try:
            if m is None:
                raise ValueError("not a date")
            told.append(instant_condition("a.at", m[1] or "eq", dates.span(m[2], context.zone), context, asked.out))
        except (ValueError, OverflowError):
            raise Fault(Category.INVALID, f"{name} must be a date or an instant.", where=name) from None
    return f"({' OR '.join(told)})"


async def page(db: Any, asked: Asked, server: str) -> tuple[list[Event], bool]:
    """A page of events, and whether there are more. ``db``: asyncpg, over the log itself."""
    out = Statement([*asked.out.args])
    conditions = [*asked.conditions]
    sign = ">" if asked.ascending else "<"
    if asked.after is not None:
        chain, number = out.arg(asked.after.chain, "text"), out.arg(asked.after.number, "bigint")
        # The entry of the last event may have more of them, so the page begins with it again.
        conditions.append(
            f"(a.at, a.chain, a.number) {sign}= (SELECT e.at, e.chain, e.number FROM audit_entry e "  # noqa: S608 -- placeholders only
            f"WHERE e.chain = {chain} AND e.number = {number})"
        )
    order = " ASC" if asked.ascending else " DESC"
    rows = await db.fetch(
        f"SELECT a.chain, a.number, a.at, a.entry FROM audit_entry a WHERE {' AND '.join(conditions)} "  # noqa: S608 -- placeholders only
        f"ORDER BY a.at{order}, a.chain{order}, a.number{order} LIMIT {asked.count + 2}",
        *out.args,
    )
    found: list[Event] = []
    for row in rows:
        found += events(row, server, asked)
        if len(found) > asked.count:
            break
    return found[: asked.count], len(found) > asked.count


def events(row: Any, server: str, asked: Asked) -> list[Event]:
    """The events of one entry that are asked for."""
    out = []
    patients: list[str] = json.loads(row["entry"]).get("patients") or [""]
    made = audit_balp.to_fhir(row["chain"], row["number"], row["at"], row["entry"], server=server)
    for number, (resource, patient) in enumerate(zip(made, patients, strict=False), start=1):
        place = Place(row["chain"], row["number"], number)
        if asked.after is not None and place[:2] == asked.after[:2] and number <= asked.after.part:
            continue
        if (asked.patients is None or patient in asked.patients) and (asked.ids is None or resource["id"] in asked.ids):
            out.append(Event(resource, patient, place))
    return out


async def total(db: Any, asked: Asked) -> int:
    """How many events all pages together have."""
    out = Statement([*asked.out.args])
    each = "greatest(1, jsonb_array_length(a.entry::jsonb -> 'patients'))"
    if asked.ids is not None:
        return len((await page(db, replace(asked, count=MAX_COUNT, after=None), ""))[0])
    if asked.patients is not None:
        wanted = out.arg(sorted(asked.patients), "text[]")
        each = (
            f"(SELECT count(*) FROM jsonb_array_elements_text(a.entry::jsonb -> 'patients') p WHERE p = ANY({wanted}))"  # noqa: S608
        )
    return int(
        await db.fetchval(
            f"SELECT coalesce(sum({each}), 0) FROM audit_entry a WHERE {' AND '.join(asked.conditions)}",  # noqa: S608 -- placeholders only
            *out.args,
        )
    )


async def one(db: Any, logical: str, server: str, facility: str) -> Event | None:
    """The event of an id; None when there is none, or it is not about what people of the facility did."""
    place = place_of(logical)
    row = None
    if place is not None:
        row = await db.fetchrow(
            "SELECT chain, number, at, entry FROM audit_entry WHERE chain = $1 AND number = $2",
            place.chain,
            place.number,
        )
    if row is None or (facility and json.loads(row["entry"]).get("facility") != facility):
        return None
    return next(iter(events(row, server, Asked(ids=frozenset({logical})))), None)
