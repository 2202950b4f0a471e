"""Traces by setting: spans at a collector, joined across processes, and nothing of a patient in them."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.edge.conftest import Serve, Served, eventually, exchange, oru

NAME, NUMBER = "欧阳隐名", "990121195203075114"


class Collector:
    """Takes OTLP/HTTP in JSON, as an OpenTelemetry collector does at /v1/traces."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.bodies: list[str] = []
        self.paths: list[str] = []

    def spans(self) -> list[dict[str, Any]]:
        """All spans received, each with the role of its process."""
        found = []
        for body in self.bodies:
            for group in json.loads(body)["resourceSpans"]:
                resource = values(group["resource"]["attributes"])
                assert resource["service.name"] == "tongjian"
                for scope in group["scopeSpans"]:
                    found += [s | {"role": resource["tongjian.role"]} for s in scope["spans"]]
        return found

    def named(self, name: str) -> list[dict[str, Any]]:
        """The spans of one name."""
        return [s for s in self.spans() if s["name"] == name]


def values(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    """Attributes as a dict."""
    return {a["key"]: next(iter(a["value"].values())) for a in attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector on a free port."""
    found: Collector

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.paths.append(self.path)
            found.bodies.append(self.rfile.read(int(self.headers["Content-Length"])).decode("utf-8", "replace"))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def drive(served: Served) -> None:
    """A message, a search and an order-time check, all about one patient."""
    with socket.create_connection(("127.0.0.1", served.mllp_port), timeout=20) as line:
        exchange(line, oru("C1", name=NAME, patient=NUMBER))
    with served.client() as http:
        http.get(f"/fhir/Patient?name={NAME}&identifier={NUMBER}")
        http.get(f"/fhir/Patient/{NUMBER}")
        context = {
            "userId": NAME,
            "patientId": f"x|{NUMBER}",
            "draftOrders": {"resourceType": "Bundle", "type": "collection", "entry": []},
        }
        body = {"hook": "order-sign", "hookInstance": "6f0c8c7e-0000-4000-8000-000000000001", "context": context}
        caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        http.post("/cds-services/recognition-order-sign", json=body, headers={"traceparent": caller})


def test_a_message_is_one_trace_from_the_socket_to_the_database(serve: Serve, collector: Collector) -> None:
    with serve(otlp_endpoint=collector.endpoint) as served:
        drive(served)
        assert eventually(lambda: bool(collector.named("apply") and collector.named("receive")), 90)
    assert set(collector.paths) == {"/v1/traces"}
    (receive,), (convert,), (apply,) = (collector.named(n) for n in ("receive", "convert", "apply"))
    assert receive["role"] == "serve"
    assert convert["role"] == apply["role"] == "work"
    assert receive["traceId"] == convert["traceId"] == apply["traceId"]
    assert "parentSpanId" not in receive
    assert convert["parentSpanId"] == apply["parentSpanId"] == receive["spanId"]
    times = [int(s["startTimeUnixNano"]) for s in (receive, convert, apply)]
    assert times == sorted(times)
    assert values(convert["attributes"])["status"] == "done"
    assert values(receive["attributes"])["facility"] == "alpha"


def test_a_request_continues_the_trace_of_its_caller(serve: Serve, collector: Collector) -> None:
    with serve(otlp_endpoint=collector.endpoint) as served:
        drive(served)
    requests = {values(s["attributes"])["tongjian.interaction"]: s for s in collector.named("request")}
    assert requests.keys() == {"search-type", "read", "call"}
    (decide,) = collector.named("decide")
    assert decide["traceId"] == requests["call"]["traceId"] == "0af7651916cd43dd8448eb211c80319c"
    assert decide["parentSpanId"] == requests["call"]["spanId"]
    assert requests["call"]["parentSpanId"] == "b7ad6b7169203331"
    assert values(requests["read"]["attributes"])["http.response.status_code"] == "404"


def test_spans_show_no_name_and_no_number(serve: Serve, collector: Collector) -> None:
    with serve(otlp_endpoint=collector.endpoint) as served:
        drive(served)
        assert eventually(lambda: bool(collector.named("apply")), 90)
    shown = json.dumps(collector.spans(), ensure_ascii=False)
    assert NAME not in shown
    assert NUMBER not in shown
    assert "%E6" not in shown


def test_the_share_of_traces_is_a_setting_all_processes_agree_on(serve: Serve, collector: Collector) -> None:
    with serve(otlp_endpoint=collector.endpoint, trace_ratio=0.5) as served:
        with socket.create_connection(("127.0.0.1", served.mllp_port), timeout=20) as line:
            for number in range(40):
                exchange(line, oru(f"C{number}", patient=f"P{number}"))
        with served.client() as http:
            done = 'tongjian_messages_converted_total{channel="default",facility="alpha"} 40.0'
            assert eventually(lambda: done in http.get("/metrics").text, 90)
    traces = [{s["traceId"] for s in collector.named(n)} for n in ("receive", "convert", "apply")]
    assert traces[0] == traces[1] == traces[2]
    # 40 fair coins: fewer than 3 or more than 37 heads come up once in a million runs (binomial distribution).
    assert 3 <= len(traces[0]) <= 37


def test_without_the_setting_nothing_is_sent_whatever_the_environment_says(
    serve: Serve, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The web framework would send paths and queries by itself.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{collector.endpoint}/v1/traces")
    with serve() as served:
        drive(served)
    assert collector.bodies == []


def test_a_collector_that_is_away_costs_spans_and_nothing_else(serve: Serve) -> None:
    with serve(otlp_endpoint="http://127.0.0.1:9") as served:
        drive(served)
        with served.client() as http:
            assert http.get("/fhir/metadata").status_code == 200
        assert eventually(lambda: "traces_lost" in served.log(), 90)
    assert NAME not in served.log()
