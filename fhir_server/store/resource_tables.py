"""Tables of resources: current versions, history, what searches find them by, and how bodies are compressed."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    Numeric,
    Sequence,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY

from fhir_server.store.columns import Id, Time, metadata

change_seq = Sequence("change_seq", metadata=metadata, data_type=BigInteger)
_NEXT = text("nextval('change_seq'::regclass)")

# Columns stand in an order that leaves no gaps between them on disk: fixed lengths first, the widest of them first.
resource = Table(
    "resource",
    metadata,
    Column(
        "seq", BigInteger, nullable=False, server_default=_NEXT, comment="change number; order of history, of paging"
    ),
    Column("updated", Time, nullable=False, comment="meta.lastUpdated"),
    Column("start_at", Time, comment="lower bound of the type's main date parameter (search/params)"),
    Column("end_at", Time, comment="upper bound, exclusive"),
    Column("issued_at", Time, comment="issued (Observation, DiagnosticReport), authored (ServiceRequest)"),
    Column(
        "effective_at",
        Time,
        comment="Observation without effective time: when its specimen was taken, or of its report",
    ),
    Column("reported_at", Time, comment="Observation without issued: issued of its report"),
    Column("inbox", BigInteger, comment="inbox id of the message it came from; null for API writes"),
    Column("version", Integer, nullable=False, comment="version id of the current state"),
    Column("top", Integer, nullable=False, comment="highest version id used, stale arrivals included"),
    Column("mapping", Integer, comment="mapping_version.id"),
    Column("shard", SmallInteger, primary_key=True, autoincrement=False),
    Column("rtype", SmallInteger, primary_key=True, comment="number of the resource type (conformance.capability)"),
    Column("dict", SmallInteger, nullable=False, comment="zstd_dictionary.id"),
    Column("deleted", Boolean, nullable=False, server_default=text("false")),
    Column("backfill", Boolean, nullable=False, server_default=text("false"), comment="came through the slow lane"),
    Column("id", Id, primary_key=True),
    Column("patient", Id, comment="logical id of the Patient whose compartment it is in; null for directories"),
    Column("parent", Id, comment="id of the DiagnosticReport it belongs to (Entry.parent)"),
    Column("recency", LargeBinary, nullable=False, comment="sortable bytes of Recency (store.statement)"),
    Column("content", LargeBinary, nullable=False, comment="16-byte digest of the statement: equal -> no new version"),
    Column("withdrawn", Text, comment="status before its report number went to another patient; null while in force"),
    Column("order", Id, comment="Observation: logical id of the ServiceRequest"),
    Column("number", Numeric, comment="Observation: numeric value as sent"),
    Column("value_text", Text, comment="Observation: value as text when it is not a plain number"),
    Column("body", LargeBinary, nullable=False, comment="zstd of the JSON text as served"),
    Column(
        "tokens",
        ARRAY(BigInteger),
        nullable=False,
        comment="resource_kind.id, then hashes of token, reference, uri values of its own (search/params)",
    ),
    Column("sensitivity", SmallInteger, comment="classes that need a grant, as bits (mappings.sensitive); null: none"),
    Index("resource_patient", "shard", "patient", "rtype", text("start_at DESC")),
    Index("resource_type_seq", "rtype", "seq"),
    Index("resource_type_start", "rtype", text("start_at DESC NULLS LAST")),
    Index("resource_type_updated", "rtype", "updated"),
    Index("resource_tokens", "tokens", postgresql_using="gin"),
    Index("resource_by_kind", text("(tokens[1])"), "shard"),
    Index("resource_parent", "shard", "parent", postgresql_where=text("parent IS NOT NULL")),
    Index(
        "resource_unordered",
        "shard",
        "parent",
        postgresql_where=text('rtype = 15 AND "order" IS NULL AND parent IS NOT NULL'),
    ),
)

resource_history = Table(
    "resource_history",
    metadata,
    Column("shard", SmallInteger, primary_key=True),
    Column("rtype", SmallInteger, primary_key=True),
    Column("id", Id, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("seq", BigInteger, nullable=False, server_default=_NEXT),
    Column("updated", Time, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Column("stale", Boolean, nullable=False, comment="arrived after something newer: never was current"),
    Column("patient", Id),
    Column("content", LargeBinary, nullable=False, comment="as resource.content: a stale statement is kept once"),
    Column("inbox", BigInteger),
    Column("mapping", Integer),
    Column("dict", SmallInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("until", Time, comment="when a newer version took its place; null for one that never was current"),
    Column("kind", BigInteger, comment="resource_kind.id of a result; null for one that never was current"),
    Column("backfill", Boolean, nullable=False, server_default=text("false")),
    Column("effective", Time, comment="resource.start_at, else effective_at"),
    Column("issued", Time, comment="resource.issued_at, else reported_at"),
    Column("parent", Id),
    Column("order", Id),
    Column("number", Numeric),
    Column("value_text", Text),
    Column("sensitivity", SmallInteger, comment="as resource.sensitivity"),
    Index("resource_history_seq", "rtype", "seq"),
    Index("resource_history_updated", "rtype", "updated"),
    Index("resource_history_patient", "shard", "patient", postgresql_where=text("kind IS NOT NULL")),
)

resource_kind = Table(
    "resource_kind",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False, comment="64-bit hash of all that follows"),
    Column("present", BigInteger, nullable=False, comment="bit of each path that has a value (search/params)"),
    Column("rtype", SmallInteger, nullable=False),
    Column("tokens", ARRAY(BigInteger), nullable=False, comment="hashes that the resources share (search/params)"),
    Column("facility", Text, comment="facility that sent the result; null for all but results"),
    Column("performer", Text, comment="performing laboratory (facility id, else its name as sent); null when unknown"),
    Column("item", Text, comment="catalogue item code; null while unmapped"),
    Column("loinc", Text),
    Column("code", Text, comment="local code as sent"),
    Column("name", Text, comment="local name as sent"),
    Column("specimen", Text, comment="specimen type code of the catalogue, null when unknown"),
    Column("comparator", Text),
    Column("unit", Text, comment="UCUM code; null when unknown"),
    Column("unit_text", Text, comment="unit as sent"),
    Column("flag", Text, comment="interpretation code (v3 ObservationInterpretation)"),
    Column("range_text", Text),
    Column("status", Text, comment="Observation.status"),
    Column("mark", Text, comment="recognition mark stripped from the name (HR, 全国HR)"),
    Column("quality", Text, comment="specimen condition, null when not stated"),
    Column("method", Text, comment="method class of the catalogue; null when not stated or not known"),
    Column("site", Text, comment="body site of the catalogue as the result states it"),
    Column("laterality", Text, comment="left | right | bilateral, as the result states it"),
    Column("contrast", Text, comment="without | with | without-and-with, as the result states it"),
    Column("health_check", Text, comment="yes | no: is the visit a health check; null when nobody says"),
    Column("base", Text, comment="base units of a UCUM unit (search/quantities); null when it has none"),
    Column("factor", Numeric, comment="what a number in the unit is multiplied by to stand in base units"),
    Column("texts", ARRAY(Text), comment="path number:normalised text of coded values (search/params)"),
    Index("resource_kind_tokens", "tokens", postgresql_using="gin"),
    comment="what thousands of resources have in common: written once, and named by their rows; no patient data",
)
# The flat result rows are a view (0001_spine.sql): of each version of an Observation about a patient its own columns and those of its
# kind. ``recorded`` is from when the version was visible, ``until`` when a newer one took its place, null while current.

client_id = Table(
    "client_id",
    metadata,
    Column("rtype", SmallInteger, primary_key=True),
    Column("id", Id, primary_key=True),
    Column("shard", SmallInteger, nullable=False),
    comment="directory of ids given by clients: id -> shard (derived ids carry their shard)",
)

search_value = Table(
    "search_value",
    metadata,
    Column("shard", SmallInteger, primary_key=True),
    Column("rtype", SmallInteger, primary_key=True),
    Column("id", Id, primary_key=True),
    Column("param", SmallInteger, primary_key=True, comment="number of the search parameter (search/params)"),
    Column("ordinal", SmallInteger, primary_key=True),
    Column("string", Id, comment="normalised: folded case, width and accents"),
    Column("low", Time),
    Column("high", Time, comment="exclusive"),
    Column("number", Numeric, comment="lower bound of a quantity or number; string says the unit (search/quantities)"),
    Column("number_high", Numeric, comment="upper bound, inclusive"),
    Index("search_value_string", "rtype", "param", "string", postgresql_where=text("string IS NOT NULL")),
    Index("search_value_low", "rtype", "param", "low", postgresql_where=text("low IS NOT NULL")),
    Index("search_value_number", "rtype", "param", "string", "number", postgresql_where=text("number IS NOT NULL")),
    comment="ordered and string values of the rarer parameters",
)

posted_parameter = Table(
    "posted_parameter",
    metadata,
    Column("number", SmallInteger, primary_key=True, autoincrement=False, comment="search_value.param of its values"),
    Column("id", Id, nullable=False, comment="logical id of the SearchParameter"),
    Column("definition", Text, nullable=False, comment="the SearchParameter as JSON"),
    Column("state", Text, nullable=False, comment="new | building | ready | gone"),
    Column("generation", Integer, nullable=False, comment="search_generation.number its state came with"),
    Column("rtype", SmallInteger, nullable=False, server_default=text("0"), comment="type that is being indexed"),
    Column("seq", BigInteger, nullable=False, server_default=text("0"), comment="resource.seq up to which it is"),
    Column("done", BigInteger, nullable=False, server_default=text("0"), comment="resources looked at"),
    comment="SearchParameters that were posted, and how far the index of each is (store/reindex)",
)

search_generation = Table(
    "search_generation",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    comment="one row: grows with every change of posted_parameter, which each writer looks at first (search_generation())",
)

business_key = Table(
    "business_key",
    metadata,
    Column("key", LargeBinary, primary_key=True, comment="16-byte digest of facility + Entry.business"),
    Column("shard", SmallInteger, nullable=False),
    Column("rtype", SmallInteger, nullable=False),
    Column("id", Id, nullable=False),
    Column("patient", Id, nullable=False),
    Column(
        "claim",
        LargeBinary,
        nullable=False,
        comment="sortable bytes: the newest statement of the number decides whose it is",
    ),
    comment="which patient a report number belongs to now: finds results sent for the wrong patient",
)

zstd_dictionary = Table(
    "zstd_dictionary",
    metadata,
    Column("id", SmallInteger, primary_key=True),
    Column("data", LargeBinary, nullable=False),
)
