"""`tongjian demo --exit`: the whole spine over real sockets and the embedded database, as a newcomer runs it."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the demo printed; its ports are free ones so that a running server does not disturb."""
    data = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "fhir_server.cli",
            "demo",
            "--exit",
            "--data",
            str(data),
            "--port",
            "0",
            "--mllp-port",
            "0",
        ],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "200", "LANG": "C.UTF-8"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def cells(output: str, first: str) -> list[str]:
    """The cells of the first table row that begins with a word."""
    row = next(ln for ln in output.splitlines() if re.match(rf"\W*{re.escape(first)}\s*│", ln))
    return [c.strip() for c in row.strip("│ ").split("│")]


def test_sends_a_county_of_the_promised_size(output: str) -> None:
    people, reports = map(int, re.search(r"(\d+) people, (\d+) reports", output).groups())
    assert people >= 200
    assert reports >= 1000
    assert int(cells(output, "Observation")[1]) >= 10_000


@pytest.mark.parametrize("facility", ["county-hospital", "north-township", "south-township", "east-clinic"])
def test_converts_messages_of_every_facility(output: str, facility: str) -> None:
    received, converted = cells(output, facility)[1:3]
    assert int(converted) >= int(received) * 0.95


def test_answers_five_bad_messages_each_with_a_reason(output: str) -> None:
    table = output.split("Deliberately bad messages")[1].split("\n\n", maxsplit=1)[0]
    answers = re.findall(r"\b(AA|AE|AR|CA|CE|CR)\b", table)
    assert len(answers) == 5
    assert (
        answers.count("AA") + answers.count("CA") == 3
    )  # the three content faults are held durably, so they are acknowledged


def test_holds_the_three_content_faults(output: str) -> None:
    assert cells(output, "north-township")[4] == "3"


def test_recognizes_the_prior_result_at_order_time(output: str) -> None:
    card = output.split("order-sign")[1]
    assert "可互认" in card


def test_shows_unmapped_codes_and_the_duplicate_audit(output: str) -> None:
    assert "Not mapped" in output
    assert re.search(r"avoidable", output)


def test_shows_a_mark_that_lapsed_a_partially_fresh_panel_and_an_emergency(output: str) -> None:
    box = output.split("a mark whose quality assessment lapsed")[1].split("╰", maxsplit=1)[0]
    before, after = re.findall(r"tested [\d-]+: (\S.*)", box)
    assert "可互认" in before
    assert "没有可互认" in after
    assert "室间质评不符" in after
    assert "a part is fresh" in output
    assert "order-sign: emergency" in output


def test_sends_the_county_report_back_to_the_township(output: str) -> None:
    box = output.split("back to the township's HIS")[1].split("╰", maxsplit=1)[0]
    assert "PBLWSYBACK001" in box
    assert "mmol/L" in box
