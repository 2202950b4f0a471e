"""The duplicate audit over Parquet files (fhir_server.duplicates.parquet): the same candidate query, the same ``decide``.

An engine answers SQL over the files: DuckDB here, Spark for a province (benchmarks/audit_on_spark.py). Whatever is asked is plain SQL
that both and PostgreSQL take; times are compared as microseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Protocol

import duckdb
import orjson

from fhir_server.duplicates import detect
from fhir_server.duplicates.earlier import CANDIDATES, Earlier, Facts, asked, longest
from fhir_server.duplicates.judge import Link
from fhir_server.duplicates.orders import Chunk, Placed, Unknown
from fhir_server.duplicates.parquet import FORMAT, IMAGES, LINK_COLUMNS, ORDERS, SAID, micro
from fhir_server.duplicates.report import EVERYTHING, Report, Scope
from fhir_server.duplicates.said import Said, Spoken
from fhir_server.duplicates.studies import Studies
from fhir_server.recognition.order import single
from fhir_server.recognition.rules import Rules
from mappings.catalogue import Orderable
from mappings.profile import Profile

CHUNK: Final = 200_000
TABLES: Final = ("results", "links", "orders", "said", "images")
_MEMORY: Final = "1GB"
_DAY: Final = 86_400_000_000

_PLACED: Final = {
    "number": "BIGINT", "shard": "SMALLINT", "patient": "VARCHAR", "orderable": "VARCHAR", "at": "BIGINT", "first": "BIGINT",
}  # fmt: skip

_OWN: Final = tuple(f for f in Earlier._fields if f != "facts")
_READ: Final = ", ".join(f'r."{name}"' for name in (*_OWN, *Facts._fields))
# The relations of candidates.sql, beside ``placed`` and ``wanted``.
_VIEWS: Final = {
    "linked": """
SELECT p.number, x.shard, x.patient FROM placed p
JOIN links mine ON mine.shard = p.shard AND mine.patient = p.patient JOIN links x ON x.person = mine.person
UNION SELECT number, shard, patient FROM placed""",
    "dated": f"SELECT r.made_us AS made, r.asked, {_READ} FROM results r WHERE r.made_us IS NOT NULL",  # noqa: S608
    "undated": f"SELECT r.made_us AS made, r.asked, {_READ} FROM results r WHERE r.made_us IS NULL",  # noqa: S608
}
_LINKS: Final = f"""
SELECT {", ".join("x." + c for c in LINK_COLUMNS)} FROM links x
JOIN (SELECT DISTINCT mine.person FROM placed p JOIN links mine ON mine.shard = p.shard AND mine.patient = p.patient) m
  ON m.person = x.person"""  # noqa: S608 - columns of our own


class NotAnExport(Exception):
    """A folder that ``tongjian export`` did not write, or another version of it; the text says which."""


class Engine(Protocol):
    """SQL over Parquet."""

    def relation(self, name: str, folder: Path) -> None:
        """A name for the Parquet files of a folder. Column names are quoted as in standard SQL."""

    def view(self, name: str, query: str) -> None:
        """A name for a query; takes the place of an older one."""

    def table(self, name: str, types: Mapping[str, str], file: Path) -> None:
        """A name for the rows of a file of JSON lines, read at once. types: BIGINT, SMALLINT or VARCHAR."""

    def rows(self, query: str) -> Iterable[tuple[Any, ...]]:
        """The rows of a query; times without a zone, or aware."""


class Duck:
    """DuckDB, in this process."""

    def __init__(self) -> None:
        self._conn = duckdb.connect(config={"memory_limit": _MEMORY, "threads": 2})

    def relation(self, name: str, folder: Path) -> None:
        """See Engine."""
        self.view(name, f"SELECT * FROM read_parquet('{folder}/*.parquet')")  # noqa: S608 - a path of the caller

    def view(self, name: str, query: str) -> None:
        """See Engine."""
        self._conn.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")

    def table(self, name: str, types: Mapping[str, str], file: Path) -> None:
        """See Engine."""
        columns = ", ".join(f"'{column}': '{kind}'" for column, kind in types.items())
        reading = f"read_json('{file}', format='newline_delimited', columns={{{columns}}})"
        self._conn.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS SELECT * FROM {reading}")  # noqa: S608 - a file of our own

    def rows(self, query: str) -> Iterator[tuple[Any, ...]]:
        """See Engine."""
        found = self._conn.execute(query)
        while some := found.fetchmany(10_000):
            yield from some


def audit(
    engine: Engine,
    folder: Path,
    rules: Rules,
    profiles: Mapping[str, Profile],
    start: datetime,
    end: datetime,
    scope: Scope = EVERYTHING,
    *,
    cases: bool = False,
) -> Report:
    """The audit of the orders of [start, end) in an export, under ``rules``; ``cases`` as in detect.audit. Raises NotAnExport."""
    about = _about(folder)
    if start < datetime.fromisoformat(about["start"]) or end > datetime.fromisoformat(about["end"]):
        raise NotAnExport(f"{folder} holds orders from {about['start']} to {about['end']} only.")
    for name in TABLES:
        engine.relation(name, folder / name)
    known = rules.among(profiles)
    spoken = Spoken()
    for row in engine.rows(f"SELECT {_names('s', SAID)} FROM said s"):  # noqa: S608 - columns of our own
        named = dict(zip(SAID, row, strict=True))
        named |= {"at": _aware(named["at"]), "placers": frozenset(named["placers"] or ())}
        spoken.add(Said(**named))
    with TemporaryDirectory(prefix="tongjian-audit") as scratch:
        lake = Lake(engine, known, (micro(start), micro(end)), Path(scratch))
        return detect.judged(lake, lake.chunks(), known, profiles, spoken, (start, end), scope, cases=cases)


def _about(folder: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = orjson.loads((folder / "about.json").read_bytes())
    except (OSError, ValueError):
        raise NotAnExport(f"{folder} has no about.json: `tongjian export --parquet` writes one at its end.") from None
    if about.get("format") != FORMAT:
        raise NotAnExport(f"{folder} is of format {about.get('format')}; this program reads format {FORMAT}.")
    return about


@dataclass(slots=True)
class Lake:
    """An export as what an audit reads from (detect.Source)."""

    engine: Engine
    rules: Rules
    period: tuple[int, int]
    scratch: Path
    facts: dict[Facts, Facts] = field(default_factory=dict)

    def chunks(self) -> Iterator[Chunk]:
        """The orders of the period. A placer number is a digest here."""
        row = next(iter(self.engine.rows("SELECT max(number) FROM orders")))
        for first in range(0, (row[0] or 0) + 1 if row[0] is not None else 0, CHUNK):
            mine = f"o.number >= {first} AND o.number < {first + CHUNK}"
            query = f"SELECT {_names('o', ORDERS)} FROM orders o WHERE {mine} ORDER BY o.number"  # noqa: S608 - numbers of our own
            placed, unknown = [], []
            for values in self.engine.rows(query):
                named = dict(zip(ORDERS, values, strict=True))
                if not self.period[0] <= named["at_us"] < self.period[1]:
                    continue
                if named["orderable"]:
                    placed.append(self._placed(named))
                else:
                    order = f"ServiceRequest/{named['id']}" if named["id"] else f"DiagnosticReport/{named['report']}"
                    unknown.append(Unknown(order, named["facility"], _instant(named["at_us"]), named["basis"]))
            yield Chunk(tuple(placed), tuple(unknown))

    def _placed(self, named: dict[str, Any]) -> Placed:
        code = named["orderable"]
        orderable = self.rules.orderables.get(code) or single(self.rules.items.get(code))
        assert orderable is not None, f"the catalogue has no {code}: audit with the rules of the export"
        given = {name: named[name] for name in Placed._fields if name in named}
        given |= {"orderable": orderable, "at": _instant(named["at_us"])}
        given |= {"reasons": tuple(named["reasons"] or ()), "placers": tuple(named["placers"] or ())}
        return Placed(**given)

    def beside(self, placed: Sequence[Placed]) -> dict[int, list[Earlier]]:
        """See Source."""
        if not placed:
            return {}
        self._define(placed)
        for name, query in _VIEWS.items():
            self.engine.view(name, query)
        out: dict[int, list[Earlier]] = {}
        for row in self.engine.rows(CANDIDATES):  # placed_number, made, asked, the row
            out.setdefault(row[0], []).append(self._earlier(row[3:]))
        for found in out.values():
            found.sort(key=lambda e: (e.id, e.version))
        return out

    def _define(self, placed: Sequence[Placed]) -> None:
        """The orders asked about, as the relations ``placed`` and ``wanted``."""
        orderables: dict[str, Orderable] = {p.orderable.code: p.orderable for p in placed}
        spans = {code: longest(o, self.rules).days * _DAY for code, o in orderables.items()}
        rows = (
            (n, p.shard, p.patient, p.orderable.code, micro(p.at), micro(p.at) - spans[p.orderable.code])
            for n, p in enumerate(placed)
        )
        self._table("placed", _PLACED, rows)
        self._table("wanted", {"orderable": "VARCHAR", "asked": "VARCHAR"}, asked(orderables, self.rules))

    def _table(self, name: str, types: Mapping[str, str], rows: Iterable[Sequence[Any]]) -> None:
        file = self.scratch / f"{name}.json"
        with file.open("wb") as lines:
            for row in rows:
                lines.write(orjson.dumps(dict(zip(types, row, strict=True)), option=orjson.OPT_APPEND_NEWLINE))
        self.engine.table(name, types, file)

    def _earlier(self, row: Sequence[Any]) -> Earlier:
        own = dict(zip(_OWN, row, strict=False))
        facts = Facts(*row[len(_OWN) :])
        own |= {name: _aware(own[name]) for name in ("effective", "issued", "recorded", "until")}
        own["number"] = None if own["number"] is None else Decimal(own["number"])
        return Earlier(**own, facts=self.facts.setdefault(facts, facts))

    def versions(self, wanted: Iterable[tuple[int, str]]) -> list[Earlier]:
        """See Source."""
        keys = sorted(set(wanted))
        if not keys:
            return []
        self._table("asked_for", {"shard": "SMALLINT", "id": "VARCHAR"}, keys)
        query = f"SELECT {_READ} FROM results r JOIN asked_for w ON w.shard = r.shard AND w.id = r.id"  # noqa: S608 - columns of our own
        return [self._earlier(row) for row in self.engine.rows(query)]

    def visited(self, placed: Sequence[Placed]) -> Sequence[Placed]:
        """What visits say was looked up at the export."""
        return placed

    def links(self, placed: Sequence[Placed]) -> dict[str, list[Link]]:
        """See Source."""
        if not placed:
            return {}
        self._define(placed)
        rows = self.engine.rows(_LINKS)
        found = (dict(zip(LINK_COLUMNS, row, strict=True)) for row in rows)
        return detect.by_patient(
            Link(**x | {"recorded": _aware(x["recorded"]), "until": _aware(x["until"])}) for x in found
        )

    def studies(self, reports: Iterable[tuple[int, str]]) -> Studies:
        """See Source."""
        keys = sorted(set(reports))
        out = Imaged()
        if keys:
            self._table("asked_for", {"shard": "SMALLINT", "report": "VARCHAR"}, keys)
            on = "i.shard = w.shard AND i.report = w.report"
            query = f"SELECT {_names('i', IMAGES)} FROM images i JOIN asked_for w ON {on}"  # noqa: S608 - columns of our own
            for row in self.engine.rows(query):
                named = dict(zip(IMAGES, row, strict=True))
                facts = {k: v for k, v in named.items() if k.startswith("image")}
                span = (_aware(named["since"]), _aware(named["until"]), facts)
                out.known.setdefault(named["report"], []).append(span)
        out.reports.update({report: [] for report in out.known})
        return out

    def brought(self, placed: Sequence[Placed]) -> dict[str, list[str]]:
        """See Source."""
        keys = [(p.shard, p.patient, p.id or p.report, "yes" if p.id else "no") for p in placed]
        if not keys:
            return {}
        self._table(
            "asked_for", {"shard": "SMALLINT", "patient": "VARCHAR", "key": "VARCHAR", "ordered": "VARCHAR"}, keys
        )
        query = """
SELECT w.key, r.id, r.version FROM asked_for w
JOIN results r ON r.shard = w.shard AND r.patient = w.patient
WHERE r.until IS NULL AND NOT r.deleted
  AND (w.ordered = 'yes' AND r."order" = w.key OR w.ordered = 'no' AND r."order" IS NULL AND r.report = w.key) ORDER BY r.id"""
        out: dict[str, list[str]] = {}
        for key, logical, version in self.engine.rows(query):
            out.setdefault(key, []).append(f"{logical}/_history/{version}")
        return {key: list(dict.fromkeys(found)) for key, found in out.items()}


@dataclass(slots=True)
class Imaged(Studies):
    """What an export knows of the images of reports: spans of time with the facts of each."""

    known: dict[str, list[tuple[datetime | None, datetime | None, dict[str, Any]]]] = field(default_factory=dict)

    def facts(self, report: str | None, at: datetime | None) -> dict[str, Any]:
        """See Studies."""
        for since, until, facts in self.known.get(report or "", ()):
            if (at is None and until is None) or (at and since and since <= at and (until is None or until > at)):
                return facts
        return {}


def _names(table: str, columns: Iterable[str]) -> str:
    return ", ".join(f'{table}."{c}"' for c in columns)


def _aware(at: datetime | None) -> datetime | None:
    return at if at is None or at.tzinfo else at.replace(tzinfo=UTC)


def _instant(micros: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
