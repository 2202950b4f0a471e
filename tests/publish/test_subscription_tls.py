"""An endpoint over HTTPS whose certificate a private authority issued: trusted by setting, refused without it."""

from __future__ import annotations

import ssl
from pathlib import Path

from tests.edge.certificates import Authority
from tests.publish.his import result
from tests.publish.subscriber import eventually, world


def test_an_endpoint_is_told_only_when_the_set_authority_vouches_for_its_name(
    database_url: str, tmp_path: Path
) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    right, nameless = authority.issue("his", server=True), authority.issue("elsewhere.example")
    context.load_cert_chain(right.certificate, right.key)
    with world(database_url, tmp_path, tls=context) as here:
        one = here.subscribe()

        def refused() -> None:
            """The handshake fails, the client sees why, and the endpoint was told nothing."""
            with here.sending():
                eventually(lambda: here.resource(one)["status"] == "error", lambda: here.state(one))
            assert here.resource(one)["error"] == "The endpoint could not be reached: ConnectError."
            assert here.hook.got == []
            asked = {**here.resource(one), "status": "requested"}
            assert here.api.http.put(f"/Subscription/{one}", json=asked).status_code == 200

        plain = here.settings
        assert plain.subscription_ca is None
        refused()
        here.settings = plain.model_copy(update={"subscription_ca": other.file})
        refused()
        here.settings = plain.model_copy(update={"subscription_ca": authority.file})
        # Of the right authority, but for another name: the key of somebody else in the network.
        context.load_cert_chain(nameless.certificate, nameless.key)
        refused()
        context.load_cert_chain(right.certificate, right.key)
        with here.sending():
            here.active(one)
            here.county.store("lab", result("1"))
            eventually(lambda: here.hook.of_type("event-notification"), lambda: here.state(one))
    assert [g.status["type"] for g in here.hook.got] == ["handshake", "event-notification"]
