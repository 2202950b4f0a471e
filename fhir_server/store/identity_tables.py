"""Tables of identity: facility Patients, the persons they belong to, and what was said of them when."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Date, Index, LargeBinary, SmallInteger, Table, Text, text

from fhir_server.store.columns import Id, Time, metadata

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
    Column("surviving", Id, primary_key=True),
    Column("linked", Boolean, nullable=False, comment="false after a statement that takes the merge back"),
    Column("trigger", Text, nullable=False),
    Column("stated_at", Time, nullable=False, comment="when the sender said so (MSH-7); a later statement wins"),
    Column("recorded", Time, nullable=False),
    Index("identity_merge_surviving", "surviving"),
    comment="what facilities said about their own double Patients, newest statement of each pair",
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
