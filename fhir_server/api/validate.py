"""``$validate`` (http://hl7.org/fhir/R4/resource-operation-validate.html): a resource against R4, and whether it could be stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from conformance.capability import RESOURCE_TYPES
from conformance.profiles import shipped
from conformance.profiles.checker import Checker
from conformance.validator import check_fully
from fhir_server.api import references
from fhir_server.api.inputs import Inputs
from fhir_server.api.responses import issue, outcome_of_issues
from fhir_server.errors import Category, Fault
from fhir_server.search.value_sets import Steps, Terminology

MODES: Final = ("create", "update", "delete", "profile")
_MOST: Final = 32
"""Most profiles that are looked up for one resource."""


@dataclass(slots=True)
class Known:
    """Profiles and value sets of ours and of this server, by canonical URL."""

    stored: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    sets: dict[str, frozenset[tuple[str, str]] | None] = field(default_factory=dict)

    def definition(self, url: str) -> dict[str, Any] | None:
        """A StructureDefinition, None when it is unknown."""
        return shipped.definition(url) or self.stored.get(url)

    def codes(self, url: str) -> frozenset[tuple[str, str]] | None:
        """The codes of a value set, None when it is unknown."""
        own = shipped.codes(url)
        return own if own is not None else self.sets.get(url)


def look_up(profiles: list[str], terminology: Terminology) -> Steps:
    """The stored profiles, those they build on, and the value sets they require: statements are yielded (search/run), a Known comes
    back."""
    known = Known()
    waiting = list(profiles)
    while waiting and len(known.stored) < _MOST:
        url = waiting.pop()
        if url in known.stored or shipped.definition(url) is not None or url.startswith(_CORE):
            continue
        found = known.stored[url] = yield from terminology.resource("StructureDefinition", url)
        if found is None:
            continue
        waiting.append(found.get("baseDefinition", _CORE))
        for element in (found.get("differential") or found.get("snapshot") or {}).get("element", ()):
            named = element.get("binding", {}).get("valueSet")
            if named and named not in known.sets and shipped.codes(named) is None:
                try:
                    codes = yield from terminology.expand(named)
                except Fault:
                    codes = {("", ""): ""}
                known.sets[named] = None if any(not code for _, code in codes) else frozenset(codes)
    return known


_CORE: Final = "http://hl7.org/fhir/StructureDefinition/"


def asked_profiles(resource: dict[str, Any] | None, asked: Inputs) -> list[str]:
    """Canonical URLs of the profiles to check against: those of the parameter, then those the resource claims (meta.profile)."""
    meta = (resource or {}).get("meta")
    claimed = meta.get("profile") if isinstance(meta, dict) else None
    named = [v for n, v in asked.pairs if n == "profile"]
    return list(dict.fromkeys([*named, *(p for p in claimed or () if isinstance(p, str))]))


def issues(
    kind: str, logical: str, resource: dict[str, Any] | None, asked: Inputs, known: Known
) -> list[dict[str, Any]]:
    """OperationOutcome.issue of a validation. ``kind`` and ``logical`` are those of the URL, ``logical`` may be empty; ``known``:
    profiles and value sets that are stored here.

    Raises Fault INVALID when there is nothing to validate, or the mode is none of R4.
    """
    mode, profiles = asked.text("mode"), [v for n, v in asked.pairs if n == "profile"]
    if mode and mode not in MODES:
        raise Fault(Category.INVALID, f"mode must be one of {', '.join(MODES)}.", where="mode")
    if mode in ("update", "delete") and not logical:
        raise Fault(Category.INVALID, f"Mode {mode} is for {kind}/<id>/$validate.", where="mode")
    if mode == "profile" and not profiles:
        raise Fault(Category.INVALID, "Mode profile needs a profile.", where="profile")
    if mode == "delete":
        return [issue("information", "informational", "The resource can be deleted.")]
    if resource is None:
        raise Fault(Category.INVALID, "Send the resource to validate.", where="resource")
    found: list[dict[str, Any]] = []
    name = resource.get("resourceType")
    if kind not in ("", name):
        found.append(issue("error", "invalid", f"The resource is not of type {kind}.", "resourceType"))
    if mode == "update" and resource.get("id") != logical:
        found.append(issue("error", "invalid", "The resource needs the id of the URL to be an update.", f"{name}.id"))
    sound = check_fully(references.settled(resource))
    found += outcome_of_issues(sound)
    if mode in ("create", "update") and name not in RESOURCE_TYPES:
        found.append(issue("error", "not-supported", "Resources of this type are not stored here.", "resourceType"))
    if not sound and isinstance(name, str):
        checker = Checker(known.definition, known.codes, lambda url: shipped.definition(url) is not None)
        for profile in asked_profiles(resource, asked):
            found += outcome_of_issues(list(checker.check(resource, profile)))
    return found or [issue("information", "informational", "The resource is valid.")]
