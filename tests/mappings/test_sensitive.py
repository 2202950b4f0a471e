"""Which resources belong to a class of sensitive data, as they come from laboratories and from clients."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from conformance import fhirjson
from mappings import sensitive

HIV, MENTAL, GENETICS = map(sensitive.bit_of, ("hiv", "mental-health", "genetics"))


def coded(system: str, code: str) -> dict[str, Any]:
    return {"code": {"coding": [{"system": system, "code": code}]}}


def attached(media: str, text: str) -> dict[str, Any]:
    return {"presentedForm": [{"contentType": media, "data": base64.b64encode(text.encode()).decode()}]}


@pytest.mark.parametrize(
    ("resource", "bits"),
    [
        ({"code": {"text": "HIV抗体"}}, HIV),
        ({"code": {"text": "抗-HIV(1+2)"}}, HIV),
        ({"code": {"text": "ＨＩＶ抗体"}}, HIV),
        ({"code": {"text": "HIVAg/Ab"}}, HIV),
        ({"code": {"text": "HIVCOMBI"}}, HIV),
        ({"code": {"text": "爱滋病抗体"}}, HIV),
        ({"code": {"text": "AIDS期"}}, HIV),
        ({"valueString": "anti-hiv 阳性"}, HIV),
        (coded("http://local", "HIVAB"), HIV),
        (coded("http://loinc.org", "48345-3"), HIV),
        (coded("urn:oid:2.16.156.10011.2.3.3.11.3", "B20.001"), HIV),
        ({"payload": [{"contentString": "HIV初筛阳性,请复检"}]}, HIV),
        ({"detail": "HIV 检查重复"}, HIV),
        ({"patientInstruction": "HIV检查须知"}, HIV),
        ({"media": [{"comment": "HIV"}]}, HIV),
        ({"extension": [{"url": "http://x", "valueMarkdown": "HIV"}]}, HIV),
        ({"instantiatesUri": ["http://example.org/hiv"]}, HIV),
        (attached("text/plain", "结论: HIV 抗体阳性"), HIV),
        ({"code": {"text": "精神病性障碍"}}, MENTAL),
        ({"code": {"text": "焦虑自评量表(SAS)"}}, MENTAL),
        (coded("http://hl7.org/fhir/sid/icd-10", "F32.1"), MENTAL),
        ({"code": {"text": "外周血染色体检查"}}, GENETICS),
        ({"code": {"text": "地中海贫血基因"}}, GENETICS),
        ({"code": {"text": "EGFR基因突变检测"}, "note": [{"text": "抑郁症"}]}, GENETICS | MENTAL),
        # What only looks like it.
        ({"code": {"text": "archived, chiv"}}, 0),
        ({"id": "0hiv3", "subject": {"reference": "Patient/4hiv5"}}, 0),
        (coded("http://local", "F32.1"), 0),
        (attached("application/pdf", "HIV"), 0),
        ({"presentedForm": [{"contentType": "text/plain", "data": "A"}]}, 0),
        ({"code": {"text": "凝血酶原时间"}}, 0),
    ],
)
def test_a_resource_belongs_to_the_class_that_its_words_and_codes_name(resource: dict[str, Any], bits: int) -> None:
    table = sensitive.table()
    assert table.bits(resource) == bits
    assert table.bits(resource, [fhirjson.dumps(resource)]) == bits
    members = [fhirjson.dumps({key: value})[1:-1] for key, value in resource.items()]
    assert table.bits(resource, members) == bits
