"""Logging and metrics. Neither carries patient data: a log line holds our own texts and the fields we name, of an exception only the
types and places, never its message (a driver's message may quote a row)."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import traceback
from datetime import UTC, datetime
from typing import Any, Final

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

from fhir_server.errors import Fault

log = logging.getLogger(__name__)

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

_OURS: Final = frozenset({"fhir_server", "adapters", "mappings", "conformance"})

# prometheus_client has no types for this one.
disable_created_metrics()  # type: ignore[no-untyped-call]
# A name ends with the unit; labels have few values (https://prometheus.io/docs/practices/naming/).
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LAG_BUCKETS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 3600.0)

RECEIVED = Counter(
    "tongjian_messages_received", "Messages received, by channel and format.", ["facility", "channel", "format"]
)
ACKNOWLEDGED = Counter(
    "tongjian_messages_acknowledged",
    "Acknowledgements sent, by channel and code (AA, AE, AR, CA, CE, CR).",
    ["facility", "channel", "code"],
)
REFUSED = Counter(
    "tongjian_messages_refused",
    "Messages and frames refused on receipt, by channel and reason.",
    ["facility", "channel", "reason"],
)
# Counted by the workers, which are processes of their own: see WORKER_METRICS.
CONVERTED = Counter(
    "tongjian_messages_converted",
    "Messages converted and applied, by channel.",
    ["facility", "channel"],
    registry=None,
)
HELD = Counter(
    "tongjian_messages_held",
    "Messages held by a conversion, by channel and reason.",
    ["facility", "channel", "reason"],
    registry=None,
)
STORED = Counter(
    "tongjian_resources_stored",
    "Resource versions stored from messages, by channel and resource type.",
    ["facility", "channel", "type"],
    registry=None,
)
LAG = Histogram(
    "tongjian_lag_seconds",
    "Time from the receipt of a message to its conversion.",
    ["facility", "channel"],
    buckets=_LAG_BUCKETS,
    registry=None,
)
# Counted by the image process, which keeps its totals as a worker does.
IMAGES = Counter(
    "tongjian_images_received",
    "DICOM objects that are durable, by image source and whether they were new or repeated.",
    ["facility", "channel", "outcome"],
    registry=None,
)
IMAGES_REFUSED = Counter(
    "tongjian_images_refused",
    "DICOM objects and callers refused, by image source and reason.",
    ["facility", "channel", "reason"],
    registry=None,
)
IMAGE_SECONDS = Histogram(
    "tongjian_image_store_seconds",
    "Time from a complete DICOM object to its durability.",
    ["facility", "channel"],
    buckets=_BUCKETS,
    registry=None,
)
IMAGE_STUDIES = Counter(
    "tongjian_image_studies",
    "Studies put into the inbox, by image source or archive.",
    ["facility", "channel"],
    registry=None,
)
IMAGES_FORWARDED = Counter(
    "tongjian_images_forwarded",
    "Attempts to send objects on to an archive, by outcome (stored, away, again, refused).",
    ["facility", "archive", "outcome"],
    registry=None,
)
IMAGE_CONNECTIONS_CLOSED = Counter(
    "tongjian_image_connections_closed",
    "DICOM connections closed in self-defence, by reason (limit, tls, slow, size).",
    ["reason"],
    registry=None,
)
IMAGE_PIXELS = Gauge(
    "tongjian_image_pixels_objects",
    "DICOM objects whose pixels have not reached their archive, by archive and status (waiting, dead: given up).",
    ["facility", "archive", "status"],
)
ARCHIVE_ASKED = Gauge(
    "tongjian_archive_asked_timestamp_seconds",
    "When a polled picture archive last answered a whole round, as Unix time.",
    ["facility", "archive"],
)
QUEUE = Gauge(
    "tongjian_queue_messages",
    "Messages accepted and not yet converted, by channel and lane (live, backfill); counted up to 100,000.",
    ["facility", "channel", "lane"],
)
QUEUE_AGE = Gauge(
    "tongjian_queue_age_seconds",
    "Age of the oldest message accepted and not yet converted, by channel and lane.",
    ["facility", "channel", "lane"],
)
ON_HOLD = Gauge("tongjian_held_messages", "Messages on hold now, by facility and reason.", ["facility", "reason"])
LAST_MESSAGE = Gauge(
    "tongjian_last_message_timestamp_seconds",
    "When the last message of a channel arrived, as Unix time; absent while none ever came.",
    ["facility", "channel"],
)
WORKERS = Gauge("tongjian_workers", "Worker processes that gave a sign of life within the last 30 seconds.")
REQUEST_SECONDS = Histogram(
    "tongjian_request_seconds",
    "Time to answer an HTTP request, by interaction and status.",
    ["interaction", "status"],
    buckets=_BUCKETS,
)
DECISIONS = Counter(
    "tongjian_decisions",
    "Order-time decisions, by facility and outcome; a check without an answer counts under its reason.",
    ["facility", "outcome"],
)
HOOK_SECONDS = Histogram(
    "tongjian_hook_seconds", "Time to answer a CDS Hooks call, by outcome.", ["outcome"], buckets=_BUCKETS
)
AUDIT_SECONDS = Histogram("tongjian_audit_seconds", "Time until an audit entry is durable.", buckets=_BUCKETS)
DELIVERIES = Counter(
    "tongjian_deliveries",
    "Attempts to send a result on, by receiving facility, destination and outcome (delivered, again, silent, away, refused).",
    ["facility", "destination", "outcome"],
)
DELIVERY_MESSAGES = Gauge(
    "tongjian_delivery_messages",
    "Results to be sent on now, by receiving facility, destination and status (waiting, dead: given up).",
    ["facility", "destination", "status"],
)
DELIVERY_AGE = Gauge(
    "tongjian_delivery_age_seconds",
    "Age of the oldest result waiting to be sent on, by receiving facility and destination.",
    ["facility", "destination"],
)
RELAY_SEEN = Gauge(
    "tongjian_relay_seen_timestamp_seconds", "When a relay was last heard, as Unix time.", ["facility", "relay"]
)
RELAY_WAITING = Gauge(
    "tongjian_relay_messages",
    "Messages in the queue of a relay when it was last heard, by status (waiting, dead: given up).",
    ["facility", "relay", "status"],
)
RELAY_OFFSET = Gauge(
    "tongjian_relay_clock_offset_seconds",
    "What has to be added to the clock of a relay to have the server's, as last measured.",
    ["facility", "relay"],
)
POLL_LOOKED = Gauge(
    "tongjian_poll_looked_timestamp_seconds",
    "When a polled database was last looked through to the end, as Unix time; absent while it never was.",
    ["facility", "channel"],
)
POLL_FAULTY = Gauge(
    "tongjian_poll_faulty",
    "1 while a polled database cannot be read, or its poller gave no sign of life for 2 minutes, else 0.",
    ["facility", "channel"],
)
POLL_MESSAGES = Gauge(
    "tongjian_poll_messages", "Messages stored from a polled database, ever.", ["facility", "channel"]
)
POLL_UNMARKED = Gauge(
    "tongjian_poll_unmarked_rows",
    "Rows of a polled database without a watermark, which are never read.",
    ["facility", "channel"],
)
NOTIFICATIONS = Counter(
    "tongjian_notifications", "Attempts to notify a subscriber, by outcome (delivered, failed).", ["outcome"]
)
SUBSCRIPTIONS = Gauge(
    "tongjian_subscriptions", "Subscriptions now, by status (requested, active, error, off).", ["status"]
)
SUBSCRIPTION_EVENTS = Gauge("tongjian_subscription_events", "Events of subscriptions that wait to be delivered.")
CONNECTIONS = Gauge("tongjian_connections", "Network connections open now, by server (http, mllp).", ["server"])
CONNECTIONS_CLOSED = Counter(
    "tongjian_connections_closed",
    "Connections the server closed in self-defence, by server and reason.",
    ["server", "reason"],
)
POOL = Gauge(
    "tongjian_pool_connections",
    "Database connections, by pool (read, write) and state (open, idle, most).",
    ["pool", "state"],
)
DATABASE_UP = Gauge("tongjian_database_up", "1 when the database answered this scrape, else 0.")
DATABASE_BYTES = Gauge("tongjian_database_bytes", "Size of the database on disk.")
DISK_FREE = Gauge("tongjian_disk_free_bytes", "Free space of the file system that holds the data folder.")
DISK_TOTAL = Gauge("tongjian_disk_total_bytes", "Size of the file system that holds the data folder.")
BUILD = Gauge("tongjian_build_info", "Versions, as labels; always 1.", ["version", "python", "postgresql", "schema"])

Metric = Counter | Gauge | Histogram

METRICS: Final[dict[str, Metric]] = {
    "tongjian_messages_received_total": RECEIVED,
    "tongjian_messages_acknowledged_total": ACKNOWLEDGED,
    "tongjian_messages_refused_total": REFUSED,
    "tongjian_messages_converted_total": CONVERTED,
    "tongjian_messages_held_total": HELD,
    "tongjian_resources_stored_total": STORED,
    "tongjian_lag_seconds": LAG,
    "tongjian_images_received_total": IMAGES,
    "tongjian_images_refused_total": IMAGES_REFUSED,
    "tongjian_image_store_seconds": IMAGE_SECONDS,
    "tongjian_image_studies_total": IMAGE_STUDIES,
    "tongjian_images_forwarded_total": IMAGES_FORWARDED,
    "tongjian_image_connections_closed_total": IMAGE_CONNECTIONS_CLOSED,
    "tongjian_image_pixels_objects": IMAGE_PIXELS,
    "tongjian_archive_asked_timestamp_seconds": ARCHIVE_ASKED,
    "tongjian_queue_messages": QUEUE,
    "tongjian_queue_age_seconds": QUEUE_AGE,
    "tongjian_held_messages": ON_HOLD,
    "tongjian_last_message_timestamp_seconds": LAST_MESSAGE,
    "tongjian_workers": WORKERS,
    "tongjian_request_seconds": REQUEST_SECONDS,
    "tongjian_decisions_total": DECISIONS,
    "tongjian_hook_seconds": HOOK_SECONDS,
    "tongjian_audit_seconds": AUDIT_SECONDS,
    "tongjian_deliveries_total": DELIVERIES,
    "tongjian_delivery_messages": DELIVERY_MESSAGES,
    "tongjian_delivery_age_seconds": DELIVERY_AGE,
    "tongjian_relay_seen_timestamp_seconds": RELAY_SEEN,
    "tongjian_relay_messages": RELAY_WAITING,
    "tongjian_relay_clock_offset_seconds": RELAY_OFFSET,
    "tongjian_poll_looked_timestamp_seconds": POLL_LOOKED,
    "tongjian_poll_faulty": POLL_FAULTY,
    "tongjian_poll_messages": POLL_MESSAGES,
    "tongjian_poll_unmarked_rows": POLL_UNMARKED,
    "tongjian_notifications_total": NOTIFICATIONS,
    "tongjian_subscriptions": SUBSCRIPTIONS,
    "tongjian_subscription_events": SUBSCRIPTION_EVENTS,
    "tongjian_connections": CONNECTIONS,
    "tongjian_connections_closed_total": CONNECTIONS_CLOSED,
    "tongjian_pool_connections": POOL,
    "tongjian_database_up": DATABASE_UP,
    "tongjian_database_bytes": DATABASE_BYTES,
    "tongjian_disk_free_bytes": DISK_FREE,
    "tongjian_disk_total_bytes": DISK_TOTAL,
    "tongjian_build_info": BUILD,
}
"""Name as exposed at /metrics -> metric; docs/metrics.md lists exactly these (a test compares)."""

WORKER_METRICS: Final[tuple[Metric, ...]] = (
    CONVERTED,
    HELD,
    STORED,
    LAG,
    IMAGES,
    IMAGES_REFUSED,
    IMAGE_SECONDS,
    IMAGE_STUDIES,
    IMAGES_FORWARDED,
    IMAGE_CONNECTIONS_CLOSED,
)
"""Counted in the workers and the image process; each keeps its totals in its row of the table ``worker``, /metrics shows their sum."""


class JsonLines(logging.Formatter):
    """One JSON object a line: at, level, logger, text, the fields given as ``extra``, and of an exception its types and places."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without a line break in it."""
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "text": _text(record),
        }
        if _ours(record):
            line.update({k: v for k, v in vars(record).items() if k not in _STANDARD and k not in line})
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = describe(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False, default=_typename)


def _text(given: logging.LogRecord) -> str:
    """The message; arguments that are exceptions show their type alone."""
    name, arguments, record = given.name, given.args, given
    if isinstance(arguments, tuple):
        record = logging.makeLogRecord(
            {"msg": record.msg, "args": tuple(_typename(a) if isinstance(a, BaseException) else a for a in arguments)}
        )
    if isinstance(record.msg, BaseException):
        return _typename(record.msg)
    if _ours(given):
        return record.getMessage()
    # Of a library only what it always says: its values may be anybody's. Further lines and brackets of asyncio show reprs; a
    # warning begins with its place and category.
    text = str(record.msg).partition("\n")[0]
    if name == "asyncio":
        text = re.split("[(<]", text, maxsplit=1)[0].strip()
    elif name == "py.warnings":
        text = ":".join(record.getMessage().partition("\n")[0].split(":")[:3])
    return text[:300]


def _ours(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] in _OURS


def _typename(value: object) -> str:
    return type(value).__name__


def describe(fault: BaseException) -> list[str]:
    """An exception and its causes as ``Type at module:line``, outermost first; the text is ours alone (Fault), never a driver's."""
    out: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = fault
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        frames = traceback.extract_tb(current.__traceback__)
        place = f" at {frames[-1].name}:{frames[-1].lineno}" if frames else ""
        text = f": {current.text}" if isinstance(current, Fault) else ""
        out.append(f"{_typename(current)}{place}{text}")
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return out


def configure(level: str = "INFO") -> None:
    """Sends every log record, warning and uncaught exception of the process to standard error as JSON lines. Call once, at the start
    of a command that serves."""
    out = logging.StreamHandler(sys.stderr)
    out.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[out], force=True)
    logging.captureWarnings(True)
    sys.excepthook = lambda _, fault, __: log.critical("process_failed", exc_info=fault)
    threading.excepthook = lambda told: log.critical("thread_failed", exc_info=told.exc_value)
    sys.unraisablehook = lambda told: log.error("finalizer_failed", exc_info=told.exc_value)
    # Libraries below a warning tell more than an operator needs, and some of them quote values.
    for name in ("asyncio", "asyncpg", "psycopg", "psycopg.pool", "sqlalchemy", "alembic", "uvicorn.access", "httpx"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
