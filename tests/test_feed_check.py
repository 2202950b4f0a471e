"""The score card of a feed: what is counted, the go-live bar, the three outputs, exit codes, no patient data, constant memory."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Sequence
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from fhir_server import feed_check, feed_report
from fhir_server.cli import cli
from fhir_server.feed_card import Card, judge, meets
from fhir_server.settings import Settings
from mappings.profile import load_profiles

# 11010519491231002X is the example of GB 11643-1999; the other one ends with a wrong check digit.
VALID, INVALID = "11010519491231002X", "110105194912310021"
OBX = "OBX|1|NM|T1^项目一||5.6|mmol/L|3.9-6.1|N|||F"


def msh(control: str, kind: str = "ORU^R01^ORU_R01") -> str:
    return f"MSH|^~\\&|LIS|XP|TJ|TJ|20260301093000+0800||{kind}|{control}|P|2.5.1||||||UNICODE UTF-8"


def oru(control: str, order: str = "A1", *obx: str, resident: str = VALID, zone: str = "+0800") -> str:
    return "\r".join(
        (
            msh(control),
            f"PID|1||P1^^^XP^PI~{resident}^^^^NI||王^建国||19491231|F",
            f"ORC|RE|{order}|F{control}",
            f"OBR|1|{order}|F{control}|BIO^生化|||20260301080000{zone}|||||||||||||||20260301092000+0800||LAB|F",
            *(obx or (OBX,)),
            "",
        )
    )


def orm(control: str, order: str) -> str:
    lines = (
        msh(control, "OML^O21^OML_O21"),
        "PID|1||P1^^^XP^PI||王^建国||19491231|F",
        f"ORC|NW|{order}",
        f"OBR|1|{order}||BIO^生化",
        "",
    )
    return "\r".join(lines)


@pytest.fixture
def checked(tmp_path: Path) -> object:
    def run(*messages: str, facility: str = "generic") -> Card:
        file = tmp_path / "feed.hl7"
        file.write_bytes("".join(messages).encode())
        return feed_check.check([file], load_profiles()[facility])

    return run


def said(card: Card) -> dict[str, tuple[int, int]]:
    return {v.name: (v.good, v.whole) for v in judge(card, Settings())}


def tongjian(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["check", *map(str, arguments)])


def test_codes_units_identifiers_times_and_structure_are_counted(checked: Any) -> None:
    card = checked(
        oru("1", "A1", OBX, "OBX|2|NM|T2^项目二||1|blob||N|||F"),
        oru("2", "A2", "OBX|1|NM|T1^项目一||5.7|mmol/L|||||F", resident=INVALID, zone=""),
        oru("3", "A3", "OBX|1|NM|||5.7|mmol/L|||||F"),
    )
    assert dict(card.unmapped_codes) == {("T1", "项目一", "mmol/L"): 2, ("T2", "项目二", "blob"): 1}
    assert dict(card.unknown_units) == {("blob",): 1}
    assert dict(card.unmapped_orders) == {("BIO", "生化"): 3}
    assert said(card)["units_known"] == (2, 3)  # the result without a code is none
    assert said(card)["ids_valid"] == (2, 3)
    assert dict(card.bad_identifiers) == {("PID-3", "check digit or birth date"): 1}
    assert dict(card.zoneless) == {("OBR-7",): 1}
    assert ("missing-field", "OBX-3", "observation identifier is required", "required") in card.deviations
    assert said(card)["structure"] == (2, 3)


def test_a_mapped_feed_of_a_known_facility_is_mapped(checked: Any) -> None:
    # mappings/codes/county-hospital/tests.csv maps its own codes; the first of them is taken.
    rows = Path("mappings/codes/county-hospital/tests.csv").read_text(encoding="utf-8").splitlines()
    columns = next(r for r in rows if not r.startswith("#")).split(",")
    first = dict(zip(columns, next(r for r in rows if re.match(r"[A-Z0-9]", r)).split(","), strict=False))
    message = oru("1", "A1", f"OBX|1|NM|{first['code']}^{first['name']}||5.6||||||F")
    card = checked(message.replace("|LIS|XP|", "|LIS|YXRMYY|"), facility="county-hospital")
    assert (card.mapped, card.results, card.refused) == (1, 1, 0)


def test_orders_without_result_and_results_without_order_are_told(checked: Any) -> None:
    card = checked(orm("1", "A1"), orm("2", "A2"), oru("3", "A1"), oru("4", "A9"))
    assert (card.orders, card.answered) == (2, 2)
    assert (card.orders_without_result, card.results_without_order) == (1, 1)
    assert said(card)["results_ordered"] == (1, 2)
    # Without an order in the files nothing is said of results without one.
    assert said(checked(oru("1", "A1")))["results_ordered"] == (0, 0)


def test_control_ids_seen_before_are_counted_and_those_with_other_content_apart(checked: Any) -> None:
    card = checked(oru("1"), oru("1"), oru("1", "A2"))
    assert (card.duplicates, card.reused) == (2, 1)


def test_trailers_that_count_other_messages_are_told(checked: Any) -> None:
    assert checked("BHS|^~\\&|LIS\r", oru("1"), "BTS|2\r").issues["batch-count", "warning"] == 1


def test_what_the_server_would_refuse_or_hold_stands_with_reason_and_place(checked: Any) -> None:
    held = oru("2").replace(f"P1^^^XP^PI~{VALID}^^^^NI", "")
    card = checked(oru("1"), held, "MSH|^~\\&|LIS\r", facility="county-hospital")
    assert card.reasons["unknown-facility", "MSH-4"] == 2
    assert card.reasons["too-short-header", "MSH-9"] == 1
    assert card.examples["reason", "too-short-header", "MSH-9"] == "feed.hl7 #3 MSH[1]-9"
    assert said(card)["accepted"] == (0, 3)
    card = checked(held)
    assert (card.held, card.reasons["no-patient-key", "PID-3"]) == (1, 1)


def test_the_bar_is_a_setting_and_what_the_files_cannot_tell_does_not_count(checked: Any) -> None:
    card = checked(oru("1"))
    strict = judge(card, Settings())
    assert [v.name for v in strict if not v.met] == ["codes_mapped"]
    lenient = judge(card, Settings(golive_codes_mapped=0))
    assert meets(card, lenient)
    assert not meets(card, strict)
    assert {v.name: v.share for v in lenient}["results_ordered"] is None


def test_the_exit_code_says_whether_the_feed_may_go_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "feed").mkdir()
    (tmp_path / "feed" / "a.hl7").write_bytes(oru("1").encode())
    (tmp_path / "feed" / "b.hl7").write_bytes(
        ("FHS|^~\\&|\rBHS|^~\\&|\r" + oru("2") + oru("3") + "BTS|2\rFTS|1\r").encode()
    )
    assert tongjian(tmp_path / "feed").exit_code == 1
    monkeypatch.setenv("TONGJIAN_GOLIVE_CODES_MAPPED", "0")
    done = tongjian(tmp_path / "feed", "--json")
    assert done.exit_code == 0
    out = json.loads(done.stdout)
    assert (out["meets_bar"], out["counts"]["messages"], [f["messages"] for f in out["files"]]) == (True, 3, [1, 2])
    assert out["unmapped_codes"] == [{"local_code": "T1", "local_name": "项目一", "unit": "mmol/L", "count": 3}]


@pytest.mark.parametrize("content", [b"", b"\x00\x01\x02\x03noise\x00\x01", b"hello, world\n"])
def test_files_without_a_message_give_2_and_a_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.hl7").write_bytes(content)
    done = tongjian(tmp_path / "x.hl7")
    assert done.exit_code == 2
    assert "No HL7 v2 message can be read" in done.stderr


def test_a_missing_file_an_empty_folder_and_an_unknown_facility_give_2(tmp_path: Path) -> None:
    (tmp_path / "a.hl7").write_bytes(oru("1").encode())
    assert "does not exist" in tongjian(tmp_path / "none.hl7").stderr
    assert tongjian(tmp_path / "none.hl7").exit_code == 2
    (tmp_path / "empty").mkdir()
    assert tongjian(tmp_path / "empty").exit_code == 2
    done = tongjian(tmp_path / "a.hl7", "--facility", "nowhere")
    assert (done.exit_code, "generic" in done.stderr) == (2, True)


class _Loads(HTMLParser):
    """What a page would load from elsewhere, and whether its tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.loaded += [v or "" for k, v in attrs if k in ("src", "href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_by_itself_in_two_languages_and_escapes_what_was_sent(checked: Any) -> None:
    card = checked(oru("1", "A1", "OBX|1|NM|T1^<script>alert(1)</script>||5.6|<b>|||||F"))
    page = feed_report.as_html(card, judge(card, Settings()), datetime(2026, 3, 1, tzinfo=UTC)).decode()
    reader = _Loads()
    reader.feed(page)
    assert (reader.loaded, reader.open) == ([], [])
    assert "url(" not in page
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "未达到上线标准" in page
    assert "does not meet the go-live bar" in page


def test_no_patient_stands_on_the_terminal_in_json_or_on_the_page(tmp_path: Path) -> None:
    file, page = tmp_path / "a.hl7", tmp_path / "card.html"
    bad = oru("2").replace("王^建国", "王建国的名字非常长").replace("|F\rORC", "|王建国\rORC")
    file.write_bytes((oru("1", resident=INVALID) + bad).encode())
    texts = (tongjian(file, "--html", page).output, tongjian(file, "--json").output, page.read_text(encoding="utf-8"))
    for text in texts:
        assert not [word for word in ("王", "建国", "P1", INVALID, VALID, "19491231") if word in text]


def test_memory_does_not_grow_with_the_number_of_messages(tmp_path: Path) -> None:
    file = tmp_path / "big.hl7"
    profile = load_profiles()["generic"]

    def peak(messages: int) -> int:
        with file.open("w", encoding="utf-8", newline="") as out:
            out.writelines(oru(str(n), f"A{n}") for n in range(messages))
        tracemalloc.start()
        try:
            assert feed_check.check([file], profile).messages == messages
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    # 400 messages more are 180 kB more to read; caches of texts seen before may grow to their own limits.
    assert peak(500) - peak(100) < 3_000_000


def test_the_commands_and_figures_of_the_guide_are_true(monkeypatch: pytest.MonkeyPatch) -> None:
    docs = Path(__file__).parents[1] / "docs"
    text = (docs / "connect-a-feed.md").read_text(encoding="utf-8")
    monkeypatch.chdir(docs)
    monkeypatch.setenv("COLUMNS", "100")
    commands = re.findall(r"^tongjian check (examples/.*)$", text, re.MULTILINE)
    codes = [1, 0]  # without a profile nothing is mapped; with the profile and its code maps the bar is met
    assert len(commands) == len(codes)
    shown = re.findall(
        r"^```\n((?:Feed of|Unmapped test codes|  Results whose).*?)^```", text, re.MULTILINE | re.DOTALL
    )
    outputs = []
    for command, code in zip(commands, codes, strict=True):
        done = tongjian(*command.split())
        assert done.exit_code == code
        outputs.append("\n".join(line.rstrip() for line in done.stdout.splitlines()))
    assert [s.rstrip() in outputs[n] for s, n in zip(shown, (0, 0, 1), strict=True)] == [True, True, True]


def test_the_guide_lists_the_bar_as_it_is_set() -> None:
    text = (Path(__file__).parents[1] / "docs" / "connect-a-feed.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `(golive_\w+)` \| ([\d.]+) \|", text, re.MULTILINE))
    fields = {n: f.default for n, f in Settings.model_fields.items() if n.startswith("golive_")}
    assert {n: float(v) for n, v in told.items()} == fields
