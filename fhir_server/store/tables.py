"""Every table, in one place (SQLAlchemy Core; the migrations create exactly this, checked by a test).

Rules: a table of patient data leads its primary key with ``shard`` (mappings.ids), so that it distributes on Citus; hot search
values are typed columns, tokens and references one indexed array of 64-bit hashes; the body is stored once, compressed.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    Sequence,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

metadata = MetaData()
Id = Text(collation="C")
Time = DateTime(timezone=True)

change_seq = Sequence("change_seq", metadata=metadata, data_type=BigInteger)
_NEXT = text("nextval('change_seq'::regclass)")

# --- resources -------------------------------------------------------------------------------------------------------------

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
    Index("resource_patient", "shard", "patient", "rtype", text("start_at DESC")),
    Index("resource_type_seq", "rtype", "seq"),
    Index("resource_type_start", "rtype", text("start_at DESC NULLS LAST")),
    Index("resource_type_updated", "rtype", "updated"),
    Index("resource_tokens", "tokens", postgresql_using="gin"),
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

# --- identity --------------------------------------------------------------------------------------------------------------

source_patient = Table(
    "source_patient",
    metadata,
    Column("shard", SmallInteger, primary_key=True),
    Column("patient", Id, primary_key=True, comment="logical id of the facility Patient"),
    Column("facility", Text, nullable=False),
    Column("person", Id, nullable=False, comment="person id now; a Patient alone is its own person"),
    Column("resident_id", LargeBinary, comment="16-byte digest of a valid resident ID number, null when none"),
    Column("name", Text, comment="normalised name used for matching"),
    Column("sex", Text),
    Column("birth", Date),
    Column(
        "certain",
        LargeBinary,
        comment="16-byte digest of all that agrees in a certain match; null when it cannot have one",
    ),
    Index("source_patient_certain", "certain", postgresql_where=text("certain IS NOT NULL")),
    Index("source_patient_resident", "resident_id", postgresql_where=text("resident_id IS NOT NULL")),
    Index("source_patient_name", "name", "birth", postgresql_where=text("name IS NOT NULL AND birth IS NOT NULL")),
    Index("source_patient_person", "person"),
)

identity_link = Table(
    "identity_link",
    metadata,
    Column("shard", SmallInteger, primary_key=True),
    Column("patient", Id, primary_key=True),
    Column("recorded", Time, primary_key=True),
    Column("until", Time),
    Column("person", Id, nullable=False),
    Column("grade", Text, nullable=False, comment="certain | probable | possible | certainly-not"),
    Column("basis", Text, nullable=False, comment="resident-id | merge | unmerge | alone"),
    Index("identity_link_person", "person"),
    comment="history of source_patient.person: what was linked when",
)

identity_merge = Table(
    "identity_merge",
    metadata,
    Column("shard", SmallInteger, primary_key=True),
    Column("patient", Id, primary_key=True, comment="the retired facility Patient"),
    Column("surviving", Id, nullable=False),
    Column("linked", Boolean, nullable=False, comment="false after a statement that takes the merge back"),
    Column("trigger", Text, nullable=False),
    Column("stated_at", Time, nullable=False, comment="when the sender said so (MSH-7); a later statement wins"),
    Column("recorded", Time, nullable=False),
    Index("identity_merge_surviving", "surviving"),
    comment="what facilities said about their own double Patients, newest statement of each retired one",
)

identity_review = Table(
    "identity_review",
    metadata,
    Column("shard", SmallInteger, primary_key=True),
    Column("patient", Id, primary_key=True),
    Column("other_shard", SmallInteger, primary_key=True),
    Column("other", Id, primary_key=True),
    Column("reason", Text, nullable=False, comment="name-differs | sex-differs | birth-differs | missing ..."),
    Column("recorded", Time, nullable=False),
    Column("closed", Time),
    Index("identity_review_other", "other", postgresql_where=text("closed IS NULL")),
    comment="pairs kept separate that a person should look at",
)

# --- inbox and outbox -------------------------------------------------------------------------------------------------------

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
    Column("topic", Text, nullable=False, comment="result-new | result-corrected | result-voided | patient-merged"),
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

zstd_dictionary = Table(
    "zstd_dictionary",
    metadata,
    Column("id", SmallInteger, primary_key=True),
    Column("data", LargeBinary, nullable=False),
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

# --- evidence ---------------------------------------------------------------------------------------------------------------

audit_entry = Table(
    "audit_entry",
    metadata,
    Column("chain", Text, primary_key=True, comment="one chain per writer process"),
    Column("number", BigInteger, primary_key=True),
    Column("at", Time, nullable=False),
    Column("entry", Text, nullable=False, comment="canonical JSON: who, role, facility, action, patient, outcome"),
    Column("hash", LargeBinary, nullable=False, comment="SHA-256 of previous hash + entry"),
    Index("audit_entry_at", "at"),
)

ledger = Table(
    "ledger",
    metadata,
    Column("chain", Text, primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("at", Time, nullable=False),
    Column(
        "kind",
        Text,
        nullable=False,
        comment="reminder | no-answer | visit | view | feedback | decision | citation | reopened",
    ),
    Column("person", Id),
    Column("facility", Text, nullable=False),
    Column("orderable", Text),
    Column("outcome", Text),
    Column("entry", Text, nullable=False, comment="canonical JSON of the decision with evidence and versions"),
    Column("hash", LargeBinary, nullable=False),
    Column("card", Id, comment="card id in the entry: reminder, visit, and what was said about them"),
    Column("doctor", Text, comment="user in the entry"),
    Column("department", Text, comment="department in the entry"),
    Column("reports", ARRAY(Text), comment="DiagnosticReports the entry names, logical ids"),
    Index("ledger_at", "at"),
    Index("ledger_card", "card", postgresql_where=text("card IS NOT NULL")),
    Index("ledger_reports", "reports", postgresql_using="gin", postgresql_where=text("reports IS NOT NULL")),
    comment="card, doctor, department and reports repeat what stands in the hashed entry, for look-ups",
)

ledger_news = Table(
    "ledger_news",
    metadata,
    Column("chain", Text, primary_key=True),
    Column("number", BigInteger, primary_key=True),
    comment="rows of the ledger that are no resources yet",
)

decision = Table(
    "decision",
    metadata,
    Column("card", Id, primary_key=True, comment="the reminder it answers"),
    Column(
        "sequence", SmallInteger, primary_key=True, comment="odd: adopt or decline; even: revokes the one before it"
    ),
    Column("id", Id, nullable=False, unique=True, comment="derived from the card and the key of the request"),
    Column("at", Time, nullable=False),
    Column("action", Text, nullable=False, comment="adopt | decline | revoke"),
    Column("revokes", Id, comment="id of the decision it takes back"),
    Column("person", Id),
    Column("facility", Text, nullable=False),
    Column("department", Text),
    Column("doctor", Text, nullable=False),
    Column("orderable", Text),
    Column("reason", Text, comment="code of the reason for declining"),
    Column("refusal", Boolean, nullable=False, comment="counts as a refusal: declined for one of the six reasons"),
    Column("price_fen", BigInteger, comment="receiver's price at that moment; null when not known"),
    Column("content", LargeBinary, nullable=False, comment="16-byte digest of what was asked for: equal -> a repeat"),
    Column("entry", Text, nullable=False, comment="as in its ledger row"),
    Index("decision_at", "at"),
    Index("decision_person", "person"),
    comment="one row for each decision of the ledger; never changed",
)

finding = Table(
    "finding",
    metadata,
    Column("id", Id, primary_key=True, comment="derived from order and orderable"),
    Column("version", Integer, primary_key=True),
    Column("recorded", Time, nullable=False),
    Column("until", Time, comment="when a later audit found otherwise; null while it stands"),
    Column("at", Time, nullable=False, comment="time of the order"),
    Column("facility", Text, nullable=False),
    Column("department", Text),
    Column("doctor", Text),
    Column("orderable", Text, nullable=False),
    Column("kind", Text, nullable=False, comment="avoidable | justified | undetermined | system"),
    Column("cause", Text, nullable=False),
    Column("rules", Text, nullable=False),
    Column("price_fen", BigInteger),
    Column("content", LargeBinary, nullable=False, comment="16-byte digest of body"),
    Column("body", Text, nullable=False, comment="the finding as JSON"),
    Index("finding_at", "at", postgresql_where=text("until IS NULL")),
    comment="findings of the duplicate audit, each as often as it changed",
)

finding_review = Table(
    "finding_review",
    metadata,
    Column("finding", Id, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("at", Time, nullable=False),
    Column("step", Text, nullable=False, comment="sampled | verdict | appeal"),
    Column("by", Text, nullable=False),
    Column("facility", Text, nullable=False, comment="of the one who acts; empty for the consortium"),
    Column("version", Integer, nullable=False, comment="version of the finding it is about"),
    Column("verdict", Text, comment="avoidable | justified | undetermined | system"),
    Column("text", Text, nullable=False),
    comment="case review: what was drawn, judged and appealed against; never changed",
)
