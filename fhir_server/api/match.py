"""``Patient/$match`` (http://hl7.org/fhir/R4/patient-operation-match.html): the same judgement that links the Patients of facilities
(identity/matcher), asked about a Patient that is not stored."""

from __future__ import annotations

from typing import Any, Final

import orjson

from conformance.validator import check
from fhir_server.api.inputs import Inputs
from fhir_server.api.responses import Invalid
from fhir_server.errors import Category, Fault
from fhir_server.identity import matcher
from fhir_server.identity.person import COLUMNS, Row, as_row
from fhir_server.services import Services
from fhir_server.store import reader

_GRADE: Final = "http://hl7.org/fhir/StructureDefinition/match-grade"
_SCORES: Final = {"certain": 1, "probable": 0.8, "possible": 0.5}
_MOST: Final = 100
_BY_NUMBER: Final = f"SELECT {COLUMNS} FROM source_patient s WHERE s.resident_id = $1 LIMIT {_MOST}"  # noqa: S608
_BY_NAME: Final = f"SELECT {COLUMNS} FROM source_patient s WHERE s.name = $1 AND s.birth = $2 LIMIT {_MOST}"  # noqa: S608


async def matches(services: Services, asked: Inputs, base: str) -> tuple[list[str], list[bytes]]:
    """(logical ids, entries of a searchset), the best first. Raises Fault INVALID without a Patient to match."""
    patient = asked.resources.get("resource")
    if patient is None or patient.get("resourceType") != "Patient":
        raise Fault(Category.INVALID, "Send Parameters with a Patient called resource.", where="resource")
    broken = [i for i in check(patient) if i.severity in ("error", "fatal")]
    if broken:
        raise Invalid(broken)
    facts = matcher.facts(patient)
    found: dict[str, Row] = {}
    async with services.pool.borrowed() as conn:
        if facts.resident_id:
            found |= {r.patient: r for r in map(as_row, await conn.fetch(_BY_NUMBER, facts.resident_id))}
        if facts.name and facts.birth and matcher.comparable_name(facts.name):
            found |= {r.patient: r for r in map(as_row, await conn.fetch(_BY_NAME, facts.name, facts.birth))}
    graded = [(_grade(facts, row), row.patient) for row in found.values()]
    wanted = {"certain"} if asked.flag("onlyCertainMatches") else set(_SCORES)
    order = sorted((-_SCORES[grade], logical, grade) for grade, logical in graded if grade in wanted)
    count = asked.number("count")
    shown = order[: _MOST if count is None else count]
    bodies = await reader.read_many(services.pool, services.codec, [("Patient", logical) for _, logical, _ in shown])
    entries = []
    for score, logical, grade in shown:
        stored = bodies.get(("Patient", logical))
        if stored is not None and not stored.deleted:
            entries.append(_entry(base, stored, -score, grade))
    return [logical for _, logical, _ in shown], entries


def _grade(facts: matcher.Facts, row: Row) -> str:
    # What was read back does not know what its number says; its key tells whether it may be certain (matcher.certain_key).
    grade = matcher.judge(facts, row.facts).grade
    if grade == "certain" and (row.certain is None or row.certain != matcher.certain_key(facts)):
        return "probable"
    return grade


def _entry(base: str, stored: reader.Stored, score: float, grade: str) -> bytes:
    search: dict[str, Any] = {"extension": [{"url": _GRADE, "valueCode": grade}], "mode": "match", "score": score}
    url = orjson.dumps(f"{base}/Patient/{stored.id}")
    return b'{"fullUrl":%b,"resource":%b,"search":%b}' % (url, stored.body, orjson.dumps(search))
