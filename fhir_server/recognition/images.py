"""The study behind an examination: is it complete, can it be opened, is it fit? Read where an examination is ordered, which is rare.

DiagnosticReport.imagingStudy leads to the ImagingStudy (http://hl7.org/fhir/R4/imagingstudy.html): complete when it is ``available``
and its series hold no fewer instances than it names, reachable when it or one of its series has an endpoint. Its quality is what our
extension states.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from conformance import systems
from conformance.fhirjson import loads
from fhir_server.recognition.candidate import Candidate
from fhir_server.store import reader
from fhir_server.store.body import Codec
from fhir_server.store.stated import place
from mappings.imaging_study import NOT_ACQUIRED

# View Position (PS3.3 C.8.11.3, C.8.7.1.1) in the words of items.csv.
_VIEWS: Final = {
    **dict.fromkeys(("AP", "PA"), "ap"),
    **dict.fromkeys(("LL", "RL", "LAT", "LATERAL", "ML", "LM"), "lateral"),
    **dict.fromkeys(("LLO", "RLO", "LPO", "RPO", "LAO", "RAO", "OBL", "OBLIQUE"), "oblique"),
}
_UNFINISHED: Final = frozenset({"registered", "cancelled", "entered-in-error"})


async def with_images(db: Any, codec: Codec, found: Sequence[Candidate], items: Iterable[str]) -> tuple[Candidate, ...]:
    """The candidates, those of ``items`` (imaging items) with what is known of their studies as it is now: two queries, or none."""
    wanted = frozenset(items)
    reports = {c.report for c in found if c.report and c.item in wanted}
    if not reports:
        return tuple(found)
    stored = await reader.read_many(db, codec, [("DiagnosticReport", r) for r in sorted(reports)])
    studies = {i: references(loads(s.body)) for (_, i), s in stored.items() if not s.deleted}
    opened = await reader.read_many(
        db, codec, [("ImagingStudy", i) for i in sorted({i for many in studies.values() for i in many})]
    )
    bodies = {i: loads(s.body) for (_, i), s in opened.items() if not s.deleted}
    return tuple(
        c._replace(**facts([bodies[i] for i in studies.get(c.report or "", ()) if i in bodies]))
        if c.item in wanted
        else c
        for c in found
    )


def references(report: Mapping[str, Any]) -> list[str]:
    """Logical ids of the ImagingStudies a DiagnosticReport names."""
    named = [r.get("reference", "") for r in report.get("imagingStudy") or ()]
    return [r.removeprefix("ImagingStudy/") for r in named if r.startswith("ImagingStudy/")]


def facts(studies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """ImagingStudies of one report -> the fields of a Candidate about images; all None without any."""
    if not studies:
        return {}
    said = [(_complete(s), _reachable(s), _quality(s)) for s in studies]
    complete, reachable, quality = zip(*said, strict=True)
    return {
        "images_complete": _every(complete),
        "images_reachable": _every(reachable),
        "image_quality": next((q for q in quality if q), None),
        **_said(_acquired(studies)),
    }


def _acquired(studies: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The series of images; a dose report or key object selection says nothing of sites and contrast."""
    every = [series for study in studies for series in study.get("series") or ()]
    return [s for s in every if (s.get("modality") or {}).get("code") not in NOT_ACQUIRED]


def _said(series: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Body site, side, contrast and views of all series together; what one of them does not tell is not known of the whole."""
    places = [_place(s, "bodySite") for s in series]
    sides = {_place(s, "laterality")[1] for s in series}
    agents = {_contrast(s) for s in series}
    views = [_views(s) for s in series]
    return {
        "image_site": _one({site for site, _ in places}),
        "image_side": "bilateral" if sides == {"left", "right"} else _one(sides),
        "image_contrast": "without-and-with" if agents == {"with", "without"} else _one(agents),
        "image_views": " ".join(sorted({v for many in views for v in many})) if views and all(views) else None,
    }


def _place(series: Mapping[str, Any], element: str) -> tuple[str | None, str | None]:
    return place({"coding": [series[element]]}) if series.get(element) else (None, None)


def _one(told: set[str | None]) -> str | None:
    return next(iter(told)) if len(told) == 1 else None


def _told(series: Mapping[str, Any], url: str) -> list[str]:
    return [str(e.get("valueString", "")) for e in series.get("extension") or () if e.get("url") == url]


def _contrast(series: Mapping[str, Any]) -> str | None:
    told = _told(series, systems.CONTRAST)
    return None if not told else "without" if told == ["without"] else "with"


def _views(series: Mapping[str, Any]) -> set[str]:
    """Views in the words of the catalogue; none when one of them is a word that is not known."""
    found = {_VIEWS.get(word.upper().strip()) for word in _told(series, systems.VIEW)}
    return set() if None in found else {v for v in found if v}


def _every(answers: Iterable[bool | None]) -> bool | None:
    told = tuple(answers)
    return False if False in told else None if None in told else True


def _complete(study: Mapping[str, Any]) -> bool | None:
    status, named = study.get("status"), study.get("numberOfInstances")
    if status in _UNFINISHED:
        return False
    present = [s.get("numberOfInstances") for s in study.get("series") or ()]
    if status != "available" or named is None or not present or None in present:
        return None
    return bool(sum(present) >= named > 0)


def _reachable(study: Mapping[str, Any]) -> bool | None:
    if study.get("endpoint") or any(s.get("endpoint") for s in study.get("series") or ()):
        return True
    return None


def _quality(study: Mapping[str, Any]) -> str | None:
    for extension in study.get("extension") or ():
        if extension.get("url") == systems.IMAGE_QUALITY:
            return next((v for k, v in extension.items() if k in ("valueString", "valueCode") and v), None)
    return None
