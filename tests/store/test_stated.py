"""What a result states beside its code: words of the catalogue or nothing."""

from __future__ import annotations

from typing import Any

import pytest

from fhir_server.store.stated import _METHODS, _SITES, Stated, stated
from mappings import catalogue


def test_every_word_is_one_the_catalogue_compares_with() -> None:
    items = catalogue.shipped().items.values()
    assert {word for word, _ in _METHODS} == {i.method_class for i in items if i.method_class}
    assert set(_SITES.values()) <= {i.body_site for i in items}


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        ({}, Stated()),
        ({"method": {"text": "实时荧光PCR"}}, Stated(method="nucleic-acid")),
        ({"method": {"coding": [{"code": "ECL", "display": "电化学发光"}]}}, Stated(method="immunoassay")),
        ({"method": {"text": "其他方法"}}, Stated()),
        ({"method": {"text": "平扫+增强"}}, Stated(contrast="without-and-with")),
        ({"bodySite": {"text": "左膝"}}, Stated(site="knee", laterality="left")),
        ({"bodySite": {"text": "双侧髋关节"}}, Stated(site="hip", laterality="bilateral")),
        ({"bodySite": {"coding": [{"code": "7771000"}], "text": "某处"}}, Stated(laterality="left")),
        ({"bodySite": {"text": "胸部"}}, Stated(site="chest")),
    ],
)
def test_reads_methods_sites_and_sides(resource: dict[str, Any], expected: Stated) -> None:
    assert stated(resource, None) == expected


@pytest.mark.parametrize(
    ("visit", "expected"),
    [
        (None, None),
        ({"class": {"code": "AMB"}}, None),
        ({"class": {"code": "AMB"}, "type": [{"text": "健康体检"}]}, "yes"),
        ({"class": {"code": "TJ", "display": "体检"}}, "yes"),
        ({"class": {"code": "IMP"}}, "no"),
        ({"class": {"code": "EMER"}}, "no"),
    ],
)
def test_a_health_check_is_one_only_where_the_visit_says_so(visit: dict[str, Any] | None, expected: str | None) -> None:
    assert stated({}, visit).health_check == expected
