"""Reasons for ordering although a result could be recognized: the six lawful ones (国卫医发〔2022〕6号) and local ones.

Local ones are data (mappings/catalogue/local-reasons.csv). One that does not count as a refusal, such as an image that was not
received, says nothing against the result: it needs no word to the patient and stays out of the refusals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from conformance import systems
from fhir_server.recognition.rules import Rules, RulesError
from mappings import catalogue
from mappings.csv_rows import Problem, read_rows

LOCAL: Final = f"{systems.BASE}/CodeSystem/local-repeat-reasons"
FILE: Final = "local-reasons.csv"


@dataclass(frozen=True, slots=True)
class Given:
    """A reason that may be given. ``text_required``: only with words; ``refusal``: it counts as a refusal to recognize."""

    system: str
    code: str
    zh: str
    en: str
    text_required: bool
    refusal: bool


@lru_cache(maxsize=4)
def local(path: Path = catalogue.DIRECTORY / FILE) -> Mapping[str, Given]:
    """The local reasons by code. Raises RulesError naming what is wrong where."""
    problems: list[Problem] = []
    out: dict[str, Given] = {}
    columns = ("code", "name_zh", "name_en", "counts_as_refusal", "text_required")
    for row in read_rows(path, columns, (), problems):
        for column in columns[3:]:
            if row[column] not in ("yes", "no"):
                problems.append(Problem(path.name, row.line, column, f"{row[column]!r} is not yes or no"))
        if not row["code"] or row["code"] in out or row["code"] in "123456":
            problems.append(Problem(path.name, row.line, "code", "needs a code of its own, other than 1-6"))
        names = (row["name_zh"], row["name_en"])
        out[row["code"]] = Given(
            LOCAL, row["code"], *names, row["text_required"] == "yes", row["counts_as_refusal"] == "yes"
        )
    if problems:
        raise RulesError("\n".join(str(p) for p in problems))
    return out


def offered(rules: Rules) -> Iterator[Given]:
    """Every reason a card offers: the lawful ones, then the local ones."""
    for r in rules.reasons.values():
        yield Given(systems.REPEAT_REASONS, r.code, r.zh, r.en, r.text_required, True)
    yield from local(catalogue.path_of(rules.directory, FILE)).values()


def find(rules: Rules, system: str, code: str) -> Given | None:
    """A reason by system and code; without a system the code alone decides (the two lists have no code in common)."""
    return next((g for g in offered(rules) if g.code == code and system in ("", g.system)), None)
