"""English names of tests, compared as sets of words: ``Bilirubin, Direct`` is ``direct bilirubin``."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import defaultdict
from pathlib import Path

from mappings.catalogue import Catalogue, CatalogueError
from mappings.codes import clean_name
from mappings.csv_rows import Problem, read_rows

TABLE = Path(__file__).with_name("english_names.csv")

_WORD = re.compile(r"[a-z]+\d*[a-z]*|\d+[a-z]*|%|#")
_GREEK = {"α": " alpha ", "β": " beta ", "γ": " gamma ", "ß": " beta "}
_BRITISH = (("haem", "hem"), ("oestr", "estr"), ("oesoph", "esoph"), ("foet", "fet"), ("faec", "fec"), ("leuco", "leuko"),
            ("sulph", "sulf"), ("colour", "color"), ("titre", "titer"), ("isation", "ization"), ("ised", "ized"), ("tumour", "tumor"),
            ("paed", "ped"), ("glycaem", "glycem"), ("caerulo", "cerulo"), ("centre", "center"))  # fmt: skip
_SAME = {
    "abs": "count", "absolute": "count", "number": "count", "no": "count", "num": "count", "#": "count", "counts": "count",
    "percentage": "percent", "pct": "percent", "%": "percent", "antibodies": "antibody", "ab": "antibody", "abs.": "antibody",
    "ag": "antigen", "antigens": "antigen", "hour": "h", "hours": "h", "hr": "h", "hrs": "h", "hep": "hepatitis", "hgb": "hemoglobin",
    "iii": "3", "ii": "2", "ionised": "ionized", "faeces": "stool", "feces": "stool", "fecal": "stool", "urinary": "urine",
    "ur": "urine", "calc": "calculated", "quant": "quantitative", "qual": "qualitative", "vit": "vitamin", "est": "estimated",
    "g": "gamma", "a": "alpha", "b": "beta", "trop": "troponin", "sensitive": "sensitivity", "hypersensitive": "sensitivity",
    "transaminase": "aminotransferase", "normalised": "normalized", "polypeptide": "peptide", "mins": "min", "minutes": "min",
    "post": "postprandial", "pp": "postprandial", "prandial": "postprandial", "reticulocytes": "reticulocyte",
    "chol": "cholesterol", "bili": "bilirubin", "neut": "neutrophil", "neu": "neutrophil", "lymph": "lymphocyte", "mono": "monocyte",
    "eos": "eosinophil", "baso": "basophil", "cells": "cell", "retic": "reticulocyte", "creat": "creatinine",
    "spec": "specific", "grav": "gravity", "conc": "concentration", "plt": "platelet", "diff": "differential",
}  # fmt: skip
_FILLERS = frozenset(
    """serum plasma blood whole venous level test assay measurement determination concentration value result the of in by and to for
    s p sb human detection analysis automated auto routine screening screen examination exam study method quantitative calculated
    clia elisa eclia pcr ise hplc enzymatic colorimetric kinetic ifcc latex immunoassay rapid clauss
    hk god pap jaffe nac fs dry poct turbidimetric turbidimetry stat v vanadate uricase ip cap""".split()  # noqa: SIM905
)
_OPTIONAL = _FILLERS - {"blood", "whole", "venous"}
"""Words a known name may have that is sent without them; a culture without "blood" may be of anything."""
_TYPO = 0.84


def words(text: str) -> frozenset[str]:
    """The words of an English name, each written one way; empty when the text holds anything but Latin letters and Greek ones."""
    lowered = unicodedata.normalize("NFKC", clean_name(text)[0]).casefold()
    for greek, word in _GREEK.items():
        lowered = lowered.replace(greek, word)
    if not lowered.isascii():
        return frozenset()
    out = set()
    for word in _WORD.findall(lowered.replace("'", "")):
        for british, american in _BRITISH:
            word = word.replace(british, american)  # noqa: PLW2901
        if len(word) > 4 and word.endswith("s") and not word.endswith(("ss", "is", "us")):
            word = word[:-1]  # noqa: PLW2901
        out.add(_SAME.get(word, word))
    return frozenset(out)


class EnglishNames:
    """English names of items by number. Immutable after construction."""

    def __init__(self, catalogue: Catalogue, numbers: dict[str, int], table: Path | None = TABLE) -> None:
        """``numbers``: item code -> number; without a table only the names of the catalogue. Raises CatalogueError with
        file and line when the table names an unknown item."""
        problems: list[Problem] = []
        self._names: dict[frozenset[str], set[int]] = defaultdict(set)
        self._having: dict[str, set[frozenset[str]]] = defaultdict(set)
        for code, number in numbers.items():
            self._add(catalogue.items[code].name_en, number)
        for row in read_rows(table, ("item", "names"), (), problems) if table else ():
            if row["item"] not in catalogue.items:
                problems.append(
                    Problem(TABLE.name, row.line, "item", f"{row['item']!r} is not an item of the catalogue")
                )
                continue
            for text in row["names"].split("|"):
                self._add(text, numbers[row["item"]])
        if problems:
            raise CatalogueError(problems)
        self._vocabulary = [word for word in sorted(self._having) if len(word) >= 6 and word.isalpha()]

    def _add(self, text: str, number: int) -> None:
        name = words(text)
        if name:
            self._names[name].add(number)
            for word in name:
                self._having[word].add(name)

    def find(self, text: str, abbreviations: list[frozenset[str]]) -> list[tuple[int, float]]:
        """The items of an English name with a score. ``abbreviations`` by number: words that may stand beside the name, or with a
        word of method (``GLU-HK``) instead of it."""
        said = words(text)
        if not said or not any(len(word) >= 3 and word.isalpha() for word in said):
            return []
        known = frozenset(self._corrected(word) for word in said)
        cost = 0.0 if known == said else 0.08
        out: dict[int, float] = {}
        for name in {name for word in known for name in self._having.get(word, ())}:
            extra, missing = known - name, name - known
            if missing and (missing - _OPTIONAL or not name - _FILLERS):
                continue
            for number in self._names[name]:
                strange = extra - _FILLERS - abbreviations[number] - {"total"}
                if not strange:
                    out[number] = max(out.get(number, 0.0), 0.95 - cost - 0.02 * len(extra | missing))
        short = known - _FILLERS - {"total"}
        if not out and len(short) == 1 and len(known) > 1 and len(min(short)) >= 3:
            out = {number: 0.75 for number, those in enumerate(abbreviations) if short <= those}
        return sorted(out.items())

    def _corrected(self, word: str) -> str:
        if word in self._having or word in _FILLERS or len(word) < 6 or not word.isalpha():
            return word
        near = difflib.get_close_matches(word, self._vocabulary, 1, _TYPO)
        return near[0] if near else word
