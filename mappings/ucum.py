"""UCUM codes laboratories use: are two codes the same unit, and by which factor do they convert (https://ucum.org/ucum, 2.1).

A small evaluator of the UCUM grammar (section 2) over the atoms a laboratory and a ward need, case sensitive as in ``c/s`` symbols.
It is exact (fractions), starts without loading a unit library, and its answers are compared with one in the tests.
Annotations are kept apart: ``ug/L{FEU}`` and ``ug/L{DDU}`` are not the same unit although UCUM reads both as ug/L.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

Dimension = tuple[tuple[str, int], ...]
"""Base symbols with their exponents, sorted, no zero exponents."""

_PREFIXES = {
    "Y": 24, "Z": 21, "E": 18, "P": 15, "T": 12, "G": 9, "M": 6, "k": 3, "h": 2, "da": 1, "d": -1, "c": -2, "m": -3,
    "u": -6, "n": -9, "p": -12, "f": -15, "a": -18, "z": -21, "y": -24,
}  # fmt: skip

# atom -> (scale in base units, base dimension, takes prefixes). Base: m s g K cd C rad (UCUM table 2), and three kept apart that UCUM
# folds into 1 or into each other, because a laboratory does not: mol (amount), eq (charge), osm (osmoles).
_DAY = 86400
_ATOMS: dict[str, tuple[Fraction, Dimension, bool]] = {}


def _atom(symbol: str, scale: Fraction | int | str, dimension: dict[str, int], metric: bool = False) -> None:
    _ATOMS[symbol] = (Fraction(scale), tuple(sorted(dimension.items())), metric)


for _symbol in ("m", "s", "g", "K", "cd", "C", "mol", "eq", "osm"):
    _atom(_symbol, 1, {_symbol: 1}, metric=True)
_atom("rad", 1, {"rad": 1}, metric=True)
_atom("10*", 10, {})
_atom("10^", 10, {})
_atom("%", "1/100", {})
_atom("[ppth]", "1/1000", {})
_atom("[ppm]", "1/1000000", {})
_atom("[ppb]", "1/1000000000", {})
for _symbol, _seconds in (("min", 60), ("h", 3600), ("d", _DAY), ("wk", 7 * _DAY), ("a", 31557600), ("mo", 2629800)):
    _atom(_symbol, _seconds, {"s": 1})
for _symbol in ("L", "l"):
    _atom(_symbol, "1/1000", {"m": 3}, metric=True)
_atom("t", 10**6, {"g": 1}, metric=True)
_atom("u", "166053906660/100000000000000000000000000000000000", {"g": 1}, metric=True)
_atom("Hz", 1, {"s": -1}, metric=True)
_atom("N", 1000, {"g": 1, "m": 1, "s": -2}, metric=True)
_atom("Pa", 1000, {"g": 1, "m": -1, "s": -2}, metric=True)
_atom("bar", 10**8, {"g": 1, "m": -1, "s": -2}, metric=True)
_atom("J", 1000, {"g": 1, "m": 2, "s": -2}, metric=True)
_atom("W", 1000, {"g": 1, "m": 2, "s": -3}, metric=True)
_atom("cal", 4184, {"g": 1, "m": 2, "s": -2}, metric=True)
_atom("V", 1000, {"g": 1, "m": 2, "s": -2, "C": -1}, metric=True)
_atom("A", 1, {"C": 1, "s": -1}, metric=True)
_atom("Ohm", 1000, {"g": 1, "m": 2, "s": -1, "C": -2}, metric=True)
_atom("Bq", 1, {"s": -1}, metric=True)
_atom("Ci", 37 * 10**9, {"s": -1}, metric=True)
_atom("Gy", 1, {"m": 2, "s": -2}, metric=True)
_atom("Sv", 1, {"m": 2, "s": -2}, metric=True)
_atom("lm", 1, {"cd": 1, "rad": 2}, metric=True)
_atom("deg", "1/360", {"circle": 1})
_atom("P", "100", {"g": 1, "m": -1, "s": -1}, metric=True)
_atom("m[H2O]", 9806650, {"g": 1, "m": -1, "s": -2}, metric=True)
_atom("m[Hg]", 133322000, {"g": 1, "m": -1, "s": -2}, metric=True)
_atom("[in_i]", "254/10000", {"m": 1})
_atom("[lb_av]", "45359237/100000", {"g": 1})
_atom("kat", 1, {"mol": 1, "s": -1}, metric=True)
_atom("U", "1/60000000", {"mol": 1, "s": -1}, metric=True)
# Arbitrary and special units (UCUM sections 21, 22, 24): never convertible by a factor to anything else, so each is its own base.
# HPF and LPF are 1 in UCUM; "per field" is a count per area and must not equal a bare count.
for _symbol in (
    "[arb'U]", "[USP'U]", "[CFU]", "[PFU]", "[CCID_50]", "[pH]", "[GPL'U]", "[MPL'U]", "[APL'U]", "[HPF]", "[LPF]", "[drp]", "[EU]",
    "[anti'Xa'U]", "[tb'U]", "[todd'U]", "[knk'U]", "[degF]", "[diop]", "[Ch]", "B[SPL]",
):  # fmt: skip
    _atom(_symbol, 1, {_symbol: 1})
for _symbol in ("[iU]", "[IU]"):
    _atom(_symbol, 1, {"[iU]": 1}, metric=True)
for _symbol in ("B", "Np", "Cel"):
    _atom(_symbol, 1, {_symbol: 1}, metric=True)

_INSIGNIFICANT = frozenset(
    {"cells", "cell", "count", "#", "copies", "copy", "beats", "breaths", "score", "ratio", "number", "1", "titer"}
)
_TOKEN = re.compile(r"\{[^{}]*\}|[./()]|(?:\[[^\[\]]*\]|10[*^]|[A-Za-z%'_])+|[+-]?\d+|\[[^\[\]]*\]")
_ANNOTATION = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a code means: ``scale`` times its base dimension; ``marks`` are the annotations that matter."""

    scale: Fraction
    dimension: Dimension
    marks: tuple[str, ...]


@lru_cache(maxsize=4096)
def read(code: str) -> Meaning | None:
    """UCUM code -> Meaning; None when it is not UCUM or uses an atom unknown here."""
    if not code or not code.isascii() or len(code) > 64 or " " in code:
        return None
    marks = tuple(sorted(a for a in (m.lower() for m in _ANNOTATION.findall(code)) if a not in _INSIGNIFICANT))
    tokens = _TOKEN.findall(code)
    if "".join(tokens) != code:
        return None
    try:
        scale, dimension, rest = _term(tokens, 0)
    except (ValueError, IndexError, ZeroDivisionError):
        return None
    if rest != len(tokens):
        return None
    return Meaning(scale, tuple(sorted((b, e) for b, e in dimension.items() if e)), marks)


def _term(tokens: list[str], at: int) -> tuple[Fraction, dict[str, int], int]:
    """``[/] component { (./) component }``; stops at ``)`` or the end."""
    scale, dimension = Fraction(1), dict[str, int]()
    sign = 1
    if tokens[at] == "/":
        sign, at = -1, at + 1
    while True:
        if tokens[at] == "(":
            s, d, at = _term(tokens, at + 1)
            if tokens[at] != ")":
                raise ValueError("unbalanced parenthesis")
            at += 1
            if at < len(tokens) and tokens[at].startswith("{"):
                at += 1
        else:
            s, d, at = _component(tokens, at)
        scale *= s**sign
        for base, exponent in d.items():
            dimension[base] = dimension.get(base, 0) + sign * exponent
        if at == len(tokens) or tokens[at] == ")":
            return scale, dimension, at
        if tokens[at] not in (".", "/"):
            raise ValueError("operator expected")
        sign = -1 if tokens[at] == "/" else 1
        at += 1


def _component(tokens: list[str], at: int) -> tuple[Fraction, dict[str, int], int]:
    token = tokens[at]
    at += 1
    if token.startswith("{"):
        return Fraction(1), {}, at
    if token.isdigit():
        # LOINC's ``/100{WBC}``: an annotation after a number.
        return Fraction(int(token)), {}, at + (at < len(tokens) and tokens[at].startswith("{"))
    scale, base = _simple(token)
    exponent = 1
    if at < len(tokens) and re.fullmatch(r"[+-]?\d{1,3}", tokens[at]):
        exponent = int(tokens[at])
        at += 1
    if at < len(tokens) and tokens[at].startswith("{"):
        at += 1
    return scale**exponent, {b: e * exponent for b, e in base}, at


def _simple(symbol: str) -> tuple[Fraction, Dimension]:
    if symbol in _ATOMS:
        return _ATOMS[symbol][0], _ATOMS[symbol][1]
    for length in (1, 2):
        power = _PREFIXES.get(symbol[:length])
        atom = _ATOMS.get(symbol[length:])
        if power is not None and atom is not None and atom[2]:
            return Fraction(10) ** power * atom[0], atom[1]
    raise ValueError("unknown unit atom")


def same_unit(a: str, b: str) -> bool:
    """True when both codes mean one and the same unit (``10*9/L`` = ``10*3/uL``, ``g/L`` = ``mg/mL``); ``g/L`` and ``g/dL`` differ."""
    return a == b or factor(a, b) == 1


def same_property(a: str, b: str) -> bool:
    """True when both codes measure one property and differ at most by a factor (``g/L`` and ``g/dL``, ``L/L`` and ``%``).

    Where everything cancels, amounts of substance and masses are still told apart: ``mmol/mol`` and ``%`` are two properties (HbA1c).
    """
    one = read(a)
    if a == b or one is None or factor(a, b) is None:
        return a == b
    return bool(one.dimension) or _cancelled(a) == _cancelled(b)


_PARTS_OF_WHOLE = re.compile(r"mol|eq|osm|(?<![A-Za-z])[munpkf]?g(?![A-Za-z])")


def _cancelled(code: str) -> frozenset[str]:
    """What a number without dimension was a share of, as far as it is no mere volume or count."""
    return frozenset(found[-1] if found[-1] == "g" else found for found in _PARTS_OF_WHOLE.findall(code))


def factor(source: str, target: str) -> Fraction | None:
    """What a number in ``source`` is multiplied by to stand in ``target``; None when they do not convert by a factor alone."""
    if source == target:
        return Fraction(1)
    one, other = read(source), read(target)
    if one is None or other is None or one.dimension != other.dimension or one.marks != other.marks:
        return None
    return one.scale / other.scale
