"""Search requests understood, without a database (http://hl7.org/fhir/R4/search.html)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhir_server.errors import Fault
from fhir_server.search.query import MAX_COUNT, parse, split, unescape


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a", ["a"]),
        ("a,b", ["a", "b"]),
        ("a\\,b,c", ["a\\,b", "c"]),
        ("a\\\\,b", ["a\\\\", "b"]),
        (",", ["", ""]),
        ("", [""]),
    ],
)
def test_values_are_cut_at_commas_that_are_not_escaped(text: str, parts: list[str]) -> None:
    assert split(text, ",") == parts


@given(st.lists(st.text(max_size=8), min_size=1, max_size=5))
def test_escaping_survives_the_round_trip(values: list[str]) -> None:
    def escape(text: str) -> str:
        return "".join("\\" + c if c in "\\,|$" else c for c in text)

    joined = ",".join(escape(v) for v in values)
    assert [unescape(p) for p in split(joined, ",")] == values


def test_a_backslash_before_anything_else_is_itself() -> None:
    assert unescape("a\\b\\|c") == "a\\b|c"


def test_repeated_parameters_are_joined_by_and_values_by_or() -> None:
    query = parse("Observation", [("code", "a,b"), ("code", "c"), ("status:not", "final")])
    assert [(f.code, f.modifier, f.values) for f in query.filters] == [
        ("code", "", ("a", "b")),
        ("code", "", ("c",)),
        ("status", "not", ("final",)),
    ]


def test_what_took_effect_and_what_did_not_are_kept_apart() -> None:
    query = parse("Observation", [("code", "a"), ("colour", "red"), ("_format", "json"), ("_count", "7")])
    assert query.used == [("code", "a"), ("_count", "7")]
    assert [name for name, _ in query.ignored] == ["colour"]


def test_strict_handling_refuses_what_lenient_handling_ignores() -> None:
    with pytest.raises(Fault) as refused:
        parse("Observation", [("colour", "red")], strict=True)
    assert refused.value.where == "colour"


def test_the_page_size_has_an_upper_limit() -> None:
    assert parse("Observation", [("_count", "999999999999")]).count == MAX_COUNT


def test_sort_keys_know_their_columns() -> None:
    query = parse("DiagnosticReport", [("_sort", "-date,issued,_id,patient,-_lastUpdated")])
    assert [(s.column, s.descending) for s in query.sort] == [
        ("start_at", True),
        ("issued_at", False),
        ("id", False),
        ("patient", False),
        ("updated", True),
    ]
    (birth,) = parse("Patient", [("_sort", "birthdate")]).sort
    assert birth.dates
    assert len(birth.numbers) == 1


def test_a_sort_that_cannot_be_done_names_those_that_can() -> None:
    with pytest.raises(Fault, match=r"Observation sorts by _id, _lastUpdated, .*date, "):
        parse("Observation", [("_sort", "code-value-quantity")])


@pytest.mark.parametrize(
    "name", ["subject.nothing", "subject:Encounter.status", "_has:Observation:patient:code", "code.name"]
)
def test_chains_that_lead_nowhere_are_refused_never_ignored(name: str) -> None:
    with pytest.raises(Fault, match=r"never points|no reference parameter|Nothing that"):
        parse("Observation", [(name, "x")])


def test_a_chain_has_an_end_for_each_type_that_has_the_parameter() -> None:
    (chain,) = parse("Observation", [("subject.name", "x")]).filters
    assert (chain.kind, chain.code, [t for t, _ in chain.inner]) == ("chain", "subject", ["Patient", "Location"])
    (has,) = parse("Patient", [("_has:Observation:patient:specimen.type:not", "x")]).filters
    ((source, end),) = has.inner
    assert (has.kind, source, end.kind, end.inner[0][1].modifier) == ("has", "Observation", "chain", "not")


def test_a_chain_without_end_is_refused() -> None:
    with pytest.raises(Fault, match="at most 6"):
        parse("Organization", [(".".join(["partof"] * 9 + ["name"]), "x")])
