"""The SOAP operations and their types as a table: what the WSDL says, and what is read and written, is made from it.

A name in JSON (``control_id``) is camel case in XML (``controlId``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

NAMESPACE: Final = "urn:tongjian:soap:1"


@dataclass(frozen=True, slots=True)
class Part:
    """One element of a type: JSON name; kind: string, boolean, long, or a name of TYPES; needed; many: a list."""

    name: str
    kind: str = "string"
    needed: bool = False
    many: bool = False

    @property
    def tag(self) -> str:
        """Name of the element."""
        first, *rest = self.name.split("_")
        return first + "".join(word.capitalize() for word in rest)


def _parts(*names: str, **kinds: str) -> tuple[Part, ...]:
    """``name!`` is needed; ``name`` is not; ``other="Type*"`` is a list of a type, ``"Type*!"`` one of at least one."""
    out = [Part(n.rstrip("!"), needed=n.endswith("!")) for n in names]
    out += [Part(n, k.rstrip("*!"), "!" in k, "*" in k) for n, k in kinds.items()]
    return tuple(out)


TYPES: Final[dict[str, tuple[Part, ...]]] = {
    "Submit": _parts("payload!", "format"),
    "SubmitResponse": _parts(message="Message*"),
    "MessageStatus": _parts("id", "control_id"),
    "MessageStatusResponse": _parts(message="Message*"),
    "QueryResults": _parts("patient!", "category", "code", "from", "until", "next", count="long"),
    "QueryResultsResponse": _parts("next", result="Result*"),
    "CheckRecognition": _parts(
        "patient!", "user!", "encounter", "department", "visit_class", "instance",
        circumstances="Circumstances", order="Order*!",
    ),
    "CheckRecognitionResponse": _parts("instance!", "at!", "facility", "failure", answer="Answer*"),
    "RecordDecision": _parts(
        "reminder!", "action!", "user!", "reason", "text", "department", "acted_at", "key", "revokes", told="Told"
    ),
    "RecordDecisionResponse": _parts("id!", "action!", "at", "citation_zh", "citation_en", "detail", new="boolean"),
    "Message": _parts(
        "status!", "format", "trigger", "control_id", "received_at", "converted_at", "reason",
        id="long", repeated="boolean", issue="Issue*",
    ),
    "Issue": _parts("key!", "severity!", "where", "text!"),
    "Result": _parts(
        "id!", "patient!", "status!", "code_system", "code", "name", "value", "unit", "reference_range", "interpretation",
        "effective", "issued", "performer", "report", "category",
    ),
    "Circumstances": _parts(emergency="boolean", surgery="boolean", transfusion="boolean"),
    "Order": _parts("code!", "system", "name", "id"),
    "Answer": _parts(
        "id!", "outcome!", "summary_zh", "summary_en", "detail",
        reminds="boolean", price_fen="long", order="string*", report="string*",
    ),
    "Told": _parts("by!", "at!"),
}  # fmt: skip

OPERATIONS: Final = ("Submit", "MessageStatus", "QueryResults", "CheckRecognition", "RecordDecision")
"""Operation -> its request is the type of the same name, its answer that with ``Response`` behind."""
