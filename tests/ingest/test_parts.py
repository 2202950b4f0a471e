"""fhir_server.ingest.parts: continued messages whose parts arrive as messages of their own (HL7 v2.5.1 section 2.10.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from adapters.hl7v2.continuation import pointers
from fhir_server.ingest.parts import Part, Whole, chain
from tests.ingest.test_worker import Rows, send, settled, sql, working

__all__ = ["sql"]

_HEADER = "MSH|^~\\&|LIS|ALPHA|TJ|TJ|20260301080000||ORU^R01^ORU_R01|{control}|P|2.5.1||{pointer}"
_STORED = "SELECT code, number::text FROM result WHERE until IS NULL ORDER BY code"


def message(control: str, *lines: str, after: str = "", before: str = "") -> bytes:
    """One part: ``before`` is its MSH-14, ``after`` its DSC-1."""
    ends = [f"DSC|{after}|I"] if after else []
    return "\r".join((_HEADER.format(control=control, pointer=before), *lines, *ends, "")).encode()


def first(patient: str, control: str, after: str, value: str = "1.1") -> bytes:
    return message(
        control,
        f"PID|1||{patient}^^^ALPHA^PI||王建国||19620517|M",
        f"OBR|1||R{patient}|BIO^生化|||20260301080000|||||||||||||||20260301080000|||F",
        result(1, value),
        after=after,
    )


def result(number: int, value: str) -> str:
    return f"OBX|{number}|NM|T{number}^项目{number}||{value}|mmol/L|||||F|||20260301080000"


def test_parts_are_acknowledged_one_by_one_and_stored_as_one_message(
    serve: Any, database_url: str, profiles: Any, sql: Callable[..., Rows]
) -> None:
    one = first("100001", "C1", "P1")
    two = message("C2", result(2, "2.2"), before="P1", after="P2")
    three = message("C3", result(3, "3.3"), before="P2")
    with working(database_url, profiles):
        send(serve, [one])
        settled(sql)
        assert sql("SELECT status, reason FROM inbox") == [("held", "continued-message")]
        send(serve, [two, three])
        settled(sql)
    assert sql(_STORED) == [("T1", "1.1"), ("T2", "2.2"), ("T3", "3.3")]
    assert {row[0] for row in sql("SELECT status FROM inbox")} == {"done"}
    told = sql("SELECT issues -> -1 ->> 'value' FROM inbox ORDER BY id")
    ids = [str(row[0]) for row in sql("SELECT id FROM inbox ORDER BY id")]
    assert told == [(",".join(ids),)] * 3


def test_parts_that_come_in_another_order_are_one_message_all_the_same(
    serve: Any, database_url: str, profiles: Any, sql: Callable[..., Rows]
) -> None:
    with working(database_url, profiles):
        send(serve, [message("C3", result(3, "3.3"), before="P2")])
        send(serve, [message("C2", result(2, "2.2"), before="P1", after="P2")])
        settled(sql)
        assert sql("SELECT DISTINCT status, reason FROM inbox") == [("held", "continued-message")]
        send(serve, [first("100001", "C1", "P1")])
        settled(sql)
    assert sql(_STORED) == [("T1", "1.1"), ("T2", "2.2"), ("T3", "3.3")]
    assert sql("SELECT DISTINCT status FROM inbox") == [("done",)]


def test_a_pointer_used_again_joins_no_parts_of_two_patients(
    serve: Any, database_url: str, profiles: Any, sql: Callable[..., Rows]
) -> None:
    messages = [
        first("100001", "C1", "1", "1.1"),
        message("C2", result(2, "2.1"), before="1"),
        first("100002", "C3", "1", "1.2"),
        message("C4", result(2, "2.2"), before="1"),
    ]
    send(serve, messages)
    with working(database_url, profiles):
        settled(sql)
    found = sql("SELECT patient, code, number::text FROM result WHERE until IS NULL ORDER BY patient, code")
    assert len({row[0] for row in found}) == 2
    by_patient = {patient: [row[2] for row in found if row[0] == patient] for patient, _, _ in found}
    assert sorted(by_patient.values()) == [["1.1", "2.1"], ["1.2", "2.2"]]


def test_a_part_whose_beginning_never_comes_is_held_and_named(
    serve: Any, database_url: str, profiles: Any, sql: Callable[..., Rows]
) -> None:
    with working(database_url, profiles):
        send(serve, [message("C2", result(2, "2.2"), before="P1")])
        settled(sql)
    assert sql("SELECT status, reason FROM inbox") == [("held", "continued-message")]
    assert sql("SELECT issues -> 0 ->> 'where', issues -> 0 ->> 'value' FROM inbox") == [("MSH[1]-14", "P1")]
    assert sql(_STORED) == []


def _part(number: int, raw: bytes, mates: tuple[str, ...] = ()) -> Part:
    return Part(0, number, raw, *pointers(raw), frozenset(mates))


def _ids(found: Whole | None) -> list[int]:
    return [part.id for part in found.parts] if found is not None else []


def test_replayed_parts_find_the_ones_they_were_put_together_with() -> None:
    parts = [
        _part(1, first("1", "C1", "1"), ("1", "4")),
        _part(2, first("2", "C2", "1")),
        _part(4, message("C4", result(2, "1"), before="1"), ("1", "4")),
    ]
    assert _ids(chain(parts, 4)) == [1, 4]
    assert _ids(chain(parts, 1)) == [1, 4]


def test_pointers_that_go_round_in_a_ring_make_no_message() -> None:
    ring = [_part(1, message("A", before="1", after="2")), _part(2, message("B", before="2", after="1"))]
    assert chain(ring, 1) is None
