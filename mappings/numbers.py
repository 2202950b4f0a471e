"""Numbers inside text: decimals that keep their digits, comparators, the many dashes (HL7 v2.5.1 2.A.47 NM; FHIR decimal)."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from typing import Any

from conformance.fhirjson import JsonNumber
from conformance.systems import UCUM
from mappings.units import Unit

_MAX_DIGITS = 40
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[Ee][+-]?\d{1,2})?", re.ASCII)
_JSON = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[Ee][+-]?\d+)?", re.ASCII)

# Dashes and signs NFKC leaves alone. 〈 is typed for < on Chinese keyboards and has no other meaning before a number.
_LEVEL = str.maketrans(
    {"–": "-", "—": "-", "−": "-", "‐": "-", "‑": "-", "―": "-", "〜": "~", "∼": "~", "˜": "~", "〈": "<", "〉": ">"}
)
_SPACES = re.compile(r"[\s\u200b-\u200f\ufeff]+")

COMPARATORS = {
    "<": "<", ">": ">", "<=": "<=", ">=": ">=", "=<": "<=", "=>": ">=", "≤": "<=", "≥": ">=", "≦": "<=", "≧": ">=",
    "⩽": "<=", "⩾": ">=",
    "小于": "<", "大于": ">", "小于等于": "<=", "大于等于": ">=", "低于": "<", "高于": ">",
}  # fmt: skip
"""Written comparator -> FHIR quantity-comparator (http://hl7.org/fhir/R4/valueset-quantity-comparator.html)."""
COMPARATOR = "|".join(sorted((re.escape(c) for c in COMPARATORS), key=len, reverse=True))
"""Alternation of the written comparators, longest first."""


def level(text: str) -> str:
    """Half width, one kind of dash and tilde, single spaces, trimmed: the spelling in which numbers are looked for."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).translate(_LEVEL)
    return _SPACES.sub(" ", text).strip()


def number(text: str) -> JsonNumber | None:
    """A number as written -> Decimal that is served with the same digits; None when it is not one number.

    Takes a sign, ``.5``, ``5.``, leading zeros and an exponent. Does not take ``1,234`` or ``5,6``: which is which is not known.
    """
    if not _NUMBER.fullmatch(text) or len(text) > _MAX_DIGITS:
        return None
    if _JSON.fullmatch(text):
        return JsonNumber(text)
    sign = "-" if text[0] == "-" else ""
    mantissa, mark, exponent = text.lstrip("+-").replace("e", "E").partition("E")
    whole, _, fraction = mantissa.partition(".")
    return JsonNumber(f"{sign}{whole.lstrip('0') or '0'}{'.' + fraction if fraction else ''}{mark}{exponent}")


def quantity(value: Decimal, unit: Unit | None, comparator: str = "") -> dict[str, Any]:
    """FHIR Quantity: number, comparator, unit text as sent, UCUM code when known."""
    out: dict[str, Any] = {"value": value}
    if comparator:
        out["comparator"] = comparator
    if unit is not None:
        out["unit"] = unit.text
        if unit.ucum:
            out["system"] = UCUM
            out["code"] = unit.ucum
    return out
