"""Grouping: which segments belong together. Structures: HL7 v2.5.1 sections 7.3.4 (OUL^R22) and 7.3.6 (OUL^R24)."""

from __future__ import annotations

import pytest

from adapters.hl7v2.reader import read
from mappings.grouping import group

_MSH = "MSH|^~\\&|L|L|H|H|20260301||OUL^R22|1|P|2.5.1"


def _orders(*lines: str) -> list[tuple[str, str, list[str], list[str]]]:
    source = read("\r".join((_MSH, "PID|1||P1", *lines)).encode())
    return [
        (
            order.obr.first(3) if order.obr else "",
            order.orc.first(2) if order.orc else "",
            [s.record.first(4) for s in order.specimens],
            [r.record.first(3) for r in order.results],
        )
        for patient in group(list(source.records)).patients
        for order in patient.orders
    ]


@pytest.mark.parametrize(("placer", "filler"), [("PA", "F1"), ("PA", "FX"), ("", "F1"), ("P1", "")])
def test_results_stay_with_their_specimen_when_an_orc_writes_another_number_than_its_obr(
    placer: str, filler: str
) -> None:
    found = _orders(
        "SPM|1|S1||SER", f"OBR|1|{placer}|{filler}|BIO", "ORC|RE|P1|F1", "OBX|1|NM|K||4.1",
        "SPM|2|S2||UR", "OBR|2|PB|F2|BIO", "ORC|RE|P2|F2", "OBX|1|NM|UK||40",
    )  # fmt: skip
    assert [(specimens, results) for _, _, specimens, results in found] == [(["SER"], ["K"]), (["UR"], ["UK"])]
    assert [orc for _, orc, _, _ in found] == ["P1", "P2"]


def test_a_shared_filler_number_keeps_an_orc_behind_its_obr_where_the_specimen_comes_last() -> None:
    found = _orders(
        "OBR|1|PA|F1|BIO", "ORC|RE|P1|F1", "OBX|1|NM|K||4.1", "SPM|1|S1||SER",
        "OBR|2|PB|F2|BIO", "ORC|RE|P2|F2", "OBX|1|NM|UK||40", "SPM|2|S2||UR",
    )  # fmt: skip
    assert found == [("F1", "P1", ["SER"], ["K"]), ("F2", "P2", ["UR"], ["UK"])]
