"""In which circumstances an order is given: emergency, or before surgery, transfusion or another major intervention.

Circumstances 4 and 3 of the six. Whoever knows says so: the caller, the visit (Encounter.class), the order (ServiceRequest.reasonCode).
One yes is a yes; nobody's word is not known. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from conformance import systems
from fhir_server.errors import Category, Fault

KEYS: Final = ("emergency", "surgery", "transfusion")
_BEFORE: Final = re.compile(
    r"(?:手术|术|输血)前|备血|拟行.{0,20}术|pre-?operative|before (?:surgery|transfusion)", re.I
)
_EMERGENCY: Final = re.compile(r"急诊|急救|抢救|\bemergency\b|\brescue\b", re.I)


@dataclass(frozen=True, slots=True)
class Circumstances:
    """True, False, or None when nobody says. surgery: also before transfusion or another major intervention."""

    emergency: bool | None = None
    surgery: bool | None = None

    def __or__(self, other: Circumstances) -> Circumstances:
        """What both say together."""
        return Circumstances(either(self.emergency, other.emergency), either(self.surgery, other.surgery))


UNKNOWN: Final = Circumstances()


def either(*answers: bool | None) -> bool | None:
    """True when one is, else False when one is, else None."""
    told = [a for a in answers if a is not None]
    return any(told) if told else None


def read(given: Any, path: str) -> Circumstances:
    """A JSON object with ``emergency``, ``surgery``, ``transfusion`` (true or false). Raises Fault INVALID naming the field."""
    if given is None:
        return UNKNOWN
    if not isinstance(given, dict):
        raise Fault(Category.INVALID, f"{path} is not an object.", where=path)
    for key in KEYS:
        if not isinstance(given.get(key), bool | None):
            raise Fault(Category.INVALID, f"{path}.{key} is not true or false.", where=f"{path}.{key}")
    return Circumstances(given.get("emergency"), either(given.get("surgery"), given.get("transfusion")))


def of_request(request: Mapping[str, Any]) -> Circumstances:
    """What a ServiceRequest says: reasonCode with code 3 or 4 of the lawful reasons, or such words. Wrong shapes say nothing."""
    said = list(_reasons(request.get("reasonCode")))
    emergency = (systems.REPEAT_REASONS, "4") in said or any(_EMERGENCY.search(text) for _, text in said)
    surgery = (systems.REPEAT_REASONS, "3") in said or any(_BEFORE.search(text) for _, text in said)
    return Circumstances(emergency or None, surgery or None)


def _reasons(concepts: Any) -> Iterator[tuple[str, str]]:
    for concept in concepts if isinstance(concepts, list) else ():
        if not isinstance(concept, dict):
            continue
        codings = concept.get("coding")
        for coding in (*(codings if isinstance(codings, list) else ()), {"display": concept.get("text")}):
            system = coding.get("system") if isinstance(coding, dict) else None
            for key in ("code", "display"):
                if isinstance(coding, dict) and isinstance(coding.get(key), str):
                    yield (system if isinstance(system, str) else ""), coding[key]
