"""Tables of what is fetched from facilities: polled databases and where each poll stands."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, LargeBinary, Table, Text, text

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
