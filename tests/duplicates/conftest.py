"""Fixtures of the duplicate audit: a county in a database."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from fhir_server.recognition import rules as rules_module


@pytest.fixture
def county(database_url: str) -> Any:
    """A county whose rows stand in a fresh database (county.py)."""
    spec = importlib.util.spec_from_file_location("county", Path(__file__).parents[1] / "recognition" / "county.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.setdefault("county", importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module.County(database_url, rules_module.load())
