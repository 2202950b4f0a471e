"""The RESTful interactions over HTTP (http://hl7.org/fhir/R4/http.html)."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any

import pytest


def patient(**more: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "name": [{"family": "张", "given": ["三"]}], "gender": "male", **more}


def outcome(answer: Any, status: int, code: str = "") -> dict[str, Any]:
    """The first issue of the OperationOutcome that every refusal carries."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"].startswith("application/fhir+json")
    body = answer.json()
    assert body["resourceType"] == "OperationOutcome"
    found: dict[str, Any] = body["issue"][0]
    assert found["severity"] in ("error", "fatal")
    assert not code or found["code"] == code
    return found


# --- create, read, update, delete -------------------------------------------------------------------------------------------


def test_a_created_resource_is_read_back(api: Any) -> None:
    answer = api.http.post("/Patient", json=patient(id="ignored"))
    assert answer.status_code == 201
    logical = answer.json()["id"]
    assert logical != "ignored"
    assert answer.headers["Location"] == f"{api.base}/Patient/{logical}/_history/1"
    assert answer.headers["ETag"] == 'W/"1"'
    read = api.http.get(f"/Patient/{logical}")
    assert read.status_code == 200
    assert read.headers["Content-Type"].startswith("application/fhir+json")
    assert read.headers["ETag"] == 'W/"1"'
    assert read.json()["name"] == patient()["name"]
    assert read.json()["meta"]["versionId"] == "1"
    updated = read.json()["meta"]["lastUpdated"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", updated)
    assert parsedate_to_datetime(read.headers["Last-Modified"]).isoformat()[:19] == updated[:19]


def test_decimals_and_times_keep_their_text(api: Any) -> None:
    text = (
        '{"resourceType":"Observation","id":"digits","status":"final","code":{"text":"K"},'
        '"effectiveDateTime":"2024-05-01T10:00:00.120+00:00",'
        '"valueQuantity":{"value":6.30,"unit":"mmol/L"},'
        '"referenceRange":[{"low":{"value":0.0000001},"high":{"value":1.0E2}}]}'
    )
    written = api.http.put("/Observation/digits", content=text, headers={"Content-Type": "application/fhir+json"})
    assert written.status_code == 201, written.text
    for answer in (written, api.http.get("/Observation/digits"), api.http.get("/Observation?_id=digits")):
        for kept in ('"value":6.30,', '"value":0.0000001}', '"value":1.0E2}', "2024-05-01T10:00:00.120+00:00"):
            assert kept in answer.text
    pretty = api.http.get("/Observation/digits?_pretty=true").text
    assert '"value": 6.30,' in pretty
    assert pretty.count("\n") > 10


def test_an_update_makes_a_new_version_and_the_same_again_does_not(api: Any) -> None:
    api.put(**patient(id="p"))
    second = api.put(**patient(id="p", gender="female"))
    assert second.status_code == 200
    assert second.headers["ETag"] == 'W/"2"'
    assert second.headers["Location"] == f"{api.base}/Patient/p/_history/2"
    again = api.put(**patient(id="p", gender="female"))
    assert again.status_code == 200
    assert again.headers["ETag"] == 'W/"2"'


def test_an_update_under_an_unknown_id_creates_it(api: Any) -> None:
    answer = api.http.put("/Patient/given.by-client", json=patient(id="given.by-client"))
    assert answer.status_code == 201
    assert api.http.get("/Patient/given.by-client").json()["id"] == "given.by-client"


def test_every_version_is_read_by_its_number(api: Any) -> None:
    api.put(**patient(id="p"))
    api.put(**patient(id="p", gender="female"))
    assert api.http.get("/Patient/p/_history/1").json()["gender"] == "male"
    assert api.http.get("/Patient/p/_history/2").json()["gender"] == "female"
    for unknown in ("3", "0", "x", "99999999999999999999"):
        outcome(api.http.get(f"/Patient/p/_history/{unknown}"), 404, "not-found")


def test_a_deleted_resource_is_gone_but_its_history_stays(api: Any) -> None:
    api.put(**patient(id="p"))
    assert api.http.delete("/Patient/p").status_code == 204
    gone = api.http.get("/Patient/p")
    outcome(gone, 410, "deleted")
    assert gone.headers["ETag"] == 'W/"2"'
    assert api.http.get("/Patient/p/_history/1").status_code == 200
    outcome(api.http.get("/Patient/p/_history/2"), 410)
    assert api.ids("Patient?_id=p") == []
    assert api.ids("Patient") == []
    history = api.search("Patient/p/_history")
    assert [e["request"]["method"] for e in history["entry"]] == ["DELETE", "PUT"]
    assert api.http.delete("/Patient/p").status_code == 204  # again: no error
    assert api.http.delete("/Patient/never").status_code == 204
    back = api.put(**patient(id="p"))
    assert back.status_code == 201
    assert back.headers["ETag"] == 'W/"3"'


def test_returns_404_for_an_unknown_id_and_an_unknown_type(api: Any) -> None:
    outcome(api.http.get("/Patient/unknown"), 404, "not-found")
    outcome(api.http.get("/Patient/not_an_id!"), 404, "not-found")
    outcome(api.http.get("/Animal/1"), 404, "not-found")
    outcome(api.http.get("/Animal"), 404)
    outcome(api.http.post("/Animal", json={"resourceType": "Animal"}), 404)
    outcome(api.http.get("/Patient/p/nonsense"), 404)
    outcome(api.http.get("/Patient/unknown/_history"), 404)


# --- conditions -------------------------------------------------------------------------------------------------------------


def test_if_match_guards_against_lost_updates(api: Any) -> None:
    api.put(**patient(id="p"))
    api.put(**patient(id="p", gender="female"))

    def update(tag: str, **more: Any) -> Any:
        return api.http.put("/Patient/p", json=patient(id="p", **more), headers={"If-Match": tag})

    outcome(update('W/"1"', gender="other"), 412)
    outcome(update('W/"x"', gender="other"), 412)
    outcome(update("nonsense", gender="other"), 400)
    assert update('W/"2"', gender="other").headers["ETag"] == 'W/"3"'
    outcome(api.http.put("/Patient/new", json=patient(id="new"), headers={"If-Match": 'W/"1"'}), 412)
    outcome(api.http.put("/Patient/new", json=patient(id="new"), headers={"If-Match": "*"}), 412)
    outcome(api.http.delete("/Patient/p", headers={"If-Match": 'W/"1"'}), 412)
    for address in ("/Patient?_id=p", "/Patient?_id=nobody"):
        for headers in ({"If-Match": 'W/"1"'}, {"If-None-Match": "*", "If-Match": "*"}):
            outcome(api.http.put(address, json=patient(), headers=headers), 412)
        outcome(api.http.delete(address, headers={"If-Match": 'W/"1"'}), 412)
    assert api.ids("Patient") == ["p"]
    assert api.http.delete("/Patient/p", headers={"If-Match": 'W/"3"'}).status_code == 204


def test_a_client_with_the_current_version_gets_304(api: Any) -> None:
    api.put(**patient(id="p"))
    read = api.http.get("/Patient/p")
    fresh = api.http.get("/Patient/p", headers={"If-None-Match": read.headers["ETag"]})
    assert (fresh.status_code, fresh.content) == (304, b"")
    assert api.http.get("/Patient/p", headers={"If-None-Match": 'W/"7", W/"1"'}).status_code == 304
    assert api.http.get("/Patient/p", headers={"If-None-Match": 'W/"7"'}).status_code == 200
    since = {"If-Modified-Since": read.headers["Last-Modified"]}
    assert api.http.get("/Patient/p", headers=since).status_code == 304
    assert api.http.get("/Patient/p", headers={"If-Modified-Since": "Sat, 01 Jan 2000 00:00:00 GMT"}).status_code == 200
    assert api.http.get("/Patient/p", headers={"If-Modified-Since": "yesterday"}).status_code == 200
    both = {**since, "If-None-Match": 'W/"7"'}  # the tag decides
    assert api.http.get("/Patient/p", headers=both).status_code == 200


def test_if_none_exist_creates_only_once(api: Any) -> None:
    resource = patient(identifier=[{"system": "http://x/mrn", "value": "1"}])
    condition = {"If-None-Exist": "identifier=http://x/mrn|1"}
    first = api.http.post("/Patient", json=resource, headers=condition)
    second = api.http.post("/Patient", json=resource, headers=condition)
    assert (first.status_code, second.status_code) == (201, 200)
    assert second.headers["Location"] == first.headers["Location"]
    assert second.json()["id"] == first.json()["id"]
    api.create(**resource)
    outcome(api.http.post("/Patient", json=resource, headers=condition), 412, "multiple-matches")
    outcome(api.http.post("/Patient", json=resource, headers={"If-None-Exist": "nonsense=1"}), 400)
    outcome(api.http.post("/Patient", json=resource, headers={"If-None-Exist": ""}), 400)


def test_a_conditional_update_finds_makes_or_refuses(api: Any) -> None:
    def update(value: str, **more: Any) -> Any:
        resource = patient(identifier=[{"system": "http://x/mrn", "value": value}], **more)
        return api.http.put("/Patient", params={"identifier": f"http://x/mrn|{value}"}, json=resource)

    made = update("1")
    assert made.status_code == 201
    changed = update("1", gender="female")
    assert changed.status_code == 200
    assert changed.json()["id"] == made.json()["id"]
    assert changed.json()["meta"]["versionId"] == "2"
    outcome(update("1", id="another"), 400)
    named = update("2", id="named")
    assert (named.status_code, named.json()["id"]) == (201, "named")
    api.put(**patient(id="third", identifier=[{"system": "http://x/mrn", "value": "2"}]))
    outcome(update("2"), 412, "multiple-matches")
    outcome(api.http.put("/Patient", json=patient()), 400)


def test_a_conditional_delete_deletes_one_match(api: Any) -> None:
    api.put(**patient(id="a", identifier=[{"value": "1"}]))
    api.put(**patient(id="b", identifier=[{"value": "2"}]))
    api.put(**patient(id="c", identifier=[{"value": "2"}]))
    assert api.http.delete("/Patient?identifier=1").status_code == 204
    assert api.ids("Patient?_sort=_id") == ["b", "c"]
    outcome(api.http.delete("/Patient?identifier=2"), 412)
    assert api.http.delete("/Patient?identifier=3").status_code == 204
    outcome(api.http.delete("/Patient"), 400)


# --- what is refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b"", 400, "line 1"),
        (b'{"resourceType":"Patient",\n "gender":}', 400, "line 2"),
        (b"[]", 400, "object"),
        (b'{"name":[]}', 400, "resourceType"),
        (b'{"resourceType":"Patient","gender":"male","gender":"female"}', 400, "twice"),
        (b'{"resourceType":"Patient","name":[{"text":"\xff"}]}', 400, "UTF-8"),
        (b'{"resourceType":"Patient","name":[{"text":"\\ud800"}]}', 400, "JSON"),
        (b'{"resourceType":"Patient","multipleBirthInteger":99999999999999999999}', 400, "JSON"),
        (b'{"resourceType":"Patient","extension":' + b"[" * 300 + b"]" * 300 + b"}", 400, ""),
        (b'{"resourceType":"Patient","extension":' + b"[" * 100000 + b"]" * 100000 + b"}", 400, ""),
        (b'{"resourceType":"Practitioner"}', 400, "Patient"),
        (b'{"resourceType":"Patient","gender":"masculine"}', 422, "required codes"),
        (b'{"resourceType":"Patient","birthDate":"2024-02-30"}', 422, "date"),
        (b'{"resourceType":"Patient","colour":"red"}', 422, "no such element"),
        (b'{"resourceType":"Patient","name":{"text":"x"}}', 422, "list"),
    ],
)
def test_a_body_that_cannot_be_taken_is_explained(api: Any, body: bytes, status: int, told: str) -> None:
    answer = api.http.post("/Patient", content=body, headers={"Content-Type": "application/fhir+json"})
    found = outcome(answer, status)
    assert told in found["details"]["text"]
    assert api.ids("Patient") == []


def test_an_invalid_resource_names_the_element_and_keeps_values_to_itself(api: Any) -> None:
    answer = api.http.post("/Patient", json=patient(gender="SECRET-VALUE", birthDate="long ago"))
    issues = answer.json()["issue"]
    assert answer.status_code == 422
    assert {i["expression"][0] for i in issues} == {"Patient.gender", "Patient.birthDate"}
    assert "SECRET" not in answer.text


def test_the_id_in_the_body_must_be_the_one_in_the_url(api: Any) -> None:
    outcome(api.http.put("/Patient/a", json=patient(id="b")), 400)
    outcome(api.http.put("/Patient/a", json=patient()), 400)
    outcome(api.http.put("/Patient/a_b", json=patient(id="a_b")), 422)


def test_media_types_other_than_json_are_refused(api: Any) -> None:
    xml = {"Content-Type": "application/fhir+xml"}
    outcome(api.http.post("/Patient", content=b"<Patient/>", headers=xml), 415)
    outcome(api.http.post("/Patient", content=b"{}", headers={"Content-Type": "text/plain"}), 415)
    outcome(api.http.get("/Patient", headers={"Accept": "application/fhir+xml"}), 406)
    outcome(api.http.get("/Patient?_format=xml"), 406)
    outcome(
        api.http.get("/Patient?_format=json", headers={"Accept": "application/fhir+json; fhirVersion=3.0"}), 200
    ) if (api.http.get("/Patient?_format=json").status_code != 200) else None
    for accept in (
        "application/json",
        "*/*",
        "text/html, application/xml;q=0.9, */*;q=0.8",
        "application/fhir+json;fhirVersion=4.0",
    ):
        assert api.http.get("/Patient", headers={"Accept": accept}).status_code == 200
    for wanted in ("json", "application/fhir%2Bjson", "application/fhir+json", "application/json"):
        answer = api.http.get(f"/Patient?_format={wanted}", headers={"Accept": "application/fhir+xml"})
        assert answer.status_code == 200
    outcome(api.http.get("/Patient", headers={"Accept": "application/fhir+json;fhirVersion=3.0"}), 406)
    json_type = {"Content-Type": "application/json; charset=utf-8"}
    assert api.http.post("/Patient", content=json.dumps(patient()), headers=json_type).status_code == 201


def test_interactions_that_do_not_exist_are_refused_with_the_ones_that_do(api: Any) -> None:
    answer = api.http.patch("/Patient/p/_history/1", json=[])
    outcome(answer, 405, "not-supported")
    assert answer.headers["Allow"] == "GET, HEAD"
    answer = api.http.post("/Patient/p", json=patient())
    assert {"GET", "PUT", "PATCH", "DELETE"} <= set(answer.headers["Allow"].split(", "))
    outcome(api.http.post("/Patient/p", json=patient()), 405)
    outcome(api.http.put("/metadata/x/_history/1", json={}), 405)


def test_a_body_over_the_limit_is_refused(serve: Callable[..., Any]) -> None:
    with serve(max_request=4096) as api:
        large = patient(name=[{"text": "x" * 5000}])
        outcome(api.http.post("/Patient", json=large), 413, "too-long")

        def chunks() -> Any:
            yield from (b" " * 1000 for _ in range(10))

        headers = {"Content-Type": "application/fhir+json"}
        outcome(api.http.post("/Patient", content=chunks(), headers=headers), 413, "too-long")
        assert api.http.post("/Patient", json=patient()).status_code == 201


# --- preferences, HEAD, metadata --------------------------------------------------------------------------------------------


def test_prefer_says_what_a_write_returns(api: Any) -> None:
    def create(wanted: str) -> Any:
        return api.http.post("/Patient", json=patient(), headers={"Prefer": f"Return = {wanted}"})

    minimal = create("minimal")
    assert (minimal.status_code, minimal.content) == (201, b"")
    assert minimal.headers["Location"].startswith(f"{api.base}/Patient/")
    assert create("representation").json()["resourceType"] == "Patient"
    told = create("OperationOutcome").json()
    assert (told["resourceType"], told["issue"][0]["severity"]) == ("OperationOutcome", "information")


def test_head_answers_like_get_without_a_body(api: Any) -> None:
    api.put(**patient(id="p"))
    for url in ("/Patient/p", "/Patient", "/metadata", "/Patient/p/_history", "/Patient/p/_history/1"):
        get, head = api.http.get(url), api.http.head(url)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["Content-Length"] == get.headers["Content-Length"]
        assert head.headers.get("ETag") == get.headers.get("ETag")
    assert api.http.head("/Patient/x").status_code == 404


def test_metadata_needs_no_token(api: Any) -> None:
    statement = api.http.get("/metadata", headers={"Authorization": ""}).json()
    assert statement["resourceType"] == "CapabilityStatement"
    assert statement["fhirVersion"] == "4.0.1"


# --- history ----------------------------------------------------------------------------------------------------------------


def test_history_of_instance_type_and_system_is_paged_newest_first(api: Any) -> None:
    for gender in ("male", "female", "other"):
        api.put(**patient(id="p", gender=gender))
    api.put(resourceType="Organization", id="o", name="x")
    instance = api.search("Patient/p/_history")
    assert instance["type"] == "history"
    assert [e["resource"]["meta"]["versionId"] for e in instance["entry"]] == ["3", "2", "1"]
    assert instance["entry"][2]["response"]["status"] == "201 Created"
    assert instance["entry"][0]["response"]["etag"] == 'W/"3"'
    seen, url = [], "/_history?_count=2"
    while url:
        bundle = api.http.get(url).json()
        seen += [(e["resource"]["resourceType"], e["resource"]["meta"]["versionId"]) for e in bundle["entry"]]
        url = next((link["url"] for link in bundle["link"] if link["relation"] == "next"), "")
    assert seen == [("Organization", "1"), ("Patient", "3"), ("Patient", "2"), ("Patient", "1")]
    assert len(api.search("Patient/_history")["entry"]) == 3
    since = instance["entry"][1]["resource"]["meta"]["lastUpdated"]
    assert len(api.search(f"Patient/p/_history?_since={since}")["entry"]) == 2
    assert "entry" not in api.search("Patient/p/_history?_since=2100-01-01T00:00:00Z")
    outcome(api.http.get("/Patient/p/_history?_since=soon"), 400)
    outcome(api.http.get("/Patient/p/_history?_count=-1"), 400)


# --- who may ----------------------------------------------------------------------------------------------------------------


def test_everything_but_metadata_needs_a_token_with_the_scope(api: Any) -> None:
    api.put(**patient(id="p"))
    nobody = {"Authorization": ""}
    for method, url in (
        ("GET", "/Patient/p"),
        ("GET", "/Patient"),
        ("POST", "/Patient"),
        ("POST", "/"),
        ("PUT", "/Patient/p"),
        ("DELETE", "/Patient/p"),
        ("GET", "/_history"),
        ("GET", "/Patient/p/_history/1"),
        ("POST", "/Patient/_search"),
    ):
        answer = api.http.request(method, url, headers=nobody)
        outcome(answer, 401, "login")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    reader = {"Authorization": f"Bearer {api.token('auditor')}"}
    assert api.http.get("/Patient/p", headers=reader).status_code == 200
    outcome(api.http.put("/Patient/p", json=patient(id="p"), headers=reader), 403, "forbidden")
    outcome(api.http.delete("/Patient/p", headers=reader), 403)
    narrow = {"Authorization": f"Bearer {api.token('clinician', 'user/Observation.rs')}"}
    outcome(api.http.get("/Patient/p", headers=narrow), 403)
    assert api.http.get("/Observation", headers=narrow).status_code == 200
    api.put(resourceType="Observation", id="o", status="final", code={"text": "x"}, subject={"reference": "Patient/p"})
    visit = {"status": "in-progress", "class": {"code": "AMB"}, "subject": {"reference": "Patient/p"}}
    api.put(
        resourceType="Encounter", id="e", **visit
    )  # without one a clinician sees nothing of the patient (test_access_matrix)
    along = api.http.get("/Observation?_include=Observation:subject", headers=narrow).json()
    assert [e["resource"]["resourceType"] for e in along["entry"]] == ["Observation"]


def test_every_access_is_in_the_audit_log_before_its_answer(api: Any) -> None:
    import psycopg

    api.put(**patient(id="p"))
    api.http.get("/Patient/p")
    api.http.get("/Patient?name=张三")
    api.http.get("/Patient/unknown")
    api.http.get("/Patient/p", headers={"Authorization": f"Bearer {api.token('clinician', 'user/Observation.rs')}"})
    with psycopg.connect(api.database_url) as conn:
        rows = conn.execute("SELECT entry FROM audit_entry ORDER BY at, number").fetchall()
    entries = [e for e in (json.loads(r[0]) for r in rows) if "interaction" in e]
    assert [(e["interaction"], e["outcome"], e["patients"]) for e in entries] == [
        ("update", "0", ["p"]),
        ("read", "0", ["p"]),
        ("search-type", "0", ["p"]),
        ("read", "4", []),
        ("read", "4", []),
    ]
    assert "张三" not in str(rows)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        (b"name=%E5%BC%A0", 200),
        (b"name=%D5%C5", 200),  # GB18030: no such name
        (b"name=%ff%fe", 200),
        (b"name=\xe5\xbc\xa0", 400),  # not percent-encoded: the HTTP server refuses it
        (b"identifier=http://x/mrn|1", 200),
        (b"name=a%00b", 400),
        (b"%", 200),
        (b"&&&=&", 200),
    ],
)
def test_odd_bytes_in_the_address_are_no_server_error(api: Any, query: bytes, status: int) -> None:
    api.put(**patient(id="p"))
    host, port = api.base.removeprefix("http://").removesuffix("/fhir").split(":")
    for token in (api.token(), "wrong"):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(
                b"GET /fhir/Patient?"
                + query
                + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer "
                + token.encode()
                + b"\r\n\r\n"
            )
            answer = b""
            while part := connection.recv(65536):
                answer += part
        expected = 401 if token == "wrong" and b"\xe5" not in query else status
        assert int(answer.split(b" ")[1]) == expected, answer


def test_a_star_in_if_match_asks_only_that_the_resource_exists(api: Any) -> None:
    api.put(**patient(id="p"))
    star = {"If-Match": "*"}
    assert api.http.put("/Patient/p", json=patient(id="p", gender="female"), headers=star).status_code == 200
    assert api.http.delete("/Patient/p", headers=star).status_code == 204


def test_a_character_that_no_id_has_is_refused(api: Any) -> None:
    for place in ("Patient/%00", "Patient/%00/_history", "Patient/%00/Observation", "ValueSet/%00/$expand"):
        assert api.http.get(f"/{place}").status_code in (400, 404), place


def test_a_large_answer_is_compressed_for_who_takes_gzip(api: Any) -> None:
    api.put(**patient(id="p", name=[{"text": "x" * 5000}]))
    whole = api.http.get("/Patient/p", headers={"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in whole.headers
    assert whole.headers["Vary"] == "Accept-Encoding"
    for taken in ("gzip", "br, gzip;q=0.5", "*"):
        answer = api.http.get("/Patient/p", headers={"Accept-Encoding": taken})
        assert answer.headers["Content-Encoding"] == "gzip"
        assert int(answer.headers["Content-Length"]) < 500
        assert answer.content == whole.content
        head = api.http.head("/Patient/p", headers={"Accept-Encoding": taken})
        assert head.headers["Content-Length"] == answer.headers["Content-Length"]
    for refused in ("br", "gzip;q=0", "gzip;q=0.0, br", "gzippy"):
        assert "Content-Encoding" not in api.http.get("/Patient/p", headers={"Accept-Encoding": refused}).headers
    api.put(**patient(id="q"))
    assert "Content-Encoding" not in api.http.get("/Patient/q", headers={"Accept-Encoding": "gzip"}).headers


def test_another_site_may_not_read_answers(api: Any) -> None:
    answer = api.http.get("/metadata", headers={"Origin": "http://elsewhere.example"})
    assert not [name for name in answer.headers if name.lower().startswith("access-control-")]
