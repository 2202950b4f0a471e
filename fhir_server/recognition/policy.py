"""The policy of a consortium or a region as data: which criteria are required for whom, windows, exclusions, and what they rest on.

Read from YAML (mappings/catalogue/policy*.yaml); docs/recognition.md explains each key. Nothing here decides: criteria.py asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fhir_server.recognition.levels import LevelRule
from mappings.catalogue import Item


class Mode(StrEnum):
    """How a policy uses a criterion. if-stated: only where the data says something; what it says then counts."""

    REQUIRED = "required"
    IF_STATED = "if-stated"
    NOT_REQUIRED = "not-required"


_STRICTNESS: Final = {Mode.REQUIRED: 2, Mode.IF_STATED: 1, Mode.NOT_REQUIRED: 0}

ALWAYS: Final = ("identity", "received", "final", "mapped", "item")
"""Criteria that no policy can switch off."""
CHOSEN: Final = (
    "value", "unit", "site", "method", "specimen", "quality", "abnormal", "window", "exclusion", "images", "mark", "eqa",
    "level", "ownership", "health-check", "own-facility", "consortium", "context",
)  # fmt: skip
"""Criteria a policy decides about."""


class Part(BaseModel):
    """One mapping of a rules file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _check_names(criteria: dict[str, Mode]) -> None:
    if unknown := sorted(set(criteria) - set(CHOSEN)):
        raise ValueError(f"a policy has no say about {', '.join(unknown)}; it has about {', '.join(CHOSEN)}")


class When(Part):
    """What an override is for; every condition given must hold. ``same_consortium``: asking and issuing facility are known members of
    one; the others look at the catalogue item."""

    same_consortium: Literal[True] | None = None
    category: tuple[str, ...] = ()
    modality: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    items: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _not_empty(self) -> When:
        if not self.model_dump(exclude_defaults=True):
            raise ValueError("name at least one condition")
        return self

    def holds(self, item: Item, same_consortium: bool) -> bool:
        """Do all conditions hold?"""
        return (
            (self.same_consortium is None or same_consortium)
            and (not self.category or item.category in self.category)
            and (not self.modality or item.modality in self.modality)
            and (not self.groups or not set(self.groups).isdisjoint(item.groups))
            and (not self.items or item.code in self.items)
        )


class Override(Part):
    """Other modes, or another window, for some results. Later overrides go over earlier ones."""

    when: When
    criteria: dict[str, Mode] = Field(default_factory=dict)
    window_days: int | None = Field(None, ge=0)
    abnormal_results: Literal["recognized", "excluded"] | None = None

    @field_validator("criteria")
    @classmethod
    def _known(cls, criteria: dict[str, Mode]) -> dict[str, Mode]:
        _check_names(criteria)
        return criteria


class _Applied(NamedTuple):
    """A policy with its overrides for one item. window_days: None: the item's own."""

    modes: Mapping[str, Mode]
    window_days: int | None
    abnormal_results: Literal["recognized", "excluded"]


class Policy(Part):
    """What one consortium or region requires.

    consortia, regions  consortium ids it is for (``*`` for every one), GB/T 2260 codes of the asking facility; both empty: for
                        facilities no other policy is for
    time_base           what windows, marks and EQA look at: the time of collection or examination, or the report time
    window_days         one window for all items that have one; None: each item its own
    own_facility_results, exclusion_hours
                        do own results count; a result younger than so many hours is not offered (0: no exclusion)
    private_institutions, health_checks
                        do results performed by private institutions, and of health-check visits, take part
    abnormal_results    ``excluded``: a result flagged abnormal need not be recognized
    levels              who recognizes whom by hospital level; empty: level does not matter
    emergency_reminds   True: a reminder is shown in an emergency too (there is no duty in either case)
    fit_specimens, fit_images  words that say a specimen or an image is fit
    bare_numbers        UCUM codes of items whose number the consortium agrees to send without any unit (``[pH]``, ``{INR}``)
    criteria            mode of each criterion
    """

    __slots__ = ("_known",)
    if TYPE_CHECKING:
        _known: dict[tuple[object, ...], _Applied]

    id: str
    name_zh: str
    name_en: str
    consortia: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    valid_from: str = Field("", pattern=r"^(\d{4}-\d\d-\d\d)?$")
    valid_to: str = Field("", pattern=r"^(\d{4}-\d\d-\d\d)?$")
    time_base: Literal["effective", "issued"] = "effective"
    window_days: int | None = Field(None, ge=0)
    own_facility_results: bool = True
    exclusion_hours: float = Field(0, ge=0)
    private_institutions: Literal["included", "excluded"] = "included"
    health_checks: Literal["included", "excluded"] = "included"
    abnormal_results: Literal["recognized", "excluded"] = "recognized"
    levels: tuple[LevelRule, ...] = ()
    emergency_reminds: bool = False
    fit_specimens: frozenset[str] = frozenset()
    fit_images: frozenset[str] = frozenset()
    bare_numbers: frozenset[str] = frozenset()
    criteria: dict[str, Mode]
    overrides: tuple[Override, ...] = ()
    source: str = ""

    @field_validator("criteria")
    @classmethod
    def _complete(cls, criteria: dict[str, Mode]) -> dict[str, Mode]:
        _check_names(criteria)
        if missing := [name for name in CHOSEN if name not in criteria]:
            raise ValueError(f"each of {', '.join(CHOSEN)} must stand here once; look at {', '.join(missing)}")
        return criteria

    @model_validator(mode="after")
    def _only_loosened(self) -> Policy:
        # Membership can go missing; were it to make a rule stricter, a missing fact could turn an answer into recognized.
        for override in self.overrides:
            if override.when.same_consortium is None:
                continue
            if override.window_days is not None or override.abnormal_results == "excluded":
                raise ValueError("an override for same_consortium sets modes only")
            for name, mode in override.criteria.items():
                if _STRICTNESS[mode] > _STRICTNESS[self.criteria[name]]:
                    raise ValueError(f"an override for same_consortium cannot make {name} stricter")
        return self

    def mode(self, criterion: str) -> Mode:
        """How this policy uses a criterion before any override; those it has no say about are required."""
        return self.criteria.get(criterion, Mode.REQUIRED)

    def modes(self, item: Item, same_consortium: bool) -> Mapping[str, Mode]:
        """How it uses every criterion for results of an item, with the overrides that hold."""
        return self._applied(item, same_consortium).modes

    def _applied(self, item: Item, same_consortium: bool) -> _Applied:
        # What When.holds looks at: the same for every result of the item, and asked for by every one.
        key = (item.code, item.category, item.modality, item.groups, same_consortium)
        try:
            known = self._known
        except AttributeError:
            # Beside the fields: a changed copy begins without it, and it says nothing about equality.
            known = {}
            object.__setattr__(self, "_known", known)
        found = known.get(key)
        if found is None:
            modes = {name: self.mode(name) for name in (*ALWAYS, *CHOSEN)}
            days, abnormal = self.window_days, self.abnormal_results
            for override in self.overrides:
                if override.when.holds(item, same_consortium):
                    modes.update(override.criteria)
                    days = days if override.window_days is None else override.window_days
                    abnormal = override.abnormal_results or abnormal
            found = known[key] = _Applied(modes, days, abnormal)
        return found

    def window_of(self, item: Item) -> int:
        """Days of the window of an item, 0 for never: an item that is never recognized stays so."""
        if item.window_days == 0:
            return 0
        days = self._applied(item, same_consortium=False).window_days
        return item.window_days if days is None else days

    def abnormal_of(self, item: Item) -> Literal["recognized", "excluded"]:
        """Do results of an item flagged abnormal count?"""
        return self._applied(item, same_consortium=False).abnormal_results

    def holds(self, day: str) -> bool:
        """Is it in force on a calendar day (``YYYY-MM-DD``)?"""
        return (self.valid_from or "0000") <= day <= (self.valid_to or "9999")


class Article(Part):
    """What a criterion rests on. ``found``: the wording was read in ``source``; else the criterion is a rule of this project."""

    citation: str
    text: str
    source: str
    found: bool


class Reason(Part):
    """A lawful circumstance for a repeat (codes 1-6); ``text_required``: only with words of 1-200 characters."""

    code: str
    zh: str
    en: str
    text_required: bool = False
