"""Rule cases as written in a YAML file -> typed values. docs/rule-cases.md explains the format.

A file has a ``world`` that all its ``cases`` share and each case may change. What is wrong is named by file, case and key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fhir_server.recognition import case_lines
from fhir_server.recognition.case_lines import NOWHERE, Lines
from fhir_server.recognition.criteria import JUDGES
from fhir_server.recognition.rules import faults

SHANGHAI: Final = ZoneInfo("Asia/Shanghai")
_RELATIVE: Final = re.compile(
    r"^(?P<sign>[+-])(?=\d)(?:(?P<days>\d+)d)?(?:(?P<hours>\d+)h)?(?:(?P<minutes>\d+)m)?(?:(?P<seconds>\d+)s)?$"
)

Time = datetime | date | str
Answer = Literal["met", "not-met", "unknown", "not-required"]


class _Loader(yaml.SafeLoader):
    """YAML 1.1; what looks like a time and is none (``2025-13-01``) stays text, so that the case can be told where it stands."""

    def timestamp(self, node: yaml.ScalarNode) -> date | datetime | str:
        """A scalar that looks like a time."""
        try:
            found: date | datetime = self.construct_yaml_timestamp(node)
        except ValueError:
            return str(node.value)
        return found


_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.timestamp)


class CaseError(Exception):
    """A case file that cannot be used; the text names file, case and key."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Images(_Part):
    """What is known of the study behind an examination; left out: not known."""

    complete: bool | None = None
    reachable: bool | None = None
    quality: str | None = None


class Report(_Part):
    """A result report in short form: it becomes an HL7 v2 message ORU^R01 and is read as one.

    results: an orderable (all its required items), a list of items, or item or local code -> value (``6.3 mmol/L``, a number, a
    text, or a mapping with value, unit, status, flag, name, method, site, performer, collected).
    """

    facility: str
    number: str = "R1"
    patient: str = "P1"
    collected: Time | None = None
    issued: Time | None = None
    status: str = "F"
    specimen: str | None = None
    condition: str | None = None
    performer: str | None = None
    results: str | list[str] | dict[str, Any]


class Prior(_Part):
    """Something the platform received: one of ``hl7v2`` (text), ``file`` (of HL7 v2), ``fhir`` (resource, list, Bundle) or ``report``.

    facility  who sent it (for ``hl7v2`` and ``file`` else found by MSH-4); received: when; default MSH-7, the issued time, or long ago
    identity  link of its Patient to the person of the order; identity_since: from when the link was known
    """

    hl7v2: str | None = None
    file: str | None = None
    fhir: Any = None
    report: Report | None = None
    facility: str = ""
    received: Time | None = None
    identity: Literal["certain", "probable", "possible", "certainly-not", "other-person", "not-linked"] | None = None
    identity_since: Time | None = None
    images: Images | None = None
    health_check: bool | None = None
    method: str | None = None
    site: str | None = None
    laterality: Literal["left", "right", "bilateral"] | None = None
    contrast: Literal["without", "with", "without-and-with"] | None = None


def _word(text: str) -> str:
    """A word of an enumeration as people write it: case, ``_`` and blanks do not matter."""
    return re.sub(r"[_\s]+", "-", text.strip()).lower().replace("recognis", "recogniz")


def _answers(value: Any) -> Any:
    if isinstance(value, str):
        return _word(value)
    if not isinstance(value, dict):
        return value
    if "answer" in value:
        return value | {"answer": _answers(value["answer"])}
    return {k: _answers(v) for k, v in value.items()}


class Ordered(_Part):
    """The order: a code (of the facility, the catalogue or LOINC, unless ``system`` says which), or ``fhir``: a ServiceRequest."""

    code: str = ""
    name: str = ""
    system: Literal["", "local", "orderables", "items", "loinc"] = ""
    facility: str = ""
    fhir: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _code_alone(cls, given: Any) -> Any:
        return {"code": given} if isinstance(given, str) else given


class Context(_Part):
    """Circumstances of the order; what is left out is not known. visit: class of the Encounter (v3 ActCode)."""

    visit: str = ""
    emergency: bool | None = None
    surgery: bool | None = None
    transfusion: bool | None = None
    grants: tuple[str, ...] = ()


class Expect(_Part):
    """What must come out; only what is named is compared.

    criteria   criterion -> answer, for every required item; or item -> {criterion: answer}. An answer may be a mapping with
               ``answer`` and facts of the evidence (``reason: eqa-lapsed``)
    members    item -> outcome
    reminds    is the clinician interrupted
    reopened   items whose answer of the case's own time no longer stands, by marks and EQA known at this step
    """

    outcome: Literal["recognized", "reference-only", "not-recognizable", "not-covered"] | None = None
    policy: str | None = None
    orderable: str | None = None
    fresh: list[str] | None = None
    missing: list[str] | None = None
    criteria: dict[str, Answer | dict[str, Any]] = Field(default_factory=dict)
    members: dict[str, Literal["recognized", "reference-only", "not-recognizable", "not-covered"]] = Field(
        default_factory=dict
    )
    reminds: bool | None = None
    price_fen: int | None = None
    summary_zh: str | None = None
    summary_en: str | None = None
    reopened: list[str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _as_written(cls, given: Any) -> Any:
        """``expect: recognized`` is its outcome; ``NOT_MET`` is ``not-met``."""
        if isinstance(given, str):
            given = {"outcome": given}
        if not isinstance(given, dict):
            return given
        out = dict(given)
        if isinstance(out.get("outcome"), str):
            out["outcome"] = _word(out["outcome"])
        for key in ("criteria", "members"):
            if isinstance(out.get(key), dict):
                out[key] = {k: _answers(v) for k, v in out[key].items()}
        return out

    @field_validator("criteria")
    @classmethod
    def _known(cls, criteria: dict[str, Any]) -> dict[str, Any]:
        for key, value in criteria.items():
            names = [key] if key in JUDGES else list(value) if isinstance(value, dict) else [key]
            if unknown := [n for n in names if n not in JUDGES]:
                raise ValueError(
                    f"{', '.join(unknown)}: not a criterion ({', '.join(JUDGES)}), nor an item with criteria"
                )
        return criteria


class Step(_Part):
    """The same order asked again at another time."""

    at: Time
    expect: Expect


class World(_Part):
    """What surrounds the order. Everything has a default; a case gives what differs (facilities merge by id, other keys are replaced).

    facilities  id, name, level, region, consortium, ownership, sender (MSH-4), tests, orders, units (code tables), and any key of a
                facility profile
    items, orderables  rows of the catalogue, changed or new: code -> columns; of an orderable also ``required`` and ``optional``
    policy      id of a shipped or example policy, or keys of one over ``base`` (default ``general``); for every asking facility
    policies    several, each with ``consortia`` or ``regions``: the asking facility's own is taken
    marks, eqa, agreements  rows with the columns of marks.csv, eqa.csv, agreements.csv
    """

    facilities: list[dict[str, Any]] = Field(default_factory=list)
    items: dict[str, dict[str, Any]] = Field(default_factory=dict)
    orderables: dict[str, dict[str, Any]] = Field(default_factory=dict)
    policy: str | dict[str, Any] | None = None
    policies: list[str | dict[str, Any]] = Field(default_factory=list)
    marks: list[dict[str, Any]] = Field(default_factory=list)
    eqa: list[dict[str, Any]] = Field(default_factory=list)
    agreements: list[dict[str, Any]] = Field(default_factory=list)


class Case(World):
    """One decision case: what is in the world, what is ordered, when, and what must come out."""

    id: str
    rests_on: str = ""
    note: str = ""
    at: Time
    prior: list[Prior] = Field(default_factory=list)
    order: Ordered
    context: Context = Field(default_factory=Context)
    identity: Literal["certain", "probable", "possible", "certainly-not", "other-person", "not-linked"] = "certain"
    expect: Expect
    later: list[Step] = Field(default_factory=list)

    @field_validator("prior", "later", mode="before")
    @classmethod
    def _one_alone(cls, given: Any) -> Any:
        return [given] if isinstance(given, dict) else given


@dataclass(frozen=True, slots=True)
class CaseFile:
    """path, and its cases, each with the file's world under it; lines: id of a case -> where it stands."""

    path: Path
    cases: tuple[Case, ...]
    problems: tuple[str, ...] = ()
    lines: Mapping[str, Lines] = field(default_factory=dict)


def load(path: Path) -> CaseFile:
    """Read one file. Raises CaseError naming file, case, line and key of every fault."""
    found = load_what_can_be(path)
    if found.problems:
        raise CaseError("\n".join(found.problems))
    return found


def load_what_can_be(path: Path) -> CaseFile:
    """The same; faults of single cases are ``problems`` and do not keep the others from being run. Raises CaseError for the file."""
    try:
        text = path.read_text("utf-8-sig")
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except OSError as fault:
        raise CaseError(f"{path}: cannot be read: {fault.strerror}") from None
    except UnicodeDecodeError:
        raise CaseError(f"{path}: is not UTF-8") from None
    except yaml.YAMLError as fault:
        raise CaseError(f"{path}: is not YAML: {' '.join(str(fault).split())}") from None
    if isinstance(data, list):
        data = {"cases": data}
    if not isinstance(data, dict) or not isinstance(data.get("cases"), list) or not data["cases"]:
        raise CaseError(f"{path}: cases: a list of cases is needed")
    if unknown := sorted(set(data) - {"world", "cases", "defaults"}):
        raise CaseError(f"{path}: {', '.join(map(str, unknown))}: unknown key; a file has world, defaults and cases")
    world, defaults = data.get("world") or {}, data.get("defaults") or {}
    if not isinstance(world, dict) or not isinstance(defaults, dict):
        raise CaseError(f"{path}: world and defaults are mappings")
    problems: list[str] = []
    cases: list[Case] = []
    places: dict[str, Lines] = {}
    lines = case_lines.read(text)
    for number, raw in enumerate(data["cases"], 1):
        stands = lines[number - 1] if number <= len(lines) else NOWHERE
        if not isinstance(raw, dict):
            problems.append(f"{path}: case {number}: {stands.beside('is not a mapping')}")
            continue
        name = str(raw.get("id") or f"#{number}")
        if name in places:
            problems.append(f"{path}: case {name}: {stands.beside('id: stands twice')}")
        places.setdefault(name, stands)
        try:
            cases.append(Case.model_validate({"id": name, **defaults, **_over(world, raw)}))
        except ValidationError as fault:
            problems += [f"{path}: case {name}: {stands.beside(told)}" for told in faults(fault)]
    return CaseFile(path, tuple(cases), tuple(problems), places)


def _over(world: Mapping[str, Any], case: Mapping[str, Any]) -> dict[str, Any]:
    """The case laid over the file's world; facilities merge by id."""
    out = {**world, **case}
    if isinstance(world.get("facilities"), list) and isinstance(case.get("facilities"), list):
        merged = {str(f.get("id")): f for f in world["facilities"] if isinstance(f, dict)}
        for facility in case["facilities"]:
            if isinstance(facility, dict):
                key = str(facility.get("id"))
                merged[key] = {**merged.get(key, {}), **facility}
        out["facilities"] = list(merged.values())
    if "policies" in case and "policy" not in case:
        out.pop("policy", None)
    return out


def instant(given: Time, at: datetime | None = None) -> datetime:
    """A time of a case -> aware datetime: ISO 8601 (Asia/Shanghai where no zone is given), or a distance from the order (``-3d1s``).

    Raises ValueError when it is neither.
    """
    if isinstance(given, str):
        text = given.strip().replace(" ", "") if given.strip()[:1] in "+-" else given.strip()
        if (found := _RELATIVE.match(text)) and at is not None:
            parts = {k: int(v) for k, v in found.groupdict().items() if k != "sign" and v}
            return at + timedelta(**parts) * (-1 if found["sign"] == "-" else 1)
        try:
            given = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(
                f"{text!r} is not a time (2025-11-21T09:00:00+08:00) nor a distance from the order (-7d, -7d1s)"
            ) from None
    if not isinstance(given, datetime):
        given = datetime(given.year, given.month, given.day, tzinfo=SHANGHAI)
    return given if given.tzinfo else given.replace(tzinfo=SHANGHAI)
