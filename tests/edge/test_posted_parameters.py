"""A posted SearchParameter on a running installation: indexed by itself, known to the workers, still there after a restart."""

from __future__ import annotations

import socket

from tests.edge.conftest import Serve, Served, eventually, exchange, oru

PARAMETER = {
    "resourceType": "SearchParameter",
    "url": "http://example.org/sp/source-unit",
    "name": "unit",
    "status": "active",
    "description": "unit of the value as sent",
    "code": "unit",
    "base": ["Observation"],
    "type": "string",
    "expression": "Observation.value.ofType(Quantity).unit",
}


def sent(served: Served, *numbers: str) -> None:
    with socket.create_connection(("127.0.0.1", served.mllp_port), timeout=10) as connection:
        for number in numbers:
            assert b"|AA|" in exchange(connection, oru(number))


def found(served: Served) -> int:
    with served.client("administrator") as http:
        answer = http.get("/fhir/Observation?unit=mmol", headers={"Prefer": "handling=strict"})
        return len(answer.json().get("entry", [])) if answer.status_code == 200 else -1


def test_a_posted_parameter_finds_old_and_new_results_and_survives_a_restart(serve: Serve) -> None:
    with serve(workers=2) as served:
        sent(served, "A1", "A2")
        with served.client("administrator") as http:
            assert eventually(lambda: len(http.get("/fhir/Observation").json().get("entry", [])) == 2, 60)
        with served.client("administrator") as http:
            assert http.post("/fhir/SearchParameter", json=PARAMETER).status_code == 201
        assert eventually(lambda: found(served) == 2, 60)
        sent(served, "A3", "A4", "A5")
        assert eventually(lambda: found(served) == 5, 60)
    with serve(workers=1) as served:
        assert found(served) == 5
