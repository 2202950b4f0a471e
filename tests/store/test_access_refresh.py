"""A changed table of sensitive data, or a new version, reaches what is stored: in chunks, exactly, and from where it was left."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from conformance.capability import RESOURCE_TYPES
from fhir_server import status
from fhir_server.cli import cli
from fhir_server.store import access_refresh, repository
from fhir_server.store.body import Codec
from mappings import sensitive
from mappings.profile import load_profiles
from tests.store import county

NOW = datetime(2026, 11, 22, tzinfo=UTC)
HEADER = "category,kind,system,value,source\n"
BITS = {name: sensitive.bit_of(name) for name in sensitive.CLASSES}


@pytest.fixture(autouse=True)
def shipped_again() -> Iterator[None]:
    yield
    sensitive.install(None)


def classed(folder: Path, *lines: str) -> None:
    """Takes a table of sensitive data of a rules folder into force."""
    (folder / "sensitive.csv").write_text(HEADER + "".join(f"{line},test\n" for line in lines))
    sensitive.install(folder)


def put(
    conn: psycopg.Connection[Any], codec: Codec, resource: dict[str, Any], at: datetime = NOW, facility: str = "town"
) -> None:
    with conn.transaction():
        repository.put(conn, codec, resource, origin=repository.Origin(facility, None, None, at))


def observation(logical: str, words: str, **more: Any) -> dict[str, Any]:
    about = {"subject": {"reference": "Patient/p"}}
    return {"resourceType": "Observation", "id": logical, "status": "final", "code": {"text": words}, **about, **more}


def refresh(conn: psycopg.Connection[Any], codec: Codec, *, again: bool = False) -> access_refresh.Progress:
    access_refresh.begin(conn, again=again)
    while not (found := access_refresh.step(conn, codec, NOW)).done:
        pass
    return found


def classes(conn: psycopg.Connection[Any]) -> dict[str, int]:
    return dict(conn.execute("SELECT id, coalesce(sensitivity, 0) FROM resource").fetchall())


def rights(conn: psycopg.Connection[Any]) -> list[Any]:
    return [
        conn.execute(f"SELECT * FROM {name} ORDER BY 1, 2, 3, 4").fetchall() for name in ("treatment", "consent_rule")
    ]


def test_a_new_term_reaches_results_their_reports_and_what_refers_to_them_and_goes_again(
    conn: psycopg.Connection[Any], codec: Codec, tmp_path: Path
) -> None:
    conn.autocommit = True
    classed(tmp_path)
    with conn.transaction():
        repository.apply(conn, codec, [(county.origin(), county.report("1", "R1", {"K": "4.1", "quagga": "7"}, at=0))])
    put(conn, codec, {"resourceType": "Patient", "id": "p"})
    put(conn, codec, observation("quiet", "potassium"))
    put(conn, codec, observation("named", "zebra level"))
    put(conn, codec, observation("past", "zebra level"))
    put(conn, codec, observation("past", "sodium"), NOW + timedelta(minutes=1))
    put(conn, codec, observation("gone", "zebra level"))
    with conn.transaction():
        repository.delete(conn, codec, "Observation", "gone", origin=repository.Origin("town", None, None, NOW))
    refers = {"status": "current", "mode": "working", "entry": [{"item": {"reference": "Observation/named"}}]}
    put(conn, codec, {"resourceType": "List", "id": "list", **refers})
    put(
        conn,
        codec,
        {"resourceType": "Basic", "id": "far", "code": {"text": "x"}, "subject": {"reference": "List/list"}},
    )
    before = classes(conn)
    assert set(before.values()) == {0}
    assert refresh(conn, codec).changed == 0

    classed(tmp_path, "genetics,term,,zebra", "hiv,term,,quagga")
    assert access_refresh.is_due(conn)
    done = refresh(conn, codec)
    after = classes(conn)
    genetics, hiv = BITS["genetics"], BITS["hiv"]
    assert {i: b for i, b in after.items() if b} == {
        county.observation_id("1", "R1", "quagga"): hiv,
        county.report_id("1", "R1"): hiv, "named": genetics, "gone": genetics, "list": genetics, "far": genetics,
    }  # fmt: skip
    old = "SELECT sensitivity FROM resource_history WHERE id = 'past' AND version = 1"
    assert (conn.execute(old).fetchone(), done.round > 1, access_refresh.is_due(conn)) == ((genetics,), True, False)
    assert refresh(conn, codec, again=True).changed == 0

    classed(tmp_path)
    refresh(conn, codec)
    assert classes(conn) == before
    assert conn.execute("SELECT count(*) FROM resource_history WHERE sensitivity IS NOT NULL").fetchone() == (0,)


@pytest.mark.parametrize("report_first", [True, False])
def test_results_have_the_classes_of_the_heading_of_their_report_and_after_a_refresh_too(
    conn: psycopg.Connection[Any], codec: Codec, tmp_path: Path, *, report_first: bool
) -> None:
    named = [{"reference": "Observation/a"}]
    report = observation("h", "zebra screen", result=named) | {"resourceType": "DiagnosticReport"}
    elsewhere = observation("b", "value", subject={"reference": "Patient/q"})
    foreign = observation("g", "zebra", result=[{"reference": "Observation/b"}]) | {"resourceType": "DiagnosticReport"}
    results = [observation("a", "value"), observation("a", "value, corrected")]
    classed(tmp_path, "genetics,term,,zebra")
    conn.autocommit = True
    for resource in [elsewhere, foreign, *([report, *results] if report_first else [*results, report])]:
        put(conn, codec, resource)
    wanted = {"a": BITS["genetics"], "h": BITS["genetics"], "g": BITS["genetics"], "b": 0}
    assert classes(conn) == wanted
    past = "SELECT coalesce(sensitivity, 0) FROM resource_history WHERE id = 'a'"
    assert conn.execute(past).fetchall() == [(BITS["genetics"],)]
    classed(tmp_path)
    refresh(conn, codec)
    assert set(classes(conn).values()) == {0}
    classed(tmp_path, "genetics,term,,zebra")
    refresh(conn, codec)
    assert classes(conn) == wanted
    assert conn.execute(past).fetchall() == [(BITS["genetics"],)]


def test_what_is_stored_later_and_what_is_computed_again_are_classed_alike(
    conn: psycopg.Connection[Any], codec: Codec, tmp_path: Path
) -> None:
    """Random resources of some patients, with corrections and references, under one table from the start and under it later."""
    seed = 5
    random_ = random.Random(seed)
    words = ["zebra", "okapi", "potassium", "sodium", "chloride"]
    steps = []
    for n in range(60):
        refers = [{"reference": f"Observation/o{random_.randrange(n)}"}] if n and random_.random() < 0.5 else []
        about = {"subject": {"reference": f"Patient/p{random_.randrange(3)}"}} if random_.random() < 0.8 else {}
        resource = observation(f"o{n}", random_.choice(words), **({"derivedFrom": refers} if refers else {}))
        steps.append({**{k: v for k, v in resource.items() if k != "subject"}, **about})
    lines = ("genetics,term,,zebra", "hiv,term,,okapi")
    classed(tmp_path, *lines)
    conn.autocommit = True
    for step in steps:
        put(conn, codec, step)
    wanted = classes(conn)
    assert set(wanted.values()) >= {0, BITS["genetics"], BITS["hiv"]}, seed
    classed(tmp_path)
    refresh(conn, codec)
    assert set(classes(conn).values()) == {0}, seed
    classed(tmp_path, *lines)
    refresh(conn, codec)
    assert classes(conn) == wanted, seed


def test_treatment_and_consents_of_an_earlier_version_are_computed_again(
    conn: psycopg.Connection[Any], codec: Codec
) -> None:
    conn.autocommit = True
    about = {"subject": {"reference": "Patient/p"}}
    org = {"reference": "Organization/o1"}
    put(conn, codec, {"resourceType": "Patient", "id": "p"})
    put(conn, codec, {"resourceType": "Organization", "id": "o1"})
    visit = {
        "resourceType": "Encounter",
        "id": "e",
        "status": "in-progress",
        "class": {"code": "AMB"},
        "serviceProvider": org,
    }
    put(conn, codec, {**visit, "period": {"start": "2026-11-20"}, **about})
    put(
        conn,
        codec,
        {"resourceType": "ServiceRequest", "id": "s", "status": "active", "intent": "order", "requester": org, **about},
    )
    rule = {
        "status": "active",
        "scope": {"text": "x"},
        "category": [{"text": "x"}],
        "patient": {"reference": "Patient/p"},
    }
    put(conn, codec, {"resourceType": "Consent", "id": "c", **rule, "provision": {"type": "deny"}})
    wanted = rights(conn)
    assert all(wanted)
    conn.execute("DELETE FROM consent_rule")
    conn.execute("UPDATE treatment SET until = until - interval '1 day' WHERE id = 'e'")
    conn.execute("DELETE FROM treatment WHERE facility = 'Organization/o1'")
    opened = (1, 0, "opened", "user:a", "p", NOW)
    conn.execute("INSERT INTO treatment VALUES (%s, %s, %s, %s, %s, %s)", opened)
    assert refresh(conn, codec).changed == 3
    conn.execute("DELETE FROM treatment WHERE rtype = 0 RETURNING 1")
    assert rights(conn) == wanted


def test_a_refresh_that_was_killed_goes_on_and_nobody_sees_half_of_a_patient(
    conn: psycopg.Connection[Any], codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conn.autocommit = True
    classed(tmp_path)
    for n in range(6):
        put(conn, codec, {"resourceType": "Patient", "id": f"p{n}"})
        for m in range(3):
            put(conn, codec, {**observation(f"o{n}-{m}", "zebra"), "subject": {"reference": f"Patient/p{n}"}})
    classed(tmp_path, "hiv,term,,zebra")
    monkeypatch.setattr(access_refresh, "CHUNK", 1)
    assert access_refresh.begin(conn)
    steps = 0
    while True:
        with pytest.raises(KeyboardInterrupt), conn.transaction():  # killed before the chunk is committed
            access_refresh.step(conn, codec, NOW)
            raise KeyboardInterrupt
        found = access_refresh.step(conn, codec, NOW)
        steps += 1
        by_patient = conn.execute(
            "SELECT count(DISTINCT coalesce(sensitivity, 0)) FROM resource WHERE rtype = %s GROUP BY patient",
            (RESOURCE_TYPES["Observation"],),
        ).fetchall()
        assert by_patient == [(1,)] * 6
        if found.done:
            break
        assert access_refresh.begin(conn)  # as the command does when it is started again
    assert (found.seen, found.changed, steps > 6) == (24, 18, True)


def test_the_command_says_what_it_did_and_status_when_it_is_due(
    database_url: str, conn: psycopg.Connection[Any], codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conn.autocommit = True
    monkeypatch.setenv("DATABASE_URL", database_url)
    access_refresh.settle(conn, NOW)
    put(conn, codec, observation("named", "zebra"))
    assert not access_refresh.is_due(conn)
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "sensitive.csv").write_text(HEADER + "hiv,term,,zebra,test\n")
    monkeypatch.setenv("TONGJIAN_RULES_DIR", str(rules))
    sensitive.install(rules)
    assert status.read(conn, load_profiles(None), tmp_path).access_due
    runner = CliRunner()
    first = runner.invoke(cli, ["refresh-access", "--data", str(tmp_path)])
    assert (first.exit_code, "Done: 1 resources changed, 1 looked at." in first.output) == (0, True), first.output
    second = runner.invoke(cli, ["refresh-access", "--data", str(tmp_path)])
    assert (second.exit_code, "in force already" in second.output) == (0, True)
    assert classes(conn) == {"named": BITS["hiv"]}
    (rules / "sensitive.csv").write_text(HEADER + "hiv,sentence,,zebra,test\n")
    wrong = runner.invoke(cli, ["refresh-access", "--data", str(tmp_path)])
    assert (wrong.exit_code, "sensitive.csv" in wrong.output) == (1, True)
