"""SOAP 1.1 and 1.2 (docs/connect-soap.md): WSDL at ``GET /soap?wsdl``, calls at ``POST /soap``; the same services as the other doors.

``/soap/{facility}`` offers what the vendor of a facility calls already, a web service that takes one string, as its profile says
(``web_services``). A bearer token, HTTP Basic or a WS-Security UsernameToken say who calls; it is one facility.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit
from xml.sax.saxutils import escape

from fastapi import APIRouter, Request, Response

from adapters.payload import encoded
from conformance import fhirjson
from fhir_server.access import Principal
from fhir_server.api import decisions, interaction, messages, recognition, soap_envelope
from fhir_server.api.bundle import searchset
from fhir_server.api.client_password import asker_of, by_password
from fhir_server.api.content import raw_body
from fhir_server.api.interaction import Touched, audited, base_of, context_of
from fhir_server.api.responses import EXPECTED, fault_of
from fhir_server.api.security import permit, services_of
from fhir_server.api.soap_envelope import Call
from fhir_server.api.soap_results import plain_result
from fhir_server.api.soap_schema import NAMESPACE, OPERATIONS, TYPES, Part
from fhir_server.api.soap_wsdl import wsdl
from fhir_server.errors import Category, Fault
from fhir_server.recognition import candidates
from fhir_server.search.query import parse
from fhir_server.store.database import Borrowed
from mappings.facility import WebService

# Its description is the WSDL.
router = APIRouter(prefix="/soap", include_in_schema=False)

CHANNEL: Final = "soap"
_MOST_RESULTS: Final = 200
_LINKED: Final = """
SELECT patient FROM source_patient
WHERE person = (SELECT person FROM source_patient WHERE shard = $1 AND patient = $2) LIMIT 200"""
_HIP: Final = WebService(operation="HIPMessageServer", parameters=["action", "message"], payload="message")
"""The one-string web service as integration engines of county hospitals offer it, for facilities whose profile names none."""

Act = Callable[[Request, Principal, dict[str, Any]], Coroutine[Any, Any, dict[str, Any]]]


@router.get("")
async def describe(request: Request) -> Response:
    """The WSDL. Needs no token: it says nothing of patients."""
    return Response(wsdl(NAMESPACE, OPERATIONS, TYPES, _address(request)), media_type="text/xml; charset=utf-8")


@router.get("/{facility}")
async def describe_vendor(request: Request, facility: str) -> Response:
    """The WSDL of the one-string web services of a facility."""
    offered = _services(request, facility)
    types = {}
    for service in offered:
        types[service.operation] = tuple(Part(p) for p in service.parameters)
        types[f"{service.operation}Response"] = (Part(service.result or f"{service.operation}Result"),)
    names = [s.operation for s in offered]
    body = wsdl(offered[0].namespace or NAMESPACE, names, types, f"{_address(request)}/{facility}")
    return Response(body, media_type="text/xml; charset=utf-8")


@router.post("")
async def call(request: Request) -> Response:
    """A call: the answer's envelope, or a fault (HTTP 500, for SOAP 1.2 400 when the caller has to change something; 401)."""
    return await _called(request, _operation)


@router.post("/{facility}")
async def call_vendor(request: Request, facility: str) -> Response:
    """A call of a one-string web service of the facility."""
    offered = {s.operation: s for s in _services(request, facility)}

    async def act(request: Request, asker: Principal, received: Call) -> bytes:
        service = offered.get(received.operation)
        if service is None:
            raise Fault(Category.INVALID, f"The operation is one of {', '.join(offered)}.", where="Body")
        if asker.facility != facility:
            raise Fault(Category.FORBIDDEN, "Who calls may not speak for this facility.")
        return await _single_string(request, asker, received, service)

    return await _called(request, act)


async def _called(request: Request, act: Callable[[Request, Principal, Call], Coroutine[Any, Any, bytes]]) -> Response:
    version = "1.1"
    headers: Mapping[str, str] = {}
    try:
        version = soap_envelope.version_of(request.headers.get("content-type", ""))
        raw = await raw_body(request, services_of(request).settings.max_request)
        received = await interaction.in_thread(soap_envelope.read, raw)
        version = received.version
        asker = await (by_password(request, *received.username) if received.username else asker_of(request))
        status, body = 200, await act(request, asker, received)
    except EXPECTED as error:
        found = fault_of(error)
        headers = {k: v for k, v in found.headers.items() if k.lower() == "www-authenticate"}
        status, body = soap_envelope.fault(version, found)
    return Response(body, status, headers, soap_envelope.media_type(version))


async def _operation(request: Request, asker: Principal, received: Call) -> bytes:
    act = _ACTS.get(received.operation)
    if act is None:
        raise Fault(Category.INVALID, f"The operation is one of {', '.join(OPERATIONS)}.", where="Body")
    said = soap_envelope.values(received.body, received.operation)
    content = await act(request, asker, said)
    return soap_envelope.answer(received.version, NAMESPACE, f"{received.operation}Response", content)


async def _submit(request: Request, asker: Principal, said: dict[str, Any]) -> dict[str, Any]:
    taken = await messages.take(request, asker, encoded(said["payload"]), said.get("format", ""), CHANNEL)
    return {"message": [_message(m) for m in taken]}


async def _status(request: Request, asker: Principal, said: dict[str, Any]) -> dict[str, Any]:
    if "id" in said:
        return {"message": [_message(await messages.status(request, asker, said["id"]))]}
    if "control_id" not in said:
        raise Fault(Category.INVALID, "Give id or controlId.", where="controlId")
    found = await messages.by_control_id(request, asker, said["control_id"])
    return {"message": [_message(m) for m in found]}


def _message(told: Mapping[str, Any]) -> dict[str, Any]:
    return {**told, "issue": told["issues"]}


async def _query(request: Request, asker: Principal, said: dict[str, Any]) -> dict[str, Any]:
    """Observations of the person, newest first, as a search at ``/fhir/Observation`` would show them to the asker."""
    await permit(request, asker, "search-type", "Observation")
    services = services_of(request)
    async with Borrowed(services.pool) as connection:
        who = await candidates.identify(connection, said["patient"], asker.facility)
        if isinstance(who, str) and asker.facility and "|" not in said["patient"]:
            who = await candidates.numbered(connection, said["patient"], asker.facility)
        if isinstance(who, str):
            raise Fault(Category.NOT_FOUND, "There is no such patient, or more than one.", where="patient")
        rows = await connection.fetch(_LINKED, who.shard, who.patient)
    everybody = sorted({who.patient, *(row["patient"] for row in rows)})
    pairs = [("patient", ",".join(f"Patient/{p}" for p in everybody)), ("_sort", "-date")]
    pairs += [(name, said[name]) for name in ("category", "code") if name in said]
    pairs += [("date", f"{sign}{said[name]}") for name, sign in (("from", "ge"), ("until", "le")) if name in said]
    pairs.append(("_count", str(min(said.get("count", 50), _MOST_RESULTS))))
    pairs += [(name, value) for name, value in parse_qsl(said.get("next", "")) if name == "_cursor"]
    query = parse("Observation", pairs, strict=True)
    found = await interaction.search(services, [query], context_of(request), asker)
    touched = [Touched(hit.type, hit.patient) for hit in found.hits]
    told = "&".join(name for name, _ in pairs)
    await audited(request, asker, "R", "soap-query-results", touched, types={"Observation"}, query=told)
    shown = fhirjson.loads(searchset(query, found, base_of(request)))
    following = next((link["url"] for link in shown["link"] if link["relation"] == "next"), "")
    return {
        "result": [plain_result(fhirjson.loads(hit.body)) for hit in found.matches],
        "next": urlsplit(following).query or None,
    }


async def _check(request: Request, asker: Principal, said: dict[str, Any]) -> dict[str, Any]:
    said["orders"] = said.pop("order")
    found = await recognition.checked(request, asker, said)
    for answer in found["answers"]:
        answer |= {f"summary_{language}": text for language, text in answer["summary"].items()}
        answer |= {"order": answer["orders"], "report": answer["reports"], "detail": _json(answer["decision"])}
    return {**found, "answer": found["answers"]}


async def _decide(request: Request, asker: Principal, said: dict[str, Any]) -> dict[str, Any]:
    recorded = await decisions.recorded(request, asker, said)
    cited = recorded.citation["text"] if recorded.citation else {}
    content = {"new": recorded.new, "detail": _json(recorded.decision)}
    content |= {f"citation_{language}": text for language, text in cited.items()}
    return {**{n: recorded.decision.get(n) for n in ("id", "action", "at")}, **content}


_ACTS: Final[dict[str, Act]] = {
    "Submit": _submit,
    "MessageStatus": _status,
    "QueryResults": _query,
    "CheckRecognition": _check,
    "RecordDecision": _decide,
}


def _json(value: Any) -> str:
    return fhirjson.dumps(value).decode()


# --- web services that take one string -------------------------------------------------------------------------------------------


def _services(request: Request, facility: str) -> list[WebService]:
    profile = services_of(request).profiles.get(facility)
    if profile is None:
        raise Fault(Category.NOT_FOUND, "There is nothing at this address.")
    return profile.facility.web_services or [_HIP]


async def _single_string(request: Request, asker: Principal, received: Call, service: WebService) -> bytes:
    """The payload as ``Submit`` takes it; the answer as the profile words it. A document that is held is answered as refused."""
    given = {str(e.tag).rpartition("}")[2]: e for e in received.body if isinstance(e.tag, str)}
    if service.payload not in given:
        raise Fault(Category.INVALID, f"{service.payload} is missing.", where=service.payload)
    raw = encoded(soap_envelope.payload(given[service.payload]))
    taken = await messages.take(request, asker, raw, "", CHANNEL)
    bad = [m for m in taken if m["status"] in ("held", "refused")]
    shown = bad[0] if bad else taken[0]
    words = " ".join(f"{i['key']}: {i['text']}" for i in shown["issues"] if i["severity"] in ("error", "fatal"))
    told = {"id": str(shown["id"] or ""), "status": shown["status"], "text": words}
    text = service.refused if bad else service.accepted
    for name, value in told.items():
        text = text.replace(f"{{{name}}}", escape(value))
    space = service.namespace or NAMESPACE
    part = service.result or f"{service.operation}Result"
    return soap_envelope.text_answer(received.version, space, f"{service.operation}Response", part, text)


def _address(request: Request) -> str:
    return f"{base_of(request).removesuffix('/fhir')}/soap"
