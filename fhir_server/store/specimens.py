"""Specimen as sent -> specimen word of the catalogue (mappings/catalogue/items.csv).

Codes of HL7 tables 0487 and 0070 and of SNOMED CT, and Chinese or English words. ``blood`` says what was drawn, not whether serum,
plasma or whole blood was measured; ``urine`` does not say whether it was collected over 24 hours. A text nobody knows gives None,
never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

_CODES: Final[dict[str, str]] = {
    code: word
    for word, codes in {
        "serum": "SER ASERU CSERU 119364003",
        "plasma": "PLAS PLB PPP PRP 119361006 708049000",
        "whole-blood": "WB BLDC 258580003 122554006",
        "arterial-blood": "BLDA 122552005",
        "cord-blood": "BLDCO 122556008",
        "blood": "BLD BLDV 119297000 122555007",
        "urine": "UR URN URC URNS UMED RANDU 122575003 278020009",
        "urine-24h": "URT 276833005",
        "stool": "STL 119339001",
        "sputum": "SPT SPUT 119334006",
        "semen": "SMN SEM 119347001",
        "breath": "EXG EXHLD BRTH 119336008",
        "respiratory": "NP NPS THRT NOSE 258500001 258529004",
        "csf": "CSF 258450006",
        "cervix": "CVX 119395005",
        "tissue": "TISS 119376003",
        "fluid": "PLR PRT ASP FLU SNV JNTFLD AMN PCFL GAST BIFL DIAF BAL BBL DRN WND ABS SAL SWT PUS "
        "418564007 168139001 168137004 119332005 119373006 122571007 258459007",
        "bone-marrow": "MAR 119359002",
    }.items()
    for code in codes.split()
}
# Read in this order: 24小时尿蛋白 is urine, 末梢全血 whole blood, 胸水 no water.
_WORDS: Final = tuple(
    (word, re.compile(pattern, re.I))
    for word, pattern in (
        (
            "urine-24h",
            r"24\s*(?:小时|h|hr|hours?)\s*尿|尿.*24\s*(?:小时|h)|24[\s-]*h(?:ou)?rs?.*urine|urine.*24[\s-]*h",
        ),
        ("urine", r"尿|\burine\b"),
        ("stool", r"粪|大便|\bstool\b|\bfa?eces\b"),
        ("sputum", r"痰|\bsputum\b"),
        ("semen", r"精液|\bsemen\b"),
        ("csf", r"脑脊液|\bcsf\b|cerebrospinal"),
        ("cord-blood", r"脐.?血|cord[\s-]blood"),
        ("bone-marrow", r"骨髓|bone[\s-]marrow"),
        ("arterial-blood", r"动脉血|arterial[\s-]blood"),
        ("respiratory", r"[鼻咽].*拭子|respiratory|nasopharyn"),
        ("cervix", r"宫颈|cervi(?:x|cal)"),
        ("breath", r"呼气|呼出气|\bbreath\b"),
        (
            "fluid",
            r"胸水|腹水|积液|关节液|滑液|羊水|心包液|灌洗|引流|穿刺液|胆汁|胃液|透析液|分泌物|白带|脓|唾液|汗液|拭子|[胸腹]腔液|胸腹|浆膜"
            r"|pleural|ascit|peritoneal|synovial|amniotic|\bfluid\b|\bswab\b|\bsaliva\b|\bpus\b",
        ),
        ("tissue", r"组织|\btissue\b|biopsy"),
    )
)
_BLOOD: Final = tuple(
    (word, re.compile(pattern, re.I))
    for word, pattern in (
        ("serum", r"血清|\bserum\b"),
        ("plasma", r"血浆|\bplasma\b"),
        ("whole-blood", r"全血|末梢血|毛细血管血|指尖?血|耳血|whole[\s-]blood|capillary"),
    )
)
_ANY_BLOOD: Final = re.compile(r"血|\bblood\b", re.I)


def word_of(specimen: Mapping[str, Any] | None) -> str | None:
    """Specimen resource -> word of the catalogue by its type, None when it does not say."""
    concept = (specimen or {}).get("type") or {}
    said = [c.get(key) for c in concept.get("coding") or () for key in ("code", "display")]
    found = [word for text in (*said, concept.get("text")) if text and (word := read(text))]
    # What names one kind goes before what only says blood or urine.
    return next((word for word in found if word not in _UNSPECIFIC), found[0] if found else None)


@lru_cache(maxsize=4096)
def read(said: str) -> str | None:
    """A code or a text -> word of the catalogue; None when it says nothing that is known, or two of serum, plasma and whole blood."""
    text = said.strip()
    if found := _CODES.get(text.upper()):
        return found
    for word, pattern in _WORDS:
        if pattern.search(text):
            return word
    named = [word for word, pattern in _BLOOD if pattern.search(text)]
    if named:
        return named[0] if len(named) == 1 else "blood"
    return "blood" if _ANY_BLOOD.search(text) else None


_UNSPECIFIC: Final[Mapping[str, frozenset[str]]] = {
    "blood": frozenset({"serum", "plasma", "whole-blood", "arterial-blood"}),
    "urine": frozenset({"urine-24h"}),
}


def fits(specimen: str, wanted: Sequence[str]) -> bool | None:
    """Is a specimen one of those an item is defined for (words)? None when it does not say enough to tell."""
    if specimen in wanted:
        return True
    return None if any(w in _UNSPECIFIC.get(specimen, ()) for w in wanted) else False
