"""Values of database columns as text."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from adapters.transports.column_text import text_of


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("0000-00-00", ""),
        ("0000-00-00 00:00:00", ""),
        ("0000-00-00 00:00:00.000000", ""),
        ("0000-00-00 10:00:00", "0000-00-00 10:00:00"),
        ("R1      ", "R1"),
        (Decimal("6.30"), "6.30"),
        (Decimal("1E+3"), "1000"),
        (datetime(2026, 3, 2, 9, 15, tzinfo=UTC), "2026-03-02T09:15:00+00:00"),
        ("王小明".encode("gbk"), "王小明"),
    ],
)
def test_a_value_is_the_text_it_has_in_the_database_and_a_zero_date_is_none(value: Any, text: str) -> None:
    assert text_of(value, "gb18030") == (text, True)
