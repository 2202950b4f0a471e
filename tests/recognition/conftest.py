"""A small world for recognition: two consortium facilities, one outsider, and results that would be recognized as they are."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from fhir_server.recognition import rules as rules_module
from fhir_server.recognition.criteria import Candidate
from fhir_server.recognition.order import Order
from fhir_server.recognition.rules import Rules

NOW = datetime(2025, 11, 21, 9, 0, tzinfo=UTC)


@pytest.fixture
def now() -> datetime:
    """The order's time."""
    return NOW


@pytest.fixture(scope="session")
def rules() -> Rules:
    """The shipped rules; county and north are in one consortium, town is in another, loner is in none."""
    return replace(rules_module.load(), members={"county": "c1", "north": "c1", "town": "c2"})


@pytest.fixture
def order(rules: Rules) -> Callable[..., Order]:
    """An order of the county hospital for a person linked to ``p-1``."""

    def make(orderable: str = "RENAL", **changes: Any) -> Order:
        return replace(Order(rules.orderables[orderable], "county", "pat-county", "p-1"), **changes)

    return make


@pytest.fixture
def result(rules: Rules) -> Callable[..., Candidate]:
    """A result of the north township one day old that meets every criterion for its item."""

    def make(item: str, /, **changes: Any) -> Candidate:
        wanted = rules.items[item]
        good = Candidate(
            id=f"o-{item}",
            version=1,
            patient="pat-north",
            person="p-1",
            grade="certain",
            report="rep-1",
            facility="north",
            performer="north",
            item=item,
            loinc=wanted.loinc,
            code="K1",
            name=wanted.name_zh,
            specimen=wanted.specimens[0] if wanted.specimens else None,
            number=Decimal("6.30") if wanted.unit else None,
            value_text=None if wanted.unit else "阴性",
            unit=wanted.unit or None,
            unit_text=wanted.unit or None,
            status="final",
            effective=NOW - timedelta(days=1),
            issued=NOW - timedelta(hours=23),
            recorded=NOW - timedelta(hours=22),
        )
        return good._replace(**changes)

    return make


@pytest.fixture
def county(database_url: str) -> Any:
    """A county whose rows stand in a fresh database (county.py)."""
    spec = importlib.util.spec_from_file_location("county", Path(__file__).parent / "county.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.setdefault("county", importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module.County(database_url, rules_module.load())
