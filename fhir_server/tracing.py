"""OpenTelemetry traces, off unless ``otlp_endpoint`` is set (https://opentelemetry.io/docs/specs/otel/trace/api/).

Spans: ``receive`` (socket to durable), ``convert`` and ``apply`` of each message; ``request`` and ``decide`` of the API. A message's
trace id is derived from its place in the inbox, so the worker, another process, continues the trace of the receiver and nothing is
stored for that. Attributes are fixed words and numbers: no query, no path, no exception text, no patient.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Final, Protocol

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags

Value = str | int | float | bool
Attributes = Mapping[str, Value]
NAME: Final = "tongjian"

given_ids: ContextVar[tuple[int, int] | None] = ContextVar("given_ids", default=None)
"""Trace id and span id the next span has to take (trace_export reads it); None: random ones."""


class _Provider(Protocol):
    def get_tracer(self, instrumenting_module_name: str) -> trace.Tracer: ...

    def shutdown(self) -> None: ...


class _State:
    """Tracing of this process: like logging, set once at its start."""

    provider: _Provider | None = None
    tracer: trace.Tracer | None = None


def start(endpoint: str, ratio: float, role: str) -> None:
    """Exports spans to an OTLP/HTTP collector from now on; nothing happens when ``endpoint`` is empty.

    endpoint  base address such as http://collector:4318; ratio: share of traces kept, 0 to 1; role: ``serve`` or ``work``
    """
    if not endpoint:
        return
    from fhir_server import trace_export  # noqa: PLC0415 - the SDK costs memory that a server without traces need not spend

    use(trace_export.provider(endpoint, ratio, role))


def use(provider: _Provider | None) -> None:
    """Takes a tracer provider as it is; None switches tracing off."""
    _State.provider = provider
    _State.tracer = provider.get_tracer(NAME) if provider else None


def stop() -> None:
    """Sends what waits, then ends tracing."""
    if _State.provider is not None:
        _State.provider.shutdown()
        use(None)


def on() -> bool:
    """True while spans are made."""
    return _State.tracer is not None


def message_ids(shard: int, number: int, received_at: datetime) -> tuple[int, int]:
    """Trace id and id of the ``receive`` span of a message of the inbox."""
    digest = hashlib.blake2b(f"{shard}/{number}/{received_at.timestamp():.6f}".encode(), digest_size=24).digest()
    return int.from_bytes(digest[:16], "big"), int.from_bytes(digest[16:], "big")


def received(shard: int, number: int, received_at: datetime, began: int, attributes: Attributes) -> None:
    """Records the ``receive`` span of a message that is durable now; ``began``: time.time_ns() when its bytes were complete."""
    if _State.tracer is None:
        return
    token = given_ids.set(message_ids(shard, number, received_at))
    try:
        span = _State.tracer.start_span(
            "receive", context=Context(), kind=SpanKind.CONSUMER, start_time=began, attributes=attributes
        )
    finally:
        given_ids.reset(token)
    span.end()


def converted(
    name: str, shard: int, number: int, received_at: datetime, began: int, attributes: Attributes, fault: str = ""
) -> None:
    """Records a span of a message below its ``receive`` span, from ``began`` (time.time_ns()) until now. ``fault``: what failed."""
    if _State.tracer is None:
        return
    trace_id, span_id = message_ids(shard, number, received_at)
    parent = NonRecordingSpan(
        SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    )
    span = _State.tracer.start_span(
        name, context=trace.set_span_in_context(parent, Context()), start_time=began, attributes=attributes
    )
    if fault:
        span.set_status(Status(StatusCode.ERROR, fault))
    span.end(time.time_ns())


@contextlib.contextmanager
def span(name: str, carrier: Mapping[str, str] | None = None) -> Iterator[Span]:
    """A span around the block, below the current one; ``carrier``: headers of a request that may continue a trace of the caller."""
    if _State.tracer is None:
        yield trace.INVALID_SPAN
        return
    context = propagate.extract(carrier) if carrier is not None else None
    kind = SpanKind.INTERNAL if carrier is None else SpanKind.SERVER
    # The text of an exception may quote a row: its type is all that is kept.
    with _State.tracer.start_as_current_span(
        name, context=context, kind=kind, record_exception=False, set_status_on_exception=False
    ) as found:
        try:
            yield found
        except BaseException as fault:
            found.set_status(Status(StatusCode.ERROR, type(fault).__name__))
            raise
