"""What a clinician says about a reminder: adopt, decline with a reason, or take the decision back. Pure reading of requests.

Declining needs one of the six lawful reasons or a local one; a reason that counts as a refusal needs that the patient was told purpose
and necessity of the repeat, by whom and when (国卫医发〔2022〕6号: the doctor must explain them to the patient).
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import orjson

from fhir_server.errors import Category, Fault
from fhir_server.recognition import reasons
from fhir_server.recognition.feedback import COMMENT_LENGTH, read_string, read_time, words
from fhir_server.recognition.reasons import Given
from fhir_server.recognition.rules import Rules

Action = Literal["adopt", "decline", "revoke"]
_ACTIONS: Final[Mapping[str, Action]] = {"adopt": "adopt", "decline": "decline", "revoke": "revoke"}
TOLD: Final = "org.tongjian.patient-told"
"""CDS Hooks extension of a feedback: ``{"by": ..., "at": ...}``, the patient was told purpose and necessity of the repeat."""
DEPARTMENT: Final = "org.tongjian.department"
"""CDS Hooks extension of a request or a feedback: the department that orders."""
AHEAD: Final = timedelta(minutes=5)
"""How far the caller's clock may be ahead of ours."""
_IDS: Final = uuid.UUID("0f6b1d0a-3f53-5a8e-9d0c-8f6a52f0c7d1")
_KEY_LENGTH: Final = 200


@dataclass(frozen=True, slots=True)
class Told:
    """The patient was told purpose and necessity of the repeat: by whom, when (aware)."""

    by: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement about a reminder.

    card       the reminder; user: the clinician as the caller knows him; department: empty when not told
    key        tells requests apart: the same key is the same request
    acted_at   when the clinician said so, by the caller's clock; None when not told
    revokes    revoke only: the decision meant, empty for the one in force
    """

    card: str
    action: Action
    key: str
    user: str
    department: str = ""
    reason: Given | None = None
    text: str = ""
    told: Told | None = None
    acted_at: datetime | None = None
    revokes: str = ""

    @property
    def id(self) -> str:
        """Id of the decision: the same card and key always give the same one."""
        return str(uuid.uuid5(_IDS, f"{self.card}\x1f{self.key}"))

    @property
    def refusal(self) -> bool:
        """Does it count as a refusal to recognize?"""
        return self.action == "decline" and self.reason is not None and self.reason.refusal

    def content(self) -> bytes:
        """16-byte digest of what is said, without the key: two requests of one key must agree in it."""
        return hashlib.sha256(_canonical(self.said())).digest()[:16]

    def said(self) -> dict[str, Any]:
        """The statement as JSON values."""
        return {
            "card": self.card,
            "action": self.action,
            "user": self.user,
            "department": self.department or None,
            "reason": {"system": self.reason.system, "code": self.reason.code} if self.reason else None,
            "text": self.text or None,
            "told": {"by": self.told.by, "at": self.told.at.isoformat()} if self.told else None,
            "acted_at": self.acted_at.isoformat() if self.acted_at else None,
            "revokes": self.revokes or None,
        }


def _canonical(said: Mapping[str, Any]) -> bytes:
    return orjson.dumps(said, option=orjson.OPT_SORT_KEYS)


def read_statement(body: Mapping[str, Any], rules: Rules, now: datetime) -> Statement:
    """Body of ``POST /recognition/decisions`` -> Statement. Raises Fault INVALID naming the field that is missing or wrong.

    reminder    id of the answer; action: adopt, decline or revoke; user: the clinician
    reason      decline only: a code, or ``{"system", "code"}``; text: 1-200 characters, needed for reason 6
    told        decline for a reason that counts as a refusal: ``{"by", "at"}``
    department, acted_at, key, revokes (all optional)
    """
    card, user = read_string(body, "reminder", ""), read_string(body, "user", "")
    action = _ACTIONS.get(read_string(body, "action", ""))
    if action is None:
        raise Fault(Category.INVALID, "action is adopt, decline or revoke.", where="action")
    department = read_string(body, "department", "") if body.get("department") is not None else ""
    revokes = read_string(body, "revokes", "") if body.get("revokes") is not None else ""
    acted_at = _past(read_time(body, "acted_at", ""), now, "acted_at") if body.get("acted_at") is not None else None
    text = read_text(body, "text", "")
    reason, told = None, None
    if action == "decline":
        reason = read_reason(body.get("reason"), "reason", rules)
        told = read_told(body.get("told"), "told", now)
        check_decline(reason, text, told, where_text="text", where_told="told")
    elif body.get("reason") is not None:
        raise Fault(Category.INVALID, "Only declining has a reason.", where="reason")
    made = Statement(card, action, "", user, department, reason, text, told, acted_at, revokes)
    key = read_string(body, "key", "") if body.get("key") is not None else f"said:{made.content().hex()}"
    if len(key) > _KEY_LENGTH:
        raise Fault(Category.INVALID, f"key has at most {_KEY_LENGTH} characters.", where="key")
    return Statement(card, made.action, key, user, department, reason, text, told, acted_at, revokes)


def read_text(body: Mapping[str, Any], key: str, path: str) -> str:
    """Words of at most 200 characters, trimmed; empty when there are none. Raises Fault INVALID."""
    if body.get(key) is None or body.get(key) == "":
        return ""
    found = body[key]
    text = words(found) if isinstance(found, str) else ""
    if not isinstance(found, str) or len(text) > COMMENT_LENGTH or "\x00" in text:
        raise Fault(
            Category.INVALID, f"{path}{key} is a text of at most {COMMENT_LENGTH} characters.", where=path + key
        )
    return text


def read_reason(given: Any, where: str, rules: Rules) -> Given:
    """A reason code, or ``{"system", "code"}``, of the lists a card offers. Raises Fault INVALID for any other."""
    system = ""
    if isinstance(given, dict):
        system = read_string(given, "system", f"{where}.") if given.get("system") is not None else ""
        code = read_string(given, "code", f"{where}.")
    else:
        code = read_string({where: given}, where, "")
    found = reasons.find(rules, system, code)
    if found is None:
        codes = ", ".join(g.code for g in reasons.offered(rules))
        raise Fault(Category.INVALID, f"{where} is one of {codes}.", where=where)
    return found


def read_told(given: Any, where: str, now: datetime) -> Told | None:
    """``{"by", "at"}`` -> Told, None when it is not given. Raises Fault INVALID when it is incomplete or in the future."""
    if given is None:
        return None
    if not isinstance(given, dict):
        raise Fault(Category.INVALID, f"{where} is not an object with by and at.", where=where)
    by = read_string(given, "by", f"{where}.")
    return Told(by, _past(read_time(given, "at", f"{where}."), now, f"{where}.at"))


def check_decline(reason: Given, text: str, told: Told | None, *, where_text: str, where_told: str) -> None:
    """Raises Fault INVALID unless the reason has its words, and a refusal its word to the patient."""
    if reason.text_required and not text:
        raise Fault(
            Category.INVALID,
            f"Reason {reason.code} needs words of 1 to {COMMENT_LENGTH} characters in {where_text}.",
            where=where_text,
        )
    if reason.refusal and told is None:
        raise Fault(
            Category.INVALID,
            f"{where_told} is missing: who told the patient purpose and necessity of the repeat, and when.",
            where=where_told,
        )


def _past(at: datetime, now: datetime, where: str) -> datetime:
    if at > now + AHEAD:
        raise Fault(Category.INVALID, f"{where} lies in the future.", where=where)
    return at


def of_feedback(entry: Mapping[str, Any], rules: Rules, now: datetime) -> Statement | None:
    """Feedback as ``read_feedback`` gives it -> Statement; None when it decides nothing yet: overridden without a reason of our lists,
    or a refusal of which nobody says that the patient was told. Raises Fault INVALID for an extension that is wrong."""
    told = read_told(entry.get("told"), f"extension.{TOLD}", now)
    key = f"feedback:{entry['outcome']}:{entry['acted_at']}"
    acted_at = datetime.fromisoformat(entry["acted_at"])
    who = (entry["user"], entry.get("department") or "")
    if entry["outcome"] == "accepted":
        return Statement(entry["card"], "adopt", key, *who, acted_at=acted_at)
    given = entry.get("reason")
    reason = reasons.find(rules, given["system"], given["code"]) if given else None
    if reason is None or (reason.refusal and told is None):
        return None
    return Statement(entry["card"], "decline", key, *who, reason, entry.get("comment", ""), told, acted_at)
