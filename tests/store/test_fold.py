"""fhir_server.store.fold and statement: the pure order of statements."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from conformance.fhirjson import loads
from fhir_server.store.fold import fold
from fhir_server.store.statement import Statement, of_entry, of_write, render, tail_of, write_recency
from mappings.model import Entry, Recency, Tier
from tests.store import county

_LOGICAL = county.patient_id("1")


def statement(text: str, stated: Recency, minute: int = 0) -> Statement:
    resource = {"resourceType": "Patient", "id": _LOGICAL, "name": [{"text": text}]}
    return of_entry(Entry(resource, stated, _LOGICAL), county.origin(minute=minute))


_TIMES = st.sampled_from(
    ["", "2026-03-01T10:00:00.000000Z", "2026-03-01T10:00:00.000001Z", "2027-01-01T00:00:00.000000Z"]
)
_RECENCIES = st.builds(Recency, st.sampled_from([int(t) for t in Tier]), _TIMES, _TIMES, st.integers(0, 9))


@given(_RECENCIES, _RECENCIES)
def test_packed_recency_sorts_like_the_statement(one: Recency, other: Recency) -> None:
    a, b = statement("x", one).recency, statement("x", other).recency
    assert (a < b, a == b) == (one < other, one == other)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), _RECENCIES), min_size=1, max_size=6), st.randoms(use_true_random=False)
)
def test_any_order_ends_in_the_same_current_content(said: list[tuple[str, Recency]], rng: random.Random) -> None:
    def current(order: list[tuple[str, Recency]]) -> bytes:
        state, _ = fold(None, [statement(*s) for s in order], lambda _: False, set())
        assert state is not None
        return state.content

    shuffled = said[:]
    rng.shuffle(shuffled)
    assert current(said) == current(shuffled)


@given(st.lists(st.tuples(st.sampled_from("abc"), _RECENCIES), min_size=1, max_size=6), st.integers(0, 6))
def test_one_batch_or_several_end_in_the_same_state(said: list[tuple[str, Recency]], cut: int) -> None:
    statements = [statement(*s) for s in said]
    whole, versions = fold(None, statements, lambda _: False, set())
    first, one = fold(None, statements[:cut], lambda _: False, set())
    kept = {v.statement.content for v in one if first is not None and v.number != first.version}
    second, two = fold(first, statements[cut:], lambda _: False, kept)
    assert second == whole
    assert [v.number for v in one + two] == [v.number for v in versions] == list(range(1, len(versions) + 1))


@given(_RECENCIES, st.integers(0, 10**6))
def test_a_write_of_the_api_is_newer_than_what_was_there(stated: Recency, seconds: int) -> None:
    before = statement("x", stated).recency
    at = county.NOON + timedelta(seconds=seconds) - timedelta(days=400)
    assert write_recency(at, before) > before


def test_last_updated_never_goes_back_when_a_clock_does() -> None:
    late = statement("x", county.recency(1), minute=30)
    early = statement("y", county.recency(2), minute=10)
    _, versions = fold(None, [late, early], lambda _: False, set())
    assert [v.updated for v in versions] == [county.NOON + timedelta(minutes=30)] * 2


def test_the_body_is_the_stated_json_with_meta_in_its_place() -> None:
    stated: dict[str, Any] = loads(
        '{"resourceType":"Patient","name":[{"text":"\\"王\\""}],"id":"p","meta":{"versionId":"8","profile":["u"]},"x":1.50}'
    )
    served, body = render(stated, tail_of(stated), 3, "2026-03-01T12:00:00.000Z")
    assert loads(body) == served
    assert (
        body
        == (
            '{"resourceType":"Patient","id":"p","meta":{"versionId":"3","lastUpdated":"2026-03-01T12:00:00.000Z",'
            '"profile":["u"]},"name":[{"text":"\\"王\\""}],"x":1.50}'
        ).encode()
    )
    bare = {"resourceType": "Patient", "id": "p"}
    assert loads(render(bare, tail_of(bare), 1, "t")[1]) == {**bare, "meta": {"versionId": "1", "lastUpdated": "t"}}


def test_the_source_of_a_message_is_no_content_but_a_tag_is() -> None:
    key = (0, 1, "p")

    def content(meta: dict[str, Any]) -> bytes:
        resource = {"resourceType": "Patient", "id": "p", "meta": meta}
        return of_write(key, resource, "p", None, county.origin(), b"").content

    assert content({}) == content({"source": "urn:a", "versionId": "4", "lastUpdated": "x"})
    assert content({}) != content({"security": [{"code": "R"}]})
