"""Errors as values with a category; one table maps category to HTTP status and OperationOutcome code
(http://hl7.org/fhir/R4/http.html#Status-Codes, http://hl7.org/fhir/R4/valueset-issue-type.html)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class Category(Enum):
    """HTTP status, OperationOutcome.issue.code."""

    INVALID = (400, "invalid")
    UNAUTHENTICATED = (401, "login")
    FORBIDDEN = (403, "forbidden")
    NOT_FOUND = (404, "not-found")
    METHOD = (405, "not-supported")
    NOT_ACCEPTABLE = (406, "not-supported")
    TOO_SLOW = (408, "timeout")
    CONFLICT = (409, "conflict")
    GONE = (410, "deleted")
    PRECONDITION = (412, "conflict")
    MULTIPLE = (412, "multiple-matches")
    TOO_LARGE = (413, "too-long")
    MEDIA_TYPE = (415, "not-supported")
    UNPROCESSABLE = (422, "processing")
    TOO_COSTLY = (422, "too-costly")
    THROTTLED = (429, "throttled")
    INTERNAL = (500, "exception")
    UNAVAILABLE = (503, "transient")
    TIMEOUT = (503, "timeout")

    @property
    def status(self) -> int:
        """HTTP status code."""
        return self.value[0]

    @property
    def code(self) -> str:
        """FHIR issue type."""
        return self.value[1]


class Fault(Exception):
    """A request that cannot be served: category, one sentence for the client, where (FHIRPath or parameter) if known, and HTTP
    headers the answer must carry (WWW-Authenticate with 401, Allow with 405)."""

    def __init__(
        self, category: Category, text: str, *, where: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(text)
        self.category = category
        self.text = text
        self.where = where
        self.headers: Mapping[str, str] = headers or {}
