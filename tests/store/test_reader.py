"""fhir_server.store.reader: what was stored comes back, byte for byte, by every way of reading."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeVar

import asyncpg
import psycopg
import pytest

from fhir_server.store import reader, repository
from fhir_server.store.body import Codec
from fhir_server.store.change import Origin
from mappings.model import Tier
from tests.store import county

T = TypeVar("T")
Conn = psycopg.Connection[Any]


def ask(url: str, question: Callable[[Any], Awaitable[T]]) -> T:
    async def run() -> T:
        connection = await asyncpg.connect(url)
        try:
            return await question(connection)
        finally:
            await connection.close()

    return asyncio.run(run())


def test_reads_the_bytes_that_were_stored(database_url: str, conn: Conn, codec: Codec) -> None:
    changes = repository.apply(conn, codec, [(county.origin(7), county.report("1", "R1", {"GLU": "6.30"}, at=0))])
    conn.commit()
    change = next(c for c in changes if c.resource_type == "Observation")
    found = ask(database_url, lambda db: reader.read(db, codec, "Observation", change.id))
    assert found is not None
    assert found.body == change.body
    assert (found.version, found.updated, found.deleted, found.stale) == (1, change.updated, False, False)
    assert (found.shard, found.patient, found.inbox, found.mapping) == (change.shard, change.patient, 7, 1)
    assert ask(database_url, lambda db: reader.read(db, codec, "Observation", "unknown")) is None
    assert ask(database_url, lambda db: reader.read(db, codec, "Patient", change.id)) is None


def test_reads_ids_given_by_clients_and_ids_that_only_look_derived(database_url: str, conn: Conn, codec: Codec) -> None:
    origin = Origin("county", None, None, county.NOON)
    for given in ("o-1", "0" * 24):
        resource = {"resourceType": "Observation", "id": given, "subject": {"reference": "Patient/p"}}
        repository.put(conn, codec, resource, origin=origin)
    conn.commit()
    for given in ("o-1", "0" * 24):
        found = ask(database_url, lambda db, given=given: reader.read(db, codec, "Observation", given))
        assert found is not None
        assert found.id == given
    many = ask(
        database_url,
        lambda db: reader.read_many(db, codec, [("Observation", "o-1"), ("Observation", "0" * 24), ("Patient", "p")]),
    )
    assert set(many) == {("Observation", "o-1"), ("Observation", "0" * 24)}


def test_reads_each_version_and_tells_deleted_and_stale_ones(database_url: str, conn: Conn, codec: Codec) -> None:
    logical = county.observation_id("1", "R1", "GLU")
    repository.apply(conn, codec, [(county.origin(1), county.report("1", "R1", {"GLU": "6.3"}, at=5))])
    late = county.report("1", "R1", {"GLU": "6.1"}, at=1, tier=Tier.PRELIMINARY)
    repository.apply(conn, codec, [(county.origin(2, minute=1), late)])
    repository.delete(conn, codec, "Observation", logical, origin=county.origin(3, minute=2))
    conn.commit()

    async def versions(db: Any) -> list[reader.Stored | None]:
        return [await reader.vread(db, codec, "Observation", logical, n) for n in (1, 2, 3, 4, 2**40)]

    first, second, third, none, huge = ask(database_url, versions)
    assert first is not None
    assert second is not None
    assert third is not None
    assert (first.version, first.stale, first.deleted) == (1, False, False)
    assert (second.version, second.stale) == (2, True)
    assert (third.version, third.deleted, third.body) == (3, True, b"")
    assert none is huge is None
    past = ask(database_url, lambda db: reader.history(db, codec, "Observation", logical))
    assert [v.version for v in past] == [3, 2, 1]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_history_of_one_resource_begins_with_its_current_version(
    database_url: str, conn: Conn, codec: Codec, size: int
) -> None:
    logical = county.observation_id("1", "R1", "GLU")
    for n, at in enumerate((5, 7, 1, 2)):
        repository.apply(conn, codec, [(county.origin(n), county.report("1", "R1", {"GLU": str(at)}, at=at))])
    conn.commit()

    async def pages(db: Any) -> list[tuple[int, bool]]:
        out: list[reader.Stored] = []
        while page := await reader.history(
            db, codec, "Observation", logical, before=out[-1].seq if out else None, count=size
        ):
            out += page
        return [(s.version, s.stale) for s in out]

    assert ask(database_url, pages) == [(2, False), (4, True), (3, True), (1, False)]


def test_pages_through_the_history_of_one_resource_of_a_type_and_of_everything(
    database_url: str, conn: Conn, codec: Codec
) -> None:
    logical = county.patient_id("1")
    for n in range(5):
        message = [county.patient("1", name=f"n{n}", at=n), county.practitioner(str(n))]
        repository.apply(conn, codec, [(county.origin(n, minute=n), message)])
    conn.commit()

    async def pages(db: Any, *which: str) -> list[tuple[str, str, int]]:
        out: list[reader.Stored] = []
        while page := await reader.history(db, codec, *which, before=out[-1].seq if out else None, count=2):
            assert len(page) <= 2
            out += page
        assert [s.seq for s in out] == sorted((s.seq for s in out), reverse=True)
        return [(s.resource_type, s.id, s.version) for s in out]

    one = ask(database_url, lambda db: pages(db, "Patient", logical))
    assert [version for _, _, version in one] == [5, 4, 3, 2, 1]
    assert ask(database_url, lambda db: pages(db, "Patient")) == one
    whole = ask(database_url, pages)
    assert len(whole) == len(set(whole)) == 10
    recent = ask(
        database_url,
        lambda db: reader.history(db, codec, since=county.NOON + timedelta(minutes=3)),
    )
    assert len(recent) == 4


def test_a_feed_of_a_type_leaves_out_what_never_was_current(database_url: str, conn: Conn, codec: Codec) -> None:
    repository.apply(conn, codec, [(county.origin(1), county.report("1", "R1", {"GLU": "6.3"}, at=5))])
    late = county.report("1", "R1", {"GLU": "6.1"}, at=1, tier=Tier.PRELIMINARY)
    repository.apply(conn, codec, [(county.origin(2, minute=1), late)])
    conn.commit()
    feed = ask(database_url, lambda db: reader.history(db, codec, "Observation"))
    assert [(s.version, s.stale) for s in feed] == [(1, False)]
