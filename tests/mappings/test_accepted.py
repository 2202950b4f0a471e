"""Accepted mappings over a profile: what counts, what the files keep, and that the mapping version tells them apart."""

from __future__ import annotations

import pytest

from mappings.accepted import Accepted, fault, in_files, overlay
from mappings.catalogue import shipped
from mappings.profile import Profile, load_profiles


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    folder = tmp_path_factory.mktemp("profiles")
    (folder / "tests.csv").write_text(
        "code,name,item,valid_from,valid_to,note\nALT,谷丙转氨酶,L0006,,,\nOLD,血糖,L0022,,2023-12-31,\n",
        encoding="utf-8",
    )
    (folder / "alpha.yaml").write_text(
        "id: alpha\norganization: {name: 甲县人民医院}\ncodes: {tests: tests.csv}\n", encoding="utf-8"
    )
    return load_profiles(folder)["alpha"]


def test_an_accepted_code_is_found_and_the_file_still_counts(profile: Profile) -> None:
    now = overlay(profile, [Accepted("code", "GLU", "葡萄糖", "L0022")])
    assert now.find_test("GLU", "葡萄糖").mapping.item == "L0022"
    assert now.find_test("ALT").mapping.item == "L0006"
    assert profile.find_test("GLU").mapping is None


def test_an_accepted_code_holds_for_its_days_only(profile: Profile) -> None:
    now = overlay(profile, [Accepted("code", "GLU", "", "L0022", "2026-01-01", "2026-06-30")])
    assert [now.find_test("GLU", at=day).mapping is not None for day in ("2025-12-31", "2026-01-01", "2026-06-30", "2026-07-01")] == [
        False, True, True, False,
    ]  # fmt: skip


def test_the_file_wins_on_the_days_it_speaks_of(profile: Profile) -> None:
    assert in_files(profile, Accepted("code", "ALT", "", "L0007")) == "L0006"
    assert overlay(profile, [Accepted("code", "ALT", "", "L0007")]) is profile
    later = Accepted("code", "OLD", "", "L0023", "2024-01-01")
    assert in_files(profile, later) == ""
    now = overlay(profile, [later])
    assert now.find_test("OLD", at="2023-06-01").mapping.item == "L0022"
    assert now.find_test("OLD", at="2024-06-01").mapping.item == "L0023"


def test_a_name_without_a_code_and_a_unit_can_be_accepted(profile: Profile) -> None:
    now = overlay(profile, [Accepted("code", "", "血清葡萄糖", "L0022"), Accepted("unit", "毫摩每升", "", "mmol/L")])
    assert now.find_test("", "血清葡萄糖").mapping.item == "L0022"
    assert now.units.lookup("毫摩每升").ucum == "mmol/L"
    assert profile.units.lookup("毫摩每升").ucum is None


def test_an_order_can_be_accepted(profile: Profile) -> None:
    now = overlay(profile, [Accepted("order", "2001", "血细胞分析", "CBC")])
    assert now.orders.find("2001").mapping.orderable == "CBC"


def test_every_set_of_mappings_is_a_mapping_version_of_its_own(profile: Profile) -> None:
    one, two = Accepted("code", "GLU", "", "L0022"), Accepted("code", "K", "", "L0038")
    assert overlay(profile, [one, two]).digest == overlay(profile, [two, one]).digest
    assert (
        len(
            {
                p.digest
                for p in (profile, overlay(profile, [one]), overlay(profile, [two]), overlay(profile, [one, two]))
            }
        )
        == 4
    )


@pytest.mark.parametrize(
    ("mapping", "word"),
    [
        (Accepted("code", "A", "", "L9999"), "not an item"),
        (Accepted("order", "A", "", "L0006"), "not an orderable"),
        (Accepted("unit", "x", "", "furlong/L"), "not a UCUM code"),
        (Accepted("code", " ", "", "L0006"), "code or a name"),
        (Accepted("code", "A", "", "L0006", "2026-02-01", "2026-01-01"), "before"),
        (Accepted("test", "A", "", "L0006"), "not one of"),
    ],
)
def test_what_cannot_be_a_mapping_is_said_and_left_aside(profile: Profile, mapping: Accepted, word: str) -> None:
    assert word in fault(mapping, shipped())
    assert overlay(profile, [mapping]) is profile
