"""Tables of subscriptions: who is told of what, and the events each of them has."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, SmallInteger, Table, Text, text
from sqlalchemy.dialects.postgresql import ARRAY

from fhir_server.store.columns import Id, Time, metadata

subscription = Table(
    "subscription",
    metadata,
    Column("id", Id, primary_key=True, comment="of the Subscription resource"),
    Column("version", Integer, nullable=False, comment="version of the resource that these columns were read from"),
    Column("subject", Text, nullable=False, comment="who subscribed: user or client"),
    Column("role", Text, nullable=False),
    Column("facility", Text, nullable=False),
    Column("scopes", Text, nullable=False, comment="SMART scopes of the token he subscribed with"),
    Column("patient", Text, nullable=False, comment="the one patient of that token; empty: none"),
    Column(
        "known", Text, nullable=False, comment="account | client | token: what must still stand when something is sent"
    ),
    Column("topic", Text, nullable=False, comment="canonical URL; empty: a query of one type"),
    Column("types", ARRAY(SmallInteger), nullable=False, comment="types of resources it is about"),
    Column("criteria", ARRAY(Text), nullable=False, comment="<Type>?<query>, all of which must hold"),
    Column("status", Text, nullable=False, comment="requested | active | error | off"),
    Column("content", Text, nullable=False, comment="empty | id-only | full-resource"),
    Column("mime", Text, nullable=False, comment="media type of what is sent; empty: nothing is"),
    Column("endpoint", Text, nullable=False),
    Column("headers", ARRAY(Text), nullable=False, comment="HTTP headers as given; may hold a secret"),
    Column("heartbeat", Integer, comment="seconds; null: none"),
    Column("timeout", Integer, nullable=False, comment="seconds"),
    Column("most", Integer, nullable=False, comment="events in one notification"),
    Column("ends", Time),
    Column("events", BigInteger, nullable=False, server_default=text("0"), comment="number of the last event"),
    Column("sent", BigInteger, nullable=False, server_default=text("0"), comment="number of the last one delivered"),
    Column("failures", Integer, nullable=False, server_default=text("0"), comment="attempts that failed in a row"),
    Column("due", Time, nullable=False, comment="nothing is sent before"),
    Column("contacted", Time, comment="when the endpoint last took something"),
    Column("reason", Text, comment="why the last attempt failed; no patient data"),
    Column("created", Time, nullable=False),
    Index("subscription_due", "due", postgresql_where=text("status IN ('requested', 'active')")),
    comment="what the sender of notifications needs of each Subscription",
)

subscription_event = Table(
    "subscription_event",
    metadata,
    Column("subscription", Id, primary_key=True),
    Column("number", BigInteger, primary_key=True, comment="1, 2, 3 ... for each subscription"),
    Column("at", Time, nullable=False),
    Column("rtype", SmallInteger, nullable=False),
    Column("focus", Id, nullable=False, comment="logical id of the resource it is about"),
    Column("version", Integer, nullable=False, comment="its version then"),
    Column("gone", SmallInteger, nullable=False, comment="1: it was deleted"),
    Index("subscription_event_at", "at"),
    comment="events of subscriptions in order; no patient data but logical ids",
)
