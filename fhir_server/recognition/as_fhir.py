"""The ledger in FHIR R4: what one row says as resources. Pure; the ledger row stays the proof, these are for reading and searching.

reminder   DetectedIssue (http://hl7.org/fhir/R4/detectedissue.html): what is ordered was tested already, with the earlier results
reminder, no-answer, visit   GuidanceResponse (http://hl7.org/fhir/R4/guidanceresponse.html): the answer and what it rests on
reopened   nothing of its own: the DetectedIssue becomes ``amended`` (publish.reopened)
decision   Provenance (http://hl7.org/fhir/R4/provenance.html): who adopted, declined or revoked, why, on which results

Rows about sensitive items give nothing: those are read with a grant through /recognition. Ids are derived from card and decision.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from conformance import systems
from fhir_server.recognition.decide import instant
from mappings.ids import home_shard, logical_id, shard_of_id

TYPES: Final = ("DetectedIssue", "GuidanceResponse", "Provenance")
KINDS: Final = ("reminder", "no-answer", "visit", "decision")
"""Kinds of ledger rows that give resources."""

_ID: Final = re.compile(r"^[A-Za-z0-9\-.]{1,64}$")
_OURS: Final = {"type": "Device", "display": "通检 Tongjian"}
_ACTIONS: Final = {"adopt": "采用 adopted", "decline": "另行检查 declined", "revoke": "撤销 revoked"}


class Told(NamedTuple):
    """One ledger row. entry: its JSON values; at: aware."""

    kind: str
    at: datetime
    facility: str
    entry: Mapping[str, Any]


def resources(row: Told, sensitive: Collection[str]) -> list[dict[str, Any]]:
    """The resources of a row, none for kinds and shapes that give none. ``sensitive``: item and orderable codes that are not shown."""
    entry = row.entry
    if row.kind not in KINDS or not isinstance(entry.get("card"), str) or not _ID.match(entry["card"]):
        return []
    if row.kind == "decision":
        return [] if entry.get("sensitive") else [_provenance(row)]
    decisions = [d for d in (entry.get("decision"), *(entry.get("decisions") or ())) if isinstance(d, dict)]
    if any(d["orderable"]["code"] in sensitive or _named(d) & set(sensitive) for d in decisions):
        return []
    answer = _guidance(row, decisions)
    return [_issue(row, decisions[0]), answer] if row.kind == "reminder" and decisions else [answer]


def id_of(kind: str, facility: str, patient: str | None, key: str) -> str:
    """Logical id of a resource made from the ledger: ``key`` is the card, or the id of the decision."""
    shard = home_shard("Patient", patient) if patient else home_shard(kind, key)
    return logical_id(shard, facility, kind, "ledger", key)


def issue_of(row: Told) -> str:
    """Logical id of the DetectedIssue of the answer that a row is about."""
    return id_of("DetectedIssue", row.facility, _patient(row.entry), row.entry["card"])


def _named(decision: Mapping[str, Any]) -> set[str]:
    return {m["item"] for m in decision["members"] if m["result"]}


def _patient(entry: Mapping[str, Any]) -> str | None:
    named = str(entry.get("patient") or "").removeprefix("Patient/")
    # A Patient with an id of a client's own stands in a shard that the id does not tell.
    return named if shard_of_id(named) is not None else None


def _results(decision: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    return (m["result"] for m in decision["members"] if m["result"])


def _references(decision: Mapping[str, Any]) -> list[dict[str, str]]:
    """The earlier results and their reports, each once."""
    named = []
    for result in _results(decision):
        named += [result["observation"].partition("/_history")[0], result["report"]]
    return [{"reference": r} for r in dict.fromkeys(named) if r]


def _orderable(decision: Mapping[str, Any]) -> dict[str, Any]:
    code, name = decision["orderable"]["code"], decision["orderable"]["name"]
    concept: dict[str, Any] = {"text": name or code}
    if code and decision["outcome"] != "not-covered":
        concept["coding"] = [{"system": systems.ORDERABLES, "code": code, **({"display": name} if name else {})}]
    return concept if concept["text"] else {"text": "-"}


def _issue(row: Told, decision: Mapping[str, Any]) -> dict[str, Any]:
    entry, patient = row.entry, _patient(row.entry)
    out: dict[str, Any] = {
        "resourceType": "DetectedIssue",
        "id": id_of("DetectedIssue", row.facility, patient, entry["card"]),
        "identifier": [{"system": systems.CARD, "value": entry["card"]}],
        "status": "final",
        "code": {
            "coding": [{"system": systems.OUTCOMES, "code": decision["outcome"]}],
            "text": "重复检查检验提醒 duplicate test or examination",
        },
        "identifiedDateTime": instant(row.at),
        "author": _OURS,
        "detail": _orderable(decision)["text"],
    }
    if patient:
        out["patient"] = {"reference": f"Patient/{patient}"}
    if implicated := _references(decision):
        out["implicated"] = implicated
        versions = dict.fromkeys(r["observation"] for r in _results(decision))
        out["evidence"] = [{"code": [_orderable(decision)], "detail": [{"reference": v} for v in versions]}]
    return out


def _guidance(row: Told, decisions: list[dict[str, Any]]) -> dict[str, Any]:
    entry, patient, reason = row.entry, _patient(row.entry), row.entry.get("reason")
    out: dict[str, Any] = {
        "resourceType": "GuidanceResponse",
        "id": id_of("GuidanceResponse", row.facility, patient, entry["card"]),
        "requestIdentifier": {"system": systems.CARD, "value": entry["card"]},
        "moduleUri": f"{systems.BASE}/cds-services/{entry.get('service') or 'recognition'}",
        "status": "success",
        "occurrenceDateTime": instant(row.at),
        "performer": _OURS,
    }
    if patient:
        out["subject"] = {"reference": f"Patient/{patient}"}
    visit = str(entry.get("encounter") or "").removeprefix("Encounter/")
    if visit and _ID.match(visit):
        out["encounter"] = {"reference": f"Encounter/{visit}"}
    if decisions:
        out["reasonCode"] = [_orderable(d) for d in decisions]
    parameters = [{"name": "answer", "part": _parts(d, entry)} for d in decisions]
    if reason:
        parameters.append({"name": "no-card", "valueString": str(reason)})
    if parameters:
        out["contained"] = [{"resourceType": "Parameters", "id": "answer", "parameter": parameters}]
        out["outputParameters"] = {"reference": "#answer"}
    return out


def _parts(decision: Mapping[str, Any], entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [
        {"name": "orderable", "valueCodeableConcept": _orderable(decision)},
        {"name": "outcome", "valueCode": decision["outcome"]},
        {"name": "policy", "valueString": decision["policy"]},
        {"name": "rules", "valueString": decision["rules"]},
    ]
    if entry.get("catalogue"):
        parts.append({"name": "catalogue", "valueString": entry["catalogue"]})
    if entry.get("price_fen") is not None:
        parts.append({"name": "price-fen", "valueInteger": entry["price_fen"]})
    parts += [{"name": "fresh", "valueCode": code} for code in decision["fresh"]]
    parts += [{"name": "missing", "valueCode": code} for code in decision["missing"]]
    return parts


def _who(facility: str, name: str) -> dict[str, Any]:
    kind, _, logical = name.rpartition("/")
    return {
        **({"type": kind} if kind in ("Practitioner", "PractitionerRole") else {}),
        "identifier": {"system": systems.facility_system(facility, "staff"), "value": logical or name},
    }


def _provenance(row: Told) -> dict[str, Any]:
    entry, patient = row.entry, _patient(row.entry)
    here = {"identifier": {"system": systems.FACILITY, "value": row.facility}}
    issue = id_of("DetectedIssue", row.facility, patient, entry["card"])
    agents = [{"who": _who(row.facility, entry["user"]), "onBehalfOf": here}]
    if told := entry.get("told"):
        # 6号: whoever declines tells the patient purpose and necessity of the repeat.
        agents.append({"type": {"text": "told the patient"}, "who": _who(row.facility, told["by"])})
    out: dict[str, Any] = {
        "resourceType": "Provenance",
        "id": id_of("Provenance", row.facility, patient, entry["id"]),
        "target": [{"reference": f"DetectedIssue/{issue}"}],
        "occurredDateTime": entry.get("acted_at") or instant(row.at),
        "recorded": instant(row.at),
        "activity": {
            "coding": [{"system": systems.DECISION, "code": entry["action"]}],
            "text": _ACTIONS.get(entry["action"], entry["action"]),
        },
        "agent": agents,
    }
    if reason := entry.get("reason"):
        words = entry.get("text") or entry.get("reason_text")
        out["reason"] = [{"coding": [dict(reason)], **({"text": words} if words else {})}]
    entities = [
        {"role": "source", "what": {"reference": reference}}
        for reference in dict.fromkeys(a["observation"] for a in entry.get("adopted") or ())
    ]
    if entry.get("revokes"):
        earlier = id_of("Provenance", row.facility, patient, entry["revokes"])
        entities.append({"role": "removal", "what": {"reference": f"Provenance/{earlier}"}})
    if entities:
        out["entity"] = entities
    return out
