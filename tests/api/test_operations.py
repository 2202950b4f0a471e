"""Operations over HTTP (http://hl7.org/fhir/R4/operationslist.html)."""

from __future__ import annotations

from typing import Any

import pytest

from conformance.operations.served import definitions
from conformance.validator import check_fully

LOINC = "http://loinc.org"
CS, VS, MAP = "http://ex.org/cs", "http://ex.org/vs", "http://ex.org/map"
P = {"reference": "Patient/p"}


def coded(*codes: str, text: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {"coding": [{"system": LOINC, "code": c} for c in codes]} if codes else {}
    return {**out, **({"text": text} if text else {})}


def result(logical: str, when: str, code: dict[str, Any], subject: dict[str, str] = P, **more: Any) -> dict[str, Any]:
    named = {"resourceType": "Observation", "id": logical, "status": "final", "code": code, "subject": subject}
    return {**named, "effectiveDateTime": when, **more}


LAB = [{"coding": [{"system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": "laboratory"}]}]
RESOURCES: list[dict[str, Any]] = [
    {"resourceType": "Organization", "id": "org", "name": "Lab", "partOf": {"reference": "Organization/top"}},
    {"resourceType": "Organization", "id": "top", "name": "County"},
    {"resourceType": "Organization", "id": "far", "name": "Elsewhere"},
    {"resourceType": "Patient", "id": "p", "gender": "male", "managingOrganization": {"reference": "Organization/org"}},
    {"resourceType": "Patient", "id": "q", "meta": {"tag": [{"system": "urn:t", "code": "a"}]}},
    {"resourceType": "Encounter", "id": "e", "status": "finished", "class": {"code": "AMB"}, "subject": P},
    result("k1", "2024-01-01", coded("2823-3"), category=LAB),
    result("k2", "2024-02-01", coded("2823-3"), category=LAB),
    result("k3", "2024-03-01", coded("2823-3", "6298-4"), category=LAB),
    result("k4", "2024-04-01", coded("6298-4"), encounter={"reference": "Encounter/e"}),
    result("h1", "2024-01-05", coded("718-7", text="Hb"), category=LAB),
    result("t1", "2024-01-06", coded(text="local")),
    result("t2", "2024-01-07", coded(text="local")),
    result("t3", "2024-01-08", coded(text="other")),
    result("x1", "2024-05-01", coded("2823-3"), {"reference": "Patient/q"}),
    {"resourceType": "CodeSystem", "id": "cs", "url": CS, "version": "1", "name": "Kinds", "status": "active", "content": "complete",
     "concept": [{"code": "blood", "display": "Blood", "definition": "All blood", "designation": [{"language": "zh", "value": "血"}],
                  "concept": [{"code": "serum", "display": "Serum"}]}, {"code": "urine", "display": "Urine"}]},
    {"resourceType": "ValueSet", "id": "vs", "url": VS, "status": "active", "compose": {"include": [
        {"system": CS, "filter": [{"property": "concept", "op": "is-a", "value": "blood"}]},
        {"system": LOINC, "concept": [{"code": "718-7", "display": "Hemoglobin"}]}]}},
    {"resourceType": "ValueSet", "id": "open", "url": f"{VS}/open", "status": "active",
     "compose": {"include": [{"system": LOINC}]}},
    {"resourceType": "ConceptMap", "id": "map", "url": MAP, "status": "active",
     "group": [{"source": "http://ex.org/local", "target": CS,
        "element": [{"code": "XQ", "target": [{"code": "serum", "display": "Serum", "equivalence": "equivalent"}]},
                    {"code": "NN", "target": [{"equivalence": "unmatched"}]}],
        "unmapped": {"mode": "provided"}}]},
]  # fmt: skip


@pytest.fixture(scope="module")
def ward(module_api: Any) -> Any:
    for resource in RESOURCES:
        module_api.put(**resource)
    return module_api


def ids(bundle: dict[str, Any], mode: str = "match") -> list[str]:
    return [e["resource"]["id"] for e in bundle.get("entry", []) if e["search"]["mode"] == mode]


def get(api: Any, url: str, status: int = 200) -> dict[str, Any]:
    answer = api.http.get(f"/{url}")
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    assert status == 200 or found["resourceType"] == "OperationOutcome"
    return found


def parameters(**named: Any) -> dict[str, Any]:
    out = []
    for name, value in named.items():
        if isinstance(value, dict) and "resourceType" in value:
            out.append({"name": name, "resource": value})
        else:
            kind = {dict: "valueCoding", bool: "valueBoolean", int: "valueInteger"}.get(type(value), "valueString")
            out.append({"name": name, kind: value})
    return {"resourceType": "Parameters", "parameter": out}


def values(answer: dict[str, Any]) -> dict[str, Any]:
    assert answer["resourceType"] == "Parameters"
    return {
        p["name"]: next((v for k, v in p.items() if k.startswith("value")), p.get("part")) for p in answer["parameter"]
    }


def test_each_definition_is_sound_listed_and_served(ward: Any) -> None:
    statement = get(ward, "metadata")["rest"][0]
    listed = {(r["type"], o["name"], o["definition"]) for r in statement["resource"] for o in r.get("operation", ())}
    listed |= {("", o["name"], o["definition"]) for o in statement.get("operation", ())}
    for definition in definitions():
        assert not [i for i in check_fully(definition) if i.severity == "error"], definition["id"]
        kinds = ["Patient" if t == "Resource" else t for t in definition.get("resource", [""])]
        for kind in kinds:
            if definition["type"] or definition["instance"]:
                assert (kind, definition["code"], definition["url"]) in listed
            for level, place in (("type", kind), ("instance", f"{kind}/none"), ("system", "")):
                if definition[level]:
                    answer = ward.http.post(f"/{place}/${definition['code']}".replace("//", "/"))
                    # What is called with nothing refuses what is missing; it is not unknown.
                    told = answer.json() if answer.content else {}
                    assert "no such operation" not in answer.text, place
                    assert answer.status_code < 500, told


# --- $everything ------------------------------------------------------------------------------------------------------------


def test_everything_about_a_patient_and_what_it_refers_to(ward: Any) -> None:
    found = get(ward, "Patient/p/$everything")
    assert ids(found)[0] == "p"
    assert set(ids(found)) == {"p", "e", "k1", "k2", "k3", "k4", "h1", "t1", "t2", "t3"}
    assert set(ids(found, "include")) == {"org", "top"}
    posted = ward.http.post("/Patient/p/$everything", json=parameters(_type="Observation")).json()
    assert len(ids(posted)) == 8
    assert set(ids(get(ward, "Encounter/e/$everything"))) == {"e", "k4"}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("start=2024-02-15&_type=Observation", "k3 k4"),
        ("end=2024-01-05&_type=Observation", "k1 h1"),
        ("start=2024-01-06&end=2024-01-07&_type=Observation", "t1 t2"),
        ("start=2030", "p e"),
        ("_since=2001-01-01&_type=Patient,Encounter", "p e"),
        ("_since=2101-01-01", ""),
    ],
)
def test_everything_of_a_time(ward: Any, query: str, expected: str) -> None:
    assert set(ids(get(ward, f"Patient/p/$everything?{query}"))) == set(expected.split())


def test_everything_comes_in_pages(ward: Any) -> None:
    seen: list[str] = []
    url = "/Patient/p/$everything?_count=3&end=2024-12-31"
    while url:
        page = ward.http.get(url).raise_for_status().json()
        assert len(ids(page)) <= 3
        seen += ids(page)
        url = next((link["url"] for link in page["link"] if link["relation"] == "next"), "")
    assert sorted(seen) == sorted(["p", "e", "k1", "k2", "k3", "k4", "h1", "t1", "t2", "t3"])


def test_everything_refuses_what_it_cannot_do(ward: Any) -> None:
    get(ward, "Patient/none/$everything", 404)
    get(ward, "Organization/org/$everything", 404)
    get(ward, "Patient/p/$everything?start=soon", 400)
    get(ward, "Patient/p/$everything?_type=Organization", 400)
    headers = {"Authorization": f"Bearer {ward.token('integrator', 'system/Patient.rs')}"}
    assert set(ids(ward.http.get("/Patient/p/$everything", headers=headers).json())) == {"p"}


# --- $lastn -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("patient=p", "k4 t3 t2 h1"),  # 2823-3 and 6298-4 are one group, for k3 has both
        ("patient=Patient/p&max=2", "k4 k3 t3 t2 t1 h1"),
        ("subject=Patient/p&max=10", "k4 k3 k2 k1 t3 t2 t1 h1"),
        ("patient=p&category=laboratory", "k3 h1"),
        ("patient=p&code=http://loinc.org|2823-3&max=2", "k3 k2"),
        ("patient=p&code=http://loinc.org|2823-3,http://loinc.org|718-7", "k3 h1"),
        ("patient=p&date=lt2024-02-15&code=2823-3", "k2"),
        ("patient=p&code=none", ""),
        ("patient=none", ""),
    ],
)
def test_lastn_gives_the_newest_of_each_group(ward: Any, query: str, expected: str) -> None:
    assert ids(get(ward, f"Observation/$lastn?{query}")) == expected.split()


def test_a_result_without_a_date_hides_no_dated_one_from_lastn(ward: Any) -> None:
    about: dict[str, Any] = {"subject": {"reference": "Patient/undated"}, "code": {"text": "undated"}}
    dated, undated = (
        ward.create(resourceType="Observation", status="final", **about, **when)
        for when in ({"effectiveDateTime": "2024-05-01"}, {})
    )
    asked = f"Observation/$lastn?subject={about['subject']['reference']}"
    assert ids(get(ward, asked)) == [dated]
    assert ids(get(ward, f"{asked}&max=2")) == [dated, undated]


def test_lastn_needs_a_subject_and_a_sound_number(ward: Any) -> None:
    get(ward, "Observation/$lastn?code=718-7", 400)
    for number in ("0", "-1", "x"):
        get(ward, f"Observation/$lastn?patient=p&max={number}", 400)
    posted = ward.http.post("/Observation/$lastn", json=parameters(patient="Patient/p", max=1, category="laboratory"))
    assert ids(posted.json()) == ["k3", "h1"]


# --- $validate, $meta -------------------------------------------------------------------------------------------------------


def severities(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [i["severity"] for i in answer.json()["issue"]]


def test_validate_tells_what_is_wrong_and_stores_nothing(ward: Any) -> None:
    good, bad = {"resourceType": "Patient", "gender": "male"}, {"resourceType": "Patient", "gender": "x", "note": 1}
    assert severities(ward.http.post("/Patient/$validate", json=good)) == ["information"]
    assert severities(ward.http.post("/Patient/$validate", json=bad)) == ["error", "error"]
    assert (
        severities(ward.http.post("/Patient/$validate", json=parameters(resource=bad, mode="create"))) == ["error"] * 2
    )
    assert severities(ward.http.post("/Patient/$validate?mode=create", json=good)) == ["information"]
    assert severities(ward.http.post("/Observation/$validate", json=good)) == ["error"]
    assert severities(ward.http.post("/Patient/p/$validate?mode=update", json={**good, "id": "p"})) == ["information"]
    assert severities(ward.http.post("/Patient/p/$validate?mode=update", json=good)) == ["error"]
    assert severities(ward.http.post("/Patient/p/$validate", json=parameters(mode="delete"))) == ["information"]
    assert severities(ward.http.get("/Patient/p/$validate")) == ["information"]
    unknown = ward.http.post("/Patient/$validate?profile=http://x/y", json=good)
    assert severities(unknown) == ["warning"]
    base = ward.http.post("/Patient/$validate?profile=http://hl7.org/fhir/StructureDefinition/Patient", json=good)
    assert severities(base) == ["information"]
    assert ward.ids("Patient") in (["p", "q"], ["q", "p"])


@pytest.mark.parametrize(
    ("url", "body", "status"),
    [
        ("/Patient/$validate", None, 400),
        ("/Patient/$validate?mode=odd", {"resourceType": "Patient"}, 400),
        ("/Patient/$validate?mode=update", {"resourceType": "Patient"}, 400),
        ("/Patient/$validate?mode=profile", {"resourceType": "Patient"}, 400),
        ("/Nothing/$validate", {"resourceType": "Patient"}, 404),
        ("/Patient/none/$validate", parameters(mode="delete"), 404),
        ("/Patient/$validate", {"resourceType": "Parameters", "parameter": [{"valueString": 1}]}, 422),
        ("/Patient/$validate", {"resourceType": "Parameters", "parameter": 7}, 422),
        ("/Patient/$validate", ["x"], 400),
        ("/Patient/$match", parameters(resource={"resourceType": "Patient", "gender": "x"}), 422),
        ("/Patient/$match", parameters(count=1), 400),
        ("/Patient/p/$meta-add", parameters(meta="x"), 200),
        ("/Patient/none/$meta-add", parameters(), 404),
        ("/Patient/$nothing", {}, 404),
    ],
)
def test_an_operation_that_cannot_be_done_says_so(ward: Any, url: str, body: Any, status: int) -> None:
    answer = ward.http.post(url, json=body) if body is not None else ward.http.post(url)
    assert answer.status_code == status, answer.text


def test_meta_is_read_added_and_taken_away(ward: Any) -> None:
    def sent(**meta: Any) -> dict[str, Any]:
        return {"resourceType": "Parameters", "parameter": [{"name": "meta", "valueMeta": meta}]}

    tag = {"system": "urn:t", "code": "b"}
    assert values(get(ward, "Patient/q/$meta"))["return"]["tag"] == [{"system": "urn:t", "code": "a"}]
    added = ward.http.post("/Patient/q/$meta-add", json=sent(tag=[tag], profile=["http://ex.org/p"])).json()
    assert values(added)["return"]["tag"] == [{"system": "urn:t", "code": "a"}, tag]
    assert ward.ids("Patient?_tag=urn:t|b") == ["q"]
    assert ward.ids("Patient?_profile=http://ex.org/p") == ["q"]
    again = ward.http.post("/Patient/q/$meta-add", json=sent(tag=[tag])).json()
    assert values(again)["return"]["versionId"] == values(added)["return"]["versionId"]
    gone = ward.http.post("/Patient/q/$meta-delete", json=sent(tag=[tag], profile=["http://ex.org/p"])).json()
    assert values(gone)["return"]["tag"] == [{"system": "urn:t", "code": "a"}]
    assert "profile" not in values(gone)["return"]
    get(ward, "Patient/none/$meta", 404)


# --- terminology ------------------------------------------------------------------------------------------------------------


def test_lookup_tells_what_a_code_system_says_of_a_code(ward: Any) -> None:
    found = values(get(ward, f"CodeSystem/$lookup?system={CS}&code=blood"))
    assert (found["name"], found["version"], found["display"]) == ("Kinds", "1", "Blood")
    assert {"name": "value", "valueString": "血"} in found["designation"]
    told = get(ward, f"CodeSystem/$lookup?system={CS}&code=serum&property=parent")["parameter"]
    assert told[-1]["part"] == [{"name": "code", "valueCode": "parent"}, {"name": "value", "valueCode": "blood"}]
    posted = ward.http.post("/CodeSystem/$lookup", json=parameters(coding={"system": CS, "code": "urine"})).json()
    assert values(posted)["display"] == "Urine"
    get(ward, f"CodeSystem/$lookup?system={CS}&code=none", 404)
    get(ward, "CodeSystem/$lookup?system=http://none&code=x", 404)
    get(ward, f"CodeSystem/$lookup?system={CS}&code=blood&version=2", 404)
    get(ward, "CodeSystem/$lookup?code=x", 400)
    get(ward, "CodeSystem/$lookup", 400)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (f"CodeSystem/$validate-code?url={CS}&code=serum", True),
        (f"CodeSystem/$validate-code?url={CS}&code=serum&display=serum", True),
        (f"CodeSystem/$validate-code?url={CS}&code=serum&display=Plasma", False),
        (f"CodeSystem/$validate-code?url={CS}&code=none", False),
        ("CodeSystem/cs/$validate-code?code=urine", True),
        (f"ValueSet/$validate-code?url={VS}&system={CS}&code=serum", True),
        (f"ValueSet/$validate-code?url={VS}&code=serum", True),
        (f"ValueSet/$validate-code?url={VS}&system={CS}&code=urine", False),
        (f"ValueSet/$validate-code?url={VS}&system={LOINC}&code=serum", False),
        (f"ValueSet/vs/$validate-code?system={LOINC}&code=718-7", True),
        (f"ValueSet/open/$validate-code?system={LOINC}&code=718-7", False),
        (f"ConceptMap/$translate?url={MAP}&system=http://ex.org/local&code=XQ", True),
        ("ConceptMap/map/$translate?system=http://ex.org/local&code=XQ", True),
        ("ConceptMap/$translate?system=http://ex.org/local&code=XQ", True),
        (f"ConceptMap/$translate?system=http://ex.org/local&code=XQ&targetsystem={LOINC}", False),
        (f"ConceptMap/$translate?url={MAP}&system=http://ex.org/local&code=NN", False),
        (f"ConceptMap/$translate?url={MAP}&system=http://ex.org/local&code=ZZ", True),  # unmapped: provided
        (f"ConceptMap/$translate?url={MAP}&system=http://ex.org/foreign&code=XQ", False),
        (f"ConceptMap/$translate?url={MAP}&system={CS}&code=serum&reverse=true", True),
        (f"ConceptMap/$translate?system={CS}&code=serum&reverse=true", True),
    ],
)
def test_a_code_is_judged(ward: Any, query: str, expected: bool) -> None:
    found = values(get(ward, query))
    assert found["result"] is expected
    assert expected or found["message"]


def test_translate_names_the_code_its_equivalence_and_the_map(ward: Any) -> None:
    found = values(get(ward, f"ConceptMap/$translate?url={MAP}&system=http://ex.org/local&code=XQ"))["match"]
    assert found == [
        {"name": "equivalence", "valueCode": "equivalent"},
        {"name": "concept", "valueCoding": {"system": CS, "code": "serum", "display": "Serum"}},
        {"name": "source", "valueUri": MAP},
    ]
    back = values(get(ward, f"ConceptMap/map/$translate?system={CS}&code=serum&reverse=true"))["match"]
    assert back[1]["valueCoding"] == {"system": "http://ex.org/local", "code": "XQ"}


def test_expand_gives_the_codes_of_a_value_set(ward: Any) -> None:
    whole = get(ward, f"ValueSet/$expand?url={VS}")
    assert whole["expansion"]["total"] == 3
    assert [c["code"] for c in whole["expansion"]["contains"]] == ["blood", "serum", "718-7"]
    assert "compose" not in whole
    some = get(ward, "ValueSet/vs/$expand?filter=ser")["expansion"]
    assert [c["display"] for c in some["contains"]] == ["Serum"]
    page = get(ward, "ValueSet/vs/$expand?offset=1&count=1")["expansion"]
    assert (page["total"], page["offset"], page["contains"][0]["code"]) == (3, 1, "serum")
    sent = {"resourceType": "ValueSet", "status": "active", "compose": {"include": [{"valueSet": [VS], "system": CS}]}}
    posted = ward.http.post("/ValueSet/$expand", json=parameters(valueSet=sent)).json()
    assert [c["code"] for c in posted["expansion"]["contains"]] == ["blood", "serum"]
    get(ward, "ValueSet/$expand", 400)
    get(ward, "ValueSet/$expand?url=http://none", 404)
    get(ward, "ValueSet/none/$expand", 404)
    get(ward, "ValueSet/open/$expand", 422)
    get(ward, "ValueSet/vs/$expand?count=x", 400)
    broken = ward.http.post("/ValueSet/$expand", json=parameters(valueSet={"resourceType": "ValueSet", "compose": 1}))
    assert broken.status_code == 422


# --- $match -----------------------------------------------------------------------------------------------------------------


def test_match_grades_as_the_identity_of_the_spine_does(api: Any) -> None:
    # An invented resident ID number: region 110101, born 1990-03-07, female, check character by GB 11643-1999.
    number = "110101199003070089"
    person = {
        "resourceType": "Patient",
        "identifier": [{"system": "urn:oid:2.16.156.10011.1.3", "value": number}],
        "name": [{"family": "赵", "given": ["敏"]}],
        "gender": "female",
        "birthDate": "1990-03-07",
    }
    from conformance.systems import RESIDENT_ID

    person["identifier"][0]["system"] = RESIDENT_ID
    certain, like = api.create(**person), api.create(**{k: v for k, v in person.items() if k != "identifier"})
    api.create(resourceType="Patient", name=[{"family": "钱"}], gender="female", birthDate="1990-03-07")

    def matched(**more: Any) -> list[tuple[str, str, float]]:
        answer = api.http.post("/Patient/$match", json=parameters(resource=person, **more))
        assert answer.status_code == 200, answer.text
        return [
            (e["resource"]["id"], e["search"]["extension"][0]["valueCode"], e["search"]["score"])
            for e in answer.json().get("entry", [])
        ]

    assert matched() == [(certain, "certain", 1), (like, "possible", 0.5)]
    assert matched(onlyCertainMatches=True) == [(certain, "certain", 1)]
    assert matched(count=1) == [(certain, "certain", 1)]


def test_validate_checks_the_profiles_asked_for_claimed_and_stored(ward: Any) -> None:
    ours = "http://tongjian.org/fhir/StructureDefinition/shared-result"
    result = {"resourceType": "Observation", "status": "final", "code": {"text": "K"}, "valueString": "x"}
    assert severities(ward.http.post("/Observation/$validate", json=result)) == ["information"]
    assert severities(ward.http.post(f"/Observation/$validate?profile={ours}", json=result)) == ["error"]
    claims = {**result, "meta": {"profile": [ours]}}
    assert severities(ward.http.post("/Observation/$validate", json=claims)) == ["error"]
    claims["subject"] = {"reference": "Patient/p"}
    assert severities(ward.http.post("/Observation/$validate", json=claims)) == ["information"]
    ward.create(
        resourceType="StructureDefinition",
        url="http://example.org/sd/noted",
        name="Noted",
        status="active",
        kind="resource",
        abstract=False,
        type="Observation",
        baseDefinition=ours,
        derivation="constraint",
        differential={"element": [{"id": "Observation.note", "path": "Observation.note", "min": 1}]},
    )
    url = "/Observation/$validate?profile=http://example.org/sd/noted"
    assert severities(ward.http.post(url, json=result)) == ["error", "error"]
    assert severities(ward.http.post(url, json={**claims, "note": [{"text": "n"}]})) == ["information"]
