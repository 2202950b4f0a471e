"""image_sources and pacs of a profile: what cannot work, or would lose images, is refused at load with file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from mappings.profile import ProfileError, load_profiles

HEAD = "id: a\norganization: {name: 试验医院}\n"
PACS = "pacs:\n  - {name: p, dicomweb: 'http://p/dicom-web'}\n"


def problems(folder: Path, entry: str) -> list[tuple[str, int, str]]:
    (folder / "a.yaml").write_text(HEAD + entry, encoding="utf-8")
    with pytest.raises(ProfileError) as caught:
        load_profiles(folder)
    return [(p.file, p.line, p.key) for p in caught.value.problems]


@pytest.mark.parametrize(
    ("entry", "line", "key"),
    [
        # Neither kept, nor sent on, nor known to be a copy.
        ("image_sources:\n  - {name: ct, ae: CT1}\n", 4, "image_sources.0.pixels"),
        ("image_sources:\n  - {name: ct, ae: CT1, pixels: drop}\n", 4, "image_sources.0.pacs"),
        ("image_sources:\n  - {name: ct, ae: CT1, pixels: forward}\n", 4, "image_sources.0.pacs"),
        ("image_sources:\n  - {name: ct, ae: CT1, pixels: folder}\n", 4, "image_sources.0.folder"),
        (PACS + "image_sources:\n  - {name: ct, ae: CT1, pixels: forward, pacs: q}\n", 6, "image_sources.0.pacs"),
        (PACS + 'image_sources:\n  - {name: ct, ae: "A\\\\B", pixels: drop, pacs: p}\n', 6, "image_sources.0.ae"),
        (
            PACS + "image_sources:\n  - {name: ct, ae: ABCDEFGHIJKLMNOPQ, pixels: drop, pacs: p}\n",
            6,
            "image_sources.0.ae",
        ),
        ("pacs:\n  - {name: p, poll: qido}\n", 4, "pacs.0.dicomweb"),
        ("pacs:\n  - {name: p, poll: find, host: h}\n", 4, "pacs.0"),
        ("pacs:\n  - {name: p, dicomweb: 'http://u:p@h/dicom-web'}\n", 4, "pacs.0.dicomweb"),
        ("pacs:\n  - {name: p, dicomweb: 'ftp://h/dicom-web'}\n", 4, "pacs.0.dicomweb"),
        ("pacs:\n  - {name: p, dicomweb: 'http://h/x', token_file: a.yaml}\n", 4, "pacs.0.token_file"),
    ],
)
def test_each_fault_names_file_line_and_key(tmp_path: Path, entry: str, line: int, key: str) -> None:
    assert ("a.yaml", line, key) in problems(tmp_path, entry)


def test_one_title_from_everywhere_belongs_to_one_facility(tmp_path: Path) -> None:
    source = "image_sources:\n  - {name: ct, ae: CT1, pixels: drop, pacs: p}\n"
    (tmp_path / "b.yaml").write_text("id: b\norganization: {name: 二院}\n" + PACS + source, encoding="utf-8")
    assert ("b.yaml", 6, "image_sources.0.ae") in problems(tmp_path, PACS + source)


def test_one_title_from_two_networks_may_belong_to_two(tmp_path: Path) -> None:
    for name, network in (("a", "10.1.0.0/16"), ("b", "10.2.0.0/16")):
        source = f"image_sources:\n  - {{name: ct, ae: CT1, pixels: drop, pacs: p, addresses: [{network}]}}\n"
        text = f"id: {name}\norganization: {{name: 医院}}\n" + PACS + source
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    assert {"a", "b"} <= set(load_profiles(tmp_path))
