"""SearchParameters that clients post: compiled, indexed over what is stored, answering when that is complete, and gone when deleted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from fhir_server.search import posted
from fhir_server.store import posted_parameters, reindex
from fhir_server.store.body import Codec

from .conftest import Api

EXT = "http://example.org/sd/ward-color"
GENDER = {"definition": "http://hl7.org/fhir/SearchParameter/individual-gender", "expression": "gender"}
CASES: list[tuple[str, str, str, dict[str, str]]] = [
    # type, kind, expression, {value of the parameter: ids that match}
    (
        "Patient",
        "token",
        f"Patient.extension('{EXT}').value",
        {"red": "a b", "http://x|red": "a", "|red": "", "blue": ""},
    ),
    ("Patient", "token", f"Patient.extension.where(url = '{EXT}').value.ofType(Coding)", {"red": "a", "|red": ""}),
    ("Patient", "token", f"(Patient.extension('{EXT}').value as code)", {"red": "b"}),
    ("Patient", "string", "Patient.contact.name.family", {"zh": "a", "Zhou": "a", "ou": ""}),
    ("Patient", "string", "Patient.maritalStatus.text", {"verh": "b"}),
    ("Patient", "token", "Patient.maritalStatus", {"M": "a", "http://m|M": "a", "http://m|": "a", "M,S": "a", "S": ""}),
    ("Patient", "number", "Patient.multipleBirth.ofType(integer)", {"2": "a", "gt1": "a", "3": "", "lt5": "a"}),
    ("Patient", "date", "Patient.contact.period", {"2024": "a", "gt2024": "", "lt2025-01-01": "a"}),
    ("Patient", "reference", "Patient.contact.organization", {"o1": "a", "Organization/o1": "a", "o2": ""}),
    ("Patient", "uri", "Patient.identifier.system", {"urn:x": "a b", "urn:y": ""}),
    ("Patient", "token", "Patient.identifier.where(use='old')", {"7": "b", "urn:x|7": "b", "8": ""}),
    ("Patient", "token", "Patient.identifier[0]", {"8": "b", "7": ""}),
    ("Observation", "quantity", "Observation.referenceRange.high", {"5.5|http://u|mg": "x", "gt5||mg": "x", "4": ""}),
    ("Observation", "string", "Observation.note.text | Observation.interpretation.text", {"hemo": "x", "high": "x"}),
]


@pytest.fixture(autouse=True)
def _administrator(request: pytest.FixtureRequest) -> None:
    """What takes effect needs his token: everything stored is indexed again."""
    for name in ("api", "module_api"):
        if name in request.fixturenames:
            api = request.getfixturevalue(name)
            api.http.headers["Authorization"] = f"Bearer {api.token('administrator')}"


@pytest.fixture(autouse=True)
def _forget_them_afterwards() -> Iterator[None]:
    yield
    posted.take_over([])
    posted_parameters._Learned.generation = -1


def parameter(type: str, kind: str, expression: str, **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "SearchParameter",
        "url": "http://example.org/sp/added",
        "name": "added",
        "status": "active",
        "description": "added",
        "code": "added",
        "base": [type],
        "type": kind,
        "expression": expression,
        **more,
    }


def work(api: Api, steps: int = 1000) -> int:
    """Lets the indexing go on for so many chunks, or to its end; how many there were."""
    with psycopg.connect(api.database_url, autocommit=True) as conn:
        codec = Codec.load(conn)
        done = 0
        while done < steps and reindex.step(conn, codec):
            done += 1
        with conn.transaction():
            posted_parameters.learn(conn)
    return done


def stored(api: Api) -> None:
    api.put(resourceType="Organization", id="o1", name="O")
    api.put(
        resourceType="Patient",
        id="a",
        extension=[{"url": EXT, "valueCoding": {"system": "http://x", "code": "red"}}],
        identifier=[{"system": "urn:x", "value": "1"}],
        maritalStatus={"coding": [{"system": "http://m", "code": "M"}]},
        multipleBirthInteger=2,
        contact=[
            {
                "name": {"family": "Zhou"},
                "organization": {"reference": "Organization/o1"},
                "period": {"start": "2024-02-01", "end": "2024-03-01"},
            }
        ],
    )
    api.put(
        resourceType="Patient",
        id="b",
        extension=[{"url": "http://other", "valueCode": "red"}, {"url": EXT, "valueCode": "red"}],
        identifier=[{"system": "urn:x", "value": "8"}, {"use": "old", "system": "urn:x", "value": "7"}],
        maritalStatus={"text": "Verheiratet"},
    )
    api.put(
        resourceType="Observation",
        id="x",
        status="final",
        code={"text": "c"},
        note=[{"text": "Hemolytic"}],
        interpretation=[{"text": "HIGH"}],
        referenceRange=[{"high": {"value": 5.5, "unit": "mg", "system": "http://u", "code": "mg"}}],
    )


def test_every_supported_form_of_expression_finds_what_is_stored_and_what_comes(api: Api) -> None:
    stored(api)
    for n, (kind, form, expression, _) in enumerate(CASES):
        api.create(**parameter(kind, form, expression, code=f"added-{n}", url=f"http://example.org/sp/{n}"))
    work(api)
    for again in (False, True):
        for n, (kind, _, expression, found) in enumerate(CASES):
            for value, ids in found.items():
                assert (expression, value, sorted(api.ids(f"{kind}?added-{n}={value}"))) == (
                    expression,
                    value,
                    ids.split(),
                )
        if not again:  # the same, when they are written by a process that knows the parameters
            for name in ("Patient/a", "Patient/b", "Observation/x"):
                resource = api.http.get(f"/{name}").json()
                api.put(**resource, language="zh")


def test_a_parameter_answers_when_its_index_is_complete_and_no_sooner(api: Api) -> None:
    stored(api)
    assert api.http.get("/Patient?added=red", headers={"Prefer": "handling=strict"}).status_code == 400
    made = api.create(**parameter("Patient", "token", f"Patient.extension('{EXT}').value"))
    told = api.http.get("/Patient?added=red", headers={"Prefer": "handling=strict"})
    assert told.status_code == 400
    assert "being indexed" in told.text
    lenient = api.search("Patient?added=red")
    assert [e["search"]["mode"] for e in lenient["entry"]].count("match") == 2
    assert any("being indexed" in str(e) for e in lenient["entry"] if e["search"]["mode"] == "outcome")
    work(api, 2)
    assert api.http.get("/Patient?added=red", headers={"Prefer": "handling=strict"}).status_code == 400
    api.put(resourceType="Patient", id="c", extension=[{"url": EXT, "valueCode": "red"}])  # written meanwhile
    work(api)
    assert sorted(api.ids("Patient?added=red")) == ["a", "b", "c"]
    assert sorted(api.ids("Patient?added:not=http://x|red")) == ["b", "c"]
    assert api.ids("Patient?added:missing=true") == []
    assert sorted(api.ids("Observation?subject:Patient.added=red")) == []
    listed = {r["type"]: r["searchParam"] for r in api.http.get("/metadata").json()["rest"][0]["resource"]}
    assert {"name": "added", "type": "token", "definition": "http://example.org/sp/added"} in listed["Patient"]
    # --- it is deleted ---
    assert api.http.delete(f"/SearchParameter/{made}").status_code == 204
    assert api.http.get("/Patient?added=red", headers={"Prefer": "handling=strict"}).status_code == 400
    work(api)
    with psycopg.connect(api.database_url) as conn:
        assert conn.execute("SELECT count(*) FROM search_value WHERE param > 1000").fetchone() == (0,)
        assert conn.execute("SELECT count(*) FROM posted_parameter").fetchone() == (0,)
    assert "added" not in str(api.http.get("/metadata").json()["rest"][0]["resource"][0]["searchParam"])


def test_a_crash_between_chunks_loses_nothing_and_another_process_goes_on(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reindex, "CHUNK", 3)
    for n in range(20):
        api.put(resourceType="Patient", id=f"p{n}", language="zh" if n % 2 else "en")
    api.create(**parameter("Patient", "token", "Patient.language"))
    assert work(api, 4) == 4
    posted.take_over([])  # as a process that has just begun
    posted_parameters._Learned.generation = -1
    assert work(api) < 8
    assert sorted(api.ids("Patient?added=zh")) == sorted(f"p{n}" for n in range(1, 20, 2))


def test_a_changed_parameter_is_indexed_anew_and_a_retired_one_answers_no_more(api: Api) -> None:
    stored(api)
    made = api.create(**parameter("Patient", "token", "Patient.maritalStatus"))
    work(api)
    assert api.ids("Patient?added=M") == ["a"]
    api.put(**parameter("Patient", "token", "Patient.identifier.where(use='old')"), id=made)
    assert api.http.get("/Patient?added=M", headers={"Prefer": "handling=strict"}).status_code == 400
    work(api)
    assert (api.ids("Patient?added=M"), api.ids("Patient?added=7")) == ([], ["b"])
    api.put(**parameter("Patient", "token", "Patient.maritalStatus", status="retired"), id=made)
    assert api.http.get("/Patient?added=7", headers={"Prefer": "handling=strict"}).status_code == 400


@pytest.mark.parametrize(
    ("change", "where", "reason"),
    [
        ({"expression": "Patient.name.exists()"}, "expression", "beyond the FHIRPath"),
        ({"expression": "Patient.name.where(use = 'usual' and period.empty())"}, "expression", "beyond the FHIRPath"),
        ({"expression": "Patient.nothing"}, "expression", "no element"),
        ({"expression": "Patient"}, "expression", "name an element"),
        ({"expression": "Observation.code"}, "expression", "No part"),
        ({"expression": "Patient.extension('u').value.code"}, "expression", "only its value"),
        ({"expression": None}, "expression", "FHIRPath"),
        ({"type": "special"}, "type", "cannot be added"),
        ({"type": "composite"}, "expression", "resource itself"),
        ({"type": "composite", "expression": "Patient"}, "component", "two components"),
        (
            {"type": "composite", "expression": "Patient", "component": [GENDER, {**GENDER, "definition": "http://x"}]},
            "component[1].definition",
            "no official",
        ),
        (
            {"type": "composite", "expression": "Patient", "component": [GENDER, {**GENDER, "expression": "active"}]},
            "component[1].expression",
            "does not look",
        ),
        ({"code": "name"}, "code", "already"),
        ({"code": "_id"}, "code", "already"),
        ({"base": ["Medication"]}, "base", "not served"),
        ({"type": "quantity"}, "expression", "no element"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(
    module_api: Api, change: dict[str, Any], where: str, reason: str
) -> None:
    wanted = {k: v for k, v in (parameter("Patient", "token", "Patient.maritalStatus") | change).items() if v}
    answer = module_api.http.post("/SearchParameter", json=wanted)
    assert answer.status_code == 422, answer.text
    told = answer.json()["issue"][0]
    assert reason in str(told)
    assert where in str(told.get("expression"))


def test_a_composite_of_official_parameters_needs_both_to_hold(api: Api) -> None:
    when = {"definition": "http://hl7.org/fhir/SearchParameter/individual-birthdate", "expression": "birthDate"}
    for logical, gender, day in (("a", "female", "1980-05-17"), ("b", "female", "1990"), ("c", "male", "1980-05-17")):
        api.put(resourceType="Patient", id=logical, gender=gender, birthDate=day)
    api.create(**parameter("Patient", "composite", "Patient", component=[GENDER, when]))
    work(api)
    for value, ids in {
        "female$1980-05-17": "a",
        "female$1980": "a",
        "female$ge1980": "a b",
        "female$1980,male$lt1981": "a c",
        "unknown$1980": "",
    }.items():
        assert (value, sorted(api.ids(f"Patient?added={value}"))) == (value, ids.split())
    assert api.http.get("/Patient?added=female").status_code == 400
    told = api.http.get("/metadata").json()["rest"][0]["resource"]
    named = {p["name"]: p["type"] for r in told if r["type"] == "Patient" for p in r["searchParam"]}
    assert named["added"] == "composite"


def test_a_second_parameter_of_the_same_code_is_refused(api: Api) -> None:
    api.create(**parameter("Patient", "token", "Patient.maritalStatus"))
    other = parameter("Patient", "token", "Patient.language", url="http://example.org/sp/other")
    assert api.http.post("/SearchParameter", json=other).status_code == 422
    assert api.http.post("/SearchParameter", json=other | {"status": "draft"}).status_code == 201  # only kept


def test_a_transaction_that_fails_leaves_no_parameter_behind(api: Api) -> None:
    entries = [
        {
            "resource": parameter("Patient", "token", "Patient.maritalStatus"),
            "request": {"method": "POST", "url": "SearchParameter"},
        },
        {"resource": {"resourceType": "Patient", "language": "zh"}, "request": {"method": "POST", "url": "Patient"}},
        {"request": {"method": "GET", "url": "Patient/nobody"}},
    ]
    sent = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
    assert api.http.post("", json=sent).status_code == 404
    assert work(api) == 0
    sent["entry"] = entries[:2]
    assert api.http.post("", json=sent).status_code == 200
    work(api)
    assert len(api.ids("Patient?added:missing=true")) == 1


def test_an_auditor_cannot_search_by_what_nobody_judged(api: Api) -> None:
    stored(api)
    api.create(**parameter("Patient", "string", "Patient.contact.name.family"))
    work(api)
    headers = {"Authorization": f"Bearer {api.token('auditor')}"}
    assert api.http.get("/Patient?added=zh", headers=headers).status_code == 403


def test_what_takes_effect_needs_an_administrator(api: Api) -> None:
    made = api.create(**parameter("Patient", "token", "Patient.maritalStatus"))
    active, draft = (
        parameter("Patient", "token", "Patient.language", code="other", status=s) for s in ("active", "draft")
    )
    api.http.headers["Authorization"] = f"Bearer {api.token('integrator')}"
    stored = api.http.get(f"/SearchParameter/{made}").json()
    entry = [{"resource": active, "request": {"method": "POST", "url": "SearchParameter"}}]
    for answer in (
        api.http.post("/SearchParameter", json=active),
        api.http.put("/SearchParameter/other", json={**active, "id": "other"}),
        api.http.put(f"/SearchParameter/{made}", json={**stored, "status": "retired"}),
        api.http.patch(
            f"/SearchParameter/{made}",
            content='[{"op": "replace", "path": "/code", "value": "third"}]',
            headers={"Content-Type": "application/json-patch+json"},
        ),
        api.http.delete(f"/SearchParameter/{made}"),
        api.http.delete("/SearchParameter?code=added"),
        api.http.post("/", json={"resourceType": "Bundle", "type": "transaction", "entry": entry}),
    ):
        assert answer.status_code == 403, answer.text
        assert "administrator" in answer.text
    assert api.http.post("/SearchParameter", json=draft).status_code == 201
