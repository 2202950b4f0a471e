"""mappings.polls: faults of a profile by file and line, and watermarks as text."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from mappings import polls
from mappings.facility import Watermark
from mappings.profile import ProfileError, load_profiles

HEAD = "id: delta\norganization: {name: 丁镇卫生院}\ntables:\n  - {name: lab, columns: {PID-3: 病人号}}\npolls:\n"
SHANGHAI = ZoneInfo("Asia/Shanghai")


@pytest.mark.parametrize(
    ("poll", "words"),
    [
        ("table: nothing, report: [a], watermark: {column: t}", "polls.0.table: 'nothing' is not one of tables (lab)"),
        ("table: lab, report: [a]", "needs one of watermark and flag"),
        ("table: lab, report: [a], flag: {column: f, unread: 0, read: 1}", "needed to set the flag"),
        ("table: lab, report: [a], key: [a], flag: {column: f, unread: 0, read: 0}", "same as unread"),
        ("table: lab, report: [a, a], watermark: {column: t}", "stands twice"),
        ("table: lab, report: [a], watermark: {column: t, kind: text, format: ddMMyyyy}", "do not sort"),
        ("table: lab, report: [a], watermark: {column: t, since: yesterday}", "is not a value of a watermark"),
        ("table: lab, report: [a], latin1: true, watermark: {column: t}", "needs the facility's charset"),
    ],
)
def test_a_poll_that_cannot_work_is_named_with_file_and_line(poll: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "delta.yaml").write_text(f"{HEAD}  - {{name: lis, database: east, source: v, {poll}}}\n", "utf-8")
    with pytest.raises(ProfileError) as told:
        load_profiles(tmp_path)
    assert "delta.yaml:6" in str(told.value)
    assert words in str(told.value)


def test_watermarks_are_kept_as_text_that_sorts_as_they_do() -> None:
    time, number = Watermark(column="t"), Watermark(column="n", kind="number")
    marks = [datetime(2026, 3, 1, 1, tzinfo=UTC), datetime(2026, 3, 1, 10, tzinfo=SHANGHAI)]
    assert [polls.read(time, polls.written(m)) for m in marks] == marks
    for line in (marks, [9, 10, 100], [date(2026, 2, 28), date(2026, 3, 1)]):
        assert [polls.written(m) for m in line] == sorted(polls.written(m) for m in line)
    assert polls.read(number, polls.written(10)) == 10


def test_the_overlap_reaches_back_in_the_unit_of_the_column() -> None:
    text = Watermark(column="t", kind="text", format="yyyyMMddHHmmss", overlap=60)
    assert polls.before(text, "20260301000030") == "20260228235930"
    assert polls.before(Watermark(column="n", kind="number", overlap=50), 20) == 0
    assert polls.before(Watermark(column="d", overlap=1), date(2026, 3, 1)) == date(2026, 2, 28)


def test_a_watermark_in_the_future_counts_as_now() -> None:
    now = datetime(2026, 3, 1, 4, 0, tzinfo=UTC)
    text = Watermark(column="t", kind="text", format="yyyyMMddHHmmss")
    assert polls.capped(text, "20990101000000", now, SHANGHAI) == "20260301120000"
    assert polls.capped(Watermark(column="t"), date(2099, 1, 1), now, SHANGHAI) == date(2026, 3, 1)


@pytest.mark.parametrize("value", [7, 7.0, Decimal(7), Decimal("7.00")])
def test_a_whole_number_is_a_watermark_whatever_the_type_of_its_column(value: object) -> None:
    assert polls.value_of(Watermark(column="n", kind="number"), value) == 7


@pytest.mark.parametrize("value", [None, 3.5, -1, Decimal("NaN"), float("inf"), "7"])
def test_what_is_no_whole_number_is_no_watermark_of_numbers(value: object) -> None:
    assert polls.value_of(Watermark(column="n", kind="number"), value) is None


@pytest.mark.parametrize("value", [None, "0000-00-00 00:00:00", 3.5, True])
def test_what_cannot_be_compared_is_no_watermark(value: object) -> None:
    assert polls.value_of(Watermark(column="t"), value) is None
