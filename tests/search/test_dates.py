"""Dates as spans of time (http://hl7.org/fhir/R4/search.html#date)."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhir_server.search.dates import EARLIEST, LATEST, SHANGHAI, period, span, timing

NEW_YORK = ZoneInfo("America/New_York")


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("2024", "2023-12-31T16:00", "2024-12-31T16:00"),
        ("2024-02", "2024-01-31T16:00", "2024-02-29T16:00"),
        ("2024-12", "2024-11-30T16:00", "2024-12-31T16:00"),
        ("2024-02-29", "2024-02-28T16:00", "2024-02-29T16:00"),
        ("2024-05-01T10:00", "2024-05-01T02:00", "2024-05-01T02:01"),
        ("2024-05-01T10:00:07", "2024-05-01T02:00:07", "2024-05-01T02:00:08"),
        ("2024-05-01T10:00:07Z", "2024-05-01T10:00:07", "2024-05-01T10:00:08"),
        ("2024-05-01T10:00:07-05:00", "2024-05-01T15:00:07", "2024-05-01T15:00:08"),
        ("2024-05-01T10:00:07.5Z", "2024-05-01T10:00:07.5", "2024-05-01T10:00:07.6"),
        ("2024-05-01T10:00:07.120Z", "2024-05-01T10:00:07.120", "2024-05-01T10:00:07.121"),
        ("2024-05-01T10:00:07.123456789Z", "2024-05-01T10:00:07.123456", "2024-05-01T10:00:07.123457"),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00", "2017-01-01T00:00:01"),
        # China kept summer time from 1986 to 1991: these days began an hour earlier.
        ("1988-06-01", "1988-05-31T15:00", "1988-06-01T15:00"),
    ],
)
def test_a_date_lasts_as_long_as_it_is_precise(text: str, low: str, high: str) -> None:
    assert span(text, SHANGHAI) == (utc(low), utc(high))


def test_a_day_has_23_hours_when_the_clocks_go_forward() -> None:
    low, high = span("2024-03-10", NEW_YORK)
    assert high - low == timedelta(hours=23)


@pytest.mark.parametrize(
    "text",
    ["", "24", "2024-13", "2024-00", "2024-02-30", "2024-5-1", "2024-05-01T10", "2024-05-01T24:00:00", "2024-05-01 10:00",
     "2024-05-01T10:00:61", "2024-05-01T10:00:00+0800", "now", "２０２４", "2024-05-01T10:00:00.Z", "0000"],
)  # fmt: skip
def test_what_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        span(text, SHANGHAI)


@pytest.mark.parametrize(
    "text",
    ["0001", "0001-01-01", "9999", "9999-12", "9999-12-31", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00"],
)
def test_the_ends_of_the_calendar_do_not_overflow(text: str) -> None:
    for zone in (SHANGHAI, NEW_YORK, UTC):
        low, high = span(text, zone)
        assert EARLIEST <= low <= high <= LATEST


@given(st.datetimes(min_value=datetime(1000, 1, 1), max_value=datetime(9000, 1, 1)))  # noqa: DTZ001
def test_a_coarser_date_contains_the_finer_one(moment: datetime) -> None:
    text = moment.isoformat(timespec="milliseconds")
    spans = [span(text[:length], SHANGHAI) for length in (4, 7, 10, 16, 19, 23)]
    for (low, high), (finer_low, finer_high) in itertools.pairwise(spans):
        assert low <= finer_low < finer_high <= high


def test_an_open_side_of_a_period_reaches_to_the_end_of_time() -> None:
    assert period({"start": "2024"}, UTC) == (utc("2024-01-01"), LATEST)
    assert period({"end": "2024-05"}, UTC) == (EARLIEST, utc("2024-06-01"))
    assert period({}, UTC) is None


def test_of_a_timing_only_the_outer_limits_count() -> None:
    assert timing({"event": ["2024-05-03", "2024-05-01"]}, UTC) == (utc("2024-05-01"), utc("2024-05-04"))
    bounds = {"repeat": {"boundsPeriod": {"start": "2024-05-01", "end": "2024-05-09"}}}
    assert timing(bounds, UTC) == (utc("2024-05-01"), utc("2024-05-10"))
    assert timing({"repeat": {"frequency": 1}}, UTC) is None
