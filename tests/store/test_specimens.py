"""Specimens as laboratories write them, and what they say of the items they are for."""

from __future__ import annotations

import pytest

from fhir_server.store.specimens import fits, read, word_of


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ("SER", "serum"), ("血清", "serum"), ("119364003", "serum"), ("Serum specimen", "serum"), ("肝素锂血浆", "plasma"),
        ("EDTA抗凝全血", "whole-blood"), ("末梢血", "whole-blood"), ("BLDC", "whole-blood"), ("静脉血", "blood"), ("BLD", "blood"),
        ("血清/血浆", "blood"), ("24小时尿", "urine-24h"), ("24h尿", "urine-24h"), ("276833005", "urine-24h"), ("晨尿", "urine"),
        ("UR", "urine"), ("脑脊液", "csf"), ("CSF", "csf"), ("胸水", "fluid"), ("腹腔引流液", "fluid"), ("PLR", "fluid"),
        ("咽拭子", "respiratory"), ("伤口拭子", "fluid"), ("宫颈脱落细胞", "cervix"), ("大便", "stool"), ("脐带血", "cord-blood"),
        ("骨髓", "bone-marrow"), ("黄管", None), ("", None),
    ],
)  # fmt: skip
def test_a_specimen_is_read_as_people_write_it(said: str, word: str | None) -> None:
    assert read(said) == word


@pytest.mark.parametrize(
    ("specimen", "wanted", "answer"),
    [
        ("serum", ("serum", "plasma"), True),
        ("csf", ("serum", "plasma"), False),
        ("blood", ("serum", "plasma"), None),
        ("blood", ("urine",), False),
        ("urine", ("urine-24h",), None),
        ("urine-24h", ("urine",), False),
        ("urine-24h", ("urine-24h",), True),
    ],
)
def test_an_unspecific_specimen_neither_fits_nor_contradicts(
    specimen: str, wanted: tuple[str, ...], answer: bool | None
) -> None:
    assert fits(specimen, wanted) is answer


def test_of_a_specimen_with_several_codings_the_first_that_is_known_counts() -> None:
    coding = [{"system": "urn:local", "code": "X1", "display": "采血管"}, {"code": "CSF"}]
    assert word_of({"type": {"coding": coding, "text": "血清"}}) == "csf"
    assert word_of({"type": {"text": "血清"}}) == "serum"
    assert word_of(None) is None
