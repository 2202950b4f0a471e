"""Facility profiles: the shipped demo county, inheritance, and faults that name file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from mappings.ids import shard_of
from mappings.profile import GENERIC, Profile, ProfileError, load_profiles

SHIPPED = load_profiles()
DEMO = ("county-hospital", "north-township", "south-township", "east-clinic")
MINIMAL = "id: {id}\norganization:\n  name: 试验医院\n"


def problems_of(folder: Path, **files: str) -> list[tuple[str, int, str]]:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ProfileError) as caught:
        load_profiles(folder)
    return [(p.file, p.line, p.key) for p in caught.value.problems]


# --- the demo county -----------------------------------------------------------------------------------------------------


def test_the_generic_profile_is_always_there(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(MINIMAL.format(id="a"), encoding="utf-8")
    assert set(load_profiles(tmp_path)) == {"a", GENERIC}
    assert not SHIPPED[GENERIC].tests.rows


def test_hospital_and_townships_map_at_least_60_codes_each() -> None:
    assert set(DEMO) <= set(SHIPPED)
    for facility in DEMO[:3]:
        assert len(SHIPPED[facility].tests.rows) >= 60, facility


@pytest.mark.parametrize(
    "orderable", ["CBC", "LIVER", "RENAL", "LIPID", "ELECTROLYTE", "GLU", "URINE", "COAG4", "HBV5", "THYROID"]
)
@pytest.mark.parametrize("facility", DEMO[:3])
def test_each_laboratory_can_report_every_required_member_of_the_usual_panels(facility: str, orderable: str) -> None:
    profile = SHIPPED[facility]
    items = {row.item for row in profile.tests.rows}
    assert set(profile.catalogue.orderables[orderable].required) <= items
    assert orderable in {row.orderable for row in profile.orders.rows}
    assert profile.prices[orderable] > 0


def test_one_item_has_a_different_code_in_every_facility() -> None:
    codes = [{row.code for row in SHIPPED[f].tests.rows if row.item == "L0006"} for f in DEMO]
    assert codes == [{"ALT"}, {"1106"}, {"谷丙转氨酶"}, {"YX-ALT"}]


@pytest.mark.parametrize(
    ("facility", "code", "name"),
    [
        ("county-hospital", "RDW-SD", "红细胞分布宽度SD"),
        ("county-hospital", "PCT", "血小板压积"),
        ("north-township", "1021", "红细胞分布宽度SD"),
        ("south-township", "BC5380.PDW", "血小板分布宽度"),
        ("east-clinic", "P-BG", "指尖血糖"),
    ],
)
def test_some_local_codes_are_left_unmapped(facility: str, code: str, name: str) -> None:
    assert SHIPPED[facility].find_test(code, name).mapping is None


def test_a_marked_chinese_name_sent_as_code_is_found() -> None:
    found = SHIPPED["south-township"].find_test("*谷丙转氨酶")
    assert found.mapping is not None
    assert (found.mapping.item, found.mark) == ("L0006", "*")


def test_the_north_code_that_was_used_again_depends_on_the_day() -> None:
    north = SHIPPED["north-township"]
    before, after = (
        north.find_test("1201", "", "", "2023-06-01").mapping,
        north.find_test("1201", "", "", "2024-06-01").mapping,
    )
    assert before is not None
    assert after is not None
    assert (before.loinc, after.loinc) == ("14937-7", "22664-7")


def test_the_clinic_names_the_county_laboratory_as_performer() -> None:
    assert SHIPPED["east-clinic"].facility.performers["YXLAB"] == "county-hospital"
    assert SHIPPED["east-clinic"].facility.default_performer == "unknown"


def test_demo_names_are_usable_for_ids() -> None:
    assert all(0 <= shard_of(f, "x|1") < 1024 for f in DEMO)


def test_a_label_ln_is_believed_only_where_the_profile_says_so(tmp_path: Path) -> None:
    assert SHIPPED[GENERIC].find_test("1742-6", "ALT", "LN").mapping is None
    (tmp_path / "a.yaml").write_text(MINIMAL.format(id="a") + "codes:\n  loinc: true\n", encoding="utf-8")
    own = load_profiles(tmp_path)["a"]
    found = own.find_test("1742-6", "ALT", "LN").mapping
    assert found is not None
    assert found.item == "L0006"
    assert own.find_test("1742-6", "ALT", "L").mapping is None
    assert own.find_test("1037", "检查所见", "LN").mapping is None


# --- inheritance and digest ----------------------------------------------------------------------------------------------


def test_inherits_from_a_shipped_profile_key_by_key(tmp_path: Path) -> None:
    text = (
        "id: branch\nbase: county-hospital\norganization: {name: 云溪县人民医院东院}\nsenders:\n  - {facility: YXDY}\n"
    )
    (tmp_path / "branch.yaml").write_text(text + "flags: {M: N}\n", encoding="utf-8")
    # The county hospital itself is not of this folder, so its name as performer would lead nowhere.
    (tmp_path / "county.yaml").write_text(
        "id: county-hospital\nbase: generic\norganization: {name: 云溪县人民医院}\n", encoding="utf-8"
    )
    own = load_profiles(tmp_path)
    assert own["branch"].facility.organization.name == "云溪县人民医院东院"
    assert own["branch"].facility.flags == {"M": "N"}


def test_lists_are_replaced_and_maps_merged(tmp_path: Path) -> None:
    base = MINIMAL.format(id="base") + "flags: {M: N, X: A}\nquality_control_patients: ['^QC']\n"
    top = "id: top\nbase: base\norganization: {name_en: Top}\nflags: {X: H}\nquality_control_patients: ['^ZK']\n"
    (tmp_path / "base.yaml").write_text(base, encoding="utf-8")
    (tmp_path / "top.yaml").write_text(top, encoding="utf-8")
    facility = load_profiles(tmp_path)["top"].facility
    assert (facility.organization.name, facility.organization.name_en) == ("试验医院", "Top")
    assert facility.flags == {"M": "N", "X": "H"}
    assert facility.quality_control_patients == ["^ZK"]


def changed(folder: Path, **edits: str) -> Profile:
    folder.mkdir()
    files = {"a.yaml": MINIMAL.format(id="a") + "codes: {tests: t.csv, units: u.csv}\n"}
    files |= {"t.csv": "code,name,item\nA,a,L0006\n", "u.csv": "source,ucum\nZ,g\n"} | {
        k.replace("_", "."): v for k, v in edits.items()
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return load_profiles(folder)["a"]


def test_the_digest_covers_profile_codes_and_units(tmp_path: Path) -> None:
    first = changed(tmp_path / "1")
    assert changed(tmp_path / "2").digest == first.digest
    assert changed(tmp_path / "3", t_csv="code,name,item\nA,a,L0007\n").digest != first.digest
    assert changed(tmp_path / "4", u_csv="source,ucum\nZ,mg\n").digest != first.digest
    assert first.units.lookup("Z").ucum == "g"


# --- faults --------------------------------------------------------------------------------------------------------------


def test_an_unknown_key_and_a_wrong_value_name_their_lines(tmp_path: Path) -> None:
    text = (
        MINIMAL.format(id="a")
        + "colour: red\nobservation_status:\n  Z: finished\ntime_zone: Mars/Olympus\ncharset: ebcdic-99\n"
    )
    found = problems_of(tmp_path, a=text)
    assert ("a.yaml", 4, "colour") in found
    assert ("a.yaml", 6, "observation_status.Z") in found
    text = (
        MINIMAL.format(id="a")
        + "time_zone: Mars/Olympus\ncharset: ebcdic-99\nquality_control_patients:\n  - '^QC'\n  - '('\n"
    )
    assert problems_of(tmp_path, a=text) == [
        ("a.yaml", 4, "time_zone"),
        ("a.yaml", 5, "charset"),
        ("a.yaml", 8, "quality_control_patients.1"),
    ]


def test_a_fault_in_an_inherited_key_names_the_base_file(tmp_path: Path) -> None:
    found = problems_of(
        tmp_path,
        base=MINIMAL.format(id="base") + "time_zone: Nowhere\n",
        top="id: top\nbase: base\norganization: {name: b}\n",
    )
    assert set(found) == {("base.yaml", 4, "time_zone")}


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("organization: {name: a}\n", 1, "id"),
        ("id: a\norganization: {name: a}\nid: b\n", 3, "id"),
        ("- a\n", 1, ""),
        ("id: a\norganization: {name: [\n", 3, ""),
        ("id: a\nbase: nobody\norganization: {name: a}\n", 2, "base"),
        ("id: A B\norganization: {name: a}\n", 1, "id"),
        ("id: a\norganization: {name: a}\nchannels:\n  - addresses: [10.0.0.300]\n", 4, "channels.0.addresses.0"),
        ("id: a\norganization: {name: a}\nchannels:\n  - {name: x}\n  - {name: x}\n", 5, "channels.1.name"),
        ("id: a\norganization: {name: a}\ncodes:\n  tests: none.csv\n", 4, "codes.tests"),
        ("id: a\norganization: {name: a}\nperformers:\n  LAB: nobody\n", 4, "performers.LAB"),
        ("id: a\norganization: {name: a}\npaths:\n  PID-19: ZPI-2\n  PID19: ZPI-3\n", 5, "paths.PID19"),
        ("id: a\norganization: {name: a}\ntriggers:\n  ZLB^Z01: ORU^Q99\n", 4, "triggers.ZLB^Z01"),
        ("id: a\norganization: {name: a}\ndate_formats:\n  - dd/MM/yy\n", 4, "date_formats.0"),
        ("id: a\norganization: {name: a}\nflags:\n  M: NORMAL\n", 4, "flags.M"),
        ("id: a\norganization: {name: a}\norder_numbers: weekly\n", 3, "order_numbers"),
        ("id: a\norganization: {name: a}\nsub_ids: both\n", 3, "sub_ids"),
    ],
)
def test_each_fault_names_file_line_and_key(tmp_path: Path, text: str, line: int, key: str) -> None:
    assert ("a.yaml", line, key) in problems_of(tmp_path, a=text)


def test_two_files_with_one_id_are_refused(tmp_path: Path) -> None:
    assert problems_of(tmp_path, a=MINIMAL.format(id="a"), b=MINIMAL.format(id="a")) == [("b.yaml", 1, "id")]


def test_a_circle_of_bases_is_refused(tmp_path: Path) -> None:
    found = problems_of(
        tmp_path, a="id: a\nbase: b\norganization: {name: a}\n", b="id: b\nbase: a\norganization: {name: b}\n"
    )
    assert {key for _, _, key in found} == {"base"}


def test_no_two_facilities_share_a_sender(tmp_path: Path) -> None:
    one = MINIMAL.format(id="a") + "senders:\n  - {application: LIS, facility: X}\n"
    other = MINIMAL.format(id="b") + "senders:\n  - {application: LIS, facility: X}\n"
    assert problems_of(tmp_path, a=one, b=other) == [("b.yaml", 5, "senders.0")]
    open_name = MINIMAL.format(id="b") + "senders:\n  - {facility: X}\n"
    assert problems_of(tmp_path, a=one, b=open_name) == [("b.yaml", 5, "senders.0")]


def test_faults_of_code_files_are_listed_with_those_of_the_profile(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("code,name,item\nA,a,L9999\n", encoding="utf-8")
    (tmp_path / "u.csv").write_text("source,ucum\nZ,nonsense\n", encoding="utf-8")
    text = MINIMAL.format(id="a") + "time_zone: Nowhere\ncodes: {tests: t.csv, units: u.csv}\n"
    assert problems_of(tmp_path, a=text) == [("a.yaml", 4, "time_zone"), ("t.csv", 2, "item"), ("u.csv", 2, "ucum")]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="is not a directory"):
        load_profiles(tmp_path / "none")
