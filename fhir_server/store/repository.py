"""Writing resources, inside the caller's transaction. The hot path: no round trip per resource.

``apply`` stores converted messages, ``put`` and ``delete`` (writes.py) serve the API. Everybody who writes takes the locks of the
patients concerned first (and before these those of report numbers), each kind in one order: writers wait, they do not deadlock.
The transaction must be READ COMMITTED (the default), and ``apply`` should be its first writing call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from fhir_server.store import cultures, documents, images, orders, rows, voided
from fhir_server.store.body import Codec
from fhir_server.store.change import Change, Origin
from fhir_server.store.fold import fold, is_older
from fhir_server.store.statement import Key, State, Statement, of_entry, with_status
from fhir_server.store.versions import DIAGNOSTIC_REPORT, ENCOUNTER, SPECIMEN, Batch, stored_resource, write
from fhir_server.store.writes import delete, put
from mappings.model import Entry

__all__ = ["Change", "Origin", "apply", "delete", "put"]


def apply(
    conn: psycopg.Connection[Any], codec: Codec, batches: Sequence[tuple[Origin, Sequence[Entry]]]
) -> list[Change]:
    """Stores the entries of messages, in order of arrival; the outcome does not depend on that order.

    Gives one Change for each version written (current or stale); what changed nothing gives none. Raises ValueError for an entry
    that cannot be stored (foreign id, unknown type), and psycopg's errors; the caller rolls back.
    """
    statements = [of_entry(entry, origin) for origin, entries in batches for entry in entries]
    with conn.cursor(binary=True) as cursor:
        statements = _news(cursor, statements)
        numbers = _Numbers(cursor, statements)
        rows.lock(cursor, [*(s.patient or _name(s) for s in statements), *numbers.patients()])
        batch = Batch()
        keyed: dict[Key, list[Statement]] = {}
        for s in statements:
            keyed.setdefault(s.key, []).append(s)
            if s.key[1] in (DIAGNOSTIC_REPORT, SPECIMEN, ENCOUNTER):
                batch.named[s.key] = s.resource
        batch.before = rows.states(cursor, {*keyed, *_parents(statements), *numbers.reports()})
        taken = {key: batch.before[key] for key in numbers.reports() if key in batch.before}
        taken |= rows.family(cursor, [(key[0], key[2]) for key in numbers.reports()])
        batch.before |= taken
        _fold(cursor, batch, keyed, numbers.withdrawn(batch.before))
        _turn(cursor, codec, batch, taken, numbers)
        voided.follow(cursor, codec, batch)
        images.join(cursor, codec, batch)
        cultures.join(cursor, codec, batch)
        documents.join(cursor, codec, batch)
        orders.follow(cursor, codec, batch)
        rows.put_owners(cursor, numbers.changed)
        return write(cursor, codec, batch)


def _name(statement: Statement) -> str:
    return f"{statement.resource_type}/{statement.key[2]}"


def _news(cursor: rows.Cursor, statements: list[Statement]) -> list[Statement]:
    """Leaves out what is known of directory resources (Practitioner, Organization ...): mentions of those that exist, and what is
    current already. Most messages name the same few, and nobody should wait for another to name them again."""
    directory = {s.key for s in statements if s.patient is None}
    known = rows.states(cursor, directory)
    return [
        s
        for s in statements
        if s.patient is not None or (state := known.get(s.key)) is None or not (s.mention or s.content == state.content)
    ]


def _parents(statements: list[Statement]) -> set[Key]:
    return {(s.key[0], DIAGNOSTIC_REPORT, s.parent) for s in statements if s.parent}


class _Numbers:
    """The report numbers of a batch and whose they are: the newest statement of a number decides (business_key.claim)."""

    def __init__(self, cursor: rows.Cursor, statements: Sequence[Statement]) -> None:
        self._numbers: dict[tuple[int, str], bytes] = {}  # (shard, id of the report) -> digest of its number
        claims = [(number_of(s), s) for s in statements if s.business]
        rows.lock(cursor, (number.hex() for number, _ in claims))
        self._held = rows.owners(cursor, {number for number, _ in claims})
        self._owners = dict(self._held)
        self._takers: dict[bytes, Statement] = {}
        for number, s in claims:
            self._numbers[s.key[0], s.key[2]] = number
            owner = self._owners.get(number)
            if owner is None or s.claim > owner[4]:
                self._owners[number] = (*s.key, s.patient or "", s.claim)
                self._takers[number] = s
        for number in self._taken():
            for owner in (self._held[number], self._owners[number]):
                self._numbers[owner[0], owner[2]] = number

    def _taken(self) -> list[bytes]:
        return [n for n, held in self._held.items() if self._owners[n][3] != held[3]]

    @property
    def changed(self) -> dict[bytes, rows.Owner]:
        """Owners to record."""
        return {number: self._owners[number] for number in self._takers}

    def patients(self) -> list[str]:
        """Patients beside those of the batch whose resources change: they lose a number."""
        return [self._held[number][3] for number in self._taken()]

    def reports(self) -> list[Key]:
        """Reports whose number changed hands: of the patient who had it, and of the one who gets it."""
        return [owner[:3] for n in self._taken() for owner in (self._held[n], self._owners[n])]

    def taker(self, key: Key, state: State) -> Statement | None:
        """The statement that decides about a stored resource, when its report's number is in this batch."""
        number = self._numbers.get((key[0], state.parent or key[2]))
        return self._takers.get(number) if number is not None else None

    def withdrawn(self, states: dict[Key, State]) -> Callable[[Statement], bool]:
        """Whether a statement is about a report (or part of one) whose number belongs to another patient."""

        def withdrawn(s: Statement) -> bool:
            number = self._numbers.get((s.key[0], s.parent or s.key[2]))
            if number is not None:
                return self._owners[number][3] != s.patient
            # The message does not carry the report itself: as the report is, so are its parts.
            report = states.get((s.key[0], DIAGNOSTIC_REPORT, s.parent or ""), states.get(s.key))
            return report is not None and report.withdrawn is not None

        return withdrawn


def number_of(statement: Statement) -> bytes:
    """The report number of a statement as business_key has it: 16 bytes."""
    name = f"{statement.origin.facility}\x1f{statement.business}"
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def _fold(
    cursor: rows.Cursor, batch: Batch, keyed: dict[Key, list[Statement]], withdrawn: Callable[[Statement], bool]
) -> None:
    before = batch.before
    late = [
        key
        for key, said in keyed.items()
        if (state := before.get(key)) is not None and state.top > 1 and (len(said) > 1 or is_older(said[0], state))
    ]
    kept = rows.kept_contents(cursor, late)
    for key, said in keyed.items():
        after, versions = fold(before.get(key), said, withdrawn, kept.get(key, set()))
        if after is not None:
            batch.after[key] = after
        if versions:
            batch.versions[key] = versions


def _turn(cursor: rows.Cursor, codec: Codec, batch: Batch, taken: dict[Key, State], numbers: _Numbers) -> None:
    """Withdraws what belongs to a report number that went to another patient; ends the withdrawal of what came back."""
    turning: dict[Key, Statement] = {}
    for key in taken:
        state = batch.after.get(key, batch.before[key])
        taker = numbers.taker(key, state)
        if (
            taker is not None
            and not state.deleted
            and (state.patient != taker.patient) != (state.withdrawn is not None)
        ):
            turning[key] = taker
    for key, stored in rows.bodies(cursor, turning).items():
        state, taker = batch.after.get(key, batch.before[key]), turning[key]
        resource = stored_resource(codec, stored)
        if state.withdrawn is not None:
            resource = with_status(resource, state.withdrawn)
        voided.turn(batch, key, state, resource, taker.origin)
