"""What becomes of statements about one resource: pure, and the same in whatever order they arrive.

The current version is the statement of the greatest recency; an older one is kept in history as stale; a repeated one changes
nothing; a message converted anew under another mapping takes the place of what it said before; a mention never touches what was
stated in earnest. A statement whose report number belongs to another patient is stored as
entered-in-error (``withdrawn``), but takes part in the order with what it stated, so that it can come into force again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from fhir_server.store.change import Kind, Origin
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
    return (
        statement.recency < state.recency
        and statement.content != state.content
        and not _outranked(statement, state)
        and not _converted_anew(statement, state)
    )


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
            state = State(1, 1, updated, False, s.patient, s.parent, s.recency, s.content, stated, *_source(s.origin))
            versions.append(Version(s, 1, updated, "created", stated))
            continue
        if s.content == state.content:
            if s.recency > state.recency:
                state = _moved(state, recency=s.recency)
            continue
        anew = _converted_anew(s, state)
        if _outranked(s, state) and not anew:
            continue
        top = state.top + 1
        if s.recency < state.recency and not anew:
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
        state = State(top, top, updated, False, s.patient, s.parent, s.recency, s.content, stated, *_source(s.origin))
    return state, versions


def _outranked(statement: Statement, state: State) -> bool:
    return statement.mention and state.recency[0] > statement.recency[0]


def advanced(state: State, origin: Origin, withdrawn: str | None) -> State:
    """The state after a withdrawal, or the end of one: a new version of the same statement, because of what ``origin`` stated."""
    return State(
        state.top + 1,
        state.top + 1,
        max(to_millisecond(origin.recorded), state.updated),
        False,
        state.patient,
        state.parent,
        state.recency,
        state.content,
        withdrawn,
        *_source(origin),
    )


def _source(origin: Origin) -> tuple[int | None, int | None]:
    return origin.inbox, origin.mapping


def _converted_anew(statement: Statement, state: State) -> bool:
    """The current version is what the same message said under another mapping. The mended one takes its place, whatever the recency:
    it is not a second statement that could be older or newer."""
    origin = statement.origin
    return origin.inbox is not None and origin.inbox == state.inbox and origin.mapping != state.mapping


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
        state.mapping,
    )
