"""Transaction and batch over HTTP (http://hl7.org/fhir/R4/http.html#transaction)."""

from __future__ import annotations

import concurrent.futures
from typing import Any

PATIENT_URL = "urn:uuid:61ebe359-bfdc-4613-8bf2-c5e300945f0a"
REPORT_URL = "urn:uuid:88f151c0-a954-468a-88bd-5ae15c08e059"
RESULT_URL = "urn:uuid:5bce1a4c-2a3a-4a4a-9a4a-0c1d2e3f4a5b"


def bundle(*entries: dict[str, Any], kind: str = "transaction") -> dict[str, Any]:
    return {"resourceType": "Bundle", "type": kind, "entry": list(entries)}


def entry(method: str, url: str, resource: Any = None, full_url: str = "", **request: str) -> dict[str, Any]:
    out: dict[str, Any] = {"request": {"method": method, "url": url, **request}}
    if resource is not None:
        out["resource"] = {"resourceType": url.split("/", maxsplit=1)[0].split("?", maxsplit=1)[0], **resource}
    return {**out, "fullUrl": full_url} if full_url else out


def result(subject: str = PATIENT_URL, **more: Any) -> dict[str, Any]:
    return {"status": "final", "code": {"text": "K"}, "subject": {"reference": subject}, **more}


def send(api: Any, *entries: dict[str, Any], kind: str = "transaction", **headers: str) -> Any:
    return api.http.post("/", json=bundle(*entries, kind=kind), headers=headers)


def locations(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    assert answer.json()["type"] == "transaction-response"
    return [e["response"]["location"].partition("/_history")[0] for e in answer.json()["entry"]]


def test_links_between_new_resources_become_references(api: Any) -> None:
    html = f'<div xmlns="http://www.w3.org/1999/xhtml"><a href="{RESULT_URL}">K</a> <img src="#x" alt="{RESULT_URL}"/></div>'
    report = {
        "status": "final",
        "code": {"text": "panel"},
        "subject": {"reference": PATIENT_URL},
        "result": [{"reference": RESULT_URL}],
        "text": {"status": "generated", "div": html},
        "identifier": [{"system": "urn:ietf:rfc:3986", "value": RESULT_URL}],
        "extension": [{"url": "http://x/e", "valueUri": RESULT_URL}, {"url": "http://x/s", "valueString": RESULT_URL}],
    }
    answer = send(
        api,
        entry("POST", "DiagnosticReport", report, REPORT_URL),
        entry("POST", "Observation", result(), RESULT_URL),
        entry("POST", "Patient", {}, PATIENT_URL),
    )
    told, found, person = locations(answer)
    stored = api.http.get(f"/{told}").json()
    assert stored["subject"]["reference"] == person
    assert stored["result"][0]["reference"] == found
    assert f'href="{found}"' in stored["text"]["div"]
    assert f'alt="{RESULT_URL}"' in stored["text"]["div"]
    assert stored["extension"][0]["valueUri"] == found
    # Text that is no link stays, even when it reads like one.
    assert stored["identifier"][0]["value"] == RESULT_URL
    assert stored["extension"][1]["valueString"] == RESULT_URL
    assert api.ids(f"Observation?patient={person}") == [found.split("/")[1]]
    assert api.ids(f"DiagnosticReport?result={found}") == [told.split("/")[1]]
    # Everything of a patient lives in one shard, which the first two characters of an id name.
    assert len({i.split("/")[1][:2] for i in (told, found, person)}) == 1


def test_only_links_of_a_narrative_are_replaced(api: Any) -> None:
    api.put(resourceType="Patient", id="known", identifier=[{"system": "urn:x", "value": "1"}], gender="male")
    kept = f'<p title="href={PATIENT_URL}">href="{PATIENT_URL}" {PATIENT_URL}</p><!-- <a href="{PATIENT_URL}"> -->'
    kept += '<a href="http://x/?a=1&amp;b=2">x</a>'
    condition = "Patient?identifier=urn:x%7C1&gender=male"
    links = f"<a id='a' href='{PATIENT_URL}'>1</a><img src = \"{PATIENT_URL}\" alt=\"{PATIENT_URL}\"/>"
    links += f'<a href="{condition.replace("&", "&amp;")}">2</a>'
    text = {"status": "generated", "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{kept}{links}</div>'}
    focus = [{"reference": condition}]
    answer = send(
        api,
        entry("POST", "Patient", {}, PATIENT_URL),
        entry("POST", "Observation", result() | {"text": text, "focus": focus}),
    )
    person, found = locations(answer)
    stored = api.http.get(f"/{found}").json()
    assert stored["focus"] == [{"reference": "Patient/known"}]
    div = stored["text"]["div"]
    assert kept in div
    expected = (
        f'<a id=\'a\' href="{person}">1</a><img src = "{person}" alt="{PATIENT_URL}"/><a href="Patient/known">2</a>'
    )
    assert div.endswith(f"{expected}</div>")


def test_a_full_url_that_two_entries_share_is_refused(api: Any) -> None:
    patients = [entry("POST", "Patient", {"gender": g}, PATIENT_URL) for g in ("male", "female")]
    answer = send(api, *patients, entry("POST", "Observation", result()))
    assert answer.status_code == 400, answer.text
    assert "fullUrl" in answer.json()["issue"][0]["details"]["text"]
    assert answer.json()["issue"][0]["expression"] == ["Bundle.entry[1].fullUrl"]
    assert api.ids("Patient") == []


def test_relative_links_follow_the_full_url_of_their_entry(api: Any) -> None:
    root = "http://old.example.org/fhir"
    answer = send(
        api,
        entry("POST", "Patient", {"id": "7"}, f"{root}/Patient/7"),
        entry("POST", "Observation", result("Patient/7"), f"{root}/Observation/1"),
        entry("POST", "Observation", result("Patient/7"), "urn:uuid:0c3151bd-1cbf-4d64-b04d-cd9187a4c6e0"),
    )
    person, inside, outside = locations(answer)
    assert api.http.get(f"/{inside}").json()["subject"]["reference"] == person
    assert api.http.get(f"/{outside}").json()["subject"]["reference"] == "Patient/7"


def test_one_fault_undoes_everything_and_names_its_entry(api: Any) -> None:
    api.put(resourceType="Patient", id="here")
    api.put(resourceType="Patient", id="there")
    for bad, status, where in (
        (entry("POST", "Observation", {"status": "final"}), 422, "Bundle.entry[2].resource.code"),
        (entry("PUT", "Patient/there", {"id": "there"}, ifMatch='W/"9"'), 412, "Bundle.entry[2]"),
        (entry("PUT", "Patient/a", {"id": "b"}), 400, "Bundle.entry[2].resource.id"),
        (entry("GET", "Patient/unknown"), 404, "Bundle.entry[2]"),
        (entry("POST", "Animal", {}), 400, "Bundle.entry[2].request.url"),
        (entry("PATCH", "Patient/here", {"id": "here"}), 400, "Bundle.entry[2].resource"),
        (entry("LINK", "Patient/here", {"id": "here"}), 400, "Bundle.entry[2].request.method"),
        (entry("POST", "Observation", result("Patient?identifier=none")), 412, "Bundle.entry[2]"),
        ({"resource": {"resourceType": "Patient"}}, 400, "Bundle.entry[2].request"),
    ):
        answer = send(api, entry("POST", "Patient", {}), entry("DELETE", "Patient/here"), bad)
        assert answer.status_code == status, answer.text
        assert answer.json()["issue"][0]["expression"] == [where]
        assert sorted(api.ids("Patient")) == ["here", "there"]


def test_the_order_is_delete_post_put_get(api: Any) -> None:
    api.put(resourceType="Patient", id="old", identifier=[{"value": "X"}])
    answer = send(
        api,
        entry("GET", "Patient?identifier=X"),
        entry("PUT", "Patient/second", {"id": "second", "identifier": [{"value": "X"}]}),
        entry("POST", "Patient", {"identifier": [{"value": "X"}]}),
        entry("DELETE", "Patient/old"),
    )
    assert answer.status_code == 200, answer.text
    entries = answer.json()["entry"]
    assert [e["response"]["status"] for e in entries] == ["200 OK", "201 Created", "201 Created", "204 No Content"]
    found = entries[0]["resource"]
    assert found["type"] == "searchset"
    third = entries[2]["response"]["location"].split("/")[1]
    assert {e["resource"]["id"] for e in found["entry"]} == {"second", third}


def test_conditions_inside_a_transaction(api: Any) -> None:
    system = "http://x/mrn"
    api.put(resourceType="Patient", id="p", identifier=[{"system": system, "value": "1"}])
    answer = send(
        api,
        entry("PUT", f"Patient?identifier={system}|1", {"gender": "female"}, PATIENT_URL),
        entry("POST", "Observation", result(PATIENT_URL)),
        entry("POST", "Observation", result(f"Patient?identifier={system}|1")),
        entry(
            "POST", "Patient", {}, "urn:uuid:e7a5f3a4-1111-4222-8333-944455556666", ifNoneExist=f"identifier={system}|1"
        ),
        entry("DELETE", f"Patient?identifier={system}|2"),
    )
    assert answer.status_code == 200, answer.text
    entries = answer.json()["entry"]
    assert [e["response"]["status"] for e in entries] == [
        "200 OK",
        "201 Created",
        "201 Created",
        "200 OK",
        "204 No Content",
    ]
    assert entries[3]["response"]["location"].startswith("Patient/p/_history/")
    assert len(api.ids("Observation?patient=p")) == 2
    assert api.http.get("/Patient/p").json()["gender"] == "female"


def test_one_resource_may_stand_in_one_entry_only(api: Any) -> None:
    answer = send(api, entry("PUT", "Patient/a", {"id": "a"}), entry("DELETE", "Patient/a"))
    assert answer.status_code == 400
    assert "more than one entry" in answer.json()["issue"][0]["details"]["text"]


def test_the_entries_of_a_batch_stand_alone(api: Any) -> None:
    api.put(resourceType="Patient", id="p")
    answer = send(
        api,
        entry("POST", "Patient", {"gender": "masculine"}),
        entry("POST", "Patient", {"gender": "male"}),
        entry("GET", "Patient/unknown"),
        entry("GET", "Patient/p"),
        entry("PUT", "Patient/p", {"id": "p", "active": True}, ifMatch='W/"7"'),
        entry("GET", "Patient?gender=male&_total=accurate"),
        kind="batch",
    )
    assert answer.status_code == 200
    assert answer.json()["type"] == "batch-response"
    entries = answer.json()["entry"]
    assert [e["response"]["status"].split()[0] for e in entries] == ["422", "201", "404", "200", "412", "200"]
    assert entries[0]["response"]["outcome"]["issue"][0]["expression"] == ["Bundle.entry[0].resource.gender"]
    assert entries[3]["resource"]["id"] == "p"
    assert entries[5]["resource"]["total"] == 1


def test_preference_decides_whether_resources_come_back(api: Any) -> None:
    without = send(api, entry("POST", "Patient", {})).json()["entry"][0]
    assert "resource" not in without
    assert without["response"]["etag"] == 'W/"1"'
    assert without["response"]["lastModified"].endswith("Z")
    whole = send(api, entry("POST", "Patient", {}), Prefer="return=representation").json()["entry"][0]
    assert whole["resource"]["meta"]["versionId"] == "1"
    told = send(api, entry("POST", "Patient", {}), Prefer="return=OperationOutcome").json()["entry"][0]
    assert told["response"]["outcome"]["resourceType"] == "OperationOutcome"
    assert "resource" not in told


def test_the_versions_that_entries_name_are_honoured(api: Any) -> None:
    api.put(resourceType="Patient", id="p", identifier=[{"system": "http://x/mrn", "value": "1"}])
    changed = {"id": "p", "gender": "female"}
    for kind in ("transaction", "batch"):
        for request, status in (
            ({"ifMatch": "W/1"}, "400"),
            ({"ifMatch": 'W/"1", W/"2"'}, "400"),
            ({"ifMatch": 'W/"7"'}, "412"),
            ({"ifNoneMatch": "*"}, "412"),
        ):
            answer = send(api, entry("PUT", "Patient/p", changed, **request), kind=kind)
            told = answer.json()["entry"][0]["response"]["status"] if kind == "batch" else str(answer.status_code)
            assert told[:3] == status, (kind, request, answer.text)
        for query, method in (("http://x/mrn|1", "DELETE"), ("http://x/mrn|2", "DELETE"), ("http://x/mrn|2", "PUT")):
            step = entry(method, f"Patient?identifier={query}", {} if method == "PUT" else None, ifMatch='W/"7"')
            answer = send(api, step, kind=kind)
            assert "412" in (str(answer.status_code) + answer.text), (kind, query, method)
    assert api.ids("Patient") == ["p"]
    assert api.http.get("/Patient/p").json()["meta"]["versionId"] == "1"


def test_a_transaction_does_not_make_twice_what_one_condition_finds(api: Any) -> None:
    first = {"identifier": [{"system": "http://x/mrn", "value": "1"}], "active": True}
    one, other = "identifier=http://x/mrn|1", "active=true&identifier=http://x/mrn|1"
    for pair in (
        [entry("POST", "Patient", first, ifNoneExist=one), entry("POST", "Patient", first, ifNoneExist=other)],
        [entry("POST", "Patient", first, ifNoneExist=one), entry("PUT", f"Patient?{one}", first)],
        [entry("PUT", f"Patient?{one}", first), entry("PUT", f"Patient?{one}", first)],
        [entry("POST", "Patient", first, ifNoneExist=one), entry("POST", "Patient", first)],
    ):
        answer = send(api, *pair)
        assert answer.status_code == 412, answer.text
        assert api.ids("Patient") == []


def test_what_another_entry_deletes_is_not_found_by_a_condition(api: Any) -> None:
    api.put(resourceType="Patient", id="p", identifier=[{"system": "http://x/mrn", "value": "1"}])
    one = "identifier=http://x/mrn|1"
    gone = entry("DELETE", "Patient/p")
    assert send(api, gone, entry("POST", "Patient", {}, ifNoneExist=one)).status_code == 400
    assert send(api, gone, entry("POST", "Observation", result(f"Patient?{one}"))).status_code == 412
    assert api.ids("Patient") == ["p"]


def test_a_conditional_reference_finds_what_an_entry_makes_under_the_same_condition(api: Any) -> None:
    kept = {"identifier": [{"system": "http://x/mrn", "value": "9"}]}
    found, person = locations(
        send(
            api,
            entry("POST", "Observation", result("Patient?identifier=http://x/mrn|9")),
            entry("POST", "Patient", kept, ifNoneExist="identifier=http://x/mrn|9"),
        )
    )
    assert api.http.get(f"/{found}").json()["subject"]["reference"] == person


def test_other_bundles_are_refused(api: Any) -> None:
    for kind in ("collection", "searchset", "nonsense"):
        assert send(api, kind=kind).status_code == 400
    assert api.http.post("/", json={"resourceType": "Patient"}).status_code == 400
    assert api.http.post("/", json={"resourceType": "Bundle", "type": "transaction", "entry": {}}).status_code == 400
    empty = send(api)
    assert (empty.status_code, empty.json()) == (200, {"resourceType": "Bundle", "type": "transaction-response"})


def test_the_scopes_of_every_entry_are_needed(api: Any) -> None:
    only = {"Authorization": f"Bearer {api.token('integrator', 'user/Observation.crus')}"}
    answer = send(api, entry("POST", "Observation", result("Patient/p")), entry("POST", "Patient", {}), **only)
    assert answer.status_code == 403
    assert api.ids("Observation") == []
    assert send(api, entry("POST", "Observation", result("Patient/p")), **only).status_code == 200
    # Whether something matches is an answer to a search.
    api.put(resourceType="Patient", id="p")
    assert send(api, entry("POST", "Observation", result("Patient?_id=p")), **only).status_code == 403


def test_conditional_creates_at_the_same_time_make_one_resource(api: Any) -> None:
    entries = [entry("POST", "Patient", {"identifier": [{"value": "same"}]}, ifNoneExist="identifier=same")]

    def create(_: int) -> str:
        return str(send(api, *entries).json()["entry"][0]["response"]["status"])

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = sorted(pool.map(create, range(8)))
    assert answers == ["200 OK"] * 7 + ["201 Created"]
    assert len(api.ids("Patient?identifier=same")) == 1


def test_transactions_over_the_same_resources_wait_and_do_not_fail(api: Any) -> None:
    def write(number: int) -> int:
        order = range(6) if number % 2 else reversed(range(6))
        entries = [entry("PUT", f"Patient/p{i}", {"id": f"p{i}", "name": [{"text": str(number)}]}) for i in order]
        return int(send(api, *entries).status_code)

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert set(pool.map(write, range(18))) == {200}
    names = {api.http.get(f"/Patient/p{i}").json()["name"][0]["text"] for i in range(6)}
    assert len(names) == 1


def test_an_entry_whose_texts_are_none_is_refused(api: Any) -> None:
    for odd in (
        {"fullUrl": 7, "request": {"method": "POST", "url": "Patient"}, "resource": {"resourceType": "Patient"}},
        entry("POST", "Patient", {}, ifNoneExist=7),
        entry("PUT", "Patient/p", {"id": "p"}, ifMatch=["1"]),
        entry("GET", "Patient", ifNoneMatch={}),
        7,
    ):
        answer = api.http.post("/", json=bundle(odd, kind="batch"))
        assert answer.json()["entry"][0]["response"]["status"] == "400 Bad Request", odd
    assert api.ids("Patient") == []


def test_a_reference_to_an_entry_that_is_not_there_undoes_the_transaction(api: Any) -> None:
    inner = {
        **bundle({"fullUrl": RESULT_URL, "resource": {"resourceType": "Observation", **result()}}, kind="collection")
    }
    answer = send(api, entry("POST", "Bundle", inner), entry("POST", "Observation", result()))
    assert answer.status_code == 400 and "Bundle.entry[1]" in answer.text and PATIENT_URL in answer.text
    assert api.ids("Observation?_summary=false") == []
    assert send(api, entry("POST", "Bundle", inner)).status_code == 200  # what is inside refers to its own entries


def test_two_creates_with_one_condition_make_one_resource(api: Any) -> None:
    number = {"identifier": [{"system": "http://x/mrn", "value": "7"}]}
    other = "urn:uuid:0b6b1c3e-5c0f-4f8e-9d59-6f1d9a3b2c01"
    answer = send(
        api,
        entry("POST", "Patient", number, PATIENT_URL, ifNoneExist="identifier=http://x/mrn|7"),
        entry("POST", "Patient", number, other, ifNoneExist="identifier=http://x/mrn|7"),
        entry("POST", "Observation", result(other)),
        entry("POST", "Observation", {**result(), "code": {"text": "once"}}, ifNoneExist="code:text=once"),
        entry("POST", "Observation", {**result(), "code": {"text": "once"}}, ifNoneExist="code:text=once"),
    )
    first, second, observation, once, again = locations(answer)
    assert (first, once) == (second, again)
    assert api.http.get(f"/{observation}").json()["subject"]["reference"] == first
    assert api.ids("Patient?identifier=7") == [first.partition("/")[2]]
    assert [e["response"]["status"][:3] for e in answer.json()["entry"]] == ["201", "200", "201", "201", "200"]


def test_a_search_by_post_is_an_entry(api: Any) -> None:
    api.put(resourceType="Patient", id="p", gender="female")
    api.put(resourceType="Patient", id="q", gender="male")
    answer = send(api, entry("POST", "Patient/_search?gender=female"), entry("POST", "Patient/_search"), kind="batch")
    found = [[e["resource"]["id"] for e in each["resource"]["entry"]] for each in answer.json()["entry"]]
    assert (found[0], sorted(found[1])) == (["p"], ["p", "q"])
