"""Tables of images: objects received and their studies until they are in the inbox, and how far each archive was read."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, SmallInteger, Table, Text, text

from fhir_server.store.columns import Time, metadata

image_object = Table(
    "image_object",
    metadata,
    Column("shard", SmallInteger, primary_key=True),
    Column("facility", Text, primary_key=True),
    Column("study", Text(collation="C"), primary_key=True, comment="Study Instance UID"),
    Column("instance", Text(collation="C"), primary_key=True, comment="SOP Instance UID"),
    Column("series", Text(collation="C"), nullable=False, comment="Series Instance UID"),
    Column("channel", Text, nullable=False, comment="name of the image source or archive in the profile"),
    Column("received_at", Time, nullable=False),
    Column("digest", LargeBinary, nullable=False, comment="SHA-256 of the header bytes"),
    Column("header", LargeBinary, nullable=False, comment="zstd of the bytes as received, up to the pixels"),
    Column("size", BigInteger, nullable=False, comment="bytes of the whole object"),
    Column("pixels", Text, nullable=False, comment="kept (file) | waiting (to be sent on) | sent | dead | dropped"),
    Column("content", LargeBinary, comment="SHA-256 of the whole object; null where its pixels were dropped"),
    Column("place", Text, comment="file that holds the object, relative to the folder of its source"),
    Column("archive", Text, comment="name of the archive its pixels go to"),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("due", Time, comment="not to be sent on before"),
    Column("reason", Text, comment="why the last attempt failed; no patient data"),
    Index("image_object_instance", "facility", "instance"),
    Index("image_object_waiting", "facility", "archive", "due", postgresql_where=text("pixels = 'waiting'")),
    Index("image_object_dead", "facility", "archive", postgresql_where=text("pixels = 'dead'")),
)

image_study = Table(
    "image_study",
    metadata,
    Column("shard", SmallInteger, primary_key=True),
    Column("facility", Text, primary_key=True),
    Column("study", Text(collation="C"), primary_key=True, comment="Study Instance UID"),
    Column("channel", Text, nullable=False, comment="that brought its last object"),
    Column("version", BigInteger, nullable=False, comment="grows with every group of objects"),
    Column("due", Time, comment="when it counts as quiet and goes to the inbox; null: it is there"),
    Column("packed", Time, comment="when it last went to the inbox"),
    Index("image_study_due", "due", postgresql_where=text("due IS NOT NULL")),
)

archive_poll = Table(
    "archive_poll",
    metadata,
    Column("facility", Text, primary_key=True),
    Column("archive", Text, primary_key=True, comment="name in the profile"),
    Column("day", Text, nullable=False, comment="studies before this day (YYYY-MM-DD) were all seen"),
    Column("asked", Time, nullable=False, comment="when the archive last answered"),
    Column("reason", Text, comment="why the last round failed; null when it did not"),
    comment="how far each archive was read; no patient data",
)

archive_study = Table(
    "archive_study",
    metadata,
    Column("shard", SmallInteger, primary_key=True),
    Column("facility", Text, primary_key=True),
    Column("archive", Text, primary_key=True),
    Column("study", Text(collation="C"), primary_key=True),
    Column("day", Text, nullable=False, comment="Study Date, or the day it was first seen"),
    Column("instances", Integer, nullable=False, comment="number of instances when it was last fetched"),
    Column(
        "told",
        Text,
        nullable=False,
        server_default="",
        comment="digest of whose it is and of which order, as told with it",
    ),
    Column("fetched", Time, comment="null: seen, not fetched yet"),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("due", Time, comment="not to be fetched before"),
    Index("archive_study_open", "facility", "archive", "due", postgresql_where=text("fetched IS NULL")),
)
