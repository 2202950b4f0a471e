"""Calls from browsers (CDS Hooks 2.0, section "Cross-Origin Resource Sharing"; Fetch standard, section 3.2).

Tokens come in a header, never in cookies, so no credentials are allowed.
"""

from __future__ import annotations

from typing import Final

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

_ASKED: Final = (
    "Authorization", "Content-Type", "Accept", "If-Match", "If-None-Match", "If-None-Exist", "If-Modified-Since", "Prefer",
    "Idempotency-Key",
)  # fmt: skip


def install(app: FastAPI, origins: str) -> None:
    """Lets clients in browsers call from ``origins`` (blanks between them); none: the application stays as it is."""
    if not origins:
        return
    app.add_middleware(
        CORSMiddleware,
        allow_origins=origins.split(),
        allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=_ASKED,
        expose_headers=["ETag", "Last-Modified", "Location", "Content-Location"],
    )
