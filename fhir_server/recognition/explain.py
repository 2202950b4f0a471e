"""A decision in one Chinese and one English sentence for a clinician, and the table behind it.

Sentences stay under 140 characters (CDS Hooks 2.0, Card.summary). They name facilities, dates and items, never the patient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Final, Literal

from fhir_server.recognition.criteria import JUDGES, Answer, Candidate
from fhir_server.recognition.decide import Decision, Member, Outcome
from fhir_server.recognition.rules import Mode, Rules
from mappings import ucum
from mappings.display_units import convert

Language = Literal["zh", "en"]
SUMMARY_LENGTH: Final = 139

OUTCOMES: Final[dict[Outcome, dict[Language, str]]] = {
    Outcome.RECOGNIZED: {"zh": "可互认", "en": "can be recognized"},
    Outcome.REFERENCE_ONLY: {"zh": "仅供参考", "en": "reference only"},
    Outcome.NOT_RECOGNIZABLE: {"zh": "不可互认", "en": "not recognizable"},
    Outcome.NOT_COVERED: {"zh": "不在互认目录", "en": "not in the catalogue"},
}

CRITERIA: Final[dict[str, dict[Language, str]]] = {
    "identity": {"zh": "患者身份", "en": "identity"},
    "received": {"zh": "当时已收到", "en": "received by then"},
    "final": {"zh": "报告状态", "en": "final report"},
    "mapped": {"zh": "项目对照", "en": "code mapped"},
    "item": {"zh": "项目一致", "en": "same item"},
    "value": {"zh": "结果数据", "en": "value"},
    "unit": {"zh": "单位", "en": "unit"},
    "site": {"zh": "部位与增强", "en": "site and contrast"},
    "method": {"zh": "检测方法", "en": "method"},
    "specimen": {"zh": "标本类型", "en": "specimen"},
    "quality": {"zh": "标本质量", "en": "specimen quality"},
    "abnormal": {"zh": "异常值", "en": "abnormal value"},
    "window": {"zh": "时限", "en": "time window"},
    "exclusion": {"zh": "排除小时数", "en": "exclusion hours"},
    "images": {"zh": "影像", "en": "images"},
    "mark": {"zh": "互认标识", "en": "recognition mark"},
    "eqa": {"zh": "室间质评", "en": "quality assessment"},
    "level": {"zh": "机构等级", "en": "hospital level"},
    "ownership": {"zh": "民营机构", "en": "private institution"},
    "health-check": {"zh": "体检报告", "en": "health check"},
    "own-facility": {"zh": "本院结果", "en": "own results"},
    "consortium": {"zh": "医共体范围", "en": "consortium"},
    "context": {"zh": "就诊情形", "en": "emergency or surgery"},
}
"""Name of each criterion for a reader."""

_ANSWERS: Final[dict[Answer, dict[Language, str]]] = {
    Answer.NOT_MET: {"zh": "不符", "en": "not met"},
    Answer.UNKNOWN: {"zh": "不明", "en": "unknown"},
}


@dataclass(frozen=True, slots=True)
class Names:
    """Facility id -> name in Chinese and English, and the zone dates are shown in."""

    zh: Mapping[str, str]
    en: Mapping[str, str]
    zone: tzinfo

    def facility(self, id: str | None, language: Language) -> str:
        """Name of a facility, its id when it has none."""
        found = (self.zh if language == "zh" else self.en).get(id or "")
        return found or self.zh.get(id or "") or id or ("未知机构" if language == "zh" else "unknown facility")


def summary(decision: Decision, names: Names, language: Language) -> str:
    """The sentence, shorter than 140 characters."""
    text = _SENTENCES[decision.outcome](decision, names, language)
    return text if len(text) <= SUMMARY_LENGTH else text[: SUMMARY_LENGTH - 1] + "…"


def orderable_name(decision: Decision, language: Language) -> str:
    """What was ordered, in the reader's language."""
    order = decision.order
    if order.orderable is None:
        return order.name or order.code
    return order.orderable.name_zh if language == "zh" else order.orderable.name_en or order.orderable.name_zh


def _where_and_when(members: Sequence[Member], names: Names, language: Language) -> str:
    results = [m.shown for m in members if m.shown]
    facilities = list(dict.fromkeys(r.facility for r in results))
    where = names.facility(facilities[0] if facilities else None, language)
    if len(facilities) > 1:
        where += f"等{len(facilities)}家机构" if language == "zh" else f" and {len(facilities) - 1} more"
    days = sorted({_day(r, names) for r in results if _time(r)})
    if not days:
        return where
    first, last = (_date(d, language) for d in (days[0], days[-1]))
    when = first if first == last else f"{first}至{last}" if language == "zh" else f"{first} to {last}"
    return f"{where} {when}"


def _time(result: Candidate) -> datetime | None:
    return result.effective or result.issued


def _day(result: Candidate, names: Names) -> datetime:
    at = _time(result)
    assert at is not None
    return at.astimezone(names.zone).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)


def _date(day: datetime, language: Language) -> str:
    return f"{day.month}月{day.day}日" if language == "zh" else f"{day:%Y-%m-%d}"


def _recognized(decision: Decision, names: Names, language: Language) -> str:
    what, members = orderable_name(decision, language), decision.required
    where = _where_and_when(members, names, language)
    if language == "zh":
        return f"{where} {what}({len(members)}项)在有效期内,可互认"
    return f"{what} ({len(members)} items) from {where} is inside its window and can be recognized"


def _reference(decision: Decision, names: Names, language: Language) -> str:
    what, required, fresh = orderable_name(decision, language), decision.required, decision.fresh
    fresh = tuple(m for m in fresh if m.required)
    usable = [m for m in required if m.shown]
    where = _where_and_when(usable, names, language)
    reason = _reasons(decision, language)
    if decision.order.emergency:
        return (
            f"急诊情形不要求互认;{where} {what}结果可参考"
            if language == "zh"
            else f"Emergency, no duty to recognize; {what} from {where} may be looked at"
        )
    if len(usable) < len(required):
        missing = [m for m in required if not m.shown]
        if language == "zh":
            return f"{what}{len(required)}项中{len(usable)}项有近期结果可参考({where}),缺{_listed(missing, language)}"
        return f"{what}: {len(usable)} of {len(required)} items have recent results ({where}); missing {_listed(missing, language)}"
    if language == "zh":
        return f"{where} {what}结果可参考,不能确认互认({reason},{len(required) - len(fresh)}项)"
    return f"{what} from {where} may be looked at but not recognized ({reason}, {len(required) - len(fresh)} items)"


def _not_recognizable(decision: Decision, names: Names, language: Language) -> str:
    what, reason = orderable_name(decision, language), _reasons(decision, language)
    if language == "zh":
        return f"{what}没有可互认的既往结果" + (f"({reason})" if reason else "")
    return f"No earlier result of {what} can be recognized" + (f" ({reason})" if reason else "")


def _not_covered(decision: Decision, names: Names, language: Language) -> str:
    what = orderable_name(decision, language)
    return f"{what}不在互认目录内" if language == "zh" else f"{what} is not in the recognition catalogue"


_SENTENCES: Final = {
    Outcome.RECOGNIZED: _recognized,
    Outcome.REFERENCE_ONLY: _reference,
    Outcome.NOT_RECOGNIZABLE: _not_recognizable,
    Outcome.NOT_COVERED: _not_covered,
}


def _listed(members: Sequence[Member], language: Language, limit: int = 4) -> str:
    shown = [m.name_zh if language == "zh" else m.name_en or m.name_zh for m in members[:limit]]
    if language == "zh":
        return "、".join(shown) + (f"等{len(members)}项" if len(members) > limit else "")
    return ", ".join(shown) + (f" and {len(members) - limit} more" if len(members) > limit else "")


def _reasons(decision: Decision, language: Language) -> str:
    """Which criteria stood in the way, most frequent first, two at most."""
    counts: dict[tuple[str, Answer], int] = {}
    for member in decision.missing:
        for criterion in member.obstacles[:1] if member.known else ():
            key = (criterion.name, criterion.answer)
            counts[key] = counts.get(key, 0) + 1
    named = sorted(counts, key=lambda k: (-counts[k], k[0]))[:2]
    glue = "、" if language == "zh" else ", "
    gap = "" if language == "zh" else " "
    return glue.join(CRITERIA[name][language] + gap + _ANSWERS[answer][language] for name, answer in named)


def detail(decision: Decision, rules: Rules, names: Names, language: Language) -> str:
    """GitHub-flavoured markdown: one row per member with value, facility, time, age against the window, and what stands in the way;
    then the policy, the texts it rests on and the version of the rules."""
    head = (
        "| 项目 | 结果 | 机构 | 时间 | 结论 |" if language == "zh" else "| Item | Result | Facility | Time | Finding |"
    )
    lines = [head, "|---|---|---|---|---|"]
    for member in decision.members:
        if not member.required and member.shown is None:
            continue
        name = member.name_zh if language == "zh" else member.name_en or member.name_zh
        result = member.shown
        taken = _time(result) if result else None
        at = taken.astimezone(names.zone) if taken else None
        finding = OUTCOMES[member.outcome][language] + _age(member, language)
        if not member.known:
            finding = "无既往结果" if language == "zh" else "no earlier result"
        elif member.obstacles:
            gap = "" if language == "zh" else " "
            finding += ": " + ", ".join(
                CRITERIA[c.name][language] + gap + _ANSWERS[c.answer][language] for c in member.obstacles
            )
        cells = (
            name,
            value_text(result) + _in_our_unit(result, rules) if result else "-",
            names.facility(result.facility, language) if result else "-",
            f"{at:%Y-%m-%d %H:%M}" if at else "-",
            finding,
        )
        lines.append("| " + " | ".join(escaped(c) for c in cells) + " |")
    return "\n".join((*lines, "", _basis(decision, rules, language)))


def _in_our_unit(result: Candidate, rules: Rules) -> str:
    """The same value in the unit of the catalogue, where the sender used another size of it; for reading only."""
    item = rules.items.get(result.item or "")
    if item is None or result.number is None or not result.unit or ucum.same_unit(result.unit, item.unit):
        return ""
    value = convert(result.number, result.unit, item.unit, item.molar_mass)
    return "" if value is None else f" (= {value} {item.unit})"


def _age(member: Member, language: Language) -> str:
    facts = next((c.evidence for c in member.criteria if c.name == "window"), {})
    if member.shown is None or "age_hours" not in facts:
        return ""
    age, days = f"{facts['age_hours'] / 24:.1f}", facts["days"]
    return f",已过{age}天,时限{days}天" if language == "zh" else f", {age} of {days} days"


def _basis(decision: Decision, rules: Rules, language: Language) -> str:
    """What the decision rests on: only texts that were found, each once."""
    articles = (rules.articles.get(name) for name in JUDGES if decision.policy.mode(name) is not Mode.NOT_REQUIRED)
    cited = dict.fromkeys(a.citation.partition("(")[0] for a in articles if a and a.found)
    policy = decision.policy.name_zh if language == "zh" else decision.policy.name_en
    if language == "zh":
        return f"依据:{policy};{';'.join(cited)}。规则版本 {decision.rules_version}。"
    return f"Basis: {policy}; {'; '.join(cited)}. Rules {decision.rules_version}."


def value_text(result: Candidate) -> str:
    """Value with comparator and unit as sent; empty when there is none."""
    if result.number is None:
        return result.value_text or ""
    unit = result.unit_text or result.unit or ""
    return f"{result.comparator or ''}{result.number}{' ' + unit if unit else ''}"


def escaped(text: str) -> str:
    """Text as plain markdown."""
    # Text of a sender must not become markup: a pipe ends a cell, a line break the table, brackets and angles make links and HTML.
    cleaned = " ".join(text.split())
    for mark in "\\|[]<>`*_!":
        cleaned = cleaned.replace(mark, "\\" + mark)
    return cleaned
