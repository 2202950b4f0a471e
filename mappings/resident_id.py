"""Resident ID numbers (GB 11643-1999): 6 area digits, 8 birth date, 3 sequence (odd male, even female), 1 check character.

The old 15-digit form has a two-digit year (19YY) and no check character. A valid number is well-formed; that it belongs to this person
is for identity matching to decide.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from datetime import date

_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CHECK = "10X98765432"
_NEW = re.compile(r"[1-9]\d{16}[\dX]", re.ASCII)
_OLD = re.compile(r"[1-9]\d{14}", re.ASCII)
_MEANT = re.compile(r"[1-9]\d{5}(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dX]", re.ASCII)
_OTHER = re.compile(r"[A-Z]{3}\d{12}|(?=.*\d)[A-Z]{0,2}\d{5,10}[A-Z]?(?:\([\dA]\))?", re.ASCII)
_GAPS = re.compile(r"[\s\u00ad\u200b-\u200f\ufeff-]+")


@dataclass(frozen=True, slots=True)
class ResidentId:
    """A well-formed number.

    number      normalised, as written: 18 characters, or 15 for the old form
    full        18 characters (the old form completed with century 19 and its check character)
    birth_date  ``YYYY-MM-DD``
    sex         FHIR administrative-gender: ``male`` or ``female``
    region      GB/T 2260 county code, 6 digits
    """

    number: str
    full: str
    birth_date: str
    sex: str
    region: str


def normalise(text: str) -> str:
    """Upper case X, half width, without spaces, hyphens and zero-width characters. Says nothing about validity."""
    return _GAPS.sub("", unicodedata.normalize("NFKC", text)).upper()


def meant(text: str) -> bool:
    """Whether a number without a type is meant as a resident ID number: 17 digits with a date inside, and a check character."""
    return _MEANT.fullmatch(normalise(text)) is not None


def is_other_document(text: str) -> bool:
    """Whether a number looks like that of another identity document: passport, permits and identity cards of residents of Hong Kong,
    Macau and Taiwan (``H12345678``, ``01234567``, ``A123456(7)``), the older residence card of foreigners (``USA110070010101``).
    Residence permits since 2018 and foreigners' cards since 2023 have numbers of the form of a resident ID number."""
    return _OTHER.fullmatch(normalise(text)) is not None


def check_character(first17: str) -> str:
    """Check character of 17 digits (ISO 7064 MOD 11-2). Raises ValueError for anything but 17 ASCII digits."""
    if len(first17) != 17 or not (first17.isascii() and first17.isdigit()):
        raise ValueError("17 digits are needed")
    return _CHECK[sum(int(d) * w for d, w in zip(first17, _WEIGHTS, strict=True)) % 11]


def read(text: str) -> ResidentId | None:
    """A number as sent -> ResidentId; None when its form, birth date or check character is wrong."""
    number = normalise(text)
    if _OLD.fullmatch(number):
        first17 = number[:6] + "19" + number[6:]
        full = first17 + check_character(first17)
    elif _NEW.fullmatch(number) and check_character(number[:17]) == number[17]:
        full = number
    else:
        return None
    try:
        born = date(int(full[6:10]), int(full[10:12]), int(full[12:14]))
    except ValueError:
        return None
    if born.year < 1850:
        return None
    return ResidentId(number, full, born.isoformat(), "male" if int(full[16]) % 2 else "female", full[:6])
