"""Systems that are built from parts."""

from __future__ import annotations

import pytest

from conformance import systems, validator


@pytest.mark.parametrize("control_id", ["M1", "", "20210205NH0000 01", "王#1", "a|b^c&d%20", "\ttab"])
def test_the_source_of_a_message_is_a_uri_whatever_its_control_id(control_id: str) -> None:
    patient = {"resourceType": "Patient", "meta": {"source": systems.source_uri("county", control_id)}}
    assert validator.check(patient) == []


def test_a_plain_control_id_stays_readable() -> None:
    assert systems.source_uri("county", "MSG-00017") == "urn:tongjian:county#MSG-00017"
