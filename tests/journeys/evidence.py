"""What must hold once the storm is over: each acknowledged message stored exactly once, in its sender's order, with right versions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from conformance.capability import RESOURCE_TYPES
from conformance.fhirjson import loads
from fhir_server.store.body import Codec
from tests.journeys.feeds import Line

Sql = Callable[..., list[tuple[Any, ...]]]


def check(sql: Sql, lines: Sequence[Line]) -> None:
    """Compares the database with what the lines were told. ``sql`` runs one statement and gives its rows."""
    acknowledged = sorted(c for line in lines for c in line.acknowledged)
    assert sql("SELECT DISTINCT status, reason FROM inbox") == [("done", None)]
    stored = sorted(c for (c,) in sql("SELECT control_id FROM inbox"))
    assert stored == acknowledged, _difference(acknowledged, stored)
    for line in lines:
        _check_arrival(sql, line)
    _check_results(sql, lines)
    _check_registrations(sql, lines)
    _check_side_effects(sql, lines)


def _difference(expected: list[str], found: list[str]) -> str:
    lost, unknown = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    return f"lost: {lost[:20]}, not acknowledged: {unknown[:20]}, rows: {len(found)}"


def _check_arrival(sql: Sql, line: Line) -> None:
    rows = sql(
        "SELECT control_id FROM inbox WHERE facility = %s AND control_id LIKE %s ORDER BY id",
        line.facility,
        f"L{line.number}-%",
    )
    assert [r[0] for r in rows] == line.acknowledged, f"line {line.number}: the inbox has another order than the sender"


_VERSIONS = """
SELECT id, version, stale, inbox, dict, body, patient, "order" FROM resource_history WHERE rtype = %s
UNION ALL SELECT id, version, false, inbox, dict, body, patient, "order" FROM resource WHERE rtype = %s ORDER BY id, version
"""


def _check_results(sql: Sql, lines: Sequence[Line]) -> None:
    """Serial results: version n has value n and came from the n-th message, none is stale. Singles: once, version 1."""
    codec = Codec({number: bytes(data) for number, data in sql("SELECT id, data FROM zstd_dictionary")})
    told = [t for line in lines for t in line.told.values()]
    serial: dict[str, list[tuple[int, int, int]]] = {}
    singles = []
    rtype = RESOURCE_TYPES["Observation"]
    for logical, version, stale, inbox, dictionary, body, *names in sql(_VERSIONS, rtype, rtype):
        resource = loads(codec.decompress(dictionary, bytes(body), (logical, *names)))
        value = int(resource["valueQuantity"]["value"])
        assert not stale, f"Observation/{logical}: version {version} came after a newer one"
        if resource["code"]["coding"][0]["code"] == "SERIAL":
            serial.setdefault(logical, []).append((version, value, inbox))
        else:
            assert version == 1, f"Observation/{logical} was stored twice"
            singles.append(value)
    found, expected = sorted(len(v) for v in serial.values()), sorted(t.serial for t in told if t.serial)
    assert found == expected, f"versions of serial results: {found}, told: {expected}"
    for logical, versions in serial.items():
        assert [v[:2] for v in versions] == [(n, n) for n in range(1, len(versions) + 1)], f"{logical}: {versions}"
        assert [v[2] for v in versions] == sorted({v[2] for v in versions}), f"{logical}: {versions}"
    assert sorted(singles) == sorted(n for t in told for n in t.singles)
    _check_flat_results(sql, {logical: len(versions) for logical, versions in serial.items()})


def _check_flat_results(sql: Sql, newest: dict[str, int]) -> None:
    """The flat rows tell the same: the newest version is open, each other one ends when the next begins."""
    rows: dict[str, list[tuple[Any, ...]]] = {}
    for logical, *row in sql(
        "SELECT id, version, number::int, recorded, until FROM result WHERE code = 'SERIAL' ORDER BY id, version"
    ):
        rows.setdefault(logical, []).append(tuple(row))
    assert {logical: versions[-1][0] for logical, versions in rows.items()} == newest
    for logical, versions in rows.items():
        assert all(version == number for version, number, _, _ in versions), f"{logical}: {versions}"
        assert [v[3] for v in versions] == [*(v[2] for v in versions[1:]), None], f"{logical}: {versions}"


def _check_registrations(sql: Sql, lines: Sequence[Line]) -> None:
    told = [t for line in lines for t in line.told.values()]
    rows = sql("SELECT version, top FROM resource WHERE rtype = %s", RESOURCE_TYPES["Patient"])
    assert sorted(v for v, _ in rows) == sorted(t.registrations for t in told)
    assert all(version == top for version, top in rows)
    # Each Patient alone is its own person, linked once.
    assert sql("SELECT count(*), count(DISTINCT patient), count(until) FROM identity_link") == [
        (len(told), len(told), 0)
    ]


def _check_side_effects(sql: Sql, lines: Sequence[Line]) -> None:
    """What a message leaves beside its resources is there once as well: the outbox rows and the counts of the mapping worklist."""
    told = [t for line in lines for t in line.told.values()]
    serial, singles = sum(t.serial for t in told), sum(len(t.singles) for t in told)
    assert sql("SELECT count(*), count(DISTINCT resource) FROM outbox") == [(serial + singles, serial + singles)]
    counts = dict(sql("SELECT code, sum(count)::int FROM unmapped WHERE kind = 'code' GROUP BY code"))
    assert counts == {"SERIAL": serial, "SINGLE": singles}
