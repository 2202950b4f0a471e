"""SOAP against a running server: the stock client zeep with both bindings of the WSDL, and the examples of docs/connect-soap.md."""

from __future__ import annotations

import hashlib
import re
import subprocess
from pathlib import Path
from xml.sax.saxutils import unescape

import httpx
import pytest
import requests
import zeep
from requests.auth import HTTPBasicAuth
from zeep.transports import Transport

from .conftest import Serve, Served, eventually, oru

PAGE = (Path(__file__).parents[2] / "docs" / "connect-soap.md").read_text("utf-8")
SECRET = "0123456789abcdef0123456789abcdef"
WITHIN = 120.0
"""Seconds a busy machine may need."""
PROFILE = """
id: alpha
organization: {name: 甲县人民医院}
senders: [{facility: ALPHA}]
identifiers: {patient: [PI, ""]}
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def clients(tmp_path: Path) -> Path:
    """A file with one client that comes with a secret."""
    file = tmp_path / "clients.toml"
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    file.write_text(
        f'[[client]]\nid = "old-his"\nfacility = "alpha"\nscopes = ["system/*.cruds"]\nsecret_sha256 = "{digest}"\n',
        "utf-8",
    )
    return file


def done(served: Served, control_id: str) -> bool:
    with httpx.Client(base_url=served.base, auth=("old-his", SECRET)) as http:
        found = http.get("/messages", params={"control_id": control_id}).json()["messages"]
    return [m["status"] for m in found] == ["done"]


def test_a_stock_client_and_the_examples_of_the_page_run_as_they_stand(serve: Serve, clients: Path) -> None:
    service, table = blocks("yaml")
    with serve(PROFILE + service + table, clients_file=clients) as served:
        by_zeep(served)
        by_the_page(served)


def by_zeep(served: Served) -> None:
    """Both bindings of the WSDL, every operation that needs no earlier result, and the vendor's own service."""
    with requests.Session() as session:
        session.auth = HTTPBasicAuth("old-his", SECRET)
        client = zeep.Client(f"{served.base}/soap?wsdl", transport=Transport(session=session))
        for number, port in enumerate(("Soap11", "Soap12")):
            service = client.bind("Tongjian", port)
            taken = service.Submit(payload=oru(f"Z{number}").decode())
            assert (taken[0].status, taken[0].format, taken[0].repeated) == ("waiting", "hl7v2", False)
            assert eventually(lambda n=number: done(served, f"Z{n}"), WITHIN)
            assert service.MessageStatus(id=str(taken[0].id))[0].status == "done"
            found = service.QueryResults(patient="P1")
            assert {r.value for r in found.result} == {"5.6"}
            with pytest.raises(zeep.exceptions.Fault, match="no such patient"):
                service.QueryResults(patient="nobody")
            asked = service.CheckRecognition(patient="P1", user="D1", order=[{"code": "XYZ"}])
            assert asked.facility == "alpha"
        vendor = zeep.Client(f"{served.base}/soap/alpha?wsdl", transport=Transport(session=session))
        said = vendor.service.SaveExamInfoExXml(key="1", xml=oru("Z9").decode())
        assert said.startswith("<R><Code>1</Code>")


def by_the_page(served: Served) -> None:
    """The shell examples, one after the other."""
    environment = {"BASE": served.base, "CLIENT": "old-his", "SECRET": SECRET, "PATH": "/usr/bin:/bin"}

    def run(script: str) -> str:
        return subprocess.run(
            ["bash", "-c", script], env=environment, capture_output=True, check=True, text=True
        ).stdout

    submit, status, vendor = blocks("sh")
    said = run(submit)
    assert "<status>waiting</status>" in said
    assert "<controlId>S1</controlId>" in said
    assert eventually(lambda: "<status>done</status>" in run(status), WITHIN)
    assert "<Code>1</Code>" in unescape(run(vendor))
    with served.client() as http:
        assert eventually(lambda: '"value":6.30' in http.get("/fhir/Observation?code=WBC").text, WITHIN)
