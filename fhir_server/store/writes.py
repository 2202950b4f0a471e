"""Writes of the API: create, update (also under an id the client gives), delete (http://hl7.org/fhir/R4/http.html#create ff.).

A resource about a patient lives in the shard of its Patient, any other in the shard of its own id. An id made here names its shard;
where an id does not, the directory ``client_id`` does.
"""

from __future__ import annotations

import re
import uuid
from typing import Any, Final

import psycopg

from conformance.capability import RESOURCE_TYPES
from fhir_server.errors import Category, Fault
from fhir_server.search import params
from fhir_server.store import access_rows, rows, versions, written_reports
from fhir_server.store.body import Codec
from fhir_server.store.change import Change, Origin
from fhir_server.store.fold import Version
from fhir_server.store.statement import Key, State, Statement, of_write, to_millisecond, write_recency
from mappings import ids

_ID: Final = re.compile(r"[A-Za-z0-9\-.]{1,64}")
_PATIENT: Final = RESOURCE_TYPES["Patient"]


def put(
    conn: psycopg.Connection[Any],
    codec: Codec,
    resource: dict[str, Any],
    *,
    origin: Origin,
    expected_version: int | None = None,
    create: bool = False,
    also: list[Change] | None = None,
) -> Change:
    """Stores a valid resource in the caller's transaction; the given dict is not changed. ``also`` gets what changes because of it:
    the results of a report (written_reports).

    With ``create`` it gets a new id (an ``id`` in it is ignored); else its ``id`` is updated, or created when unknown or deleted.
    A write that changes nothing gives a Change of kind ``unchanged``. Raises Fault: PRECONDITION when the current version is not
    ``expected_version`` (or there is none), UNPROCESSABLE for a resource of a feed that would move to another patient and for a bad
    reference to a Patient, CONFLICT when somebody moved it at this moment, INVALID for text no FHIR string may hold.
    """
    with conn.cursor(binary=True) as cursor:
        if create:
            resource = {**resource, "id": new_id(conn, resource)}
        kind, logical = resource["resourceType"], resource["id"]
        if not _ID.fullmatch(logical):
            raise Fault(Category.INVALID, "a logical id is 1 to 64 letters, digits, '-' and '.'", where=f"{kind}.id")
        patient = params.extract(resource).patient
        if patient and not _ID.fullmatch(patient):
            raise Fault(Category.UNPROCESSABLE, "the reference to the Patient is not Patient/<logical id>", where=kind)
        key, state = _locked(cursor, kind, logical, patient)
        if expected_version is not None and (state is None or state.deleted or state.version != expected_version):
            raise Fault(Category.PRECONDITION, f"{kind}/{logical} is not at version {expected_version}")
        shard = _shard(cursor, kind, logical, patient)
        if state is None:
            key = (shard, key[1], logical)
        elif key[0] != shard:
            key = _moved(cursor, key, state, shard)
        statement = of_write(
            key, resource, patient, state.parent if state else None, origin, state.recency if state else b""
        )
        if b"\\u0000" in statement.tail:
            raise Fault(Category.INVALID, "a string holds U+0000, which no FHIR string may hold", where=kind)
        if state is not None and state.content == statement.content and state.withdrawn is None:
            return _unchanged(cursor, codec, key, state, statement)
        if shard != ids.shard_of_id(logical):
            rows.record_given(cursor, key)
        change, *others = _written(cursor, codec, key, state, statement)
        if also is not None:
            also.extend(others)
        return change


def delete(
    conn: psycopg.Connection[Any],
    codec: Codec,
    resource_type: str,
    logical: str,
    *,
    origin: Origin,
    expected_version: int | None = None,
) -> Change | None:
    """Deletes the current state; history stays. None when there is nothing to delete (unknown, or deleted before).

    Raises Fault PRECONDITION when the current version is not ``expected_version``.
    """
    with conn.cursor(binary=True) as cursor:
        key, state = _locked(cursor, resource_type, logical, None)
        if expected_version is not None and (state is None or state.version != expected_version):
            raise Fault(Category.PRECONDITION, f"{resource_type}/{logical} is not at version {expected_version}")
        if state is None or state.deleted:
            return None
        number = state.top + 1
        updated = max(to_millisecond(origin.recorded), state.updated)
        recency = write_recency(origin.recorded, state.recency)
        gone = State(number, number, updated, True, state.patient, None, recency, b"", None, origin.inbox)
        versions.delete(cursor, codec, key, gone, origin)
        return Change("deleted", resource_type, logical, key[0], number, updated, state.patient, origin, None, b"")


def new_id(conn: psycopg.Connection[Any], resource: dict[str, Any]) -> str:
    """A fresh logical id for a resource without one. It names the shard of the resource's Patient, so that must be set already."""
    kind = resource["resourceType"]
    unique = uuid.uuid4().hex
    patient = params.extract({**resource, "id": ""}).patient if kind != "Patient" else None
    if not patient:
        return ids.directory_id("", kind, unique)
    with conn.cursor(binary=True) as cursor:
        return ids.logical_id(_shard(cursor, kind, "", patient), "", kind, unique)


def _shard(cursor: rows.Cursor, kind: str, logical: str, patient: str | None) -> int:
    """The shard a resource belongs to, also before it, or its Patient, exists."""
    if patient and kind != "Patient":
        kind, logical = "Patient", patient
        given = rows.given_shard(cursor, _PATIENT, logical)
        if given is not None:
            return given
    return ids.home_shard(kind, logical)


def _locked(cursor: rows.Cursor, kind: str, logical: str, patient: str | None) -> tuple[Key, State | None]:
    """Key and current state, with the locks of all patients concerned held; the shard in the key is -1 while nothing is stored."""
    rtype = RESOURCE_TYPES[kind]
    own = f"{kind}/{logical}"
    _, found = _find(cursor, rtype, logical)
    before = found.patient if found else None
    rows.lock(cursor, {own, patient or own, before or own})
    key, state = _find(cursor, rtype, logical)
    if state is not None and state.patient not in (before, patient):
        raise Fault(Category.CONFLICT, f"{own} was changed at the same time; read it and try again")
    return key, state


def _find(cursor: rows.Cursor, rtype: int, logical: str) -> tuple[Key, State | None]:
    shard = rows.locate(cursor, rtype, logical, ids.shard_of_id(logical))
    if shard is None:
        return (-1, rtype, logical), None
    key = (shard, rtype, logical)
    return key, rows.states(cursor, [key]).get(key)


def _moved(cursor: rows.Cursor, key: Key, state: State, shard: int) -> Key:
    if state.inbox is not None:
        raise Fault(
            Category.UNPROCESSABLE,
            "a resource that came by message cannot move to another patient: mark it entered-in-error and create another",
        )
    access_rows.forget(cursor, [key])
    rows.move(cursor, key, shard)
    return (shard, key[1], key[2])


def _written(cursor: rows.Cursor, codec: Codec, key: Key, state: State | None, statement: Statement) -> list[Change]:
    """The change of the resource, then those that follow from it."""
    origin = statement.origin
    number = state.top + 1 if state else 1
    updated = to_millisecond(origin.recorded)
    left = None
    if state is not None:
        updated = max(updated, state.updated)
        if state.patient != statement.patient and not state.deleted:
            left = state.patient
    kind: Any = "created" if state is None or state.deleted else "updated"
    version = Version(statement, number, updated, kind, None, left=left)
    after = State(
        number,
        number,
        updated,
        False,
        statement.patient,
        statement.parent,
        statement.recency,
        statement.content,
        None,
        origin.inbox,
    )
    before = {key: state} if state is not None else {}
    batch = versions.Batch(before, {key: after}, {key: [version]})
    if key[1] == versions.DIAGNOSTIC_REPORT:
        written_reports.follow(cursor, codec, batch, key)
    return versions.write(cursor, codec, batch)


def _unchanged(cursor: rows.Cursor, codec: Codec, key: Key, state: State, statement: Statement) -> Change:
    stored = rows.bodies(cursor, [key])[key]
    body = codec.decompress(*stored)
    resource = versions.stored_resource(codec, stored)
    return Change(
        "unchanged",
        statement.resource_type,
        key[2],
        key[0],
        state.version,
        state.updated,
        state.patient,
        statement.origin,
        resource,
        body,
    )
