"""``Patient/$break-glass`` for clinicians, ``Patient/$open-case`` for auditors, and the review of both (docs/access.md)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

import psycopg
from fastapi import APIRouter, Request, Response

from conformance import fhirjson
from fhir_server.api.cds_hooks import answer, read_json
from fhir_server.api.content import require_json_answer, resource_body
from fhir_server.api.interaction import Touched, audited, in_thread
from fhir_server.api.responses import fhir
from fhir_server.api.security import Asker, permit, permit_role, services_of
from fhir_server.errors import Category, Fault
from fhir_server.recognition.feedback import read_string
from fhir_server.scope import opened
from fhir_server.search.definitions import parameters
from fhir_server.search.leaves import hash_of
from fhir_server.store.statement import instant

router = APIRouter()

_CASE: Final = timedelta(days=30)
_SHORTEST: Final = 4
_LONGEST: Final = 500


@router.post("/fhir/Patient/$break-glass")
@router.post("/fhir/Patient/{logical}/$break-glass")
async def break_glass(request: Request, asker: Asker, logical: str = "") -> Response:
    """Opens a patient's record for the asker in an emergency: ``reason`` (valueString), and at type level ``patient``
    (valueReference or valueIdentifier). Answers Parameters with the Patients and until when; every use waits for review."""
    await permit_role(request, asker, "$break-glass", "clinician")
    hours = services_of(request).settings.break_glass_hours
    return await _open(request, asker, logical, "break-glass", timedelta(hours=hours))


@router.post("/fhir/Patient/{logical}/$open-case")
async def open_case(request: Request, asker: Asker, logical: str) -> Response:
    """Shows one patient to the asking auditor as he is, for 30 days: ``reason`` (valueString)."""
    await permit_role(request, asker, "$open-case", "auditor")
    return await _open(request, asker, logical, "case", _CASE)


async def _open(request: Request, asker: Asker, logical: str, kind: str, life: timedelta) -> Response:
    require_json_answer(request)
    await permit(request, asker, "read", "Patient")
    if asker.patient or "Patient" in asker.narrowed("r"):
        # It would answer for others than those the token is for.
        raise Fault(Category.FORBIDDEN, "A token for one patient, or for some, opens no records.")
    services = services_of(request)
    told = await resource_body(request, services.settings.max_request)
    if told.get("resourceType") != "Parameters":
        raise Fault(Category.INVALID, "Send Parameters with reason.", where="resourceType")
    given = {p.get("name"): p for p in told.get("parameter") or [] if isinstance(p, dict)}
    reason = given.get("reason", {}).get("valueString", "")
    if not isinstance(reason, str) or not _SHORTEST <= len(reason.strip()) <= _LONGEST:
        text = f"Say why, in {_SHORTEST} to {_LONGEST} characters: a colleague will review it."
        raise Fault(Category.INVALID, text, where="reason")
    token = None
    if not logical:
        logical, token = _named(given.get("patient", {}))
    now = services.clock()
    opening = opened.Opening(kind, asker.subject, asker.facility, now, now + life, reason.strip())

    def act() -> list[tuple[int, str]]:
        with services.writer.connection() as conn:
            found = opened.find(conn, logical, token)
            opened.record(conn, opening, found)
            return found

    try:
        found = await in_thread(act)
    except (psycopg.OperationalError, OSError):
        raise Fault(Category.UNAVAILABLE, "The record cannot be opened now. Try again.") from None
    touched = [Touched("Patient", patient) for _, patient in found]
    outcome: Any = "0" if found else "4"
    name = "$break-glass" if kind == "break-glass" else "$open-case"
    await audited(request, asker, "E", name, touched, types={"Patient"}, outcome=outcome)
    if not found:
        raise Fault(Category.NOT_FOUND, "No such patient is known.")
    out = [{"name": "patient", "valueReference": {"reference": f"Patient/{p}"}} for _, p in found]
    out.append({"name": "until", "valueInstant": instant(opening.until)})
    return fhir(request, fhirjson.dumps({"resourceType": "Parameters", "parameter": out}))


def _named(parameter: dict[str, Any]) -> tuple[str, int | None]:
    reference, identifier = parameter.get("valueReference") or {}, parameter.get("valueIdentifier") or {}
    if isinstance(literal := reference.get("reference"), str):
        return literal.rpartition("/")[2], None
    system, value = identifier.get("system"), identifier.get("value")
    if isinstance(system, str) and isinstance(value, str):
        return "", hash_of(parameters("Patient")["identifier"].paths[0][0].seed, f"{system}|{value}")
    raise Fault(
        Category.INVALID, "patient is a valueReference, or a valueIdentifier with system and value.", where="patient"
    )


@router.get("/audit/opened")
async def waiting(request: Request, asker: Asker) -> Response:
    """Opened records that wait for review, oldest first, with who, when and why."""
    await permit_role(request, asker, "opened-records", "auditor")
    services = services_of(request)

    def act() -> list[dict[str, Any]]:
        with services.writer.connection() as conn:
            return opened.waiting(conn)

    found = await in_thread(act)
    await audited(
        request, asker, "R", "opened-records", [Touched("Patient", f["patient"]) for f in found], types={"Patient"}
    )
    return answer({"waiting": [{**f, "at": instant(f["at"]), "until": instant(f["until"])} for f in found]})


@router.post("/audit/opened/{number}/review")
async def review(request: Request, asker: Asker, number: str) -> Response:
    """Settles one opened record: ``verdict`` (justified or unjustified)."""
    await permit_role(request, asker, "review-opened", "auditor")
    services = services_of(request)
    verdict, now = read_string(await read_json(request), "verdict", ""), services.clock()

    def act() -> None:
        with services.writer.connection() as conn:
            opened.review(conn, number, asker.subject, verdict, now)

    await in_thread(act)
    await audited(request, asker, "U", "review-opened", (), types={"Patient"})
    return answer({"id": number, "verdict": verdict})
