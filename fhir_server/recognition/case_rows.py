"""What the platform of a rule case had received -> candidate results, through the same conversion, fold and flattening as the server.

Messages are converted by ``adapters.convert``, statements about one Observation folded by ``store.fold``, and each version flattened by
``store.results``: a correction or a void replaces what was visible before from the moment it was received.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from adapters import convert as adapters
from adapters.contract import Unreadable
from conformance import fhirjson, systems, validator
from conformance.capability import RESOURCE_TYPES
from fhir_server.recognition import case_withdrawals, images
from fhir_server.recognition.case_file import Case, CaseError, Prior, Report, Time, instant
from fhir_server.recognition.case_withdrawals import Stated
from fhir_server.recognition.case_world import Built
from fhir_server.recognition.criteria import Candidate
from fhir_server.store import results, statement
from fhir_server.store.change import Origin
from fhir_server.store.fold import fold
from fhir_server.store.statement import WITHDRAWN, with_status
from fhir_server.store.voided import VOID
from mappings.model import Conversion
from mappings.profile import Profile

PERSON: Final = "person-of-the-order"
_YES_NO: Final = {"yes": True, "no": False, None: None}
_LONG_AGO: Final = datetime(2000, 1, 1, tzinfo=UTC)
_OBSERVATION: Final = RESOURCE_TYPES["Observation"]
_NUMBER: Final = re.compile(r"^(?P<comparator>[<>]=?|[≤≥])?\s*(?P<number>[+-]?\d+(?:\.\d+)?)(?:\s+(?P<unit>\S.*))?$")
_PARTS: Final = re.compile(r"an object|a list")
_SPECIMENS: Final = {
    "serum": "SER", "plasma": "PLAS", "whole-blood": "WB", "arterial-blood": "BLDA", "urine": "UR", "stool": "STL", "sputum": "SPT",
    "semen": "SMN", "breath": "EXG", "respiratory": "NP",
}  # fmt: skip


@dataclass(slots=True)
class Received:
    """candidates for ``decide``; notes: what the server would have held or not understood, one sentence each; linked: id of a result ->
    from when its link was known, where the case says so."""

    candidates: list[Candidate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    linked: dict[str, datetime] = field(default_factory=dict)

    def known(self, at: datetime) -> list[Candidate]:
        """The candidates as known at a time: of a result that had come, only the version that counted then; of one that had not, what
        is to come, so that the decision can say so."""
        came = {c.id for c in self.candidates if c.recorded is not None and c.recorded <= at}
        return [
            c._replace(person=None, grade=None) if self.linked.get(c.id, at) > at else c
            for c in self.candidates
            if c.id not in came or c.recorded is None or c.recorded <= at
        ]


def read(case: Case, built: Built, folder: Path) -> Received:
    """Everything ``prior`` of a case. ``folder``: where files named by the case stand. Raises CaseError naming the key."""
    out = Received()
    at = instant(case.at)
    stated: dict[str, list[Stated]] = {}
    void: list[Stated] = []
    for number, prior in enumerate(case.prior):
        try:
            for one in _statements(prior, built, folder, at, out.notes):
                if one.statement.resource_type == "DiagnosticReport":
                    void.append(one)
                    continue
                stated.setdefault(one.statement.key[2], []).append(one)
                if prior.identity_since is not None:
                    out.linked[one.statement.key[2]] = instant(prior.identity_since, at)
        except (ValueError, KeyError) as fault:
            raise CaseError(f"prior.{number}: {fault}") from None
        except CaseError as fault:
            raise CaseError(f"prior.{number}.{fault}") from None
    case_withdrawals.withdraw(stated)
    case_withdrawals.cancel(stated, void)
    for many in stated.values():
        out.candidates += _versions(sorted(many, key=lambda s: s.statement.origin.recorded), case)
    return out


def _versions(stated: Sequence[Stated], case: Case) -> Iterable[Candidate]:
    """The versions of one Observation that were current at some time."""
    by_statement = {id(s.statement): s for s in stated}
    _, versions = fold(None, [s.statement for s in stated], lambda _: False, set())
    current = [v for v in versions if v.kind != "stale"]
    for version, later in zip(current, [*current[1:], None], strict=True):
        said = by_statement[id(version.statement)]
        origin = version.statement.origin
        resource = version.statement.resource
        if said.report is not None and said.report.get("status") in VOID:
            resource = with_status(resource, WITHDRAWN)
        flat = results.flatten(
            resource,
            facility=origin.facility,
            report=said.report,
            specimen=said.specimen,
            encounter=said.encounter,
        )
        person, grade = _link(said.prior, case)
        candidate = Candidate(
            id=version.statement.key[2],
            version=version.number,
            patient=said.patient,
            person=person,
            grade=grade,
            report=said.parent,
            facility=origin.facility,
            recorded=version.updated,
            until=later.updated if later else None,
            **{name: getattr(flat, name) for name in flat._fields if name not in ("range_text", "stated")},
            **flat.stated._asdict() | {"health_check": _YES_NO[flat.stated.health_check]},
        )
        yield candidate._replace(**said.images, **_beside(said.prior))


def _link(prior: Prior, case: Case) -> tuple[str | None, str | None]:
    identity = prior.identity or case.identity
    if identity == "not-linked":
        return None, None
    return ("person-of-somebody-else", "certain") if identity == "other-person" else (PERSON, identity)


def _beside(prior: Prior) -> dict[str, Any]:
    """Facts the message itself cannot say."""
    facts: dict[str, Any] = {
        "health_check": prior.health_check, "method": prior.method, "site": prior.site, "laterality": prior.laterality,
        "contrast": prior.contrast,
    }  # fmt: skip
    if prior.images is not None:
        images = prior.images
        facts |= {
            "images_complete": images.complete,
            "images_reachable": images.reachable,
            "image_quality": images.quality,
        }
    return {k: v for k, v in facts.items() if v is not None}


def _statements(prior: Prior, built: Built, folder: Path, at: datetime, notes: list[str]) -> list[Stated]:
    given = [k for k in ("hl7v2", "file", "fhir", "report") if getattr(prior, k) is not None]
    if len(given) != 1:
        raise CaseError(
            "one of hl7v2, file, fhir and report is needed" + (f", not {' and '.join(given)}" if given else "")
        )
    if prior.fhir is not None:
        return _of_fhir(prior, built, at, notes)
    if prior.report is not None:
        raw, known = _message(prior.report, built, at)
    else:
        raw, known = _raw(prior, folder), None
    profile = _sender(prior, raw, built)
    found: Conversion
    try:
        found = adapters.convert(raw, profile)
        sent = adapters.peek(raw, profile).sent_at
    except Unreadable as fault:
        raise CaseError(f"{given[0]}: {fault.issue.text}") from None
    if found.held is not None:
        notes.append(f"a message of {profile.id} is held and gives no result: {found.held.text}")
        return []
    notes += [f"{u.kind} {u.code or u.unit} of {u.facility} is not mapped" for u in found.unmapped if u.kind != "order"]
    received = instant(prior.received, at) if prior.received is not None else known or sent or _LONG_AGO
    origin = Origin(profile.id, None, None, received)
    resources = {(e.resource["resourceType"], e.resource["id"]): e.resource for e in found.entries}
    numbers = {e.resource["id"]: e.business for e in found.entries if e.resource["resourceType"] == "DiagnosticReport"}
    return [
        Stated(
            statement.of_entry(entry, origin),
            prior,
            resources.get(("DiagnosticReport", entry.parent)),
            resources.get(("Specimen", _id_of(entry.resource.get("specimen")))),
            resources.get(("Encounter", _id_of(entry.resource.get("encounter")))),
            entry.patient,
            entry.parent or None,
            # The number a short form has by default says nothing.
            number=numbers.get(entry.parent, "")
            if prior.report is None or "number" in prior.report.model_fields_set
            else "",
        )
        for entry in found.entries
        if entry.resource["resourceType"] == "Observation"
        or (entry.resource["resourceType"] == "DiagnosticReport" and entry.resource["status"] in VOID)
    ]


def _raw(prior: Prior, folder: Path) -> bytes:
    if prior.hl7v2 is not None:
        return "\r".join(line.strip() for line in prior.hl7v2.strip().splitlines() if line.strip()).encode()
    try:
        return (folder / (prior.file or "")).read_bytes().replace(b"\r\n", b"\r").replace(b"\n", b"\r")
    except OSError as fault:
        raise CaseError(f"file: {prior.file} cannot be read: {fault.strerror}") from None


def _sender(prior: Prior, raw: bytes, built: Built) -> Profile:
    facility = prior.facility or (prior.report.facility if prior.report else "")
    if not facility:
        name = adapters.peek(raw, built.profiles["generic"]).sender
        for profile in built.profiles.values():
            for sender in profile.facility.senders:
                if sender.facility == name[1] and sender.application in ("", name[0]):
                    return profile
        raise CaseError(f"facility: no facility of the case sends as {name[1]!r} (MSH-4); name the facility")
    if facility not in built.profiles:
        raise CaseError(f"facility: {facility!r} is not among the facilities of the case")
    return built.profiles[facility]


def of_shape(resource: dict[str, Any], key: str) -> list[str]:
    """What a server would refuse about the values of a resource; an element that may be left out in a case is not missed.

    Raises CaseError for one that is not a resource, or holds something else where R4 has a list or an element with parts.
    """
    noted = []
    for issue in validator.check(fhirjson.loads(_json(resource))):
        told = f"{key}: {issue.where or 'resourceType'}: {issue.text}"
        if issue.key == "unknown-type" or (issue.key == "wrong-type" and _PARTS.search(issue.text)):
            raise CaseError(told)
        if issue.key in ("bad-format", "wrong-type", "unknown-element"):
            noted.append(told)
    return noted


def _of_fhir(prior: Prior, built: Built, at: datetime, notes: list[str]) -> list[Stated]:
    """Resources as a client would write them: Observations with their DiagnosticReport and Specimen."""
    # Through JSON text: numbers stay what was written and become decimals, never floats.
    given = fhirjson.loads(prior.fhir.encode() if isinstance(prior.fhir, str) else _json(prior.fhir))
    if isinstance(given, dict) and given.get("resourceType") == "Bundle":
        given = _of_bundle(given)
    resources = [r for r in (given if isinstance(given, list) else [given]) if isinstance(r, dict)]
    if not any(r.get("resourceType") == "Observation" for r in resources):
        raise CaseError("fhir: an Observation is needed")
    notes += [note for r in resources for note in of_shape(r, "fhir")]
    facility = prior.facility or next(iter(built.profiles))
    if facility not in built.profiles:
        raise CaseError(f"facility: {facility!r} is not among the facilities of the case")
    by_id = {(r.get("resourceType"), r.get("id")): r for r in resources}
    reports = {
        _id_of(x): r for r in resources if r.get("resourceType") == "DiagnosticReport" for x in r.get("result") or ()
    }
    out = []
    for number, observation in enumerate(r for r in resources if r.get("resourceType") == "Observation"):
        logical = str(observation.get("id") or f"observation-{number}")
        report = reports.get(logical)
        issued = observation.get("issued") or (report or {}).get("issued") or observation.get("effectiveDateTime")
        received = prior.received if prior.received is not None else issued
        origin = Origin(facility, None, None, instant(received, at) if received is not None else _LONG_AGO)
        patient = _id_of(observation.get("subject")) or None
        resource = _mapped(observation, built.profiles[facility], built) | {"id": logical}
        parent = str(report.get("id")) if report else None
        stated = statement.of_write((0, _OBSERVATION, logical), resource, patient, parent, origin, b"")
        specimen = by_id.get(("Specimen", _id_of(observation.get("specimen"))))
        encounter = by_id.get(("Encounter", _id_of(observation.get("encounter"))))
        studies = [_id_of(r) for r in (report or {}).get("imagingStudy") or ()]
        opened = [by_id[("ImagingStudy", s)] for s in studies if ("ImagingStudy", s) in by_id]
        known = images.facts(opened)
        out.append(Stated(stated, prior, report, specimen, encounter, patient, parent, known))
    return out


def _of_bundle(bundle: Mapping[str, Any]) -> list[Any]:
    """The resources of a Bundle; those that refer to each other by ``fullUrl`` refer by type and id."""
    entries = [e for e in bundle.get("entry") or () if isinstance(e, dict) and isinstance(e.get("resource"), dict)]
    urls: dict[str, str] = {}
    for number, entry in enumerate(entries):
        resource = entry["resource"] = {"id": f"entry-{number}", **entry["resource"]}
        if entry.get("fullUrl"):
            urls[entry["fullUrl"]] = f"{resource.get('resourceType')}/{resource['id']}"

    def resolved(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                k: urls.get(v, v) if k == "reference" and isinstance(v, str) else resolved(v) for k, v in value.items()
            }
        return [resolved(v) for v in value] if isinstance(value, list) else value

    return [resolved(entry["resource"]) for entry in entries]


def _mapped(observation: dict[str, Any], sender: Profile, built: Built) -> dict[str, Any]:
    """An Observation as its sender's mapping would have made it: the item of its local code, and who performed it."""
    facility = sender.facility.id
    concept = observation.get("code") or {}
    codings = [c for c in concept.get("coding") or () if isinstance(c, dict)]
    out = dict(observation)
    own = next((c for c in codings if c.get("system") == systems.local_codes(facility, "tests")), None)
    if own and not any(c.get("system") == systems.ITEMS for c in codings):
        found = sender.tests.lookup(str(own.get("code") or ""), str(own.get("display") or ""), "")
        if found:
            out["code"] = concept | {"coding": [*codings, {"system": systems.ITEMS, "code": found.item}]}
    performers = observation.get("performer") or ()
    if not performers and sender.facility.default_performer == "sender":
        out["performer"] = [{"identifier": {"system": systems.FACILITY, "value": facility}}]
    for performer in performers:
        name = _id_of(performer) or performer.get("display") or ""
        known = name if name in built.profiles else sender.facility.performers.get(name)
        if known and "identifier" not in performer:
            out["performer"] = [{"identifier": {"system": systems.FACILITY, "value": known}}]
            break
    return out


def _json(value: Any) -> bytes:
    def plain(x: Any) -> Any:
        if isinstance(x, dict):
            return {str(k): plain(v) for k, v in x.items()}
        if isinstance(x, list):
            return [plain(v) for v in x]
        if isinstance(x, float):
            return Decimal(str(x))
        return x.isoformat() if hasattr(x, "isoformat") else x

    return fhirjson.dumps(plain(value))


def _id_of(reference: Any) -> str:
    text = reference.get("reference") if isinstance(reference, dict) else ""
    return str(text or "").rpartition("/")[2]


# --- the short form ------------------------------------------------------------------------------------------------------


def _message(report: Report, built: Built, at: datetime) -> tuple[bytes, datetime]:
    """The short form as an HL7 v2.5 message ORU^R01, and when it was issued (HL7 v2.5 chapter 7)."""
    if report.facility not in built.profiles:
        raise CaseError(f"report.facility: {report.facility!r} is not among the facilities of the case")
    sender = built.profiles[report.facility].facility.senders
    collected = _hl7_time(report.collected, at)
    unknown = report.issued == "unknown"
    told = report.collected if report.issued is None or unknown else report.issued
    issued = at if told is None else instant(told, at)
    kind = report.specimen or ""
    specimen = _SPECIMENS.get(kind, kind)
    segments = [
        ["MSH", "^~\\&", "LIS", sender[0].facility if sender else report.facility, "", "", _hl7_time(issued, at), "", "ORU^R01^ORU_R01",
         f"{report.facility}-{report.number}-{_hl7_time(issued, at)}-{report.status}", "P", "2.5", *[""] * 5, "UTF-8"],
        ["PID", "1", "", f"{report.patient}^^^^PI"],
        _fields("OBR", {1: "1", 3: _escaped(report.number), 4: "PANEL", 7: collected,
                        22: _hl7_time(None if unknown else told, at), 25: report.status}),
    ]  # fmt: skip
    for number, (code, value) in enumerate(_results(report, built).items(), 1):
        segments.append(_obx(number, code, value, report, built, at))
    if specimen or report.condition:
        segments.append(
            _fields("SPM", {1: "1", 4: _escaped(specimen), 17: collected, 24: _escaped(report.condition or "")})
        )
    return "\r".join("|".join(s) for s in segments).encode(), issued


def _results(report: Report, built: Built) -> Mapping[str, Any]:
    if isinstance(report.results, dict):
        return report.results
    if isinstance(report.results, str):
        panel = built.rules.orderables.get(report.results)
        if panel is None:
            raise CaseError(f"report.results: {report.results!r} is not an orderable; write item: value")
        return dict.fromkeys(panel.required)
    return dict.fromkeys(report.results)


def _obx(number: int, code: str, value: Any, report: Report, built: Built, at: datetime) -> list[str]:
    given = dict(value) if isinstance(value, dict) else {"value": value}
    if unknown := sorted(
        set(given) - {"value", "unit", "status", "flag", "name", "method", "site", "performer", "collected"}
    ):
        raise CaseError(f"report.results.{code}: {', '.join(unknown)}: unknown key")
    item = built.rules.items.get(code)
    text, unit = given.get("value"), given.get("unit")
    if value is None or "value" not in given:
        text, unit = ("1", unit if "unit" in given else item.unit) if item and item.unit else ("阴性", unit)
    found = _NUMBER.match(str(text)) if text is not None else None
    if found and found["unit"] and unit is None:
        text, unit = (found["comparator"] or "") + found["number"], found["unit"]
    kind = "" if text is None else "ST" if not found else "SN" if found["comparator"] else "NM"
    plain = _escaped(str(text)) if text is not None else ""
    written = f"{found['comparator']}^{found['number']}" if kind == "SN" and found else plain
    name = given.get("name", item.name_zh if item else code)
    status = given.get("status", "X" if report.status == "X" else report.status)
    performer = given.get("performer", report.performer) or ""
    return _fields("OBX", {
        1: str(number), 2: kind, 3: f"{_escaped(code)}^{_escaped(str(name))}", 5: written, 6: _escaped(str(unit or "")),
        8: str(given.get("flag") or ""), 11: str(status), 14: _hl7_time(given.get("collected", report.collected), at),
        15: _escaped(performer), 17: _escaped(str(given.get("method") or "")), 20: _escaped(str(given.get("site") or "")),
    })  # fmt: skip


def _fields(name: str, values: Mapping[int, str]) -> list[str]:
    last = max(k for k, v in values.items() if v)
    return [name, *(values.get(n, "") for n in range(1, last + 1))]


def _hl7_time(given: Time | None, at: datetime) -> str:
    return "" if given is None else instant(given, at).strftime("%Y%m%d%H%M%S%z")


def _escaped(text: str) -> str:
    for mark, code in (("\\", "\\E\\"), ("|", "\\F\\"), ("^", "\\S\\"), ("&", "\\T\\"), ("~", "\\R\\")):
        text = text.replace(mark, code)
    return text
