"""Recognition rules as values: catalogue, policies, articles and lawful reasons, under one version digest.

The catalogue (mappings.catalogue) and ``mappings/catalogue/policy.yaml`` are data that a quality-control group owns. A decision stores
``Rules.version``; the same version and the same candidates always give the same decision.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mappings import catalogue, codes
from mappings.catalogue import Item, Orderable

if TYPE_CHECKING:
    from mappings.profile import Profile

POLICY_FILE = "policy.yaml"


class Mode(StrEnum):
    """How a policy uses a criterion. if-stated: only where the data says something; what it says then counts."""

    REQUIRED = "required"
    IF_STATED = "if-stated"
    NOT_REQUIRED = "not-required"


class RulesError(Exception):
    """The rules cannot be used; the text names the file and every wrong key."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_CHOSEN = ("value", "unit", "specimen", "quality", "window", "own-facility", "consortium", "context")
"""Criteria a policy decides about; identity, received, final, mapped and item are always required."""


class Policy(_Part):
    """What one consortium requires. ``consortia``: ids it is for, ``*`` for every one; empty: for facilities of none."""

    id: str
    name_zh: str
    name_en: str
    consortia: tuple[str, ...]
    time_base: Literal["effective", "issued"] = "effective"
    own_facility_results: bool = True
    fit_specimens: frozenset[str] = frozenset()
    criteria: dict[str, Mode]

    @field_validator("criteria")
    @classmethod
    def _known(cls, criteria: dict[str, Mode]) -> dict[str, Mode]:
        if unknown := sorted(set(criteria) ^ set(_CHOSEN)):
            raise ValueError(f"each of {', '.join(_CHOSEN)} must stand here once; look at {', '.join(unknown)}")
        return criteria

    def mode(self, criterion: str) -> Mode:
        """How this policy uses a criterion; those it has no say about are required."""
        return self.criteria.get(criterion, Mode.REQUIRED)


class Article(_Part):
    """What a criterion rests on. ``found``: the wording was read in ``source``; else the criterion is a rule of this project."""

    citation: str
    text: str
    source: str
    found: bool


class Reason(_Part):
    """A lawful circumstance for a repeat (codes 1-6); ``text_required``: only with words of 1-200 characters."""

    code: str
    zh: str
    en: str
    text_required: bool = False


class _File(_Part):
    reasons: tuple[Reason, ...] = Field(min_length=1)
    policies: tuple[Policy, ...] = Field(min_length=1)
    articles: Mapping[str, Article]


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything a decision rests on.

    version   digest of catalogue and policy file, 16 hexadecimal digits
    members   facility id -> consortium id, of the facilities that belong to one
    """

    version: str
    items: Mapping[str, Item]
    orderables: Mapping[str, Orderable]
    by_loinc: Mapping[str, Item]
    policies: Sequence[Policy]
    articles: Mapping[str, Article] = field(default_factory=dict)
    reasons: Mapping[str, Reason] = field(default_factory=dict)
    members: Mapping[str, str] = field(default_factory=dict)

    def consortium_of(self, facility: str) -> str:
        """Consortium a facility belongs to; empty when none is known."""
        return self.members.get(facility, "")

    def policy_of(self, facility: str) -> Policy:
        """The policy that names the facility's consortium, else the one for ``*``; without a consortium the one that names none."""
        consortium = self.consortium_of(facility)
        for name in (consortium, "*") if consortium else ():
            for policy in self.policies:
                if name in policy.consortia:
                    return policy
        return next((p for p in self.policies if not p.consortia), self.policies[-1])

    def among(self, profiles: Mapping[str, Profile]) -> Rules:
        """The same rules for these facilities: who belongs to which consortium is read from their profiles."""
        consortia = {key: profile.facility.organization.consortium for key, profile in profiles.items()}
        return replace(self, members={key: name for key, name in consortia.items() if name})


def price(orderable: Orderable, profile: Profile | None, day: str) -> int | None:
    """Price in fen on a day (``YYYY-MM-DD``): the facility's own, else the catalogue's suggestion, else None."""
    own = codes.prices(profile.orders, day) if profile else {}
    return own.get(orderable.code, orderable.price)


def load(directory: Path = catalogue.DIRECTORY) -> Rules:
    """The rules in a catalogue folder. Raises RulesError or mappings.catalogue.CatalogueError naming what is wrong where."""
    found = catalogue.shipped() if directory == catalogue.DIRECTORY else catalogue.load(directory)
    path = directory / POLICY_FILE
    try:
        data = path.read_bytes()
        file = _File.model_validate(yaml.safe_load(data))
    except OSError as fault:
        raise RulesError(f"{path.name}: cannot be read: {fault.strerror}") from None
    except yaml.YAMLError as fault:
        raise RulesError(f"{path.name}: {' '.join(str(fault).split())}") from None
    except ValidationError as fault:
        lines = [
            f"{path.name}: {'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in fault.errors(include_input=False)
        ]
        raise RulesError("\n".join(lines)) from None
    digest = hashlib.sha256(found.digest.encode() + b"\n" + data.replace(b"\r\n", b"\n")).hexdigest()
    return Rules(
        version=digest[:16],
        items=found.items,
        orderables=found.orderables,
        by_loinc=found.by_loinc,
        policies=file.policies,
        articles=file.articles,
        reasons={r.code: r for r in file.reasons},
    )
