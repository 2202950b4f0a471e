"""Logging and metrics carry no patient data."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from fhir_server import telemetry
from fhir_server.errors import Category, Fault
from fhir_server.scrape import WorkerCounts

SECRET = "王小明 330106198001011234"


@pytest.fixture
def lines() -> Iterator[Any]:
    """Log records of this test as JSON objects."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(telemetry.JsonLines())
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield lambda: [json.loads(line) for line in out.getvalue().splitlines()]
    finally:
        root.removeHandler(handler)


log = logging.getLogger("fhir_server.test")


def test_a_line_holds_the_text_and_the_named_fields(lines: Any) -> None:
    log.warning("message %s held", 7, extra={"facility": "county", "reason": "bad-date"})
    (line,) = lines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("at"))
    assert line == {
        "level": "WARNING",
        "logger": "fhir_server.test",
        "text": "message 7 held",
        "facility": "county",
        "reason": "bad-date",
    }


def test_an_exception_shows_its_type_and_place_but_not_its_text(lines: Any) -> None:
    try:
        try:
            raise ValueError(SECRET)
        except ValueError as fault:
            raise RuntimeError(SECRET) from fault
    except RuntimeError as fault:
        log.exception("the batch failed")
        log.error("because of %s", fault)
        log.error(fault)
    shown = lines()
    assert SECRET not in json.dumps(shown, ensure_ascii=False)
    assert [e.partition(" at ")[0] for e in shown[0]["exception"]] == ["RuntimeError", "ValueError"]
    assert shown[1]["text"] == "because of RuntimeError"
    assert shown[2]["text"] == "RuntimeError"


def test_a_fault_shows_our_own_sentence(lines: Any) -> None:
    try:
        raise Fault(Category.UNAVAILABLE, "The database is away.")
    except Fault:
        log.exception("no answer")
    assert lines()[0]["exception"][0].endswith(": The database is away.")


def test_a_field_that_is_no_json_value_shows_its_type(lines: Any) -> None:
    log.warning("x", extra={"fault": ValueError(SECRET)})
    assert lines()[0]["fault"] == "ValueError"


def test_a_task_nobody_waited_for_does_not_show_its_exception(lines: Any) -> None:
    async def fail() -> None:
        raise ValueError(SECRET)

    async def inside() -> None:
        task = asyncio.ensure_future(fail())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        del task

    asyncio.run(inside())
    shown = lines()
    assert [line["text"] for line in shown] == ["Task exception was never retrieved"]
    assert SECRET not in json.dumps(shown, ensure_ascii=False)


def test_a_library_is_quoted_without_its_values(lines: Any) -> None:
    library = logging.getLogger("some.library")
    library.warning("row %s is odd", SECRET, extra={"row": SECRET})
    logging.getLogger("asyncio").error(f"Exception in callback receive('{SECRET}')\nhandle: <{SECRET}>")
    logging.getLogger("py.warnings").warning("%s", f"/lib/x.py:7: UserWarning: {SECRET}\n  code")
    shown = lines()
    assert [line["text"] for line in shown] == [
        "row %s is odd",
        "Exception in callback receive",
        "/lib/x.py:7: UserWarning",
    ]
    assert SECRET not in json.dumps(shown, ensure_ascii=False)


def test_a_line_break_in_a_text_stays_on_one_line(lines: Any) -> None:
    log.warning("one\ntwo")
    assert [line["text"] for line in lines()] == ["one\ntwo"]


def test_configure_writes_json_lines_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    try:
        telemetry.configure("WARNING")
        log.info("not shown")
        log.warning("shown")
        sys.excepthook(ValueError, ValueError(SECRET), None)
    finally:
        logging.captureWarnings(False)
        sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
        for handler in list(root.handlers):
            root.removeHandler(handler)
        for handler in before:
            root.addHandler(handler)
        root.setLevel(level)
    captured = capsys.readouterr()
    assert [json.loads(line)["text"] for line in captured.err.splitlines()] == ["shown", "process_failed"]
    assert SECRET not in captured.err
    assert captured.out == ""


def test_the_metrics_are_exposed_under_the_names_of_the_table() -> None:
    telemetry.RECEIVED.labels("county", "default", "hl7v2").inc()
    telemetry.REQUEST_SECONDS.labels("read", "200").observe(0.004)
    workers = CollectorRegistry()
    workers.register(WorkerCounts())
    text = (generate_latest() + generate_latest(workers)).decode()
    for name in telemetry.METRICS:
        assert f"# TYPE {name} " in text
    assert 'tongjian_messages_received_total{channel="default",facility="county",format="hl7v2"}' in text
    assert 'tongjian_request_seconds_bucket{interaction="read",le="0.005",status="200"}' in text


def test_the_documentation_lists_exactly_these_metrics() -> None:
    text = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text("utf-8")
    assert re.findall(r"^\| `(tongjian_\w+)`", text, re.MULTILINE) == list(telemetry.METRICS)
