"""The citation of results that stand in for a test: what is written into the record of the one who adopts them.

It names organisation, report number, version, time and mark. Adopted are the images and the data, never the other doctor's conclusion
(国卫医发〔2022〕6号: 检查检验结果不含诊断结论): of an examination only numbers and images are taken over, no words of the report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from fhir_server.recognition.explain import Language, Names
from fhir_server.recognition.rules import Rules

_DATA: Final = "lab"
"""Catalogue category whose results are data through and through; of the others only numbers and images are."""
NO_MARK: Final[dict[Language, str]] = {"zh": "无标识(医共体内互认)", "en": "no mark (recognized inside the consortium)"}


@dataclass(frozen=True, slots=True)
class Source:
    """A resource as it is now: its JSON and its version id."""

    resource: Mapping[str, Any]
    version: int


def reports(
    members: Iterable[Mapping[str, Any]],
    sources: Mapping[str, Source],
    rules: Rules,
    names: Names,
    asking: str,
    known: datetime,
) -> list[dict[str, Any]]:
    """What a reminder offered, one entry a report, as JSON values.

    members  of a decision as the ledger keeps it; sources: ``Type/id`` -> resource; asking: the facility that adopts
    known    the time of adopting (aware): marks count as known then
    """
    out: dict[str, dict[str, Any]] = {}
    for member in members:
        result = member.get("result")
        if not result:
            continue
        observation = observation_of(result["observation"])
        report = result.get("report") or f"Observation/{observation}"
        cited = out.get(report) or out.setdefault(report, _report(report, result, sources.get(report), names))
        mark = _mark(member["item"], result, rules, asking, known)
        if mark and mark not in cited["marks"]:
            cited["marks"].append(mark)
        item = rules.items.get(member["item"])
        found = sources.get(f"Observation/{observation}")
        measured = _value(found.resource if found else {}, words=item is None or item.category == _DATA)
        cited["items"].append(
            {
                "item": member["item"],
                "name": member["name"],
                **measured,
                "mark": mark,
                "observation": result["observation"],
            }
        )
    return list(out.values())


def text(cited: Sequence[Mapping[str, Any]], names: Names, language: Language) -> str:
    """The citation as it is written into the record: a sentence a report, organisation, report number, version, time and mark in it."""
    return "\n".join(_sentence(report, names, language) for report in cited)


def _sentence(cited: Mapping[str, Any], names: Names, language: Language) -> str:
    zh = language == "zh"
    at = datetime.fromisoformat(cited["time"]).astimezone(names.zone) if cited["time"] else None
    when = f"{at:%Y-%m-%d %H:%M}" if at else ("时间不明" if zh else "time not known")
    where = names.facility(cited["facility"], language)
    mark = ("、" if zh else ", ").join(cited["marks"]) or NO_MARK[language]
    shown = [f"{i['name']} {i['value']}".strip() for i in cited["items"]]
    if zh:
        head = f"引用{where}报告{cited['number']}(第{cited['version']}版),{when},互认标识:{mark}"
        images = f",影像{len(cited['images'])}组" if cited["images"] else ""
        return f"{head}{images}:{';'.join(shown)}。仅采用数据与影像,不采用对方诊断结论。"
    head = f"{where}, report {cited['number']} (version {cited['version']}), {when}, mark: {mark}"
    images = f", {len(cited['images'])} image sets" if cited["images"] else ""
    return f"{head}{images}: {'; '.join(shown)}. Data and images only, not the other doctor's conclusion."


def _report(reference: str, result: Mapping[str, Any], source: Source | None, names: Names) -> dict[str, Any]:
    resource: Mapping[str, Any] = source.resource if source else {}
    return {
        "organization": names.facility(result.get("facility"), "zh"),
        "facility": result.get("facility"),
        "performer": result.get("performer"),
        "report": f"{reference}/_history/{source.version}" if source else reference,
        "number": number_of(resource) or reference.rpartition("/")[2],
        "version": source.version if source else None,
        "time": result.get("effective") or result.get("issued"),
        "issued": result.get("issued"),
        "marks": [],
        "images": _images(resource),
        "items": [],
    }


def number_of(report: Mapping[str, Any]) -> str:
    """Report number of a DiagnosticReport: its filler number, else its first identifier; empty when it has none."""
    found = [i for i in report.get("identifier", ()) if isinstance(i, dict) and isinstance(i.get("value"), str)]
    for identifier in found:
        codes = {c.get("code") for c in identifier.get("type", {}).get("coding", ()) if isinstance(c, dict)}
        if "FILL" in codes or str(identifier.get("system", "")).endswith("/filler"):
            return str(identifier["value"])
    return str(found[0]["value"]) if found else ""


def _mark(item: str, result: Mapping[str, Any], rules: Rules, asking: str, known: datetime) -> str:
    """The performing laboratory's mark as the register has it; else the one that stood on the report."""
    made = result.get("effective") or result.get("issued")
    if result.get("performer") and made:
        region = rules.standing_of(asking).region
        held, mark = rules.register.marked(result["performer"], item, datetime.fromisoformat(made), region, known)
        if held.answer and mark:
            return rules.register.label(mark)
    return str(result.get("mark") or "")


def _images(report: Mapping[str, Any]) -> list[str]:
    """References to the images of a report: studies, and key images; never the report as a document."""
    studies = [s.get("reference") for s in report.get("imagingStudy", ()) if isinstance(s, dict)]
    media = [
        m["link"].get("reference")
        for m in report.get("media", ())
        if isinstance(m, dict) and isinstance(m.get("link"), dict)
    ]
    return [r for r in (*studies, *media) if isinstance(r, str)]


def _value(observation: Mapping[str, Any], *, words: bool) -> dict[str, Any]:
    """The measured value: as text and, of a number, its parts. ``words``: text counts as data too."""
    quantity = observation.get("valueQuantity")
    if isinstance(quantity, dict) and quantity.get("value") is not None:
        unit = quantity.get("unit") or quantity.get("code") or ""
        shown = f"{quantity.get('comparator', '')}{quantity['value']}{' ' + unit if unit else ''}"
        return {"value": shown, "unit": unit or None}
    if words:
        concept = observation.get("valueCodeableConcept")
        found = observation.get("valueString") or (concept.get("text") if isinstance(concept, dict) else None)
        if isinstance(found, str):
            return {"value": found, "unit": None}
        span = observation.get("valueRange") or observation.get("valueRatio")
        if isinstance(span, dict):
            low, high = (
                span.get(k, {}).get("value")
                for k in (("low", "high") if "low" in span else ("numerator", "denominator"))
            )
            return {"value": f"{low}{'-' if 'low' in span else ':'}{high}", "unit": None}
    return {"value": "", "unit": None}


def version_of(reference: str) -> int:
    """``Observation/x/_history/1`` -> 1."""
    return int(reference.rpartition("/")[2])


def observation_of(reference: str) -> str:
    """``Observation/x/_history/1`` -> ``x``."""
    return reference.split("/")[1]
