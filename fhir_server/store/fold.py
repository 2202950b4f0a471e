"""What becomes of statements about one resource: pure, and the same in whatever order they arrive.

The current version is the statement of the greatest recency; an older one is kept in history as stale; a repeated one changes
nothing; a mention never touches what was stated in earnest. A statement whose report number belongs to another patient is stored as
entered-in-error (``withdrawn``), but takes part in the order with what it stated, so that it can come into force again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from fhir_server.store.change import Kind
from fhir_server.store.statement import State, Statement, to_millisecond


@dataclass(frozen=True, slots=True)
class Version:
    """A version to write.

    withdrawn  the stated status, when it is stored as entered-in-error instead
    restored   the version before was withdrawn and this one is in force
    left       the Patient whose compartment it left
    """

    statement: Statement
    number: int
    updated: datetime
    kind: Kind
    withdrawn: str | None
    restored: bool = False
    left: str | None = None


def is_older(statement: Statement, state: State) -> bool:
    """True when the statement would go to history: what history holds must then be known (``kept``)."""
    return statement.recency < state.recency and statement.content != state.content and not _outranked(statement, state)


def fold(
    state: State | None,
    statements: Iterable[Statement],
    withdrawn: Callable[[Statement], bool],
    kept: set[bytes],
) -> tuple[State | None, list[Version]]:
    """Statements in order of arrival over the stored state -> the new state and the versions to write, in order.

    ``withdrawn`` says whether a statement's report number belongs to another patient; ``kept`` holds the content digests of
    history, needed only when a statement is older. The given state is not changed; the new one equals it when nothing was said.
    """
    versions: list[Version] = []
    kept = set(kept)
    for s in statements:
        stated = s.resource.get("status") or "" if withdrawn(s) else None
        updated = to_millisecond(s.origin.recorded)
        if state is None:
            state = State(1, 1, updated, False, s.patient, s.parent, s.recency, s.content, stated, s.origin.inbox)
            versions.append(Version(s, 1, updated, "created", stated))
            continue
        if s.content == state.content:
            if s.recency > state.recency:
                state = _moved(state, recency=s.recency)
            continue
        if _outranked(s, state):
            continue
        top = state.top + 1
        if s.recency < state.recency:
            if s.content not in kept:
                kept.add(s.content)
                state = _moved(state, top=top)
                versions.append(Version(s, top, updated, "stale", stated))
            continue
        kept.add(state.content)
        left = state.patient if state.patient and state.patient != s.patient and not state.deleted else None
        updated = max(updated, state.updated)
        restored = state.withdrawn is not None and stated is None
        versions.append(Version(s, top, updated, "created" if state.deleted else "updated", stated, restored, left))
        state = State(top, top, updated, False, s.patient, s.parent, s.recency, s.content, stated, s.origin.inbox)
    return state, versions


def _outranked(statement: Statement, state: State) -> bool:
    return statement.mention and state.recency[0] > statement.recency[0]


def advanced(state: State, recorded: datetime, withdrawn: str | None, inbox: int | None) -> State:
    """The state after a withdrawal, or the end of one: a new version of the same statement."""
    return State(
        state.top + 1,
        state.top + 1,
        max(to_millisecond(recorded), state.updated),
        False,
        state.patient,
        state.parent,
        state.recency,
        state.content,
        withdrawn,
        inbox,
    )


def _moved(state: State, *, top: int | None = None, recency: bytes | None = None) -> State:
    return State(
        state.version,
        state.top if top is None else top,
        state.updated,
        state.deleted,
        state.patient,
        state.parent,
        state.recency if recency is None else recency,
        state.content,
        state.withdrawn,
        state.inbox,
    )
