"""Results, orders and what the audit needs beside them as Parquet files, written by DuckDB, for a province's own tools.

Pseudonymised (docs/parquet.md): logical ids stay, so that a finding can be followed home; names, numbers and dates of birth never were
in these rows; order numbers become digests, words of results are left out, sensitive items too unless asked for. One part of the shards
at a time is written through a temporary file, so that memory does not grow with the database.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path
from typing import Any, Final

import duckdb
import orjson
import psycopg

from conformance.capability import RESOURCE_TYPES
from fhir_server.duplicates import said, studies
from fhir_server.duplicates.earlier import Earlier, Facts
from fhir_server.duplicates.orders import Chunk, Placed, read_orders, read_reports
from fhir_server.duplicates.visits import with_visits
from fhir_server.recognition.rules import Rules
from fhir_server.store.body import Codec
from mappings.profile import Profile

FORMAT: Final = "2"
PARTS: Final = 16
_MEMORY: Final = "512MB"
_SHORT: Final = 16
"""Longest text of a result that is kept: 阴性(-), 1:160, 弱阳性. Longer ones may tell who somebody is."""
LEFT_OUT: Final = "…"

_OBSERVATION: Final = RESOURCE_TYPES["Observation"]
_TYPES: Final = {
    "version": "INTEGER", "shard": "SMALLINT", "health_check": "BOOLEAN", "made_us": "BIGINT", "deleted": "BOOLEAN",
    **dict.fromkeys(("effective", "issued", "recorded", "until"), "TIMESTAMP"),
}  # fmt: skip
RESULT_COLUMNS: Final = (*(f for f in Earlier._fields if f != "facts"), *Facts._fields, "made_us", "asked", "deleted")
_TIMES: Final = ("effective", "issued", "recorded", "until")

# Every version of every result that is or was current: the relation ``dated`` and ``undated`` of candidates.sql in one.
_RESULTS: Final = """
SELECT {columns} FROM (
  SELECT v.*, k.*, coalesce(v.effective, v.issued) AS made, coalesce(k.item, 'loinc:' || k.loinc) AS asked FROM (
    SELECT r.id, r.version, r.shard, r.patient, r.parent AS report, r."order", coalesce(r.start_at, r.effective_at) AS effective,
      coalesce(r.issued_at, r.reported_at) AS issued, r.updated AS recorded, NULL::timestamptz AS until, r.number, r.value_text,
      r.deleted, r.sensitivity, r.tokens[1] AS kind
    FROM resource r WHERE r.rtype = {rtype} AND r.patient IS NOT NULL AND mod(r.shard, {parts}) = {part}
    UNION ALL
    SELECT h.id, h.version, h.shard, h.patient, h.parent, h."order", h.effective, h.issued, h.updated, h.until, h.number, h.value_text,
      h.deleted, h.sensitivity, h.kind
    FROM resource_history h WHERE h.rtype = {rtype} AND h.kind IS NOT NULL AND mod(h.shard, {parts}) = {part}) v
  JOIN (SELECT id AS kind_id, {facts} FROM resource_kind) k ON k.kind_id = v.kind
  WHERE {sensitive} OR v.sensitivity IS NULL) x
WHERE made IS NULL OR made < {end}"""
_LINKS: Final = """
SELECT person, shard, patient, recorded AT TIME ZONE 'UTC', until AT TIME ZONE 'UTC', grade FROM identity_link"""
LINK_COLUMNS: Final = ("person", "shard", "patient", "recorded", "until", "grade")
_IMAGED: Final = """
SELECT DISTINCT r.shard, r.parent FROM resource r JOIN resource_kind k ON k.id = r.tokens[1]
WHERE r.rtype = %s AND r.parent IS NOT NULL AND k.item = ANY(%s) AND mod(r.shard, %s) = %s"""

ORDERS: Final = {
    "number": "BIGINT", "shard": "SMALLINT", "id": "VARCHAR", "report": "VARCHAR", "patient": "VARCHAR", "facility": "VARCHAR",
    "orderable": "VARCHAR", "at": "TIMESTAMP", "at_us": "BIGINT", "basis": "VARCHAR", "emergency": "BOOLEAN", "reasons": "VARCHAR[]",
    "placers": "VARCHAR[]", "doctor": "VARCHAR", "department": "VARCHAR", "surgery": "BOOLEAN",
}  # fmt: skip
"""Columns of ``orders``; ``orderable`` empty: an order of an unknown code."""
SAID: Final = {
    "at": "TIMESTAMP", "facility": "VARCHAR", "person": "VARCHAR", "orderable": "VARCHAR", "placers": "VARCHAR[]", "state": "VARCHAR",
    "reason": "VARCHAR", "refusal": "BOOLEAN", "emergency": "BOOLEAN", "patient": "VARCHAR",
}  # fmt: skip
IMAGES: Final = {
    "shard": "SMALLINT", "report": "VARCHAR", "since": "TIMESTAMP", "until": "TIMESTAMP", "images_complete": "BOOLEAN",
    "images_reachable": "BOOLEAN", "image_quality": "VARCHAR", "image_site": "VARCHAR", "image_side": "VARCHAR",
    "image_contrast": "VARCHAR", "image_views": "VARCHAR",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wanted:
    """Orders of [start, end) and every result made before its end. sensitive: also of items that need a grant; words: also long texts
    of results."""

    start: datetime
    end: datetime
    sensitive: bool = False
    words: bool = False


def export(
    conn: psycopg.Connection[Any], rules: Rules, profiles: Mapping[str, Profile], wanted: Wanted, folder: Path
) -> dict[str, int]:
    """Writes ``results``, ``links``, ``orders``, ``said`` and ``images`` below ``folder``, and about.json; number of rows of each.

    Raises FileExistsError when the folder has an export already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "about.json").exists():
        raise FileExistsError(f"{folder} has an export already; name an empty folder")
    known = rules.among(profiles)
    with conn.transaction(), duckdb.connect(config={"memory_limit": _MEMORY, "threads": 2}) as duck:
        # One view of the database for all files.
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        codec = Codec.load(conn)
        out = _Writer(conn, duck, folder)
        for part in range(PARTS):
            out.copied("results", part, _results(wanted, part), RESULT_COLUMNS)
            out.told("images", part, _images(conn, codec, known, part), IMAGES)
        out.copied("links", 0, _LINKS, LINK_COLUMNS)
        out.told("orders", 0, _orders(conn, codec, known, profiles, wanted), ORDERS)
        out.told("said", 0, (_said(s) for s in said.every(conn, known, wanted.start, wanted.end)), SAID)
        about = {
            "format": FORMAT, "start": wanted.start.isoformat(), "end": wanted.end.isoformat(), "rules": rules.version,
            "catalogue": rules.catalogue_version, "pseudonymised": not wanted.words, "sensitive": wanted.sensitive, "rows": out.rows,
        }  # fmt: skip
        (folder / "about.json").write_bytes(orjson.dumps(about, option=orjson.OPT_INDENT_2))
    return out.rows


class _Writer:
    """Parquet files of an export."""

    def __init__(self, conn: psycopg.Connection[Any], duck: duckdb.DuckDBPyConnection, folder: Path) -> None:
        self.conn, self.duck, self.folder = conn, duck, folder
        self.rows: dict[str, int] = {}

    def copied(self, name: str, part: int, query: str, columns: Sequence[str]) -> None:
        """The rows of a query of PostgreSQL."""
        types = {c: _TYPES.get(c, "VARCHAR") for c in columns}
        passing = self.folder / f".{name}.csv"
        with passing.open("wb") as file, self.conn.cursor() as cursor:
            with cursor.copy(f"COPY ({query}) TO STDOUT (FORMAT CSV)") as rows:
                for data in rows:
                    file.write(data)
            count = cursor.rowcount
        reading = f"read_csv('{passing}', header=false, auto_detect=false, delim=',', quote='\"', escape='\"', nullstr='', allow_quoted_nulls=false, columns={_struct(types)})"  # noqa: E501 - one option each
        self._write(name, part, reading, passing, count)

    def told(self, name: str, part: int, rows: Iterable[Mapping[str, Any]], types: Mapping[str, str]) -> None:
        """Rows of our own."""
        passing = self.folder / f".{name}.json"
        count = 0
        with passing.open("wb") as file:
            for row in rows:
                file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
                count += 1
        reading = f"read_json('{passing}', format='newline_delimited', columns={_struct(types)})"
        self._write(name, part, reading, passing, count)

    def _write(self, name: str, part: int, reading: str, passing: Path, count: int) -> None:
        (self.folder / name).mkdir(exist_ok=True)
        target = self.folder / name / f"part-{part:03d}.parquet"
        self.duck.execute(f"COPY (SELECT * FROM {reading}) TO '{target}' (FORMAT PARQUET, COMPRESSION ZSTD)")  # noqa: S608 - paths of our own
        passing.unlink()
        self.rows[name] = self.rows.get(name, 0) + count


def _struct(types: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"'{name}': '{kind}'" for name, kind in types.items()) + "}"


def _results(wanted: Wanted, part: int) -> str:
    shown = {name: f'x."{name}"' for name in RESULT_COLUMNS}
    shown |= {name: f"x.\"{name}\" AT TIME ZONE 'UTC'" for name in _TIMES}
    shown |= {"made_us": "(extract(epoch FROM x.made) * 1000000)::bigint", "health_check": "x.health_check = 'yes'"}
    if not wanted.words:
        shown["value_text"] = f"CASE WHEN length(x.value_text) > {_SHORT} THEN '{LEFT_OUT}' ELSE x.value_text END"
    return _RESULTS.format(
        columns=", ".join(shown.values()), rtype=_OBSERVATION, parts=PARTS, part=part, facts=", ".join(Facts._fields),
        sensitive="true" if wanted.sensitive else "false", end=f"'{wanted.end.astimezone(UTC).isoformat()}'::timestamptz",
    )  # fmt: skip


def _orders(
    conn: psycopg.Connection[Any], codec: Codec, rules: Rules, profiles: Mapping[str, Profile], wanted: Wanted
) -> Iterator[dict[str, Any]]:
    numbers = count()
    period = (wanted.start, wanted.end)
    chunks = chain(read_orders(conn, codec, rules, profiles, *period), read_reports(conn, rules, *period))
    for chunk in chunks:
        for placed in with_visits(conn, codec, chunk.placed):
            hidden = {rules.items[i].sensitivity for i in placed.orderable.required if i in rules.items} - {""}
            if wanted.sensitive or not hidden:
                yield _order(placed) | {"number": next(numbers)}
        yield from _not_understood(chunk, numbers)


def _not_understood(chunk: Chunk, numbers: Iterator[int]) -> Iterator[dict[str, Any]]:
    empty = dict.fromkeys(ORDERS)
    for one in chunk.not_understood:
        kind, _, logical = one.order.partition("/")
        key = {"id": logical, "report": ""} if kind == "ServiceRequest" else {"id": "", "report": logical}
        times = {"at": naive(one.at), "at_us": micro(one.at), "basis": one.basis}
        yield empty | {"number": next(numbers), "facility": one.facility, "orderable": ""} | key | times


def _order(placed: Placed) -> dict[str, Any]:
    at = placed.at.astimezone(UTC)
    row = {name: getattr(placed, name) for name in ORDERS if name in Placed._fields}
    return row | {
        "orderable": placed.orderable.code,
        "at": naive(at),
        "at_us": micro(at),
        "placers": [digest(p) for p in placed.placers],
    }


def _said(told: said.Said) -> dict[str, Any]:
    return told._asdict() | {"at": naive(told.at), "placers": sorted(digest(p) for p in told.placers)}


def _images(conn: psycopg.Connection[Any], codec: Codec, rules: Rules, part: int) -> Iterator[dict[str, Any]]:
    """What was known of the images of each report, from one change to the next."""
    imaging = [code for code, item in rules.items.items() if item.category == "imaging"]
    wanted = conn.execute(_IMAGED, (_OBSERVATION, imaging, PARTS, part)).fetchall()
    found = studies.read(conn, codec, wanted)
    for shard, report in wanted:
        moments = found.changes(report)
        for since, until in zip(moments, [*moments[1:], None], strict=True):
            facts = found.facts(report, since if until else None)
            yield {"shard": shard, "report": report, "since": naive(since), "until": until and naive(until), **facts}


def micro(at: datetime) -> int:
    """Microseconds since 1970-01-01 UTC, exactly."""
    past = at - datetime(1970, 1, 1, tzinfo=UTC)
    return (past.days * 86_400 + past.seconds) * 1_000_000 + past.microseconds


def naive(at: datetime) -> str:
    """UTC, written without a zone."""
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ")


def digest(number: str) -> str:
    """An order number as 32 hexadecimal digits: equal for equal numbers."""
    return hashlib.sha256(number.encode()).hexdigest()[:32]
