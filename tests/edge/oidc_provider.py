"""A small OpenID Connect provider as a process of its own, made with joserfc: discovery, keys, rotation, and tokens as a test asks.

POST /do with JSON {"do": "rotate" | "drop" | "sign" | "discovery" | "log", ...}; prints its address when it answers.
"""

from __future__ import annotations

import base64
import hmac
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

ALGORITHMS = ["RS256", "ES256", "ES384"]
keys: list[RSAKey | ECKey] = [RSAKey.generate_key(2048, {"kid": "k1", "use": "sig", "alg": "RS256"})]
stranger = RSAKey.generate_key(2048, {"kid": "k1"})
changes: dict[str, Any] = {}
asked: list[str] = []


def part(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def sign(told: dict[str, Any]) -> str:
    header, claims = {"alg": "RS256", "kid": keys[-1].kid, **told.get("header", {})}, told["claims"]
    header = {name: value for name, value in header.items() if value is not None}
    key: Any = stranger if told.get("stranger") else keys[-1]
    if header["alg"] == "HS256":  # joserfc would not take a public key for a secret
        signed = ".".join(map(part, (header, claims)))
        mac = hmac.digest(keys[-1].as_pem(private=False), signed.encode(), "sha256")
        return f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    if header["alg"].startswith("ES"):
        key = ECKey.generate_key({"ES256": "P-256", "ES384": "P-384"}[header["alg"]])
    return jwt.encode(header, claims, key, algorithms=ALGORITHMS)


class Provider(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        asked.append(self.path)
        base = f"http://127.0.0.1:{self.server.server_address[1]}"
        if self.path == "/.well-known/openid-configuration":
            if "redirect" in changes:
                self.send_response(302)
                self.send_header("Location", changes["redirect"])
                self.end_headers()
                return
            self.answer({"issuer": base, "jwks_uri": f"{base}/keys", **changes})
        elif self.path == "/keys":
            self.answer({"keys": [*(k.as_dict(private=False) for k in keys), {"kty": "unknown"}]})
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        match told["do"]:
            case "rotate":
                keys.append(RSAKey.generate_key(2048, {"kid": f"k{len(keys) + 1}", "use": "sig"}))
            case "drop":
                del keys[0]
            case "discovery":
                changes.clear()
                changes.update(told["changes"])
        self.answer({"token": sign(told) if told["do"] == "sign" else "", "asked": asked})

    def answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    sys.stdout.write(f"http://127.0.0.1:{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()
