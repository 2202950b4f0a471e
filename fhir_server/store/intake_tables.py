"""Tables of other ways in than connections: polled databases and where each poll stands, relays and what they sent."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, SmallInteger, Table, Text, text

from fhir_server.store.columns import Time, metadata

poll = Table(
    "poll",
    metadata,
    Column("facility", Text, primary_key=True),
    Column("name", Text, primary_key=True, comment="of the poll in the profile, the channel of its messages"),
    Column("position", Text, comment="the greatest watermark that was seen (mappings.polls.written)"),
    Column("rows", BigInteger, nullable=False, server_default=text("0"), comment="rows read"),
    Column("messages", BigInteger, nullable=False, server_default=text("0"), comment="messages stored"),
    Column("unmarked", BigInteger, comment="rows without a watermark, which are never read; null with a flag"),
    Column("looked", Time, comment="when the last look ended well"),
    Column("seen", Time, nullable=False, comment="last sign of life, by the clock of the database"),
    Column("fault", Text, comment="why nothing is read now; no patient data"),
    Column("fault_since", Time),
    comment="polled databases; no patient data",
)

poll_report = Table(
    "poll_report",
    metadata,
    Column("facility", Text, primary_key=True),
    Column("poll", Text, primary_key=True),
    Column("report", LargeBinary, primary_key=True, comment="digest of what tells the report apart"),
    Column("digest", LargeBinary, nullable=False, comment="of its rows when its last message was stored"),
    Column(
        "mark",
        Text(collation="C"),
        nullable=False,
        comment="greatest watermark of its rows; with a flag: when it was read",
    ),
    Index("poll_report_mark", "facility", "poll", "mark"),
    comment="reports inside the overlap of a poll, so that none is stored twice; digests only",
)

relay = Table(
    "relay",
    metadata,
    Column("facility", Text, primary_key=True),
    Column("relay", Text, primary_key=True, comment="id that its queue drew"),
    Column("name", Text, nullable=False),
    Column("version", Text, nullable=False, comment="of its program"),
    Column("address", Text, nullable=False, comment="it came from"),
    Column("seen", Time, nullable=False, comment="last word, by the clock of the database"),
    Column("offset_ms", Integer, comment="what has to be added to its clock, as last measured"),
    Column("waiting", BigInteger, nullable=False, comment="messages in its queue when it spoke"),
    Column("dead", BigInteger, nullable=False, comment="messages it gave up"),
    Column("oldest", Time, comment="when the oldest that waits came, by its clock"),
    Column("messages", BigInteger, nullable=False, comment="taken from it"),
    comment="relays; no patient data",
)

relayed = Table(
    "relayed",
    metadata,
    Column("facility", Text, primary_key=True),
    Column("relay", Text, primary_key=True),
    Column("seq", BigInteger, primary_key=True, comment="number in the queue of the relay"),
    Column("sha256", LargeBinary, nullable=False, comment="of the bytes as relayed"),
    Column("shard", SmallInteger, nullable=False),
    Column("inbox", BigInteger, nullable=False, comment="inbox id; of a file, that of its first message"),
    Column("received_at", Time, nullable=False, comment="by the clock of the relay"),
    Column(
        "offset_ms", Integer, comment="what had to be added to that clock then, as last measured; null: never measured"
    ),
    Column("stored_at", Time, nullable=False),
    Index("relayed_inbox", "inbox"),
    comment="messages that came through relays, each once; no patient data",
)
