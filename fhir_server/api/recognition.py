"""The recognition check for systems without CDS Hooks: one plain JSON call, the same answers (docs/recognition.md).

``POST /recognition/check`` asks before an order, ``POST /recognition/visit`` at the start of a visit; ``POST /recognition/feedback``
tells what the clinician did (same body as CDS Hooks feedback), ``/recognition/decisions`` (fhir_server.api.decisions) decides.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from conformance import systems
from fhir_server.access import Principal
from fhir_server.api import cds_hooks
from fhir_server.api.cards import names_of
from fhir_server.api.security import Asker, address_of, services_of
from fhir_server.errors import Category, Fault
from fhir_server.recognition import circumstances, explain
from fhir_server.recognition.check import Answer, Question, ask, visit_card
from fhir_server.recognition.decide import as_dict
from fhir_server.recognition.explain import Names
from fhir_server.recognition.feedback import read_string

router = APIRouter(prefix="/recognition")

SERVICE: Final = "recognition-check"
VISIT: Final = "recognition-visit"
_MOST_ORDERS: Final = 100


@router.post("/check")
async def check(request: Request, asker: Asker) -> Response:
    """Decisions for orders: 200 with ``answers`` (empty, with ``failure``, when there is none), 400 for a request that is not one."""
    return cds_hooks.answer(await checked(request, asker, await cds_hooks.read_json(request)))


async def checked(request: Request, asker: Principal, body: Mapping[str, Any]) -> dict[str, Any]:
    """What ``/check`` answers to a body. Raises Fault FORBIDDEN, INVALID."""
    await cds_hooks.permit_question(request, asker, SERVICE)
    return await _asked(request, asker, read_question(body, asker.facility))


@router.post("/visit")
async def visit(request: Request, asker: Asker) -> Response:
    """What could be recognized if it were ordered now: ``answers`` as ``/check`` gives them; ``id`` is that of the whole list."""
    await cds_hooks.permit_question(request, asker, VISIT)
    body = await cds_hooks.read_json(request)
    return cds_hooks.answer(
        await _asked(request, asker, Question(VISIT, *_who(body), requests=[], visit=True, **_beside(body)))
    )


async def _asked(request: Request, asker: Principal, question: Question) -> dict[str, Any]:
    services = services_of(request)
    found = await ask(services, asker, question, address_of(request))
    names, base = names_of(services), request.app.state.base_url
    content: dict[str, Any] = {
        "instance": question.instance,
        "at": found.at.isoformat(),
        "facility": found.facility,
        "failure": found.failure,
        "answers": [_answer(a, names, base) for a in found.answers],
    }
    if question.visit:
        content["id"] = visit_card(question, found) if found.answers else None
    return content


@router.post("/feedback")
async def feedback(request: Request, asker: Asker) -> Response:
    """What the clinician did with an answer; ``card`` is the ``id`` of the answer."""
    return await cds_hooks.keep_feedback(SERVICE, request, asker)


def read_question(body: Mapping[str, Any], facility: str) -> Question:
    """Request body -> Question. Raises Fault INVALID naming the field that is missing or wrong.

    patient    logical id of a Patient, or ``system|value`` of a business identifier
    user       the clinician, as the caller knows him
    encounter  (optional) logical id of the visit; instance (optional): UUID of the call; department (optional): that orders
    circumstances  (optional) object with emergency, surgery, transfusion (true or false); visit_class (optional): class of the visit
               (v3 ActCode: EMER, AMB, IMP), which counts where the repository does not know the visit
    orders     list of ``code``, ``system`` (left out: the asking facility's own order codes), ``name`` and ``id`` (both optional)
    """
    who = _who(body)
    orders = body.get("orders")
    if not isinstance(orders, list) or not 0 < len(orders) <= _MOST_ORDERS:
        raise Fault(Category.INVALID, f"orders is missing or not a list of 1 to {_MOST_ORDERS}.", where="orders")
    requests = [_request(order, f"orders[{n}].", facility) for n, order in enumerate(orders)]
    return Question(SERVICE, *who, requests=requests, **_beside(body))


def _who(body: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """instance, user, patient, encounter."""
    patient, user = read_string(body, "patient", ""), read_string(body, "user", "")
    encounter = read_string(body, "encounter", "") if "encounter" in body else ""
    instance = read_string(body, "instance", "") if "instance" in body else str(uuid.uuid4())
    return instance, user, patient, encounter.removeprefix("Encounter/")


def _beside(body: Mapping[str, Any]) -> dict[str, Any]:
    """department, circumstances, class of the visit: each where stated."""
    return {
        "department": read_string(body, "department", "") if "department" in body else "",
        "told": circumstances.read(body.get("circumstances"), "circumstances"),
        "visit_class": read_string(body, "visit_class", "") if "visit_class" in body else "",
    }


def _request(order: Any, path: str, facility: str) -> dict[str, Any]:
    if not isinstance(order, dict):
        raise Fault(Category.INVALID, f"{path.rstrip('.')} is not an object.", where=path.rstrip("."))
    coding = {"code": read_string(order, "code", path)}
    if "system" in order or not facility:
        coding["system"] = read_string(order, "system", path)
    else:
        coding["system"] = systems.local_codes(facility, "orders")
    if "name" in order:
        coding["display"] = read_string(order, "name", path)
    out: dict[str, Any] = {"resourceType": "ServiceRequest", "code": {"coding": [coding]}}
    if "id" in order:
        out["id"] = read_string(order, "id", path)
    return out


def _answer(answer: Answer, names: Names, base: str) -> dict[str, Any]:
    decision = answer.decision
    reports = {m.shown.report for m in decision.members if m.shown and m.shown.report}
    return {
        "id": answer.id,
        "orders": [r["id"] for r in answer.requests if "id" in r],
        "outcome": decision.outcome.value,
        "reminds": answer.reminds,
        "summary": {
            "zh": explain.summary(decision, names, "zh"),
            "en": explain.summary(decision, names, "en"),
        },
        "price_fen": answer.price,
        "reports": [f"{base}/DiagnosticReport/{r}" for r in sorted(reports)],
        "decision": as_dict(decision),
    }
