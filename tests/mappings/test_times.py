"""Dates and times. Sources: HL7 v2.5.1 chapter 2.A (DT, DTM, TM, TS), FHIR R4 datatypes (date, dateTime, time)."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mappings.times import parse, sortable, time_of_day

SHANGHAI = ZoneInfo("Asia/Shanghai")
# The regular expressions FHIR R4 gives for dateTime and time (http://hl7.org/fhir/R4/datatypes.html#dateTime).
FHIR_DATETIME = re.compile(
    r"([0-9]([0-9]([0-9][1-9]|[1-9]0)|[1-9]00)|[1-9]000)(-(0[1-9]|1[0-2])(-(0[1-9]|[1-2][0-9]|3[0-1])(T([01][0-9]|2[0-3]):[0-5][0-9]:"
    r"([0-5][0-9]|60)(\.[0-9]+)?(Z|(\+|-)((0[0-9]|1[0-3]):[0-5][0-9]|14:00)))?)?)?"
)
FHIR_TIME = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)(\.[0-9]+)?")


@pytest.mark.parametrize(
    ("written", "fhir"),
    [
        ("2024", "2024"),
        ("202403", "2024-03"),
        ("20240318", "2024-03-18"),
        ("2024031811", "2024-03-18T11:00:00+08:00"),
        ("202403181104", "2024-03-18T11:04:00+08:00"),
        ("20240318110405", "2024-03-18T11:04:05+08:00"),
        ("20240318110405.1", "2024-03-18T11:04:05.1+08:00"),
        ("20240318110405.1234", "2024-03-18T11:04:05.1234+08:00"),
        ("20240318110405+0530", "2024-03-18T11:04:05+05:30"),
        ("20240318110405.25-0500", "2024-03-18T11:04:05.25-05:00"),
        ("20240318110405+0000", "2024-03-18T11:04:05+00:00"),
        ("20240318+0800", "2024-03-18"),
    ],
)
def test_reads_every_legal_precision_of_a_v2_time_stamp_and_keeps_it(written: str, fhir: str) -> None:
    moment = parse(written, SHANGHAI)
    assert moment is not None
    assert moment.fhir == fhir


@pytest.mark.parametrize(
    ("written", "fhir"),
    [
        ("2024-03-18 11:04", "2024-03-18T11:04:00+08:00"),
        ("2024-03-18 11:04:05.0", "2024-03-18T11:04:05.0+08:00"),
        ("20240318110405123", "2024-03-18T11:04:05.123+08:00"),
        ("20240318110405000+0000", "2024-03-18T11:04:05.000+00:00"),
        ("2024/3/18", "2024-03-18"),
        ("2024/3/18 9:05:00", "2024-03-18T09:05:00+08:00"),
        ("2024-03-18T11:04:05Z", "2024-03-18T11:04:05Z"),
        ("2024-03-18T11:04:05.123+08:00", "2024-03-18T11:04:05.123+08:00"),
        ("2024.03.18", "2024-03-18"),
        ("2024-03", "2024-03"),
        ("20240318 110405", "2024-03-18T11:04:05+08:00"),
        ("20240318 11:04", "2024-03-18T11:04:00+08:00"),
        ("2024年3月18日", "2024-03-18"),
        ("2024年3月18日 11:04", "2024-03-18T11:04:00+08:00"),
        ("2024年3月18日11时04分", "2024-03-18T11:04:00+08:00"),
        ("２０２４０３１８", "2024-03-18"),
        (" 20240318 ", "2024-03-18"),
    ],
)
def test_reads_what_senders_write_instead(written: str, fhir: str) -> None:
    moment = parse(written, SHANGHAI)
    assert moment is not None
    assert moment.fhir == fhir


@pytest.mark.parametrize(
    "written",
    [
        "",
        "   ",
        '""',
        "0000",
        "00000000",
        "00000000000000",
        "20240231",
        "20230229",
        "20241301",
        "20240001",
        "20240100",
        "2024031811040",
        "202403182500",
        "202403181160",
        "20240318110460",
        "240318",
        "2024031",
        "18/03/2024",
        "03/18/2024",
        "24年3月18日",
        "00010101000000",
        "20240318110405+2500",
        "20240318110405+0860",
        "tomorrow",
        "1710730800000",
        "2024-03-18T",
        "2024--03-18",
        "x" * 100,
    ],
)
def test_reads_nothing_where_the_date_is_impossible_or_not_sure(written: str) -> None:
    assert parse(written, SHANGHAI) is None


def test_says_when_the_zone_was_assumed() -> None:
    assumed, written = parse("20240318110405", SHANGHAI), parse("20240318110405+0800", SHANGHAI)
    assert assumed is not None
    assert written is not None
    assert assumed.zone_assumed
    assert not written.zone_assumed
    assert assumed.instant == written.instant == "2024-03-18T03:04:05.000000Z"


def test_a_date_begins_at_midnight_of_the_facility() -> None:
    moment = parse("20240318", SHANGHAI)
    assert moment is not None
    assert moment.instant == "2024-03-17T16:00:00.000000Z"
    assert moment.date == "2024-03-18"
    assert not moment.has_time


def test_a_two_digit_year_is_this_century_and_flagged_but_never_read_for_a_birth_date() -> None:
    moment = parse("24-03-18", SHANGHAI)
    assert moment is not None
    assert (moment.fhir, moment.century_assumed) == ("2024-03-18", True)
    assert parse("24-03-18", SHANGHAI, birth=True) is None
    assert parse("19240318", SHANGHAI, birth=True) is not None


def test_daylight_saving_of_1988_is_respected() -> None:
    # China had summer time from 1986 to 1991 (tz database, Asia/Shanghai).
    moment = parse("19880601120000", SHANGHAI)
    assert moment is not None
    assert moment.fhir == "1988-06-01T12:00:00+09:00"


def test_without_end_is_a_date_and_its_instant_does_not_overflow() -> None:
    assert parse("99991231", SHANGHAI) is not None
    assert parse("99991231235959-1200", SHANGHAI) is None


@pytest.mark.parametrize(
    ("written", "fhir"),
    [
        ("11", "11:00:00"),
        ("1104", "11:04:00"),
        ("110405.12", "11:04:05.12"),
        ("11:04", "11:04:00"),
        ("110405+0800", "11:04:05"),
    ],
)
def test_reads_times_of_day(written: str, fhir: str) -> None:
    assert time_of_day(written) == fhir
    assert FHIR_TIME.fullmatch(fhir)


@pytest.mark.parametrize("written", ["", "2400", "1160", "110460", "1", "110", "11:4", "noon"])
def test_reads_no_impossible_time_of_day(written: str) -> None:
    assert time_of_day(written) is None


@settings(deadline=None)
@given(st.datetimes(datetime(1950, 1, 1), datetime(2049, 12, 31), timezones=st.just(UTC)))  # noqa: DTZ001
def test_any_instant_survives_being_written_and_read(at: datetime) -> None:
    at = at.replace(microsecond=0)
    written = at.astimezone(SHANGHAI).strftime("%Y%m%d%H%M%S%z")
    moment = parse(written, SHANGHAI)
    assert moment is not None
    assert moment.at == at
    assert moment.instant == sortable(at)
    assert FHIR_DATETIME.fullmatch(moment.fhir)


def test_instants_sort_as_time_does() -> None:
    written = ["20240318110405+0800", "20240318110405+0000", "20240318", "2024", "20240318110405.5+0800"]
    moments = [m for w in written if (m := parse(w, SHANGHAI))]
    assert sorted(moments, key=lambda m: m.instant) == sorted(moments, key=lambda m: m.at)


@settings(deadline=None)
@given(st.text(max_size=30))
def test_any_text_gives_a_valid_fhir_value_or_nothing(text: str) -> None:
    moment = parse(text, SHANGHAI)
    assert moment is None or FHIR_DATETIME.fullmatch(moment.fhir)
    found = time_of_day(text)
    assert found is None or FHIR_TIME.fullmatch(found)
