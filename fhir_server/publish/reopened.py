"""An answer that no longer stands is told: to subscribers by its DetectedIssue, to the facility that was shown it by the queue.

The ledger row ``reopened`` is the fact (recognition.reopen). Its outbox rows commit with the changed DetectedIssue; one row for each
report, so that the notice goes to the receiver with the report it is about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import asyncpg
import orjson
import psycopg

from conformance import systems
from conformance.capability import RESOURCE_TYPES
from conformance.fhirjson import loads
from fhir_server.publish import outbox
from fhir_server.publish.gather import Gathered, gather
from fhir_server.recognition.as_fhir import Told, issue_of
from fhir_server.recognition.decide import instant
from fhir_server.store import reader, repository
from fhir_server.store.body import Codec
from fhir_server.store.change import Origin
from mappings.annotations import REPORT_NOTE
from mappings.ids import home_shard, shard_of_id

TOPIC: Final = "answer-reopened"
_QUEUED: Final = "ledger/"
_BODY: Final = (
    'SELECT dict, body, id, patient, "order" FROM resource WHERE rtype = %s AND id = %s AND shard = %s AND NOT deleted'
)
_ROW: Final = "SELECT at, entry FROM ledger WHERE chain = $1 AND number = $2"
_REASONS: Final = {
    "eqa-failed": ("室间质评不合格", "its quality assessment failed"),
    "eqa-lapsed": ("室间质评已过期", "its quality assessment lapsed"),
    "eqa-missing": ("无室间质评", "it has no quality assessment"),
}


class Notice(NamedTuple):
    """What the facility is told: the report with the notice as its note, who performed it, and the same as plain values."""

    found: Gathered
    performers: tuple[str, ...]
    values: dict[str, Any]


def record(conn: psycopg.Connection[Any], codec: Codec, told: Told, chain: str, number: int) -> None:
    """Changes the DetectedIssue of the answer and writes the outbox rows, in the caller's transaction."""
    entry, rows = told.entry, list[outbox.Row]()
    logical = issue_of(told)
    place = shard_of_id(logical)
    stored = conn.execute(_BODY, (RESOURCE_TYPES["DetectedIssue"], logical, place)).fetchone()
    if stored is not None:
        issue = loads(codec.decompress(stored[0], bytes(stored[1]), (stored[2], stored[3], stored[4])))
        issue |= {
            "status": "amended",
            "mitigation": [{"action": {"text": sentence(entry["items"])}, "date": instant(told.at)}],
        }
        change = repository.put(conn, codec, issue, origin=Origin(told.facility, None, None, told.at))
        rows.append((change.shard, TOPIC, told.facility, change.patient, change.versioned))
    for reference in entry["reports"]:
        kind, _, rest = str(reference).partition("/")
        report = rest.partition("/")[0]
        shard = shard_of_id(report)
        shard = home_shard(kind, report) if shard is None else shard
        rows.append((shard, TOPIC, told.facility, None, f"{_QUEUED}{chain}/{number}/{kind}/{report}"))
    outbox.write(conn, rows, told.at)


def sentence(items: Sequence[Mapping[str, str]]) -> str:
    """What is lost, for a person: in Chinese and in English, without patient data."""
    chinese, english = [], []
    for reason in dict.fromkeys(i["reason"] for i in items):
        codes = ", ".join(i["item"] for i in items if i["reason"] == reason)
        zh, en = _REASONS.get(reason, ("互认标识已失效", "its mark no longer stands"))
        chinese.append(f"{codes} {zh}")
        english.append(f"{codes}: {en}")
    return (
        f"通检：本结果互认时所依据的标识或质评已失效（{'；'.join(chinese)}），请重新判断。 "
        f"Tongjian: what this result was recognized on no longer stands ({'; '.join(english)}); judge again."
    )


def is_queued(row: Mapping[str, Any]) -> bool:
    """Is the outbox row one that the outbound queue sends?"""
    return row["topic"] == TOPIC and str(row["resource"]).startswith(_QUEUED)


async def notice(conn: asyncpg.Connection, codec: Codec, resource: str) -> Notice | None:
    """The notice of an outbox row's resource; None when the report is no longer there."""
    _, chain, number, kind, logical = resource.split("/")
    row = await conn.fetchrow(_ROW, chain, int(number))
    stored = await reader.read(conn, codec, kind, logical)
    if row is None or stored is None or stored.deleted:
        return None
    found = await gather(conn, codec, stored.shard, f"{kind}/{logical}/_history/{stored.version}")
    if found is None:
        return None
    entry: dict[str, Any] = orjson.loads(row["entry"])
    text = {"text": sentence(entry["items"]), "time": instant(row["at"])}
    main = dict(found.main)
    if main["resourceType"] == "DiagnosticReport":
        main["extension"] = [*main.get("extension", ()), {"url": REPORT_NOTE, "valueAnnotation": text}]
    else:
        main["note"] = [*main.get("note", ()), text]
    told = Gathered(main, {**found.resources, found.reference: main})
    source = str(main.get("meta", {}).get("source", "")).removeprefix("urn:tongjian:").partition("#")[0]
    performers = (source, *(i["laboratory"] for i in entry["items"]))
    values = {
        "reminder": entry["card"],
        "orderable": entry.get("orderable", ""),
        "doctor": entry.get("user") or "",
        "items": entry["items"],
        "text": text["text"],
    }
    return Notice(told, performers, {k: v for k, v in values.items() if v})


def issue(told: Notice) -> dict[str, Any]:
    """The same as a DetectedIssue, for a receiver of Bundles."""
    return {
        "resourceType": "DetectedIssue",
        "id": f"reopened-{told.values['reminder']}"[:64],
        "identifier": [{"system": systems.CARD, "value": told.values["reminder"]}],
        "status": "amended",
        "detail": told.values["text"],
        "implicated": [{"reference": told.found.reference}],
    }
