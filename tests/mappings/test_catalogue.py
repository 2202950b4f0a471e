"""The catalogue. Sources: the published lists named in items.csv; LOINC mod-10 check digit (LOINC Users' Guide); UCUM 2.1."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from conformance.terminology import loinc_valid
from mappings import catalogue, ucum
from mappings.catalogue import DIRECTORY, CatalogueError

SHIPPED = catalogue.shipped()


def test_has_the_437_items_of_the_domain_report() -> None:
    by_category: dict[str, int] = {}
    for item in SHIPPED.items.values():
        by_category[item.category] = by_category.get(item.category, 0) + 1
    assert by_category == {
        "lab": 258,
        "imaging": 108,
        "ultrasound": 34,
        "function": 13,
        "ecg": 10,
        "pathology": 7,
        "endoscopy": 7,
    }


def test_every_loinc_code_has_its_check_digit_and_belongs_to_one_item() -> None:
    codes = [i.loinc for i in SHIPPED.items.values() if i.loinc]
    assert len(codes) == len(set(codes)) == 407
    assert all(loinc_valid(c) for c in codes)


def test_moles_and_mass_in_the_loinc_name_agree_with_the_unit() -> None:
    # LOINC property: [Moles/volume] is SCnc, [Mass/volume] is MCnc; the unit must be of that kind (LOINC Users' Guide, section 2.3).
    checked = 0
    for item in SHIPPED.items.values():
        found = re.search(r"\[(Moles|Mass)/volume\]", item.loinc_check)
        meaning = ucum.read(item.unit) if found else None
        if found and meaning:
            assert dict(meaning.dimension).get("mol" if found[1] == "Moles" else "g") == 1, item.code
            checked += 1
    assert checked > 100


def test_windows_found_in_a_published_list_are_told_from_suggestions() -> None:
    found = {i.name_zh: i.window_days for i in SHIPPED.items.values() if i.window_status == "found"}
    # 鄂卫通〔2023〕56号 as published by 武汉大学人民医院: 30 days glucose and lipids, 60 days HbA1c, 7 days electrolytes.
    assert (found["葡萄糖(血糖)"], found["糖化血红蛋白A1c"], found["钾"]) == (30, 60, 7)
    assert len(found) == 23


def test_an_enzyme_may_be_reported_in_international_units_and_a_hormone_not_in_enzyme_units() -> None:
    # One international unit of catalytic activity is 1 umol/min (IUPAC, IUB); other international units have their own preparations.
    alt, fsh = SHIPPED.items["L0006"], next(i for i in SHIPPED.items.values() if i.name_zh == "卵泡刺激素")
    assert alt.accepts("U/L")
    assert alt.accepts("[IU]/L")
    assert alt.accepts("ukat/L")
    assert not alt.accepts("")
    assert fsh.accepts("m[IU]/mL")
    assert not fsh.accepts("U/L")


def test_items_that_are_never_recognized_automatically_have_window_zero() -> None:
    zero = {i.name_zh for i in SHIPPED.items.values() if i.window_days == 0}
    assert {"ABO血型", "人类免疫缺陷病毒抗体(筛查)", "血培养", "血氨"} <= zero


def test_specimens_follow_the_loinc_name() -> None:
    for item in SHIPPED.items.values():
        if "Serum or Plasma" in item.loinc_check:
            assert item.specimens == ("serum", "plasma"), item.code


def test_has_at_least_30_orderables_whose_members_exist() -> None:
    assert len(SHIPPED.orderables) >= 30
    for orderable in SHIPPED.orderables.values():
        assert orderable.required
        assert set(orderable.required) | set(orderable.optional) <= set(SHIPPED.items)
        assert not set(orderable.required) & set(orderable.optional)
        assert orderable.price is not None
    names = {o.name_zh for o in SHIPPED.orderables.values()}
    wanted = "血常规 尿常规 肝功能 肾功能 血脂 电解质 生化全套 凝血四项 乙肝两对半 传染病四项 血糖 心肌酶谱 心梗三项 血沉 大便常规"
    assert {*wanted.split(), "胸部CT平扫", "心电图"} <= names


def test_the_digest_changes_with_the_data_and_not_with_line_ends(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    shutil.copytree(DIRECTORY, folder)
    assert catalogue.load(folder).digest == SHIPPED.digest
    items = folder / "items.csv"
    text = items.read_text(encoding="utf-8")
    items.write_bytes(text.replace("\n", "\r\n").encode())
    assert catalogue.load(folder).digest == SHIPPED.digest
    items.write_text(text.replace(",U/L,[IU]/L,14,", ",U/L,[IU]/L,13,", 1), encoding="utf-8")
    assert catalogue.load(folder).digest != SHIPPED.digest


@pytest.mark.parametrize(
    ("file", "old", "new", "line", "key"),
    [
        ("items.csv", "1742-6", "1742-5", 7, "loinc"),
        ("items.csv", "1742-6", "1751-7", 7, "loinc"),
        ("items.csv", "L0006,lab", "L0005,lab", 7, "code"),
        ("items.csv", "L0006,lab", "X0006,lab", 7, "code"),
        ("items.csv", "1742-6,U/L,[IU]/L,14", "1742-6,U/Liter,[IU]/L,14", 7, "ucum_unit"),
        ("items.csv", "1742-6,U/L,[IU]/L,14", "1742-6,U/L,IU per L,14", 7, "unit_aliases"),
        ("items.csv", "1742-6,U/L,[IU]/L,14", "1742-6,U/L,[IU]/L,two weeks", 7, "window_days"),
        ("members.csv", "CBC,L0097,白细胞计数", "CBC,L9097,白细胞计数", 2, "item"),
        ("members.csv", "CBC,L0097,白细胞计数", "CBC,L0098,白细胞计数", 2, "name_zh"),
        ("members.csv", "CBC,L0097,白细胞计数,required", "CBC,L0097,白细胞计数,maybe", 2, "role"),
        ("orderables.csv", "2000", "20.00", 2, "price_fen"),
        ("orderables.csv", "CBC,lab", "CBC,food", 2, "category"),
    ],
)
def test_every_fault_names_file_line_and_column(
    tmp_path: Path, file: str, old: str, new: str, line: int, key: str
) -> None:
    folder = tmp_path / "c"
    shutil.copytree(DIRECTORY, folder)
    text = (folder / file).read_text(encoding="utf-8")
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(CatalogueError) as caught:
        catalogue.load(folder)
    assert (file, line, key) in [(p.file, p.line, p.key) for p in caught.value.problems]
    assert f"{file}:{line}: {key}: " in str(caught.value)


def test_the_loinc_notice_is_shipped_with_the_codes() -> None:
    notice = (DIRECTORY / "LICENCE-LOINC.txt").read_text(encoding="utf-8")
    # The attribution the LOINC licence asks for.
    assert "This material contains content from LOINC (http://loinc.org)" in notice
    assert "Regenstrief Institute, Inc." in notice
