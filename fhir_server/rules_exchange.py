"""Rules out of and into a folder: the CSV and YAML files a quality-control group edits, checked before they are taken over."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Final

from conformance import fhirjson
from fhir_server.recognition import marks_csv, rules
from mappings import catalogue, catalogue_fhir, sensitive
from mappings.catalogue import CatalogueError
from mappings.csv_rows import Problem

FILES: Final = ("*.csv", "*.yaml", "LICENCE-LOINC.txt", "README.md")


def export_files(source: Path, target: Path) -> list[str]:
    """Copies the files of a rules folder; the names that were written. Raises OSError, FileExistsError when the folder is not empty."""
    target.mkdir(parents=True, exist_ok=True)
    if any(target.iterdir()):
        raise FileExistsError(f"{target} is not empty")
    folders = (catalogue.DIRECTORY, source)
    names = sorted({p.name for pattern in FILES for folder in folders for p in folder.glob(pattern)})
    for name in names:
        shutil.copyfile(catalogue.path_of(source, name), target / name)
    return names


def export_fhir(source: Path, target: Path) -> list[str]:
    """Writes the catalogue as FHIR R4 resources, one JSON file each; the names that were written."""
    target.mkdir(parents=True, exist_ok=True)
    known = catalogue.of(source)
    names = []
    for resource in catalogue_fhir.resources(known):
        name = f"{resource['resourceType']}-{resource['id']}.json"
        (target / name).write_bytes(fhirjson.dumps(resource, pretty=True) + b"\n")
        names.append(name)
    return names


def _check_names(source: Path) -> None:
    """A file nobody reads would be taken over and change nothing."""
    tables = sorted(source.glob("*.csv"))
    if not tables and not any(source.glob("*.yaml")):
        raise CatalogueError([Problem(str(source), 0, "", "holds no rule file (*.csv, *.yaml)")])
    known = {"sensitive.csv", *(p.name for p in catalogue.DIRECTORY.glob("*.csv"))}
    problems = [
        Problem(
            path.name,
            0,
            "",
            f"is not a rule file; there are {', '.join(sorted(known))}, and marks-*, eqa-*, agreements-*.csv",
        )
        for path in tables
        if path.name not in known and not path.name.startswith(tuple(f"{kind}-" for kind in marks_csv.KINDS))
    ]
    if problems:
        raise CatalogueError(problems)


def import_files(source: Path, target: Path, base: Path) -> str:
    """Lays the files of ``source`` over those of ``base``, checks the whole, and writes it to ``target``; the version of the new rules.

    Nothing is written when anything is wrong. Raises RulesError, CatalogueError and SensitiveError naming file and line.
    """
    with tempfile.TemporaryDirectory() as name:
        merged = Path(name) / "rules"
        shutil.copytree(catalogue.DIRECTORY, merged)
        shutil.copytree(base, merged, dirs_exist_ok=True)
        _check_names(source)
        for pattern in FILES:
            for path in source.glob(pattern):
                shutil.copyfile(path, merged / path.name)
        version = rules.load(merged).version
        sensitive.of(merged)
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(merged.iterdir()):
            if path.is_file():
                shutil.copyfile(path, target / path.name)
    return version
