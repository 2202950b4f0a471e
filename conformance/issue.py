"""Issues: data problems as values, never exceptions (FHIR R4 OperationOutcome.issue, http://hl7.org/fhir/R4/operationoutcome.html)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["fatal", "error", "warning", "information"]


@dataclass(frozen=True, slots=True)
class Issue:
    """One problem found in a message or resource.

    key       short machine word, stable, documented in docs/issues.md (``unmapped-code``, ``bad-date``)
    severity  FHIR issue-severity; ``error`` holds the message, ``warning`` and ``information`` do not
    where     position in the source (``OBX[3]-5.1``) or FHIRPath (``Observation.value``); empty for the whole message
    text      one English sentence: what is wrong and what to do; carries no patient data
    value     the offending source text, or None; may be patient data, so it is shown to authorised users only, never logged
    """

    key: str
    severity: Severity
    where: str
    text: str
    value: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON form, keys in reading order; ``value`` left out when None."""
        out: dict[str, Any] = {"key": self.key, "severity": self.severity, "where": self.where, "text": self.text}
        if self.value is not None:
            out["value"] = self.value
        return out
