"""Access matrix: role x resource x interaction x relation, every door into the same rows, through the real server.

Each line of a table is one case: an asker, a resource, a door, and whether the resource may be seen. Doors that count and doors that
list are asked about the same rows, so they cannot disagree unseen.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from fhir_server.access import default_scopes, issue_token
from tests.api.conftest import Api, serving

NOW = datetime.now(UTC)
HIV = "user/Observation.rs?sensitivity=hiv"
AIDS = {"coding": [{"system": "http://hl7.org/fhir/sid/icd-10", "code": "B20"}]}
EVERYBODY = frozenset({"visiting", "stranger", "referred", "refusing", "long-gone", "sensitive"})
CLINICIAN = "user/*.cruds"
RESULT_TYPES = ("Patient", "Observation", "DiagnosticReport", "Condition")
DOORS = (
    "read", "vread", "history", "list", "count", "total", "include", "revinclude", "chain", "has", "type-history", "system-history",
    "batch-read", "batch-search", "several-types", "compartment", "post-search", "everything", "lastn",
)  # fmt: skip


@dataclass
class Ward:
    """The server with the patients of the matrix. ``held``: patient's name -> type -> logical id."""

    api: Api
    held: dict[str, dict[str, str]] = field(default_factory=dict)

    def client(
        self, role: str, facility: str, scopes: str = "", subject: str = "dr-li", patient: str = ""
    ) -> httpx.Client:
        granted = frozenset(scopes.split()) or default_scopes(role)
        life = {"ttl": timedelta(hours=1), "now": datetime.now(UTC)}
        token = issue_token(self.api.keys, subject, role, facility, granted, patient=patient, **life)
        return httpx.Client(base_url=self.api.base, timeout=60, headers={"Authorization": f"Bearer {token}"})

    def add(self, name: str, facility: str, **told: Any) -> None:
        """A patient registered by the facility, with one result, its report, and a diagnosis."""
        with self.client("system", facility) as http:

            def create(**resource: Any) -> str:
                answer = http.post(f"/{resource['resourceType']}", json=resource)
                assert answer.status_code == 201, answer.text
                return str(answer.json()["id"])

            identifier = [{"system": "urn:oid:1.2.3", "value": name}]
            patient = create(
                resourceType="Patient",
                identifier=identifier,
                name=[{"family": "张", "text": f"张{name}"}],
                birthDate="1950-03-02",
            )
            subject = {"reference": f"Patient/{patient}", "display": f"张{name}"}
            code = told.get("code", {"coding": [{"system": "http://loinc.org", "code": "718-7"}], "text": "血红蛋白"})
            category = [
                {
                    "coding": [
                        {"system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": "laboratory"}
                    ]
                }
            ]
            observation = create(
                resourceType="Observation", status="final", code=code, subject=subject, category=category,
                identifier=[{"system": "urn:x", "value": f"o-{name}"}], effectiveDateTime="2026-01-02", valueString="7",
            )  # fmt: skip
            report = create(
                resourceType="DiagnosticReport", status="final", code=code, subject=subject,
                result=[{"reference": f"Observation/{observation}"}],
            )  # fmt: skip
            about = told.get("condition", {"text": "贫血"})
            condition = create(resourceType="Condition", subject=subject, code=about)
            self.held[name] = {
                "Patient": patient,
                "Observation": observation,
                "DiagnosticReport": report,
                "Condition": condition,
            }
            if told.get("visit"):
                period = told.get("period", {"start": NOW.isoformat()})
                visit = {"status": told["visit"], "class": {"code": "AMB"}, "subject": subject, "period": period}
                create(resourceType="Encounter", **visit)
            if told.get("referred"):
                performer = [{"reference": f"Organization/{told['referred']}"}]
                create(
                    resourceType="ServiceRequest", status="active", intent="order", subject=subject, performer=performer
                )
            if told.get("provision") is not None:
                create(
                    resourceType="Consent", status="active", patient=subject, provision=told["provision"],
                    scope={"coding": [{"code": "patient-privacy"}]}, category=[{"text": "sharing"}],
                    policyRule={"coding": [{"code": "OPTIN"}]},
                )  # fmt: skip


@pytest.fixture(scope="module")
def ward(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    with serving(module_database_url, Path(tmp_path_factory.mktemp("keys"))) as api:
        built = Ward(api)
        hiv = {"coding": [{"system": "http://loinc.org", "code": "56888-1"}], "text": "筛查"}
        built.add("visiting", "county", visit="in-progress")
        built.add("stranger", "township", visit="in-progress")
        built.add("referred", "township", referred="county")
        built.add("refusing", "township", referred="county", provision={"type": "deny"})
        built.add("long-gone", "county", visit="finished", period={"start": "2020-01-01", "end": "2020-01-02"})
        built.add(
            "sensitive",
            "county",
            visit="in-progress",
            code=hiv,
            condition={"coding": [{"system": "http://hl7.org/fhir/sid/icd-10", "code": "B20"}]},
        )
        yield built


def seen(http: httpx.Client, door: str, kind: str, held: dict[str, str]) -> bool:
    """Does the door show that the resource is there?"""
    logical, patient, observation = held[kind], held["Patient"], held["Observation"]

    def ids(path: str) -> set[str]:
        answer = http.get(path)
        assert answer.status_code == 200, (path, answer.text)
        return {e["resource"]["id"] for e in answer.json().get("entry", []) if "resource" in e}

    def batch(url: str) -> dict[str, Any]:
        entry = [{"request": {"method": "GET", "url": url}}]
        answer = http.post("/", json={"resourceType": "Bundle", "type": "batch", "entry": entry})
        assert answer.status_code == 200, answer.text
        return dict(answer.json()["entry"][0])

    match door:
        case "read":
            return http.get(f"/{kind}/{logical}").status_code != 404
        case "vread":
            return http.get(f"/{kind}/{logical}/_history/1").status_code != 404
        case "history":
            return http.get(f"/{kind}/{logical}/_history").status_code != 404
        case "list":
            return logical in ids(f"/{kind}?_id={logical}")
        case "count":
            return bool(http.get(f"/{kind}?_id={logical}&_summary=count").json()["total"])
        case "total":
            return bool(http.get(f"/{kind}?_id={logical}&_total=accurate&_count=1").json()["total"])
        case "include":
            link = {
                "Patient": "subject",
                "DiagnosticReport": "subject",
                "Condition": "subject",
                "Observation": "result",
            }[kind]
            source = "DiagnosticReport" if kind == "Observation" else "Observation"
            if kind in ("DiagnosticReport", "Condition"):
                return logical in ids(f"/{kind}?_id={logical}&_include={kind}:{link}")
            return logical in ids(f"/{source}?_id={held[source]}&_include={source}:{link}")
        case "revinclude":
            if kind == "Patient":
                return logical in ids(f"/Patient?_id={patient}&_revinclude=Observation:subject")
            return logical in ids(f"/Patient?_id={patient}&_revinclude={kind}:subject")
        case "chain":
            if kind == "Patient":
                return bool(ids(f"/Observation?subject:Patient._id={patient}"))
            return logical in ids(f"/{kind}?subject:Patient._id={patient}")
        case "has":
            if kind == "Patient":
                return patient in ids(f"/Patient?_has:Observation:patient:_id={observation}")
            return patient in ids(f"/Patient?_has:{kind}:patient:_id={logical}")
        case "type-history":
            return logical in ids(f"/{kind}/_history?_count=200")
        case "system-history":
            return logical in ids("/_history?_count=500")
        case "batch-read":
            return not batch(f"{kind}/{logical}")["response"]["status"].startswith("404")
        case "batch-search":
            return bool(batch(f"{kind}?_id={logical}")["resource"].get("entry"))
        case "several-types":
            return logical in ids(f"/?_type=Patient,Observation,DiagnosticReport,Condition&_id={logical}")
        case "compartment":
            return (
                logical in ids(f"/Patient/{patient}/{kind}")
                if kind != "Patient"
                else logical in ids(f"/Patient?_id={patient}")
            )
        case "everything":
            answer = http.get(f"/Patient/{patient}/$everything?_count=200")
            return answer.status_code == 200 and logical in {
                e["resource"]["id"] for e in answer.json().get("entry", [])
            }
        case "lastn":
            found = ids(f"/Observation/$lastn?patient=Patient/{patient}&_include=Observation:subject")
            return bool(found) if kind != "Observation" else logical in found
        case "post-search":
            answer = http.post(f"/{kind}/_search", data={"_id": logical})
            return bool(answer.json().get("entry"))
    raise AssertionError(door)


# asker -> (role, facility, scopes, patients seen); of "sensitive" only the Patient is seen without the grant.
ASKERS: dict[str, tuple[str, str, str, frozenset[str]]] = {
    "clinician of the county": ("clinician", "county", CLINICIAN, frozenset({"visiting", "referred", "sensitive"})),
    "the same with the grant": ("clinician", "county", f"{CLINICIAN} {HIV}", frozenset({"visiting", "referred", "sensitive", "+"})),
    "clinician of the township": ("clinician", "township", CLINICIAN, frozenset({"stranger", "referred", "refusing"})),
    "clinician of a village": ("clinician", "village", CLINICIAN, frozenset()),
    "clinician without facility": ("clinician", "", CLINICIAN, frozenset()),
    "auditor": ("auditor", "", "user/*.rs", EVERYBODY),
    "system": ("system", "county", "system/*.cruds", EVERYBODY),
}  # fmt: skip


EVERY_DOOR = "clinician of the county"


@pytest.mark.parametrize("name", ASKERS)
def test_every_door_shows_the_same_rows(ward: Ward, name: str) -> None:
    role, facility, scopes, patients = ASKERS[name]
    wrong, tried = [], 0
    with ward.client(role, facility, scopes, subject=f"asker {name}") as http:
        for place, (patient, held) in enumerate(ward.held.items()):
            for turn, kind in enumerate(RESULT_TYPES):
                # One asker tries every door; the others a third of them each, all in turn.
                for door in DOORS if name == EVERY_DOOR else DOORS[(place + turn) % 3 :: 3]:
                    tried += 1
                    # To some doors of a Patient the way leads through a result.
                    about = "Observation" if kind == "Patient" and door in ("chain", "has", "include") else kind
                    about = "Observation" if door == "lastn" else about
                    granted = patient != "sensitive" or about == "Patient" or "+" in patients
                    if seen(http, door, kind, held) != (patient in patients and granted):
                        wrong.append(f"{door} of {kind} of {patient}")
    assert not wrong, "\n".join(wrong)
    assert tried >= (456 if name == EVERY_DOOR else 150)


def test_break_glass_opens_one_patient_for_one_person_and_waits_for_review(ward: Ward) -> None:
    held = ward.held["stranger"]
    with (
        ward.client("clinician", "county", CLINICIAN, "dr-er") as http,
        ward.client("auditor", "", "user/*.rs", "au") as auditor,
    ):
        body: dict[str, Any] = {
            "resourceType": "Parameters",
            "parameter": [{"name": "reason", "valueString": "昏迷入院,查既往结果"}],
        }
        assert http.get(f"/Patient/{held['Patient']}").status_code == 404
        assert http.post(f"/Patient/{held['Patient']}/$break-glass", json={**body, "parameter": []}).status_code == 400
        body["parameter"].append(
            {"name": "patient", "valueIdentifier": {"system": "urn:oid:1.2.3", "value": "stranger"}}
        )
        answer = http.post("/Patient/$break-glass", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["parameter"][0]["valueReference"]["reference"] == f"Patient/{held['Patient']}"
        assert all(seen(http, door, kind, held) for kind in RESULT_TYPES for door in DOORS)
        assert http.get(f"/Patient/{ward.held['refusing']['Patient']}").status_code == 404
        with ward.client("clinician", "county", CLINICIAN, "dr-other") as colleague:
            assert colleague.get(f"/Patient/{held['Patient']}").status_code == 404
        root = ward.api.base.removesuffix("/fhir")
        [waiting] = [w for w in auditor.get(f"{root}/audit/opened").json()["waiting"] if w["subject"] == "dr-er"]
        assert (waiting["reason"], waiting["kind"]) == ("昏迷入院,查既往结果", "break-glass")
        verdict = auditor.post(f"{root}/audit/opened/{waiting['id']}/review", json={"verdict": "justified"})
        assert verdict.status_code == 200, verdict.text
        assert waiting["id"] not in {w["id"] for w in auditor.get(f"{root}/audit/opened").json()["waiting"]}
        assert http.get(f"{root}/audit/opened").status_code == 403


def test_an_auditor_sees_no_identity_and_cannot_search_for_one_until_a_case_is_opened(ward: Ward) -> None:
    held = ward.held["visiting"]
    with ward.client("auditor", "", "user/*.rs", "au-case") as http:
        for path in (
            f"/Patient/{held['Patient']}",
            f"/Patient/{held['Patient']}/_history",
            f"/Patient?_id={held['Patient']}",
            f"/Observation?_id={held['Observation']}&_include=Observation:subject",
            f"/Observation/{held['Observation']}",
        ):
            answer = http.get(path)
            assert answer.status_code == 200
            for secret in ("张", "visiting", "1950-03-02"):
                assert secret not in answer.text, (path, secret)
        assert http.get(f"/Patient/{held['Patient']}").json()["birthDate"] == "1950"
        for query in (
            "Patient?name=张", "Patient?birthdate=1950-03-02", "Patient?identifier=visiting", "Observation?subject:Patient.name=张",
            "Observation?patient.family=张", "Patient?_sort=family", "Patient?_sort=-birthdate", "Patient?family:missing=false",
            "Observation?_has:Patient:link:name=x", "Observation?subject:identifier=urn:oid:1.2.3|visiting", "Patient?phone=1",
            "Patient?_has:Observation:patient:subject:Patient.name=张", "Patient?address-city=x",
        ):  # fmt: skip
            assert http.get(f"/{query}").status_code in (400, 403), query
        body = {"resourceType": "Parameters", "parameter": [{"name": "reason", "valueString": "核查重复检查投诉"}]}
        assert http.post(f"/Patient/{held['Patient']}/$open-case", json=body).status_code == 200
        assert http.get(f"/Patient/{held['Patient']}").json()["name"][0]["text"] == "张visiting"
        other = http.get(f"/Patient/{ward.held['stranger']['Patient']}")
        assert "张" not in other.text


def test_a_clinician_cannot_write_himself_into_a_treatment_relationship_nor_over_what_is_hidden(ward: Ward) -> None:
    held = ward.held["stranger"]
    subject = {"reference": f"Patient/{held['Patient']}"}
    with ward.client("clinician", "county", CLINICIAN, "dr-writer") as http:
        visit = {"resourceType": "Encounter", "status": "in-progress", "class": {"code": "AMB"}, "subject": subject}
        assert http.post("/Encounter", json=visit).status_code == 403
        order = {"resourceType": "ServiceRequest", "status": "active", "intent": "order", "subject": subject}
        assert http.post("/ServiceRequest", json=order).status_code == 403
        entry = [{"resource": visit, "request": {"method": "POST", "url": "Encounter"}}]
        assert http.post("/", json={"resourceType": "Bundle", "type": "transaction", "entry": entry}).status_code == 403
        over = {"resourceType": "Observation", "id": held["Observation"], "status": "final", "code": {"text": "x"}}
        mine = {**over, "id": "free"}
        assert http.put(f"/Observation/{held['Observation']}", json=over).status_code == 405
        assert http.put("/Observation/free", json=mine).status_code == 405  # as for an id nobody has
        assert (
            http.delete(f"/Observation/{held['Observation']}").status_code
            == http.delete("/Observation/nobody").status_code
        )
        known = {**over, "identifier": [{"system": "urn:x", "value": "o-stranger"}]}
        found = http.post("/Observation", json=known, headers={"If-None-Exist": "identifier=urn:x|o-stranger"})
        assert found.status_code == 201  # as for a number nobody has
    assert ward.api.http.get(f"/Observation/{held['Observation']}").json()["valueString"] == "7"


def test_scopes_with_a_query_and_for_one_patient_are_enforced_at_every_door(ward: Ward) -> None:
    visiting, referred = ward.held["visiting"], ward.held["referred"]
    category = "http://terminology.hl7.org/CodeSystem/observation-category|"
    narrow = (
        f"user/Patient.rs user/Observation.rs?category={category}vital-signs user/DiagnosticReport.rs user/Condition.rs"
    )
    with ward.client("clinician", "county", narrow) as http:
        for door in ("read", "vread", "history", "list", "count", "include", "chain", "revinclude", "type-history"):
            assert not seen(http, door, "Observation", visiting), door
        assert not seen(http, "has", "Patient", visiting)
        assert seen(http, "list", "Condition", visiting)
    with ward.client("clinician", "county", narrow.replace("vital-signs", "laboratory")) as http:
        for door in ("read", "vread", "history", "list", "count", "include", "chain", "type-history"):
            assert seen(http, door, "Observation", visiting), door
        assert http.put("/Observation/x", json={"resourceType": "Observation", "id": "x"}).status_code == 403
    scopes = "patient/Patient.rs patient/Observation.rs patient/DiagnosticReport.rs"
    with ward.client("clinician", "county", scopes, patient=visiting["Patient"]) as http:
        for door in ("read", "vread", "history", "list", "count", "include", "chain", "has", "type-history"):
            assert seen(http, door, "Observation", visiting), door
            assert not seen(http, door, "Observation", referred), door
        assert http.get("/Condition").status_code == 403
    with ward.client("clinician", "county", "user/Observation.rs?no-such-parameter=1") as http:
        assert http.get("/Observation").status_code == 403


def test_an_export_and_a_match_hold_no_more_than_the_asker_may_see(ward: Ward) -> None:
    with ward.client("clinician", "county", CLINICIAN, "dr-export") as http:
        begun = http.get(
            "/$export?_type=Patient,Observation", headers={"Prefer": "respond-async", "Accept": "application/fhir+json"}
        )
        assert begun.status_code == 202, begun.text
        place = begun.headers["Content-Location"]
        deadline = time.monotonic() + 120
        while (status := http.get(place)).status_code == 202:
            assert time.monotonic() < deadline, "the export did not end"
            time.sleep(0.05)
        told = "".join(http.get(file["url"]).text for file in status.json()["output"])
        for name, held in ward.held.items():
            assert (held["Patient"] in told) == (name in ("visiting", "referred", "sensitive")), name
            assert (held["Observation"] in told) == (name in ("visiting", "referred")), name
        stranger = {"resourceType": "Patient", "name": [{"text": "张stranger"}], "birthDate": "1950-03-02"}
        asked = {"resourceType": "Parameters", "parameter": [{"name": "resource", "resource": stranger}]}
        answer = http.post("/Patient/$match", json=asked)
        assert answer.status_code == 200, answer.text
        assert ward.held["stranger"]["Patient"] not in answer.text
    with ward.client("auditor", "", "user/*.rs") as auditor:
        assert auditor.post("/Patient/$match", json=asked).status_code == 403
