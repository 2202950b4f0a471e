"""Reports from a table or view of a facility's database, through SQLAlchemy: any database it has a driver for.

By a watermark column nothing is ever written there: the connection is read-only. By a flag column rows are locked, given, and
marked as read once they are durable here. Connections are short; the caller keeps the position.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine, Row
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.sql.elements import ColumnElement

from adapters.transports.column_text import text_of
from mappings import polls
from mappings.facility import Facility, Poll, SyncFlag
from mappings.polls import Mark

_IN_ONE: Final = 400
"""Reports asked for in one statement: Oracle takes 1,000 values, SQL Server 2,100 parameters."""
_MOST_ROWS: Final = 10_000
"""Rows of one report; more say that the columns of ``report`` do not tell reports apart."""
_MOST_ALIKE: Final = 400_000
_ARGUMENTS: Final[dict[str, dict[str, Any]]] = {
    "pymysql": {"connect_timeout": 10, "read_timeout": 300, "write_timeout": 60},
    "psycopg": {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3},
    "oracledb": {"tcp_connect_timeout": 10},
    "pyodbc": {"timeout": 10},
    "pymssql": {"login_timeout": 10, "timeout": 300},
}
_READ_ONLY: Final = {
    "mysql": "SET SESSION TRANSACTION READ ONLY",
    "mariadb": "SET SESSION TRANSACTION READ ONLY",
    "postgresql": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
}
"""Oracle says it for each transaction; SQL Server has rights for it (docs/connect-database.md)."""
Texts = dict[str, str]


class PollFault(Exception):
    """The database cannot be asked. ``key``: away, refused, missing-columns, report-key, key, watermark; the words name no value."""

    def __init__(self, key: str, words: str) -> None:
        super().__init__(words)
        self.key = key
        self.words = words


@dataclass(frozen=True, slots=True)
class Report:
    """One report as the database has it now.

    name    digest of the values that tell it apart; digest: of all its rows, whatever their order
    mark    the greatest watermark of its rows; None with a flag
    rows    texts of its columns by name, without NULLs; undecodable: columns whose bytes are text of no known character set
    """

    name: bytes
    digest: bytes
    mark: Mark | None
    rows: tuple[Texts, ...]
    undecodable: tuple[str, ...] = ()

    def message(self, table: str, read_at: datetime) -> bytes:
        """The raw message (format ``table``) that adapters.table reads."""
        out: dict[str, Any] = {"table": table, "read_at": read_at.isoformat(), "rows": self.rows}
        if self.undecodable:
            out["undecodable"] = self.undecodable
        return json.dumps(out, ensure_ascii=False).encode()


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of one look. last: the greatest watermark seen; complete: nothing is left; names: the raw values of their reports that are
    new or changed."""

    rows: int
    last: Mark | None
    complete: bool
    names: tuple[tuple[Any, ...], ...]


class PolledDatabase:
    """What one poll of a facility asks. Not for two threads at once. Every method raises PollFault."""

    def __init__(self, url: sa.URL, poll: Poll, facility: Facility) -> None:
        self._poll = poll
        self._facility = facility
        self._zone = ZoneInfo(facility.time_zone)
        self._contract = next(t for t in facility.tables if t.name == poll.table)
        schema, _, name = poll.source.rpartition(".")
        self._source = sa.table(name, schema=schema or None)
        self._columns: list[str] = []
        self._spelled: dict[str, str] = {}
        self._limit = poll.chunk
        self._loose: list[Row[Any]] = []
        self._held: Connection | None = None
        self._read: list[Row[Any]] = []
        self._fresh: list[Row[Any]] = []
        with _said():
            self._engine = sa.create_engine(
                url, pool_size=1, max_overflow=1, connect_args=_ARGUMENTS.get(url.get_driver_name(), {})
            )
        self._prepare_sessions(self._engine)

    def _prepare_sessions(self, engine: Engine) -> None:
        statements = []
        name = engine.dialect.name
        if name in ("mysql", "mariadb"):
            # A TIMESTAMP column is shown in the zone of the session: the facility's.
            offset = datetime.now(self._zone).strftime("%z")
            statements.append(f"SET SESSION time_zone = '{offset[:3]}:{offset[3:]}'")
        if self._poll.flag is None and name in _READ_ONLY:
            statements.append(_READ_ONLY[name])

        @event.listens_for(engine, "connect")
        def prepare(connection: Any, _: Any) -> None:
            cursor = connection.cursor()
            for statement in statements:
                cursor.execute(statement)
            cursor.close()
            connection.commit()

        if self._poll.flag is None and name == "oracle":

            @event.listens_for(engine, "begin")
            def begin(connection: Connection) -> None:
                connection.exec_driver_sql("SET TRANSACTION READ ONLY")

    def close(self) -> None:
        """Closes the connection; the next method opens another one."""
        self._engine.dispose()

    def look(self) -> list[str]:
        """Finds the columns; gives those nobody asks for. Raises PollFault ``missing-columns`` naming those that are not there."""
        with self._connection() as conn:
            there = list(
                conn.execute(sa.select(sa.literal_column("*")).select_from(self._source).where(sa.false())).keys()
            )
        folded = {name.casefold(): name for name in there}
        wanted = [
            c for c in self._contract.columns.values() if c.casefold() in folded or c not in self._contract.optional
        ]
        poll = self._poll
        mark = poll.watermark.column if poll.watermark else poll.flag.column if poll.flag else ""
        self._columns = list(dict.fromkeys([*wanted, *poll.report, *poll.key, mark]))
        if missing := [c for c in self._columns if c.casefold() not in folded]:
            raise PollFault("missing-columns", f"{poll.source} lacks the columns {', '.join(missing)}.")
        # As the database writes them: PostgreSQL and Oracle tell "ReportNo" from reportno.
        self._spelled = {c: c if c in there else folded[c.casefold()] for c in self._columns}
        if poll.flag is not None:
            # An UPDATE takes only columns its table is said to have.
            self._source = sa.table(self._source.name, self._column(mark), schema=self._source.schema)
        asked = {c.casefold() for c in self._columns}
        return [name for name in there if name.casefold() not in asked]

    def unmarked(self) -> int:
        """Rows without a watermark: they are never read."""
        assert self._poll.watermark is not None
        statement = sa.select(sa.func.count()).select_from(self._source)
        with self._connection() as conn:
            return int(conn.execute(statement.where(self._column(self._poll.watermark.column).is_(None))).scalar_one())

    def changed(self, start: Mark | None, known: Mapping[tuple[Any, ...], frozenset[bytes]]) -> Chunk:
        """The reports of the next rows from a watermark on, ascending. known: of a report the digests of rows that are stored already;
        a report with no other row is left out."""
        watermark = self._poll.watermark
        assert watermark is not None
        mark = self._column(watermark.column)
        condition = mark.is_not(None) if start is None else mark >= _bind(start)
        while True:
            statement = self._select().where(condition).order_by(mark).limit(self._limit)
            with self._connection() as conn:
                rows = conn.execute(statement).fetchall()
            at = self._columns.index(watermark.column)
            marks = [value for row in rows if (value := polls.value_of(watermark, row[at])) is not None]
            if len(rows) < self._limit or (marks and max(marks) != start):
                break
            # As many rows as were asked for have the watermark we began with: ask for more at once, or we never get past it.
            self._limit *= 2
            if self._limit > _MOST_ALIKE:
                raise PollFault(
                    "watermark", f"More than {_MOST_ALIKE} rows have the same {watermark.column}, or an unusable one."
                )
        names: dict[tuple[Any, ...], None] = {}
        self._loose = []
        for row in rows:
            name, digest = self._name(row), self._digest(self._texts(row)[0])
            if not any(value is not None for value in name):
                if digest not in known.get((*name, digest), frozenset()):
                    self._loose.append(row)
            elif name not in names and digest not in known.get(name, frozenset()):
                names[name] = None
        complete = len(rows) < self._limit
        self._limit = self._poll.chunk
        return Chunk(len(rows), max(marks) if marks else None, complete, tuple(names))

    def reports(self, names: Sequence[tuple[Any, ...]]) -> list[tuple[tuple[Any, ...], Report, frozenset[bytes]]]:
        """The reports with all their rows: raw values, report, digests of its rows. One that is gone meanwhile is left out. Each row
        of the last look without a report number is a report of its own: which others belong to it nobody knows."""
        with self._connection() as conn:
            return [*self._reports(conn, names, lock=False), *self._single(self._loose)]

    def _single(self, rows: Iterable[Row[Any]]) -> Iterator[tuple[tuple[Any, ...], Report, frozenset[bytes]]]:
        named = {(*self._name(row), self._digest(self._texts(row)[0])): row for row in rows}
        for name, row in named.items():
            report, digests = self._report(name, [row])
            yield name, report, digests

    def lock_unread(self) -> tuple[Chunk, list[Report]]:
        """The next reports with unread rows, locked until ``mark_read`` or ``release``."""
        flag = self._flag()
        report = [*map(self._column, self._poll.report)]
        some = sa.select(*report, self._column(flag.column)).select_from(self._source).where(self._unread())
        with _said():
            self._held = conn = self._engine.connect()
            rows = conn.execute(some.order_by(*report).limit(self._poll.chunk)).fetchall()
            names = tuple(dict.fromkeys(tuple(row)[:-1] for row in rows if any(v is not None for v in row[:-1])))
            found = [report for _, report, _ in self._reports(conn, names, lock=True)]
            if any(all(v is None for v in row[:-1]) for row in rows):
                # All of them: their key may be the same too.
                alone = self._select().where(*(c.is_(None) for c in report), self._unread()).limit(_MOST_ALIKE)
                loose = conn.execute(self._locked(alone)).fetchall()
                found += [report for _, report, _ in self._single(loose)]
                self._read += loose
            # What the database itself takes for unread: flags are text, numbers, bits and booleans.
            unread = {row[-1] for row in rows}
            at = self._columns.index(flag.column)
            self._fresh = [row for row in self._read if row[at] in unread or _alike(row[at], flag.unread)]
        return Chunk(len(rows), None, len(rows) < self._poll.chunk, names), found

    def mark_read(self) -> None:
        """The unread rows of the locked reports count as read; the locks end."""
        conn, flag = self._held, self._flag()
        assert conn is not None
        changed = 0
        with _said():
            for part in _parts(self._fresh):
                same = sa.or_(*(self._same(self._poll.key, self._values(row, self._poll.key)) for row in part))
                change = sa.update(self._source).where(same, self._unread())
                changed += conn.execute(change.values({self._column(flag.column): _bind(flag.read)})).rowcount
            if changed > len(self._fresh):
                conn.rollback()
            else:
                conn.commit()
        self.release()
        if changed > len(self._fresh):
            # Another row with the same key was written meanwhile, or stands further back: nobody read it yet.
            raise PollFault(
                "key", f"More rows have the same {', '.join(self._poll.key)} than were read: nothing was marked."
            )

    def release(self) -> None:
        """The locks end, and what was locked stays unread."""
        conn, self._held = self._held, None
        if conn is not None:
            with _said():
                conn.close()

    def _flag(self) -> SyncFlag:
        assert self._poll.flag is not None
        return self._poll.flag

    def _unread(self) -> ColumnElement[bool]:
        flag = self._flag()
        return (
            self._column(flag.column).is_(None)
            if flag.unread is None
            else self._column(flag.column) == _bind(flag.unread)
        )

    def _reports(
        self, conn: Connection, names: Sequence[tuple[Any, ...]], *, lock: bool
    ) -> Iterator[tuple[tuple[Any, ...], Report, frozenset[bytes]]]:
        order = [self._column(c) for c in (*self._poll.report, *self._poll.key)]
        groups: dict[tuple[Any, ...], list[Row[Any]]] = {}
        for part in _parts(names):
            if len(self._poll.report) == 1 and None not in (n[0] for n in part):
                condition: ColumnElement[bool] = self._column(self._poll.report[0]).in_([_bind(n[0]) for n in part])
            else:
                condition = sa.or_(*(self._same(self._poll.report, name) for name in part))
            statement = self._select().where(condition).order_by(*order)
            for row in conn.execute(self._locked(statement) if lock else statement):
                rows = groups.setdefault(self._name(row), [])
                rows.append(row)
                if len(rows) > _MOST_ROWS:
                    raise PollFault(
                        "report-key",
                        f"A report has more than {_MOST_ROWS} rows: {', '.join(self._poll.report)} do not tell reports apart.",
                    )
        self._read = [row for rows in groups.values() for row in rows] if lock else []
        for name, rows in groups.items():
            report, digests = self._report(name, rows)
            yield name, report, digests

    def _report(self, name: tuple[Any, ...], rows: Iterable[Row[Any]]) -> tuple[Report, frozenset[bytes]]:
        texts, damaged, marks, digests = [], dict[str, None](), [], []
        for row in rows:
            found, unknown = self._texts(row)
            digests.append(self._digest(found))
            texts.append(found)
            damaged.update(dict.fromkeys(unknown))
            if self._poll.watermark is not None:
                value = polls.value_of(self._poll.watermark, row[self._columns.index(self._poll.watermark.column)])
                marks += [] if value is None else [value]
        key = hashlib.blake2b(repr(name).encode(errors="surrogatepass"), digest_size=16).digest()
        digest = hashlib.blake2b(b"".join(sorted(digests)), digest_size=16).digest()
        report = Report(key, digest, max(marks) if marks else None, tuple(texts), tuple(damaged))
        return report, frozenset(digests)

    def _column(self, name: str) -> sa.ColumnClause[Any]:
        return sa.column(self._spelled.get(name, name))

    def _select(self) -> sa.Select[*tuple[Any, ...]]:
        return sa.select(*map(self._column, self._columns)).select_from(self._source)

    def _locked(self, statement: sa.Select[*tuple[Any, ...]]) -> sa.Select[*tuple[Any, ...]]:
        return statement.with_for_update().with_hint(self._source, "WITH (UPDLOCK, ROWLOCK)", "mssql")

    def _values(self, row: Row[Any], columns: Iterable[str]) -> tuple[Any, ...]:
        return tuple(row[self._columns.index(c)] for c in columns)

    def _name(self, row: Row[Any]) -> tuple[Any, ...]:
        return self._values(row, self._poll.report)

    def _same(self, columns: Iterable[str], values: Iterable[Any]) -> ColumnElement[bool]:
        pairs = zip(map(self._column, columns), values, strict=True)
        return sa.and_(*(c.is_(None) if v is None else c == _bind(v) for c, v in pairs))

    def _texts(self, row: Row[Any]) -> tuple[Texts, list[str]]:
        """Columns of the contract as text, NULLs and empty ones left out, and those that cannot be decoded."""
        out: Texts = {}
        unknown = []
        for name, value in zip(self._columns, row, strict=False):
            if name not in self._contract.columns.values() or value is None:
                continue
            text, sound = text_of(value, self._facility.charset, latin1=self._poll.latin1)
            if not sound:
                unknown.append(name)
            if text:
                out[name] = text
        return out, unknown

    @staticmethod
    def _digest(texts: Texts) -> bytes:
        return hashlib.blake2b(json.dumps(texts, sort_keys=True).encode(), digest_size=16).digest()

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        with _said(), self._engine.connect() as conn:
            yield conn


def _bind(value: Any) -> sa.BindParameter[Any]:
    # Without a type: a cast to VARCHAR would change how a padded CHAR column is compared.
    return sa.bindparam(None, value, type_=sa.types.NullType(), unique=True)


def _alike(value: Any, flag: int | str | None) -> bool:
    # A CHAR column comes padded, a NUMBER as Decimal. NULL is unread only where it is the flag.
    if value is None or flag is None:
        return value is flag
    return str(value).strip() == str(flag).strip()


def _parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), _IN_ONE):
        yield items[start : start + _IN_ONE]


@contextmanager
def _said() -> Iterator[None]:
    """What a driver raises -> PollFault in our own words: its text may quote rows, names and passwords."""
    try:
        yield
    except DBAPIError as fault:
        number = getattr(fault.orig, "sqlstate", None) or next(iter(getattr(fault.orig, "args", ())), "")
        # A number of the database, or nothing: some drivers put a sentence there.
        number = f" {number}" if isinstance(number, int) or (isinstance(number, str) and len(number) == 5) else ""
        refused = not fault.connection_invalidated and isinstance(fault, sa.exc.ProgrammingError)
        words = "The database refuses the question" if refused else "The database does not answer"
        raise PollFault("refused" if refused else "away", f"{words} ({type(fault.orig).__name__}{number}).") from None
    except (SQLAlchemyError, ImportError) as fault:
        raise PollFault(
            "refused", f"The connection cannot be used ({type(fault).__name__}); is its driver installed?"
        ) from None
    except UnicodeError:
        raise PollFault(
            "refused",
            "Text of the database is not in the character set of the connection; see charset= in its address.",
        ) from None
    except OSError as fault:
        raise PollFault("away", f"The database cannot be reached ({type(fault).__name__}).") from None
