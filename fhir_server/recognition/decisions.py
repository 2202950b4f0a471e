"""Decisions on reminders: written once, never changed, taken back only by a further decision (tables ``decision`` and ``ledger``).

A reminder has one line of decisions: the first adopts or declines, the second revokes it, the third decides again, and so on; the
primary key (card, sequence) leaves no room for two at one place. The row of ``decision`` and its ledger row stand or fall together: the
ledger row is on disk before the transaction of the other commits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import orjson

from conformance import fhirjson
from fhir_server.errors import Category, Fault
from fhir_server.recognition import citation, order, rules
from fhir_server.recognition.citation import Source
from fhir_server.recognition.explain import Names
from fhir_server.recognition.ledger import Row, canonical
from fhir_server.recognition.statement import Statement
from fhir_server.store import reader
from mappings import codes
from mappings.catalogue import Item

if TYPE_CHECKING:
    from fhir_server.services import Services

_AWAY: Final = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError)
_REMINDER: Final = """
SELECT kind, at, person, facility, orderable, outcome, department, doctor, entry FROM ledger
WHERE card = $1 AND kind IN ('reminder', 'visit') ORDER BY at DESC, chain, number DESC LIMIT 1"""
_LINE: Final = "SELECT sequence, id, action, content, at, entry FROM decision WHERE card = $1 ORDER BY sequence"
_INSERT: Final = """
INSERT INTO decision (card, sequence, id, at, action, revokes, person, facility, department, doctor, orderable, reason, refusal,
  price_fen, content, entry)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) ON CONFLICT DO NOTHING RETURNING id"""
_BY_ID: Final = "SELECT entry FROM decision WHERE id = $1"
_OF_PERSON: Final = "SELECT entry FROM decision WHERE person = $1 ORDER BY at DESC, card, sequence DESC LIMIT $2"
_CITATIONS: Final = "SELECT entry FROM ledger WHERE card = $1 AND kind = 'citation' ORDER BY at, chain, number"


@dataclass(frozen=True, slots=True)
class Reminder:
    """A reminder as the ledger has it. ``visit``: from the start of a visit, where nothing waits for a decision."""

    card: str
    visit: bool
    at: datetime
    person: str | None
    facility: str
    orderable: str | None
    outcome: str | None
    department: str | None
    doctor: str | None
    entry: Mapping[str, Any]

    @property
    def members(self) -> list[Mapping[str, Any]]:
        """The members of its decision, or decisions."""
        decisions = [self.entry["decision"]] if "decision" in self.entry else self.entry.get("decisions", [])
        return [m for d in decisions for m in d["members"]]


@dataclass(frozen=True, slots=True)
class Recorded:
    """A decision on disk. ``new``: False when the same request had been made before; citation: of an adoption."""

    decision: Mapping[str, Any]
    new: bool
    citation: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who speaks. facility: empty for the consortium, which sees all; subject; service: the door; grants: sensitivity classes he may
    see; user: the clinician he names."""

    facility: str
    subject: str
    service: str
    grants: frozenset[str] = frozenset()
    user: str = ""


async def reminder(db: Any, card: str, caller: Caller, items: Mapping[str, Item]) -> Reminder:
    """The reminder of a card. Raises Fault NOT_FOUND: of another facility, or with results the caller may not see, is as if none."""
    row = await db.fetchrow(_REMINDER, card)
    found = None
    if row is not None and caller.facility in ("", row["facility"]):
        found = Reminder(
            card, row["kind"] == "visit", row["at"], row["person"], row["facility"], row["orderable"], row["outcome"],
            row["department"], row["doctor"], orjson.loads(row["entry"]),
        )  # fmt: skip
    if found is None or not caller.grants.issuperset(_sensitive(found.members, items)):
        raise Fault(Category.NOT_FOUND, "There is no reminder of that id.", where="reminder")
    return found


def _sensitive(members: Iterable[Mapping[str, Any]], items: Mapping[str, Item]) -> list[str]:
    """Sensitivity classes of the results shown."""
    shown = (items.get(m["item"]) for m in members if m["result"])
    return sorted({item.sensitivity for item in shown if item and item.sensitivity})


async def record(services: Services, statement: Statement, caller: Caller, names: Names) -> Recorded:
    """Writes a decision, or finds the one written for the same request.

    Raises Fault NOT_FOUND (no such reminder), CONFLICT (decided already, nothing to revoke, key used for something else, a
    result changed since), UNAVAILABLE (cannot be kept now).
    """
    await _ready(services)
    try:
        async with services.ledger.turns, services.pool.acquire() as connection, connection.transaction():
            return await _record(services, connection, statement, caller, names)
    except _AWAY:
        raise Fault(Category.UNAVAILABLE, "The decision cannot be kept now. Send it again later.") from None


async def _ready(services: Services) -> None:
    """A reminder that still waits in the spool is not unknown. Raises Fault UNAVAILABLE while it may be there."""
    if not await services.ledger.catch_up():
        raise Fault(Category.UNAVAILABLE, "The ledger is behind. Send it again later.")


async def _record(services: Services, connection: Any, said: Statement, caller: Caller, names: Names) -> Recorded:
    at = services.clock()
    found = await reminder(connection, said.card, caller, services.rules.items)
    if found.visit:
        raise Fault(Category.CONFLICT, "The list of a visit's start opens no decision.", where="reminder")
    line = await connection.fetch(_LINE, said.card)
    if repeat := await _same(connection, said, line):
        return repeat
    last = _place(said, line)
    sources: Mapping[str, Source] = {}
    if said.action == "adopt":
        sources = await _sources(services, connection, found.members)
        _check_unchanged(found.members, sources)
    entry = _entry(services, said, found, at, len(line) + 1, last, caller)
    row = Row("decision", at, found.facility, entry, found.person, found.orderable, said.action)
    written = await connection.fetchval(
        _INSERT, said.card, len(line) + 1, said.id, at, said.action, entry["revokes"], found.person, found.facility,
        entry["department"], said.user, found.orderable, said.reason.code if said.reason else None, said.refusal,
        entry["price_fen"], said.content(), canonical(entry),
    )  # fmt: skip
    if written is None:  # somebody was faster
        repeat = await _same(connection, said, await connection.fetch(_LINE, said.card))
        if repeat is None:
            raise Fault(Category.CONFLICT, "The reminder has been decided meanwhile.", where="reminder")
        return repeat
    if said.action != "adopt":
        await services.ledger.record(row)
        return Recorded(entry, True)
    cited = _cite(services, found, sources, at, names, said.id, replace(caller, user=said.user))
    await services.ledger.record(row, Row("citation", at, found.facility, cited, found.person, found.orderable))
    return Recorded(entry, True, cited)


async def _same(connection: Any, said: Statement, line: Sequence[Any]) -> Recorded | None:
    for row in line:
        if row["id"] != said.id:
            continue
        if row["content"] != said.content():
            raise Fault(Category.CONFLICT, "That key was used for another decision on this reminder.", where="key")
        entry = orjson.loads(row["entry"])
        return Recorded(entry, False, await citation_of(connection, said.card, said.id))
    return None


def _place(said: Statement, line: Sequence[Any]) -> str | None:
    """Id of the decision that is taken back, None when none is. Raises Fault CONFLICT when the statement has no place in the line."""
    in_force = line[-1] if line and line[-1]["action"] != "revoke" else None
    if said.action != "revoke":
        if in_force is not None:
            raise Fault(
                Category.CONFLICT,
                f"The reminder is decided already ({in_force['id']}); revoke that first.",
                where="reminder",
            )
        return None
    if in_force is None or (said.revokes and said.revokes != in_force["id"]):
        raise Fault(Category.CONFLICT, "That decision is not in force; there is nothing to revoke.", where="revokes")
    revoked: str = in_force["id"]
    return revoked


def _check_unchanged(members: Sequence[Mapping[str, Any]], sources: Mapping[str, Source]) -> None:
    """Raises Fault CONFLICT when a result is not any more what the reminder showed, or when it showed none."""
    shown = [m["result"]["observation"] for m in members if m["result"]]
    if not shown:
        raise Fault(Category.CONFLICT, "The reminder shows no result that could be adopted.", where="reminder")
    for reference in shown:
        source = sources.get(f"Observation/{citation.observation_of(reference)}")
        if source is None or source.version != citation.version_of(reference):
            raise Fault(
                Category.CONFLICT,
                "A result was corrected or withdrawn since the reminder; ask again before adopting.",
                where="reminder",
            )


async def _sources(services: Services, connection: Any, members: Sequence[Mapping[str, Any]]) -> dict[str, Source]:
    wanted = []
    for result in (m["result"] for m in members if m["result"]):
        wanted.append(("Observation", citation.observation_of(result["observation"])))
        if result["report"]:
            wanted.append(("DiagnosticReport", result["report"].partition("/")[2]))
    found = await reader.read_many(connection, services.codec, wanted)
    return {
        f"{kind}/{logical}": Source(fhirjson.loads(stored.body), stored.version)
        for (kind, logical), stored in found.items()
        if not stored.deleted
    }


def _entry(
    services: Services,
    said: Statement,
    found: Reminder,
    at: datetime,
    sequence: int,
    revokes: str | None,
    caller: Caller,
) -> dict[str, Any]:
    decision = found.entry["decision"]
    known = services.rules.among(services.profiles)
    zone = services.settings.zone
    day = at.astimezone(zone).date().isoformat()
    code = found.orderable or ""
    orderable = known.orderables.get(code) or order.single(known.items.get(code))
    profile = services.profiles.get(found.facility)
    price = rules.price(orderable, profile, day) if orderable else None
    own = (
        profile is not None
        and orderable is not None
        and codes.prices(profile.orders, day).get(orderable.code) is not None
    )
    adopted = [
        {"item": m["item"], "observation": m["result"]["observation"], "report": m["result"]["report"]}
        for m in decision["members"]
        if m["result"]
    ]
    return said.said() | {
        "id": said.id,
        "key": said.key,
        "sequence": sequence,
        "at": at.isoformat(),
        "by": caller.subject,
        "service": caller.service,
        "facility": found.facility,
        "department": said.department or found.department,
        "patient": found.entry.get("patient"),
        "encounter": found.entry.get("encounter"),
        "placers": found.entry.get("placers", []),
        "orderable": decision["orderable"],
        "answer": decision["outcome"],
        "answer_at": decision["at"],
        "answer_rules": decision["rules"],
        "policy": decision["policy"],
        "rules": services.rules.version,
        "catalogue": services.rules.catalogue_version,
        "price_fen": price,
        "price": {"day": day, "source": "facility" if own else "catalogue"} if price is not None else None,
        "refusal": said.refusal,
        "reason_text": said.reason.zh if said.reason else None,
        "sensitive": _sensitive(decision["members"], services.rules.items),
        "revokes": revokes,
        "adopted": adopted if said.action == "adopt" else [],
        "reports": sorted({a["report"] or a["observation"].partition("/_history")[0] for a in adopted})
        if said.action == "adopt"
        else [],
    }


# --- looking and citing ------------------------------------------------------------------------------------------------------


def _cite(
    services: Services,
    found: Reminder,
    sources: Mapping[str, Source],
    at: datetime,
    names: Names,
    decision: str | None,
    caller: Caller,
) -> dict[str, Any]:
    known = services.rules.among(services.profiles)
    cited = citation.reports(found.members, sources, known, names, found.facility, at)
    return {
        "card": found.card,
        "decision": decision,
        "by": caller.subject,
        "user": caller.user,
        "at": at.isoformat(),
        "cited": cited,
        "text": {"zh": citation.text(cited, names, "zh"), "en": citation.text(cited, names, "en")},
        "reports": sorted({r["report"].partition("/_history")[0] for r in cited}),
    }


async def cite(services: Services, card: str, caller: Caller, names: Names) -> tuple[dict[str, Any], str | None]:
    """A citation without a decision: the results of a reminder are written into the record. Returns it with the Patient's logical id.
    Raises Fault as ``record`` does."""
    await _ready(services)
    at = services.clock()
    try:
        async with services.pool.acquire() as connection:
            found = await reminder(connection, card, caller, services.rules.items)
            sources = await _sources(services, connection, found.members)
        _check_unchanged(found.members, sources)
        entry = _cite(services, found, sources, at, names, None, caller)
        await services.ledger.record(Row("citation", at, found.facility, entry, found.person, found.orderable))
    except _AWAY:
        raise Fault(Category.UNAVAILABLE, "The citation cannot be kept now. Send it again later.") from None
    return entry, found.entry.get("patient")


async def view(services: Services, card: str, caller: Caller, names: Names) -> dict[str, Any]:
    """The results behind a reminder as they are now, with a ledger row that they were opened. A result that was withdrawn or corrected
    since is named and not shown. Raises Fault NOT_FOUND, UNAVAILABLE."""
    await _ready(services)
    at = services.clock()
    try:
        async with services.pool.acquire() as connection:
            found = await reminder(connection, card, caller, services.rules.items)
            sources = await _sources(services, connection, found.members)
        changed = sorted(
            {
                m["result"]["observation"]
                for m in found.members
                if m["result"] and _changed(m["result"]["observation"], sources)
            }
        )
        standing = [m for m in found.members if m["result"] and m["result"]["observation"] not in changed]
        known = services.rules.among(services.profiles)
        results = citation.reports(standing, sources, known, names, found.facility, at)
        reports = sorted({r["report"].partition("/_history")[0] for r in results})
        entry = {"card": card, "by": caller.subject, "user": caller.user, "reports": reports, "changed": changed}
        await services.ledger.record(Row("view", at, found.facility, entry, found.person, found.orderable))
    except _AWAY:
        raise Fault(Category.UNAVAILABLE, "The results cannot be shown now.") from None
    return {
        "reminder": card, "at": at.isoformat(), "patients": [found.entry.get("patient")], "results": results, "changed": changed,
    }  # fmt: skip


def _changed(reference: str, sources: Mapping[str, Source]) -> bool:
    source = sources.get(f"Observation/{citation.observation_of(reference)}")
    return source is None or source.version != citation.version_of(reference)


async def citation_of(db: Any, card: str, decision: str) -> dict[str, Any] | None:
    """The citation an adoption wrote; None when there is none (yet)."""
    for row in await db.fetch(_CITATIONS, card):
        entry: dict[str, Any] = orjson.loads(row["entry"])
        if entry["decision"] == decision:
            return entry
    return None


async def reopened_of(db: Any, card: str) -> list[dict[str, Any]]:
    """Items of a reminder whose mark or assessment was taken back since, with the reason and when that was seen."""
    rows = await db.fetch("SELECT at, entry FROM ledger WHERE card = $1 AND kind = 'reopened' ORDER BY at", card)
    return [item | {"at": row["at"].isoformat()} for row in rows for item in orjson.loads(row["entry"])["items"]]


async def line_of(db: Any, card: str) -> list[dict[str, Any]]:
    """All decisions on a reminder, oldest first."""
    return [orjson.loads(row["entry"]) for row in await db.fetch(_LINE, card)]


async def by_id(db: Any, id: str, caller: Caller) -> dict[str, Any]:
    """One decision. Raises Fault NOT_FOUND."""
    text = await db.fetchval(_BY_ID, id)
    entry: dict[str, Any] | None = orjson.loads(text) if text else None
    if entry is None or not visible(entry, caller):
        raise Fault(Category.NOT_FOUND, "There is no decision of that id.")
    return entry


async def of_person(db: Any, person: str, limit: int = 500) -> list[dict[str, Any]]:
    """Decisions about a person, newest first, of every facility."""
    return [orjson.loads(row["entry"]) for row in await db.fetch(_OF_PERSON, person, limit)]


def visible(entry: Mapping[str, Any], caller: Caller) -> bool:
    """May the caller see a decision? It is of his facility, and about nothing sensitive he has no grant for."""
    return caller.facility in ("", entry["facility"]) and caller.grants.issuperset(entry["sensitive"])


def state(line: Sequence[Mapping[str, Any]]) -> str:
    """``open``, ``adopted``, ``declined``, or ``not-counted`` (put aside for a local reason that is no refusal)."""
    last = line[-1] if line else None
    if last is None or last["action"] == "revoke":
        return "open"
    if last["action"] == "adopt":
        return "adopted"
    return "declined" if last["refusal"] else "not-counted"
