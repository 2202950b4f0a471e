"""CDS Hooks feedback -> ledger entries (https://cds-hooks.hl7.org/2.0/, section "Feedback").

A reason of our own list is checked against the six lawful circumstances of 国卫医发〔2022〕6号; foreign reasons are kept as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from conformance import systems
from fhir_server.errors import Category, Fault
from fhir_server.recognition.rules import Rules

COMMENT_LENGTH: Final = 200
TEXT_LENGTH: Final = 1000


def read_string(body: Mapping[str, Any], key: str, path: str) -> str:
    """A required string of a request, trimmed. Raises Fault INVALID naming ``path`` + ``key`` when it is missing, blank or too long."""
    found = body.get(key)
    if not isinstance(found, str) or not found.strip():
        raise Fault(Category.INVALID, f"{path}{key} is missing or not a string.", where=path + key)
    if len(found) > TEXT_LENGTH or "\x00" in found:
        raise Fault(Category.INVALID, f"{path}{key} is too long or holds a NUL.", where=path + key)
    return found.strip()


def read_feedback(body: Mapping[str, Any], rules: Rules) -> list[dict[str, Any]]:
    """Feedback request -> ledger entries. Raises Fault INVALID naming the field that is missing or wrong.

    A reason of our list is checked: the code must be one of the six, and code 6 needs ``userComment`` of 1-200 characters.
    """
    items = body.get("feedback")
    if not isinstance(items, list) or not items:
        raise Fault(Category.INVALID, "feedback is missing or an empty list.", where="feedback")
    out = []
    for number, item in enumerate(items):
        path = f"feedback[{number}]."
        if not isinstance(item, dict):
            raise Fault(Category.INVALID, f"feedback[{number}] is not an object.", where=f"feedback[{number}]")
        entry: dict[str, Any] = {"card": read_string(item, "card", path), "outcome": read_string(item, "outcome", path)}
        entry["acted_at"] = _timestamp(read_string(item, "outcomeTimestamp", path), path)
        if entry["outcome"] == "accepted":
            accepted = item.get("acceptedSuggestions")
            if not isinstance(accepted, list) or not accepted:
                raise Fault(
                    Category.INVALID, f"{path}acceptedSuggestions is missing.", where=f"{path}acceptedSuggestions"
                )
            entry["suggestions"] = [
                read_string(s if isinstance(s, dict) else {}, "id", f"{path}acceptedSuggestions[].") for s in accepted
            ]
        elif entry["outcome"] == "overridden":
            entry |= _override(item.get("overrideReason"), f"{path}overrideReason", rules)
        else:
            raise Fault(Category.INVALID, f"{path}outcome is accepted or overridden.", where=f"{path}outcome")
        out.append(entry)
    return out


def _override(given: Any, path: str, rules: Rules) -> dict[str, Any]:
    if given is None:
        return {}
    reason = given.get("reason", {}) if isinstance(given, dict) else None
    if not isinstance(reason, dict):
        raise Fault(Category.INVALID, f"{path} is not an object with a reason.", where=path)
    comment = given.get("userComment", "")
    if not isinstance(comment, str) or len(comment) > COMMENT_LENGTH:
        raise Fault(
            Category.INVALID,
            f"{path}.userComment is a text of at most {COMMENT_LENGTH} characters.",
            where=f"{path}.userComment",
        )
    out: dict[str, Any] = {}
    if reason:
        system, code = read_string(reason, "system", f"{path}.reason."), read_string(reason, "code", f"{path}.reason.")
        if system == systems.REPEAT_REASONS:
            lawful = rules.reasons.get(code)
            if lawful is None:
                raise Fault(
                    Category.INVALID,
                    f"{path}.reason.code is one of {', '.join(rules.reasons)}.",
                    where=f"{path}.reason.code",
                )
            if lawful.text_required and not comment.strip():
                raise Fault(
                    Category.INVALID, f"Reason {code} needs words in {path}.userComment.", where=f"{path}.userComment"
                )
        out["reason"] = {"system": system, "code": code}
    if comment.strip():
        out["comment"] = comment.strip()
    return out


def _timestamp(text: str, path: str) -> str:
    at: datetime | None = None
    with suppress(ValueError):
        at = datetime.fromisoformat(text)
    if at is None or at.tzinfo is None:
        raise Fault(
            Category.INVALID,
            f"{path}outcomeTimestamp is not an RFC 3339 time with zone.",
            where=f"{path}outcomeTimestamp",
        )
    return at.isoformat()
