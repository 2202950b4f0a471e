"""Searches over one data set: query -> logical ids, from http://hl7.org/fhir/R4/search.html. The server's zone is Asia/Shanghai."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

# The resources, all invented, one a line.
RESOURCES = json.loads((Path(__file__).parents[1] / "data" / "search" / "county.json").read_text("utf-8"))
CATEGORY = "http://terminology.hl7.org/CodeSystem/observation-category"

ALL = "o1 o2 o3 o4 o5 o6 o7 o8 o9 o10 o11"

CASES = [
    ("Observation", ALL),
    # --- date, equal: the value's span contains the stored one ---
    ("Observation?date=2024-05-01", "o1 o2 o8 o10"),
    ("Observation?date=eq2024-05-01", "o1 o2 o8 o10"),
    ("Observation?date=2024-04-30", "o7"),
    ("Observation?date=2024-05-02", "o9"),
    ("Observation?date=2024-05", "o1 o2 o3 o8 o9 o10"),
    ("Observation?date=2024-04", "o7"),
    ("Observation?date=2024", "o1 o2 o3 o4 o7 o8 o9 o10"),
    ("Observation?date=2023", ""),
    ("Observation?date=2024-05-01T10:00:00Z", "o10"),
    ("Observation?date=2024-05-01T18:00:00%2B08:00", "o10"),
    ("Observation?date=2024-05-01T18:00:00+08:00", "o10"),  # the "+" of the zone left unescaped
    ("Observation?date=2024-05-01T18:00:00", "o10"),  # no zone: the server's
    ("Observation?date=2024-05-01T18:00", "o10"),
    ("Observation?date=2024-05-01T10:00", ""),
    ("Observation?date=2024-05-01T18:00:01", ""),
    ("Observation?date=2024-05-01T23:59:59.999%2B08:00", "o8"),
    ("Observation?date=2024-05-01T23:59:59%2B08:00", "o8"),
    ("Observation?date=2024-05-01T23:59:59.998%2B08:00", ""),
    ("Observation?date=2024-05-01T00:30:00.000%2B08:00", ""),  # a millisecond does not contain a second
    ("Observation?date=2024-04-30,2024-05-02", "o7 o9"),
    # --- date, other prefixes ---
    ("Observation?date=ne2024-05-01", "o3 o4 o5 o7 o9 o11"),
    ("Observation?date=gt2024-05-01", "o3 o5 o9"),
    ("Observation?date=gt2024-04-30", "o1 o2 o3 o4 o5 o8 o9 o10"),
    ("Observation?date=ge2024-05-01", "o1 o2 o3 o5 o8 o9 o10"),
    ("Observation?date=lt2024-05-01", "o4 o7 o11"),
    (
        "Observation?date=le2024-04-30",
        "o7 o11",
    ),  # o4 begins that day: nothing of it lies before, and it is not contained
    ("Observation?date=le2024-05-01", "o1 o2 o4 o7 o8 o10 o11"),
    ("Observation?date=sa2024-05-01", "o5 o9"),
    ("Observation?date=sa2024-04-30", "o1 o2 o3 o5 o8 o9 o10"),
    ("Observation?date=eb2024-05-01", "o7 o11"),
    ("Observation?date=eb2024-05-02", "o1 o2 o4 o7 o8 o10 o11"),
    ("Observation?date=lt2024-05-01T00:00:00Z", "o1 o2 o3 o4 o7 o11"),  # that instant is 08:00 here
    ("Observation?date=ge2024-05-01&date=lt2024-05-02", "o1 o2 o3 o8 o10"),
    ("Observation?date=ge2024-05-02&date=lt2024-05-01", ""),
    ("Observation?date=ap2024-05-01T18:00:00", ALL.replace(" o6", "")),  # a tenth of the time since then is months
    ("Observation?date:missing=true", "o6"),
    ("Observation?date:missing=false", ALL.replace(" o6", "")),
    # --- token ---
    ("Observation?code=718-7", "o1 o4 o5 o7 o8 o10 o11"),
    ("Observation?code=http://loinc.org|718-7", "o1 o4 o5 o7 o8 o10 o11"),
    ("Observation?code=http://example.org/codes|HGB", "o1 o4 o5 o7 o8 o10 o11"),
    ("Observation?code=http://example.org/codes|718-7", ""),
    ("Observation?code=|718-7", ""),
    ("Observation?code=|XYZ", "o6"),
    ("Observation?code=XYZ", "o6"),
    ("Observation?code=http://loinc.org|XYZ", ""),
    ("Observation?code=xyz", ""),
    ("Observation?code=http://loinc.org|", "o1 o2 o3 o4 o5 o7 o8 o10 o11"),
    ("Observation?code=2345-7,XYZ", "o2 o3 o6"),
    ("Observation?code=2345-7,2345-7,nothing", "o2 o3"),
    ("Observation?code=718-7&code=HGB", "o1 o4 o5 o7 o8 o10 o11"),
    ("Observation?code=718-7&code=2345-7", ""),
    ("Observation?code:not=718-7", "o2 o3 o6 o9"),
    ("Observation?code:not=718-7,2345-7", "o6 o9"),
    ("Observation?code=8480-6", ""),
    ("Observation?combo-code=8480-6", "o10"),
    ("Observation?combo-code=8480-6,2345-7", "o2 o3 o10"),
    ("Observation?component-code=http://loinc.org|8480-6", "o10"),
    ("Observation?combo-value-concept=high", "o10"),
    ("Observation?value-concept=http://snomed.info/sct|260385009", "o8"),
    ("Observation?status=final", "o1 o2 o3 o4 o5 o7 o9 o10"),
    ("Observation?status=http://hl7.org/fhir/observation-status|final", "o1 o2 o3 o4 o5 o7 o9 o10"),
    ("Observation?status=http://example.org/other|final", ""),
    ("Observation?status=http://hl7.org/fhir/observation-status|", ALL),
    ("Observation?status=preliminary,amended", "o6 o8"),
    ("Observation?status:not=final", "o6 o8 o11"),
    ("Observation?category=laboratory", "o1 o2 o3 o4 o5 o7 o8 o9 o10 o11"),
    (f"Observation?category={CATEGORY}|laboratory", "o1 o2 o3 o5 o7 o8 o9 o10 o11"),
    ("Observation?category=imaging", "o4"),
    ("Observation?category:missing=true", "o6"),
    ("Observation?category:missing=false&status=amended", ""),
    ("Observation?category:not=laboratory", "o6"),
    ("Observation?identifier=R1-1", "o1"),
    ("Observation?identifier=http://example.org/codes|R1-1", "o1"),
    ("Observation?identifier=http://example.org/mrn|R1-1", ""),
    ("Observation?identifier=|R1-1", ""),
    ("Observation?_tag=demo", "o10"),
    ("Observation?_tag=http://example.org/codes|demo", "o10"),
    ("Observation?_source=urn:example:feed%231", "o10"),
    ("Observation?_profile=http://example.org/sd/lab", "o10"),
    ("Observation?_profile=http://example.org/sd", ""),
    # --- reference ---
    ("Observation?patient=p1", "o1 o2 o3 o4 o7 o8 o10"),
    ("Observation?patient=Patient/p1", "o1 o2 o3 o4 o7 o8 o10"),
    ("Observation?subject=p1", "o1 o2 o3 o4 o7 o8 o10"),
    ("Observation?subject=Patient/p1", "o1 o2 o3 o4 o7 o8 o10"),
    ("Observation?subject:Patient=p1", "o1 o2 o3 o4 o7 o8 o10"),
    ("Observation?subject=g1", "o11"),
    ("Observation?subject=Group/g1", "o11"),
    ("Observation?subject:Group=g1", "o11"),
    ("Observation?subject:Patient=g1", ""),
    ("Observation?patient=g1", ""),
    ("Observation?patient=Group/g1", ""),
    ("Observation?patient=p1,p2", "o1 o2 o3 o4 o5 o6 o7 o8 o10"),
    ("Observation?patient=nobody", ""),
    ("Observation?patient:missing=true", "o11"),
    ("Observation?patient=BASE/Patient/p2", "o5 o6"),
    ("Observation?patient=http://elsewhere.org/fhir/Patient/p2", ""),
    ("DiagnosticReport?subject=http://elsewhere.org/fhir/Patient/p1", "dr2"),
    ("DiagnosticReport?patient=p1", "dr1"),
    ("Observation?patient=p1&code=2345-7", "o2 o3"),
    ("Observation?patient=p1&code=718-7&date=2024-05-01", "o1 o8 o10"),
    ("Observation?encounter=e1", "o1"),
    ("Observation?encounter=Encounter/e1", "o1"),
    ("Observation?encounter:missing=false", "o1"),
    ("Observation?specimen=s1", "o1"),
    ("Observation?based-on=ServiceRequest/sr1", "o1"),
    ("Observation?based-on=sr1", "o1"),
    ("Observation?performer=Organization/lab", "o1"),
    ("Observation?performer=lab", "o1"),
    ("Observation?performer=dr1", "o1"),
    ("Observation?performer:identifier=http://example.org/codes|LAB7", "o11"),
    ("Observation?performer:identifier=LAB7", "o11"),
    ("Observation?performer:identifier=http://example.org/codes|LAB8", ""),
    ("Observation?has-member=o1", "o10"),
    ("DiagnosticReport?result=o1", "dr1"),
    ("DiagnosticReport?result=Observation/o3", "dr2"),
    ("DiagnosticReport?result=o1,o3", "dr1 dr2"),
    ("DiagnosticReport?specimen=s1&based-on=sr1&encounter=e1", "dr1"),
    ("Patient?general-practitioner=Practitioner/dr1", "p4"),
    # --- strings ---
    ("Patient?name=张三", "p1"),
    ("Patient?name=张", "p1"),
    ("Patient?name=三", "p1"),
    ("Patient?family=张", "p1"),
    ("Patient?given=三", "p1"),
    ("Patient?family=三", ""),
    ("Patient?name=muller", "p2"),
    ("Patient?name=MÜLL", "p2"),
    ("Patient?name=jorg muller", "p2"),
    ("Patient?name=uller", ""),
    ("Patient?name:contains=uller", "p2"),
    ("Patient?name:contains=100%25", ""),
    ("Patient?name:contains=_", ""),
    ("Patient?name:exact=Müller", "p2"),
    ("Patient?name:exact=muller", ""),
    ("Patient?name:exact=Müll", ""),
    ("Patient?given=ernst", "p2"),
    ("Patient?name=wang wei", "p4"),
    ("Patient?name=欧阳", "p3"),
    ("Patient?name=anna", "p3"),
    ("Patient?name=欧阳,张", "p1 p3"),
    ("Patient?name=欧阳&name=anna", "p3"),
    ("Patient?name=欧阳&name=张", ""),
    ("Patient?name:missing=true", ""),
    ("Patient?family:missing=true", "p3 p4"),
    ("Patient?address=浙江", "p1"),
    ("Patient?address-city=hang", "p1"),
    ("Organization?name=county", "lab"),
    ("Observation?value-string=non", "o2"),
    ("Observation?value-string=REACTIVE", "o3"),
    ("Observation?value-string=阴", "o8"),
    # --- patient tokens and dates ---
    ("Patient?identifier=A001", "p1"),
    ("Patient?identifier=http://example.org/mrn|A001", "p1"),
    ("Patient?identifier=http://example.org/mrn|", "p1 p2"),
    ("Patient?identifier=|NOSYS", "p3"),
    ("Patient?identifier=|A001", ""),
    ("Patient?identifier=A\\,1", "p2"),
    ("Patient?identifier=A,1", ""),
    ("Patient?identifier=http://example.org/mrn|A\\,1,NOSYS", "p2 p3"),
    ("Patient?identifier=http://example.org/mrn|B\\|2", "p2"),
    ("Patient?identifier=B\\|2", "p2"),
    ("Patient?identifier=C\\$3", "p2"),
    ("Patient?identifier=D\\\\4", "p2"),
    ("Patient?identifier:missing=true", "p4"),
    ("Patient?identifier:of-type=http://terminology.hl7.org/CodeSystem/v2-0203|MR|A001", "p1"),
    ("Patient?identifier:of-type=http://terminology.hl7.org/CodeSystem/v2-0203|MR|A002", ""),
    ("Patient?identifier:not=A001", "p2 p3 p4"),
    ("Patient?gender=male", "p1 p2"),
    ("Patient?gender=http://hl7.org/fhir/administrative-gender|female", "p3"),
    ("Patient?gender:missing=true", "p4"),
    ("Patient?active=true", "p1"),
    ("Patient?active=false", ""),
    ("Patient?deceased=true", "p3 p4"),
    ("Patient?deceased=false", "p1 p2"),
    ("Patient?phone=13900000001", "p1"),
    ("Patient?email=zhang@example.org", "p1"),
    ("Patient?phone=zhang@example.org", ""),
    ("Patient?telecom=zhang@example.org", "p1"),
    ("Patient?birthdate=1980-05-17", "p1"),
    ("Patient?birthdate=1980-05", "p1 p2"),
    ("Patient?birthdate=1980", "p1 p2 p3"),
    ("Patient?birthdate=ge1980-06", "p3"),
    ("Patient?birthdate=lt1980-05-17", "p2 p3"),
    ("Patient?birthdate=sa1980-05-16", "p1"),
    ("Patient?birthdate=eb1980", ""),
    ("Patient?birthdate=1980-05-17,1980", "p1 p2 p3"),
    ("Patient?birthdate:missing=true", "p4"),
    ("Patient?death-date=2023-01", "p4"),
    # --- ids, times of storing, other types ---
    ("Patient?_id=p2", "p2"),
    ("Patient?_id=p2,p3,p9", "p2 p3"),
    ("Patient?_id=P2", ""),
    ("Patient?_id=p2&gender=female", ""),
    ("Observation?_id=p2", ""),
    ("Patient?_lastUpdated=gt2020-01-01", "p1 p2 p3 p4"),
    ("Patient?_lastUpdated=lt2020-01-01", ""),
    ("Patient?_lastUpdated=le2100&_lastUpdated=ge2020", "p1 p2 p3 p4"),
    ("DiagnosticReport?issued=2024-05-01", "dr1"),
    ("DiagnosticReport?issued=2024-05-01T02:00:00", "dr1"),
    ("DiagnosticReport?issued=gt2024-05-01T02:00:00", ""),
    ("DiagnosticReport?issued=ge2024-05-01T02:00:00", "dr1"),
    ("DiagnosticReport?issued=lt2024-05-01", ""),
    ("DiagnosticReport?issued=ne2024-05-01", ""),
    ("DiagnosticReport?issued:missing=true", "dr2"),
    ("DiagnosticReport?category=HM", "dr1"),
    ("DiagnosticReport?code=58410-2,24331-1", "dr1 dr2"),
    ("ServiceRequest?authored=2024-05-01", "sr1"),
    ("ServiceRequest?authored=ge2024-05-01T12:00:00", "sr1"),  # the day reaches beyond noon
    ("ServiceRequest?authored=ge2024-05-02", ""),
    ("ServiceRequest?identifier=P-1&patient=p1", "sr1"),
    ("Specimen?collected=2024-05-01&type=BLD&patient=p1", "s1"),
    ("Encounter?date=2024-05-01&patient=p1&status=finished&class=AMB", "e1"),
    ("Encounter?date=ge2024-05-01T11:00:00", "e1"),
    ("Encounter?date=sa2024-05-01T07:59:59", "e1"),
    ("ValueSet?url=http://example.org/ValueSet/a", "vs1"),
    ("ValueSet?url=http://example.org/ValueSet", ""),
    ("ValueSet?url=http://example.org/ValueSet/A", ""),
    ("Practitioner?name=李四", "dr1"),
    # --- a period and its bounds: Encounter e1 lasts from 08:00 to 12:00 ---
    ("Encounter?date=2024-05-01T09:00:00", ""),  # an instant does not contain the period
    ("Encounter?date=2024", "e1"),
    ("Encounter?date=ne2024", ""),
    ("Encounter?date=gt2024-05-01T12:00:00", ""),
    ("Encounter?date=lt2024-05-01T08:00:00", ""),
    ("Encounter?date=lt2024-05-01T08:00:01", "e1"),
    ("Encounter?date=sa2024-05-01T08:00:00", ""),
    ("Encounter?date=eb2024-05-01T12:00:00", ""),
    ("Encounter?date=eb2024-05-01T12:00:01", "e1"),
    ("Encounter?date=eb2024-05-02", "e1"),
    ("Encounter?date=sa2024-04-30", "e1"),
    ("Encounter?date=sa2024-05-01", ""),
    ("Encounter?date=ge2024-05-02", ""),
    ("Encounter?date=le2024-04-30", ""),
    ("Encounter?date=2024-05-01T00:00:00Z,2024-05-01", "e1"),
    ("Encounter?date:missing=true", ""),
    ("Encounter?class=http://terminology.hl7.org/CodeSystem/v3-ActCode|AMB", "e1"),
    ("Encounter?class=http://terminology.hl7.org/CodeSystem/v3-ActCode|", "e1"),
    ("Encounter?class=|AMB", ""),
    ("Encounter?class:not=AMB", ""),
    ("Encounter?class:not=IMP", "e1"),
    ("Encounter?status:not=finished", ""),
    # --- lists, repeats and escapes ---
    ("Patient?identifier=http://example.org/mrn|A\\,1,NOSYS", "p2 p3"),
    ("Patient?identifier=http://example.org/mrn|A,1", ""),
    ("Patient?identifier=|NOSYS", "p3"),
    ("Patient?identifier=http://example.org/mrn|NOSYS", ""),
    ("Patient?identifier=A001&identifier=11010519491231002X", "p1"),
    ("Patient?identifier=A001&identifier=NOSYS", ""),
    ("DiagnosticReport?status=final,preliminary", "dr1 dr2"),
    ("DiagnosticReport?status=final&status=preliminary", ""),
    ("DiagnosticReport?status:not=final", "dr2"),
    ("DiagnosticReport?result=o2", "dr2"),
    ("DiagnosticReport?result=Observation/o3", "dr2"),
    ("DiagnosticReport?result=Patient/o3", ""),
    ("DiagnosticReport?encounter=Encounter/e1", "dr1"),
    ("DiagnosticReport?encounter:missing=true", "dr2"),
    ("DiagnosticReport?subject=http://elsewhere.org/fhir/Patient/p1", "dr2"),
    ("DiagnosticReport?subject:Patient=p1", "dr1"),
    ("DiagnosticReport?result.code=2345-7", "dr2"),
    ("DiagnosticReport?encounter.status=finished", "dr1"),
    ("DiagnosticReport?encounter:Encounter.date=2024-05-02", ""),
    ("Encounter?_has:DiagnosticReport:encounter:code=58410-2", "e1"),
    ("Encounter?_has:DiagnosticReport:encounter:code=24331-1", ""),
    ("Observation?_has:DiagnosticReport:result:status=preliminary", "o2 o3"),
    ("Patient?_id=p1,p3,nobody", "p1 p3"),
    ("Patient?_id=p1&_id=p3", ""),
    ("Patient?deceased=true", "p3 p4"),
    ("Patient?death-date=2023", "p4"),
    ("Patient?death-date:missing=false", "p4"),
    ("Patient?gender=male,female&_id=p2,p3", "p2 p3"),
    ("Patient?name:exact=Anna Chow", "p3"),
    ("Patient?name:exact=anna chow", ""),
    ("Patient?name=wang", "p4"),
    ("Patient?name:contains=nna", "p3"),
    ("Patient?general-practitioner=Practitioner/dr1&deceased=true", "p4"),
    ("Specimen?collected=lt2024-05-01T00:20:00", ""),
    ("Specimen?collected=le2024-05-01T00:20:00", "s1"),
    ("Specimen?type:not=BLD", ""),
    ("ServiceRequest?authored=2024-05", "sr1"),
    ("ServiceRequest?authored=2024-05-01T00:00:00", ""),
    ("ServiceRequest?intent=order,plan&status=active", "sr1"),
    ("ValueSet?version=1&status=draft", "vs1"),
    ("ValueSet?url:below=http://example.org/ValueSet", "vs1"),
    ("Organization?name:exact=County Laboratory", "lab"),
    ("Organization?name=laboratory", ""),
    ("Organization?name:contains=LABORATORY", "lab"),
]


@pytest.fixture(scope="module")
def county(module_api: Any) -> Any:
    for resource in RESOURCES:
        module_api.put(**resource)
    return module_api


@pytest.mark.parametrize(("query", "expected"), CASES, ids=[c[0] for c in CASES])
def test_search_finds_exactly_what_r4_says(county: Any, query: str, expected: str) -> None:
    found = county.ids(query.replace("BASE", county.base))
    assert sorted(found) == sorted(expected.split())
    assert len(found) == len(set(found))


@pytest.mark.parametrize(("query", "expected"), CASES, ids=[c[0] for c in CASES])
def test_an_accurate_total_equals_the_pages_walked(county: Any, query: str, expected: str) -> None:
    asked = query.replace("BASE", county.base)
    bundle = county.search(f"{asked}{'&' if '?' in asked else '?'}_total=accurate&_count=2")
    assert bundle["total"] == len(expected.split())
    assert sorted(county.ids(f"{asked}{'&' if '?' in asked else '?'}_count=2")) == sorted(expected.split())


SORTED = [
    ("Observation?_sort=date&patient=p1", "o4 o3 o7 o2 o1 o10 o8"),
    ("Observation?_sort=-date&patient=p1", "o8 o10 o1 o3 o2 o7 o4"),
    ("Observation?_sort=-date", "o5 o9 o8 o10 o1 o3 o2 o7 o4 o11 o6"),
    ("Patient?_sort=birthdate,_id", "p3 p2 p1 p4"),
    ("Patient?_sort=-birthdate,_id", "p3 p2 p1 p4"),
    ("Patient?_sort=_id", "p1 p2 p3 p4"),
    ("Patient?_sort=-_id", "p4 p3 p2 p1"),
    ("Patient?_sort=family,-_id", "p2 p1 p4 p3"),
    ("Patient?_sort=_lastUpdated", "p1 p2 p3 p4"),
    ("Patient?_sort=-_lastUpdated", "p4 p3 p2 p1"),
    ("DiagnosticReport?_sort=issued", "dr1 dr2"),
    ("DiagnosticReport?_sort=-issued", "dr1 dr2"),
    ("Observation?_sort=patient,-_id&code=718-7&date=gt2020", "o8 o7 o4 o10 o1 o5 o11"),
]


@pytest.mark.parametrize("count", [1, 3, 50])
@pytest.mark.parametrize(("query", "expected"), SORTED, ids=[c[0] for c in SORTED])
def test_sorted_pages_keep_their_order(county: Any, query: str, expected: str, count: int) -> None:
    found = county.ids(f"{query}&_count={count}")
    if "_sort=date" in query or "_sort=-date" in query:
        # Equal start times: o2 and o3 both begin with their day or month, so the order of the two is free.
        assert len(found) == len(expected.split())
        assert set(found) == set(expected.split())
    else:
        assert found == expected.split()
