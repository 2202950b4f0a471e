"""Transaction and batch (http://hl7.org/fhir/R4/http.html#transaction).

A transaction is one PostgreSQL transaction: DELETE, POST, PUT and PATCH, then GET and HEAD; links between entries become references
to what was stored; any fault rolls everything back. The entries of a batch stand alone: a fault of one is its answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from http import HTTPStatus
from typing import Any, Final

from conformance import fhirjson
from conformance.capability import RESOURCE_TYPES
from fhir_server.api import json_patch, references, subset
from fhir_server.api.batch_requests import OwnRequest, own_request
from fhir_server.api.bundle import bundle, searchset
from fhir_server.api.content import Preferences, etag, query_pairs, versions_in
from fhir_server.api.responses import issues_of, outcome, stored_as
from fhir_server.api.writes import Writer, Written, require_valid
from fhir_server.errors import Category, Fault
from fhir_server.search import types
from fhir_server.search.query import parse
from fhir_server.store.statement import instant
from fhir_server.store.writes import new_id

_URL = re.compile(
    r"(?P<type>[A-Za-z]+)(?:/(?P<id>[A-Za-z0-9\-.]{1,64})(?:/_history/(?P<version>\d{1,9})|/(?P<inner>[A-Z][A-Za-z]+))?)?"
    r"(?:\?(?P<query>.*))?",
    re.DOTALL,
)
_SEARCH = re.compile(r"(?P<type>[A-Za-z]+)/_search(?:\?(?P<query>.*))?", re.DOTALL)
"""A search by POST, its parameters in the url: an entry has no place for a form."""
_ORDER: Final = {"DELETE": 0, "POST": 1, "PUT": 2, "PATCH": 2, "GET": 3, "HEAD": 3}
"""When a method has its turn."""
_INTERACTION: Final = {"DELETE": "delete", "POST": "create", "PUT": "update", "PATCH": "patch"}
_READS: Final = ("GET", "HEAD")
_UUID: Final = re.compile(r"urn:uuid:[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_RELATIVE = re.compile(r"(?P<root>.*)/(?P<local>[A-Za-z]+/[A-Za-z0-9\-.]{1,64})")


@dataclass(slots=True)
class Step:
    """One entry of the Bundle. ``at``: where it stands (``Bundle.entry[3]``); ``resource`` only for POST and PUT, ``patch`` for
    PATCH; ``if_none_match``: versions the client has already; ``compartment``: type and id, when the search is in one."""

    at: str
    method: str
    type: str
    id: str
    query: str
    full_url: str
    resource: dict[str, Any] | None
    if_match: str | None
    if_none_exist: str | None
    patch: json_patch.Patch = field(default_factory=list)
    version: str = ""
    if_none_match: list[str] = field(default_factory=list)
    compartment: tuple[str, str] | None = None
    same: Step | None = None
    """The create before it with the same condition, whose resource it shares."""
    written: Written | None = None
    answer: bytes = b""
    touched: list[tuple[str, str | None]] = field(default_factory=list)
    """(resource type, Patient) of everything the answer shows or the write changed."""

    @property
    def interactions(self) -> list[str]:
        """RESTful interactions it needs the right to."""
        if self.method in _READS:
            return ["vread" if self.version else "read" if self.id else "search-type"]
        needed = [_INTERACTION[self.method]]
        # Whether something matches a condition is an answer to a search.
        return [*needed, "search-type"] if self.query or self.if_none_exist is not None else needed


def read_steps(resource: Mapping[str, Any], base: str) -> list[Step | OwnRequest | Fault]:
    """The entries of a transaction or batch, each understood or a Fault; in a batch some are requests of their own.

    Raises Fault INVALID when the Bundle itself is not one.
    """
    if resource.get("resourceType") != "Bundle" or resource.get("type") not in ("transaction", "batch"):
        raise Fault(
            Category.INVALID, "Send a Bundle of type transaction or batch to this address.", where="Bundle.type"
        )
    entries = resource.get("entry", [])
    if not isinstance(entries, list):
        raise Fault(Category.INVALID, "Bundle.entry must be a list.", where="Bundle.entry")
    alone = resource["type"] == "batch"
    out: list[Step | OwnRequest | Fault] = []
    for number, entry in enumerate(entries):
        try:
            out.append(_step(entry, f"Bundle.entry[{number}]", base, alone=alone))
        except Fault as fault:
            out.append(fault)
    return out


def _step(entry: Any, at: str, base: str, *, alone: bool) -> Step | OwnRequest:
    request = entry.get("request") if isinstance(entry, dict) else None
    if not isinstance(request, dict):
        raise Fault(Category.INVALID, "An entry needs a request with method and url.", where=f"{at}.request")
    method, url = request.get("method"), request.get("url")
    if not isinstance(entry.get("fullUrl", ""), str):
        raise Fault(Category.INVALID, "fullUrl must be a text.", where=f"{at}.fullUrl")
    for name in ("ifMatch", "ifNoneExist", "ifNoneMatch"):
        if not isinstance(request.get(name, ""), str):
            raise Fault(Category.INVALID, f"{name} must be a text.", where=f"{at}.request.{name}")
    if method not in _ORDER:
        text = f"The method must be one of {', '.join(_ORDER)}."
        raise Fault(Category.INVALID, text, where=f"{at}.request.method")
    url = url.removeprefix(base).lstrip("/") if isinstance(url, str) else ""
    if method == "POST" and (searched := _SEARCH.fullmatch(url)):
        method, url = "GET", f"{searched['type']}?{searched['query'] or ''}"
    m = _URL.fullmatch(url)
    known = m is not None and m["type"] in RESOURCE_TYPES
    if not known and (own := own_request(method, url, entry)) is not None:
        if alone:
            return own
        text = "Histories, operations and searches over several types stand in a batch, not in a transaction."
        raise Fault(Category.INVALID, text, where=f"{at}.request.url")
    if m is None or not known or (m["inner"] or m["type"]) not in RESOURCE_TYPES:
        raise Fault(
            Category.INVALID, "The url must be Type, Type/id or Type?query of a served type.", where=f"{at}.request.url"
        )
    if (
        (method == "POST" and (m["id"] or m["query"]))
        or (method in ("PUT", "PATCH", "DELETE") and bool(m["id"]) == bool(m["query"]))
        or ((m["version"] or m["inner"]) and method not in _READS)
    ):
        raise Fault(Category.INVALID, f"The url does not fit the method {method}.", where=f"{at}.request.url")
    resource = entry.get("resource")
    if method in ("POST", "PUT"):
        if not isinstance(resource, dict) or resource.get("resourceType") != m["type"]:
            raise Fault(Category.INVALID, f"The entry needs a resource of type {m['type']}.", where=f"{at}.resource")
        if m["id"] and resource.get("id") != m["id"]:
            raise Fault(
                Category.INVALID, "The id of the resource must be the one in the url.", where=f"{at}.resource.id"
            )
        require_valid(references.settled(resource), f"{at}.resource")
    tags = versions_in(request["ifMatch"]) if "ifMatch" in request else []
    if "ifMatch" in request and len(tags) != 1:
        text = 'ifMatch must name one version such as W/"3".'
        raise Fault(Category.INVALID, text, where=f"{at}.request.ifMatch")
    exist = request.get("ifNoneExist")
    return Step(
        at,
        method,
        m["inner"] or m["type"],
        "" if m["inner"] else m["id"] or "",
        m["query"] or "",
        entry.get("fullUrl") or "",
        resource if method in ("POST", "PUT") else None,
        tags[0] if tags else None,
        exist.lstrip("?") if isinstance(exist, str) and method == "POST" else None,
        json_patch.of_binary(resource, f"{at}.resource") if method == "PATCH" else [],
        m["version"] or "",
        versions_in(request["ifNoneMatch"]) if isinstance(request.get("ifNoneMatch"), str) else [],
        (m["type"], m["id"]) if m["inner"] else None,
    )


def all_or_nothing(writer: Writer, sent: Sequence[Step]) -> list[Step]:
    """Carries out a transaction; the caller commits.

    Returns the steps with their outcomes, in the order they were sent; those given stay as they are, so that a transaction can be
    tried again. Raises Fault, with the entry it is about, and then nothing may be committed.
    """
    steps = [replace(s, touched=[]) for s in sent]
    ordered = sorted(steps, key=lambda s: _ORDER[s.method])
    changing = [s for s in ordered if s.method not in _READS]
    places = _Places(writer)
    for settle in (places.resolve, places.name):
        for step in changing:
            _at(step, settle)
    taken: set[tuple[str, str]] = set()
    for step in changing:
        if step.id and step.written is None and step.same is None:
            if (step.type, step.id) in taken:
                raise Fault(Category.INVALID, f"{step.type}/{step.id} stands in more than one entry.", where=step.at)
            taken.add((step.type, step.id))
    writer.lock([f"{s.type}/{s.id}" for s in changing if s.id])
    for step in changing:
        _at(step, places.require_carried)
    for step in ordered:
        _at(step, lambda s: _carry_out(writer, s, places))
    for step in changing:
        _at(step, lambda s: _require_one(writer, s))
    return steps


def _require_one(writer: Writer, step: Step) -> None:
    """Raises Fault MULTIPLE when the transaction made several resources that match a condition of one of them: whichever came
    second should have found the first."""
    condition = step.query if step.if_none_exist is None else step.if_none_exist
    if not condition or step.written is None or step.written.status != 201:
        return
    if sum(c.resource_type == step.type for c in writer.changes) > 1:
        writer.match(step.type, condition)


def single(sent: Step) -> Callable[[Writer], Step]:
    """What carries out one entry of a batch, in a transaction of its own, and returns it with its outcome."""

    def carry_out(writer: Writer) -> Step:
        step = replace(sent, touched=[])
        places = _Places(writer)
        if step.method not in _READS:
            places.resolve(step)
            places.name(step)
        _carry_out(writer, step, places)
        return step

    return carry_out


def _at(step: Step, act: Callable[[Step], None]) -> None:
    """Runs ``act`` so that a Fault tells which entry it is about."""
    try:
        act(step)
    except Fault as fault:
        if not fault.where.startswith("Bundle.entry"):
            fault.where = f"{step.at}.{fault.where}" if fault.where and "?" not in fault.where else step.at
        raise


class _Places:
    """Where the entries end up: full URL -> ``Type/id``. Conditions are resolved once, before anything is written."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._urls: dict[str, str] = {}
        self._local: dict[tuple[str, str], str] = {}
        self._conditions: dict[str, str] = {}
        self._creates: dict[tuple[str, str], Step] = {}
        self._deleted: set[tuple[str, str]] = set()

    def resolve(self, step: Step) -> None:
        """Finds or makes the id of a POST, PUT or DELETE; a create that exists already is settled here."""
        if step.method == "POST":
            existing = self._writer.match(step.type, step.if_none_exist) if step.if_none_exist is not None else None
            if existing is not None and (step.type, existing) in self._deleted:
                raise Fault(
                    Category.INVALID, f"Another entry deletes {step.type}/{existing}, which matches ifNoneExist."
                )
            if existing is None and step.if_none_exist is not None:
                # As if one came after the other: what the first makes is what the second finds.
                first = self._creates.setdefault(_condition(step.type, step.if_none_exist), step)
                step.same = first if first is not step else None
            if existing is not None:
                step.id, step.written = existing, Written(200, self._writer.current(step.type, existing))
            elif step.same is not None:
                step.id = step.same.id
            elif step.type == "Patient":
                step.id = new_id(self._writer.conn, {"resourceType": "Patient"})
                self._writer.made.add((step.type, step.id))
        elif step.query:
            existing = self._writer.match(step.type, step.query, step.if_match)
            if existing is None and step.method == "DELETE":
                step.written = Written(204, None)
            elif existing is None and step.method == "PATCH":
                raise Fault(Category.NOT_FOUND, f"No {step.type} matches the condition.")
            elif step.resource is not None and existing and step.resource.get("id", existing) != existing:
                raise Fault(
                    Category.INVALID, "The resource that matches the condition has another id.", where="resource.id"
                )
            else:
                if existing is None and step.resource is not None:
                    self._writer.require_free(step.resource)
                step.id = existing or (step.resource or {}).get("id", "")
        if step.id:
            self._remember(step)

    def _remember(self, step: Step) -> None:
        if step.method == "DELETE":
            self._deleted.add((step.type, step.id))
        if not step.full_url or step.method == "DELETE":
            return
        if self._urls.setdefault(step.full_url, f"{step.type}/{step.id}") != f"{step.type}/{step.id}":
            # bdl-7: a reference to it could mean either, so a result could go to the wrong patient.
            raise Fault(
                Category.INVALID, "Two entries have this fullUrl: each resource needs its own.", where="fullUrl"
            )
        if m := _RELATIVE.fullmatch(step.full_url):
            self._local[m["root"], m["local"]] = f"{step.type}/{step.id}"

    def name(self, step: Step) -> None:
        """Makes the id of a new resource, in the shard of its Patient, whose id is known by now."""
        if step.same is not None:
            step.id = step.same.id
            self._remember(step)
        elif step.resource is not None and not step.id:
            step.id = new_id(self._writer.conn, self.rewrite(step))
            self._writer.made.add((step.type, step.id))
            self._remember(step)

    def rewrite(self, step: Step, patched: dict[str, Any] | None = None) -> dict[str, Any]:
        """The entry's resource (of a PATCH: the patched one) with its links replaced."""
        resource = patched or step.resource
        assert resource is not None
        for kind, query in references.conditional(resource):
            if f"{kind}?{query}" in self._conditions:
                continue
            made = self._creates.get(_condition(kind, query))
            if made is None:
                self._conditions[f"{kind}?{query}"] = self._reference(kind, query)
            elif made.id:
                self._conditions[f"{kind}?{query}"] = f"{kind}/{made.id}"
        root = m["root"] if (m := _RELATIVE.fullmatch(step.full_url)) else ""

        def replace(link: str) -> str:
            found = self._urls.get(link) or self._conditions.get(link)
            return found or self._local.get((root, link), link)

        return references.rewritten(resource, replace)

    def require_carried(self, step: Step) -> None:
        """Raises Fault INVALID for a reference to a ``urn:uuid`` that no entry carries: it would lead nowhere for good."""
        for link in references.literal(step.resource):
            if link.startswith("urn:uuid:") and link not in self._urls:
                # What is no UUID may be anything, and an error text shows no patient data.
                shown = link if _UUID.fullmatch(link) else "urn:uuid:..."
                raise Fault(
                    Category.INVALID, f"No entry has the fullUrl {shown} that this refers to.", where="resource"
                )

    def _reference(self, kind: str, query: str) -> str:
        if kind in RESOURCE_TYPES and not self._writer.allowed(kind):
            raise Fault(Category.FORBIDDEN, f"A conditional reference needs a token that allows search-type on {kind}.")
        found = self._writer.match(kind, query) if kind in RESOURCE_TYPES else None
        if found is None or (kind, found) in self._deleted:
            raise Fault(Category.PRECONDITION, f"No {kind} matches the conditional reference.")
        return f"{kind}/{found}"


def _condition(kind: str, query: str) -> tuple[str, str]:
    """A condition in a form in which the order of its parameters makes no difference."""
    return kind, str(sorted(query_pairs(query)))


def _carry_out(writer: Writer, step: Step, places: _Places) -> None:
    if step.method in _READS:
        _get(writer, step)
        return
    if step.same is not None and step.same.written is not None:
        step.written = Written(200, step.same.written.change)
    elif step.written is None:
        if step.method == "DELETE":
            step.written = writer.delete(step.type, step.id, step.if_match)
        elif step.method == "PATCH":
            settle = partial(places.rewrite, step)
            step.written = writer.patch(step.type, step.id, step.patch, step.if_match, settle)
        elif (step.type, step.id) in writer.made:
            step.written = writer.place({**places.rewrite(step), "id": step.id})
        else:
            absent = "*" in step.if_none_match
            step.written = writer.update({**places.rewrite(step), "id": step.id}, step.if_match, absent=absent)
    change = step.written.change
    step.touched.append((step.type, change.patient if change else None))


def _get(writer: Writer, step: Step) -> None:
    if step.id:
        change = writer.version(step.type, step.id, step.version) if step.version else writer.there(step.type, step.id)
        step.touched.append((step.type, change.patient))
        if {"*", str(change.version)}.intersection(step.if_none_match):
            step.written = Written(304, change)
            return
        summary, elements = subset.asked(query_pairs(step.query))
        step.written = Written(200, change)
        step.answer = subset.part(change.body, step.type, summary=summary, elements=elements)
        return
    query = parse(step.type, query_pairs(step.query))
    if step.compartment is not None:
        query.place = "/".join((*step.compartment, step.type))
        types.in_compartment(query, *step.compartment)
    found = writer.search(query)
    step.answer = searchset(query, found, writer.context.base)
    step.touched.extend((hit.type, hit.patient) for hit in found.hits)


def answer(kind: str, results: Sequence[Step | Fault | bytes], preferences: Preferences, base: str) -> bytes:
    """The transaction-response or batch-response; entries in the order they were sent. bytes: an entry that is finished."""
    wanted = preferences.returns
    entries = [
        r if isinstance(r, bytes) else _failed(r) if isinstance(r, Fault) else _done(r, wanted, base) for r in results
    ]
    return bundle(f"{kind}-response", entries)


def _done(step: Step, wanted: str, base: str) -> bytes:
    status = step.written.status if step.written else 200
    response: dict[str, Any] = {"status": f"{status} {HTTPStatus(status).phrase}"}
    change = step.written.change if step.written else None
    head = b""
    if change is not None:
        if step.method in ("POST", "PUT", "PATCH"):
            response["location"] = change.versioned
        response["etag"] = etag(change.version)
        response["lastModified"] = instant(change.updated)
        if step.method != "DELETE":
            head = b'"fullUrl":%b,' % fhirjson.dumps(f"{base}/{change.reference}")
    wrote = change is not None and step.method in ("POST", "PUT", "PATCH")
    body = step.answer or (change.body if change and wrote and wanted == "representation" else b"")
    if step.method == "HEAD":
        body = b""
    if body:
        head += b'"resource":%b,' % body
    told = fhirjson.dumps(response)
    if change and wrote and wanted == "OperationOutcome":
        told = b'%b,"outcome":%b}' % (told[:-1], outcome([stored_as(change)]))
    return b'{%b"response":%b}' % (head, told)


def _failed(fault: Fault) -> bytes:
    status = fault.category.status
    text = fhirjson.dumps(f"{status} {HTTPStatus(status).phrase}")
    return b'{"response":{"status":%b,"outcome":%b}}' % (text, outcome(issues_of(fault)))
