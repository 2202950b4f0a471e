"""fhir_server.api.soap_envelope without a server: faults for people of two languages, payloads that are one document."""

from __future__ import annotations

import pytest
from lxml import etree

from fhir_server.api import soap_envelope
from fhir_server.errors import Category, Fault


@pytest.mark.parametrize("category", list(Category))
@pytest.mark.parametrize("version", ["1.1", "1.2"])
def test_every_fault_says_in_chinese_and_english_what_is_wrong(version: str, category: Category) -> None:
    _, raw = soap_envelope.fault(version, Fault(category, "The payload is missing.", where="payload"))
    said = "".join(etree.fromstring(raw).itertext())
    assert "The payload is missing." in said
    assert any("\u4e00" <= c <= "\u9fff" for c in said)


def test_text_beside_an_element_is_not_dropped_but_refused() -> None:
    with pytest.raises(Fault, match="one document"):
        soap_envelope.payload(etree.fromstring("<payload>MSH|^~<b/></payload>"))
    assert soap_envelope.payload(etree.fromstring("<payload>\n <b/>\n</payload>")) == "<b/>"
