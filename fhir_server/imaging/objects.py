"""Images that were received, durable before the answer, and when their studies are quiet (tables image_object, image_study)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg


@dataclass(frozen=True, slots=True)
class ImageObject:
    """One object. ``raw``: zstd of its header bytes; digest: their SHA-256; pixels, place, archive, content: see the table.

    quiet  seconds after which its study counts as quiet
    """

    shard: int
    facility: str
    channel: str
    study: str
    series: str
    instance: str
    received_at: datetime
    digest: bytes
    raw: bytes
    size: int
    pixels: str
    content: bytes | None
    place: str | None
    archive: str | None
    quiet: float


_ACCEPT = """
WITH given AS (
    SELECT * FROM unnest($1::smallint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::timestamptz[], $8::bytea[],
                         $9::bytea[], $10::bigint[], $11::text[], $12::bytea[], $13::text[], $14::text[], $15::double precision[])
        AS a(shard, facility, channel, study, series, instance, received_at, digest, header, size, pixels, content, place, archive,
             quiet)
), stored AS (
    INSERT INTO image_object AS o (shard, facility, channel, study, series, instance, received_at, digest, header, size, pixels,
                                   content, place, archive, due)
    SELECT shard, facility, channel, study, series, instance, received_at, digest, header, size, pixels, content, place, archive,
           CASE WHEN pixels = 'waiting' THEN clock_timestamp() END
    FROM given
    ON CONFLICT (shard, facility, study, instance) DO UPDATE SET
        channel = EXCLUDED.channel, series = EXCLUDED.series, received_at = EXCLUDED.received_at, digest = EXCLUDED.digest,
        header = EXCLUDED.header, size = EXCLUDED.size,
        -- A copy whose pixels nobody keeps takes nothing from those that are kept or on their way.
        (pixels, content, place, archive, due, attempts, reason) = (
            SELECT k.pixels, k.content, k.place, k.archive, k.due, k.attempts, k.reason
            FROM (VALUES (EXCLUDED.pixels, EXCLUDED.content, EXCLUDED.place, EXCLUDED.archive, EXCLUDED.due, 0, NULL::text, false),
                         (o.pixels, o.content, o.place, o.archive, o.due, o.attempts, o.reason, true))
                AS k(pixels, content, place, archive, due, attempts, reason, stays)
            WHERE k.stays = (EXCLUDED.pixels = 'dropped'))
    WHERE o.digest <> EXCLUDED.digest
       OR EXCLUDED.pixels <> 'dropped' AND (o.content IS DISTINCT FROM EXCLUDED.content OR o.pixels = 'dead')
    RETURNING o.shard, o.facility, o.study, o.instance, o.channel
), studies AS (
    INSERT INTO image_study AS s (shard, facility, study, channel, version, due)
    SELECT r.shard, r.facility, r.study, max(r.channel), 1, clock_timestamp() + make_interval(secs => max(g.quiet))
    FROM stored r JOIN given g USING (shard, facility, study, instance)
    GROUP BY r.shard, r.facility, r.study ORDER BY r.shard, r.facility, r.study
    ON CONFLICT (shard, facility, study) DO UPDATE SET
        channel = EXCLUDED.channel, version = s.version + 1, due = EXCLUDED.due
)
SELECT shard, facility, study, instance FROM stored
"""


async def accept(conn: asyncpg.Connection, rows: Sequence[ImageObject]) -> list[bool]:
    """Makes objects durable: one statement, one commit. True for each that is new or changed; False for one that is there already."""
    last = {(r.shard, r.facility, r.study, r.instance): r for r in rows}
    given = list(last.values())
    stored = await conn.fetch(
        _ACCEPT,
        [r.shard for r in given],
        [r.facility for r in given],
        [r.channel for r in given],
        [r.study for r in given],
        [r.series for r in given],
        [r.instance for r in given],
        [r.received_at for r in given],
        [r.digest for r in given],
        [r.raw for r in given],
        [r.size for r in given],
        [r.pixels for r in given],
        [r.content for r in given],
        [r.place for r in given],
        [r.archive for r in given],
        [r.quiet for r in given],
    )
    fresh = {tuple(row) for row in stored}
    return [last[key] is r and key in fresh for r in rows for key in [(r.shard, r.facility, r.study, r.instance)]]


async def settle(conn: asyncpg.Pool, studies: Sequence[tuple[int, str, str]], seconds: float) -> None:
    """An association has ended: its studies (shard, facility, study) count as quiet so many seconds from now, or before."""
    await conn.execute(
        "UPDATE image_study s SET due = least(s.due, clock_timestamp() + make_interval(secs => $4))"
        " FROM unnest($1::smallint[], $2::text[], $3::text[]) AS a(shard, facility, study)"
        " WHERE s.shard = a.shard AND s.facility = a.facility AND s.study = a.study AND s.due IS NOT NULL",
        [s[0] for s in studies],
        [s[1] for s in studies],
        [s[2] for s in studies],
        seconds,
    )


async def settle_channel(conn: asyncpg.Pool, facility: str, channel: str) -> None:
    """Nothing more comes by a channel: its studies count as quiet."""
    await conn.execute(
        "UPDATE image_study SET due = least(due, clock_timestamp()) WHERE facility = $1 AND channel = $2 AND due IS NOT NULL",
        facility,
        channel,
    )


async def kept(conn: asyncpg.Pool, facility: str, instances: Sequence[str]) -> dict[str, tuple[str, str | None]]:
    """SOP Instance UID -> (pixels, place) of objects of a facility."""
    rows = await conn.fetch(
        "SELECT instance, pixels, place FROM image_object WHERE facility = $1 AND instance = ANY($2::text[])",
        facility,
        list(instances),
    )
    return {r["instance"]: (r["pixels"], r["place"]) for r in rows}


async def places(conn: asyncpg.Pool) -> set[str]:
    """Files that wait to be sent on, or were given up."""
    rows = await conn.fetch(
        "SELECT place FROM image_object WHERE pixels IN ('waiting', 'dead') AND archive IS NOT NULL"
    )
    return {r["place"] for r in rows}
