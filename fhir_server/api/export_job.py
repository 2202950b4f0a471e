"""The work of ``$export`` (https://hl7.org/fhir/uv/bulkdata/STU2/export.html): one NDJSON file per resource type, in a folder of
its job.

A job that a restart cut off is begun again when somebody asks for it: its folder says what was asked.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from fhir_server.access import Principal
from fhir_server.api import interaction
from fhir_server.api.content import query_pairs
from fhir_server.api.responses import EXPECTED, fault_of
from fhir_server.errors import Category, Fault
from fhir_server.search import page
from fhir_server.search.definitions import compartments, parameters
from fhir_server.search.query import Filter, Query, parse
from fhir_server.search.statement import Context
from fhir_server.services import Services

KEPT: Final = timedelta(days=3)
"""How long the files of a job stay."""
MOST_RUNNING: Final = 4
_PAGE: Final = 500
_FILE: Final = "job.json"


@dataclass(slots=True)
class Job:
    """What was asked, by whom, and how far it is.

    filters  resource type -> queries (``status=final``) of which one must hold; an empty query for everything
    state    running | complete | failed
    """

    id: str
    owner: str
    request: str
    began: datetime
    patients: bool
    since: str
    filters: dict[str, list[str]]
    state: str = "running"
    counts: dict[str, int] = field(default_factory=dict)
    fault: str = ""

    def as_json(self) -> str:
        """As kept in its folder."""
        told = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps({**told, "began": self.began.isoformat()})

    @classmethod
    def of_json(cls, text: str) -> Job:
        """As it was kept."""
        told: Mapping[str, Any] = json.loads(text)
        return cls(**{**told, "began": datetime.fromisoformat(told["began"])})


class Exports:
    """The jobs of one server; their tasks live in its event loop, their files in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def begin(
        self,
        services: Services,
        context: Context,
        asker: Principal,
        request: str,
        patients: bool,
        since: str,
        filters: Mapping[str, Sequence[str]],
    ) -> Job:
        """A new job, under way. Raises Fault THROTTLED when too many are."""
        self._forget(context.now)
        if sum(not t.done() for t in self._tasks.values()) >= MOST_RUNNING:
            raise Fault(
                Category.THROTTLED, "Too many exports are running. Try again later.", headers={"Retry-After": "60"}
            )
        job = Job(
            uuid.uuid4().hex,
            asker.subject,
            request,
            context.now,
            patients,
            since,
            {k: [*v] for k, v in filters.items()},
        )
        self._place(job.id).mkdir(parents=True)
        self._keep(job)
        self._start(services, context, asker, job)
        return job

    def find(self, id: str, services: Services, context: Context, asker: Principal) -> Job:
        """The job, for whom it belongs to. Raises Fault NOT_FOUND for any other."""
        job = self._read(id)
        if job is None or job.owner != asker.subject or context.now - job.began > KEPT:
            raise Fault(Category.NOT_FOUND, "There is no such export.")
        if job.state == "running" and id not in self._tasks:
            self._start(services, context, asker, job)
        return job

    def file(self, job: Job, type: str) -> Path:
        """The NDJSON file of a type. Raises Fault NOT_FOUND."""
        if job.state != "complete" or type not in job.counts:
            raise Fault(Category.NOT_FOUND, "There is no such file.")
        return self._place(job.id) / f"{type}.ndjson"

    async def end(self, job: Job) -> None:
        """Stops the job, if it still runs, and removes its files."""
        task = self._tasks.pop(job.id, None)
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task])
        await asyncio.to_thread(shutil.rmtree, self._place(job.id), ignore_errors=True)

    def _place(self, id: str) -> Path:
        return self._folder / id

    def _read(self, id: str) -> Job | None:
        if len(id) != 32 or not set(id) <= set("0123456789abcdef"):
            return None
        path = self._place(id) / _FILE
        return Job.of_json(path.read_text("utf-8")) if path.exists() else None

    def _keep(self, job: Job) -> None:
        path = self._place(job.id) / _FILE
        draft = path.with_suffix(".new")
        draft.write_text(job.as_json(), "utf-8")
        draft.replace(path)

    def _forget(self, now: datetime) -> None:
        for folder in self._folder.iterdir() if self._folder.exists() else ():
            job = self._read(folder.name)
            if job is not None and now - job.began > KEPT:
                shutil.rmtree(folder, ignore_errors=True)
                self._tasks.pop(job.id, None)

    def _start(self, services: Services, context: Context, asker: Principal, job: Job) -> None:
        self._tasks[job.id] = asyncio.create_task(self._run(services, context, asker, job), name=f"export {job.id}")

    async def _run(self, services: Services, context: Context, asker: Principal, job: Job) -> None:
        try:
            counts = {}
            for name, wanted in job.filters.items():
                counts[name] = await self._type(services, context, asker, job, name, wanted)
            job.counts = {name: count for name, count in counts.items() if count}
            job.state = "complete"
        except EXPECTED as error:
            job.state, job.fault = "failed", fault_of(error).text
        await asyncio.to_thread(self._keep, job)

    async def _type(
        self, services: Services, context: Context, asker: Principal, job: Job, type: str, wanted: Iterable[str]
    ) -> int:
        path = self._place(job.id) / f"{type}.ndjson"
        await asyncio.to_thread(path.write_bytes, b"")
        seen: set[str] = set()
        for text in wanted:
            query = query_of(type, text, job.since, patients=job.patients)
            while True:
                found = await interaction.search(services, [query], context, asker)
                fresh = [hit for hit in found.matches if hit.id not in seen]
                seen.update(hit.id for hit in fresh)
                await asyncio.to_thread(_append, path, b"".join(hit.body + b"\n" for hit in fresh))
                if found.next is None:
                    break
                query.cursor = page.encode(query, found.next)
        return len(seen)


def _append(path: Path, lines: bytes) -> None:
    with path.open("ab") as out:
        out.write(lines)


def query_of(type: str, text: str, since: str, *, patients: bool) -> Query:
    """One filter of one type as a search. Raises Fault INVALID for a parameter that the type does not have."""
    pairs = [*query_pairs(text)]
    if since:
        pairs.append(("_lastUpdated", f"ge{since}"))
    query = parse(type, pairs, strict=True)
    if query.sort or query.includes or query.cursor:
        raise Fault(Category.INVALID, "_typeFilter takes search parameters only.", where="_typeFilter")
    query.count, query.total, query.summary, query.elements = _PAGE, "none", "", frozenset()
    if patients and type != "Patient":
        known = parameters(type)
        codes = ("patient",) if "patient" in known else compartments()["Patient"][type]
        inner = tuple((type, Filter(c, "reference", "missing", ("false",), known[c])) for c in codes)
        query.filters.append(inner[0][1] if len(inner) == 1 else Filter("", "any", "", (), None, inner))
    return query
