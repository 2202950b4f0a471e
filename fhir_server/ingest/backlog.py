"""The state of the work, for people and for /metrics: queue, holds, last messages, workers. One cheap statement each.

The statements take no parameters, so that asyncpg and psycopg both run them. The oldest message of a channel is the first one in the
index of waiting messages; the number is counted up to MOST a channel, so a long backlog costs no long scan.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from fhir_server.ingest.sign_of_life import IMAGES, RETIRED

MOST: Final = 100_000

QUEUE: Final = f"""
WITH RECURSIVE channels AS (
    (SELECT lane, facility, channel FROM inbox WHERE status = 'ready' ORDER BY lane, facility, channel LIMIT 1)
    UNION ALL
    SELECT n.lane, n.facility, n.channel FROM channels c CROSS JOIN LATERAL (
        SELECT lane, facility, channel FROM inbox
        WHERE status = 'ready' AND (lane, facility, channel) > (c.lane, c.facility, c.channel)
        ORDER BY lane, facility, channel LIMIT 1) n
), parts AS (
    SELECT c.lane, c.facility, c.channel, n.number, o.received_at
    FROM channels c CROSS JOIN LATERAL (
        SELECT count(*) AS number FROM (
            SELECT FROM inbox WHERE status = 'ready' AND lane = c.lane AND facility = c.facility AND channel = c.channel
            LIMIT {MOST}) x
    ) n CROSS JOIN LATERAL (
        SELECT received_at FROM inbox
        WHERE status = 'ready' AND lane = c.lane AND facility = c.facility AND channel = c.channel ORDER BY id LIMIT 1) o
    UNION ALL
    SELECT lane, facility, channel, count(*), min(received_at) FROM inbox WHERE status = 'claimed'
    GROUP BY lane, facility, channel
)
SELECT facility, channel, CASE lane WHEN 0 THEN 'live' ELSE 'backfill' END, least(sum(number), {MOST})::bigint,
       greatest(0, extract(epoch FROM clock_timestamp() - min(received_at)))::double precision
FROM parts GROUP BY lane, facility, channel ORDER BY facility, channel, lane
"""  # noqa: S608 - a number of our own
"""facility, channel, lane (live, backfill), messages (at most MOST), age of the oldest in seconds."""

HELD: Final = """
SELECT facility, coalesce(reason, ''), count(*) FROM inbox WHERE status = 'held' GROUP BY 1, 2 ORDER BY 1, 2
"""
"""facility, reason (issue key), messages."""

FEEDS: Final = """
SELECT facility, channel, extract(epoch FROM received_at)::double precision,
       greatest(0, extract(epoch FROM clock_timestamp() - received_at))::double precision
FROM feed ORDER BY facility, channel
"""
"""facility, channel, Unix time of its last message, its age in seconds."""

SUBSCRIPTIONS: Final = "SELECT status, count(*), sum(events - sent)::bigint FROM subscription GROUP BY status"
"""Subscriptions by status, and their events not delivered."""

DELIVERIES: Final = """
SELECT facility, destination, status, count(*),
       greatest(0, extract(epoch FROM clock_timestamp() - min(created)))::double precision
FROM (SELECT facility, destination, status, created FROM delivery WHERE status = 'waiting'
      UNION ALL SELECT facility, destination, status, created FROM delivery WHERE status = 'dead') d
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""
"""receiving facility, destination, status (waiting, dead), messages, age of the oldest in seconds."""

PIXELS: Final = f"""
SELECT facility, archive, pixels, count(*) FROM (
    (SELECT facility, archive, pixels FROM image_object WHERE pixels = 'waiting' LIMIT {MOST})
    UNION ALL (SELECT facility, archive, pixels FROM image_object WHERE pixels = 'dead' LIMIT {MOST})) o
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""  # noqa: S608 - a number of our own
"""facility, archive, status (waiting, dead: given up), DICOM objects whose pixels have not reached the archive."""

ARCHIVES: Final = """
SELECT facility, archive, extract(epoch FROM asked)::double precision,
       greatest(0, extract(epoch FROM clock_timestamp() - asked))::double precision, coalesce(reason, '')
FROM archive_poll ORDER BY facility, archive
"""
"""facility, polled archive, Unix time of its last whole answer, its age in seconds, why the last round failed (empty: it did not)."""
POLLS: Final = """
SELECT facility, name, extract(epoch FROM looked)::double precision,
       greatest(0, extract(epoch FROM clock_timestamp() - looked))::double precision,
       greatest(0, extract(epoch FROM clock_timestamp() - seen))::double precision,
       coalesce(fault, ''), greatest(0, extract(epoch FROM clock_timestamp() - fault_since))::double precision,
       rows, messages, coalesce(unmarked, 0)
FROM poll ORDER BY facility, name
"""
"""facility, poll, Unix time and age of the last good look, seconds since the last sign of life, fault and for how long (None: none),
rows read and messages stored ever, rows without a watermark."""
POLLER_ALIVE_WITHIN: Final = 120.0
"""A poller that gave a sign of life in so many seconds lives; it waits up to a minute between two attempts."""

RELAYS: Final = """
SELECT facility, name, relay, extract(epoch FROM seen)::double precision,
       greatest(0, extract(epoch FROM clock_timestamp() - seen))::double precision, offset_ms, waiting, dead, messages
FROM relay WHERE seen > clock_timestamp() - interval '90 days' ORDER BY facility, name, relay
"""
"""facility, name, id, Unix time of its last word and its age in seconds, clock offset in ms (null: unknown), messages that wait
there or were given up when it spoke, messages taken from it."""

WORKERS: Final = """
SELECT name, version, extract(epoch FROM clock_timestamp() - started)::double precision,
       greatest(0, extract(epoch FROM clock_timestamp() - seen))::double precision, counts::text
FROM worker ORDER BY started, name
"""
"""name, version, age in seconds, seconds since the last sign of life, counts (sign_of_life.Counts as JSON text)."""
ALIVE_WITHIN: Final = 30.0
"""A worker that gave a sign of life in so many seconds lives."""

DATABASE: Final = """
SELECT pg_database_size(current_database())::bigint, current_setting('server_version'),
       coalesce((SELECT version_num FROM alembic_version), '')
"""
"""Bytes, version of PostgreSQL, revision of the schema."""


def alive(workers: Iterable[Sequence[Any]]) -> int:
    """How many of the rows of WORKERS tell of a worker that lives."""
    return sum(row[0] != RETIRED and not row[0].startswith(IMAGES) and row[3] <= ALIVE_WITHIN for row in workers)


def faulty(row: Sequence[Any]) -> bool:
    """Whether a row of POLLS tells of a poll that reads nothing now."""
    return bool(row[5]) or row[4] > POLLER_ALIVE_WITHIN
