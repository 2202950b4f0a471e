"""What rows one asker may see, compiled into SQL: every statement that reads resources for somebody is wrapped here.

``resource`` and ``resource_history`` are shadowed by common table expressions of the same names that hold the visible rows alone.
 PostgreSQL inlines them (NOT MATERIALIZED), so indexes are used as before, and a list, a count, an include, a chain, ``_has``,
a history and a read of one asker cannot disagree: none of them can name a row outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from conformance.capability import RESOURCE_TYPES
from fhir_server.search.query import Filter, parse
from fhir_server.search.sql import where_of
from fhir_server.search.statement import Context, Statement
from fhir_server.store.access_rows import DIRECTORIES, MADE_BY, OPENED_BY, WRITTEN_BY
from mappings.directory import facility_organization_id

_DIRECTORIES: Final = sorted(RESOURCE_TYPES[name] for name in DIRECTORIES)
_DEVICE: Final = RESOURCE_TYPES["Device"]
_SUBSCRIPTION: Final = RESOURCE_TYPES["Subscription"]
_OF_NOBODY: Final = parse("Device", [("patient:missing", "true")], strict=True).filters


@dataclass(frozen=True, slots=True)
class Relation:
    """The asker sees patients treated by the facility. since: visits and orders that ended before count no more; now: aware;
    default: what holds for patients who gave no Consent (opt-out: True, opt-in: False)."""

    facility: str
    subject: str
    since: datetime
    now: datetime
    default: bool

    def condition(self, alias: str, out: Statement, context: Context) -> str:
        """SQL: the row of the alias is about a patient the asker may see."""
        names = out.arg(facility_names(self.facility), "text[]")
        own, user = out.arg(self.facility, "text"), out.arg(OPENED_BY + self.subject, "text")
        written = out.arg(WRITTEN_BY + self.facility, "text")
        since, now, default = (
            out.arg(self.since, "timestamptz"),
            out.arg(self.now, "timestamptz"),
            out.arg(self.default, "bool"),
        )
        rules = (
            "SELECT bool_and(q.permit) FROM source_patient c "  # noqa: S608 -- placeholders only
            "JOIN consent_rule q ON q.shard = c.shard AND q.patient = c.patient "
            f"WHERE c.person = s.person AND q.low <= {now} AND q.high > {now} AND q.facility"
        )
        return (
            f"({_directory(alias, out, context)} OR EXISTS ("
            "SELECT FROM source_patient s JOIN source_patient o ON o.person = s.person "
            "JOIN treatment t ON t.shard = o.shard AND t.patient = o.patient "
            f"WHERE s.shard = {alias}.shard AND s.patient = {alias}.patient "
            f"AND (t.facility = {user} AND t.until > {now} "
            f"OR t.facility = {written} AND t.until > {since} AND s.facility = {own} "
            f"OR t.facility = ANY({names}) AND t.until > {since} AND "
            f"(s.facility = {own} OR coalesce(({rules} = ANY({names})), ({rules} = ''), {default})))))"
        )

    def of_patient(self, shard: int, patient: str) -> tuple[str, list[Any]]:
        """SQL, one row: ``treats``, does the facility (or the user who opened it) treat the patient; ``made``, did a clinician of
        the facility register this Patient; ``permits``, may it see what other facilities hold about him."""
        out = Statement()
        names, now = out.arg(facility_names(self.facility), "text[]"), out.arg(self.now, "timestamptz")
        rules = (
            "SELECT bool_and(q.permit) FROM source_patient c "  # noqa: S608 -- placeholders only
            "JOIN consent_rule q ON q.shard = c.shard AND q.patient = c.patient "
            f"WHERE c.person = s.person AND q.low <= {now} AND q.high > {now} AND q.facility"
        )
        opened = f"t.facility = {out.arg(OPENED_BY + self.subject, 'text')} AND t.until > {now}"
        treated = f"t.facility = ANY({names}) AND t.until > {out.arg(self.since, 'timestamptz')}"
        rows = (
            "EXISTS (SELECT FROM source_patient o JOIN treatment t ON t.shard = o.shard AND t.patient = o.patient "
            "WHERE o.person = s.person AND "
        )
        text = (
            f"SELECT {rows}({opened} OR {treated})) AS treats, "  # noqa: S608 -- placeholders only
            "EXISTS (SELECT FROM treatment t WHERE t.shard = s.shard AND t.patient = s.patient "
            f"AND t.facility = {out.arg(MADE_BY + self.facility, 'text')}) AS made, "
            f"coalesce(({rules} = ANY({names})), ({rules} = ''), {out.arg(self.default, 'bool')}) OR {rows}{opened}) AS permits "
            f"FROM source_patient s WHERE s.shard = {out.arg(shard, 'smallint')} AND s.patient = {out.arg(patient, 'text')}"
        )
        return text, out.args


@dataclass(frozen=True, slots=True)
class Scope:
    """relation  None: all patients
    hidden    bits of the sensitive classes (mappings.sensitive) the asker has no grant for
    narrowed  type -> alternatives, each the filters of one SMART scope with a query; a row must meet one of them
    patient   logical id of the one patient of a ``patient/`` token: nothing about others; directories stay
    subject   who asks: with a relation or a patient he sees, beside that, his own Subscriptions
    others    does he see Subscriptions of others? They tell where somebody is told of what
    """

    context: Context
    relation: Relation | None = None
    hidden: int = 0
    narrowed: Mapping[str, Sequence[Sequence[Filter]]] = field(default_factory=dict)
    patient: str = ""
    subject: str = ""
    others: bool = True

    @property
    def _plain(self) -> bool:
        return self.relation is None and not self.hidden and not self.narrowed and not self.patient

    @property
    def personal(self) -> bool:
        """True for somebody who sees what concerns some patients alone."""
        return self.relation is not None or bool(self.narrowed) or bool(self.patient)

    def shows_all(self, type: str) -> bool:
        """True when nothing of the type is hidden."""
        return self._plain and (self.others or type != "Subscription")

    def wrap(self, text: str, args: Sequence[Any]) -> tuple[str, list[Any]]:
        """A statement with ``$n`` parameters -> the same over the visible rows, and its arguments."""
        # Every statement names the types it reads in its arguments.
        if self._plain and (self.others or not any(_names(a, _SUBSCRIPTION) for a in args)):
            return text, list(args)
        out = Statement(list(args))
        parts = []
        for table, alias in (("resource", "r"), ("resource_history", "h")):
            if table in text:
                shown = " AND ".join(self._conditions(alias, out)) or "true"
                parts.append(f"{table} AS NOT MATERIALIZED (SELECT {alias}.* FROM {table} {alias} WHERE {shown})")  # noqa: S608
        if not parts:
            return text, list(args)
        start = text.lstrip()
        rest = f", {start[5:]}" if start[:5].upper() == "WITH " else f" {start}"
        return f"WITH {', '.join(parts)}{rest}", out.args

    def _conditions(self, alias: str, out: Statement) -> list[str]:
        found = []
        if alias == "h":
            # What a report is about may show later, by its results. The current rows are the visible ones, see ``wrap``.
            place = "r.shard = h.shard AND r.rtype = h.rtype AND r.id = h.id"
            found.append(f"EXISTS (SELECT FROM resource r WHERE {place})")
        if not self.others:
            rtype, subject = out.arg(_SUBSCRIPTION, "smallint"), out.arg(self.subject, "text")
            of_others = f"SELECT u.id FROM subscription u WHERE u.subject <> {subject}"  # noqa: S608 -- placeholders only
            found.append(f"({alias}.rtype <> {rtype} OR {alias}.id NOT IN ({of_others}))")
        if self.patient:
            about, directory = out.arg(self.patient, "text"), _directory(alias, out, self.context)
            found.append(f"({alias}.patient = {about} OR {directory} OR {self._own(alias, out)})")
        if self.hidden:
            found.append(
                f"({alias}.sensitivity IS NULL OR {alias}.sensitivity & {out.arg(self.hidden, 'smallint')}::smallint = 0)"
            )
        for name, alternatives in self.narrowed.items():
            each = [" AND ".join(where_of(name, filters, self.context, out).each()) for filters in alternatives]
            meets = " OR ".join(f"({c})" for c in each)
            if alias == "h":  # past versions are not indexed: they are shown while the current version meets the scope
                place = "r.shard = h.shard AND r.rtype = h.rtype AND r.id = h.id"
                meets = f"EXISTS (SELECT FROM resource r WHERE {place} AND ({meets}))"
            found.append(f"({alias}.rtype <> {out.arg(RESOURCE_TYPES[name], 'smallint')} OR {meets})")
        if self.relation:
            found.append(f"({self.relation.condition(alias, out, self.context)} OR {self._own(alias, out)})")
        return found

    def _own(self, alias: str, out: Statement) -> str:
        """SQL: the row is a Subscription of the asker."""
        rtype, subject = out.arg(_SUBSCRIPTION, "smallint"), out.arg(self.subject, "text")
        own = f"SELECT u.id FROM subscription u WHERE u.subject = {subject}"  # noqa: S608 -- placeholders only
        return f"{alias}.rtype = {rtype} AND {alias}.id IN ({own})"


def _names(argument: Any, rtype: int) -> bool:
    return rtype in argument if isinstance(argument, (list, tuple)) else argument == rtype


def _directory(alias: str, out: Statement, context: Context) -> str:
    """SQL: the row of the alias is about no patient. What a Device says of its patient is no column, so one with a patient is none
    of a directory; past versions are shown while the current one is."""
    types = out.arg(_DIRECTORIES, "smallint[]")
    text = f"{alias}.patient IS NULL AND {alias}.rtype = ANY({types})"
    if alias == "r":
        nobody = " AND ".join(where_of("Device", _OF_NOBODY, context, out).each())
        text += f" AND (r.rtype <> {_DEVICE} OR {nobody})"
    return f"({text})"


def facility_names(facility: str) -> list[str]:
    """How the rows of ``treatment`` and ``consent_rule`` name a facility."""
    return (
        [facility, f"Organization/{facility}", f"Organization/{facility_organization_id(facility)}"] if facility else []
    )


def since(now: datetime, days: int) -> datetime:
    """Visits and orders that ended before this time count no more."""
    return now - timedelta(days=days)


class ScopedConnection:
    """An asyncpg pool or connection that reads the visible rows alone."""

    def __init__(self, db: Any, wrap: Callable[[str, Sequence[Any]], tuple[str, list[Any]]]) -> None:
        self._db = db
        self._wrap = wrap

    async def fetch(self, text: str, *args: Any) -> Any:
        """As asyncpg's."""
        text, given = self._wrap(text, args)
        return await self._db.fetch(text, *given)

    async def fetchrow(self, text: str, *args: Any) -> Any:
        """As asyncpg's."""
        text, given = self._wrap(text, args)
        return await self._db.fetchrow(text, *given)

    async def fetchval(self, text: str, *args: Any) -> Any:
        """As asyncpg's."""
        text, given = self._wrap(text, args)
        return await self._db.fetchval(text, *given)
