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
from mappings.name_words import canonical
from mappings.traditional import simplified

_GREEK = str.maketrans({"α": "a", "β": "b", "γ": "g", "δ": "d", "κ": "k", "λ": "l", "ß": "b", "′": "'"})
_ROMAN = (("viii", "8"), ("vii", "7"), ("iii", "3"), ("ii", "2"), ("iv", "4"), ("vi", "6"))
_ROMAN_RUN = re.compile(r"(?<![a-z])(viii|vii|iii|ii|iv|vi)(?![a-z])")
_DROPPED = re.compile(r"[^0-9a-z%#/\u3400-\u9fff]")
_BRACKETED = re.compile(r"[(\[{【〔]([^()\[\]{}【】〔〕]*)[)\]}】〕]")
_HAN = re.compile(r"[\u3400-\u9fff]")
_LETTERS = re.compile(r"[a-z0-9%#]+")
_HEAD = re.compile(
    r"^(?:血清|血浆|全血|静脉血|急诊|急查|急|床旁|床边|干式|血|甲状腺激素|甲状腺功能|性激素|肿瘤标志物|心肌酶|电解质|血脂|肝功能?|肾功能?)(?=[a-z]{2})"
    r"|^(?:血清|血浆|全血|血液|静脉血清|静脉血浆|静脉全血|静脉血|末梢血|外周血|动脉血|急诊|急查|床旁|床边|干式|人|血)(?=[\u3400-\u9fff])"
)
_PANEL = re.compile(
    r"^[\u3400-\u9fff]*(?:常规|功能?|生化|电解质|血脂|凝血|甲功|心肌酶谱?|肿瘤标志物|性激素|两对半|[一二两三四五六七八九十0-9]+项|全套|组套)[-—_:：|.]"
)
_COMBINED = re.compile(r"^[^-—:]*[+/、][^-—:]*[-—:](?=..)")
_SERUM = re.compile(r"^s-(?=[a-z]{2,})")
_TAIL = re.compile(
    r"(?:测定|(?:检查)?[与及]诊断|检测|检查|试验|定量|定性|水平|(?:血药|药物)?浓度|含量|数值|结果|活性|活力|筛查|计算|快速|速测|(?<=[a-z])值|测量|监测|联合|分析"
    r"|急诊|加急|复查|体检|(?<=.)(?:动脉血|静脉血|末梢血|全血|血清|血浆))$"
)
_METHOD = re.compile(r"[-—][^-—()（）]*法$|(?<=[)\]}】〕])[^()\[\]{}【】〔〕+/]{1,12}法$")
_PRINCIPLE = re.compile(
    r"(?:(?:电化学|化学|磁微粒|微粒子|吖啶酯|直接|间接|酶促|增强|乳胶|免疫|散射|透射|时间分辨|全自动|实时|酶联)*"
    r"(?:荧光定量|发光|荧光|比浊|吸附|层析|比色|电极|速率|终点|胶体金|质谱|色谱|凝固|仪器|手工|试纸|试纸条|流式|干化学)"
    r"|己糖激酶(?=法)|葡萄糖氧化酶(?=法)|氧化酶(?=法)|酶(?=法)|pcr|poct|elisa|eclia|clia|cmia|ise|hplc|icpms|lcms)+"
    r"(?:分析|定量|检测|测定)?法?$"
)
_GENERATION = re.compile(r"第?[一二三四五]代(?:试剂)?$")
_NUMBERED = re.compile(r"^\d{1,2}[.、)]\s*(?=[\u3400-\u9fff])")
_MINUTES = re.compile(r"(?<![a-z0-9.])(30|60|90|120|180)\s*(?:min|分钟|分)(?![a-z])")
_HOURS = {"30": "半小时", "60": "1小时", "90": "1.5小时", "120": "2小时", "180": "3小时"}
_RATIO = re.compile(r"(?<=[a-z]):(?=[a-z])")
_HOUR = re.compile(r"(?<![a-z0-9.])(\d{1,2})\s*(?:h|hr|hrs)(?![a-z])")
_QUALIFIED = re.compile(r"游离|空腹|餐后|餐前|饭[前后]|负荷|小时|间接|直接$|超敏|高敏|绝对|百分|ig[amge]")
"""Words in brackets without which a name is another test."""
QUALIFIED = 0.3
_TWO_NAMES = re.compile(
    r"(?P<name>.*[\u3400-\u9fff][^\u3400-\u9fff\s]?)\s+[a-z][a-z0-9%#-]*|[a-z][a-z0-9%#+-]*\s+(?P<other>[\u3400-\u9fff]+)"
)
INSIDE = 0.08
"""What it costs to read only what stands in brackets."""
_SYNONYMS = re.compile("[/、|;；]")


def _level(text: str) -> str:
    lowered = simplified(unicodedata.normalize("NFKC", clean_name(text)[0])).casefold().translate(_GREEK)
    lowered = _MINUTES.sub(lambda found: _HOURS[found[1]], _HOUR.sub(r"\1小时", lowered))
    return _ROMAN_RUN.sub(lambda found: dict(_ROMAN)[found[1]], _RATIO.sub("/", lowered))


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

    written = _NUMBERED.sub("", _level(text))
    whole = _METHOD.sub("", written)
    offer(_DROPPED.sub("", whole), 0.0)
    offer(_DROPPED.sub("", written), 0.0)
    for prefix, cost in ((_PANEL, 0.04), (_COMBINED, 0.06), (_SERUM, 0.05)):
        offer(_DROPPED.sub("", prefix.sub("", whole)), cost)
    outside = _DROPPED.sub("", _outside(whole))
    other = any(
        (word := _QUALIFIED.search(inside)) and word[0] not in outside and not inside.endswith("法")
        for inside in _BRACKETED.findall(whole)
    )
    offer(outside, QUALIFIED if other else 0.02)
    if other:
        offer(_DROPPED.sub("", "".join(_BRACKETED.findall(whole))) + outside, 0.04)
    for inside in _BRACKETED.findall(whole):
        offer(_DROPPED.sub("", inside), INSIDE)
    if found := _TWO_NAMES.fullmatch(written):
        offer(_DROPPED.sub("", found["name"] or found["other"]), 0.04)
    for spelling, cost in tuple(out.items()):
        for shorter, more in _shorter(spelling):
            offer(shorter, cost + more)
    for spelling, cost in tuple(out.items()):
        if "/" in spelling:
            offer(spelling.replace("/", ""), cost + 0.03)
            offer(re.sub("比[值例率]?$", "", spelling), cost + 0.02)
        if (usual := canonical(spelling)) != spelling:
            offer(usual, cost + 0.03)
    return tuple(sorted(out.items(), key=lambda pair: pair[1]))


def _outside(text: str) -> str:
    """Without brackets and what they hold, also brackets in brackets."""
    while (bare := _BRACKETED.sub(" ", text)) != text:
        text = bare
    return text


def _shorter(spelling: str) -> Iterator[tuple[str, float]]:
    yield from _without_ends(spelling)
    # A principle of measurement: white cells by strip are not those of the counter, so the name without it costs more.
    found = _PRINCIPLE.search(spelling)
    if found and found.start():
        yield spelling[: found.start()], 0.05
        for shorter, cost in _without_ends(spelling[: found.start()]):
            yield shorter, cost + 0.05
        if found[0].endswith("法"):
            yield spelling[:-1], 0.01


def _without_ends(spelling: str) -> Iterator[tuple[str, float]]:
    if spelling.endswith("总") and len(spelling) > 2:
        # ``胆红素(总)``, ``25-OH-VD总``: what is said behind is said before.
        yield f"总{spelling[:-1]}", 0.03
        if not han(spelling[:-1]):
            yield spelling[:-1], 0.04
    tailless = _GENERATION.sub("", _TAIL.sub("", spelling))
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


def pieces(text: str) -> tuple[str, ...]:
    """What stands outside brackets without the principle of measurement, then what stands in each: ``戊肝IgM(HEV-IgM)ELISA`` ->
    ``戊肝igm``, ``hevigm``."""
    whole = _METHOD.sub("", _level(text))
    outside = _DROPPED.sub("", _outside(whole))
    return (_PRINCIPLE.sub("", outside), *(_DROPPED.sub("", inside) for inside in _BRACKETED.findall(whole)))


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
