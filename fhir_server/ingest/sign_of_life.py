"""What a worker tells of itself (table ``worker``): that it lives, and its totals of telemetry.WORKER_METRICS.

Each worker writes its own row every few seconds, outside of any batch, so there is no row that two processes fight for. Rows of workers
that are gone are added up in the row ``retired``; the sum over all rows never falls. A worker that is killed takes the counts since its
last sign of life with it (at most EVERY seconds): the messages are not concerned, only these numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson
import psycopg

from fhir_server import telemetry

EVERY: Final = 5.0
"""Seconds between two signs of life."""
RETIRED: Final = "retired"
IMAGES: Final = "images/"
"""Begins the name of the image process, which is no worker."""
_GONE_AFTER: Final = "1 hour"

Counts = dict[str, float]
"""Sample name and labels (JSON text of ``[name, {label: value}]``) -> total."""


def counts() -> Counts:
    """The totals of this process."""
    return {
        orjson.dumps([sample.name, sample.labels]).decode(): sample.value
        for metric in telemetry.WORKER_METRICS
        for family in metric.collect()
        for sample in family.samples
        if sample.value
    }


def add(parts: Iterable[Mapping[str, float]]) -> Counts:
    """The sum of totals."""
    out: Counts = {}
    for part in parts:
        for key, value in part.items():
            out[key] = out.get(key, 0.0) + value
    return out


class SignOfLife:
    """The row of one worker process."""

    def __init__(self, name: str, version: str) -> None:
        self._name = name
        self._version = version
        self._written: Counts = {}
        self._retired: Counts = {}

    def begin(self, conn: psycopg.Connection[Any]) -> None:
        """Shows that the worker lives, and adds up the rows of those that are gone. ``conn`` is in autocommit mode."""
        self.give(conn)
        with conn.transaction():
            _retire(conn, f"seen < clock_timestamp() - interval '{_GONE_AFTER}'")

    def give(self, conn: psycopg.Connection[Any]) -> None:
        """Writes the totals and the time, by the database's clock."""
        now = counts()
        if self._update(conn, now) == 0:
            # The row was taken for one of a worker that is gone: what it said stands in the row of the retired.
            self._retired = self._written
            conn.execute(
                "INSERT INTO worker (name, version, started, seen, counts)"
                " VALUES (%s, %s, clock_timestamp(), clock_timestamp(), %s::jsonb) ON CONFLICT (name) DO NOTHING",
                (self._name, self._version, self._own(now)),
            )
        self._written = now

    def live(self, conn: psycopg.Connection[Any]) -> None:
        """Only the time: for the thread that speaks for a worker in a long batch."""
        conn.execute("UPDATE worker SET seen = clock_timestamp() WHERE name = %s", (self._name,))

    def end(self, conn: psycopg.Connection[Any]) -> None:
        """The last totals; the row goes."""
        self.give(conn)
        with conn.transaction():
            _retire(conn, "name = %s", self._name)

    def _update(self, conn: psycopg.Connection[Any], now: Counts) -> int:
        return conn.execute(
            "UPDATE worker SET seen = clock_timestamp(), counts = %s::jsonb WHERE name = %s",
            (self._own(now), self._name),
        ).rowcount

    def _own(self, now: Counts) -> str:
        return orjson.dumps({key: value - self._retired.get(key, 0.0) for key, value in now.items()}).decode()


def _retire(conn: psycopg.Connection[Any], condition: str, *arguments: object) -> None:
    """Moves the counts of rows into the row of the retired, in the caller's transaction."""
    conn.execute(
        "INSERT INTO worker (name, version, started, seen, counts)"
        " VALUES (%s, '', clock_timestamp(), clock_timestamp(), '{}') ON CONFLICT (name) DO NOTHING",
        (RETIRED,),
    )
    row = conn.execute("SELECT counts FROM worker WHERE name = %s FOR UPDATE", (RETIRED,)).fetchone()
    assert row is not None
    gone = conn.execute(
        f"DELETE FROM worker WHERE name <> %s AND {condition} RETURNING counts",  # noqa: S608 - two fixed texts
        (RETIRED, *arguments),
    ).fetchall()
    if gone:
        conn.execute(
            "UPDATE worker SET counts = %s::jsonb WHERE name = %s",
            (orjson.dumps(add([row[0], *(g[0] for g in gone)])).decode(), RETIRED),
        )
