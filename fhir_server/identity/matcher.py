"""Are two facility Patients one person? Pure: values in, a verdict out.

Automatic linking asks for all of it: the same valid resident ID number (GB 11643-1999, check character right), the same name, sex and
birth date, and a number whose own birth date and sex digit say the same. What is missing agrees with nothing. A child under a
parent's number, a card lent in the family, a newborn still called after its mother and an unknown patient are never linked by
themselves. Grades are those of FHIR (http://hl7.org/fhir/R4/valueset-match-grade.html).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from conformance.systems import RESIDENT_ID
from mappings import resident_id

Grade = Literal["certain", "probable", "possible", "certainly-not"]

# Interpuncts between the parts of a name (阿不都·克里木) and what is typed for them.
_FILLERS = re.compile(r"[\s\x00\u00ad\u200b-\u200f\u2060\ufeff·•‧∙⋅・･.。．‐-―_'’`-]+")
_NEWBORN = re.compile(
    r"之(?:子|女|婴|男婴|女婴|男|长子|次子|三子|长女|次女|三女|大双|小双|双胎.*|[大小][男女])[0-9a-zⅰ-ⅳ一二三四甲乙丙]*$"
    r"|婴儿|新生儿|^baby|baby(?:boy|girl)?$|bb[0-9]*$"
)
_UNKNOWN = re.compile(r"无名|未知|不详|匿名|某某|^未命名|^unknown|^test|^测试|^[0-9?*x]*$")
_UNREADABLE = re.compile(r"[?\ufffd\ue000-\uf8ff□■〓]")


@dataclass(frozen=True, slots=True)
class Facts:
    """What matching knows of one Patient; None and empty mean unknown.

    resident_id  16-byte digest of the one valid number it carries
    name         normalised (``normalise_name``)
    sex          ``male`` or ``female``
    birth        a whole date
    id_birth, id_sex  what the number itself says; None for facts read back from the store
    """

    resident_id: bytes | None
    name: str
    sex: str | None
    birth: date | None
    id_birth: date | None = None
    id_sex: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """reason: ``agrees``, or the first thing that stands against a certain match."""

    grade: Grade
    reason: str


def normalise_name(text: str) -> str:
    """A name for comparing: width, case, spaces and interpuncts do not count (Unicode NFKC)."""
    return _FILLERS.sub("", unicodedata.normalize("NFKC", text)).casefold()


def facts(patient: dict[str, Any] | None) -> Facts:
    """A FHIR R4 Patient -> Facts; None (deleted, or never seen) -> nothing known."""
    if not patient:
        return Facts(None, "", None, None)
    numbers = {}
    for identifier in patient.get("identifier", ()):
        if (
            identifier.get("system") == RESIDENT_ID
            and identifier.get("use") != "old"
            and isinstance(identifier.get("value"), str)
        ):
            found = resident_id.read(identifier["value"])
            # The old form has no check character, so a slip of the pen would go unseen: it proves nothing.
            if found is not None and len(found.number) == 18:
                numbers[found.number] = found
    number = next(iter(numbers.values())) if len(numbers) == 1 else None
    sex = patient.get("gender")
    return Facts(
        resident_id=digest(number.number) if number else None,
        name=normalise_name(_name(patient)),
        sex=sex if sex in ("male", "female") else None,
        birth=_date(patient.get("birthDate")),
        id_birth=_date(number.birth_date) if number else None,
        id_sex=number.sex if number else None,
    )


def judge(a: Facts, b: Facts) -> Verdict:
    """Symmetric. ``certain`` exactly when both have the same ``certain_key``; probable and possible are for a person to look at."""
    if a.resident_id and b.resident_id and a.resident_id != b.resident_id:
        return Verdict("certainly-not", "resident-id-differs")
    if not (a.resident_id and b.resident_id):
        difference = _difference(a, b)
        if difference:
            return Verdict("certainly-not", difference)
        return Verdict("possible", _doubts(a, b) or _missing(a, b) or "no-resident-id")
    against = _doubts(a, b) or _difference(a, b) or _contradiction(a, b)
    if against:
        return Verdict("possible", against)
    missing = _missing(a, b)
    return Verdict("probable", missing) if missing else Verdict("certain", "agrees")


def certain_key(f: Facts) -> bytes | None:
    """Digest of everything that has to agree; equal keys are a certain match. None when ``f`` cannot be in one.

    ``f`` has to come from ``facts``: what was read back from the store does not know what its number says.
    """
    if not f.resident_id or not f.sex or not f.birth or _doubt(f.name) or f.id_birth != f.birth or f.id_sex != f.sex:
        return None
    parts = f"{f.name}\x1f{f.sex}\x1f{f.birth.isoformat()}"
    return hashlib.blake2b(
        f.resident_id + parts.encode(errors="replace"), digest_size=16, person=b"tongjian-match"
    ).digest()


def digest(number: str) -> bytes:
    """16-byte digest of a resident ID number: it finds equal ones and shows none."""
    return hashlib.blake2b(number.encode(), digest_size=16, person=b"tongjian-id").digest()


def comparable_name(name: str) -> bool:
    """False for names that many share: newborns, unknown patients, text that lost characters."""
    return not _doubt(name)


def _difference(a: Facts, b: Facts) -> str:
    if a.name and b.name and a.name != b.name:
        return "name-differs"
    if a.birth and b.birth and a.birth != b.birth:
        return "birth-differs"
    if a.sex and b.sex and a.sex != b.sex:
        return "sex-differs"
    return ""


def _contradiction(a: Facts, b: Facts) -> str:
    # Both carry the same number, so what one of them knows of it holds for the other.
    born, sex = a.id_birth or b.id_birth, a.id_sex or b.id_sex
    if born and any(f.birth and f.birth != born for f in (a, b)):
        return "id-birth-differs"
    if sex and any(f.sex and f.sex != sex for f in (a, b)):
        return "id-sex-differs"
    return ""


def _missing(a: Facts, b: Facts) -> str:
    for name, present in (("name", a.name and b.name), ("birth", a.birth and b.birth), ("sex", a.sex and b.sex)):
        if not present:
            return f"missing-{name}"
    return ""


def _doubts(a: Facts, b: Facts) -> str:
    """What makes one of the names useless though it is there."""
    return min({_doubt(a.name), _doubt(b.name)} - {"", "missing-name"}, default="")


def _doubt(name: str) -> str:
    if not name:
        return "missing-name"
    if _NEWBORN.search(name):
        return "newborn"
    if _UNREADABLE.search(name):
        return "name-unreadable"
    return "name-unknown" if _UNKNOWN.search(name) else ""


def _name(patient: dict[str, Any]) -> str:
    """The name in force: official before usual before others, one with Han characters before its spelling in letters."""
    best, found = 99, ""
    for name in patient.get("name", ()):
        use = name.get("use", "")
        if use in ("old", "maiden", "anonymous", "temp"):
            continue
        text = name.get("text") or name.get("family", "") + "".join(name.get("given", ()))
        score = {"official": 0, "": 1, "usual": 1}.get(use, 2) + (
            0 if re.search(r"[\u3400-\u9fff\U00020000-\U0003ffff]", text) else 10
        )
        if text and score < best:
            best, found = score, text
    return found


def _date(text: object) -> date | None:
    if not isinstance(text, str) or len(text) != 10:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None
