"""Journeys with FHIR clients that know nothing of this server: PyPI fhirclient (SMART Python client) and fhirpy."""

from __future__ import annotations

from typing import Any

import pytest
from fhirclient import client
from fhirclient.models import codeableconcept, fhirreference, humanname, observation, patient
from fhirclient.server import FHIRNotFoundException
from fhirpy import SyncFHIRClient
from fhirpy.base.exceptions import MultipleResourcesFound, OperationOutcome, ResourceNotFound


@pytest.fixture
def smart(api: Any) -> Any:
    connected = client.FHIRClient(settings={"app_id": "tests", "api_base": api.base})
    connected.server.session.headers["Authorization"] = f"Bearer {api.token()}"
    yield connected
    connected.server.session.close()


def test_fhirclient_writes_reads_searches_pages_and_deletes(smart: Any) -> None:
    server = smart.server
    person = patient.Patient()
    name = humanname.HumanName()
    name.family, name.given = "赵", ["敏"]
    person.name = [name]
    assert person.create(server)["id"]
    found = list(patient.Patient.where({"name": "赵敏"}).perform_resources_iter(server))
    assert [p.name[0].family for p in found] == ["赵"]
    stored = found[0]
    for number in range(5):
        result = observation.Observation()
        result.status = "final"
        result.code = codeableconcept.CodeableConcept({"text": f"K{number}"})
        result.subject = fhirreference.FHIRReference({"reference": f"Patient/{stored.id}"})
        result.create(server)
    search = observation.Observation.where({"patient": stored.id, "_count": "2", "_include": "Observation:patient"})
    seen = [r.code.text for r in search.perform_resources_iter(server) if r.resource_type == "Observation"]
    assert sorted(seen) == ["K0", "K1", "K2", "K3", "K4"]
    stored.gender = "female"
    stored.update(server)
    again = patient.Patient.read(stored.id, server)
    assert (again.gender, again.meta.versionId) == ("female", "2")
    again.delete(server)
    assert list(patient.Patient.where({"_id": stored.id}).perform_resources_iter(server)) == []
    with pytest.raises(FHIRNotFoundException):
        patient.Patient.read("nobody", server)


def test_fhirclient_reads_the_capabilities(smart: Any) -> None:
    statement = smart.server.capabilityStatement
    assert statement.fhirVersion == "4.0.1"
    kinds = {r.type: r for r in statement.rest[0].resource}
    assert "patch" in {i.code for i in kinds["Observation"].interaction}
    assert "lastn" in {o.name for o in kinds["Observation"].operation}


def test_fhirpy_saves_patches_searches_and_runs_operations(api: Any) -> None:
    fhir = SyncFHIRClient(api.base, authorization=f"Bearer {api.token()}")
    person = fhir.resource("Patient", name=[{"family": "Wu"}], identifier=[{"system": "urn:x", "value": "1"}])
    person.save()
    assert person.id
    result = fhir.resource("Observation", status="final", code={"text": "K"}, subject=person.to_reference())
    result.save()
    patients = fhir.resources("Patient")
    assert patients.search(identifier="urn:x|1").get().id == person.id
    assert patients.search(name="wu").count() == 1
    assert patients.search(name="nobody").first() is None
    found = fhir.resources("Observation").search(subject=person).include("Observation", "subject").fetch_all()
    assert [r.id for r in found] == [result.id]
    chained = fhir.resources("Observation").search(subject__Patient__name="wu").fetch_all()
    assert [r.id for r in chained] == [result.id]
    assert len(person.execute("$everything", method="get")["entry"]) == 2
    assert person.is_valid()
    changed = fhir.resource(
        "Patient", identifier=[{"system": "urn:x", "value": "1"}], name=[{"family": "Wu"}], gender="female"
    )
    again, created = patients.search(identifier="urn:x|1").update(changed)
    assert (again.id, created) == (person.id, False)
    assert patients.search(gender="female").get().id == person.id
    assert person.to_reference().to_resource()["gender"] == "female"
    fhir.resource("Patient", name=[{"family": "Wu"}]).save()
    with pytest.raises(MultipleResourcesFound):
        patients.search(name="wu").get()
    with pytest.raises(OperationOutcome):
        fhir.resource("Patient", gender="nonsense").save()
    result.delete()
    with pytest.raises((ResourceNotFound, OperationOutcome)):
        fhir.reference("Observation", result.id).to_resource()
