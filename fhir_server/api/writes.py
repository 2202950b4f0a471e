"""Create, update and delete with their conditions, inside one psycopg transaction
(http://hl7.org/fhir/R4/http.html#create, #update, #delete, #ccreate, #cond-update).

Everything a write entails commits with it: history, search rows, flat results, identity links and outbox rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

from conformance import fhirjson
from conformance.capability import RESOURCE_TYPES, TYPE_NAMES
from conformance.validator import check_fully
from fhir_server.access import Principal
from fhir_server.api import json_patch
from fhir_server.api.content import query_pairs
from fhir_server.api.responses import Invalid
from fhir_server.audit_search import place_of
from fhir_server.errors import Category, Fault
from fhir_server.identity import registry
from fhir_server.publish import outbox, subscription_rows
from fhir_server.publish.endpoints import Endpoints
from fhir_server.publish.subscription import Wanted, accept
from fhir_server.scope import claims
from fhir_server.scope.pseudonym import require_no_identity
from fhir_server.scope.rows import Scope
from fhir_server.search import include, params, run
from fhir_server.search.include import Target
from fhir_server.search.page import Row, Sql
from fhir_server.search.query import Query, parse
from fhir_server.search.statement import Context
from fhir_server.store import posted_parameters, reader, repository, rows
from fhir_server.store.access_rows import DIRECTORIES, literals
from fhir_server.store.body import Codec
from fhir_server.store.change import Change, Origin
from mappings.ids import shard_of_id

ATTEMPTS: Final = 4
"""How often a transaction is tried that the database broke off because of another one."""


@dataclass(frozen=True, slots=True)
class Written:
    """The outcome of one write: HTTP status, and the version that is current now (None after deleting nothing)."""

    status: int
    change: Change | None


@dataclass(frozen=True, slots=True)
class Door:
    """Who writes, what he may see, by searches (``s``) and by reads (``r``), and where notifications may be sent for him."""

    asker: Principal
    searches: Scope
    reads: Scope
    endpoints: Endpoints


@dataclass(slots=True)
class Writer:
    """The writes of one transaction. ``finish`` must be called once, before the commit."""

    conn: psycopg.Connection[Any]
    codec: Codec
    context: Context
    facility: str
    allowed: Callable[[str], bool]
    """Whether resources of a type may be searched."""
    door: Door
    changes: list[Change] = field(default_factory=list)
    made: set[Target] = field(default_factory=set)
    """What a transaction makes under new ids, known before it is written."""

    @property
    def origin(self) -> Origin:
        """Where these writes come from: a caller of the API."""
        return Origin(self.facility, None, None, self.context.now)

    def create(self, resource: dict[str, Any], if_none_exist: str | None = None) -> Written:
        """A new resource with an id of ours; with ``if_none_exist`` (a query) only when nothing matches it.

        201, or 200 with the one that matches. Raises Fault MULTIPLE when several match.
        """
        if if_none_exist is not None:
            existing = self.match(resource["resourceType"], if_none_exist)
            if existing is not None:
                return Written(200, self.current(resource["resourceType"], existing))
        return self._put(resource, create=True)

    def place(self, resource: dict[str, Any]) -> Written:
        """A new resource under the id that was just made for it (``made``)."""
        return self._put(resource, fresh=True)

    def update(self, resource: dict[str, Any], expected: str | None = None, *, absent: bool = False) -> Written:
        """The new state of the resource ``id``; 200, or 201 when there was none. ``expected``: version id of If-Match, or ``*``;
        ``absent``: only when there is none (If-None-Match: *)."""
        kind, logical = resource["resourceType"], resource["id"]
        if absent and self.current(kind, logical) is not None:
            raise Fault(Category.PRECONDITION, f"{kind}/{logical} exists already.", where="If-None-Match")
        if expected == "*" and self.current(kind, logical) is None:
            raise Fault(Category.PRECONDITION, "There is no such resource to update.", where="If-Match")
        return self._put(resource, expected=expected)

    def conditional_update(
        self, resource: dict[str, Any], query: str, expected: str | None = None, *, absent: bool = False
    ) -> Written:
        """The new state of the one resource that matches the query, or a new one when none does; the rest as in ``update``.

        Raises Fault MULTIPLE when several match, INVALID when the resource names another id than the match, CONFLICT when none does
        and the resource names one that exists.
        """
        kind = resource["resourceType"]
        existing = self.match(kind, query, expected)
        if existing is None:
            self.require_free(resource)
            return self._put(resource, create="id" not in resource)
        if absent:
            raise Fault(Category.PRECONDITION, f"A {kind} matches the condition.", where="If-None-Match")
        if resource.get("id", existing) != existing:
            raise Fault(Category.INVALID, "The resource that matches the condition has another id.", where=f"{kind}.id")
        return self._put({**resource, "id": existing}, expected=expected)

    def patch(
        self,
        kind: str,
        logical: str,
        patch: json_patch.Patch,
        expected: str | None = None,
        settle: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ) -> Written:
        """The patched state of a resource; ``settle`` has the last word on it before it is checked.

        Raises Fault NOT_FOUND, GONE, UNPROCESSABLE when the patch does not fit or its result is not valid.
        """
        _require_unlogged(kind, logical)
        for _ in range(ATTEMPTS):
            before = self.there(kind, logical)
            if (wanted := _number(expected)) is not None and wanted != before.version:
                raise Fault(Category.PRECONDITION, f"{kind}/{logical} is not at version {expected}.", where="If-Match")
            resource = settle(json_patch.applied(patch, fhirjson.loads(before.body)))
            require_valid(resource)
            try:
                return self._put(resource, expected=str(before.version))
            except Fault as fault:
                # Somebody was faster: the patch is applied to what they left, unless the caller named a version.
                if fault.category is not Category.PRECONDITION or wanted is not None:
                    raise
        raise Fault(Category.CONFLICT, "Others change the same resource at the same time. Try again.")

    def conditional_patch(self, kind: str, query: str, patch: json_patch.Patch, expected: str | None = None) -> Written:
        """Patches the one resource that matches. Raises Fault NOT_FOUND when none does, MULTIPLE when several do."""
        existing = self.match(kind, query)
        if existing is None:
            raise Fault(Category.NOT_FOUND, f"No {kind} matches the condition.")
        return self.patch(kind, existing, patch, expected)

    def delete(self, kind: str, logical: str, expected: str | None = None) -> Written:
        """204; deleting what is not there, or no longer there, is no error."""
        _require_unlogged(kind, logical)
        if not self._sees(kind, logical):
            if expected is not None:
                raise Fault(Category.PRECONDITION, f"{kind}/{logical} is not at version {expected}")
            return Written(204, None)
        if kind == "SearchParameter":
            self._require_steward(self.current(kind, logical))
        change = repository.delete(
            self.conn, self.codec, kind, logical, origin=self.origin, expected_version=_number(expected)
        )
        if change is not None:
            self.changes.append(change)
            if kind == "SearchParameter":
                posted_parameters.retire(self.conn, logical)
            if kind == "Subscription":
                subscription_rows.remove(self.conn, logical)
        return Written(204, change)

    def conditional_delete(self, kind: str, query: str, expected: str | None = None) -> Written:
        """Deletes the one resource that matches. Raises Fault MULTIPLE when several do."""
        existing = self.match(kind, query, expected)
        return self.delete(kind, existing, expected) if existing is not None else Written(204, None)

    def require_free(self, resource: Mapping[str, Any]) -> None:
        """Raises Fault CONFLICT when the id that comes with a conditional update, to be used if nothing matches, is in use."""
        kind = resource["resourceType"]
        if "id" in resource and self.current(kind, resource["id"]) is not None:
            raise Fault(
                Category.CONFLICT,
                f"{kind}/{resource['id']} exists and does not match the condition.",
                where=f"{kind}.id",
            )

    def _put(
        self, resource: dict[str, Any], *, create: bool = False, fresh: bool = False, expected: str | None = None
    ) -> Written:
        if not create and not fresh:
            _require_unlogged(resource["resourceType"], resource["id"])
            self._require_place(resource["resourceType"], resource["id"])
        self._require_patient(resource)
        self._require_references(resource, new=create or fresh)
        if resource["resourceType"] == "SearchParameter":
            before = None if create else self.current("SearchParameter", resource["id"])
            self._require_steward(before, resource)
            posted_parameters.check(self.conn, resource if not create else {**resource, "id": ""})
        relation, wanted = self.door.reads.relation, None
        if relation is not None and not claims.is_limited(
            self.conn, relation, resource, self.current, new=create or fresh
        ):
            relation = None
        if resource["resourceType"] == "Subscription":
            told = None if create else subscription_rows.before(self.conn, self.codec, resource["id"])
            resource, wanted = accept(resource, told, self.door.asker, self.door.endpoints, self.context)
        change = repository.put(
            self.conn,
            self.codec,
            resource,
            origin=self.origin,
            create=create,
            expected_version=_number(expected),
            also=self.changes,
        )
        if change.kind != "unchanged":
            self.changes.append(change)
            if relation is not None:
                claims.restrict(self.conn, relation, (change.shard, RESOURCE_TYPES[change.resource_type], change.id))
            if change.resource_type == "SearchParameter":
                posted_parameters.register(self.conn, {**resource, "id": change.id})
            if change.resource_type == "Subscription":
                self._subscribe(change, wanted)
        return Written(201 if change.kind == "created" else 200, change)

    def _subscribe(self, change: Change, wanted: Wanted | None) -> None:
        if wanted is None:
            subscription_rows.remove(self.conn, change.id)
        else:
            subscription_rows.save(self.conn, change.id, change.version, wanted, self.door.asker, self.context.now)

    def match(self, kind: str, query: str, expected: str | None = None) -> str | None:
        """Logical id of the one resource that matches a condition, None when none does. Raises Fault MULTIPLE, INVALID, and
        PRECONDITION when none does although a version (If-Match) is expected.

        Who asks the same condition waits until this transaction ends, so that two conditional creates make one resource.
        """
        parsed = condition(kind, query)
        self.lock([f"{kind}?{sorted(parsed.used)}"])
        found = self.search(parsed).matches
        if len(found) > 1:
            raise Fault(Category.MULTIPLE, f"More than one {kind} matches the condition.")
        if not found and expected is not None:
            raise Fault(Category.PRECONDITION, f"No {kind} matches the condition.", where="If-Match")
        return found[0].id if found else None

    def lock(self, names: Sequence[str]) -> None:
        """Takes the transaction locks of the names, in one order for everybody."""
        with self.conn.cursor() as cursor:
            rows.lock(cursor, names)

    def search(self, query: Query) -> run.Found:
        """A search that sees what this transaction wrote."""
        if self.door.asker.role == "auditor":
            require_no_identity([query])
        steps = run.search(query, self.context, self.codec.decompress, allowed=self.allowed)
        sql = next(steps)
        while True:
            try:
                sql = steps.send(self.fetch(sql))
            except StopIteration as end:
                found: run.Found = end.value
                return found

    def fetch(self, sql: Sql, *, read: bool = False) -> Sequence[Row]:
        """Rows of a statement with ``$n`` parameters, of those that searches (or reads) of the asker may see."""
        text, args = (self.door.reads if read else self.door.searches).wrap(sql.text, sql.args)
        return self._all(text, args)

    def _all(self, text: str, args: Sequence[Any]) -> Sequence[Row]:
        with psycopg.RawCursor(self.conn, row_factory=dict_row) as cursor:
            return cursor.execute(text.encode(), args).fetchall()

    def _sees(self, kind: str, logical: str) -> bool:
        """Is there such a resource, or was there one, that the asker may see? True for whoever sees everything."""
        if self.door.reads.shows_all(kind):
            return True
        return bool(self.fetch(Sql(reader.CURRENT, [*reader.place(kind, logical)]), read=True))

    def _require_place(self, kind: str, logical: str) -> None:
        """Raises Fault METHOD for an id under which the asker sees nothing and may not name anything either, so that what is hidden
        and what is free answer alike (http://hl7.org/fhir/R4/http.html#upsert: a server need not take ids of a client).

        People and apps for one patient name no ids. Systems do, but none that looks like ours: these can be worked out.
        """
        if self._sees(kind, logical):
            return
        taken = self._all(reader.CURRENT, reader.place(kind, logical))
        if taken or shard_of_id(logical) is not None or self.door.reads.personal:
            raise Fault(
                Category.METHOD,
                f"With this token no {kind} can be made under an id of your choice. Create it with POST.",
                headers={"Allow": "DELETE, GET, HEAD, PATCH"},
            )

    def _require_references(self, resource: dict[str, Any], *, new: bool) -> None:
        """Raises Fault UNPROCESSABLE for a reference of a person to what he sees nothing of: what is stored with it would tell
        whether it is there. References that the stored version has already may stay."""
        if not self.door.reads.personal:
            return
        named = {t for t in literals(resource) if t[0] not in DIRECTORIES} - self.made
        if named and not new:
            before = self.current(resource["resourceType"], resource["id"])
            named -= literals(fhirjson.loads(before.body)) if before else set()
            named.discard((resource["resourceType"], resource["id"]))
        if not named:
            return
        relation, sql = self.door.reads.relation, include.by_id(sorted(named))
        named -= {(TYPE_NAMES[row["rtype"]], row["id"]) for row in self.fetch(sql, read=True)}
        for kind, logical in sorted(named):
            if kind != "Patient" or relation is None or not claims.registered(self.conn, relation, logical):
                raise Fault(Category.UNPROCESSABLE, f"{kind}/{logical} is not known.", where=resource["resourceType"])

    def _require_patient(self, resource: dict[str, Any]) -> None:
        """Raises Fault FORBIDDEN for a resource about a patient whom the asker may not see, unless his facility registered him: else
        anybody could make a treatment relationship by writing an order. A patient whom nobody has is no other case."""
        scope = self.door.reads
        patient = params.extract(resource).patient if scope.relation or scope.patient else None
        if patient is None or (resource["resourceType"] == "Patient" and not scope.patient):
            return
        if scope.patient and patient != scope.patient:
            raise Fault(Category.FORBIDDEN, "The token is for another patient.")
        if scope.relation is None or ("Patient", patient) in self.made:
            return
        registered = claims.registered(self.conn, scope.relation, patient)
        if not registered and not self.fetch(include.by_id([("Patient", patient)]), read=True):
            raise Fault(
                Category.FORBIDDEN, "The facility has no treatment relationship with this patient (docs/access.md)."
            )

    def _require_steward(self, before: Change | None, after: Mapping[str, Any] | None = None) -> None:
        """Raises Fault FORBIDDEN unless an administrator writes a SearchParameter that takes effect, or did: each makes the server
        go over everything that is stored."""
        old = before is not None and posted_parameters.in_force(fhirjson.loads(before.body))
        if self.door.asker.role != "administrator" and (
            old or (after is not None and posted_parameters.in_force(after))
        ):
            raise Fault(
                Category.FORBIDDEN,
                "An active SearchParameter makes the server index everything again: this needs a token of role administrator.",
            )

    def current(self, kind: str, logical: str) -> Change | None:
        """The current state of a resource as an unchanged Change; None when it is not there."""
        found = self.fetch(include.by_id([(kind, logical)]), read=True)
        if not found:
            return None
        return self._change(kind, found[0])

    def _change(self, kind: str, row: Row) -> Change:
        body = self.codec.decompress(row["dict"], bytes(row["body"]), (row["id"], row["patient"], row["order"]))
        return Change(
            "unchanged",
            kind,
            row["id"],
            row["shard"],
            row["version"],
            row["updated"],
            row["patient"],
            self.origin,
            None,
            body,
        )

    def there(self, kind: str, logical: str) -> Change:
        """The current state of a resource. Raises Fault NOT_FOUND, or GONE when it was deleted."""
        found = self.current(kind, logical)
        if found is not None:
            return found
        if self.fetch(Sql(reader.CURRENT, [*reader.place(kind, logical)]), read=True):
            raise Fault(Category.GONE, f"{kind}/{logical} was deleted.")
        raise Fault(Category.NOT_FOUND, f"{kind}/{logical} is not known.")

    def version(self, kind: str, logical: str, number: str) -> Change:
        """One version of a resource, current or past. Raises Fault NOT_FOUND, or GONE when that version is its deletion."""
        found = [
            r
            for text in reader.VERSION
            for r in self.fetch(Sql(text, [*reader.place(kind, logical), int(number)]), read=True)
        ]
        if not found:
            raise Fault(Category.NOT_FOUND, f"{kind}/{logical}/_history/{number} is not known.")
        if found[0]["deleted"]:
            raise Fault(Category.GONE, f"{kind}/{logical} was deleted with version {number}.")
        return self._change(kind, found[0])

    def finish(self) -> bool:
        """Identity links and outbox rows of what was written; True when somebody waits to be told (``wake`` after the commit)."""
        patients = {
            c.id: registry.PatientState(c.shard, c.id, c.origin.facility, c.resource)
            for c in self.changes
            if c.resource_type == "Patient"
        }
        links = registry.resolve(self.conn, list(patients.values()), [], self.context.now)
        told = outbox.rows(self.changes, links, outbox.asked_for(self.conn))
        outbox.write(self.conn, told, self.context.now)
        return bool(told) or any(c.resource_type == "Subscription" for c in self.changes)


def wake(conn: psycopg.Connection[Any]) -> None:
    """Tells those who deliver the outbox; after the commit, so that commits do not wait for each other."""
    conn.execute(f"NOTIFY {outbox.CHANNEL}")


def condition(kind: str, query: str) -> Query:
    """A condition as a search for at most two matches. Raises Fault INVALID for an empty one or an unknown parameter: ignoring it
    would match too much."""
    parsed = parse(kind, query_pairs(query), strict=True)
    if not parsed.filters or parsed.includes or parsed.sort or parsed.cursor:
        raise Fault(Category.INVALID, "A condition consists of search parameters, and of at least one.")
    parsed.count, parsed.total, parsed.summary = 2, "none", ""
    return parsed


def require_valid(resource: dict[str, Any], where: str = "") -> None:
    """Raises Invalid (422) unless the resource is sound R4 of a served type."""
    kind = resource["resourceType"]
    if kind not in RESOURCE_TYPES:
        raise Fault(Category.NOT_FOUND, f"Resource type {kind} is not served here.", where=where)
    broken = [i for i in check_fully(resource) if i.severity in ("error", "fatal")]
    if broken:
        if where:
            broken = [replace(i, where=where + i.where.removeprefix(kind)) for i in broken]
        raise Invalid(broken)


def _require_unlogged(kind: str, logical: str) -> None:
    """Raises Fault METHOD for an entry of the audit log: the server alone writes it, and nobody changes it."""
    if kind == "AuditEvent" and place_of(logical) is not None:
        text = "The audit log is written by this server alone. Send events of your own with POST."
        raise Fault(Category.METHOD, text, headers={"Allow": "GET, HEAD"})


def _number(version: str | None) -> int | None:
    """If-Match as a version number; one that is no number matches no version (-1)."""
    if version in (None, "*"):
        return None
    return int(version) if version.isdecimal() and len(version) < 10 else -1
