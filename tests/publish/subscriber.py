"""A subscriber's endpoint on a real socket, and a server with its sender of notifications."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fhir_server.access import issue_token
from fhir_server.audit_event import AuditLog
from fhir_server.publish.deliver import Deliveries
from fhir_server.publish.notify import Subscribing
from fhir_server.settings import Settings
from fhir_server.smart_clients import Client
from fhir_server.store.database import open_pool, open_writer
from mappings.profile import Profile
from tests.api.conftest import Api, serving
from tests.publish.his import County, profiles_to

TOPIC = "http://tongjian.org/fhir/SubscriptionTopic/"
GUIDE = "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/"


@dataclass
class Got:
    """One request the endpoint received."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    taken: bool = False
    """Answered with success."""

    @property
    def bundle(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def status(self) -> dict[str, Any]:
        """Parameters of the first entry, by name; of a repeated one the last."""
        return told(self.bundle["entry"][0]["resource"])

    @property
    def events(self) -> list[dict[str, Any]]:
        """Parts of each event, by name."""
        parameters = self.bundle["entry"][0]["resource"]["parameter"]
        return [told({"parameter": p["part"]}) for p in parameters if p["name"] == "notification-event"]


def told(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {
        p["name"]: next((v for k, v in p.items() if k.startswith("value")), p.get("part"))
        for p in parameters["parameter"]
    }


class Hook:
    """An HTTP server that answers with ``code`` (0: closes the connection without an answer) and keeps what it got.

    ``codes``: what it answers first, one after the other; ``answering``: while it is not set, a request waits, and
    gets no answer at all.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.got: list[Got] = []
        self.code = 200
        self.codes: list[int] = []
        self.answering = threading.Event()
        self.answering.set()
        self.location = ""
        self.waiting = 0
        """Requests that were received and wait for ``answering``."""
        hook = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                got = Got(self.command, self.path, dict(self.headers.items()), body)
                hook.got.append(got)
                if not hook.answering.is_set():
                    hook.waiting += 1
                    hook.answering.wait(60)
                    self.close_connection = True
                    return
                code = hook.codes.pop(0) if hook.codes else hook.code
                got.taken = 200 <= code < 300
                if not code:
                    self.close_connection = True
                    return
                self.send_response(code)
                if hook.location:
                    self.send_header("Location", hook.location)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_PUT = do_GET = do_POST  # noqa: N815 - names of the base class

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._scheme = "https" if tls else "http"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}/hook"

    def of_type(self, kind: str) -> list[Got]:
        """Notifications of a type."""
        return [g for g in self.got if g.body and g.method == "POST" and g.status["type"] == kind]

    def close(self) -> None:
        self.answering.set()
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()


@dataclass
class World:
    """A server with its sender, a laboratory and a township that send messages, and a subscriber's endpoint."""

    api: Api
    hook: Hook
    county: County
    folder: Path
    settings: Settings
    clients: dict[str, Client] = field(default_factory=dict)

    def subscribe(self, topic: str = "result-new", *filters: str, token: str = "", **channel: Any) -> str:
        """Creates a Subscription; its id."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = self.api.http.post("/Subscription", json=self.draft(topic, *filters, **channel), headers=headers)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def draft(
        self, topic: str = "result-new", *filters: str, content: str = "id-only", **channel: Any
    ) -> dict[str, Any]:
        """A Subscription as a client writes it; a criteria with ``?`` is a query."""
        resource: dict[str, Any] = {
            "resourceType": "Subscription",
            "status": "requested",
            "reason": "test",
            "criteria": topic if "?" in topic or ":" in topic else TOPIC + topic,
            "channel": {"type": "rest-hook", "endpoint": self.hook.url, **channel},
        }
        if "?" not in topic:
            resource["channel"].setdefault("payload", "application/fhir+json")
            resource["channel"]["_payload"] = {
                "extension": [{"url": GUIDE + "backport-payload-content", "valueCode": content}]
            }
        if filters:
            extensions = [{"url": GUIDE + "backport-filter-criteria", "valueString": f} for f in filters]
            resource["_criteria"] = {"extension": extensions}
        return resource

    def token(self, role: str, *scopes: str, facility: str = "town", subject: str = "other") -> str:
        life = timedelta(hours=1)
        return issue_token(self.api.keys, subject, role, facility, scopes, ttl=life, now=datetime.now(UTC))

    def state(self, logical: str) -> dict[str, Any]:
        """What $status says."""
        answer = self.api.http.get(f"/Subscription/{logical}/$status")
        assert answer.status_code == 200, answer.text
        return told(answer.json()["entry"][0]["resource"])

    def resource(self, logical: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api.http.get(f"/Subscription/{logical}").raise_for_status().json()
        return found

    def active(self, *logicals: str) -> None:
        for logical in logicals:
            eventually(
                lambda one=logical: self.resource(one)["status"] == "active", lambda one=logical: self.resource(one)
            )

    @contextmanager
    def sending(self) -> Iterator[None]:
        """The sender runs, as in a server, until the block ends."""
        started, loops, stops = threading.Event(), [], []

        async def run() -> None:
            pool = await open_pool(self.county.url, 4)
            audit = AuditLog(self.county.url)
            writer = open_writer(self.county.url, 1)
            work = Subscribing(self.settings, self.api.base, audit, self.clients, writer)
            deliveries = Deliveries(pool, self.county.profiles, self.county.codec, lambda: datetime.now(UTC), 0, work)
            loops.append(asyncio.get_running_loop())
            stops.append(deliveries.close)
            started.set()
            try:
                await deliveries.run()
            finally:
                await audit.close()
                await pool.close()
                await asyncio.to_thread(writer.close)

        thread = threading.Thread(target=lambda: asyncio.run(run()))
        thread.start()
        try:
            assert started.wait(20)
            yield
        finally:
            loops[0].call_soon_threadsafe(stops[0])
            thread.join(30)
            assert not thread.is_alive()


def eventually(holds: Callable[[], Any], what: Callable[[], object] = lambda: "", seconds: float = 40) -> None:
    """Waits until something holds."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, what()
        time.sleep(0.03)


@contextmanager
def world(
    database_url: str,
    folder: Path,
    settings: dict[str, Any] | None = None,
    profiles: Mapping[str, Profile] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Iterator[World]:
    """Everything but the sender, on free ports. tls: of the endpoint."""
    hook = Hook(tls)
    given = {"subscription_endpoints": hook.url.removesuffix("hook"), "subscription_attempts": 2, **(settings or {})}
    try:
        with serving(database_url, folder / "data", given) as api:
            county = County(database_url, profiles or profiles_to(folder / "profiles", []))
            yield World(api, hook, county, folder, Settings(data_dir=folder / "data", **given))
    finally:
        hook.close()
