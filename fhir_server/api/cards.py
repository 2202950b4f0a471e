"""Answers of the recognition check as CDS Hooks cards (https://cds-hooks.hl7.org/2.0/, section "Card Attributes")."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Final

from conformance import systems
from fhir_server.recognition import explain, reasons
from fhir_server.recognition.check import Answer
from fhir_server.recognition.decide import Outcome
from fhir_server.recognition.explain import Language, Names
from fhir_server.recognition.rules import Rules
from fhir_server.services import Services

_SOURCE: Final = {"zh": "通检 检查检验结果互认", "en": "Tongjian recognition of results"}


def language_of(header: str | None) -> Language:
    """Accept-Language (RFC 9110 section 12.5.4) -> the language preferred of the two; Chinese when neither is asked for."""
    best: tuple[float, Language] = (0.0, "zh")
    for part in (header or "").split(","):
        tag, _, parameter = part.strip().partition(";")
        weight = parameter.strip().removeprefix("q=") or "1"
        try:
            q = float(weight)
        except ValueError:
            continue
        primary = tag.strip().lower().partition("-")[0]
        if primary in ("zh", "en") and q > best[0]:
            best = (q, "en" if primary == "en" else "zh")
    return best[1]


def names_of(services: Services) -> Names:
    """Names of the facilities, from their profiles."""
    organizations = {key: p.facility.organization for key, p in services.profiles.items()}
    return Names(
        {key: o.name for key, o in organizations.items()},
        {key: o.name_en for key, o in organizations.items() if o.name_en},
        services.settings.zone,
    )


def card(answer: Answer, rules: Rules, names: Names, language: Language, base: str) -> dict[str, Any]:
    """One card (section "Card Attributes"). Only a recognized orderable suggests to drop the order and asks for a reason."""
    decision = answer.decision
    out: dict[str, Any] = {
        "uuid": answer.id,
        "summary": explain.summary(decision, names, language),
        "detail": explain.detail(decision, rules, names, language),
        "indicator": "warning" if decision.outcome is Outcome.RECOGNIZED else "info",
        "source": {
            "label": _SOURCE[language],
            "topic": {
                "system": systems.OUTCOMES,
                "code": decision.outcome.value,
                "display": explain.OUTCOMES[decision.outcome][language],
            },
        },
    }
    if decision.outcome is Outcome.RECOGNIZED:
        out["suggestions"] = [_suggestion(answer, language)]
        out["selectionBehavior"] = "at-most-one"
        out["overrideReasons"] = [
            {"system": r.system, "code": r.code, "display": r.zh if language == "zh" else r.en}
            for r in reasons.offered(rules)
        ]
    if links := list(_links([answer], names, language, base)):
        out["links"] = links
    return out


def visit_card(id: str, answers: Sequence[Answer], names: Names, language: Language, base: str) -> dict[str, Any]:
    """The one card of a visit's start: what may be recognized if it were ordered. It suggests nothing and asks for nothing."""
    fresh = [a for a in answers if a.decision.outcome is Outcome.RECOGNIZED]
    named = [explain.orderable_name(a.decision, language) for a in fresh or answers]
    zh = language == "zh"
    listed = ("、" if zh else ", ").join(named[:4])
    if len(named) > 4:
        listed += f"等{len(named)}项" if zh else f" and {len(named) - 4} more"
    if fresh:
        summary = f"近期有可互认的结果:{listed}" if zh else f"Recent results can be recognized: {listed}"
    else:
        summary = f"近期有可参考的结果:{listed}" if zh else f"Recent results for reference: {listed}"
    out: dict[str, Any] = {
        "uuid": id,
        "summary": summary if len(summary) <= explain.SUMMARY_LENGTH else summary[: explain.SUMMARY_LENGTH - 1] + "…",
        "detail": "\n".join(f"- {explain.escaped(explain.summary(a.decision, names, language))}" for a in answers),
        "indicator": "info",
        "source": {"label": _SOURCE[language]},
    }
    if links := list(_links(answers, names, language, base)):
        out["links"] = links
    return out


def _suggestion(answer: Answer, language: Language) -> dict[str, Any]:
    what = explain.orderable_name(answer.decision, language)
    zh = language == "zh"
    out: dict[str, Any] = {
        "label": f"采用既往结果,取消本次{what}" if zh else f"Use the earlier result and drop {what}",
        "uuid": str(uuid.uuid5(uuid.UUID(answer.id), "drop")),
        "isRecommended": True,
    }
    actions = [
        {
            "type": "delete",
            "description": f"取消医嘱:{what}" if zh else f"Drop the order: {what}",
            "resourceId": f"ServiceRequest/{request['id']}",
        }
        for request in answer.requests
        if isinstance(request.get("id"), str) and request["id"]
    ]
    if actions:
        out["actions"] = actions
    return out


def _links(answers: Sequence[Answer], names: Names, language: Language, base: str) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for member in (m for answer in answers for m in answer.decision.members):
        result = member.shown
        if result is None or not result.report or result.report in seen:
            continue
        seen.add(result.report)
        at = result.effective or result.issued
        day = f" {at.astimezone(names.zone):%Y-%m-%d}" if at else ""
        what = "报告" if language == "zh" else "report"
        yield {
            "label": f"{names.facility(result.facility, language)} {what}{day}",
            "url": f"{base}/DiagnosticReport/{result.report}",
            "type": "absolute",
        }
