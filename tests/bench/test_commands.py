"""``tongjian bench``: what needs no database runs at a small size and gives the figures under the promised names; no time is judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fhir_server.bench.commands import TARGETS, bench


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a bench in an empty folder; gives its JSON lines."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> list[dict[str, Any]]:
        done = CliRunner().invoke(bench, [*words, "--json"])
        assert done.exit_code == 0, done.output
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def test_convert_gives_speed_and_growth_and_other_readers(run: Any) -> None:
    (figures,) = run("convert", "--messages", "8")
    assert figures["bench"] == "convert"
    for key in (
        "messages_per_s_per_core",
        "us_per_obx_10",
        "us_per_obx_100",
        "us_per_obx_1000",
        "cda_documents_per_s_per_core",
        "aecg_documents_per_s_per_core",
    ):
        assert figures[key] > 0
    for key in ("reader_messages_per_s", "python_hl7_messages_per_s", "hl7apy_messages_per_s"):
        assert figures[key] > 0


def test_figures_are_a_table_without_json() -> None:
    done = CliRunner().invoke(bench, ["convert", "--messages", "4"])
    assert done.exit_code == 0
    assert "messages_per_s_per_core" in done.stdout
    assert ">= 500" in done.stdout, "the must stands beside the figure"


def test_musts_name_figures_of_benches_that_exist() -> None:
    assert {key.partition(".")[0] for key in TARGETS} <= {
        c.name or c.callback.__name__ for c in bench.registered_commands if c.callback
    }
