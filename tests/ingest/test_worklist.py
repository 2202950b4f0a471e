"""From an unmapped code to a decision: worklist, accept, running workers, replay of stored messages, and taking it back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from fhir_server.cli import cli
from fhir_server.code_decisions import Decision, check, history, record
from fhir_server.ingest.replay import replay_decided
from fhir_server.worklist import entries
from mappings.catalogue import shipped
from tests.ingest.test_worker import Rows, send, settled, working

AT = datetime(2026, 3, 2, 9, tzinfo=UTC)
RESULTS = "SELECT code, item FROM result WHERE until IS NULL ORDER BY id"


@pytest.fixture
def sql(database_url: str) -> Iterator[Callable[..., Rows]]:
    with psycopg.connect(database_url, autocommit=True) as conn:

        def run(statement: str, *values: object) -> Rows:
            cursor = conn.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

        yield run


def named(raw: bytes, name: str = "葡萄糖") -> bytes:
    return raw.replace("T1^项目1".encode(), f"G01^{name}".encode())


def decide(url: str, *decisions: Decision, at: datetime = AT) -> int:
    with psycopg.connect(url) as conn:
        return record(conn, decisions, "王检验", at)


def test_an_unmapped_code_stands_with_unit_range_values_count_and_proposals(
    serve: Any, oru: Any, database_url: str, profiles: Any, sql: Any
) -> None:
    with working(database_url, profiles):
        send(serve, [named(oru(f"M{n}", str(100 + n), values=(v,))) for n, v in enumerate(("5.6", "7.10", "5.6"))])
        settled(sql)
    with psycopg.connect(database_url) as conn:
        (code,) = [e for e in entries(conn) if e.kind == "code"]
    assert (code.facility, code.code, code.name, code.count) == ("alpha", "G01", "葡萄糖", 3)
    assert (code.units, code.ranges, set(code.examples)) == (("mmol/L",), ("3.9-6.1",), {"5.6", "7.10"})
    assert code.proposals[0].item == "L0022"


def test_free_text_is_no_example_value(serve: Any, oru: Any, database_url: str, profiles: Any, sql: Any) -> None:
    raw = named(oru("M1")).replace(b"|NM|", b"|ST|").replace(b"||5.6|", "||患者张三复查结果见附页说明|".encode())
    with working(database_url, profiles):
        send(serve, [raw])
        settled(sql)
    with psycopg.connect(database_url) as conn:
        assert [e.examples for e in entries(conn) if e.kind == "code"] == [()]


def test_an_accepted_code_counts_for_the_next_message_of_running_workers(
    serve: Any, oru: Any, database_url: str, profiles: Any, sql: Any
) -> None:
    with working(database_url, profiles):
        send(serve, [named(oru("M1", "101"))])
        settled(sql)
        assert decide(database_url, Decision("alpha", "code", "G01", "葡萄糖", "L0022")) == 1
        send(serve, [named(oru("M2", "102"))])
        settled(sql)
    assert sorted(sql("SELECT item FROM result WHERE until IS NULL"), key=str) == [("L0022",), (None,)]
    assert sql("SELECT count(DISTINCT mapping) FROM inbox") == [(2,)]
    with psycopg.connect(database_url) as conn:
        assert [e for e in entries(conn) if e.kind == "code"] == []


def test_replay_brings_an_accepted_code_to_stored_messages_and_touches_no_others(
    serve: Any, oru: Any, database_url: str, profiles: Any, sql: Any
) -> None:
    with working(database_url, profiles):
        send(serve, [named(oru("M1", "101")), oru("M2", "102")])
        send(serve, [named(oru("M3", "103", facility="BETA", application=""))], "beta")
        settled(sql)
        decide(database_url, Decision("alpha", "code", "G01", "葡萄糖", "L0022"))
        with psycopg.connect(database_url) as conn:
            assert replay_decided(conn, AT) == 1
        settled(sql)
        with psycopg.connect(database_url) as conn:
            assert replay_decided(conn, AT) == 0
    assert sorted(sql(RESULTS), key=str) == [("G01", "L0022"), ("G01", None), ("T1", None)]
    assert sql("SELECT count(*) FROM result WHERE until IS NOT NULL AND code = 'G01' AND item IS NULL") == [(1,)]


def test_the_score_card_counts_what_was_accepted_in_the_worklist_when_asked_to(
    oru: Any, database_url: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "alpha.yaml").write_text("id: alpha\norganization: {name: 甲县人民医院}\n", encoding="utf-8")
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("TONGJIAN_PROFILES_DIR", str(folder))
    feed = tmp_path / "feed.hl7"
    feed.write_bytes(named(oru("M1", "101")))
    decide(database_url, Decision("alpha", "code", "G01", "葡萄糖", "L0022"))

    def mapped(*options: str) -> list[str]:
        shown = CliRunner().invoke(cli, ["check", str(feed), "--facility", "alpha", "--json", *options])
        assert shown.exit_code in (0, 1), shown.output
        card = json.loads(shown.stdout)
        return [row["local_code"] for row in card["unmapped_codes"]]

    assert mapped() == ["G01"]
    assert mapped("--worklist") == []


def test_a_rejected_mapping_is_taken_back_from_stored_results(
    serve: Any, oru: Any, database_url: str, profiles: Any, sql: Any
) -> None:
    decide(database_url, Decision("alpha", "code", "G01", "葡萄糖", "L0023"))
    with working(database_url, profiles):
        send(serve, [named(oru("M1"))])
        settled(sql)
        assert sql(RESULTS) == [("G01", "L0023")]
        decide(database_url, Decision("alpha", "code", "G01", "葡萄糖", ""))
        with psycopg.connect(database_url) as conn:
            assert replay_decided(conn, AT) == 1
        settled(sql)
    assert sql(RESULTS) == [("G01", None)]
    with psycopg.connect(database_url) as conn:
        assert [e for e in entries(conn) if e.kind == "code"] == []


def test_a_unit_and_an_order_can_be_decided_and_replayed(
    serve: Any, oru: Any, database_url: str, profiles: Any, sql: Any
) -> None:
    raw = oru("M1").replace(b"mmol/L", "毫摩每升".encode())
    with working(database_url, profiles):
        send(serve, [raw])
        settled(sql)
        with psycopg.connect(database_url) as conn:
            found = {e.kind: e for e in entries(conn)}
        assert (found["unit"].code, found["order"].code) == ("毫摩每升", "BIO")
        decide(
            database_url,
            Decision("alpha", "unit", "毫摩每升", "", "mmol/L"),
            Decision("alpha", "order", "BIO", "生化", "CHEM"),
        )
        with psycopg.connect(database_url) as conn:
            assert replay_decided(conn, AT) >= 1
        settled(sql)
    assert sql("SELECT unit, unit_text FROM result WHERE until IS NULL") == [("mmol/L", "毫摩每升")]
    with psycopg.connect(database_url) as conn:
        assert {e.kind for e in entries(conn)} == {"code"}


def test_both_times_and_who_are_kept_and_a_later_decision_ends_the_earlier(database_url: str) -> None:
    later = datetime(2026, 4, 1, tzinfo=UTC)
    first = Decision("alpha", "code", "G01", "葡萄糖", "L0022")
    assert decide(database_url, first) == 1
    assert decide(database_url, first) == 0
    assert (
        decide(database_url, Decision("alpha", "code", "G01", "葡萄糖", "L0023", "2026-01-01", "2026-01-31"), at=later)
        == 1
    )
    with psycopg.connect(database_url) as conn:
        rows = history(conn)
        now = history(conn, ended=False)
    assert [(r.decision.target, r.until, r.recorded_by) for r in rows[:1]] == [("L0022", later, "王检验")]
    assert sorted((r.decision.target, r.decision.valid_from, r.decision.valid_to) for r in now) == [
        ("L0022", "", "2025-12-31"),
        ("L0022", "2026-02-01", ""),
        ("L0023", "2026-01-01", "2026-01-31"),
    ]


def test_a_decision_that_cannot_be_is_refused_with_the_reason(profiles: Any) -> None:
    known = shipped()
    assert "no facility profile" in check(Decision("nowhere", "code", "A", "", "L0006"), profiles, known)
    assert "not an item" in check(Decision("alpha", "code", "A", "", "X"), profiles, known)
    assert "not a date" in check(Decision("alpha", "code", "A", "", "L0006", "1.1.2026"), profiles, known)
    assert check(Decision("alpha", "code", "A", "", ""), profiles, known) == ""


def test_the_command_line_proposes_exports_imports_and_replays(
    serve: Any, oru: Any, database_url: str, profiles: Any, sql: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "alpha.yaml").write_text("id: alpha\norganization: {name: 甲县人民医院}\n", encoding="utf-8")
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("TONGJIAN_PROFILES_DIR", str(folder))
    with working(database_url, profiles):
        send(serve, [named(oru("M1", "101")), named(oru("M2", "102"), "=2+5")])
        settled(sql)
        runner = CliRunner()
        shown = runner.invoke(cli, ["map", "propose", "--json", "--kind", "code"])
        assert shown.exit_code == 0, shown.output
        assert {e["name"] for e in json.loads(shown.stdout)} == {"葡萄糖", "=2+5"}
        sheet = tmp_path / "worklist.csv"
        assert runner.invoke(cli, ["map", "export", str(sheet)]).exit_code == 0
        text = sheet.read_text(encoding="utf-8-sig")
        assert ",'=2+5," in text
        head, *lines = text.splitlines()
        place = head.split(",").index("decision")
        filled = []
        for line in lines:
            cells = line.split(",")
            if cells[3] == "葡萄糖":
                cells[place : place + 2] = ["accept", "L0022"]
            filled.append(",".join(cells))
        # As a spreadsheet program of a Chinese Windows saves it.
        sheet.write_bytes("\r\n".join([head, *filled]).encode("gb18030"))
        imported = runner.invoke(cli, ["map", "import", str(sheet), "--by", "王检验"])
        assert "1 of 1 decisions recorded" in imported.output, imported.output
        again = runner.invoke(cli, ["replay", "--unmapped"])
        assert "2 messages are in the queue again." in again.output
        settled(sql)
        assert sql("SELECT count(*) FROM result WHERE until IS NULL AND item = 'L0022'") == [(2,)]
        said = tmp_path / "decisions.csv"
        assert runner.invoke(cli, ["map", "export", "--decisions", str(said)]).exit_code == 0
        assert "王检验" in said.read_text(encoding="utf-8-sig")
        taken = runner.invoke(cli, ["map", "reject", "alpha", "G01", "--by", "李"])
        assert taken.exit_code == 0, taken.output
        wrong = runner.invoke(cli, ["map", "accept", "alpha", "G01", "L9999"])
        assert wrong.exit_code == 1
        assert "not an item" in wrong.output
