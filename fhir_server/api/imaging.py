"""Pictures of a stored study out of its archive: thumbnails and rendered frames (PS3.18 sections 10.4.1.1.2 and 10.4.1.1.3).

Who may read the ImagingStudy may see its pictures, and each look is in the audit log before the picture leaves. The archive is one
that a facility's profile names; study, series and instance are those of the ImagingStudy as it came in a message, so no request can
name another host, another study or another patient.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import orjson
from fastapi import APIRouter, Request, Response

from conformance import systems
from fhir_server.api.interaction import Touched, audited, context_of
from fhir_server.api.security import Asker, permit, permit_role, services_of
from fhir_server.api.visible import seen_by
from fhir_server.errors import Category, Fault
from fhir_server.imaging.archive import Archive, ArchiveAway
from fhir_server.services import Services
from fhir_server.store import reader
from mappings.facility import Pacs
from mappings.ids import directory_id

router = APIRouter()

_UID = re.compile(r"[0-9.]{1,64}")
_MEDIA: Final = ("image/jpeg", "image/png", "image/gif")
_ASKED: Final = "image/jpeg"
"""The type every archive renders (PS3.18 table 10.4.4-2); some refuse a list of types."""
_MOST: Final = 64 * 1024 * 1024
_SMALL: Final = "200,200"
_NO_THUMBNAILS: Final = frozenset({400, 404, 405, 406, 415, 501})
_ROLES: Final = ("clinician", "integrator", "system", "patient")
"""Not auditors: a picture shows names that no pseudonym hides."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the pictures of a study are."""

    archive: Pacs
    study: str
    series: dict[str, list[str]]


@router.get("/imaging/ImagingStudy/{logical}/thumbnail")
async def thumbnail(request: Request, asker: Asker, logical: str) -> Response:
    """A small picture of the study: its middle instance."""
    place = await _looked_up(request, asker, logical, "thumbnail")
    found = [(series, instance) for series, instances in place.series.items() for instance in instances]
    if not found:
        raise Fault(Category.NOT_FOUND, "The study has no instances that are known.")
    series, instance = found[len(found) // 2]
    path = f"studies/{place.study}/series/{series}/instances/{instance}"
    # Not every archive has thumbnails, or makes pictures smaller.
    for last, parameters in (("thumbnail", {}), ("rendered", {"viewport": _SMALL}), ("rendered", {})):
        picture = await _picture(place.archive, f"{path}/{last}", parameters)
        if picture.status_code not in _NO_THUMBNAILS:
            break
    return _answered(picture)


@router.get("/imaging/ImagingStudy/{logical}/series/{series}/instances/{instance}/rendered")
async def rendered(request: Request, asker: Asker, logical: str, series: str, instance: str) -> Response:
    """One instance as the archive renders it."""
    return await _rendered(request, asker, logical, series, instance, "")


@router.get("/imaging/ImagingStudy/{logical}/series/{series}/instances/{instance}/frames/{frame}/rendered")
async def rendered_frame(
    request: Request, asker: Asker, logical: str, series: str, instance: str, frame: str
) -> Response:
    """One frame of an instance, counted from 1."""
    if not frame.isascii() or not frame.isdecimal() or not 1 <= int(frame[:9]) <= 10_000_000:
        raise Fault(Category.INVALID, "A frame is a number from 1.", where="frame")
    return await _rendered(request, asker, logical, series, instance, f"/frames/{int(frame[:9])}")


async def _rendered(request: Request, asker: Asker, logical: str, series: str, instance: str, frame: str) -> Response:
    place = await _looked_up(request, asker, logical, "rendered")
    if instance not in place.series.get(series, ()):
        raise Fault(Category.NOT_FOUND, "The study has no such instance.")
    path = f"studies/{place.study}/series/{series}/instances/{instance}{frame}/rendered"
    return _answered(await _picture(place.archive, path, {}))


async def _looked_up(request: Request, asker: Asker, logical: str, name: str) -> _Place:
    """The study as the asker may read it; the audit entry is durable when this returns. Raises Fault."""
    await permit(request, asker, "read", "ImagingStudy")
    await permit_role(request, asker, name, *_ROLES)
    services = services_of(request)
    seen = await seen_by(services, asker, context_of(request), "r")
    stored = await reader.read(seen.keyed or seen.pool, seen.codec, "ImagingStudy", logical)
    known = stored is not None and not stored.deleted
    touched = [Touched("ImagingStudy", stored.patient)] if stored is not None else []
    where = f"ImagingStudy/{logical}"
    outcome: Any = "0" if known else "4"
    await audited(request, asker, "R", name, touched, types={"ImagingStudy"}, resource=where, outcome=outcome)
    if stored is None or not known:
        raise Fault(Category.NOT_FOUND, f"{where} is not known.")
    # What a client wrote may name any study of the archive; what an archive or modality sent names its own.
    place = _place(services, orjson.loads(stored.body)) if stored.inbox is not None else None
    if place is None:
        raise Fault(Category.NOT_FOUND, "No archive with pictures of this study is known.")
    return place


def _place(services: Services, study: dict[str, Any]) -> _Place | None:
    archives = {
        f"Endpoint/{directory_id(profile.id, 'Endpoint', pacs.name)}": pacs
        for profile in services.profiles.values()
        for pacs in profile.facility.pacs
        if pacs.dicomweb
    }
    named = [endpoint.get("reference", "") for endpoint in study.get("endpoint", [])]
    archive = next((archives[reference] for reference in named if reference in archives), None)
    uid = next(
        (
            i["value"].removeprefix("urn:oid:")
            for i in study.get("identifier", [])
            if i.get("system") == systems.STUDY_UID
        ),
        "",
    )
    if archive is None or not _UID.fullmatch(uid):
        return None
    series = {
        one["uid"]: [i["uid"] for i in one.get("instance", []) if _UID.fullmatch(i["uid"])]
        for one in study.get("series", [])
        if _UID.fullmatch(one["uid"])
    }
    return _Place(archive, uid, series)


async def _picture(pacs: Pacs, path: str, parameters: dict[str, str]) -> Response:
    """What the archive answers; its errors by their status alone. Raises Fault UNAVAILABLE when it is not reached."""
    archive = Archive(pacs)
    try:
        async with archive.get(path, _ASKED, parameters) as answer:
            media = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
            if answer.status_code != 200 or media not in _MEDIA:
                return Response(status_code=answer.status_code if answer.status_code != 200 else 406)
            body = bytearray()
            async for chunk in answer.aiter_bytes():
                body += chunk
                if len(body) > _MOST:
                    raise ArchiveAway("the picture is too large")
    except ArchiveAway:
        raise Fault(Category.UNAVAILABLE, "The archive does not answer now. Try again later.") from None
    finally:
        await archive.close()
    headers = {"Cache-Control": "private, no-store", "X-Content-Type-Options": "nosniff"}
    return Response(bytes(body), media_type=media, headers=headers)


def _answered(picture: Response) -> Response:
    if picture.status_code == 200:
        return picture
    if picture.status_code == 404:
        raise Fault(Category.NOT_FOUND, "The archive has no such picture.")
    raise Fault(Category.UNAVAILABLE, f"The archive did not render the picture (HTTP {picture.status_code}).")
