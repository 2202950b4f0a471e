"""The order-time check: one service behind every door (CDS Hooks, plain REST). It fails open and never blocks an order.

draft orders -> orderables -> candidates of the person -> ``decide`` -> audit entry and ledger rows -> answer. When it is late, or the
database or the audit log is away, the answer is empty and says why, and the ledger keeps that too.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from fhir_server import telemetry, tracing
from fhir_server.access import sensitive_grants
from fhir_server.errors import Fault
from fhir_server.recognition import candidates, images, rules
from fhir_server.recognition import order as orders
from fhir_server.recognition.circumstances import UNKNOWN, Circumstances, of_request
from fhir_server.recognition.criteria import Candidate
from fhir_server.recognition.decide import Decision, Outcome, as_dict, decide
from fhir_server.recognition.ledger import Row
from fhir_server.recognition.order import Order
from fhir_server.scope.rows import Relation, since
from fhir_server.store.database import Borrowed
from mappings.catalogue import Orderable

if TYPE_CHECKING:
    from fhir_server.access import Principal
    from fhir_server.services import Services
    from mappings.profile import Profile

_AWAY: Final = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError)
# The rest of the deadline belongs to the ledger (ledger.PATIENCE) and to sending.
_SHARE: Final = 0.7
_CARDS: Final = uuid.UUID("6f1d3a52-9f43-5a0e-8a3e-0c7a2f6f2b11")
"""Namespace of card ids (UUID version 5): the same question gives the same ids."""

_USABLE: Final = (Outcome.RECOGNIZED, Outcome.REFERENCE_ONLY)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Question:
    """One call: the patient as the caller knows it, the visit, the draft ServiceRequests, and who asks.

    patient   logical id, or ``system|value`` of a business identifier; encounter: logical id, or empty
    service   id of the service or door; instance: the caller's id of this call; user: the caller's id of the clinician
    department  the department that orders, empty when not told
    visit     True at the start of a visit: nothing is ordered yet, everything recent is asked for
    told      circumstances the caller states; visit_class: class of the Encounter the caller sent along, for a visit we do not have
    unread    sentences about drafts that could not be read and get no answer
    """

    service: str
    instance: str
    user: str
    patient: str
    encounter: str
    requests: Sequence[Mapping[str, Any]]
    department: str = ""
    visit: bool = False
    told: Circumstances = UNKNOWN
    visit_class: str = ""
    unread: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """One orderable of the question: the decision, the drafts that ask for it, the id of the card, the price in fen."""

    id: str
    decision: Decision
    requests: tuple[Mapping[str, Any], ...]
    price: int | None

    @property
    def reminds(self) -> bool:
        """Should the clinician be interrupted? Only when there is something to see; in an emergency only where the policy says so."""
        return self.decision.outcome in _USABLE and (
            self.decision.policy.emergency_reminds or not self.decision.order.emergency
        )


@dataclass(frozen=True, slots=True)
class Answers:
    """All answers, or none and why: ``late``, ``database-away``, ``audit-away``, ``unknown-patient``, ``ambiguous-patient``.
    patient: logical id of the Patient that was meant, None when that is not known; patients: those whose results were looked at."""

    at: datetime
    facility: str
    answers: tuple[Answer, ...] = ()
    person: str | None = None
    patients: tuple[str, ...] = ()
    failure: str = ""
    patient: str | None = None


async def ask(services: Services, principal: Principal, question: Question, address: str) -> Answers:
    """The answers to a question, with an audit entry and ledger rows on disk before they are returned.

    Never raises for a fault of ours: then ``failure`` says what happened and there is no answer.
    """
    at = services.clock()
    failed = ""
    try:
        async with asyncio.timeout(services.settings.hook_deadline_ms / 1000 * _SHARE):
            with tracing.span("decide") as span:
                answers = await _decide(services, principal, question, at)
                span.set_attributes({"orderables": len(answers.answers), "failure": answers.failure})
            if answers.patients or answers.answers:
                await services.audit.record(
                    principal,
                    "R",
                    question.service,
                    ("Observation", "DiagnosticReport"),
                    answers.patients,
                    at=at,
                    address=address,
                )
    except TimeoutError:
        failed = "late"
    except _AWAY as fault:
        log.warning("no order-time answer", extra={"reason": type(fault).__name__})
        failed = "database-away"
    except Fault as fault:
        log.warning("no order-time answer", extra={"reason": fault.category.name})
        failed = "audit-away"
    if failed:
        answers = Answers(at, principal.facility, failure=failed)
    try:
        await services.ledger.record(*_rows(question, answers, services.rules))
    except OSError:
        # An answer without its ledger row must not leave; the order goes on without it.
        log.error("neither database nor spool takes the ledger row")
        answers = Answers(at, principal.facility, failure="ledger-away")
    for outcome in [answers.failure] if answers.failure else [a.decision.outcome.value for a in answers.answers]:
        telemetry.DECISIONS.labels(answers.facility or "unknown", outcome).inc()
    return answers


async def _decide(services: Services, principal: Principal, question: Question, at: datetime) -> Answers:
    known = services.rules.among(services.profiles)
    zone = services.settings.zone
    async with Borrowed(services.keyed or services.pool) as connection:
        # The order codes of a token's facility are known before the patient is: then one round trip asks for both.
        asked = (
            _Asked.read(question, known, services.profiles.get(principal.facility), at, zone)
            if principal.facility
            else None
        )
        relation = _relation(services, principal, at)
        at_once = (
            await candidates.find_at_once(connection, question.patient, asked.items, at, relation) if asked else None
        )
        if at_once is not None:
            who, results, seen = at_once
        else:
            found = await candidates.identify(connection, question.patient, principal.facility)
            if isinstance(found, str):
                return Answers(at, principal.facility, failure=found)
            who = found
            asked = _Asked.read(
                question, known, services.profiles.get(principal.facility or who.facility or ""), at, zone
            )
            results = await candidates.find(connection, who, asked.items, at)
            seen = await candidates.seen(connection, who, relation)
        assert asked is not None
        kept = _visible(principal, who, results.candidates, seen, by_treatment=services.settings.access_by_treatment)
        if kept is None:  # as for a patient nobody knows, and refused accesses are on record too
            types = ("Observation", "DiagnosticReport")
            await services.audit.record(principal, "R", question.service, types, [who.patient], outcome="4", at=at)
            return Answers(at, principal.facility, failure="unknown-patient")
        results = replace(results, candidates=kept)
        rows = await images.with_images(connection, services.codec, results.candidates, _imaging(asked.items, known))
        visit = (
            await candidates.emergency(connection, services.codec, question.encounter, who.patient)
            if question.encounter
            else None
        )
    if visit is None and question.visit_class:
        visit = candidates.is_emergency({"class": {"code": question.visit_class}})
    facility, grants = principal.facility or who.facility or "", sensitive_grants(principal.scopes)
    ordered = asked.ordered
    if question.visit:
        ordered = {o.code: (orders.Ordered(o, o.code, ""), []) for o in _recent(rows, known, grants)}
    told = question.told | Circumstances(visit)
    answers = []
    for key, (found_order, requests) in ordered.items():
        here = reduce(or_, map(of_request, requests), told)
        order = Order(
            found_order.orderable, facility, who.patient, results.person, emergency=here.emergency, code=found_order.code,
            name=found_order.name, surgery=here.surgery, grants=grants,
        )  # fmt: skip
        decision = decide(order, rows, known, at)
        name = "\x1f".join((question.service, question.instance, who.patient, key))
        price = rules.price(found_order.orderable, asked.profile, asked.day) if found_order.orderable else None
        answer = Answer(str(uuid.uuid5(_CARDS, name)), decision, tuple(requests), price)
        if not question.visit or decision.outcome in _USABLE:
            answers.append(answer)
    shown = {m.shown.patient for a in answers for m in a.decision.members if m.shown and m.shown.patient}
    return Answers(
        at, facility, tuple(answers), results.person, tuple(sorted(shown | {who.patient})), patient=who.patient
    )


def _relation(services: Services, principal: Principal, at: datetime) -> Relation:
    chosen = services.settings
    after, default = since(at, chosen.treatment_days), chosen.consent_model == "opt-out"
    return Relation(principal.facility, principal.subject, after, at, default)


def _visible(
    principal: Principal,
    who: candidates.Who,
    found: tuple[Candidate, ...],
    seen: candidates.Seen | None,
    *,
    by_treatment: bool,
) -> tuple[Candidate, ...] | None:
    """The candidates the asker may be told of: none of other facilities against the patient's consent; None when a clinician's
    facility neither treats nor registered the patient. The order that is being written does not count, nor a Patient that a
    clinician registered: anybody can write one."""
    if not principal.facility and principal.role != "clinician":
        return found
    treats = seen is not None and seen.treats
    own = principal.facility != "" and who.facility == principal.facility and not (seen is not None and seen.made)
    if principal.role == "clinician" and by_treatment and not treats and not own:
        return None
    if seen is None or seen.permits:
        return found
    return tuple(c for c in found if c.facility == principal.facility)


@dataclass(frozen=True, slots=True)
class _Asked:
    """The drafts as the asking facility means them: orderable -> what was ordered and by which drafts; the catalogue items wanted."""

    ordered: Mapping[str, tuple[orders.Ordered, list[Mapping[str, Any]]]]
    items: Sequence[str]
    profile: Profile | None
    day: str

    @classmethod
    def read(
        cls, question: Question, known: rules.Rules, profile: Profile | None, at: datetime, zone: tzinfo
    ) -> _Asked:
        day = at.astimezone(zone).date().isoformat()
        ordered: dict[str, tuple[orders.Ordered, list[Mapping[str, Any]]]] = {}
        for request in question.requests:
            found = orders.read(request, known, profile, day)
            key = found.orderable.code if found.orderable else f"|{found.code}|{found.name}"
            ordered.setdefault(key, (found, []))[1].append(request)
        wanted = {i for o, _ in ordered.values() if o.orderable for i in (*o.orderable.required, *o.orderable.optional)}
        return cls(ordered, list(known.items) if question.visit else sorted(wanted), profile, day)


def _imaging(items: Iterable[str], known: rules.Rules) -> list[str]:
    return [i for i in items if i in known.items and known.items[i].category == "imaging"]


def _recent(found: Iterable[Candidate], known: rules.Rules, grants: frozenset[str]) -> list[Orderable]:
    """What the results could stand in for: the largest orderables whose required items are all there, and every item left over.

    Of items the asker may not see nothing is known, or the name of a panel would tell that they are there.
    """
    here = dict.fromkeys(known.items[c.item] for c in found if c.item and c.item in known.items)
    items = [item.code for item in here if not item.sensitivity or item.sensitivity in grants]
    whole = orders.orderables_of(items, known)
    covered = {i for o in whole for i in (*o.required, *o.optional)}
    left = (orders.single(known.items[i]) for i in items if i not in covered)
    return [*whole, *(o for o in left if o)]


def visit_card(question: Question, answers: Answers) -> str:
    """Id of the one card that lists what a visit's start finds."""
    name = "\x1f".join((question.service, question.instance, ",".join(answers.patients), "visit"))
    return str(uuid.uuid5(_CARDS, name))


def _rows(question: Question, answers: Answers, known: rules.Rules) -> list[Row]:
    call = {
        "service": question.service,
        "instance": question.instance,
        "user": question.user,
        "patient": answers.patient or (question.patient if "|" not in question.patient else None),
        "encounter": question.encounter or None,
        "department": question.department or None,
        "catalogue": known.catalogue_version,
    }
    if answers.failure or not answers.answers:
        entry = call | {
            "reason": answers.failure or ("nothing-recent" if question.visit else "nothing-ordered"),
            "drafts": len(question.requests) + len(question.unread),
        }
        return [Row("no-answer", answers.at, answers.facility, entry, answers.person)]
    if question.visit:
        entry = call | {
            "card": visit_card(question, answers),
            "decisions": [as_dict(a.decision, brief=True) for a in answers.answers],
        }
        return [Row("visit", answers.at, answers.facility, entry, answers.person)]
    rows = []
    for answer in answers.answers:
        decision = answer.decision
        orderable = decision.order.orderable
        entry = call | {
            "card": answer.id,
            "decision": as_dict(decision, brief=True),
            "price_fen": answer.price,
            "placers": [p for r in answer.requests for p in identifiers(r)],
        }
        if not answer.reminds:
            entry["reason"] = "emergency" if decision.order.emergency else decision.outcome.value
        rows.append(
            Row(
                "reminder" if answer.reminds else "no-answer",
                answers.at,
                answers.facility,
                entry,
                answers.person,
                orderable.code if orderable else None,
                decision.outcome.value,
            )
        )
    return rows


def identifiers(request: Mapping[str, Any]) -> list[str]:
    """``system|value`` of a ServiceRequest's identifiers, to find the order again once it is placed."""
    found = request.get("identifier")
    return [
        f"{i.get('system', '')}|{i['value']}"
        for i in (found if isinstance(found, list) else [])
        if isinstance(i, dict) and isinstance(i.get("value"), str)
    ]
