"""Settings: sources, errors, and docs/settings.md telling the truth."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from fhir_server import clock
from fhir_server.settings import Settings, SettingsError, load

DOCS = Path(__file__).parents[1] / "docs" / "settings.md"


def described() -> dict[str, tuple[str, str]]:
    """Setting name -> (default, description) as the documentation table says."""
    rows = [
        ln.strip().strip("|").split("|") for ln in DOCS.read_text(encoding="utf-8").splitlines() if ln.startswith("| `")
    ]
    return {r[0].strip().strip("`"): (r[2].strip().strip("`"), r[3].strip()) for r in rows}


def test_every_setting_stands_in_the_documentation_with_its_default_and_meaning() -> None:
    expected = {
        name: ("" if field.default is None else str(field.default), field.description or "")
        for name, field in Settings.model_fields.items()
    }
    assert described() == expected


def test_the_command_line_beats_the_environment_which_beats_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "county.toml"
    file.write_text('port = 1111\nworkers = 3\nlog_level = "ERROR"\n', encoding="utf-8")
    monkeypatch.setenv("TONGJIAN_CONFIG", str(file))
    monkeypatch.setenv("TONGJIAN_PORT", "2222")
    monkeypatch.setenv("TONGJIAN_WORKERS", "2")
    found = load(port=3333)
    assert (found.port, found.workers, found.log_level) == (3333, 2, "ERROR")


def test_database_url_is_understood_without_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://db.example/tongjian")
    assert load().database_url == "postgresql://db.example/tongjian"


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("TONGJIAN_PORT", "http", "port"),
        ("TONGJIAN_TIME_ZONE", "Asia/Nowhere", "time zone"),
        ("TONGJIAN_WORKERS", "-1", "workers"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, word: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=word):
        load()


@pytest.mark.parametrize("given", [{"https_key": "k.pem"}, {"mllp_client_ca": "ca.pem"}])
def test_a_port_is_not_left_unencrypted_for_want_of_a_certificate(given: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=f"{next(iter(given)).partition('_')[0]}_certificate"):
        load(**given)


def test_an_unknown_key_in_the_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tongjian.toml"
    file.write_text("prot = 1\n", encoding="utf-8")
    monkeypatch.setenv("TONGJIAN_CONFIG", str(file))
    with pytest.raises(SettingsError, match="prot"):
        load()


def test_a_settings_file_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TONGJIAN_CONFIG", str(tmp_path / "missing.toml"))
    with pytest.raises(SettingsError, match=r"missing\.toml"):
        load()


def test_a_broken_settings_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tongjian.toml"
    file.write_text("port = \n", encoding="utf-8")
    monkeypatch.setenv("TONGJIAN_CONFIG", str(file))
    with pytest.raises(SettingsError, match="settings file"):
        load()


def test_the_address_of_the_api_follows_the_bound_port_unless_given() -> None:
    assert load(port=0).fhir_base(8765) == "http://127.0.0.1:8765/fhir"
    assert load(base_url="https://fhir.example/fhir/").fhir_base(1) == "https://fhir.example/fhir"


def test_a_clock_can_be_given_in_a_sandbox_alone(tmp_path: Path) -> None:
    at = "2025-11-21T17:00:00+08:00"
    with pytest.raises(SettingsError, match="sandbox only"):
        load(sandbox_clock=at)
    with pytest.raises(SettingsError, match="this machine"):
        load(sandbox_clock=at, sandbox=True, host="0.0.0.0")
    with pytest.raises(SettingsError, match="RFC 3339"):
        load(sandbox_clock="yesterday", sandbox=True)
    assert clock.of(load(sandbox_clock=at, sandbox=True))().isoformat() == "2025-11-21T09:00:00+00:00"


def test_a_sandbox_clock_in_a_file_moves_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "now"
    file.write_text("2025-11-21T17:00:00+08:00\n", encoding="utf-8")
    read = clock.of(load(sandbox_clock=str(file), sandbox=True))
    assert read() == datetime(2025, 11, 21, 9, tzinfo=UTC)
    file.write_text("2025-11-21T17:00:01+08:00", encoding="utf-8")
    assert read() == datetime(2025, 11, 21, 9, 0, 1, tzinfo=UTC)
    file.write_text("2025-", encoding="utf-8")
    assert read() == datetime(2025, 11, 21, 9, 0, 1, tzinfo=UTC)


def test_without_a_sandbox_the_clock_is_the_machines() -> None:
    before = datetime.now(UTC)
    assert before <= clock.of(load())() <= datetime.now(UTC)
