"""Official R4 examples of served types: stored, read back as sent, and found by every search parameter they have a value for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conformance import fhirjson
from fhir_server.search.definitions import parameters
from fhir_server.search.params import extract

FILES = sorted((Path(__file__).parents[1] / "data" / "fhir-r4").glob("*.json"))

VALUES = {"date": "2012-01-01", "quantity": "2012", "number": "2012", "composite": "x$2012"}


@pytest.mark.parametrize("file", FILES, ids=[f.stem for f in FILES])
def test_an_official_example_is_read_back_as_it_was_sent(module_api: Any, file: Path) -> None:
    raw = file.read_bytes()
    sent = fhirjson.loads(raw)
    kind, logical = sent["resourceType"], sent["id"]
    headers = {"Content-Type": "application/fhir+json"}
    written = module_api.http.put(f"/{kind}/{logical}", content=raw, headers=headers)
    assert written.status_code in (200, 201), written.text
    read = fhirjson.loads(module_api.http.get(f"/{kind}/{logical}").content)
    meta = read.pop("meta")
    stated = sent.pop("meta", {})
    assert {k: v for k, v in meta.items() if k not in ("versionId", "lastUpdated")} == {
        k: v for k, v in stated.items() if k not in ("versionId", "lastUpdated")
    }
    # Compared as text, name by name, so that 6.30 and 6.3 differ.
    assert {k: fhirjson.dumps(v) for k, v in read.items()} == {k: fhirjson.dumps(v) for k, v in sent.items()}


@pytest.mark.parametrize("file", FILES, ids=[f.stem for f in FILES])
def test_an_official_example_is_found_by_each_parameter_it_has(module_api: Any, file: Path) -> None:
    sent = fhirjson.loads(file.read_bytes())
    kind, logical = sent["resourceType"], sent["id"]
    module_api.http.put(
        f"/{kind}/{logical}", content=file.read_bytes(), headers={"Content-Type": "application/fhir+json"}
    )
    present = extract(sent).present
    for code, parameter in parameters(kind).items():
        if not parameter.indexed:
            continue
        has = any(present & path.bit for path, _ in parameter.paths)
        found = module_api.ids(f"{kind}?{code}:missing=false&_id={logical}")
        if not any(only for _, only in parameter.paths):
            assert found == ([logical] if has else []), code
        answer = module_api.http.get(f"/{kind}", params={code: VALUES.get(parameter.kind, "x")})
        assert answer.status_code == 200, (code, answer.text)
