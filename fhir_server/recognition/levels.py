"""Hospital levels (医院分级管理: 三级特等 ... 一级丙等) as values that can be compared, and who recognizes whom by level.

A rule names ranges of the asking and of the performing facility; local notices (Hangzhou, Ganzhou) are written that way.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_TIERS: Final = {"三": 3, "二": 2, "一": 1, "3": 3, "2": 2, "1": 1}
_GRADES: Final = {"特": 4, "甲": 3, "乙": 2, "丙": 1, "A": 3, "B": 2, "C": 1}
_LEVEL: Final = re.compile(
    r"^(?P<tier>[三二一321])级?(?P<grade>[特甲乙丙ABC])?等?(?:级)?(?:\(?未(?:定|评)(?:等|级)?\)?)?"
    r"\(?(?:公立|综合|专科|中医|中西医结合|民族|妇幼|妇产|儿童|精神|精神病|肿瘤|口腔|传染病|康复|乡镇|中心|县级|市级|省级)*"
    r"(?:院|医院|保健院|卫生院|医疗中心|医疗机构)?\)?$"
)
# Institutions that are not classified hospitals stand below all that are.
_PRIMARY: Final = re.compile(r"卫生室|卫生站|卫生所|卫生院|卫生服务|医务室|诊所|门诊部|村医|未评级|未定级|基层|^无$")


class Level(NamedTuple):
    """tier 3, 2, 1 (级), 0 for institutions that are not classified; grade 4 特, 3 甲, 2 乙, 1 丙, 0 not graded. They compare."""

    tier: int
    grade: int


@lru_cache(maxsize=512)
def read(text: str) -> Level | None:
    """``三级甲等``, ``三甲``, ``二级(未定等)``, ``3A``, ``乡镇卫生院`` -> Level; None when it says nothing that is known."""
    plain = re.sub(r"\s", "", unicodedata.normalize("NFKC", text)).upper()
    if found := _LEVEL.match(plain):
        return Level(_TIERS[found["tier"]], _GRADES.get(found["grade"] or "", 0))
    return Level(0, 0) if plain and _PRIMARY.search(plain) else None


class Range(BaseModel):
    """Levels from ``from`` to ``to``, both inside, each open when left out."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    low: str = Field("", alias="from")
    high: str = Field("", alias="to")

    @field_validator("low", "high")
    @classmethod
    def _readable(cls, text: str) -> str:
        if text and read(text) is None:
            raise ValueError(f"{text!r} is not a level such as 三级甲等, 二级乙等, 一级, 乡镇卫生院")
        return text

    def holds(self, level: Level) -> bool:
        """Is the level inside?"""
        low, high = read(self.low), read(self.high)
        return (low is None or level >= low) and (high is None or level <= high)


class LevelRule(BaseModel):
    """Facilities of one range recognize those of another, or of the ``same`` level, or of a ``higher`` one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    asking: Range | Literal["any"] = "any"
    performing: Range | Literal["any", "same", "higher"] = "any"

    @model_validator(mode="after")
    def _says_something(self) -> LevelRule:
        if self.asking == "any" and self.performing == "any":
            raise ValueError("a level rule that allows everything is no rule: leave levels out")
        return self

    def allows(self, asking: Level, performing: Level) -> bool:
        """Does this rule let ``asking`` recognize ``performing``?"""
        if isinstance(self.asking, Range) and not self.asking.holds(asking):
            return False
        if isinstance(self.performing, Range):
            return self.performing.holds(performing)
        return {"any": True, "same": performing == asking, "higher": performing > asking}[self.performing]


def allowed(rules: Sequence[LevelRule], asking: str, performing: str) -> bool | None:
    """May a facility of level ``asking`` recognize one of level ``performing`` (texts)? None when a level is not known."""
    one, other = read(asking), read(performing)
    if one is None or other is None:
        return None
    return any(rule.allows(one, other) for rule in rules)
