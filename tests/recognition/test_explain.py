"""Sentences for a clinician: right, short, in both languages, and never markup from a sender."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from fhir_server.recognition.criteria import JUDGES
from fhir_server.recognition.decide import decide
from fhir_server.recognition.explain import CRITERIA, Language, Names, detail, summary
from fhir_server.recognition.order import Order
from fhir_server.recognition.rules import Rules
from mappings.catalogue import Orderable

Make = Callable[..., Any]
NAMES = Names(
    {"north": "北岭镇卫生院", "south": "南河镇卫生院"},
    {"north": "Beiling Township Health Centre"},
    ZoneInfo("Asia/Shanghai"),
)


@pytest.fixture
def rows(rules: Rules, result: Make) -> list[Any]:
    return [result(i) for i in rules.orderables["RENAL"].required]


def test_a_recognized_panel_names_facility_day_and_number_of_items(
    rules: Rules, order: Make, rows: list[Any], now: datetime
) -> None:
    decision = decide(order(), rows, rules, now)
    # Collected 2025-11-20 09:00 UTC, 17:00 in Shanghai.
    assert summary(decision, NAMES, "zh") == "北岭镇卫生院 11月20日 肾功能(3项)在有效期内,可互认"
    assert summary(decision, NAMES, "en") == (
        "Renal function panel (3 items) from Beiling Township Health Centre 2025-11-20 is inside its window and can be recognized"
    )


def test_the_day_is_the_local_one(rules: Rules, order: Make, rows: list[Any], now: datetime) -> None:
    late = [c._replace(effective=datetime.fromisoformat("2025-11-20T23:30:00+00:00")) for c in rows]
    assert "11月21日" in summary(decide(order(), late, rules, now), NAMES, "zh")


def test_results_of_several_facilities_and_days_are_summed_up(
    rules: Rules, order: Make, rows: list[Any], now: datetime
) -> None:
    mixed = [rows[0]._replace(facility="county"), rows[1]._replace(effective=now - timedelta(days=3)), rows[2]]
    text = summary(decide(order(), mixed, rules, now), NAMES, "zh")
    assert text == "county等2家机构 11月18日至11月20日 肾功能(3项)在有效期内,可互认"


def test_a_partial_panel_names_what_is_missing(rules: Rules, order: Make, rows: list[Any], now: datetime) -> None:
    decision = decide(order(), rows[1:], rules, now)
    assert summary(decision, NAMES, "zh") == "肾功能3项中2项有近期结果可参考(北岭镇卫生院 11月20日),缺尿素"
    assert "2 of 3 items" in summary(decision, NAMES, "en")


def test_an_unknown_unit_is_the_reason_given(rules: Rules, order: Make, rows: list[Any], now: datetime) -> None:
    decision = decide(order(), [rows[0]._replace(unit=None), *rows[1:]], rules, now)
    assert "单位不明" in summary(decision, NAMES, "zh")
    assert "unit unknown" in summary(decision, NAMES, "en")


def test_an_emergency_says_that_there_is_no_duty(rules: Rules, order: Make, rows: list[Any], now: datetime) -> None:
    assert summary(decide(order(emergency=True), rows, rules, now), NAMES, "zh").startswith("急诊情形不要求互认")


def test_nothing_recognizable_and_not_covered_say_so(rules: Rules, order: Make, rows: list[Any], now: datetime) -> None:
    old = [c._replace(effective=now - timedelta(days=400)) for c in rows]
    assert summary(decide(order(), old, rules, now), NAMES, "zh") == "肾功能没有可互认的既往结果(时限不符)"
    assert (
        summary(decide(order(), [], rules, now), NAMES, "en")
        == "No earlier result of Renal function panel can be recognized"
    )
    unknown = Order(None, "county", code="TJTC", name="体检套餐")
    assert summary(decide(unknown, [], rules, now), NAMES, "zh") == "体检套餐不在互认目录内"


@pytest.mark.parametrize("language", ["zh", "en"])
def test_a_sentence_stays_under_140_characters(rules: Rules, result: Make, now: datetime, language: Language) -> None:
    long = Orderable("X", "lab", "很长的名称" * 60, "A very long name " * 20, ("L0016", "L0018"))
    order = Order(long, "county", "pat-county", "p-1", name="n" * 500)
    for rows in (
        [result("L0016"), result("L0018")],
        [result("L0016")],
        [],
        [result("L0016", unit=None), result("L0018")],
    ):
        assert 0 < len(summary(decide(order, rows, rules, now), NAMES, language)) < 140
    assert len(summary(decide(replace(order, orderable=None), [], rules, now), NAMES, language)) < 140


def test_the_detail_is_a_table_with_value_place_time_and_finding(
    rules: Rules, order: Make, rows: list[Any], now: datetime
) -> None:
    text = detail(decide(order(), [rows[0], rows[1]._replace(unit=None)], rules, now), rules, NAMES, "zh")
    lines = text.splitlines()
    assert lines[0] == "| 项目 | 结果 | 机构 | 时间 | 结论 |"
    assert lines[2] == "| 尿素 | 6.30 mmol/L | 北岭镇卫生院 | 2025-11-20 17:00 | 可互认,已过1.0天,时限7天 |"
    assert lines[3] == "| 肌酐 | 6.30 umol/L | 北岭镇卫生院 | 2025-11-20 17:00 | 仅供参考,已过1.0天,时限7天: 单位不明 |"
    assert lines[4] == "| 尿酸 | - | - | - | 无既往结果 |"


def test_nothing_is_told_of_a_result_that_is_not_surely_this_persons(
    rules: Rules, order: Make, rows: list[Any], now: datetime
) -> None:
    unsure = [c._replace(grade="probable") for c in rows]
    for language in ("zh", "en"):
        with_them, without = (decide(order(), found, rules, now) for found in (unsure, []))
        assert summary(with_them, NAMES, language) == summary(without, NAMES, language)
        assert detail(with_them, rules, NAMES, language) == detail(without, rules, NAMES, language)


def test_the_detail_says_what_it_rests_on(rules: Rules, order: Make, rows: list[Any], now: datetime) -> None:
    decision = decide(order(), rows, rules, now)
    last = detail(decision, rules, NAMES, "zh").splitlines()[-1]
    assert last.startswith("依据:紧密型县域医共体内互认;国卫医发〔2022〕6号;")
    assert rules.version in last
    assert "本项目规则" not in last
    assert detail(decision, rules, NAMES, "en").splitlines()[-1].startswith("Basis: Inside one county")


def test_text_of_a_sender_does_not_become_markup(rules: Rules, order: Make, rows: list[Any], now: datetime) -> None:
    nasty = rows[0]._replace(unit_text="x|y\n[a](http://b)<script>")
    text = detail(decide(order(), [nasty, *rows[1:]], rules, now), rules, NAMES, "zh")
    assert len(text.splitlines()) == 7
    assert "<script>" not in text
    assert "\\|" in text


def test_every_criterion_has_a_name_in_both_languages() -> None:
    assert set(CRITERIA) == set(JUDGES)
    assert all(names["zh"] and names["en"] for names in CRITERIA.values())
