"""The recognition decision: may earlier results stand in for what is being ordered?

``decide`` is pure and total: order, candidate results, rules and the time are arguments; it reads no clock and no store, and raises for
no input of the declared types. The order-time answer and the duplicate audit call this same function (docs/recognition.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final

from fhir_server.recognition.criteria import Answer, Candidate, Case, Criterion, judge
from fhir_server.recognition.order import Order
from fhir_server.recognition.rules import Policy, Rules


class Outcome(StrEnum):
    """What the decision says.

    recognized         need not be repeated
    reference-only     may be looked at, without a duty to recognize
    not-recognizable   no result can stand in
    not-covered        what is ordered is not in the catalogue
    """

    RECOGNIZED = "recognized"
    REFERENCE_ONLY = "reference-only"
    NOT_RECOGNIZABLE = "not-recognizable"
    NOT_COVERED = "not-covered"


@dataclass(frozen=True, slots=True)
class Member:
    """The best result for one catalogue item of the orderable. ``result`` None: no result at all."""

    item: str
    name_zh: str
    name_en: str
    required: bool
    outcome: Outcome
    result: Candidate | None
    criteria: tuple[Criterion, ...]

    @property
    def obstacles(self) -> tuple[Criterion, ...]:
        """The criteria that keep the result from being recognized."""
        return tuple(c for c in self.criteria if not c.stands)

    @property
    def known(self) -> bool:
        """False when there is no result, or none that is surely this person's: then nothing about it may be told."""
        return self.result is not None and all(c.stands for c in self.criteria if c.name == "identity")

    @property
    def shown(self) -> Candidate | None:
        """The result when it may be shown: surely this person's, visible then, and not void or preliminary."""
        return self.result if self.outcome in (Outcome.RECOGNIZED, Outcome.REFERENCE_ONLY) else None


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer for one order, with everything it rests on."""

    order: Order
    outcome: Outcome
    members: tuple[Member, ...]
    at: datetime
    rules_version: str
    policy: Policy

    @property
    def required(self) -> tuple[Member, ...]:
        """The members without which the orderable cannot be recognized."""
        return tuple(m for m in self.members if m.required)

    @property
    def fresh(self) -> tuple[Member, ...]:
        """Members whose result is recognized."""
        return tuple(m for m in self.members if m.outcome is Outcome.RECOGNIZED)

    @property
    def missing(self) -> tuple[Member, ...]:
        """Required members without a recognized result."""
        return tuple(m for m in self.required if m.outcome is not Outcome.RECOGNIZED)


# Not knowing these is enough to keep a result back altogether.
_NEVER_SHOWN: Final = frozenset({"identity", "received"})
_RANK: Final = {Outcome.RECOGNIZED: 2, Outcome.REFERENCE_ONLY: 1}
_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)


Judge = Callable[[Case], tuple[Criterion, ...]]


def decide(order: Order, candidates: Iterable[Candidate], rules: Rules, at: datetime, judge: Judge = judge) -> Decision:
    """The decision for one order at one time (aware datetime). ``judge``: the criteria on one case; an audit of a year gives one that
    remembers answers to equal facts (fhir_server.duplicates.remembered), which must answer as ``criteria.judge`` does.

    The policy is that of the asking facility's consortium. Per member the best outcome wins; among equals the newest effective time,
    then the newest issued time. The orderable is recognized when every required member is; when only some required members have a
    usable result it is reference-only, and the fresh and missing ones are named (``Decision.fresh``, ``Decision.missing``).
    """
    policy = rules.policy_of(order.facility, at)
    if order.orderable is None:
        return Decision(order, Outcome.NOT_COVERED, (), at, rules.version, policy)
    rows: dict[str | None, list[Candidate]] = {}
    for c in candidates:
        if not (order.id and c.order == order.id):
            rows.setdefault(c.item or None, []).append(c)
    required = frozenset(order.orderable.required)
    world = _World(order, rows, rules, policy, at, judge)
    members = tuple(
        _member(world, code, code in required)
        for code in dict.fromkeys((*order.orderable.required, *order.orderable.optional))
    )
    outcomes = [m.outcome for m in members if m.required]
    if not outcomes or Outcome.NOT_COVERED in outcomes:
        outcome = Outcome.NOT_COVERED
    elif all(o is Outcome.RECOGNIZED for o in outcomes):
        outcome = Outcome.RECOGNIZED
    elif any(o in _RANK for o in outcomes):
        outcome = Outcome.REFERENCE_ONLY
    else:
        outcome = Outcome.NOT_RECOGNIZABLE
    return Decision(order, outcome, members, at, rules.version, policy)


@dataclass(frozen=True, slots=True)
class _World:
    """What all members of one decision share."""

    order: Order
    rows: dict[str | None, list[Candidate]]
    rules: Rules
    policy: Policy
    at: datetime
    judge: Judge


def _newest(c: Candidate) -> tuple[datetime, datetime, datetime, str, int]:
    return (c.effective or _LONG_AGO, c.issued or _LONG_AGO, c.recorded or _LONG_AGO, c.id, c.version)


def _member(world: _World, code: str, required: bool) -> Member:
    item = world.rules.item_at(code, world.at)
    if item is None:
        return Member(code, code, code, required, Outcome.NOT_COVERED, None, ())
    if item.sensitivity and world.order.grants is not None and item.sensitivity not in world.order.grants:
        # As if there were no result at all: no card, no count, no other answer.
        return _nothing(code, item.name_zh, item.name_en, required)
    # An unmapped result of the same LOINC code is judged too: never recognized, but the audit can name the cause.
    mapped, unmapped = world.rows.get(code), world.rows.get(None)
    rows = [*mapped] if mapped else []
    if unmapped:
        rows += [c for c in unmapped if c.loinc and c.loinc == item.loinc]
    if not rows:
        return _nothing(code, item.name_zh, item.name_en, required)
    rows.sort(key=_newest, reverse=True)
    best: tuple[tuple[int, int], Outcome, Candidate, tuple[Criterion, ...]] | None = None
    for c in rows:
        criteria = world.judge(Case(world.order, c, item, world.policy, world.at, world.rules))
        outcome = _outcome(criteria)
        key = (_RANK.get(outcome, 0), -sum(not criterion.stands for criterion in criteria))
        if best is None or key > best[0]:
            best = (key, outcome, c, criteria)
        if outcome is Outcome.RECOGNIZED:
            break  # newest first: none behind it is better
    assert best is not None
    return Member(code, item.name_zh, item.name_en, required, best[1], best[2], best[3])


@lru_cache(maxsize=4096)
def _nothing(code: str, name_zh: str, name_en: str, required: bool) -> Member:
    """A member without any result: values only, so that an audit of a year makes each once."""
    return Member(code, name_zh, name_en, required, Outcome.NOT_RECOGNIZABLE, None, ())


def _outcome(criteria: tuple[Criterion, ...]) -> Outcome:
    obstacles = [c for c in criteria if not c.stands]
    if not obstacles:
        return Outcome.RECOGNIZED
    for c in obstacles:
        if c.name in _NEVER_SHOWN or c.bars:
            return Outcome.NOT_RECOGNIZABLE
    return Outcome.REFERENCE_ONLY


def as_dict(decision: Decision, *, brief: bool = False) -> dict[str, Any]:
    """Decision as JSON values (shape: docs/recognition.md). A result that may not be shown is left out and its criteria stay; of one
    that is not surely this person's nothing stays but that.

    ``brief``, for the ledger: of the criteria only the answers, and the facts of those that stood in the way.
    """
    order = decision.order
    return {
        "outcome": decision.outcome.value,
        "at": instant(decision.at),
        "rules": decision.rules_version,
        "policy": decision.policy.id,
        "orderable": {"code": order.orderable.code if order.orderable else order.code, "name": _name(order)},
        "asking": order.facility,
        "order": order.id or None,
        "fresh": [m.item for m in decision.fresh],
        "missing": [m.item for m in decision.missing],
        "members": [_member_dict(m, brief) for m in decision.members],
    }


def _member_dict(member: Member, brief: bool) -> dict[str, Any]:
    known = member.known
    told = [c for c in member.criteria if known or c.name == "identity"]
    out: dict[str, Any] = {
        "item": member.item,
        "name": member.name_zh,
        "required": member.required,
        "outcome": member.outcome.value,
        "result": _shown(member.shown) if member.shown else None,
    }
    if not brief:
        out["criteria"] = {c.name: {"answer": c.answer.value, "mode": c.mode.value, **_facts(c)} for c in told}
        return out
    out["criteria"] = _answers(tuple([(c.name, c.answer) for c in told]))
    out["obstacles"] = {c.name: _facts(c) for c in told if not c.stands}
    return out


@lru_cache(maxsize=4096)
def _answers(told: tuple[tuple[str, Answer], ...]) -> Mapping[str, Sequence[str]]:
    """Answer -> names of the criteria that gave it. Few combinations there are: each is written down once."""
    found: dict[str, list[str]] = {}
    for name, answer in told:
        found.setdefault(answer.value, []).append(name)
    return found


def _facts(criterion: Criterion) -> dict[str, Any]:
    return {k: instant(v) if isinstance(v, datetime) else v for k, v in criterion.evidence.items()}


def instant(at: datetime | None) -> str | None:
    """Aware datetime as UTC text, or None."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z") if at else None


def _name(order: Order) -> str:
    return order.name or (order.orderable.name_zh if order.orderable else "")


def _shown(c: Candidate) -> dict[str, Any]:
    return {
        "observation": f"Observation/{c.id}/_history/{c.version}",
        "report": f"DiagnosticReport/{c.report}" if c.report else None,
        "facility": c.facility,
        "performer": c.performer,
        "effective": instant(c.effective),
        "issued": instant(c.issued),
        "recorded": instant(c.recorded),
        "mark": c.mark,
    }
