"""The official R4 examples of the served types: stored, read back as sent, searched by every parameter; never a failure
of the server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import zstandard

from conformance import fhirjson
from conformance.capability import RESOURCE_TYPES
from fhir_server.search.definitions import parameters

FILE = Path(__file__).parents[1] / "data" / "fhir-r4" / "examples.ndjson.zst"
TEXTS = zstandard.ZstdDecompressor().decompress(FILE.read_bytes(), max_output_size=2**26).decode().splitlines()
VALUES = {
    "date": "ge2012-01-01",
    "quantity": "gt2012",
    "number": "2012",
    "composite": "x$2012",
    "reference": "Patient/x",
}
SIZE = 60


def named(text: str) -> str:
    resource = json.loads(text)
    return f"{resource['resourceType']}/{resource['id']}"


def send(api: Any, kind: str, entries: list[str]) -> list[Any]:
    """The entries of the answer to a Bundle of entries that are JSON."""
    bundle = f'{{"resourceType":"Bundle","type":"{kind}","entry":[{",".join(entries)}]}}'
    headers = {"Content-Type": "application/fhir+json"}
    answer = api.http.post("/", content=bundle.encode(), headers=headers, timeout=200)
    assert answer.status_code == 200, answer.text
    found: list[Any] = fhirjson.loads(answer.content)["entry"]
    return found


def get(url: str) -> str:
    return json.dumps({"request": {"method": "GET", "url": url}})


@pytest.fixture(scope="module")
def stored(module_api: Any) -> Any:
    """A server with all examples."""
    for start in range(0, len(TEXTS), SIZE):
        entries = [
            f'{{"resource":{text},"request":{{"method":"PUT","url":"{named(text)}"}}}}'
            for text in TEXTS[start : start + SIZE]
        ]
        assert {e["response"]["status"] for e in send(module_api, "transaction", entries)} == {"201 Created"}
    return module_api


def test_the_examples_are_read_back_as_they_were_sent(stored: Any) -> None:
    for start in range(0, len(TEXTS), SIZE):
        some = TEXTS[start : start + SIZE]
        found = send(stored, "transaction", [get(named(text)) for text in some])
        for text, entry in zip(some, found, strict=True):
            sent, read = fhirjson.loads(text), entry["resource"]
            for resource in (sent, read):
                meta = resource.pop("meta", {})
                resource["meta"] = {k: v for k, v in meta.items() if k not in ("versionId", "lastUpdated")}
            # As text, so that 6.30 and 6.3 differ.
            assert {k: fhirjson.dumps(v) for k, v in read.items()} == {k: fhirjson.dumps(v) for k, v in sent.items()}


@pytest.mark.parametrize("kind", RESOURCE_TYPES)
def test_every_parameter_is_searched_and_sorted_by(stored: Any, kind: str) -> None:
    asked = []
    for code, parameter in parameters(kind).items():
        if parameter.indexed:
            asked.append(f"{kind}?{code}={quote(VALUES.get(parameter.kind, 'x'))}&_count=2&_summary=true")
            if parameter.kind != "composite":
                asked.append(f"{kind}?_sort=-{code}&_count=2&_summary=true")
    assert asked
    send(stored, "transaction", [get(url) for url in asked])
