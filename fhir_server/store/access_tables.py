"""Tables of who may see what, and of the people who log in."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, LargeBinary, SmallInteger, Table, Text, text

from fhir_server.store.columns import Id, Time, metadata

treatment = Table(
    "treatment",
    metadata,
    Column("shard", SmallInteger, primary_key=True),
    Column("rtype", SmallInteger, primary_key=True, comment="type of what says so; 0: opened by break-glass"),
    Column("id", Id, primary_key=True, comment="its id; that of opened for break-glass"),
    Column(
        "facility", Text, primary_key=True, comment="facility id, Organization/<id>, or user:<subject> for break-glass"
    ),
    Column("patient", Id, nullable=False),
    Column(
        "until",
        Time,
        nullable=False,
        comment="when the visit ended or the order was made; of an open visit a later time",
    ),
    Index("treatment_patient", "shard", "patient"),
    Index("treatment_facility", "facility", "until"),
    comment="who treats whom: visits, orders, referrals, and what was opened by break-glass",
)

consent_rule = Table(
    "consent_rule",
    metadata,
    Column("shard", SmallInteger, primary_key=True),
    Column("id", Id, primary_key=True, comment="the Consent"),
    Column("ordinal", SmallInteger, primary_key=True),
    Column("patient", Id, nullable=False),
    Column("facility", Text, nullable=False, comment="as treatment.facility; empty: everybody"),
    Column("permit", Boolean, nullable=False),
    Column("low", Time, nullable=False),
    Column("high", Time, nullable=False, comment="exclusive"),
    Index("consent_rule_patient", "shard", "patient"),
    comment="active Consent resources as rules: may a facility see what others hold about the patient",
)

access_refresh = Table(
    "access_refresh",
    metadata,
    Column("rules", Text, primary_key=True, comment="digest of the rules it computes by (store/access_refresh)"),
    Column("round", SmallInteger, nullable=False, server_default=text("1")),
    Column("alone", Boolean, nullable=False, server_default=text("false"), comment="at what is about no patient"),
    Column("shard", SmallInteger, nullable=False, server_default=text("0"), comment="how far this round came"),
    Column("rtype", SmallInteger, nullable=False, server_default=text("0"), comment="of the last one about no patient"),
    Column("id", Id, nullable=False, server_default=text("''"), comment="last patient, or last one about no patient"),
    Column("seen", BigInteger, nullable=False, server_default=text("0"), comment="resources looked at in this round"),
    Column("changed", BigInteger, nullable=False, server_default=text("0"), comment="resources whose rows changed"),
    Column("moved", BigInteger, nullable=False, server_default=text("0"), comment="of these in this round"),
    Column("crossing", BigInteger, nullable=False, server_default=text("0"), comment="that refer beyond their patient"),
    Column("finished", Time, comment="null: not yet"),
    comment="one row: how far what is stored follows the rules of who may see what",
)

opened = Table(
    "opened",
    metadata,
    Column("id", Id, primary_key=True),
    Column("kind", Text, nullable=False, comment="break-glass | case"),
    Column("at", Time, nullable=False),
    Column("until", Time, nullable=False),
    Column("subject", Text, nullable=False, comment="who opened it"),
    Column("facility", Text, nullable=False),
    Column("shard", SmallInteger, nullable=False),
    Column("patient", Id, nullable=False),
    Column("reason", Text, nullable=False),
    Column("reviewed", Time, comment="null: waits for review"),
    Column("reviewer", Text),
    Column("verdict", Text, comment="justified | unjustified"),
    Index("opened_subject", "subject", "until"),
    Index("opened_waiting", "at", postgresql_where=text("reviewed IS NULL")),
    comment="records opened with a reason: by clinicians (break-glass), by auditors (a case)",
)

account = Table(
    "account",
    metadata,
    Column("subject", Text, primary_key=True, comment="log-in name"),
    Column("name", Text, nullable=False),
    Column("facility", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column(
        "scopes", Text, nullable=False, comment="SMART scopes he may give an app; empty: the default ones of the role"
    ),
    Column("password", Text, nullable=False, comment="Argon2id"),
    Column("totp", Text, nullable=False, comment="secret of one-time passwords; empty: none"),
    Column("totp_step", BigInteger, nullable=False, comment="time step of the last one-time password used"),
    Column("failures", SmallInteger, nullable=False),
    Column("locked_until", Time),
    Column("active", Boolean, nullable=False),
    Column("created", Time, nullable=False),
    Column("fhir_user", Text, nullable=False, server_default="", comment="Practitioner/<id>; empty: none"),
    comment="people who log in at the built-in authorization server",
)

login_grant = Table(
    "login_grant",
    metadata,
    Column("digest", LargeBinary, primary_key=True, comment="SHA-256 of the code or refresh token"),
    Column("kind", Text, nullable=False, comment="code | refresh"),
    Column("family", Text, nullable=False, comment="the log-in it came from"),
    Column("subject", Text, nullable=False),
    Column("client", Text, nullable=False),
    Column("redirect_uri", Text, nullable=False),
    Column("scope", Text, nullable=False),
    Column("challenge", Text, nullable=False, comment="PKCE, of a code"),
    Column("patient", Text, nullable=False),
    Column("until", Time, nullable=False),
    Column("used", Boolean, nullable=False),
    Column("nonce", Text, nullable=False, server_default="", comment="of the id token, of a code"),
    Index("login_grant_family", "family"),
    Index("login_grant_subject", "subject"),
    Index("login_grant_until", "until"),
    comment="authorization codes and refresh tokens, each good once",
)

used_assertion = Table(
    "used_assertion",
    metadata,
    Column("client", Text, primary_key=True),
    Column("jti", Text, primary_key=True),
    Column("until", Time, nullable=False),
    Index("used_assertion_until", "until"),
    comment="client assertions that came already, until they end",
)
