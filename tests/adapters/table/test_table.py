"""Tables by header contract: one result whatever the file, and files made to hurt are refused with the reason."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import xlsxwriter

from adapters.contract import Unreadable
from adapters.convert import convert, recognise, split
from adapters.table import workbook
from adapters.table.rows import read_rows
from mappings.model import Conversion
from mappings.profile import Profile, ProfileError, load_profiles

GOLDEN = Path(__file__).parents[2] / "mappings" / "golden"
LINES = [
    [
        "病人号",
        "姓名",
        "性别",
        "出生日期",
        "报告单号",
        "组合",
        "采样时间",
        "报告时间",
        "项目代码",
        "项目名称",
        "结果",
        "单位",
    ],
    [
        "P1",
        "王小明",
        "男",
        "1980-01-02",
        "R1",
        "血常规",
        "2026-03-02 08:00",
        "2026-03-02 09:00",
        "WBC",
        "白细胞计数",
        "6.30",
        "10^9/L",
    ],
    [
        "P1",
        "王小明",
        "男",
        "1980-01-02",
        "R1",
        "血常规",
        "2026-03-02 08:00",
        "2026-03-02 09:00",
        "HGB",
        "血红蛋白",
        "130",
        "g/L",
    ],
    [
        "P2",
        "李四",
        "女",
        "1975-05-06",
        "R2",
        "血常规",
        "2026-03-02 08:10",
        "2026-03-02 09:00",
        "WBC",
        "白细胞计数",
        "4.10",
        "10^9/L",
    ],
]
ROWS = [dict(zip(LINES[0], line, strict=True)) for line in LINES[1:]]


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profiles(GOLDEN / "profiles")["village-table"]


def as_tsv() -> bytes:
    return "\r\n".join("\t".join(line) for line in LINES).encode("utf-8-sig")


def as_csv() -> bytes:
    return "\n".join(";".join(f'"{c}"' for c in line) for line in LINES).encode("gb18030")


def as_xlsx() -> bytes:
    file = io.BytesIO()
    book = xlsxwriter.Workbook(file)
    sheet = book.add_worksheet()
    for number, line in enumerate(LINES):
        for column, cell in enumerate(line):
            sheet.write_string(number, column, cell)
    book.close()
    return file.getvalue()


def as_json() -> bytes:
    return json.dumps(ROWS, ensure_ascii=False).encode()


def as_json_lines() -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()


def as_xml() -> bytes:
    rows = "".join("<row>" + "".join(f"<{k}>{v}</{k}>" for k, v in row.items()) + "</row>" for row in ROWS)
    return f'<?xml version="1.0" encoding="UTF-8"?><rows>{rows}</rows>'.encode()


def converted(raw: bytes, profile: Profile) -> list[Conversion]:
    kind = recognise(raw, profile)
    assert kind == "table"
    return [convert(message, profile, kind) for message in split(io.BytesIO(raw), kind, profile)]


def facts(found: list[Conversion]) -> list[tuple[str, str, str]]:
    """(report number, item, value) of all results, with the ids that were derived."""
    out = []
    for one in found:
        assert one.held is None
        (report,) = [e.resource for e in one.entries if e.resource["resourceType"] == "DiagnosticReport"]
        for e in one.entries:
            if e.resource["resourceType"] == "Observation":
                out.append(
                    (report["identifier"][0]["value"], e.resource["id"], str(e.resource["valueQuantity"]["value"]))
                )
    return out


@pytest.mark.parametrize("make", [as_csv, as_xlsx, as_json, as_json_lines, as_xml])
def test_the_same_rows_are_the_same_results_in_every_kind_of_file(make: Callable[[], bytes], profile: Profile) -> None:
    expected = facts(converted(as_tsv(), profile))
    assert [(number, value) for number, _, value in expected] == [("R1", "6.30"), ("R1", "130"), ("R2", "4.10")]
    assert facts(converted(make(), profile)) == expected


def test_numbers_and_days_of_excel_are_read_as_excel_shows_them(profile: Profile) -> None:
    file = io.BytesIO()
    book = xlsxwriter.Workbook(file)
    sheet = book.add_worksheet()
    for column, name in enumerate(LINES[0]):
        sheet.write_string(0, column, name)
    # 46083.375 is 2026-03-02 09:00 (day 1 is 1900-01-01, with the leap day of 1900 that never was); 29222 is 1980-01-02.
    for column, cell in enumerate(
        ["P1", "王", "男", 29222, "R1", "血常规", 46083.375, 46083.5, "WBC", "白细胞计数", 6.2999999999999998, "10^9/L"]
    ):
        sheet.write(1, column, cell)
    book.close()
    (found,) = converted(file.getvalue(), profile)
    by = {e.resource["resourceType"]: e.resource for e in found.entries}
    assert by["Patient"]["birthDate"] == "1980-01-02"
    assert by["DiagnosticReport"]["effectiveDateTime"] == "2026-03-02T09:00:00+08:00"
    assert str(by["Observation"]["valueQuantity"]["value"]) == "6.3"


def test_json_numbers_keep_their_digits() -> None:
    assert read_rows(b'[{"a": 6.30, "b": 1e3, "c": true, "d": null}]', "").rows == [
        {"a": "6.30", "b": "1e3", "c": "true"}
    ]


def refused(raw: bytes, profile: Profile) -> str:
    with pytest.raises(Unreadable) as fault:
        kind = recognise(raw, profile)
        for message in split(io.BytesIO(raw), kind, profile):
            convert(message, profile, kind)
    return fault.value.issue.key


def test_a_missing_column_is_named(profile: Profile) -> None:
    raw = as_tsv().replace("结果\t单位".encode(), "結果\t单位".encode())
    with pytest.raises(Unreadable, match="结果"):
        list(converted(raw, profile))


def test_rows_of_one_report_that_name_two_people_hold_that_report_alone(profile: Profile) -> None:
    raw = as_tsv().replace("P1\t王小明\t男".encode(), "P1\t王大明\t男".encode(), 1)
    first, second = converted(raw, profile)
    assert first.held is not None
    assert first.held.key == "rows-disagree"
    assert second.held is None


def test_a_zip_bomb_is_refused_without_being_unpacked(profile: Profile) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("xl/worksheets/sheet1.xml", b"0" * 130_000_000)
    assert len(file.getvalue()) < 200_000
    assert refused(file.getvalue(), profile) == "zip-bomb"


def zipped(sheet: str) -> bytes:
    """A workbook of one sheet, with something in it that cannot be packed."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("xl/worksheets/sheet1.xml", f"<worksheet>{sheet}</worksheet>")
        book.writestr("media/image1.png", random.Random(1).randbytes(20_000))
    return file.getvalue()


@pytest.mark.parametrize(
    "sheet",
    ["<row><c r='ALL1'/></row>" * 120, "<row><c><v>1</v></c></row>" * 400 + "<mergeCell ref='A1:A400'/>" * 400],
)
def test_cells_that_are_only_told_of_count(sheet: str, profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbook, "_MOST_CELLS", 100_000)
    assert refused(zipped(sheet), profile) == "too-large"


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        (b"PK\x03\x04 not a zip", "bad-table"),
        (as_xlsx()[:-10] + b"\xff" * 10, "bad-table"),
        (as_xlsx().replace(b"PK\x01\x02", b"PK\x01\x03"), "bad-table"),
        (b"[" * 100_000, "bad-table"),
        (b'{"a": 1}\n[2]', "bad-table"),
        (b"[]", "bad-table"),
        (b'[{"a": "1", "a": "2"}]', "bad-table"),
        (bytes.fromhex("D0CF11E0A1B11AE1") + bytes(1000), "bad-table"),
        (b'{"table": "lab"', "bad-table"),
        (b'{"table": "other", "rows": [{"a": "1"}]}', "unknown-format"),
    ],
)
def test_damaged_files_say_why(raw: bytes, key: str, profile: Profile) -> None:
    assert refused(raw, profile) == key


def test_a_carriage_return_in_the_header_is_no_fault(profile: Profile) -> None:
    assert recognise(b"a,b\rc,d\x00\r", profile) == "hl7v2"
    assert facts(converted(as_tsv().replace(b"\r\n", b"\r"), profile)) == facts(converted(as_tsv(), profile))


def test_control_characters_and_halves_of_characters_are_left_out() -> None:
    assert read_rows(b'[{"a\\u0001": "6.3\\u0015", "b": "x\\ud800y"}]', "").rows == [{"a": "6.3", "b": "xy"}]


def test_an_entity_inside_a_workbook_is_refused(profile: Profile) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as book:
        book.writestr(
            "xl/worksheets/sheet1.xml",
            '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><worksheet>&x;</worksheet>',
        )
    assert refused(file.getvalue(), profile) == "xml-forbidden"


def test_a_table_nobody_described_is_held_with_the_reason() -> None:
    generic: Mapping[str, Profile] = load_profiles()
    assert refused(as_xlsx(), generic["generic"]) == "unknown-format"


def test_a_wrong_place_in_a_contract_is_named_by_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(
        "id: x\norganization: {name: X}\ntables:\n  - name: lab\n    columns: {OBX5: 结果}\n", encoding="utf-8"
    )
    with pytest.raises(ProfileError, match="OBX5"):
        load_profiles(tmp_path)


NESTED = """<Request><Header><Sender id="HIS">H</Sender></Header>
<Report><Patient><PatientID>P1</PatientID><Name>王一</Name></Patient><Doctor><Name>李四</Name></Doctor><ReportNo>R1</ReportNo>
<Items><Item><ItemCode>WBC</ItemCode><Result>6.30</Result></Item><Item><ItemCode>HGB</ItemCode><Result>130</Result></Item></Items></Report>
<Report><Patient><PatientID>P2</PatientID></Patient><ReportNo>R2</ReportNo><Items/></Report>
<Report><ReportNo>R3</ReportNo><Items><Item><ItemCode>PLT</ItemCode><Result>200</Result></Item></Items></Report></Request>"""


def test_rows_of_xml_know_what_stands_around_them_and_nothing_of_their_neighbours() -> None:
    rows = read_rows(NESTED.encode(), "", ["Item"]).rows
    about = {"PatientID": "P1", "Name": "王一", "ReportNo": "R1"}
    assert [{n: r.get(n) for n in ("ItemCode", "Result", *about)} for r in rows] == [
        {"ItemCode": "WBC", "Result": "6.30", **about},
        {"ItemCode": "HGB", "Result": "130", **about},
        # The third report says no patient: neither the first nor the second is his.
        {"ItemCode": "PLT", "Result": "200", "PatientID": None, "Name": None, "ReportNo": "R3"},
    ]
    assert rows[0]["Sender/@id"] == "HIS"
    assert rows[0]["Doctor/Name"] == "李四"
