"""A stock of empty migrated databases on the PostgreSQL of a test run."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import psycopg


class Databases:
    """Fresh migrated databases. The next one is made, and those that were used are dropped, while the tests go on."""

    def __init__(self, postgres: str, template: str) -> None:
        self._template = template
        self._server = postgres.rpartition("/")[0]
        self._admin = psycopg.connect(postgres, autocommit=True)
        self._numbers = itertools.count(1)
        self._beside = ThreadPoolExecutor(1)
        self._next = self._beside.submit(self._make)

    def _make(self) -> str:
        name = f"test_{next(self._numbers)}"
        self._admin.execute(f"CREATE DATABASE {name} TEMPLATE {self._template}")
        return f"{self._server}/{name}"

    def take(self) -> str:
        """URL of one that nobody used."""
        made, self._next = self._next, self._beside.submit(self._make)
        return made.result()

    def drop(self, url: str) -> None:
        """Ends its connections too."""
        self._beside.submit(self._admin.execute, f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")

    def end(self) -> None:
        """Waits for what is under way; the others go with the server."""
        self._beside.shutdown(cancel_futures=True)
        self._admin.close()
