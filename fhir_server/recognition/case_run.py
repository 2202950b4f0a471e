"""Running rule cases: each in its own world with the clock given, through the code of the server, compared with what is expected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from conformance import systems
from fhir_server.recognition import case_rows, explain, marks
from fhir_server.recognition import order as orders
from fhir_server.recognition.candidates import is_emergency
from fhir_server.recognition.case_file import SHANGHAI, Case, CaseError, Expect, Time, instant, load
from fhir_server.recognition.case_lines import NOWHERE, Lines
from fhir_server.recognition.case_rows import PERSON, Received
from fhir_server.recognition.case_world import Built, build
from fhir_server.recognition.check import Answer as Reminder
from fhir_server.recognition.circumstances import Circumstances, either, of_request
from fhir_server.recognition.criteria import Criterion
from fhir_server.recognition.decide import Decision, Member, decide
from fhir_server.recognition.order import Order
from fhir_server.recognition.rules import price

_SYSTEMS: Final = {"orderables": systems.ORDERABLES, "items": systems.ITEMS, "loinc": systems.LOINC}


@dataclass(frozen=True, slots=True)
class Result:
    """One case: what differs from the expectation, with the line (empty: nothing); the decision of its own time; notes of the
    conversion."""

    file: Path
    case: Case
    differs: tuple[str, ...]
    decision: Decision | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """A case ready to be decided at any time."""

    built: Built
    order: Order
    received: Received = field(repr=False)

    def decide(self, at: datetime) -> Decision:
        """The decision at a time."""
        return decide(self.order, self.received.known(at), self.built.rules, at)


def run_file(path: Path, rules: Path | None = None) -> list[Result]:
    """Every case of a file. ``rules``: folder of the rules under test, default the shipped ones. Raises CaseError for a faulty file."""
    found = load(path)
    return [run(case, path, rules, found.lines[case.id]) for case in found.cases]


def run(case: Case, path: Path, rules: Path | None = None, lines: Lines = NOWHERE) -> Result:
    """One case. A case that cannot be set up raises CaseError naming file, case, key and, where ``lines`` tells it, the line."""
    try:
        at = _instant("at", case.at)
        asked = ask(case, path.parent, rules)
        first = asked.decide(at)
        differs = _placed(compare(case.expect, first, asked, first), "", lines)
        for number, step in enumerate(case.later):
            then = asked.decide(_instant(f"later.{number}.at", step.at, at))
            differs += _placed(compare(step.expect, then, asked, first), f"later.{number}", lines)
    except (CaseError, ValueError) as fault:
        told = lines.beside(str(fault)).splitlines()
        raise CaseError("\n".join(f"{path}: case {case.id}: {line}" for line in told)) from None
    return Result(path, case, tuple(differs), first, tuple(asked.received.notes))


def _instant(key: str, given: Time, at: datetime | None = None) -> datetime:
    try:
        return instant(given, at)
    except ValueError as fault:
        raise CaseError(f"{key}: {fault}") from None


def _placed(differs: Iterable[str], step: str, lines: Lines) -> list[str]:
    """Lines of ``compare``, each with the line of the expectation it is about."""
    out = []
    for text in differs:
        key = text.partition(":")[0].partition(" ")[0]
        line = lines.of(".".join(filter(None, (step, "expect", key))))
        out.append(": ".join(filter(None, (step, text))) + (f" (line {line})" if line else ""))
    return out


def ask(case: Case, folder: Path, rules: Path | None = None) -> Asked:
    """The world of a case, what was received in it, and the order. Raises CaseError or ValueError naming the key."""
    facility = case.order.facility
    if not facility:
        if not case.facilities:
            raise CaseError("order.facility: who asks? Name the facility")
        facility = str(case.facilities[0].get("id") or "")
    built = build(_with_everybody(case, facility), rules)
    at = instant(case.at)
    notes = case_rows.of_shape(case.order.fhir, "order.fhir") if case.order.fhir else []
    request = case.order.fhir or _request(case, facility)
    day = at.astimezone(SHANGHAI).date().isoformat()
    found = orders.read(request, built.rules, built.profiles.get(facility), day)
    context = case.context
    emergency = context.emergency
    if emergency is None and context.visit:
        emergency = is_emergency({"class": {"code": context.visit}})
    told = Circumstances(emergency, either(context.surgery, context.transfusion)) | of_request(request)
    order = Order(
        found.orderable,
        facility,
        None,
        PERSON,
        emergency=told.emergency,
        code=found.code,
        name=found.name,
        surgery=told.surgery,
        grants=frozenset(context.grants),
    )
    received = case_rows.read(case, built, folder)
    received.notes[:0] = notes
    return Asked(built, order, received)


def _with_everybody(case: Case, asking: str) -> Case:
    """The case with every facility it names; one that is only named has no level, region or consortium."""
    named = [asking, *(p.facility or (p.report.facility if p.report else "") for p in case.prior)]
    known = {str(f.get("id")) for f in case.facilities}
    missing = [{"id": name} for name in dict.fromkeys(named) if name and name not in known]
    return case.model_copy(update={"facilities": [*case.facilities, *missing]}) if missing else case


def _request(case: Case, facility: str) -> dict[str, Any]:
    """The order as the ServiceRequest a HIS would send; without a system the code is offered as each kind of code."""
    given = case.order
    if not given.code:
        raise CaseError("order.code: what is ordered?")
    kinds = {"local": systems.local_codes(facility, "orders")} | _SYSTEMS
    chosen = {given.system: kinds[given.system]} if given.system else kinds
    codings = [{"system": system, "code": given.code} for system in chosen.values()]
    if given.system in ("", "local"):
        codings.append({"system": systems.local_codes(facility, "tests"), "code": given.code})
    return {"resourceType": "ServiceRequest", "code": {"coding": codings, "text": given.name}}


def compare(expect: Expect, decision: Decision, asked: Asked, first: Decision) -> Iterable[str]:
    """What differs, one line each. ``first``: the decision of the case's own time, for ``reopened``."""
    orderable = decision.order.orderable
    plain: dict[str, tuple[Any, Any]] = {
        "outcome": (expect.outcome, decision.outcome.value),
        "policy": (expect.policy, decision.policy.id),
        "orderable": (expect.orderable, orderable.code if orderable else None),
        "fresh": (expect.fresh, [m.item for m in decision.fresh if m.required]),
        "missing": (expect.missing, [m.item for m in decision.missing]),
        "reminds": (expect.reminds, Reminder("", decision, (), None).reminds),
    }
    for key, (wanted, found) in plain.items():
        same = sorted(wanted) == sorted(found) if isinstance(wanted, list) else wanted == found
        if wanted is not None and not same:
            yield f"{key}: expected {_shown(wanted)}, got {_shown(found)}{_why(decision) if key == 'outcome' else ''}"
    by_item = {m.item: m for m in decision.members}
    for item, outcome in expect.members.items():
        got = by_item[item].outcome.value if item in by_item else "no such member"
        if got != outcome:
            yield f"members.{item}: expected {outcome}, got {got}"
    yield from _criteria(expect.criteria, decision, by_item)
    if expect.price_fen is not None and orderable is not None:
        day = decision.at.astimezone(SHANGHAI).date().isoformat()
        fen = price(orderable, asked.built.profiles.get(decision.order.facility), day)
        if fen != expect.price_fen:
            yield f"price_fen: expected {expect.price_fen}, got {fen}"
    names = _names(asked.built)
    for language, wanted in (("zh", expect.summary_zh), ("en", expect.summary_en)):
        sentence = explain.summary(decision, names, "zh" if language == "zh" else "en")
        if wanted is not None and wanted not in sentence:
            yield f"summary_{language}: expected {wanted!r} in {sentence!r}"
    if expect.reopened is not None:
        found = sorted(r.shown.item for r in reopened(first, asked.built, decision.at))
        if found != sorted(expect.reopened):
            yield f"reopened: expected {_shown(expect.reopened)}, got {_shown(found)}"


def reopened(decision: Decision, built: Built, known: datetime) -> list[marks.Reopened]:
    """Which results a decision offered no longer stand by the marks and EQA known at ``known``."""
    region = built.rules.standing_of(decision.order.facility).region
    answers = []
    for member in decision.fresh:
        shown = member.shown
        made = shown and (shown.effective if decision.policy.time_base == "effective" else shown.issued)
        if shown and shown.performer and made:
            answers.append(marks.Shown("", decision.at, shown.performer, member.item, made, region))
    return marks.reopened(built.rules.register, answers, known)


def _criteria(wanted: Mapping[str, Any], decision: Decision, by_item: Mapping[str, Member]) -> Iterable[str]:
    for key, value in wanted.items():
        if key in by_item or (isinstance(value, dict) and "answer" not in value and key not in _names_of(decision)):
            if key not in by_item:
                yield f"criteria.{key}: no such member; there are {', '.join(by_item)}"
                continue
            for name, answer in value.items() if isinstance(value, dict) else ():
                yield from _one(f"criteria.{key}.{name}", by_item[key], name, answer)
            continue
        for member in decision.required:
            yield from _one(f"criteria.{key} of {member.item}", member, key, value)


def _names_of(decision: Decision) -> set[str]:
    return {c.name for m in decision.members for c in m.criteria}


def _one(place: str, member: Member, name: str, wanted: Any) -> Iterable[str]:
    criterion: Criterion | None = next((c for c in member.criteria if c.name == name), None)
    if criterion is None:
        yield f"{place}: expected {_shown(wanted)}, but there is no result to judge"
        return
    facts = {"answer": criterion.answer.value, **criterion.evidence}
    for key, value in (wanted if isinstance(wanted, dict) else {"answer": wanted}).items():
        if facts.get(key) != value:
            yield f"{place}: expected {key} {_shown(value)}, got {_shown(facts.get(key))} ({_facts(criterion)})"


def _why(decision: Decision) -> str:
    told = [
        f"{m.item} {', '.join(f'{c.name} {c.answer.value}' for c in m.obstacles) or 'no result'}"
        for m in decision.missing
    ]
    return f" ({'; '.join(told)})" if told else ""


def _facts(criterion: Criterion) -> str:
    return ", ".join(f"{k}: {v}" for k, v in criterion.evidence.items() if v is not None) or "no facts"


def _shown(value: Any) -> str:
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, list) else str(value)


def _names(built: Built) -> explain.Names:
    found = {key: profile.facility.organization for key, profile in built.profiles.items()}
    return explain.Names({k: o.name for k, o in found.items()}, {k: o.name_en for k, o in found.items()}, SHANGHAI)
