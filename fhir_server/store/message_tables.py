"""Tables of messages: inbox, outbox and deliveries, mappings and their worklist, workers and feeds."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Date, Identity, Index, Integer, LargeBinary, SmallInteger, Table, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from fhir_server.store.columns import Id, Time, metadata

inbox = Table(
    "inbox",
    metadata,
    Column("shard", SmallInteger, primary_key=True),
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("facility", Text, nullable=False),
    Column("channel", Text, nullable=False),
    Column("format", Text, nullable=False),
    Column("trigger", Text, nullable=False),
    Column("control_id", Text, nullable=False),
    Column("sent_at", Time),
    Column("received_at", Time, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("size", Integer, nullable=False, comment="bytes before compression"),
    Column("charset", Text, nullable=False),
    Column("lane", SmallInteger, nullable=False, comment="0 live, 1 backfill"),
    Column("keys", ARRAY(BigInteger), nullable=False, comment="ordering keys: one per patient named (PID, MRG-1)"),
    Column("status", Text, nullable=False, comment="ready | claimed | done | held | failed | quality-control"),
    Column(
        "flag",
        Text,
        comment="control-id-reused when the control id came before with other bytes; part: of a continued message",
    ),
    Column("claimed_by", Text),
    Column("lease_until", Time),
    Column("attempts", SmallInteger, nullable=False, server_default=text("0")),
    Column("reason", Text, comment="issue key of the hold or failure"),
    Column("issues", JSONB, comment="Issue list of the last conversion"),
    Column("unread", JSONB, comment="positions of unread fields of the last conversion"),
    Column("converted_at", Time),
    Column("mapping", Integer),
    Column("raw", LargeBinary, nullable=False, comment="zstd of the bytes as received"),
    Index("inbox_same", "shard", "facility", "sha256", unique=True),
    Index("inbox_control", "facility", "control_id"),
    Index("inbox_ready", "lane", "facility", "channel", "id", postgresql_where=text("status = 'ready'")),
    Index("inbox_claimed", "lease_until", postgresql_where=text("status = 'claimed'")),
    Index("inbox_key", text("(keys[1])"), "id", postgresql_where=text("status = 'ready'")),
    Index("inbox_keys", "id", postgresql_where=text("status = 'ready' AND cardinality(keys) > 1")),
    Index("inbox_part", "facility", "received_at", postgresql_where=text("flag = 'part'")),
    Index("inbox_status", "status", "facility", postgresql_where=text("status IN ('held', 'failed')")),
)

outbox = Table(
    "outbox",
    metadata,
    Column("shard", SmallInteger, primary_key=True),
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column(
        "topic",
        Text,
        nullable=False,
        comment="result-new | result-corrected | result-voided | patient-merged | answer-reopened | resource-changed",
    ),
    Column("facility", Text, nullable=False),
    Column("patient", Id),
    Column("resource", Text, nullable=False, comment="<type>/<id>/_history/<version>"),
    Column("created", Time, nullable=False),
    Column("published", Time),
    Index("outbox_open", "id", postgresql_where=text("published IS NULL")),
)

delivery = Table(
    "delivery",
    metadata,
    Column("shard", SmallInteger, primary_key=True),
    Column("id", BigInteger, Identity(always=True), primary_key=True, comment="the order in which they are sent"),
    Column("outbox", BigInteger, nullable=False, comment="id of the outbox row that asked for it"),
    Column("facility", Text, nullable=False, comment="facility that receives it"),
    Column("destination", Text, nullable=False, comment="name in its profile; empty: no message could be made"),
    Column("topic", Text, nullable=False, comment="as outbox.topic"),
    Column("patient", Id, comment="logical id of the sender's Patient: one after the other for each destination"),
    Column("resource", Id, nullable=False, comment="<type>/<id>: what later corrections of it follow"),
    Column("control_id", Text, nullable=False, comment="MSH-10, or the request id of an HTTP delivery"),
    Column(
        "message", LargeBinary, comment="zstd of the bytes, the same at every attempt; null when none could be made"
    ),
    Column(
        "status", Text, nullable=False, comment="waiting | delivered | dead | closed (dead, and settled by a person)"
    ),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("due", Time, nullable=False, comment="not to be tried before"),
    Column("reason", Text, comment="why the last attempt failed; no patient data"),
    Column("created", Time, nullable=False),
    Column("delivered", Time),
    Index("delivery_once", "shard", "outbox", "facility", "destination", unique=True),
    Index("delivery_waiting", "facility", "destination", "id", postgresql_where=text("status = 'waiting'")),
    Index("delivery_order", "facility", "destination", "patient", "id", postgresql_where=text("status = 'waiting'")),
    Index("delivery_resource", "resource"),
    Index("delivery_dead", "id", postgresql_where=text("status = 'dead'")),
    Index(
        "delivery_kept",
        text("(coalesce(delivered, created))"),
        postgresql_where=text("status IN ('delivered', 'closed') AND message IS NOT NULL"),
    ),
)

unmapped = Table(
    "unmapped",
    metadata,
    Column("facility", Text, primary_key=True),
    Column("kind", Text, primary_key=True, comment="code | unit | order"),
    Column("code", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("unit", Text, primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("first_seen", Time, nullable=False),
    Column("last_seen", Time, nullable=False),
    Column("example", BigInteger, nullable=False, comment="inbox id"),
    comment="mapping worklist; no patient data",
)

code_mapping = Table(
    "code_mapping",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("facility", Text, nullable=False),
    Column("kind", Text, nullable=False, comment="code | order | unit, as unmapped.kind"),
    Column("code", Text, nullable=False, comment="local code as sent, empty when none is; the unit text for a unit"),
    Column("name", Text, nullable=False),
    Column("target", Text, comment="item, orderable or UCUM code; null: rejected, it has none"),
    Column("valid_from", Date, comment="first day of results it holds for; null: open"),
    Column("valid_to", Date, comment="last day, inclusive; null: open"),
    Column("recorded", Time, nullable=False, comment="from when it was known"),
    Column("recorded_by", Text, nullable=False, comment="who decided"),
    Column("until", Time, comment="when a later decision took its place; null while it holds"),
    Column("note", Text, nullable=False),
    Column("replayed", Time, comment="when stored messages were put back because of it"),
    Index("code_mapping_current", "facility", "kind", "code", postgresql_where=text("until IS NULL")),
    comment="what people decided in the mapping worklist; rows are only added and ended; no patient data",
)

mapping_version = Table(
    "mapping_version",
    metadata,
    Column("id", Integer, Identity(always=True), primary_key=True),
    Column("digest", Text, nullable=False, unique=True, comment="digest of mapping files, profile and code maps"),
    Column("label", Text, nullable=False),
    Column("recorded", Time, nullable=False),
)

worker = Table(
    "worker",
    metadata,
    Column("name", Text, primary_key=True, comment="host/pid/random; or retired: the sum of those that are gone"),
    Column("version", Text, nullable=False, comment="of the program"),
    Column("started", Time, nullable=False),
    Column("seen", Time, nullable=False, comment="last sign of life, by the clock of the database"),
    Column("counts", JSONB, nullable=False, comment="totals of its metrics"),
    comment="worker processes; no patient data",
)

feed = Table(
    "feed",
    metadata,
    Column("facility", Text, primary_key=True),
    Column("channel", Text, primary_key=True),
    Column("received_at", Time, nullable=False, comment="when its last message arrived"),
    comment="channels that were ever heard",
)
