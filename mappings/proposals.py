"""Ranked proposals of catalogue items for a local test name. Only proposals: nothing is mapped until a person accepts.

What speaks for an item: the name (exactly, by an alias, by spelling, by sound), the abbreviation, the pinyin entry code, the unit's
dimension, the specimen, the reference range. A name that looks like a known test outside the catalogue, or like nothing, gets none.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache
from pathlib import Path

from mappings import aliases, display_units, english_names, names, ucum
from mappings.aliases import Known
from mappings.catalogue import Catalogue, Item
from mappings.english_examinations import in_chinese
from mappings.english_names import EnglishNames, words
from mappings.examination_names import Examination, examination, likeness
from mappings.name_words import canonical
from mappings.numbers import level
from mappings.reference_range import read_bounds
from mappings.units import UnitTable, shipped

THRESHOLD = 0.6
"""Below this nothing is proposed when a test outside the catalogue is in question as well."""
UNRIVALLED = 0.5
"""The same when no test outside the catalogue has a name like it, and it is no examination: then whatever the search for like
spellings finds at all is shown."""
SHOWN = 5

_BENIGN = frozenset("血清浆性的量值数目率例测定检验人类试剂总平均")
_QUALIFIERS = frozenset(
    "前反非抗原体游离结合直间接糖羟脱硫尿粪便绝对百分比升高低大小超敏左右双全上下甲乙丙丁戊庚亚同工受素酶链片段端型"
)
_ELEMENTS = frozenset("钾钠氯钙磷镁铁铜锌锂铝硒铅汞镉锰铬砷碘硼氟镍钴锶钡铊铋硅硫")
"""One of these in place of another is another test, also when it sounds alike (铝, 氯)."""
_Offer = Callable[[int, float, str], None]
"""Takes a known thing, a score and its reason."""
_SAID = {"urine": "尿", "stool": "粪便", "csf": "脑脊液"}
"""How the specimen stands in the names of the catalogue, where a sender says it beside the name."""
_SERVICE = re.compile(
    r"[费卡]$|采血$|抽血$|采集$|注射$|输液|换药|护理|挂号|诊查|会诊|床位|材料$|试管|采血管|采血针|加收|[酸林辛钠素唑啶胺锌铁钙]片$|胶囊$|注射液|口服液|颗粒$|(?:切除|成形|成型|引流|缝合|置换|穿刺|吻合|取出|修补|植入|消融|治疗)术?$"
)
"""A service, something used up or an intervention: no test, whatever test its name is like."""
_QUANTITATIVE, _QUALITATIVE = re.compile("定量(?!pcr)"), re.compile("定性")
_AGAINST = re.compile("抗([a-z0-9/]+)(?:抗体)?")
_NEGATIVE_WORDS = ("阴", "阳", "neg", "pos", "未见", "正常", "无")


@dataclass(frozen=True, slots=True)
class Local:
    """A local test as sent: code, name, unit, range, specimen. Each may be empty."""

    code: str = ""
    name: str = ""
    unit: str = ""
    range: str = ""
    specimen: str = ""


@dataclass(frozen=True, slots=True)
class Proposal:
    """An item with its score (0 to 1) and what speaks for it: ``name``, ``alias``, ``spelling``, ``sound``, ``abbreviation``,
    ``pinyin``, ``examination``, ``english``, ``unit``, ``specimen``, ``range``; a word that speaks against it begins with ``-``."""

    item: str
    name: str
    score: float
    reasons: tuple[str, ...]


class Proposer:
    """Proposals from one catalogue and one alias table. Immutable after construction; safe to share."""

    def __init__(
        self,
        catalogue: Catalogue,
        table: Path = aliases.TABLE,
        units: UnitTable | None = None,
        english: Path | None = english_names.TABLE,
    ) -> None:
        """Reads the alias table and that of English names (None: those of the catalogue alone). Raises CatalogueError
        with file and line when one names an unknown item or a wrong number."""
        self._units = units or shipped()
        self._known = aliases.read(catalogue, table)
        self._by_name: dict[str, list[int]] = defaultdict(list)
        self._by_abbreviation: dict[str, list[int]] = defaultdict(list)
        self._by_pinyin: dict[str, set[int]] = defaultdict(set)
        self._spellings: list[tuple[str, frozenset[str], Counter[str], int]] = []
        self._having: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._examinations: dict[str, list[tuple[int, Examination]]] = defaultdict(list)
        self._english = EnglishNames(
            catalogue, {k.item.code: n for n, k in enumerate(self._known) if k.item is not None}, english
        )
        self._short_words = [frozenset(w for a in known.abbreviations for w in words(a)) for known in self._known]
        for number, known in enumerate(self._known):
            for spelling in known.names:
                self._by_name[spelling].append(number)
                chinese = names.han(spelling)
                if len(chinese) >= 2:
                    for character, times in Counter(chinese).items():
                        self._having[character].append((len(self._spellings), times))
                    self._spellings.append((chinese, names.letters(spelling), Counter(chinese), number))
                    if chinese == spelling and known.item is not None:
                        self._by_pinyin[names.pinyin(spelling)].add(number)
                        if len(chinese) >= 3:
                            self._by_pinyin[names.initials(spelling)].add(number)
            for short in known.abbreviations:
                self._by_abbreviation[short].append(number)
            for other in known.examinations:
                self._examinations[other.modality].append((number, other))

    def propose(self, local: Local, limit: int = SHOWN) -> list[Proposal]:
        """At most ``limit`` items, best first; empty when nothing is likely enough or a test outside the catalogue is likelier."""
        found = self._named(local) if not _SERVICE.search(names.pieces(local.name)[0]) else {}
        if not found:
            return []
        judged = []
        for number, (base, reasons) in found.items():
            known = self._known[number]
            change, more = self._circumstances(local, known)
            judged.append((base + change, number, (*reasons, *more)))
        judged.sort(key=lambda j: (-j[0], self._known[j[1]].item is not None, j[1]))
        best, first, _ = judged[0]
        # An examination is told by its body part, which a likeness of spelling passes over.
        rivals = (
            any(self._known[number].item is None for number in found) or examination(in_chinese(local.name)) is not None
        )
        if best < (THRESHOLD if rivals else UNRIVALLED) or self._known[first].item is None:
            return []
        out: list[Proposal] = []
        for score, number, reasons in judged:
            item = self._known[number].item
            if item is not None and score >= THRESHOLD - 0.2 and len(out) < limit:
                out.append(Proposal(item.code, item.name_zh, round(min(1.0, score), 3), reasons))
        return out

    # --- the name ----------------------------------------------------------------------------------------------------------

    def _named(self, local: Local) -> dict[int, tuple[float, tuple[str, ...]]]:
        """Known thing -> (score of the name alone, reasons)."""
        found: dict[int, tuple[float, tuple[str, ...]]] = {}

        def offer(number: int, score: float, reason: str) -> None:
            if score > found.get(number, (0.0, ()))[0]:
                found[number] = (score, (reason,))

        text = local.name or local.code
        spellings = names.variants(text)
        # Characters that only say that something is measured are no name: ``pH值(测定)`` is ``pH``.
        chinese = all(names.han(spelling) for spelling, cost in spellings if cost < names.INSIDE)
        for spelling, cost in spellings:
            for number in self._by_name.get(spelling, ()):
                offer(number, 1.0 - cost, self._known[number].names[spelling])
        if chinese and (word := _SAID.get(said := aliases.specimen(local.specimen))) and aliases.specimen(text) != said:
            for spelling, cost in names.variants(word + text):
                for number in self._by_name.get(spelling, ()):
                    offer(number, 0.97 - cost, self._known[number].names[spelling])
        if seen := examination(in_chinese(text)):
            for number, other in self._examinations[seen.modality]:
                offer(number, likeness(seen, other), "examination")
        for number, score in self._english.find(text, self._short_words):
            offer(number, score, "english")
        if against := _AGAINST.fullmatch(names.key(text)):
            for number in self._by_abbreviation.get(against[1], ()):
                if any("抗" in spelling for spelling in self._known[number].names):
                    offer(number, 0.9, "abbreviation")
        if chinese:
            self._by_parts(text, offer)
            self._by_letters(local, text, offer)
            self._by_code(local, text, offer)
            for spelling, cost in spellings:
                if len(names.han(spelling)) >= 2 and cost < names.INSIDE:
                    self._by_spelling(spelling, cost, offer)
        shorts = {names.key(local.code): 0.0} if local.code else {}
        if not chinese:
            shorts = {**dict(spellings), **shorts}
            for short, cost in shorts.items():
                for number in self._by_abbreviation.get(short, ()):
                    offer(number, 0.92 - cost, "abbreviation")
            if local.unit.strip() == "%":
                for short in shorts:
                    for number in self._by_abbreviation.get(short.rstrip("%"), ()) if short.endswith("%") else ():
                        offer(number, 0.8, "abbreviation")
            if not found:
                for short in shorts:
                    for number in self._by_pinyin.get(short, ()) if len(short) >= 4 else ():
                        offer(number, 0.74, "pinyin")
        else:
            shorts |= {spelling: cost for spelling, cost in spellings if not names.han(spelling)}
            supported = {n for short in shorts for n in self._by_abbreviation.get(short, ())}
            for number in supported & set(found):
                score, reasons = found[number]
                found[number] = (score + 0.08, (*reasons, "abbreviation"))
        return found

    def _by_parts(self, text: str, offer: _Offer) -> None:
        """A name that gives two names of one thing, ``可的松/皮质醇``, ``Na+ 钠``."""
        whole = names.key(text)
        if (chinese := names.han(whole)) != whole:
            short = "".join(c for c in whole if c not in chinese)
            for number in set(self._by_name.get(chinese, ())) & set(self._by_abbreviation.get(short, ())):
                offer(number, 0.95, "alias")
        parts = [set(self._by_name.get(part, ())) for part in names.synonyms(text)]
        if parts and all(parts):
            for number in set.intersection(*parts):
                offer(number, 0.95, "alias")

    def _by_letters(self, local: Local, text: str, offer: _Offer) -> None:
        """A name half in letters, ``糖化HbA1c``, ``LDL-胆固醇``: letters or code abbreviate the thing and the Chinese part is
        a piece of one of its names, or both letters and code say the same."""
        outside, *insides = names.pieces(text)
        chinese, code = names.han(outside), names.key(local.code)
        every = {run for piece in (outside, *insides, names.key(text)) for run in names.letters(piece)}
        runs = {r for r in every if len(r.strip("0123456789%#")) >= 3}
        said = {n for run in runs for n in self._by_abbreviation.get(run, ())}
        coded = set(self._by_abbreviation.get(code, ())) if runs else set()
        for number in said | coded:
            pieces = [spelling for spelling in self._known[number].names if chinese in spelling]
            if len(chinese) >= 2 and pieces:
                offer(number, 0.9 if chinese in pieces else 0.8, "abbreviation")
            elif number in said and number in coded:
                offer(number, 0.72, "abbreviation")
        # ``生长激素(GH)基础``: a whole name, its abbreviation in brackets, and a word nobody knows.
        for number in {n for inside in insides for n in self._by_abbreviation.get(inside, ())}:
            for spelling in self._known[number].names:
                if len(spelling) >= 3 and spelling in outside and names.han(spelling):
                    rest = outside.replace(spelling, "", 1)
                    strange = sum(c not in _BENIGN for c in rest)
                    if not set(rest) & _QUALIFIERS and strange <= 4:
                        offer(number, 0.85 - 0.03 * strange, "abbreviation")

    def _by_code(self, local: Local, text: str, offer: _Offer) -> None:
        """A name nobody knows beside a code that abbreviates one thing with which the name shares most of its characters."""
        numbers = self._by_abbreviation.get(names.key(local.code), ()) if local.code else ()
        mine = Counter(names.han(canonical(names.pieces(text)[0])))
        for number in numbers:
            for spelling in self._known[number].names:
                theirs = Counter(names.han(spelling))
                strange = (mine - theirs) + (theirs - mine)
                if sum((mine & theirs).values()) * 2 > max(mine.total(), theirs.total()) and not _QUALIFIERS & set(
                    strange
                ):
                    offer(number, 0.72, "abbreviation")

    def _by_spelling(self, spelling: str, cost: float, offer: _Offer) -> None:
        chinese, letters = names.han(spelling), names.letters(spelling)
        mine = Counter(chinese)
        shared: dict[int, int] = defaultdict(int)
        for character, times in mine.items():
            for place, others in self._having.get(character, ()):
                shared[place] += min(times, others)
        for place, common in shared.items():
            theirs, their_letters, count, number = self._spellings[place]
            if common * 2 < max(len(chinese), len(theirs)):
                continue
            score, reason = _likeness(
                chinese, letters, mine, theirs, their_letters, count, self._known[number].abbreviations
            )
            if score - cost > 0.5:
                offer(number, score - cost, reason)

    # --- what else is known of it --------------------------------------------------------------------------------------------

    def _circumstances(self, local: Local, known: Known) -> tuple[float, tuple[str, ...]]:
        change = 0.0
        reasons: list[str] = []
        item_unit = known.item.unit if known.item is not None else known.unit
        unit = self._units.lookup(local.unit).ucum if local.unit.strip() else None
        words = any(word in local.range.lower() for word in _NEGATIVE_WORDS)
        if unit and (item_unit or known.unit):
            fits = any(_converts(unit, other, known.item) for other in (item_unit, known.unit) if other)
            change += 0.05 if fits else -0.22
            reasons.append("unit" if fits else "-unit")
        elif unit and known.item is not None and not _countless(unit):
            change -= 0.06
        if words:
            change += -0.1 if item_unit else 0.04
        if known.item is not None and _QUALITATIVE.search(known.item.name_zh) and _QUANTITATIVE.search(local.name):
            change -= 0.5
            reasons.append("-quantity")
        elif known.item is not None and item_unit and _QUALITATIVE.search(local.name):
            change -= 0.3
            reasons.append("-quantity")
        specimen = aliases.specimen(local.specimen) or aliases.specimen(local.name)
        if known.specimens:
            if specimen:
                fits = specimen in known.specimens
                change += 0.05 if fits else -0.4
                reasons.append("specimen" if fits else "-specimen")
            elif "blood" not in known.specimens:
                change -= 0.04
        close = _range_fits(local.range, unit, known)
        if close is not None:
            change += 0.04 if close else -0.12
            reasons.append("range" if close else "-range")
        return change, tuple(reasons)


def _likeness(
    mine_text: str, mine_letters: frozenset[str], mine: Counter[str],
    their_text: str, their_letters: frozenset[str], theirs: Counter[str], abbreviations: set[str],
) -> tuple[float, str]:  # fmt: skip
    """Likeness of two spellings, 0 to 0.95, and whether it is of spelling or of sound."""
    if (mine.keys() ^ theirs.keys()) & _ELEMENTS:
        return 0.0, "spelling"
    extra, missing = list((mine - theirs).elements()), list((theirs - mine).elements())
    cost, reason = 0.0, "spelling"
    for character in tuple(extra):
        twin = next((m for m in missing if names.sound(m) == names.sound(character)), None)
        if twin is not None:
            extra.remove(character)
            missing.remove(twin)
            cost, reason = cost + 0.03, "sound"
    size = len(mine_text)
    for character in extra:
        cost += 0.03 if character in _BENIGN else 0.3 if character in _QUALIFIERS else 0.28 if size <= 6 else 0.2
    for character in missing:
        cost += 0.03 if character in _BENIGN else 0.25 if character in _QUALIFIERS else 0.14
    if not extra and not missing and mine_text != their_text and reason == "spelling":
        cost += 0.04
    for run in mine_letters - their_letters:
        cost += 0.0 if run in abbreviations else 0.22
    cost += 0.2 * len(their_letters - mine_letters)
    return max(0.0, 0.95 - cost), reason


def _converts(unit: str, other: str, item: Item | None) -> bool:
    if ucum.factor(unit, other) is not None:
        return True
    mass = item.molar_mass if item is not None else None
    if mass and display_units.convert(Decimal(1), unit, other, mass) is not None:
        return True
    one, two = ucum.read(unit), ucum.read(other)
    return (
        one is not None
        and two is not None
        and bool(one.dimension)
        and one.dimension == two.dimension
        and not (one.marks and two.marks)
    )


def _countless(unit: str) -> bool:
    """A unit without a dimension (S/CO, %, index) says nothing against an item in words."""
    meaning = ucum.read(unit)
    return meaning is None or not meaning.dimension


def _range_fits(text: str, unit: str | None, known: Known) -> bool | None:
    """Does the sender's range look like a usual one? None when that cannot be said."""
    if not text or known.high is None or (unit is None and known.unit not in ("", "1")):
        return None
    low, high = read_bounds(level(text))
    bound, usual = (high, known.high) if high is not None else (low, known.low)
    if bound is None or usual is None or bound <= 0 or usual <= 0:
        return None
    if unit is not None and known.unit:
        converted = display_units.convert(bound, unit, known.unit, known.item.molar_mass if known.item else None)
        if converted is None or converted <= 0:
            return None
        bound = converted
    ratio = max(bound / usual, usual / bound)
    return True if ratio < Decimal("1.7") else False if ratio > 5 else None


@lru_cache(maxsize=1)
def shipped_order_proposer() -> Proposer:
    """The proposer of the shipped orderables (what is ordered and charged), built once."""
    from mappings.catalogue import shipped as shipped_catalogue  # noqa: PLC0415 - the catalogue is only read when asked for

    known = shipped_catalogue()
    orderables = {o.code: Item(o.code, o.category, o.name_zh, o.name_en) for o in known.orderables.values()}
    return Proposer(replace(known, items=orderables), aliases.ORDERABLES, english=None)


@lru_cache(maxsize=1)
def shipped_proposer() -> Proposer:
    """The proposer of the shipped catalogue and aliases, built once."""
    from mappings.catalogue import shipped as shipped_catalogue  # noqa: PLC0415 - the catalogue is only read when asked for

    return Proposer(shipped_catalogue())
