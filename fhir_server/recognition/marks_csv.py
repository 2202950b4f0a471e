"""Marks, EQA rounds, agreements and region names from CSV, every fault with file and line. Each file explains itself on top.

``marks.csv``, ``eqa.csv`` and ``agreements.csv`` stand in the catalogue folder; further files ``marks-*.csv``, ``eqa-*.csv`` and
``agreements-*.csv`` are read too, so that each consortium can keep its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

from fhir_server.recognition import regions as region_names
from fhir_server.recognition.marks import EVERY_ITEM, NATIONAL, Agreement, Mark, Period, Register, Round
from fhir_server.recognition.regions import Regions
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
    regions = Regions()
    agreements: dict[str, Agreement] = {}
    marks: list[Mark] = []
    rounds: list[Round] = []
    for path in files(directory):
        name = path.name

        def wrong(row: Row, column: str, text: str, file: str = name) -> None:
            problems.append(Problem(file, row.line, column, text))

        if name == "regions.csv":
            regions = region_names.load(path, problems)
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
                    wrong(row, "scope", _not_a_scope(row["scope"], regions))
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
    row: Row, regions: Regions, agreements: Mapping[str, Agreement], wrong: Wrong, file: str,
    problems: list[Problem],
) -> Round:  # fmt: skip
    if row["passed"].lower() not in _PASSED:
        wrong(row, "passed", "must be yes or no")
    if not row["assessed"]:
        wrong(row, "assessed", "the day of the result of the round is needed")
    scope = scope_of(row["scope"], regions, agreements) if row["scope"] else ""
    if row["scope"] and not scope:
        wrong(row, "scope", _not_a_scope(row["scope"], regions))
    dated = Row(row.line, row.cells | {"valid_from": row["assessed"]})
    return Round(
        row["laboratory"], row["item"], _PASSED.get(row["passed"].lower(), False), _period(dated, file, problems), scope,
        row["round"], row["certificate"], row["score"],
    )  # fmt: skip


def _agreement(row: Row, regions: Regions, wrong: Wrong, period: Period) -> Agreement:
    codes = []
    for word in words(row["regions"]):
        code = scope_of(word, regions, {})
        if not code or code == NATIONAL:
            wrong(row, "regions", _not_a_scope(word, regions))
        codes.append(code)
    if not row["id"] or not codes:
        wrong(row, "id", "an id and its regions are needed")
    return Agreement(row["id"], row["name"] or row["id"], tuple(codes), period)


def _period(row: Row, file: str, problems: list[Problem]) -> Period:
    start, end, recorded = check_period(row, file, problems)
    return Period(start, end, datetime.fromisoformat(recorded) if recorded else None)


def _not_a_scope(text: str, regions: Regions) -> str:
    several = regions.codes(_word(text))
    if len(several) > 1:
        return f"{text!r} is the name of several regions: {', '.join(f'{c} {regions.label(c)}' for c in several)}; write the code"
    return f"{text!r} is not national, a region or an agreement"


def _word(text: str) -> str:
    return text.strip().removesuffix("HR").strip()


def scope_of(text: str, regions: Regions, agreements: Mapping[str, Agreement]) -> str:
    """A scope as people write it -> ``national``, a region code or an agreement id; empty when it is none of these, or a name that
    several regions bear.

    Understood: ``全国HR``, ``national``, ``42``, ``420100``, ``武汉HR``, ``鄂``, ``淳安县``, ``京津冀``, ``全区HR``.
    """
    word = _word(text)
    if word.lower() in _NATIONAL:
        return NATIONAL
    if word in agreements:
        return word
    if len(codes := regions.codes(word)) == 1 and codes[0] == word:
        return word
    for agreement in agreements.values():
        if word == agreement.name:
            return agreement.id
    return codes[0] if len(codes) == 1 else ""
