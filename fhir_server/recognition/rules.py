"""Recognition rules as values: catalogue, policies, articles and lawful reasons, under one version digest.

The catalogue (mappings.catalogue) and ``mappings/catalogue/policy.yaml`` are data that a quality-control group owns. A decision stores
``Rules.version``; the same version and the same candidates always give the same decision.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from pydantic import Field, ValidationError

from fhir_server.recognition import marks_csv
from fhir_server.recognition.marks import Register
from fhir_server.recognition.policy import Article, Mode, Part, Policy, Reason
from mappings import catalogue, codes
from mappings.catalogue import Item, Orderable
from mappings.csv_rows import Problem

if TYPE_CHECKING:
    from mappings.profile import Profile

__all__ = ("Article", "Mode", "Policy", "Reason", "Rules", "RulesError", "Standing", "examples", "load", "price")

POLICY_FILE = "policy.yaml"


class RulesError(Exception):
    """The rules cannot be used; the text names the file and every wrong key."""


class _File(Part):
    reasons: tuple[Reason, ...] = Field(min_length=1)
    policies: tuple[Policy, ...] = ()
    include: tuple[str, ...] = ()
    articles: Mapping[str, Article]


class _Included(Part):
    policies: tuple[Policy, ...] = Field(min_length=1)


class Standing(NamedTuple):
    """What the rules ask of a facility: level as text, region (GB/T 2260), is it private; empty and None: not known."""

    level: str = ""
    region: str = ""
    private: bool | None = None


_NOTHING_KNOWN = Standing()


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything a decision rests on.

    version     digest of catalogue, policy and register files, 16 hexadecimal digits
    members     facility id -> consortium id, of the facilities that belong to one
    facilities  facility id -> level, region, ownership
    register    recognition marks and external quality assessment
    history     item code -> its rows by valid time, where there are several
    catalogue_version  digest of the catalogue files alone, 16 hexadecimal digits; directory: the folder the rules were read from
    """

    version: str
    items: Mapping[str, Item]
    orderables: Mapping[str, Orderable]
    by_loinc: Mapping[str, Item]
    policies: Sequence[Policy]
    articles: Mapping[str, Article] = field(default_factory=dict)
    reasons: Mapping[str, Reason] = field(default_factory=dict)
    members: Mapping[str, str] = field(default_factory=dict)
    facilities: Mapping[str, Standing] = field(default_factory=dict)
    register: Register = field(default_factory=Register)
    history: Mapping[str, tuple[Item, ...]] = field(default_factory=dict)
    catalogue_version: str = ""
    directory: Path = catalogue.DIRECTORY

    def consortium_of(self, facility: str) -> str:
        """Consortium a facility belongs to; empty when none is known."""
        return self.members.get(facility, "")

    def standing_of(self, facility: str) -> Standing:
        """Level, region and ownership of a facility, as far as known."""
        return self.facilities.get(facility, _NOTHING_KNOWN)

    def item_at(self, code: str, at: datetime) -> Item | None:
        """The row of an item in force and known at a time (aware); None when there is none."""
        rows = self.history.get(code) or ((self.items[code],) if code in self.items else ())
        if len(rows) == 1 and not (rows[0].valid_from or rows[0].valid_to or rows[0].recorded):
            return rows[0]
        day = self.register.day(at)
        return next((row for row in reversed(rows) if row.holds(day, at)), None)

    def policy_of(self, facility: str, at: datetime | None = None) -> Policy:
        """The policy in force that names the facility's consortium, else its region (the smallest), else ``*``; for a facility
        without a consortium and of no named region the one that names none. ``at``: aware time, None: whatever its period."""
        consortium, region = self.consortium_of(facility), self.standing_of(facility).region
        day = self.register.day(at) if at else ""
        current = [p for p in self.policies if not day or p.holds(day)] or list(self.policies)
        for policy in current:
            if consortium and consortium in policy.consortia:
                return policy
        named = [
            (len(r.rstrip("0")), p) for p in current for r in p.regions if region and region.startswith(_trimmed(r))
        ]
        if named:
            return max(named, key=lambda pair: pair[0])[1]
        for policy in current:
            if consortium and "*" in policy.consortia:
                return policy
        return next((p for p in current if not p.consortia and not p.regions), current[-1])

    def among(self, profiles: Mapping[str, Profile]) -> Rules:
        """The same rules for these facilities: consortium, level, region and ownership are read from their profiles."""
        found = {key: profile.facility.organization for key, profile in profiles.items()}
        return replace(
            self,
            members={key: o.consortium for key, o in found.items() if o.consortium},
            facilities={
                key: Standing(o.level, o.region, {"private": True, "public": False}.get(o.ownership))
                for key, o in found.items()
            },
        )


def _trimmed(code: str) -> str:
    while len(code) > 2 and code.endswith("00"):
        code = code[:-2]
    return code


def price(orderable: Orderable, profile: Profile | None, day: str) -> int | None:
    """Price in fen on a day (``YYYY-MM-DD``): the facility's own, else the catalogue's suggestion, else None."""
    own = codes.prices(profile.orders, day) if profile else {}
    return own.get(orderable.code, orderable.price)


def load(directory: Path | None = None) -> Rules:
    """The rules in a folder, laid file by file over the shipped ones (None: those alone).

    Raises RulesError or mappings.catalogue.CatalogueError naming what is wrong where.
    """
    directory = directory or catalogue.DIRECTORY
    if not directory.is_dir():
        raise RulesError(f"{directory} is not a folder of rules")
    found = catalogue.of(directory)
    policy_file = catalogue.path_of(directory, POLICY_FILE)
    file = _read(policy_file, _File)
    assert isinstance(file, _File)
    further = [catalogue.path_of(directory, name) for name in file.include]
    included = [_read(path, _Included) for path in further]
    policies = (*file.policies, *(p for i in included if isinstance(i, _Included) for p in i.policies))
    if not policies:
        raise RulesError(f"{POLICY_FILE}: policies: at least one policy is needed")
    problems: list[Problem] = []
    register = marks_csv.load(directory, found.items, problems)
    if problems:
        raise RulesError("\n".join(str(p) for p in problems))
    digest = hashlib.sha256(found.digest.encode())
    for path in (policy_file, *further, *marks_csv.files(directory)):
        digest.update(b"\n" + path.read_bytes().replace(b"\r\n", b"\n"))
    return Rules(
        version=digest.hexdigest()[:16],
        items=found.items,
        orderables=found.orderables,
        by_loinc=found.by_loinc,
        policies=policies,
        articles=file.articles,
        reasons={r.code: r for r in file.reasons},
        register=register,
        history=found.history,
        catalogue_version=found.digest[:16],
        directory=directory,
    )


def examples(directory: Path = catalogue.DIRECTORY) -> Mapping[str, Policy]:
    """The policies of the files ``policy-*.yaml`` by id: real local rules that an installation may include or copy."""
    out = {}
    named = {p.name: p for folder in (catalogue.DIRECTORY, directory) for p in folder.glob("policy-*.yaml")}
    for _, path in sorted(named.items()):
        found = _read(path, _Included)
        out.update({p.id: p for p in found.policies} if isinstance(found, _Included) else {})
    return out


def _read(path: Path, kind: type[Part]) -> Part:
    try:
        data: Any = yaml.safe_load(path.read_bytes())
        return kind.model_validate(data)
    except OSError as fault:
        raise RulesError(f"{path.name}: cannot be read: {fault.strerror}") from None
    except yaml.YAMLError as fault:
        raise RulesError(f"{path.name}: {' '.join(str(fault).split())}") from None
    except ValidationError as fault:
        raise RulesError("\n".join(f"{path.name}: {line}" for line in faults(fault))) from None


def faults(fault: ValidationError) -> list[str]:
    """Each fault as ``key.path: what is wrong``."""
    return [f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in fault.errors(include_input=False)]
