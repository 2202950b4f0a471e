"""Local codes. Sources: marks 国卫医发〔2022〕6号 (<scope>HR); the rest is this project's rule: a code decides, nothing is guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from mappings import catalogue
from mappings.codes import clean_name, prices, read_orders, read_tests
from mappings.csv_rows import Problem

CATALOGUE = catalogue.shipped()
ALT, AST, UREA, BUN = "L0006", "L0007", "L0016", "L0017"


def file_of(folder: Path, text: str, name: str = "tests.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("sent", "name", "mark"),
    [
        ("【全国HR】总胆红素", "总胆红素", "全国HR"),
        ("[HR]ALT", "ALT", "HR"),
        ("［HR］ALT", "ALT", "HR"),
        ("*谷丙转氨酶", "谷丙转氨酶", "*"),
        ("＊血糖", "血糖", "*"),
        ("★总胆红素", "总胆红素", "★"),
        ("▲ALT", "ALT", "▲"),
        ("总胆红素【鄂HR】", "总胆红素", "鄂HR"),
        ("总胆红素（鄂HR）", "总胆红素", "鄂HR"),
        ("全国HR 总胆红素", "总胆红素", "全国HR"),
        ("武汉市HR-白蛋白", "白蛋白", "武汉市HR"),
        ("★【鄂HR】白蛋白", "白蛋白", "★ 鄂HR"),
        ("总胆红素*", "总胆红素", "*"),
        ("（京津冀HR）白蛋白", "白蛋白", "京津冀HR"),
        ("ＡＬＴ", "ALT", ""),
        ("  白  蛋白 ", "白 蛋白", ""),
        ("(北京市西城区HR)钾", "钾", "北京市西城区HR"),
    ],
)
def test_takes_marks_off_a_name(sent: str, name: str, mark: str) -> None:
    assert clean_name(sent) == (name, mark)


@pytest.mark.parametrize(
    "name", ["HR", "心率(HR)", "静息HR", "NEUT#", "LYMPH%", "*", "脂蛋白(a)", "葡萄糖(血糖)", "PT-INR", "Max HR"]
)
def test_leaves_names_alone_that_only_look_marked(name: str) -> None:
    assert clean_name(name) == (name, "")


def test_finds_a_test_by_its_code_with_or_without_mark(tmp_path: Path) -> None:
    problems: list[Problem] = []
    table = read_tests(file_of(tmp_path, f"code,name,item\n谷丙转氨酶,谷丙转氨酶|ALT,{ALT}\n"), CATALOGUE, problems)
    assert not problems
    for code in ("谷丙转氨酶", "*谷丙转氨酶", "【全国HR】谷丙转氨酶"):
        found = table.find(code)
        assert found.mapping is not None
        assert (found.mapping.item, found.mapping.loinc, found.mapping.unit, found.by) == (ALT, "1742-6", "U/L", "code")
    assert table.find("*谷丙转氨酶", "谷丙转氨酶【全国HR】").mark == "全国HR *"


def test_a_name_is_asked_only_when_no_code_was_sent(tmp_path: Path) -> None:
    table = read_tests(
        file_of(tmp_path, f"code,name,item\nA1,谷丙转氨酶|ALT,{ALT}\n,谷草转氨酶,{AST}\n"), CATALOGUE, []
    )
    by_name = table.find("", "ＡＬＴ")
    assert by_name.mapping is not None
    assert (by_name.mapping.item, by_name.by) == (ALT, "name")
    assert table.lookup("", "谷草转氨酶") is not None
    assert table.lookup("A2", "谷丙转氨酶") is None
    assert table.lookup("", "") is None


def test_code_and_name_of_different_items_are_a_conflict_and_not_mapped(tmp_path: Path) -> None:
    table = read_tests(file_of(tmp_path, f"code,name,item\nA1,谷丙转氨酶,{ALT}\nA2,谷草转氨酶,{AST}\n"), CATALOGUE, [])
    found = table.find("A1", "谷草转氨酶")
    assert found.mapping is None
    assert found.conflict
    assert table.find("A1", "something else").mapping is not None


def test_codes_are_told_apart_by_case(tmp_path: Path) -> None:
    table = read_tests(file_of(tmp_path, f"code,name,item\nALT,,{ALT}\n"), CATALOGUE, [])
    assert table.lookup("alt") is None


def test_a_code_used_again_means_what_it_meant_on_the_day(tmp_path: Path) -> None:
    text = f"code,name,item,valid_from,valid_to\n1201,尿素氮,{BUN},,2023-12-31\n1201,尿素,{UREA},2024-01-01,\n"
    table = read_tests(file_of(tmp_path, text), CATALOGUE, [])
    old, new = table.lookup("1201", "", "2023-12-31"), table.lookup("1201", "", "2024-01-01T08:00:00+08:00")
    assert old is not None
    assert new is not None
    assert (old.item, new.item) == (BUN, UREA)
    # Without a date it is not known which was meant.
    assert table.lookup("1201") is None


def test_every_fault_is_found_with_file_and_line(tmp_path: Path) -> None:
    text = (
        "# a comment line\n"
        "code,name,item,valid_from,valid_to,note\n"
        f"A1,谷丙转氨酶,{ALT},,,\n"
        "A2,x,L9999,,,\n"
        f",,{ALT},,,\n"
        f"A3,x,{ALT},2024-02-31,,\n"
        f"A4,x,{ALT},2024-02-01,2024-01-01,\n"
        f"A1,y,{AST},2024-01-01,,\n"
        f"A5,x,{ALT},,,,,\n"
    )
    problems: list[Problem] = []
    read_tests(file_of(tmp_path, text), CATALOGUE, problems)
    assert [(p.file, p.line, p.key) for p in problems] == [
        ("tests.csv", 9, ""),
        ("tests.csv", 4, "item"),
        ("tests.csv", 5, "code"),
        ("tests.csv", 6, "valid_from"),
        ("tests.csv", 7, "valid_to"),
        ("tests.csv", 8, "code"),
    ]
    assert "line 3" in problems[-1].text


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("code,name\nA,b\n", "item"),
        ("code,name,item,colour\nA,b,L0006,red\n", "colour"),
        ("", ""),
        ("code,code,name,item\n", ""),
    ],
)
def test_a_wrong_header_is_named(tmp_path: Path, text: str, key: str) -> None:
    problems: list[Problem] = []
    read_tests(file_of(tmp_path, text), CATALOGUE, problems)
    assert problems[0].key == key


def test_a_file_that_is_missing_or_not_utf8_is_named(tmp_path: Path) -> None:
    problems: list[Problem] = []
    read_tests(tmp_path / "none.csv", CATALOGUE, problems)
    (tmp_path / "gbk.csv").write_bytes("code,name,item\nA,谷丙,L0006\n".encode("gb18030"))
    read_tests(tmp_path / "gbk.csv", CATALOGUE, problems)
    assert ["cannot be read" in problems[0].text, problems[1].text] == [True, "is not UTF-8"]


def test_orders_lead_to_orderables_with_the_facilitys_own_price(tmp_path: Path) -> None:
    problems: list[Problem] = []
    text = "code,name,orderable,price_fen\nXCG,血常规,CBC,1800\nGG,肝功能,LIVER,\n"
    table = read_orders(file_of(tmp_path, text, "orders.csv"), CATALOGUE, problems)
    assert not problems
    found = table.lookup("XCG", "血常规")
    assert found is not None
    assert (found.orderable, found.price, found.display) == ("CBC", 1800, "血常规")
    assert prices(table) == {"CBC": 1800}


def test_two_prices_for_one_orderable_are_no_price(tmp_path: Path) -> None:
    text = "code,name,orderable,price_fen,valid_from,valid_to\nA,,CBC,1800,,2023-12-31\nB,,CBC,2000,2024-01-01,\n"
    table = read_orders(file_of(tmp_path, text, "orders.csv"), CATALOGUE, [])
    assert prices(table) == {}
    assert prices(table, "2023-06-01") == {"CBC": 1800}


def test_faulty_orders_are_named(tmp_path: Path) -> None:
    problems: list[Problem] = []
    read_orders(
        file_of(tmp_path, "code,name,orderable,price_fen\nA,a,NONE,\nB,b,CBC,18.00\n", "orders.csv"),
        CATALOGUE,
        problems,
    )
    assert [(p.line, p.key) for p in problems] == [(2, "orderable"), (3, "price_fen")]
