"""The tracer provider: spans go in batches, from a thread of their own, to an OTLP/HTTP collector as JSON
(https://opentelemetry.io/docs/specs/otlp/#otlphttp). A collector that is away costs spans, never requests."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import httpx
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from fhir_server import tracing

log = logging.getLogger(__name__)


class Ids(RandomIdGenerator):
    """Random ids, unless the span at hand brings its own (tracing.given_ids)."""

    def generate_trace_id(self) -> int:
        """128 bits, not zero."""
        given = tracing.given_ids.get()
        return given[0] if given else super().generate_trace_id()

    def generate_span_id(self) -> int:
        """64 bits, not zero."""
        given = tracing.given_ids.get()
        return given[1] if given else super().generate_span_id()


class OtlpJson(SpanExporter):
    """Posts spans to ``<endpoint>/v1/traces``."""

    def __init__(self, endpoint: str) -> None:
        self._client = httpx.Client(timeout=10.0)  # the default of OTEL_EXPORTER_OTLP_TIMEOUT
        self._url = f"{endpoint.rstrip('/')}/v1/traces"
        self._away = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Sends one batch; a batch that cannot be sent is dropped, and said once per outage."""
        try:
            self._client.post(self._url, json=encode(spans)).raise_for_status()
        except httpx.HTTPError as fault:
            if not self._away:
                log.warning("traces_lost fault=%s", type(fault).__name__)
            self._away = True
            return SpanExportResult.FAILURE
        self._away = False
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Closes the connection."""
        self._client.close()


def provider(endpoint: str, ratio: float, role: str) -> TracerProvider:
    """See tracing.start."""
    out = unexported(ratio, role)
    out.add_span_processor(BatchSpanProcessor(OtlpJson(endpoint)))
    return out


def unexported(ratio: float, role: str) -> TracerProvider:
    """A provider without an exporter. Whether a trace is kept follows from its id, so all processes decide alike."""
    resource = Resource(
        {
            "service.name": tracing.NAME,
            "service.version": version("tongjian"),
            "service.instance.id": f"{socket.gethostname()}/{os.getpid()}",
            "tongjian.role": role,
        }
    )
    return TracerProvider(
        sampler=TraceIdRatioBased(ratio), resource=resource, id_generator=Ids(), shutdown_on_exit=False
    )


def encode(spans: Sequence[ReadableSpan]) -> dict[str, Any]:
    """Spans of one process as ExportTraceServiceRequest in JSON (ids in hex, 64-bit numbers as text)."""
    resource = spans[0].resource.attributes if spans else {}
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": _attributes(resource)},
                "scopeSpans": [{"scope": {"name": tracing.NAME}, "spans": [_span(s) for s in spans]}],
            }
        ]
    }


def _span(span: ReadableSpan) -> dict[str, Any]:
    context = span.context
    assert context is not None
    out: dict[str, Any] = {
        "traceId": f"{context.trace_id:032x}",
        "spanId": f"{context.span_id:016x}",
        "name": span.name,
        "kind": span.kind.value + 1,  # the wire counts from UNSPECIFIED = 0
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time),
        "attributes": _attributes(span.attributes or {}),
        "status": {"code": span.status.status_code.value, "message": span.status.description or ""},
    }
    if span.parent is not None:
        out["parentSpanId"] = f"{span.parent.span_id:016x}"
    return out


def _attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: object) -> dict[str, object]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    return {"stringValue": str(value)}
