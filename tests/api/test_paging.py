"""Pages, includes, preferences of a search over HTTP (http://hl7.org/fhir/R4/search.html#return, http.html#paging)."""

from __future__ import annotations

import random
from typing import Any

import psycopg
import pytest

from tests.seeds import seed_of


def observation(number: int, **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "id": f"o{number}",
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "718-7"}]},
        "subject": {"reference": f"Patient/p{number % 3}"},
        "effectiveDateTime": f"2024-05-{number % 28 + 1:02}",
        **more,
    }


def next_of(bundle: dict[str, Any]) -> str:
    return next((str(link["url"]) for link in bundle["link"] if link["relation"] == "next"), "")


def matches(bundle: dict[str, Any]) -> list[str]:
    return [e["resource"]["id"] for e in bundle.get("entry", []) if e["search"]["mode"] == "match"]


def included(bundle: dict[str, Any]) -> list[str]:
    return sorted(
        f"{e['resource']['resourceType']}/{e['resource']['id']}"
        for e in bundle.get("entry", [])
        if e["search"]["mode"] == "include"
    )


@pytest.mark.parametrize(
    "query",
    [
        "Observation?_count=4",
        "Observation?code=718-7&_count=4",
        "Observation?_sort=-date&_count=3",
        "Observation?_sort=date,-_id&status=final&_count=5",
        "Observation?_sort=patient,_id&_count=4",
        "Observation?code=718-7&patient=p0,p1,p2&_count=4",
        "Observation?subject:missing=false&_count=4",
    ],
)
def test_pages_neither_skip_nor_repeat_while_others_write(api: Any, query: str) -> None:
    seed = seed_of("paging")
    rng = random.Random(seed)
    for number in range(30):
        api.put(**observation(number))
    before = {f"o{n}" for n in range(30)}
    deleted: set[str] = set()
    found: list[str] = []
    url, fresh = f"/{query}", 100
    while url:
        bundle = api.http.get(url).raise_for_status().json()
        found += matches(bundle)
        url = next_of(bundle)
        # Others create, change (not what is sorted by) and delete between two pages.
        api.put(**observation(fresh))
        fresh += 1
        for number in rng.sample(range(30), 4):
            if f"o{number}" not in deleted:
                api.put(**observation(number, valueString=f"changed {fresh}"))
        gone = f"o{rng.randrange(30)}"
        if gone not in deleted:
            assert api.http.delete(f"/Observation/{gone}").status_code == 204
            deleted.add(gone)
    assert len(found) == len(set(found)), "a match came twice"
    assert before - set(found) <= deleted, "a match was left out"


def test_a_written_resource_is_found_at_once(api: Any) -> None:
    for number in range(20):
        api.put(**observation(number, identifier=[{"value": f"i{number}"}]))
        assert api.ids(f"Observation?identifier=i{number}") == [f"o{number}"]
        assert len(api.ids("Observation?code=718-7&_count=1000")) == number + 1


def test_the_links_of_a_page_are_absolute_and_the_cursor_is_opaque(api: Any) -> None:
    for number in range(5):
        api.put(**observation(number))
    first = api.search("Observation?code=http://loinc.org|718-7&_count=2&nonsense=1")
    assert first["link"][0] == {
        "relation": "self",
        "url": f"{api.base}/Observation?code=http://loinc.org|718-7&_count=2",
    }
    second = api.http.get(next_of(first)).json()
    assert second["link"][0]["url"] == next_of(first)
    assert "total" not in first
    cursor = next_of(first).partition("_cursor=")[2]
    for wrong in ("x", "", cursor[:-4], cursor + "AAAA", "W10", "bnVsbA", "%00"):
        answer = api.http.get(f"/Observation?code=http://loinc.org|718-7&_cursor={wrong}")
        assert answer.status_code == (200 if wrong == "" else 400), wrong
    assert api.http.get(f"/Observation?code=http://loinc.org|2345-7&_cursor={cursor}").status_code == 400
    assert api.http.get(f"/Patient?_cursor={cursor}").status_code == 400


def test_count_zero_and_summary_count_give_the_number_alone(api: Any) -> None:
    for number in range(5):
        api.put(**observation(number))
    for query in ("_count=0", "_summary=count"):
        bundle = api.search(f"Observation?code=718-7&{query}")
        assert bundle["total"] == 5
        assert "entry" not in bundle
        assert next_of(bundle) == ""
    assert api.search("Observation?_total=accurate&_count=1")["total"] == 5
    assert api.search("Observation?_total=estimate&_count=1")["total"] == 5
    assert "total" not in api.search("Observation?_total=none")


def test_includes_bring_each_resource_once(api: Any) -> None:
    api.put(resourceType="Patient", id="p0", generalPractitioner=[{"reference": "Practitioner/doc"}])
    api.put(resourceType="Practitioner", id="doc", name=[{"text": "李四"}])
    api.put(resourceType="Organization", id="lab", name="lab")
    for number in (0, 3, 6):
        performer = [{"reference": "Organization/lab"}, {"reference": "Practitioner/doc"}, {"display": "nobody"}]
        api.put(**observation(number, performer=performer))
    api.put(
        resourceType="DiagnosticReport",
        id="dr",
        status="final",
        code={"text": "x"},
        subject={"reference": "Patient/p0"},
        result=[{"reference": "Observation/o0"}, {"reference": "Observation/o3"}, {"reference": "Observation/missing"}],
    )
    bundle = api.search("Observation?patient=p0&_include=Observation:subject&_include=Observation:performer")
    assert sorted(matches(bundle)) == ["o0", "o3", "o6"]
    assert included(bundle) == ["Organization/lab", "Patient/p0", "Practitioner/doc"]
    only = api.search("Observation?patient=p0&_include=Observation:performer:Organization")
    assert included(only) == ["Organization/lab"]
    every = api.search("Observation?_id=o0&_include=Observation:*")
    assert included(every) == ["Organization/lab", "Patient/p0", "Practitioner/doc"]
    report = api.search("DiagnosticReport?_id=dr&_include=DiagnosticReport:result")
    assert included(report) == ["Observation/o0", "Observation/o3"]
    back = api.search("Patient?_id=p0&_revinclude=Observation:subject&_revinclude=DiagnosticReport:patient")
    assert included(back) == ["DiagnosticReport/dr", "Observation/o0", "Observation/o3", "Observation/o6"]
    assert included(api.search("Patient?_id=p0&_revinclude=Observation:subject:Group")) == []
    chain = api.search(
        "DiagnosticReport?_id=dr&_include=DiagnosticReport:subject&_include:iterate=Patient:general-practitioner"
    )
    assert included(chain) == ["Patient/p0", "Practitioner/doc"]
    flat = api.search("DiagnosticReport?_id=dr&_include=DiagnosticReport:subject")
    assert included(flat) == ["Patient/p0"]
    paged = api.search("Observation?patient=p0&_count=1&_total=accurate&_include=Observation:subject")
    assert (len(matches(paged)), included(paged), paged["total"]) == (1, ["Patient/p0"], 3)
    for wrong in ("Patient:general-practitioner", "Observation:nothing", "Animal:x", "Observation", "Observation:code"):
        assert api.http.get(f"/Observation?_include={wrong}").status_code == 400, wrong


def test_parts_of_resources_are_marked_as_parts(api: Any) -> None:
    div = {"status": "generated", "div": '<div xmlns="http://www.w3.org/1999/xhtml">x</div>'}
    api.put(**observation(1, text=div, valueQuantity={"value": 6}, note=[{"text": "n"}]))

    def keys(query: str) -> set[str]:
        (entry,) = api.search(f"Observation?{query}")["entry"]
        tags = [t["code"] for t in entry["resource"]["meta"].get("tag", [])]
        assert tags == (["SUBSETTED"] if query != "_summary=false" else [])
        return set(entry["resource"]) - {"resourceType", "id", "meta"}

    assert keys("_elements=effective,valueQuantity,Observation.note") == {
        "status",
        "code",
        "effectiveDateTime",
        "valueQuantity",
        "note",
    }
    assert keys("_summary=text") == {"status", "code", "text"}
    assert keys("_summary=data") == {"status", "code", "subject", "effectiveDateTime", "valueQuantity", "note"}
    assert keys("_summary=true") == {"status", "code", "subject", "effectiveDateTime", "valueQuantity"}
    assert keys("_summary=false") == {"status", "code", "subject", "effectiveDateTime", "valueQuantity", "note", "text"}
    read = api.http.get("/Observation/o1?_elements=subject").json()
    assert set(read) == {"resourceType", "id", "meta", "status", "code", "subject"}
    assert api.http.get("/Observation/o1?_summary=count").status_code == 400


def test_post_search_is_the_same_search(api: Any) -> None:
    for number in range(4):
        api.put(**observation(number))
    form = {"code": "http://loinc.org|718-7", "_sort": "_id", "_count": "3"}
    bundle = api.http.post("/Observation/_search?patient=p0,p1", data=form).json()
    assert matches(bundle) == ["o0", "o1", "o3"]
    assert bundle["link"][0]["url"].startswith(f"{api.base}/Observation?patient=p0,p1&code=")
    assert api.http.post("/Observation/_search", json={}).status_code == 415
    assert matches(api.http.post("/Observation/_search").json()) != []


def test_what_cannot_be_searched_by_is_told_or_refused(api: Any) -> None:
    api.put(**observation(1))
    strict = {"Prefer": "handling=strict"}
    for query in ("nonsense=1", "code=", "_text=x", "_content=x", "_filter=x", "name=x"):
        bundle = api.search(f"Observation?{query}&code=718-7")
        told = [e for e in bundle["entry"] if e["search"]["mode"] == "outcome"]
        assert told[0]["resource"]["issue"][0]["expression"] == [query.partition("=")[0]]
        assert told[0]["resource"]["issue"][0]["severity"] == "warning"
        assert matches(bundle) == ["o1"]
        assert query.partition("=")[0] not in bundle["link"][0]["url"].replace("code=http", "").partition("?")[2].split(
            "&"
        )
        assert api.http.get(f"/Observation?{query}", headers=strict).status_code == 400
    for query in (
        "subject.nothing=x",
        "code-value-quantity=a$b",
        "_has:Observation:patient:code=x",
        "code:nonsense=1",
        "code:exact=718-7",
        "code:in=http://x",
        "date:exact=2024",
        "date=soon",
        "date=2024-13",
        "date=xx2024",
        "date=2024-05-01T25:00:00",
        "patient:missing=perhaps",
        "subject:Location2=x",
        "subject:Encounter=x",
        "code=a,,b",
        "_count=-1",
        "_count=many",
        "_total=some",
        "_summary=some",
        "_sort=nonsense&x=" + "y",
        "_sort=code-value-quantity",
        "code=%00",
    ):
        status = 200 if query.startswith("_sort=nonsense") else 400
        answer = api.http.get(f"/Observation?{query}")
        assert answer.status_code == status, (query, answer.text)
        assert answer.json()["resourceType"] == ("Bundle" if status == 200 else "OperationOutcome")


def test_a_search_that_takes_too_long_is_stopped(serve: Any) -> None:
    with serve(statement_timeout_ms=200) as api, psycopg.connect(api.database_url) as blocker:
        blocker.execute("LOCK TABLE resource IN ACCESS EXCLUSIVE MODE")
        answer = api.http.get("/Observation?code=718-7")
        assert answer.status_code == 503
        assert answer.json()["issue"][0]["code"] == "timeout"
        assert "Retry-After" in answer.headers
        blocker.rollback()
        assert api.http.get("/Observation?code=718-7").status_code == 200


def test_reading_recovers_by_itself_after_the_database_was_away(api: Any) -> None:
    api.put(**observation(1))
    with psycopg.connect(api.database_url, autocommit=True) as conn:
        conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    answers = [api.http.get("/Observation/o1") for _ in range(12)]
    assert {a.status_code for a in answers} <= {200, 503}
    assert all(a.json()["resourceType"] in ("Observation", "OperationOutcome") for a in answers)
    assert answers[-1].status_code == 200
    assert api.put(**observation(2)).status_code == 201
