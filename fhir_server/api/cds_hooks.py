"""CDS Hooks 2.0 (https://cds-hooks.hl7.org/2.0/): discovery, the services ``recognition-order-sign``, ``recognition-order-select`` and
``recognition-patient-view``, and their feedback.

Drafts come in ``context.draftOrders``. Every answer is made from the repository as it is now: ``fhirServer`` is not used, and of
``prefetch`` only the visit's class, for a visit the repository does not have. An order is never blocked: what cannot be answered in
time is ``{"cards": []}`` (fhir_server.recognition.check).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request, Response

from conformance import fhirjson
from fhir_server import clock, telemetry
from fhir_server.access import Principal, sensitive_grants
from fhir_server.api.cards import card, language_of, names_of
from fhir_server.api.cards import visit_card as cards_of_visit
from fhir_server.api.content import raw_body
from fhir_server.api.responses import DATABASE_AWAY
from fhir_server.api.security import address_of, permit, permit_role, principal, services_of
from fhir_server.authorization import Clients, first_use
from fhir_server.errors import Category, Fault
from fhir_server.keys import unauthenticated
from fhir_server.recognition import circumstances, decisions, statement
from fhir_server.recognition.check import Question, ask, visit_card
from fhir_server.recognition.circumstances import UNKNOWN
from fhir_server.recognition.decisions import Caller
from fhir_server.recognition.explain import Names
from fhir_server.recognition.feedback import read_feedback, read_string
from fhir_server.recognition.ledger import Row
from fhir_server.services import Services

router = APIRouter()


@dataclass(frozen=True, slots=True)
class Service:
    """One entry of the discovery answer."""

    id: str
    hook: str
    title: str
    description: str


SERVICES: Final = {
    s.id: s
    for s in (
        Service(
            "recognition-order-sign",
            "order-sign",
            "检查检验结果互认 Recognition of earlier results",
            "Before orders are signed: tells whether earlier results of this person, from any facility of the county, can be "
            "recognized instead of repeating the test. 开单签署前提示可互认的既往结果。",
        ),
        Service(
            "recognition-order-select",
            "order-select",
            "检查检验结果互认 Recognition of earlier results",
            "When orders are selected: the same check for the selected orders. 选择医嘱时提示可互认的既往结果。",
        ),
        Service(
            "recognition-patient-view",
            "patient-view",
            "近期可互认结果 Recent results that can be recognized",
            "At the start of a visit: lists what could be recognized if it were ordered now. 接诊时提示近期可互认的结果。",
        ),
    )
}

_NOT_KEPT: Final[tuple[type[Exception], ...]] = (OSError, TimeoutError, *DATABASE_AWAY)
ASKERS: Final = ("clinician", "integrator", "system", "administrator")
"""Roles that may ask for answers about a patient by his number; auditors see nobody by name (docs/access.md)."""
_CIRCUMSTANCES: Final = "org.tongjian.circumstances"
_PREFETCH: Final = {"encounter": "Encounter/{{context.encounterId}}"}

_USAGE: Final = (
    "Needs a bearer token. context.patientId is the logical id of a Patient of this repository, or system|value of one of its "
    "business identifiers. Draft ServiceRequests are understood by the asking facility's order codes, by catalogue codes and by LOINC."
)


async def principal_of(request: Request) -> Principal:
    """The caller: a registered client by the JWT it signs for this very call (section "Trusting CDS Clients"), else a bearer token."""
    clients: Clients = request.app.state.clients
    root: str = request.app.state.base_url
    audience = root.removesuffix("/fhir") + request.url.path
    header, now = request.headers.get("authorization"), clock.now()
    known = clients.speaker(header, audience, now)
    if known is None:
        return await principal(request)
    signed = (header or "").partition(" ")[2].strip()
    try:
        fresh = await first_use(services_of(request).pool, signed, now)
    except _NOT_KEPT:
        fresh = True  # this process remembers it, and without the database the answer is an empty one
    if not fresh:
        raise unauthenticated("This token was used before; sign a new one with another jti.", "invalid_token")
    return known


HookAsker = Annotated[Principal, Depends(principal_of)]


@router.get("/cds-services")
async def discover() -> dict[str, Any]:
    """The services offered (section "Discovery"); needs no token."""
    return {
        "services": [
            {
                "hook": s.hook,
                "id": s.id,
                "title": s.title,
                "description": s.description,
                "prefetch": _PREFETCH,
                "usageRequirements": _USAGE,
            }
            for s in SERVICES.values()
        ]
    }


@router.post("/cds-services/{service_id}")
async def call(service_id: str, request: Request, asker: HookAsker) -> Response:
    """Cards for draft orders (section "Calling a CDS Service"): 200 with ``cards``, 400 for a request that is not one."""
    began = time.perf_counter()
    service = _service(service_id)
    await permit_question(request, asker, service.id)
    services = services_of(request)
    question = read_question(await read_json(request), service)
    answers = await ask(services, asker, question, address_of(request))
    language = language_of(request.headers.get("accept-language"))
    names, base = names_of(services), request.app.state.base_url
    if question.visit:
        listed = visit_card(question, answers)
        cards = [cards_of_visit(listed, answers.answers, names, language, base)] if answers.answers else []
    else:
        cards = [card(a, services.rules, names, language, base) for a in answers.answers if a.reminds]
    telemetry.HOOK_SECONDS.labels(answers.failure or ("card" if cards else "no-card")).observe(
        time.perf_counter() - began
    )
    unread = {"extension": {"org.tongjian.unread": list(question.unread)}} if question.unread else {}
    return answer({"cards": cards} | unread)


async def permit_question(request: Request, asker: Principal, service: str) -> None:
    """Raises Fault FORBIDDEN, after an audit entry, unless the asker may have answers about any patient he treats: a token for one
    patient, or for some results, is for less than an answer tells."""
    await permit_role(request, asker, service, *ASKERS)
    await permit(request, asker, "search-type", "Observation", "DiagnosticReport")
    if asker.patient or not {"Observation", "DiagnosticReport", "*"}.isdisjoint(asker.narrowed("s")):
        raise Fault(Category.FORBIDDEN, "A token for one patient, or for some results, gets no answers here.")


@router.post("/cds-services/{service_id}/feedback")
async def feedback(service_id: str, request: Request, asker: HookAsker) -> Response:
    """What the clinician did with cards (section "Feedback"): 200 when it is in the ledger, 400 for feedback that is not one, 503 when
    it cannot be kept."""
    return await keep_feedback(_service(service_id).id, request, asker)


async def keep_feedback(service: str, request: Request, asker: Principal) -> Response:
    """Feedback of any door into the ledger, and what it decides. The answer says in our extension ``org.tongjian.decisions``, for each
    card, whether its reminder is closed now, and if not, why."""
    services = services_of(request)
    at = services.clock()
    told = read_feedback(await read_json(request), services.rules)
    entries = [{"service": service, "user": asker.subject, **entry} for entry in told]
    said = [statement.of_feedback(entry, services.rules, at) for entry in entries]
    try:
        await services.ledger.record(
            *(Row("feedback", at, asker.facility, entry, outcome=entry["outcome"]) for entry in entries)
        )
    except OSError:
        raise Fault(Category.UNAVAILABLE, "The feedback cannot be kept now. Send it again later.") from None
    caller, names = caller_of(asker, service), names_of(services)
    found = [
        await _decided(services, one, entry["card"], caller, names) for one, entry in zip(said, entries, strict=True)
    ]
    return answer({"extension": {"org.tongjian.decisions": found}})


async def _decided(
    services: Services, said: statement.Statement | None, card: str, caller: Caller, names: Names
) -> dict[str, Any]:
    if said is None:
        return {"card": card, "state": "open", "missing": "reason and word to the patient"}
    try:
        recorded = await decisions.record(services, said, caller, names)
    except Fault as fault:
        if fault.category is Category.UNAVAILABLE:
            raise
        # The feedback itself is kept; what stands in the way is told.
        return {"card": card, "state": "not-decided", "missing": fault.text}
    return {"card": card, "state": "closed", "decision": recorded.decision["id"]}


def caller_of(asker: Principal, service: str, user: str = "") -> Caller:
    """The principal as one who speaks about reminders."""
    return Caller(asker.facility, asker.subject, service, sensitive_grants(asker.scopes), user)


def _service(id: str) -> Service:
    found = SERVICES.get(id)
    if found is None:
        raise Fault(
            Category.NOT_FOUND,
            f"There is no CDS service of that name; ask GET /cds-services for the {len(SERVICES)} offered.",
        )
    return found


async def read_json(request: Request) -> dict[str, Any]:
    """The body as a JSON object. Raises Fault INVALID or TOO_LARGE."""
    try:
        found = fhirjson.loads(await raw_body(request, services_of(request).settings.max_request))
    except ValueError:  # UnicodeDecodeError is one
        raise Fault(Category.INVALID, "The request body is not JSON in UTF-8.") from None
    if not isinstance(found, dict):
        raise Fault(Category.INVALID, "The request body is not a JSON object.")
    return found


def answer(content: dict[str, Any], status: int = 200) -> Response:
    """JSON values as a response."""
    return Response(fhirjson.dumps(content), status, media_type="application/json")


# --- request -------------------------------------------------------------------------------------------------------------


def read_question(body: Mapping[str, Any], service: Service) -> Question:
    """CDS Hooks request -> Question. Raises Fault INVALID naming the field that is missing or wrong."""
    hook = read_string(body, "hook", "")
    if hook != service.hook:
        raise Fault(Category.INVALID, f"Service {service.id} is for the hook {service.hook}.", where="hook")
    instance = read_string(body, "hookInstance", "")
    context = body.get("context")
    if not isinstance(context, dict):
        raise Fault(Category.INVALID, "context is missing or not an object.", where="context")
    user = read_string(context, "userId", "context.")
    patient = read_string(context, "patientId", "context.")
    encounter = context.get("encounterId", "")
    if not isinstance(encounter, str):
        raise Fault(Category.INVALID, "context.encounterId is not a string.", where="context.encounterId")
    extension = body.get("extension")
    department = ""
    if isinstance(extension, dict) and extension.get(statement.DEPARTMENT) is not None:
        department = read_string(extension, statement.DEPARTMENT, "extension.")
    told = (
        circumstances.read(extension.get(_CIRCUMSTANCES), f"extension.{_CIRCUMSTANCES}")
        if isinstance(extension, dict)
        else UNKNOWN
    )
    encounter = encounter.removeprefix("Encounter/")
    asked = (service.id, instance, user, patient, encounter)
    beside: dict[str, Any] = {
        "department": department,
        "told": told,
        "visit_class": _visit_class(body.get("prefetch"), encounter, patient),
    }
    if service.hook == "patient-view":
        return Question(*asked, [], visit=True, **beside)
    requests, unread = _drafts(context.get("draftOrders"), patient)
    beside["unread"] = unread
    if service.hook == "order-select":
        selections = context.get("selections")
        if not isinstance(selections, list) or not all(isinstance(s, str) for s in selections):
            raise Fault(
                Category.INVALID, "context.selections is missing or not a list of ids.", where="context.selections"
            )
        wanted = {s.removeprefix("ServiceRequest/") for s in selections}
        requests = [r for r in requests if r.get("id") in wanted]
    return Question(*asked, requests, **beside)


def _visit_class(prefetch: Any, encounter: str, patient: str) -> str:
    """Class of the visit as the caller sent it along; what the repository has of the visit goes before it (check). The visit of
    somebody else says nothing about this order."""
    sent = prefetch.get("encounter") if isinstance(prefetch, dict) else None
    if (
        not isinstance(sent, dict)
        or sent.get("resourceType") != "Encounter"
        or not encounter
        or sent.get("id") != encounter
        or _of_another(sent.get("subject"), patient)
    ):
        return ""
    coding = sent.get("class")
    code = coding.get("code") if isinstance(coding, dict) else None
    return code if isinstance(code, str) else ""


def _of_another(subject: Any, patient: str) -> bool:
    """Does a subject name another Patient than that of the context? One named by a business identifier cannot be compared."""
    reference = subject.get("reference") if isinstance(subject, dict) else None
    named = reference.rpartition("Patient/")[2].partition("/")[0] if isinstance(reference, str) else ""
    return bool(named) and "|" not in patient and named != patient.removeprefix("Patient/")


_NOT_WANTED: Final = frozenset({"revoked", "entered-in-error"})


def _drafts(bundle: Any, patient: str) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Draft ServiceRequests, and what is wrong with entries that hold no resource: the drafts beside these are answered all the same.
    Raises Fault INVALID when no entry holds one, or a draft is for another patient."""
    where = "context.draftOrders"
    if not isinstance(bundle, dict) or bundle.get("resourceType") != "Bundle":
        raise Fault(Category.INVALID, f"{where} is missing or not a Bundle.", where=where)
    entries = bundle.get("entry", [])
    if not isinstance(entries, list):
        raise Fault(Category.INVALID, f"{where}.entry is not a list.", where=f"{where}.entry")
    out: list[Mapping[str, Any]] = []
    unread: list[str] = []
    for number, entry in enumerate(entries):
        place = f"{where}.entry[{number}].resource"
        resource = entry.get("resource") if isinstance(entry, dict) else None
        if not isinstance(resource, dict) or not isinstance(resource.get("resourceType"), str):
            unread.append(f"{place} is missing or not a resource.")
            continue
        if resource["resourceType"] != "ServiceRequest" or resource.get("doNotPerform") is True:
            continue  # drugs, diets: other services answer for them
        if isinstance(status := resource.get("status"), str) and status in _NOT_WANTED:
            continue
        if _of_another(resource.get("subject"), patient):
            raise Fault(
                Category.INVALID, f"{place}.subject is not the patient of the context.", where=f"{place}.subject"
            )
        out.append(resource)
    if unread and len(unread) == len(entries):
        raise Fault(Category.INVALID, unread[0], where=unread[0].split(" ", 1)[0])
    return out, unread
