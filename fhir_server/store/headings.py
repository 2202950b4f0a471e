"""Results that a client's report names by ``DiagnosticReport.result``: "positive" says little, under the heading of its report it says
all. So they get the classes of sensitive data that the report has by its own content, whichever of the two is written first.

Results that came by message get them through ``parent`` (versions).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conformance.capability import RESOURCE_TYPES
from conformance.fhirjson import loads
from fhir_server.search import params
from fhir_server.store import rows
from fhir_server.store.access_rows import literals
from fhir_server.store.body import Codec
from fhir_server.store.statement import Key
from mappings import sensitive

_OBSERVATION = RESOURCE_TYPES["Observation"]
_REPORT = RESOURCE_TYPES["DiagnosticReport"]


def results_of(report: Mapping[str, Any]) -> list[str]:
    """Logical ids of the Observations of this server that a DiagnosticReport names as its results."""
    return sorted(logical for kind, logical in literals({"result": report.get("result")}) if kind == "Observation")


def tell(cursor: rows.Cursor, report: Key, patient: str | None, resource: Mapping[str, Any], bits: int) -> None:
    """Gives the stored results of a report of the patient, and their past versions, the report's classes."""
    named = results_of(resource)
    if not named:
        return
    for table in ("resource", "resource_history"):
        cursor.execute(
            f"UPDATE {table} SET sensitivity = coalesce(sensitivity, 0) | %s::smallint"  # noqa: S608 - two names of our own
            " WHERE shard = %s AND rtype = %s AND id = ANY(%s) AND patient = %s AND coalesce(sensitivity, 0) & %s <> %s",
            (bits, report[0], _OBSERVATION, named, patient, bits, bits),
        )


def above(cursor: rows.Cursor, codec: Codec, result: Key, patient: str | None) -> int:
    """The classes that stored reports of the patient have by their own content and name the result."""
    if patient is None:
        return 0
    naming = {"resourceType": "DiagnosticReport", "result": [{"reference": f"Observation/{result[2]}"}]}
    tokens = params.extract(naming).tokens
    bits = 0
    for _, _, stored in rows.of_patients(cursor, [(result[0], patient)], [_REPORT], list(tokens)):
        body = codec.decompress(*stored)
        bits |= sensitive.table().bits(loads(body), (body,), None)
    return bits
