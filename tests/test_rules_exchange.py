"""Rules out and in as files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fhir_server.cli import cli
from fhir_server.recognition import rules
from fhir_server.rules_exchange import export_files, import_files
from mappings import catalogue, sensitive
from mappings.catalogue import CatalogueError


def test_what_goes_out_comes_in_unchanged(tmp_path: Path) -> None:
    export_files(catalogue.DIRECTORY, tmp_path / "out")
    assert import_files(tmp_path / "out", tmp_path / "in", catalogue.DIRECTORY) == rules.load().version


def test_a_changed_window_gives_new_rules(tmp_path: Path) -> None:
    export_files(catalogue.DIRECTORY, tmp_path / "out")
    items = tmp_path / "out" / "items.csv"
    items.write_text(items.read_text("utf-8").replace("22664-7,mmol/L,,7,", "22664-7,mmol/L,,9,", 1), "utf-8")
    version = import_files(tmp_path / "out", tmp_path / "in", catalogue.DIRECTORY)
    assert version != rules.load().version
    assert rules.load(tmp_path / "in").items["L0016"].window_days == 9


def test_a_wrong_row_is_named_with_file_and_line_and_nothing_is_written(tmp_path: Path) -> None:
    export_files(catalogue.DIRECTORY, tmp_path / "out")
    items = tmp_path / "out" / "items.csv"
    items.write_text(items.read_text("utf-8").replace("22664-7,mmol/L,,7,", "22664-7,mmol/L,,soon,", 1), "utf-8")
    with pytest.raises(CatalogueError, match=r"items\.csv:17: window_days"):
        import_files(tmp_path / "out", tmp_path / "in", catalogue.DIRECTORY)
    assert not (tmp_path / "in").exists()
    result = CliRunner().invoke(cli, ["rules", "import", str(tmp_path / "out"), str(tmp_path / "in")])
    assert result.exit_code == 1
    assert "items.csv:17" in result.output


def test_the_catalogue_goes_out_as_fhir(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["rules", "export", str(tmp_path / "fhir"), "--format", "fhir"])
    assert result.exit_code == 0
    assert json.loads((tmp_path / "fhir" / "CodeSystem-items.json").read_text("utf-8"))["count"] == 437


def test_a_file_of_a_name_nobody_reads_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(CatalogueError, match="holds no rule file"):
        import_files(tmp_path / "out", tmp_path / "in", catalogue.DIRECTORY)
    (tmp_path / "out" / "mraks.csv").write_text("laboratory,item,scope\n", "utf-8")
    with pytest.raises(CatalogueError, match=r"mraks\.csv: is not a rule file"):
        import_files(tmp_path / "out", tmp_path / "in", catalogue.DIRECTORY)
    (tmp_path / "out" / "mraks.csv").rename(tmp_path / "out" / "marks-yunxi.csv")
    shutil.copy(Path(sensitive.__file__).with_name("sensitive.csv"), tmp_path / "out")
    import_files(tmp_path / "out", tmp_path / "in", catalogue.DIRECTORY)
    assert (tmp_path / "in" / "marks-yunxi.csv").exists()


def test_a_table_that_is_not_utf_8_is_told_once(tmp_path: Path) -> None:
    export_files(catalogue.DIRECTORY, tmp_path / "out")
    orderables = tmp_path / "out" / "orderables.csv"
    orderables.write_bytes(orderables.read_text("utf-8").encode("gb18030"))
    with pytest.raises(CatalogueError) as fault:
        import_files(tmp_path / "out", tmp_path / "in", catalogue.DIRECTORY)
    assert str(fault.value) == "orderables.csv: is not UTF-8"
