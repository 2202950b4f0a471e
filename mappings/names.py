"""Spelling of test names, for comparing them: keys, variants, letters apart from Chinese characters, pinyin. Nothing here maps a code.

A key is a name without marks, blanks and punctuation, half width, lower case, Greek letters and Roman numerals written out alike.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from pypinyin import Style, lazy_pinyin

from mappings.codes import clean_name

_GREEK = str.maketrans(
    {"α": "a", "β": "b", "γ": "g", "δ": "d", "κ": "k", "λ": "l", "ß": "b", "脫": "脱", "測": "测", "′": "'"}
)
_ROMAN = (("viii", "8"), ("vii", "7"), ("iii", "3"), ("ii", "2"), ("iv", "4"), ("vi", "6"))
_ROMAN_RUN = re.compile(r"(?<![a-z])(viii|vii|iii|ii|iv|vi)(?![a-z])")
_DROPPED = re.compile(r"[^0-9a-z%#/\u3400-\u9fff]")
_BRACKETED = re.compile(r"[(\[{【〔]([^()\[\]{}【】〔〕]*)[)\]}】〕]")
_HAN = re.compile(r"[\u3400-\u9fff]")
_LETTERS = re.compile(r"[a-z0-9%#]+")
_HEAD = re.compile(
    r"^(?:血清|血浆|全血|静脉血|急诊|急查|床旁|血)(?=[a-z]{2})"
    r"|^(?:血清|血浆|全血|血液|静脉血|末梢血|外周血|急诊|急查|床旁|人|血)(?=[\u3400-\u9fff])"
)
_PANEL = re.compile(
    r"^[\u3400-\u9fff]*(?:常规|功能?|生化|电解质|血脂|凝血|甲功|两对半|五项|三项|四项|八项|全套|组套)[-—_:：]"
)
_SERUM = re.compile(r"^s-(?=[a-z]{2,})")
_TAIL = re.compile(r"(?:测定|检测|检查|试验|定量|定性|水平|浓度|含量|数值|结果|筛查|计算|快速|速测|(?<=[a-z])值|测量)$")
_METHOD = re.compile(r"[-—][^-—]*法$")
INSIDE = 0.08
"""What it costs to read only what stands in brackets."""
_SYNONYMS = re.compile("[/、|;；]")


def _level(text: str) -> str:
    lowered = unicodedata.normalize("NFKC", clean_name(text)[0]).casefold().translate(_GREEK)
    return _ROMAN_RUN.sub(lambda found: dict(_ROMAN)[found[1]], lowered)


@lru_cache(maxsize=32768)
def key(text: str) -> str:
    """The spelling under which two names are the same: ``*γ-GT`` -> ``ggt``, ``补体 C3`` -> ``补体c3``."""
    return _DROPPED.sub("", _level(text))


@lru_cache(maxsize=16384)
def variants(text: str) -> tuple[tuple[str, float], ...]:
    """Keys a name may be known under, each with what it costs to read it so (0 = as written), cheapest first.

    Brackets dropped; what stands outside them; what stands in them; without words that only say that something is measured, or that it
    is measured in blood.
    """
    out: dict[str, float] = {}

    def offer(spelling: str, cost: float) -> None:
        if spelling and out.get(spelling, 9.0) > cost:
            out[spelling] = cost

    whole = _METHOD.sub("", _level(text))
    offer(_DROPPED.sub("", whole), 0.0)
    for prefix, cost in ((_PANEL, 0.04), (_SERUM, 0.05)):
        offer(_DROPPED.sub("", prefix.sub("", whole)), cost)
    outside = _DROPPED.sub("", _BRACKETED.sub(" ", whole))
    offer(outside, 0.02)
    for inside in _BRACKETED.findall(whole):
        offer(_DROPPED.sub("", inside), INSIDE)
    for spelling, cost in tuple(out.items()):
        for shorter, more in _shorter(spelling):
            offer(shorter, cost + more)
    return tuple(sorted(out.items(), key=lambda pair: pair[1]))


def _shorter(spelling: str) -> Iterator[tuple[str, float]]:
    tailless = _TAIL.sub("", spelling)
    while _TAIL.search(tailless):
        tailless = _TAIL.sub("", tailless)
    if tailless and tailless != spelling:
        yield tailless, 0.02
    headless = _HEAD.sub("", tailless)
    if headless and headless != tailless:
        yield headless, 0.03


def synonyms(text: str) -> tuple[str, ...]:
    """The parts of a name that gives two names, ``可的松/皮质醇``; empty when it gives one."""
    parts = tuple(p for p in (_DROPPED.sub("", part) for part in _SYNONYMS.split(_level(text))) if p)
    return parts if len(parts) > 1 else ()


def han(spelling: str) -> str:
    """The Chinese characters of a key, in order."""
    return "".join(_HAN.findall(spelling))


def letters(spelling: str) -> frozenset[str]:
    """The runs of letters and digits of a key: ``载脂蛋白a1`` -> {``a1``}."""
    return frozenset(_LETTERS.findall(spelling))


@lru_cache(maxsize=8192)
def sound(character: str) -> str:
    """Pinyin of one character without tone, with the endings that are often confused written alike (ng/n, zh/z, ch/c, sh/s)."""
    read = lazy_pinyin(character)[0]
    return re.sub("ng$", "n", re.sub("^([zcs])h", r"\1", read))


@lru_cache(maxsize=8192)
def initials(spelling: str) -> str:
    """Pinyin initials, as many systems use for entry codes: ``谷丙转氨酶`` -> ``gbzam``."""
    return "".join(lazy_pinyin(spelling, style=Style.FIRST_LETTER)).lower()


@lru_cache(maxsize=8192)
def pinyin(spelling: str) -> str:
    """Whole pinyin without tones: ``血糖`` -> ``xuetang``."""
    return "".join(lazy_pinyin(spelling)).lower()
