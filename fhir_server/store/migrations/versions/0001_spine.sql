-- The first schema; tables.py says what each table is for.
CREATE SEQUENCE change_seq AS BIGINT;

CREATE TABLE resource (
    seq BIGINT DEFAULT nextval('change_seq'::regclass) NOT NULL,
    updated TIMESTAMP WITH TIME ZONE NOT NULL,
    start_at TIMESTAMP WITH TIME ZONE,
    end_at TIMESTAMP WITH TIME ZONE,
    issued_at TIMESTAMP WITH TIME ZONE,
    effective_at TIMESTAMP WITH TIME ZONE,
    reported_at TIMESTAMP WITH TIME ZONE,
    inbox BIGINT,
    version INTEGER NOT NULL,
    top INTEGER NOT NULL,
    mapping INTEGER,
    shard SMALLINT NOT NULL,
    rtype SMALLINT NOT NULL,
    dict SMALLINT NOT NULL,
    deleted BOOLEAN DEFAULT false NOT NULL,
    backfill BOOLEAN DEFAULT false NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    patient TEXT COLLATE "C",
    parent TEXT COLLATE "C",
    recency BYTEA NOT NULL,
    content BYTEA NOT NULL,
    withdrawn TEXT,
    "order" TEXT COLLATE "C",
    number NUMERIC,
    value_text TEXT,
    body BYTEA NOT NULL,
    tokens BIGINT[] NOT NULL,
    PRIMARY KEY (shard, rtype, id)
);
CREATE INDEX resource_parent ON resource (shard, parent) WHERE parent IS NOT NULL;
CREATE INDEX resource_patient ON resource (shard, patient, rtype, start_at DESC);
CREATE INDEX resource_tokens ON resource USING gin (tokens);
CREATE INDEX resource_type_seq ON resource (rtype, seq);
CREATE INDEX resource_type_start ON resource (rtype, start_at DESC NULLS LAST);
CREATE INDEX resource_type_updated ON resource (rtype, updated);
COMMENT ON COLUMN resource.seq IS 'change number; order of history, of paging';
COMMENT ON COLUMN resource.updated IS 'meta.lastUpdated';
COMMENT ON COLUMN resource.start_at IS 'lower bound of the type''s main date parameter (search/params)';
COMMENT ON COLUMN resource.end_at IS 'upper bound, exclusive';
COMMENT ON COLUMN resource.issued_at IS 'issued (Observation, DiagnosticReport), authored (ServiceRequest)';
COMMENT ON COLUMN resource.effective_at IS 'Observation without effective time: when its specimen was taken, or of its report';
COMMENT ON COLUMN resource.reported_at IS 'Observation without issued: issued of its report';
COMMENT ON COLUMN resource.backfill IS 'came through the slow lane';
COMMENT ON COLUMN resource."order" IS 'Observation: logical id of the ServiceRequest';
COMMENT ON COLUMN resource.number IS 'Observation: numeric value as sent';
COMMENT ON COLUMN resource.value_text IS 'Observation: value as text when it is not a plain number';
COMMENT ON COLUMN resource.inbox IS 'inbox id of the message it came from; null for API writes';
COMMENT ON COLUMN resource.version IS 'version id of the current state';
COMMENT ON COLUMN resource.top IS 'highest version id used, stale arrivals included';
COMMENT ON COLUMN resource.mapping IS 'mapping_version.id';
COMMENT ON COLUMN resource.rtype IS 'number of the resource type (conformance.capability)';
COMMENT ON COLUMN resource.dict IS 'zstd_dictionary.id';
COMMENT ON COLUMN resource.patient IS 'logical id of the Patient whose compartment it is in; null for directories';
COMMENT ON COLUMN resource.parent IS 'id of the DiagnosticReport it belongs to (Entry.parent)';
COMMENT ON COLUMN resource.recency IS 'sortable bytes of Recency (store.statement)';
COMMENT ON COLUMN resource.content IS '16-byte digest of the statement: equal -> no new version';
COMMENT ON COLUMN resource.withdrawn IS 'status before its report number went to another patient; null while in force';
COMMENT ON COLUMN resource.body IS 'zstd of the JSON text as served';
COMMENT ON COLUMN resource.tokens IS 'resource_kind.id, then hashes of token, reference, uri values of its own (search/params)';

CREATE TABLE resource_history (
    shard SMALLINT NOT NULL,
    rtype SMALLINT NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    version INTEGER NOT NULL,
    seq BIGINT DEFAULT nextval('change_seq'::regclass) NOT NULL,
    updated TIMESTAMP WITH TIME ZONE NOT NULL,
    deleted BOOLEAN NOT NULL,
    stale BOOLEAN NOT NULL,
    patient TEXT COLLATE "C",
    content BYTEA NOT NULL,
    inbox BIGINT,
    mapping INTEGER,
    dict SMALLINT NOT NULL,
    body BYTEA NOT NULL,
    until TIMESTAMP WITH TIME ZONE,
    kind BIGINT,
    backfill BOOLEAN DEFAULT false NOT NULL,
    effective TIMESTAMP WITH TIME ZONE,
    issued TIMESTAMP WITH TIME ZONE,
    parent TEXT COLLATE "C",
    "order" TEXT COLLATE "C",
    number NUMERIC,
    value_text TEXT,
    PRIMARY KEY (shard, rtype, id, version)
);
CREATE INDEX resource_history_patient ON resource_history (shard, patient) WHERE kind IS NOT NULL;
CREATE INDEX resource_history_seq ON resource_history (rtype, seq);
CREATE INDEX resource_history_updated ON resource_history (rtype, updated);
COMMENT ON COLUMN resource_history.stale IS 'arrived after something newer: never was current';
COMMENT ON COLUMN resource_history.content IS 'as resource.content: a stale statement is kept once';
COMMENT ON COLUMN resource_history.until IS 'when a newer version took its place; null for one that never was current';
COMMENT ON COLUMN resource_history.kind IS 'resource_kind.id of a result; null for one that never was current';
COMMENT ON COLUMN resource_history.effective IS 'resource.start_at, else effective_at';
COMMENT ON COLUMN resource_history.issued IS 'resource.issued_at, else reported_at';

CREATE TABLE resource_kind (
    id BIGINT NOT NULL,
    present BIGINT NOT NULL,
    rtype SMALLINT NOT NULL,
    tokens BIGINT[] NOT NULL,
    facility TEXT,
    performer TEXT,
    item TEXT,
    loinc TEXT,
    code TEXT,
    name TEXT,
    specimen TEXT,
    comparator TEXT,
    unit TEXT,
    unit_text TEXT,
    flag TEXT,
    range_text TEXT,
    status TEXT,
    mark TEXT,
    quality TEXT,
    PRIMARY KEY (id)
);
CREATE INDEX resource_kind_tokens ON resource_kind USING gin (tokens);
COMMENT ON TABLE resource_kind IS 'what thousands of resources have in common: written once, and named by their rows; no patient data';
COMMENT ON COLUMN resource_kind.id IS '64-bit hash of all that follows';
COMMENT ON COLUMN resource_kind.present IS 'bit of each path that has a value (search/params)';
COMMENT ON COLUMN resource_kind.tokens IS 'hashes that the resources share (search/params)';
COMMENT ON COLUMN resource_kind.facility IS 'facility that sent the result; null for all but results';
COMMENT ON COLUMN resource_kind.performer IS 'performing laboratory (facility id, else its name as sent); null when unknown';
COMMENT ON COLUMN resource_kind.item IS 'catalogue item code; null while unmapped';
COMMENT ON COLUMN resource_kind.code IS 'local code as sent';
COMMENT ON COLUMN resource_kind.name IS 'local name as sent';
COMMENT ON COLUMN resource_kind.specimen IS 'specimen type code of the catalogue, null when unknown';
COMMENT ON COLUMN resource_kind.unit IS 'UCUM code; null when unknown';
COMMENT ON COLUMN resource_kind.unit_text IS 'unit as sent';
COMMENT ON COLUMN resource_kind.flag IS 'interpretation code (v3 ObservationInterpretation)';
COMMENT ON COLUMN resource_kind.status IS 'Observation.status';
COMMENT ON COLUMN resource_kind.mark IS 'recognition mark stripped from the name (HR, 全国HR)';
COMMENT ON COLUMN resource_kind.quality IS 'specimen condition, null when not stated';

CREATE VIEW result AS
SELECT coalesce(r.start_at, r.effective_at) AS effective, coalesce(r.issued_at, r.reported_at) AS issued, r.updated AS recorded,
    NULL::timestamptz AS until, r.version, r.shard, r.backfill, r.id, r.patient, r.parent AS report, k.facility, k.performer, k.item,
    k.loinc, k.code, k.name, k.specimen, r.number, k.comparator, r.value_text, k.unit, k.unit_text, k.flag, k.range_text, r."order",
    k.status, k.mark, k.quality
FROM resource r JOIN resource_kind k ON k.id = r.tokens[1] WHERE r.rtype = 15 AND r.patient IS NOT NULL
UNION ALL
SELECT h.effective, h.issued, h.updated, h.until, h.version, h.shard, h.backfill, h.id, h.patient, h.parent, k.facility, k.performer,
    k.item, k.loinc, k.code, k.name, k.specimen, h.number, k.comparator, h.value_text, k.unit, k.unit_text, k.flag, k.range_text,
    h."order", k.status, k.mark, k.quality
FROM resource_history h JOIN resource_kind k ON k.id = h.kind WHERE h.rtype = 15;
COMMENT ON VIEW result IS 'flat result rows: every version of every Observation about a patient that is or was current';
COMMENT ON COLUMN result.recorded IS 'from when this version was visible';
COMMENT ON COLUMN result.until IS 'when a newer version replaced it; null while current';

CREATE TABLE client_id (
    rtype SMALLINT NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    shard SMALLINT NOT NULL,
    PRIMARY KEY (rtype, id)
);
COMMENT ON TABLE client_id IS 'directory of ids given by clients: id -> shard (derived ids carry their shard)';

CREATE TABLE search_value (
    shard SMALLINT NOT NULL,
    rtype SMALLINT NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    param SMALLINT NOT NULL,
    ordinal SMALLINT NOT NULL,
    string TEXT COLLATE "C",
    low TIMESTAMP WITH TIME ZONE,
    high TIMESTAMP WITH TIME ZONE,
    number NUMERIC,
    PRIMARY KEY (shard, rtype, id, param, ordinal)
);
CREATE INDEX search_value_low ON search_value (rtype, param, low) WHERE low IS NOT NULL;
CREATE INDEX search_value_string ON search_value (rtype, param, string) WHERE string IS NOT NULL;
COMMENT ON TABLE search_value IS 'ordered and string values of the rarer parameters';
COMMENT ON COLUMN search_value.param IS 'number of the search parameter (search/params)';
COMMENT ON COLUMN search_value.string IS 'normalised: folded case, width and accents';
COMMENT ON COLUMN search_value.high IS 'exclusive';

CREATE TABLE business_key (
    key BYTEA NOT NULL,
    shard SMALLINT NOT NULL,
    rtype SMALLINT NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    patient TEXT COLLATE "C" NOT NULL,
    claim BYTEA NOT NULL,
    PRIMARY KEY (key)
);
COMMENT ON TABLE business_key IS 'which patient a report number belongs to now: finds results sent for the wrong patient';
COMMENT ON COLUMN business_key.key IS '16-byte digest of facility + Entry.business';
COMMENT ON COLUMN business_key.claim IS 'sortable bytes: the newest statement of the number decides whose it is';

CREATE TABLE source_patient (
    shard SMALLINT NOT NULL,
    patient TEXT COLLATE "C" NOT NULL,
    facility TEXT NOT NULL,
    person TEXT COLLATE "C" NOT NULL,
    resident_id BYTEA,
    name TEXT,
    sex TEXT,
    birth DATE,
    certain BYTEA,
    PRIMARY KEY (shard, patient)
);
CREATE INDEX source_patient_certain ON source_patient (certain) WHERE certain IS NOT NULL;
CREATE INDEX source_patient_name ON source_patient (name, birth) WHERE name IS NOT NULL AND birth IS NOT NULL;
CREATE INDEX source_patient_person ON source_patient (person);
CREATE INDEX source_patient_resident ON source_patient (resident_id) WHERE resident_id IS NOT NULL;
COMMENT ON COLUMN source_patient.patient IS 'logical id of the facility Patient';
COMMENT ON COLUMN source_patient.person IS 'person id now; a Patient alone is its own person';
COMMENT ON COLUMN source_patient.resident_id IS '16-byte digest of a valid resident ID number, null when none';
COMMENT ON COLUMN source_patient.name IS 'normalised name used for matching';
COMMENT ON COLUMN source_patient.certain IS '16-byte digest of all that agrees in a certain match; null when it cannot have one';

CREATE TABLE identity_link (
    shard SMALLINT NOT NULL,
    patient TEXT COLLATE "C" NOT NULL,
    recorded TIMESTAMP WITH TIME ZONE NOT NULL,
    until TIMESTAMP WITH TIME ZONE,
    person TEXT COLLATE "C" NOT NULL,
    grade TEXT NOT NULL,
    basis TEXT NOT NULL,
    PRIMARY KEY (shard, patient, recorded)
);
CREATE INDEX identity_link_person ON identity_link (person);
COMMENT ON TABLE identity_link IS 'history of source_patient.person: what was linked when';
COMMENT ON COLUMN identity_link.grade IS 'certain | probable | possible | certainly-not';
COMMENT ON COLUMN identity_link.basis IS 'resident-id | merge | unmerge | alone';

CREATE TABLE identity_merge (
    shard SMALLINT NOT NULL,
    patient TEXT COLLATE "C" NOT NULL,
    surviving TEXT COLLATE "C" NOT NULL,
    linked BOOLEAN NOT NULL,
    trigger TEXT NOT NULL,
    stated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    recorded TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (shard, patient)
);
CREATE INDEX identity_merge_surviving ON identity_merge (surviving);
COMMENT ON TABLE identity_merge IS 'what facilities said about their own double Patients, newest statement of each retired one';
COMMENT ON COLUMN identity_merge.patient IS 'the retired facility Patient';
COMMENT ON COLUMN identity_merge.linked IS 'false after a statement that takes the merge back';
COMMENT ON COLUMN identity_merge.stated_at IS 'when the sender said so (MSH-7); a later statement wins';

CREATE TABLE identity_review (
    shard SMALLINT NOT NULL,
    patient TEXT COLLATE "C" NOT NULL,
    other_shard SMALLINT NOT NULL,
    other TEXT COLLATE "C" NOT NULL,
    reason TEXT NOT NULL,
    recorded TIMESTAMP WITH TIME ZONE NOT NULL,
    closed TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (shard, patient, other_shard, other)
);
CREATE INDEX identity_review_other ON identity_review (other) WHERE closed IS NULL;
COMMENT ON TABLE identity_review IS 'pairs kept separate that a person should look at';
COMMENT ON COLUMN identity_review.reason IS 'name-differs | sex-differs | birth-differs | missing ...';

CREATE TABLE inbox (
    shard SMALLINT NOT NULL,
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    facility TEXT NOT NULL,
    channel TEXT NOT NULL,
    format TEXT NOT NULL,
    trigger TEXT NOT NULL,
    control_id TEXT NOT NULL,
    sent_at TIMESTAMP WITH TIME ZONE,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    sha256 BYTEA NOT NULL,
    size INTEGER NOT NULL,
    charset TEXT NOT NULL,
    lane SMALLINT NOT NULL,
    keys BIGINT[] NOT NULL,
    status TEXT NOT NULL,
    flag TEXT,
    claimed_by TEXT,
    lease_until TIMESTAMP WITH TIME ZONE,
    attempts SMALLINT DEFAULT 0 NOT NULL,
    reason TEXT,
    issues JSONB,
    unread JSONB,
    converted_at TIMESTAMP WITH TIME ZONE,
    mapping INTEGER,
    raw BYTEA NOT NULL,
    PRIMARY KEY (shard, id)
);
CREATE INDEX inbox_claimed ON inbox (lease_until) WHERE status = 'claimed';
CREATE INDEX inbox_control ON inbox (facility, control_id);
CREATE INDEX inbox_key ON inbox ((keys[1]), id) WHERE status = 'ready';
CREATE INDEX inbox_keys ON inbox (id) WHERE status = 'ready' AND cardinality(keys) > 1;
CREATE INDEX inbox_ready ON inbox (lane, facility, channel, id) WHERE status = 'ready';
CREATE UNIQUE INDEX inbox_same ON inbox (shard, facility, sha256);
CREATE INDEX inbox_status ON inbox (status, facility) WHERE status IN ('held', 'failed');
COMMENT ON COLUMN inbox.size IS 'bytes before compression';
COMMENT ON COLUMN inbox.lane IS '0 live, 1 backfill';
COMMENT ON COLUMN inbox.keys IS 'ordering keys: one per patient named (PID, MRG-1)';
COMMENT ON COLUMN inbox.status IS 'ready | claimed | done | held | failed | quality-control';
COMMENT ON COLUMN inbox.flag IS 'control-id-reused when the control id came before with other bytes';
COMMENT ON COLUMN inbox.reason IS 'issue key of the hold or failure';
COMMENT ON COLUMN inbox.issues IS 'Issue list of the last conversion';
COMMENT ON COLUMN inbox.unread IS 'positions of unread fields of the last conversion';
COMMENT ON COLUMN inbox.raw IS 'zstd of the bytes as received';

CREATE TABLE outbox (
    shard SMALLINT NOT NULL,
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    topic TEXT NOT NULL,
    facility TEXT NOT NULL,
    patient TEXT COLLATE "C",
    resource TEXT NOT NULL,
    created TIMESTAMP WITH TIME ZONE NOT NULL,
    published TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (shard, id)
);
CREATE INDEX outbox_open ON outbox (id) WHERE published IS NULL;
COMMENT ON COLUMN outbox.topic IS 'result-new | result-corrected | result-voided | patient-merged';
COMMENT ON COLUMN outbox.resource IS '<type>/<id>/_history/<version>';

CREATE TABLE unmapped (
    facility TEXT NOT NULL,
    kind TEXT NOT NULL,
    code TEXT NOT NULL,
    name TEXT NOT NULL,
    unit TEXT NOT NULL,
    count BIGINT NOT NULL,
    first_seen TIMESTAMP WITH TIME ZONE NOT NULL,
    last_seen TIMESTAMP WITH TIME ZONE NOT NULL,
    example BIGINT NOT NULL,
    PRIMARY KEY (facility, kind, code, name, unit)
);
COMMENT ON TABLE unmapped IS 'mapping worklist; no patient data';
COMMENT ON COLUMN unmapped.kind IS 'code | unit | order';
COMMENT ON COLUMN unmapped.example IS 'inbox id';

CREATE TABLE mapping_version (
    id INTEGER GENERATED ALWAYS AS IDENTITY,
    digest TEXT NOT NULL,
    label TEXT NOT NULL,
    recorded TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (digest)
);
COMMENT ON COLUMN mapping_version.digest IS 'digest of mapping files, profile and code maps';

CREATE TABLE zstd_dictionary (
    id SMALLSERIAL NOT NULL,
    data BYTEA NOT NULL,
    PRIMARY KEY (id)
);

CREATE TABLE audit_entry (
    chain TEXT NOT NULL,
    number BIGINT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    entry TEXT NOT NULL,
    hash BYTEA NOT NULL,
    PRIMARY KEY (chain, number)
);
CREATE INDEX audit_entry_at ON audit_entry (at);
COMMENT ON COLUMN audit_entry.chain IS 'one chain per writer process';
COMMENT ON COLUMN audit_entry.entry IS 'canonical JSON: who, role, facility, action, patient, outcome';
COMMENT ON COLUMN audit_entry.hash IS 'SHA-256 of previous hash + entry';

CREATE TABLE ledger (
    chain TEXT NOT NULL,
    number BIGINT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    kind TEXT NOT NULL,
    person TEXT COLLATE "C",
    facility TEXT NOT NULL,
    orderable TEXT,
    outcome TEXT,
    entry TEXT NOT NULL,
    hash BYTEA NOT NULL,
    PRIMARY KEY (chain, number)
);
CREATE INDEX ledger_at ON ledger (at);
COMMENT ON COLUMN ledger.kind IS 'reminder | no-answer | feedback';
COMMENT ON COLUMN ledger.entry IS 'canonical JSON of the decision with evidence and versions';

-- Bodies are zstd already: no second compression.
ALTER TABLE resource ALTER COLUMN body SET STORAGE EXTERNAL;
ALTER TABLE resource_history ALTER COLUMN body SET STORAGE EXTERNAL;
ALTER TABLE inbox ALTER COLUMN raw SET STORAGE EXTERNAL;
