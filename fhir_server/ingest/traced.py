"""The pipeline with spans around its two steps; used instead of it while tracing is on, so that without traces nothing is paid."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import psycopg

from fhir_server import tracing
from fhir_server.ingest.inbox import Claimed, Outcome
from fhir_server.ingest.pipeline import Converted, Pipeline


class TracedPipeline(Pipeline):
    """Each message gets a span ``convert`` and a span ``apply``; the latter is as long as the transaction of its whole batch."""

    def convert(self, conn: psycopg.Connection[Any], message: Claimed) -> Converted:
        """As Pipeline.convert."""
        began = time.time_ns()
        found = super().convert(conn, message)
        outcome = found.outcome
        attributes: tracing.Attributes = {
            "issues": len(outcome.issues),
            "entries": len(found.conversion.entries),
            "status": outcome.status,
            "reason": outcome.reason or "",
        }
        _tell("convert", message, began, attributes)
        return found

    def apply(self, conn: psycopg.Connection[Any], token: str, batch: Sequence[Converted]) -> list[Outcome]:
        """As Pipeline.apply."""
        began = time.time_ns()
        fault = "rolled back"
        try:
            outcomes = super().apply(conn, token, batch)
            fault = ""
        finally:
            for one in batch:
                _tell("apply", one.message, began, {"batch": len(batch)}, fault)
        return outcomes


def _tell(name: str, message: Claimed, began: int, attributes: tracing.Attributes, fault: str = "") -> None:
    known = {**attributes, "facility": message.facility, "channel": message.channel}
    tracing.converted(name, message.shard, message.id, message.received_at, began, known, fault)
