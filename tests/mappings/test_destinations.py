"""destinations of a profile: what cannot work is refused at load with file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from mappings.profile import ProfileError, load_profiles

HEAD = "id: a\norganization: {name: 试验医院}\ndestinations:\n"


def problems(folder: Path, entry: str) -> list[tuple[str, int, str]]:
    (folder / "a.yaml").write_text(HEAD + entry, encoding="utf-8")
    with pytest.raises(ProfileError) as caught:
        load_profiles(folder)
    return [(p.file, p.line, p.key) for p in caught.value.problems]


@pytest.mark.parametrize(
    ("entry", "line", "key"),
    [
        ("  - {name: x}\n", 4, "destinations.0"),
        ("  - host: h\n    port: 1\n    url: http://h/\n", 4, "destinations.0"),
        ("  - host: h\n", 4, "destinations.0.port"),
        ("  - host: h\n    port: 70000\n", 5, "destinations.0.port"),
        ("  - host: 'h; rm'\n    port: 1\n", 4, "destinations.0.host"),
        ("  - url: ftp://h/\n", 4, "destinations.0.url"),
        ("  - url: http://u:p@h/\n", 4, "destinations.0.url"),
        ("  - url: file:///etc/passwd\n", 4, "destinations.0.url"),
        ("  - url: 'http://[h/'\n", 4, "destinations.0.url"),
        ("  - url: http://h/\n    content: cda\n", 5, "destinations.0.content"),
        ("  - host: h\n    port: 1\n    content: fhir\n", 6, "destinations.0.content"),
        ("  - host: h\n    port: 1\n    tls: true\n    ca: none.pem\n", 7, "destinations.0.ca"),
        ("  - host: h\n    port: 1\n    tls: true\n    key: a.yaml\n", 7, "destinations.0.key"),
        ("  - host: h\n    port: 1\n    ca: a.yaml\n", 6, "destinations.0.ca"),
        ("  - url: http://h/\n    token_file: a.yaml\n", 5, "destinations.0.token_file"),
        ("  - host: h\n    port: 1\n    separators: '|^~'\n", 6, "destinations.0.separators"),
        ("  - host: h\n    port: 1\n    timeout: 0\n", 6, "destinations.0.timeout"),
        (
            "  - host: h\n    port: 1\n    retry:\n      first_seconds: 5\n      longest_seconds: 1\n",
            8,
            "destinations.0.retry.longest_seconds",
        ),
        ("  - {host: h, port: 1}\n  - {host: h, port: 2}\n", 5, "destinations.1.name"),
        ("  - host: h\n    port: 1\n    colour: red\n", 6, "destinations.0.colour"),
    ],
)
def test_each_fault_names_file_line_and_key(tmp_path: Path, entry: str, line: int, key: str) -> None:
    assert ("a.yaml", line, key) in problems(tmp_path, entry)


def test_files_are_looked_for_beside_the_profile(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("x", encoding="utf-8")
    (tmp_path / "a.yaml").write_text(HEAD + "  - {host: h, port: 1, tls: true, ca: ca.pem}\n", encoding="utf-8")
    (place,) = load_profiles(tmp_path)["a"].facility.destinations
    assert place.ca == str(tmp_path.resolve() / "ca.pem")


def test_where_results_go_changes_no_conversion(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(HEAD.replace("destinations:\n", ""), encoding="utf-8")
    before = load_profiles(tmp_path)["a"].digest
    (tmp_path / "a.yaml").write_text(HEAD + "  - {host: h, port: 1}\n", encoding="utf-8")
    assert load_profiles(tmp_path)["a"].digest == before
