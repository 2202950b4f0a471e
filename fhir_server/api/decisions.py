"""What is decided on reminders, for systems without CDS Hooks: plain JSON (docs/recognition.md).

``POST /recognition/decisions`` adopts, declines or revokes; ``GET`` reads decisions by reminder, by patient or by id. ``POST
/recognition/views`` opens the results behind a reminder, ``POST /recognition/citations`` writes them into a record without a decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from fhir_server.access import Principal
from fhir_server.api.cards import names_of
from fhir_server.api.cds_hooks import answer, caller_of, read_json
from fhir_server.api.security import Asker, address_of, permit, services_of
from fhir_server.audit_event import Action
from fhir_server.errors import Category, Fault
from fhir_server.recognition import candidates, decisions
from fhir_server.recognition.feedback import read_string
from fhir_server.recognition.statement import read_statement
from fhir_server.store.database import Borrowed

router = APIRouter(prefix="/recognition")

SERVICE: Final = "recognition-decisions"
_TYPES: Final = ("Observation", "DiagnosticReport")


@router.post("/decisions")
async def decide(request: Request, asker: Asker) -> Response:
    """A decision on a reminder: 201 with the decision (and the citation of an adoption), 200 when the same request was made before;
    400, 404 and 409 as docs/recognition.md says, 503 when it cannot be kept."""
    body = await read_json(request)
    if "key" not in body and (header := request.headers.get("idempotency-key")):
        body["key"] = header
    found = await recorded(request, asker, body)
    content = {"decision": found.decision, "citation": found.citation}
    response = answer(content, 201 if found.new else 200)
    response.headers["Location"] = f"{_root(request)}/recognition/decisions/{found.decision['id']}"
    return response


async def recorded(request: Request, asker: Principal, body: Mapping[str, Any]) -> decisions.Recorded:
    """The decision that a body states, written or found. Raises Fault as ``decide`` answers."""
    await permit(request, asker, "search-type", *_TYPES)
    services = services_of(request)
    said = read_statement(body, services.rules, services.clock())
    found = await decisions.record(services, said, caller_of(asker, SERVICE, said.user), names_of(services))
    await _seen(request, asker, "C", SERVICE, [found.decision["patient"]])
    return found


@router.get("/decisions")
async def search(request: Request, asker: Asker, reminder: str = "", patient: str = "") -> Response:
    """Decisions by ``reminder`` (oldest first), or by ``patient`` (logical id, or ``system|value``; newest first, of all Patients of
    the person): those of the caller's facility; a token without a facility sees all."""
    await permit(request, asker, "search-type", *_TYPES)
    services = services_of(request)
    caller = caller_of(asker, SERVICE)
    if bool(reminder) == bool(patient):
        raise Fault(Category.INVALID, "Ask for one of reminder and patient.", where="reminder")
    if reminder:
        found = await decisions.reminder(services.pool, reminder, caller, services.rules.items)
        line = await decisions.line_of(services.pool, reminder)
        await _seen(request, asker, "R", SERVICE, [found.entry.get("patient")])
        return answer({"reminder": reminder, "state": decisions.state(line), "decisions": line})
    async with Borrowed(services.pool) as connection:
        who = await candidates.identify(connection, patient, asker.facility)
        if isinstance(who, str):
            raise Fault(Category.NOT_FOUND, "There is no such patient, or more than one.", where="patient")
        person = (await candidates.find(connection, who, [], services.clock())).person
        line = await decisions.of_person(connection, person) if person else []
    await _seen(request, asker, "R", SERVICE, [who.patient])
    return answer({"decisions": [d for d in line if decisions.visible(d, caller)]})


@router.get("/decisions/{id}")
async def read(id: str, request: Request, asker: Asker) -> Response:
    """One decision, with the citation of an adoption."""
    await permit(request, asker, "search-type", *_TYPES)
    services = services_of(request)
    found = await decisions.by_id(services.pool, id, caller_of(asker, SERVICE))
    cited = await decisions.citation_of(services.pool, found["card"], id)
    await _seen(request, asker, "R", SERVICE, [found["patient"]])
    return answer({"decision": found, "citation": cited})


@router.get("/reminders/{card}")
async def read_reminder(card: str, request: Request, asker: Asker) -> Response:
    """A reminder as it was given, whether it is decided, and its decisions."""
    await permit(request, asker, "search-type", *_TYPES)
    services = services_of(request)
    found = await decisions.reminder(services.pool, card, caller_of(asker, SERVICE), services.rules.items)
    line = await decisions.line_of(services.pool, card)
    await _seen(request, asker, "R", SERVICE, [found.entry.get("patient")])
    content = {
        "reminder": card,
        "kind": "visit" if found.visit else "reminder",
        "at": found.at.isoformat(),
        "facility": found.facility,
        "department": found.department,
        "user": found.doctor,
        "state": None if found.visit else decisions.state(line),
        "decisions": line,
        "reopened": await decisions.reopened_of(services.pool, card),
        "entry": dict(found.entry),
    }
    return answer(content)


@router.post("/views")
async def view(request: Request, asker: Asker) -> Response:
    """Opens the results behind a reminder: values, images, marks, never another doctor's conclusion. Body: ``reminder``, ``user``."""
    await permit(request, asker, "search-type", *_TYPES)
    services = services_of(request)
    card, user = _card_and_user(await read_json(request))
    caller = caller_of(asker, "recognition-views", user)
    found = await decisions.view(services, card, caller, names_of(services))
    await _seen(request, asker, "R", "recognition-views", found.pop("patients"))
    return answer(found)


@router.post("/citations")
async def cite(request: Request, asker: Asker) -> Response:
    """The results of a reminder as a citation for the record, without adopting them (``reminder``, ``user``): 201."""
    await permit(request, asker, "search-type", *_TYPES)
    services = services_of(request)
    card, user = _card_and_user(await read_json(request))
    caller = caller_of(asker, "recognition-citations", user)
    found, patient = await decisions.cite(services, card, caller, names_of(services))
    await _seen(request, asker, "R", "recognition-citations", [patient])
    return answer({"citation": found}, 201)


def _card_and_user(body: Mapping[str, Any]) -> tuple[str, str]:
    return read_string(body, "reminder", ""), read_string(body, "user", "")


def _root(request: Request) -> str:
    base: str = request.app.state.base_url
    return base.removesuffix("/fhir")


async def _seen(
    request: Request, asker: Principal, action: Action, interaction: str, patients: Iterable[str | None]
) -> None:
    services = services_of(request)
    known = [p for p in patients if p]
    at, address = services.clock(), address_of(request)
    await services.audit.record(asker, action, interaction, _TYPES, known, at=at, address=address)
