"""Tables of evidence: audit entries, decisions of recognition, findings of the duplicate audit."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, LargeBinary, SmallInteger, Table, Text, text
from sqlalchemy.dialects.postgresql import ARRAY

from fhir_server.store.columns import Id, Time, metadata

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
