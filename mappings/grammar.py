"""The mapping language: what a map may say, read from YAML and checked at load. A wrong map names its file, row and key.

Three altitudes, as in the guide: messages (which groups become which resources), segments (fields of one segment become elements of one
resource) and datatypes (Python, ``mappings.datatypes`` and its neighbours). ``mappings.compiled`` turns segment maps into closures.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

HL7V2 = Path(__file__).parent / "hl7v2"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Family = Literal["admission", "order", "result", "document", "other"]


class Rule(_Part):
    """One row of the guide.

    row        the guide's row, ``PID-3``: segment and field the rule reads
    to         element of the resource, dotted; it may be missing with ``call``
    as_        datatype mapping in the guide's spelling, ``CX[Identifier]``
    call       a function on the whole record instead of ``to``/``as``
    value      a constant, set when the field is filled and ``when`` holds
    each       every repetition gives one list item; without it only the first repetition is read
    list_      the one value goes into a list
    when       conditions, all of which must hold: ``ORC-2 absent``, ``PV1-2 present``, ``PV1-2 = P``, ``PV1-2 != P``,
               ``ORC-1 in NW XO``
    table      code table of the datatype
    kind       identifier system of the datatype (``patient``, ``visit``, ``placer``, ``filler``, ``specimen``)
    default    keys added to a value that lacks them
    shape      the value's surroundings; ``$`` stands for the value
    extension  URL: the value goes into an extension of that URL at ``to`` (or of the resource)
    hold       an impossible date in this field holds the message; with the name of a family only its messages
    """

    row: str = Field(pattern=r"^[A-Z][A-Z0-9]{2}-\d{1,2}$")
    to: str = ""
    as_: str = Field(default="", alias="as")
    call: str = ""
    value: Any = None
    each: bool = False
    list_: bool = Field(default=False, alias="list")
    when: list[str] = Field(default_factory=list)
    table: str = ""
    kind: str = ""
    default: dict[str, Any] = Field(default_factory=dict)
    shape: Any = None
    extension: str = ""
    hold: bool | Family = False

    @property
    def field(self) -> int:
        """Number of the field the rule reads."""
        return int(self.row[4:])

    @model_validator(mode="after")
    def _one_way(self) -> Rule:
        ways = bool(self.call) + bool(self.as_) + (self.value is not None)
        if ways != 1:
            raise ValueError(f"{self.row}: a rule has one of as, call, value")
        if not self.call and not self.to and not self.extension:
            raise ValueError(f"{self.row}: a rule without call names the element it fills (to, extension)")
        return self


def rule_for(row: str, *, kind: str = "", table: str = "") -> Rule:
    """What a datatype function needs to know where Python, not a map, asks for it."""
    return Rule.model_validate({"row": row, "to": "value", "as": "in-code", "kind": kind, "table": table})


class SegmentMap(_Part):
    """Fields of one segment -> elements of one resource.

    guide       the guide's map, ``PID[Patient]``
    structural  fields that carry position or framing only (set ids): read by the grouping, never listed as unread
    live        fields whose rules run for every record; the outcome of the others depends on profile and text alone and is kept
    varies      those of ``live`` that no kept rule looks at
    """

    guide: str = Field(pattern=r"^[A-Z][A-Z0-9]{2}\[[A-Za-z-]+\]$")
    structural: list[int] = Field(default_factory=list)
    live: list[int] = Field(default_factory=list)
    varies: list[int] = Field(default_factory=list)
    rules: list[Rule]

    @property
    def segment(self) -> str:
        return self.guide[:3]

    @model_validator(mode="after")
    def _same_segment(self) -> SegmentMap:
        for rule in self.rules:
            if rule.row[:3] != self.segment:
                raise ValueError(f"{rule.row}: the map is for {self.segment}")
        return self


class MessageMap(_Part):
    """One message family: what its groups become and how firmly it speaks.

    guide      the guide's message map
    messages   message codes (MSH-9.1) of the family
    tiers      resource type -> tier of its statements (mappings.model.Tier); types not named are told by their status
    groups     group -> resource type -> segment maps that fill it, in order
    merges     trigger events that merge two patients
    links      trigger events that link the patients of two PIDs, or take such a link back
    cancels    trigger events that make what they name entered-in-error
    """

    family: Family
    guide: list[str] = Field(default_factory=list)
    messages: list[str] = Field(default_factory=list)
    tiers: dict[str, Literal["MENTION", "PRELIMINARY", "FINAL"]]
    groups: dict[str, dict[str, list[str]]]
    merges: list[str] = Field(default_factory=list)
    links: list[str] = Field(default_factory=list)
    cancels: list[str] = Field(default_factory=list)


def _load(path: Path, model: type[_Part]) -> Any:
    with path.open(encoding="utf-8") as text:
        data = yaml.safe_load(text)
    try:
        return model.model_validate(data)
    except ValidationError as found:
        first = found.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path.name}: {place}: {first['msg']}") from found


@cache
def segment_map(name: str) -> SegmentMap:
    """Load ``hl7v2/segments/<name>.yaml``. Raises ValueError naming file and place when it is wrong."""
    found: SegmentMap = _load(HL7V2 / "segments" / f"{name}.yaml", SegmentMap)
    return found


@cache
def message_maps() -> tuple[MessageMap, ...]:
    """All message families, by file name."""
    return tuple(_load(path, MessageMap) for path in sorted((HL7V2 / "messages").glob("*.yaml")))


@cache
def message_map(code: str) -> MessageMap:
    """The family of a message code (MSH-9.1); the family ``other`` for every code no map names."""
    for found in message_maps():
        if code in found.messages:
            return found
    return next(m for m in message_maps() if m.family == "other")


def segment_map_names() -> list[str]:
    """Names of all segment maps."""
    return sorted(path.stem for path in (HL7V2 / "segments").glob("*.yaml"))
