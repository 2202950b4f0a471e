"""Operations over HTTP (http://hl7.org/fhir/R4/operations.html), each with its OperationDefinition under conformance/operations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from conformance import fhirjson
from fhir_server.access import Principal
from fhir_server.api import everything, interaction, terminology, validate
from fhir_server.api.bundle import bundle, searchset
from fhir_server.api.content import preferences, require_json_answer
from fhir_server.api.inputs import Inputs, inputs, output
from fhir_server.api.interaction import Touched, audited, base_of, context_of, in_transaction
from fhir_server.api.match import matches
from fhir_server.api.responses import fhir, outcome
from fhir_server.api.searches import require_served
from fhir_server.api.security import Asker, permit, permit_role, services_of
from fhir_server.api.visible import require_searchable, seen_by
from fhir_server.api.writes import Written
from fhir_server.errors import Category, Fault
from fhir_server.search import lastn
from fhir_server.search.query import parse
from fhir_server.search.value_sets import Steps, Terminology
from fhir_server.store import reader

router = APIRouter()

BOTH: Final = ["GET", "HEAD", "POST"]
_META: Final = ("profile", "security", "tag")


# --- patients and results ---------------------------------------------------------------------------------------------------


@router.api_route("/{kind}/{logical}/$everything", methods=BOTH)
async def patient_everything(request: Request, asker: Asker, kind: str, logical: str) -> Response:
    """Everything about a patient, or of an encounter (http://hl7.org/fhir/R4/patient-operation-everything.html)."""
    require_json_answer(request)
    if kind not in ("Patient", "Encounter"):
        raise Fault(Category.NOT_FOUND, "There is nothing at this address.")
    asked = await inputs(request)
    await permit(request, asker, "read", kind)
    services = await seen_by(services_of(request), asker, context_of(request), "r")
    stored = await reader.read(services.pool, services.codec, kind, logical)
    if stored is None or stored.deleted:
        await audited(request, asker, "R", "$everything", (), types={kind}, resource=f"{kind}/{logical}", outcome="4")
        category = Category.NOT_FOUND if stored is None else Category.GONE
        raise Fault(category, f"{kind}/{logical} is not here." if stored is None else f"{kind}/{logical} was deleted.")
    queries = await everything.queries(request, asker, kind, logical, asked)
    services = await seen_by(services_of(request), asker, context_of(request), "s")
    found = await interaction.carried_out(
        services,
        everything.search(queries, context_of(request), services.codec.decompress, asker, f"{kind}/{logical}"),
    )
    touched = [Touched(hit.type, hit.patient) for hit in found.hits]
    await audited(request, asker, "R", "$everything", touched, types={kind}, resource=f"{kind}/{logical}", query="")
    return fhir(request, searchset(queries[0], found, base_of(request)))


@router.api_route("/Observation/$lastn", methods=BOTH)
async def observation_lastn(request: Request, asker: Asker) -> Response:
    """The last results of each kind (http://hl7.org/fhir/R4/observation-operation-lastn.html)."""
    require_json_answer(request)
    await permit(request, asker, "search-type", "Observation")
    asked = await inputs(request)
    most = asked.number("max")
    if most == 0:
        raise Fault(Category.INVALID, "max must be 1 or more.", where="max")
    names = {n.partition(":")[0].partition(".")[0] for n, value in asked.pairs if value}
    if not names & {"patient", "subject"}:
        raise Fault(Category.INVALID, "Say whose results: patient or subject.", where="patient")
    pairs = [(n, v) for n, v in asked.pairs if n not in ("max", "_count", "_sort", "_cursor")]
    query = parse("Observation", pairs, strict=preferences(request.headers).strict)
    query.place, query.used = "Observation/$lastn", [p for p in asked.pairs if p[0] == "max" or p in query.used]
    require_searchable(asker, [query])
    services = await seen_by(services_of(request), asker, context_of(request), "s")
    steps = lastn.search(
        query,
        1 if most is None else most,
        context_of(request),
        services.codec.decompress,
        allowed=lambda t: asker.may("search-type", t),
    )
    found = await interaction.carried_out(services, steps)
    touched = [Touched(hit.type, hit.patient) for hit in found.hits]
    told = "&".join(n for n, _ in asked.pairs)
    await audited(request, asker, "R", "$lastn", touched, types={"Observation"}, query=told)
    return fhir(request, searchset(query, found, base_of(request)))


@router.post("/Patient/$match")
async def patient_match(request: Request, asker: Asker) -> Response:
    """Patients that may be the one sent (http://hl7.org/fhir/R4/patient-operation-match.html)."""
    require_json_answer(request)
    await permit(request, asker, "search-type", "Patient")
    asked = await inputs(request)
    await permit_role(request, asker, "$match", "clinician", "integrator", "system", "administrator")
    services = await seen_by(services_of(request), asker, context_of(request), "s")
    found, entries = await matches(services, asked, base_of(request))
    await audited(request, asker, "R", "$match", [Touched("Patient", i) for i in found], types={"Patient"}, query="")
    return fhir(request, bundle("searchset", entries, total=len(entries)))


# --- any resource -----------------------------------------------------------------------------------------------------------


@router.post("/{kind}/$validate")
async def resource_validate(request: Request, asker: Asker, kind: str) -> Response:
    """A resource against R4 (http://hl7.org/fhir/R4/resource-operation-validate.html)."""
    return await _validated(request, asker, kind, "")


@router.api_route("/{kind}/{logical}/$validate", methods=BOTH)
async def instance_validate(request: Request, asker: Asker, kind: str, logical: str) -> Response:
    """A resource as update of a stored one, or the stored one itself."""
    return await _validated(request, asker, kind, logical)


async def _validated(request: Request, asker: Principal, kind: str, logical: str) -> Response:
    require_json_answer(request)
    require_served(kind)
    await permit(request, asker, "read", kind)
    asked = await inputs(request)
    resource = asked.resources.get("resource")
    touched = []
    if logical and (resource is None or asked.text("mode") == "delete"):
        services = await seen_by(services_of(request), asker, context_of(request), "r")
        stored = await reader.read(services.pool, services.codec, kind, logical)
        if stored is None or stored.deleted:
            await audited(request, asker, "E", "$validate", (), types={kind}, resource=f"{kind}/{logical}", outcome="4")
            raise Fault(Category.GONE if stored else Category.NOT_FOUND, f"{kind}/{logical} is not here.")
        resource, touched = fhirjson.loads(stored.body), [Touched(kind, stored.patient)]
    services = await seen_by(services_of(request), asker, context_of(request), "r")
    lookup = validate.look_up(validate.asked_profiles(resource, asked), Terminology(services.codec.decompress))
    known = await interaction.carried_out(services, lookup)
    issues = await interaction.in_thread(validate.issues, kind, logical, resource, asked, known)
    await audited(request, asker, "E", "$validate", touched, types={kind}, query="")
    return fhir(request, outcome(issues))


@router.api_route("/{kind}/{logical}/$meta", methods=BOTH)
async def meta(request: Request, asker: Asker, kind: str, logical: str) -> Response:
    """Profiles, tags and security labels of a resource (http://hl7.org/fhir/R4/resource-operation-meta.html)."""
    require_json_answer(request)
    require_served(kind)
    await permit(request, asker, "read", kind)
    services = await seen_by(services_of(request), asker, context_of(request), "r")
    stored = await reader.read(services.pool, services.codec, kind, logical)
    touched = [Touched(kind, stored.patient)] if stored else []
    good = stored is not None and not stored.deleted
    name = f"{kind}/{logical}"
    await audited(request, asker, "R", "$meta", touched, types={kind}, resource=name, outcome="0" if good else "4")
    if stored is None or stored.deleted:
        raise Fault(Category.GONE if stored else Category.NOT_FOUND, f"{name} is not here.")
    return fhir(request, output({"name": "return", "valueMeta": fhirjson.loads(stored.body)["meta"]}))


@router.post("/{kind}/{logical}/$meta-add")
async def meta_add(request: Request, asker: Asker, kind: str, logical: str) -> Response:
    """Adds profiles, tags and security labels (http://hl7.org/fhir/R4/resource-operation-meta-add.html)."""
    return await _changed_meta(request, asker, kind, logical, "$meta-add", _added)


@router.post("/{kind}/{logical}/$meta-delete")
async def meta_delete(request: Request, asker: Asker, kind: str, logical: str) -> Response:
    """Takes them away (http://hl7.org/fhir/R4/resource-operation-meta-delete.html)."""
    return await _changed_meta(request, asker, kind, logical, "$meta-delete", _removed)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return (a.get("system"), a.get("code")) == (b.get("system"), b.get("code"))
    return bool(a == b)


def _added(old: list[Any], said: list[Any]) -> list[Any]:
    return [*old, *(s for s in said if not any(_same(s, o) for o in old))]


def _removed(old: list[Any], said: list[Any]) -> list[Any]:
    return [o for o in old if not any(_same(s, o) for s in said)]


async def _changed_meta(
    request: Request, asker: Principal, kind: str, logical: str, name: str, change: Callable[..., list[Any]]
) -> Response:
    require_json_answer(request)
    require_served(kind)
    await permit(request, asker, "update", kind)
    said = (await inputs(request)).value("meta")
    if not isinstance(said, dict) or not all(isinstance(said.get(k, []), list) for k in _META):
        raise Fault(Category.INVALID, "Send Parameters with a valueMeta called meta.", where="meta")

    def settle(resource: dict[str, Any]) -> dict[str, Any]:
        old = resource.get("meta", {})
        lists = {k: change(old.get(k, []), said.get(k, [])) for k in _META}
        kept = {k: v for k, v in old.items() if k not in _META}
        return {**resource, "meta": {**kept, **{k: v for k, v in lists.items() if v}}}

    written: Written = await in_transaction(
        services_of(request), context_of(request), asker, lambda w: w.patch(kind, logical, [], None, settle)
    )
    assert written.change is not None  # a patch changes something that is there
    touched = [Touched(kind, written.change.patient)]
    await audited(request, asker, "U", name, touched, types={kind}, resource=written.change.reference)
    return fhir(request, output({"name": "return", "valueMeta": fhirjson.loads(written.change.body)["meta"]}))


# --- terminology ------------------------------------------------------------------------------------------------------------


@router.api_route("/CodeSystem/$lookup", methods=BOTH)
async def lookup(request: Request, asker: Asker) -> Response:
    """A code of a code system (http://hl7.org/fhir/R4/codesystem-operation-lookup.html)."""
    return await _terms(request, asker, "CodeSystem", "$lookup", lambda asked: partial(terminology.lookup, asked))


@router.api_route("/CodeSystem/$validate-code", methods=BOTH)
@router.api_route("/CodeSystem/{logical}/$validate-code", methods=BOTH)
async def code_system_validate(request: Request, asker: Asker, logical: str = "") -> Response:
    """Whether a code system has a code (http://hl7.org/fhir/R4/codesystem-operation-validate-code.html)."""
    steps = terminology.validate_in_system
    return await _terms(request, asker, "CodeSystem", "$validate-code", lambda asked: partial(steps, logical, asked))


@router.api_route("/ValueSet/$validate-code", methods=BOTH)
@router.api_route("/ValueSet/{logical}/$validate-code", methods=BOTH)
async def value_set_validate(request: Request, asker: Asker, logical: str = "") -> Response:
    """Whether a value set has a code (http://hl7.org/fhir/R4/valueset-operation-validate-code.html)."""
    steps = terminology.validate_in_set
    return await _terms(request, asker, "ValueSet", "$validate-code", lambda asked: partial(steps, logical, asked))


@router.api_route("/ValueSet/$expand", methods=BOTH)
@router.api_route("/ValueSet/{logical}/$expand", methods=BOTH)
async def expand(request: Request, asker: Asker, logical: str = "") -> Response:
    """The codes of a value set (http://hl7.org/fhir/R4/valueset-operation-expand.html)."""
    now = services_of(request).clock()
    steps = terminology.expand
    return await _terms(request, asker, "ValueSet", "$expand", lambda asked: partial(steps, logical, asked, now))


@router.api_route("/ConceptMap/$translate", methods=BOTH)
@router.api_route("/ConceptMap/{logical}/$translate", methods=BOTH)
async def translate(request: Request, asker: Asker, logical: str = "") -> Response:
    """A code in another code system (http://hl7.org/fhir/R4/conceptmap-operation-translate.html)."""
    steps = terminology.translate
    return await _terms(request, asker, "ConceptMap", "$translate", lambda asked: partial(steps, logical, asked))


async def _terms(
    request: Request, asker: Principal, kind: str, name: str, of: Callable[[Inputs], Callable[[Terminology], Steps]]
) -> Response:
    require_json_answer(request)
    await permit(request, asker, "read", kind)
    asked = await inputs(request)
    services = await seen_by(services_of(request), asker, context_of(request), "s")
    answer = await interaction.carried_out(services, of(asked)(Terminology(services.codec.decompress)))
    await audited(request, asker, "R", name, (), types={kind}, query="&".join(n for n, _ in asked.pairs))
    return fhir(request, answer)
