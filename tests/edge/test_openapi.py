"""schemathesis calls everything the OpenAPI description names, with values it makes up: nothing may end in a 5xx."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.edge.conftest import Serve

# ``make fuzz-api`` asks for more; the numbers of ``make test`` are the same in every run.
EXAMPLES = int(os.environ.get("TONGJIAN_OPENAPI_EXAMPLES", "3"))
SEED = int(os.environ.get("TONGJIAN_SEED", "20261122"))
RESOURCES: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "data/search/county.json").read_text("utf-8"))


def damaged(draw: st.DrawFn, value: Any) -> Any:
    """A resource with one member, somewhere in it, replaced by something else."""
    if isinstance(value, dict) and value:
        name = draw(st.sampled_from(sorted(value)))
        return value | {name: damaged(draw, value[name])}
    if isinstance(value, list) and value:
        return [damaged(draw, value[0]), *value[1:]]
    return draw(st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=20), st.just([]), st.just({})))


@st.composite
def resources(draw: st.DrawFn) -> Any:
    """A resource that is sound, or nearly; some of them in a Bundle."""
    resource = draw(st.sampled_from(RESOURCES))
    resource = damaged(draw, resource) if draw(st.booleans()) else resource
    if not draw(st.booleans()):
        return resource
    url = draw(
        st.sampled_from([str(resource.get("resourceType")), "Patient?name=x", "Observation/_history", "$export"])
    )
    method = draw(st.sampled_from(["POST", "GET", "PUT", "DELETE", "PATCH", "HEAD"]))
    entry = {"resource": resource, "request": {"method": method, "url": url}}
    return {"resourceType": "Bundle", "type": draw(st.sampled_from(["batch", "transaction"])), "entry": [entry]}


def test_no_operation_of_the_description_ends_in_a_server_error(serve: Serve) -> None:
    with serve() as served, served.client() as http:
        description = http.get("/openapi.json").raise_for_status().json()
        schema = schemathesis.openapi.from_dict(description)
        operations = [found.ok() for found in schema.get_all_operations()]
        assert len(operations) == sum(len(methods) for methods in description["paths"].values())
        failed: list[str] = []
        for operation in operations:
            # HEAD is GET without the body: the same function.
            if operation.method != "head":
                _call(http, operation, failed)
    assert failed == [], f"seed {SEED}, {EXAMPLES} examples an operation"


def _call(http: httpx.Client, operation: Any, failed: list[str]) -> None:
    has_resource = operation.path.startswith("/fhir") and operation.method.upper() in ("POST", "PUT")

    @seed(SEED)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(), resource=resources() if has_resource else st.none())
    def call(case: Any, resource: Any) -> None:
        if has_resource and case.media_type == "application/fhir+json":
            case.body = resource
            # Where it belongs; a damaged one may say anything about itself.
            if (
                "kind" in case.path_parameters
                and isinstance(resource.get("resourceType"), str)
                and resource["resourceType"]
            ):
                case.path_parameters["kind"] = resource["resourceType"]
        sent = case.as_transport_kwargs(base_url=str(http.base_url))
        headers = {k: v for k, v in sent.pop("headers").items() if k.lower() != "authorization"}
        sent.pop("cookies", None)
        request = http.build_request(headers=headers, **sent)
        answer = http.send(request)
        if answer.status_code >= 500:
            failed.append(
                f"{request.method} {request.url}: {answer.status_code} {answer.text[:300]}\n{request.content!r}"
            )

    call()
