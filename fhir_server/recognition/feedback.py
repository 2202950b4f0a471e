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
from fhir_server.recognition import reasons
from fhir_server.recognition.rules import Rules

COMMENT_LENGTH: Final = 200
TEXT_LENGTH: Final = 1000


def words(text: str) -> str:
    """A text trimmed; empty when no character of it can be seen (blanks, zero-width spaces)."""
    return text.strip() if any(c.isprintable() and not c.isspace() for c in text) else ""


def read_string(body: Mapping[str, Any], key: str, path: str) -> str:
    """A required string of a request, trimmed. Raises Fault INVALID naming ``path`` + ``key`` when it is missing, blank or too long."""
    found = body.get(key)
    if not isinstance(found, str) or not found.strip():
        raise Fault(Category.INVALID, f"{path}{key} is missing or not a string.", where=path + key)
    if len(found) > TEXT_LENGTH or "\x00" in found or not _is_unicode(found):
        raise Fault(Category.INVALID, f"{path}{key} is too long, or holds a NUL or half a character.", where=path + key)
    return found.strip()


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text) if not text.isascii() else True


def read_time(body: Mapping[str, Any], key: str, path: str) -> datetime:
    """A required RFC 3339 time with zone. Raises Fault INVALID naming ``path`` + ``key``."""
    text = read_string(body, key, path)
    at: datetime | None = None
    with suppress(ValueError):
        at = datetime.fromisoformat(text)
    if at is None or at.tzinfo is None:
        raise Fault(Category.INVALID, f"{path}{key} is not an RFC 3339 time with zone.", where=path + key)
    return at


def read_feedback(body: Mapping[str, Any], rules: Rules) -> list[dict[str, Any]]:
    """Feedback request -> ledger entries. Raises Fault INVALID naming the field that is missing or wrong.

    A reason of our lists is checked: the code must stand there, and code 6 needs ``userComment`` of 1-200 characters. The extensions
    ``org.tongjian.patient-told`` and ``org.tongjian.department`` become ``told`` and ``department``.
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
        entry["acted_at"] = read_time(item, "outcomeTimestamp", path).isoformat()
        entry |= _extensions(item.get("extension"), path)
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


def _extensions(given: Any, path: str) -> dict[str, Any]:
    """What our extensions say (section "Extensions": an object of reverse domain names)."""
    if not isinstance(given, dict):
        return {}
    out: dict[str, Any] = {}
    if given.get("org.tongjian.department") is not None:
        out["department"] = read_string(given, "org.tongjian.department", f"{path}extension.")
    told = given.get("org.tongjian.patient-told")
    if told is not None:
        where = f"{path}extension.org.tongjian.patient-told"
        if not isinstance(told, dict):
            raise Fault(Category.INVALID, f"{where} is not an object with by and at.", where=where)
        out["told"] = {"by": read_string(told, "by", f"{where}."), "at": read_time(told, "at", f"{where}.").isoformat()}
    return out


def _override(given: Any, path: str, rules: Rules) -> dict[str, Any]:
    if given is None:
        return {}
    reason = given.get("reason", {}) if isinstance(given, dict) else None
    if not isinstance(reason, dict):
        raise Fault(Category.INVALID, f"{path} is not an object with a reason.", where=path)
    comment = given.get("userComment", "")
    if not isinstance(comment, str) or len(comment) > COMMENT_LENGTH or "\x00" in comment or not _is_unicode(comment):
        raise Fault(
            Category.INVALID,
            f"{path}.userComment is a text of at most {COMMENT_LENGTH} characters.",
            where=f"{path}.userComment",
        )
    out: dict[str, Any] = {}
    if reason:
        system, code = read_string(reason, "system", f"{path}.reason."), read_string(reason, "code", f"{path}.reason.")
        if system in (systems.REPEAT_REASONS, reasons.LOCAL):
            known = reasons.find(rules, system, code)
            if known is None:
                codes = ", ".join(g.code for g in reasons.offered(rules) if g.system == system)
                raise Fault(Category.INVALID, f"{path}.reason.code is one of {codes}.", where=f"{path}.reason.code")
            if known.text_required and not words(comment):
                raise Fault(
                    Category.INVALID, f"Reason {code} needs words in {path}.userComment.", where=f"{path}.userComment"
                )
        out["reason"] = {"system": system, "code": code}
    if words(comment):
        out["comment"] = words(comment)
    return out
