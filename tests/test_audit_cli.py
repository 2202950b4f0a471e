"""``tongjian audit`` as an auditor calls it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fhir_server.cli import cli


def test_a_filter_that_leaves_nothing_is_said_apart_from_having_no_repeats(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TONGJIAN_DATABASE_URL", database_url)
    asked = ["audit", "--from", "2025-01-01", "--to", "2025-02-01", "--format", "csv", "--data", str(tmp_path)]
    everything = CliRunner().invoke(cli, asked)
    assert (everything.exit_code, "--facility is the id of a profile" in everything.stderr) == (0, False)
    misspelt = CliRunner().invoke(cli, [*asked, "--facility", "county-hospitall"])
    assert (misspelt.exit_code, "--facility is the id of a profile" in misspelt.stderr) == (0, True)
    assert misspelt.stdout.splitlines()[0].startswith("facility,orderable")
