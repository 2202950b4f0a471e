"""Marks, EQA rounds, agreements and region names from CSV, every fault with file and line. Each file explains itself on top.

``marks.csv``, ``eqa.csv`` and ``agreements.csv`` stand in the catalogue folder; further files ``marks-*.csv``, ``eqa-*.csv`` and
``agreements-*.csv`` are read too, so that each consortium can keep its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

from fhir_server.recognition.marks import EVERY_ITEM, NATIONAL, Agreement, Mark, Period, Register, Round
from mappings import catalogue
from mappings.catalogue import check_period, words
from mappings.csv_rows import Problem, Row, read_rows

KINDS: Final = ("marks", "eqa", "agreements")
_PASSED: Final = {
    "yes": True,
    "no": False,
    "true": True,
    "false": False,
    "合格": True,
    "不合格": False,
    "通过": True,
    "未通过": False,
}
_NATIONAL: Final = frozenset({NATIONAL, "全国", "国家"})
_OTHER_NAMES: Final = {"全区": "150000"}
"""What people call a region beside its names: Inner Mongolia's mark reads 全区HR (Chifeng)."""
_CODE: Final = re.compile(r"^(\d{2}|\d{4}|\d{6})$")
Wrong = Callable[[Row, str, str], None]


def files(directory: Path) -> list[Path]:
    """The register's files in a folder, in the order they are read; a shipped one counts where the folder has none of its name."""
    found = [catalogue.path_of(directory, "regions.csv")]
    for kind in ("agreements", "marks", "eqa"):
        named = {p.name: p for folder in (catalogue.DIRECTORY, directory) for p in folder.glob(f"{kind}*.csv")}
        found += [p for _, p in sorted(named.items()) if p.stem == kind or p.stem.startswith(f"{kind}-")]
    return found


def load(directory: Path, items: Collection[str], problems: list[Problem]) -> Register:
    """The register in a folder; ``items``: item codes of the catalogue. Faults go to ``problems``."""
    regions: dict[str, tuple[str, str]] = {}
    agreements: dict[str, Agreement] = {}
    marks: list[Mark] = []
    rounds: list[Round] = []
    for path in files(directory):
        name = path.name

        def wrong(row: Row, column: str, text: str, file: str = name) -> None:
            problems.append(Problem(file, row.line, column, text))

        if name == "regions.csv":
            for row in read_rows(path, ("code", "name", "short"), ("note",), problems):
                regions[row["code"]] = (row["name"], row["short"])
        elif name.startswith("agreements"):
            for row in read_rows(
                path, ("id", "name", "regions"), ("valid_from", "valid_to", "recorded", "note"), problems
            ):
                agreement = _agreement(row, regions, wrong, _period(row, name, problems))
                agreements[agreement.id] = agreement
        elif name.startswith("marks"):
            columns = ("valid_from", "valid_to", "certificate", "recorded", "note")
            for row in read_rows(path, ("laboratory", "item", "scope"), columns, problems):
                _check_row(row, items, wrong)
                scope = scope_of(row["scope"], regions, agreements)
                if not scope:
                    wrong(row, "scope", f"{row['scope']!r} is not national, a region or an agreement")
                marks.append(
                    Mark(row["laboratory"], row["item"], scope, _period(row, name, problems), row["certificate"])
                )
        else:
            optional = ("round", "score", "valid_to", "scope", "certificate", "recorded", "note")
            for row in read_rows(path, ("laboratory", "item", "passed", "assessed"), optional, problems):
                _check_row(row, items, wrong)
                rounds.append(_round(row, regions, agreements, wrong, name, problems))
    return Register(tuple(marks), tuple(rounds), agreements, regions)


def _check_row(row: Row, items: Collection[str], wrong: Wrong) -> None:
    if not row["laboratory"]:
        wrong(row, "laboratory", "the facility id of the performing laboratory is needed")
    if row["item"] != EVERY_ITEM and row["item"] not in items:
        wrong(row, "item", f"{row['item']!r} is not an item of the catalogue, nor *")


def _round(
    row: Row, regions: Mapping[str, tuple[str, str]], agreements: Mapping[str, Agreement], wrong: Wrong, file: str,
    problems: list[Problem],
) -> Round:  # fmt: skip
    if row["passed"].lower() not in _PASSED:
        wrong(row, "passed", "must be yes or no")
    if not row["assessed"]:
        wrong(row, "assessed", "the day of the result of the round is needed")
    scope = scope_of(row["scope"], regions, agreements) if row["scope"] else ""
    if row["scope"] and not scope:
        wrong(row, "scope", f"{row['scope']!r} is not national, a region or an agreement")
    dated = Row(row.line, row.cells | {"valid_from": row["assessed"]})
    return Round(
        row["laboratory"], row["item"], _PASSED.get(row["passed"].lower(), False), _period(dated, file, problems), scope,
        row["round"], row["certificate"], row["score"],
    )  # fmt: skip


def _agreement(row: Row, regions: Mapping[str, tuple[str, str]], wrong: Wrong, period: Period) -> Agreement:
    codes = []
    for word in words(row["regions"]):
        code = scope_of(word, regions, {})
        if not code or code == NATIONAL:
            wrong(row, "regions", f"{word!r} is not a region code or name")
        codes.append(code)
    if not row["id"] or not codes:
        wrong(row, "id", "an id and its regions are needed")
    return Agreement(row["id"], row["name"] or row["id"], tuple(codes), period)


def _period(row: Row, file: str, problems: list[Problem]) -> Period:
    start, end, recorded = check_period(row, file, problems)
    return Period(start, end, datetime.fromisoformat(recorded) if recorded else None)


def scope_of(text: str, regions: Mapping[str, tuple[str, str]], agreements: Mapping[str, Agreement]) -> str:
    """A scope as people write it -> ``national``, a region code or an agreement id; empty when it is none of these.

    Understood: ``全国HR``, ``national``, ``42``, ``420100``, ``武汉HR``, ``鄂``, ``京津冀``, ``全区HR``.
    """
    word = text.strip().removesuffix("HR").strip()
    if word.lower() in _NATIONAL:
        return NATIONAL
    if word in agreements:
        return word
    if _CODE.match(word):
        return word
    if word in _OTHER_NAMES:
        return _OTHER_NAMES[word]
    for agreement in agreements.values():
        if word == agreement.name:
            return agreement.id
    for code, names in regions.items():
        if word in names:
            return code
    return ""
