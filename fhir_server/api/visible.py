"""What one asker may see in this request: the scope that every statement is wrapped in, and the bodies he is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, cast

import asyncpg

from fhir_server.access import Principal
from fhir_server.scope.asker import scope_of
from fhir_server.scope.pseudonym import PseudonymousCodec, require_no_identity
from fhir_server.scope.rows import Scope, ScopedConnection
from fhir_server.search.query import Query
from fhir_server.search.statement import Context
from fhir_server.services import Services
from fhir_server.store.database import Borrowed

_OPENED: Final = """
SELECT s.patient FROM opened o JOIN source_patient p ON p.shard = o.shard AND p.patient = o.patient
JOIN source_patient s ON s.person = p.person WHERE o.kind = 'case' AND o.subject = $1 AND o.until > $2"""


class ScopedPool:
    """The read pool as one asker sees it."""

    def __init__(self, pool: asyncpg.Pool, scope: Scope) -> None:
        self._pool = pool
        self._scope = scope
        whole = ScopedConnection(pool, scope.wrap)
        self.fetch, self.fetchrow, self.fetchval = whole.fetch, whole.fetchrow, whole.fetchval

    def borrowed(self) -> _Scoped:
        """``async with``: one connection, for several statements."""
        return _Scoped(self._pool, self._scope)


class _Scoped:
    """A borrowed connection as one asker sees it."""

    __slots__ = ("_borrowed", "_scope")

    def __init__(self, pool: asyncpg.Pool, scope: Scope) -> None:
        self._borrowed, self._scope = Borrowed(pool), scope

    async def __aenter__(self) -> ScopedConnection:
        return ScopedConnection(await self._borrowed.__aenter__(), self._scope.wrap)

    async def __aexit__(self, *fault: Any) -> None:
        await self._borrowed.__aexit__(*fault)


async def seen_by(services: Services, asker: Principal, context: Context, letter: str) -> Services:
    """The services with the pool and the bodies of this asker: whatever reads through them sees what he may see."""
    scope = scope_of(services.settings, asker, context, letter)
    codec = services.codec
    if asker.role == "auditor":
        rows = await services.pool.fetch(_OPENED, asker.subject, context.now)
        codec = PseudonymousCodec(codec, [row["patient"] for row in rows])
    keyed = services.keyed and ScopedPool(services.keyed, scope)
    return replace(services, pool=cast(Any, ScopedPool(services.pool, scope)), keyed=cast(Any, keyed), codec=codec)


def require_searchable(asker: Principal, queries: Sequence[Query]) -> None:
    """Raises Fault FORBIDDEN for a search the role may not make."""
    if asker.role == "auditor":
        require_no_identity(queries)
