"""``$validate`` (http://hl7.org/fhir/R4/resource-operation-validate.html): a resource against R4, and whether it could be stored."""

from __future__ import annotations

from typing import Any, Final

from conformance.capability import RESOURCE_TYPES
from conformance.validator import check_fully
from fhir_server.api import references
from fhir_server.api.inputs import Inputs
from fhir_server.api.responses import issue, outcome_of_issues
from fhir_server.errors import Category, Fault

MODES: Final = ("create", "update", "delete", "profile")
_BASE: Final = "http://hl7.org/fhir/StructureDefinition/"


def issues(kind: str, logical: str, resource: dict[str, Any] | None, asked: Inputs) -> list[dict[str, Any]]:
    """OperationOutcome.issue of a validation. ``kind`` and ``logical`` are those of the URL, ``logical`` may be empty.

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
    found += outcome_of_issues(check_fully(references.settled(resource)))
    if mode in ("create", "update") and name not in RESOURCE_TYPES:
        found.append(issue("error", "not-supported", "Resources of this type are not stored here.", "resourceType"))
    for profile in profiles:
        if profile.partition("|")[0] != f"{_BASE}{name}":
            found.append(issue("warning", "not-supported", "The profile is not known here; it was not checked."))
    return found or [issue("information", "informational", "The resource is valid.")]
