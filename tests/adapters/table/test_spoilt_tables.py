"""Tables as people export them: titles, merged cells, several sheets, and what Excel makes of numbers: no value is wrong."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
import xlsxwriter

from adapters.contract import Unreadable
from adapters.convert import convert, recognise, split
from mappings.model import Conversion
from mappings.profile import Profile, load_profiles

COLUMNS = ["病人号", "姓名", "身份证号", "报告单号", "组合", "报告时间", "项目代码", "结果", "单位"]
PLACES = ["PID-3", "PID-5", "PID-19", "OBR-3", "OBR-4.2", "OBR-22", "OBX-3", "OBX-5", "OBX-6"]
ROW = ["P1", "王小明", "", "R1", "血常规", "2026-03-02 09:00", "WBC", "6.30", "10^9/L"]


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    folder: Path = tmp_path_factory.mktemp("profiles")
    columns = ", ".join(f"{place}: {name}" for place, name in zip(PLACES, COLUMNS, strict=True))
    (folder / "east.yaml").write_text(
        f"id: east\norganization: {{name: 东山}}\ntables:\n  - name: lab\n    columns: {{{columns}}}\n"
        "    constants: {OBR-25: F, OBX-11: F}\n    optional: [身份证号]\n",
        "utf-8",
    )
    return load_profiles(folder)["east"]


def row(**changed: str) -> list[str]:
    return [changed.get(name, value) for name, value in zip(COLUMNS, ROW, strict=True)]


def text(*rows: list[str], delimiter: str = ",") -> bytes:
    return "\n".join(delimiter.join(r) for r in rows).encode()


def messages(raw: bytes, profile: Profile) -> list[Conversion]:
    assert recognise(raw, profile) == "table"
    return [convert(m, profile, "table") for m in split(io.BytesIO(raw), "table", profile)]


def values(found: list[Conversion]) -> list[tuple[str, Any]]:
    """Patient's number and value of every result that is stored."""
    out = []
    for one in found:
        if one.held is None:
            (key,) = {
                e.resource["identifier"][0]["value"] for e in one.entries if e.resource["resourceType"] == "Patient"
            }
            for e in one.entries:
                if e.resource["resourceType"] == "Observation":
                    quantity = e.resource.get("valueQuantity")
                    out.append((key, str(quantity["value"]) if quantity else e.resource.get("valueString")))
    return out


def held(found: list[Conversion]) -> list[tuple[str, str]]:
    return [(one.held.key, one.held.where) for one in found if one.held is not None]


def book(*sheets: list[list[str]], merged: str = "", since_1904: bool = False) -> bytes:
    out = io.BytesIO()
    with xlsxwriter.Workbook(out, {"in_memory": True, "date_1904": since_1904}) as made:
        for cells in sheets:
            sheet = made.add_worksheet()
            if merged:
                sheet.merge_range(merged, "")
            for number, line in enumerate(cells):
                for column, cell in enumerate(line):
                    if cell:
                        sheet.write_string(number, column, cell)
    return out.getvalue()


def test_a_column_that_is_empty_in_every_row_is_not_missing(profile: Profile) -> None:
    assert values(messages(text(COLUMNS, row(结果="阴性", 单位="")), profile)) == [("P1", None)]


@pytest.mark.parametrize(
    "raw",
    [
        text(["东山县医院检验报告"], COLUMNS, ROW),
        text(["sep=;"], COLUMNS, ROW, delimiter=";"),
        text(["东山县医院,检验报告,2026,03"], COLUMNS, ROW, delimiter="\t"),
        text(COLUMNS, ROW, COLUMNS),
        ('"病人号\n"' + text(COLUMNS, ROW).decode()[len("病人号") :]).encode(),
        text(COLUMNS, ROW, delimiter="\t").decode().encode("utf-16"),
        text(COLUMNS, ["=\"P1\"", *ROW[1:]]),
    ],
)  # fmt: skip
def test_what_stands_around_a_table_does_no_harm(raw: bytes, profile: Profile) -> None:
    assert values(messages(raw, profile)) == [("P1", "6.30")]


@pytest.mark.parametrize("column", ["病人号", "身份证号", "报告单号"])
def test_a_number_that_excel_shortened_belongs_to_nobody(column: str, profile: Profile) -> None:
    found = messages(text(COLUMNS, row(**{column: "9.90121E+17"}), row(病人号="P2", 报告单号="R2")), profile)
    assert held(found) == [("spoilt-cell", f"row[1].{column}")]
    assert values(found) == [("P2", "6.30")]


def test_a_number_with_an_e_in_it_is_a_number(profile: Profile) -> None:
    assert values(messages(text(COLUMNS, row(病人号="3E12")), profile)) == [("3E12", "6.30")]


def test_a_result_in_powers_of_ten_is_a_result(profile: Profile) -> None:
    assert values(messages(text(COLUMNS, row(结果="6.3E-2")), profile)) == [("P1", "0.063")]


def test_an_error_of_a_formula_is_no_result(profile: Profile) -> None:
    assert held(messages(text(COLUMNS, row(结果="#DIV/0!")), profile)) == [("spoilt-cell", "row[1].结果")]


def test_a_row_with_more_cells_than_the_header_is_held_and_the_others_are_not(profile: Profile) -> None:
    shifted = ["P1", "王", *ROW[1:]]
    found = messages(text(COLUMNS, shifted, row(病人号="P2", 报告单号="R2")), profile)
    assert held(found) == [("row-cells", "row[1]")]
    assert values(found) == [("P2", "6.30")]


def test_a_line_of_totals_is_no_patient(profile: Profile) -> None:
    found = messages(text(COLUMNS, ROW, ["合计", "1", *[""] * 7]), profile)
    assert held(found) == [("bad-table", "row[1]")]
    assert values(found) == [("P1", "6.30")]


def test_a_broken_json_line_is_named_by_its_number(profile: Profile) -> None:
    with pytest.raises(Unreadable) as fault:
        messages(b'{"a": 1}\n\n{"a": \n{"a": 3}', profile)
    assert "Line 3" in fault.value.issue.text


def test_a_cell_merged_over_the_rows_of_a_patient_counts_for_each(profile: Profile) -> None:
    raw = book([COLUMNS, ROW, ["", *row(项目代码="HGB", 结果="130")[1:]]], merged="A2:A3")
    assert values(messages(raw, profile)) == [("P1", "6.30"), ("P1", "130")]


def test_every_sheet_with_the_columns_is_read_and_notes_are_not(profile: Profile) -> None:
    raw = book(
        [["说明"], ["导出人", "李"]],
        [["东山县医院"], COLUMNS, ROW],
        [COLUMNS, row(病人号="P2", 报告单号="R2", 结果="4.1")],
    )
    assert values(messages(raw, profile)) == [("P1", "6.30"), ("P2", "4.1")]


def written(name: str, *, formula: str = "", reading: str = "") -> bytes:
    """A workbook as some libraries write it: the name of the sheet's file, a formula for the value, pinyin above the name."""
    cells = [f"<c t='inlineStr'><is><t>{c}</t></is></c>" for c in COLUMNS]
    line = [f"<c t='inlineStr'><is><t>{c}</t></is></c>" for c in ROW]
    line[1] = "<c t='s'><v>0</v></c>"
    line[7] = f"<c>{formula}</c>" if formula else line[7]
    sheet = f"<worksheet><sheetData><row>{''.join(cells)}</row><row>{''.join(line)}</row></sheetData></worksheet>"
    shared = f"<sst><si><r><t>王</t></r><r><t>小明</t></r>{reading}</si></sst>"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        made.writestr(name, sheet)
        made.writestr("xl/SharedStrings.xml", shared)
    return out.getvalue()


@pytest.mark.parametrize("name", ["xl/worksheets/sheet.xml", "xl\\worksheets\\Sheet1.xml", "xl/worksheets/lab.xml"])
def test_a_sheet_is_found_whatever_a_library_calls_its_file(name: str, profile: Profile) -> None:
    assert values(messages(written(name), profile)) == [("P1", "6.30")]


def test_pinyin_above_a_name_is_no_part_of_it(profile: Profile) -> None:
    reading = "<rPh sb='0' eb='1'><t>wangxiaoming</t></rPh><phoneticPr fontId='1'/>"
    (found,) = messages(written("xl/worksheets/sheet1.xml", reading=reading), profile)
    (patient,) = (e.resource for e in found.entries if e.resource["resourceType"] == "Patient")
    assert patient["name"][0]["text"] == "王小明"


def test_a_formula_nobody_has_counted_is_no_result_and_its_stored_value_is_one(profile: Profile) -> None:
    for formula, told in (("<f>3*2.1</f>", [("spoilt-cell", "row[1].结果")]), ("<f>3*2.1</f><v>6.3</v>", [])):
        found = messages(written("xl/worksheets/sheet1.xml", formula=formula), profile)
        assert held(found) == told
        assert values(found) == ([] if told else [("P1", "6.3")])


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        (book([COLUMNS, ROW], [COLUMNS[:-1], ROW[:-1]]), "missing-columns"),
        (book([COLUMNS, ROW], since_1904=True), "bad-table"),
    ],
)
def test_a_workbook_that_cannot_be_read_whole_is_refused(raw: bytes, key: str, profile: Profile) -> None:
    with pytest.raises(Unreadable) as fault:
        messages(raw, profile)
    assert fault.value.issue.key == key


def test_two_numbers_of_one_item_are_not_both_results(profile: Profile) -> None:
    versions = [row(结果=value) for value in ("6.30", "3.60", "6.30")]
    found = messages(text(COLUMNS, *versions, row(报告单号="R2", 结果="5")), profile)
    assert held(found) == [("item-twice", "row[2]")]
    assert values(found) == [("P1", "5")]
    # Lines of a text are one after the other, and other items and reports are others.
    assert values(messages(text(COLUMNS, row(结果="第一行"), row(结果="第二行")), profile)) == [
        ("P1", "第一行"),
        ("P1", "第二行"),
    ]
    assert (
        len(
            values(messages(text(COLUMNS, row(), row(项目代码="RBC", 结果="4.1"), row(组合="复查", 结果="5")), profile))
        )
        == 3
    )


def test_a_row_that_stands_twice_in_a_report_counts_once_and_is_told(profile: Profile) -> None:
    (found,) = messages(text(COLUMNS, row(), row(项目代码="RBC", 结果="6.4"), row()), profile)
    assert values([found]) == [("P1", "6.30"), ("P1", "6.4")]
    assert [i.where for i in found.issues if i.key == "row-twice"] == ["row[3]"]


def test_of_two_files_about_one_report_the_one_that_came_later_counts(profile: Profile) -> None:
    """The report time stayed the same, as in most exports: the time of arrival decides."""
    ((early,), (late,)) = (
        [convert(m, profile, "table", at) for m in split(io.BytesIO(text(COLUMNS, row(结果=value))), "table", profile)]
        for value, at in (("6.30", "2026-03-03T08:00:00+08:00"), ("5.10", "2026-03-04T08:00:00+08:00"))
    )
    for kind in ("Observation", "DiagnosticReport", "Patient"):
        before, after = (
            next(e.recency for e in one.entries if e.resource["resourceType"] == kind) for one in (early, late)
        )
        assert (before.tier, before.reported_at, before.sent_at) < (after.tier, after.reported_at, after.sent_at)
