"""What a result states beside its code, in the words of the catalogue: method class, body site, side, contrast medium, health check.

Observation.method, Observation.bodySite and the Encounter (http://hl7.org/fhir/R4/observation.html). A text that is in no table here
says nothing that could be compared: None, never a guess. Codes of sides: SNOMED CT.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

_METHODS: Final = tuple(
    (word, re.compile(pattern, re.I))
    for word, pattern in (
        ("nucleic-acid", r"PCR|核酸|扩增|测序|杂交|nucleic"),
        ("immunofluorescence", r"免疫荧光|间接荧光|\bIFA\b|\bIIF\b|immunofluorescence"),
        ("immunoassay", r"发光|酶联|酶免|免疫|胶体金|胶乳|放免|ELISA|CLIA|ECLI|CMIA|immunoassay"),
        ("agglutination", r"凝集|\bTPPA\b|\bTRUST\b|\bRPR\b|agglutination"),
        ("strip", r"干化学|试纸|试带|\bstrip\b"),
        ("culture", r"培养|culture"),
        ("microscopy", r"镜检|显微镜|涂片|microscop"),
        ("breath-test", r"呼气|breath"),
        ("cell-release", r"释放试验|IGRA|T-?SPOT"),
        ("westergren", r"魏氏|westergren"),
        ("visual", r"目测|肉眼|visual"),
    )
)
_PLAIN: Final = re.compile(r"平扫|without contrast|unenhanced", re.I)
_ENHANCED: Final = re.compile(r"增强|with (?:iv )?contrast", re.I)

_SIDE_CODES: Final = {"7771000": "left", "24028007": "right", "51440002": "bilateral"}
_SIDES: Final = (
    ("bilateral", re.compile(r"双侧?|两侧|bilateral", re.I)),
    ("left", re.compile(r"左侧?|\bleft\b", re.I)),
    ("right", re.compile(r"右侧?|\bright\b", re.I)),
)
# Words of items.csv (body_site) by what people write, without the side.
_SITES: Final = {
    **dict.fromkeys(("头", "头部", "头颅", "颅脑", "脑", "head", "brain"), "head"),
    **dict.fromkeys(("胸", "胸部", "肺", "肺部", "chest", "thorax"), "chest"),
    **dict.fromkeys(("腹", "腹部", "全腹", "全腹部", "abdomen"), "abdomen"),
    **dict.fromkeys(("上腹", "上腹部", "upper abdomen"), "upper-abdomen"),
    **dict.fromkeys(("盆腔", "骨盆", "pelvis"), "pelvis"),
    **dict.fromkeys(("颈", "颈部", "neck"), "neck"),
    **dict.fromkeys(("颈椎", "cervical spine"), "cervical-spine"),
    **dict.fromkeys(("胸椎", "thoracic spine"), "thoracic-spine"),
    **dict.fromkeys(("腰椎", "lumbar spine"), "lumbar-spine"),
    **dict.fromkeys(("膝", "膝关节", "knee"), "knee"),
    **dict.fromkeys(("髋", "髋关节", "hip"), "hip"),
    **dict.fromkeys(("肩", "肩关节", "shoulder"), "shoulder"),
    **dict.fromkeys(("肘", "肘关节", "elbow"), "elbow"),
    **dict.fromkeys(("腕", "腕关节", "wrist"), "wrist"),
    **dict.fromkeys(("踝", "踝关节", "ankle"), "ankle"),
    **dict.fromkeys(("手", "手部", "hand"), "hand"),
    **dict.fromkeys(("足", "足部", "foot"), "foot"),
    **dict.fromkeys(("前臂", "尺桡骨", "forearm"), "forearm"),
    **dict.fromkeys(("肱骨", "humerus"), "humerus"),
    **dict.fromkeys(("股骨", "femur"), "femur"),
    **dict.fromkeys(("胫腓骨", "tibia and fibula"), "tibia-fibula"),
    **dict.fromkeys(("跟骨", "calcaneus"), "calcaneus"),
    **dict.fromkeys(("锁骨", "clavicle"), "clavicle"),
    **dict.fromkeys(("鼻窦", "副鼻窦", "sinuses"), "sinuses"),
    **dict.fromkeys(("乳腺", "乳房", "breast"), "breast"),
    **dict.fromkeys(("心脏", "heart"), "heart"),
    **dict.fromkeys(("甲状腺", "thyroid"), "thyroid"),
    **dict.fromkeys(("肝", "肝脏", "liver"), "liver"),
}

_HEALTH_CHECK: Final = re.compile(r"体检|健康检查|health check|check-?up", re.I)
# v3 ActCode classes of a patient who is ill: whoever lies in a ward or in the emergency room is at no health check.
_ILL: Final = frozenset({"EMER", "IMP", "ACUTE", "NONAC", "OBSENC", "SS"})


class Stated(NamedTuple):
    """Columns of the flat result; None: not stated. health_check: ``yes`` or ``no``."""

    method: str | None = None
    site: str | None = None
    laterality: str | None = None
    contrast: str | None = None
    health_check: str | None = None


_NOTHING: Final = Stated()


def stated(observation: Mapping[str, Any], encounter: Mapping[str, Any] | None) -> Stated:
    """One Observation and its Encounter, where at hand -> what they state."""
    method, site = observation.get("method"), observation.get("bodySite")
    if method is None and site is None and encounter is None:
        return _NOTHING
    kind, contrast = _method(" ".join(_said(method))) if method else (None, None)
    return Stated(kind, *(place(site) if site else (None, None)), contrast, _health_check(encounter))


@lru_cache(maxsize=1024)
def _method(told: str) -> tuple[str | None, str | None]:
    """Class of the method and contrast medium by what is said of the method."""
    plain, enhanced = _PLAIN.search(told), _ENHANCED.search(told)
    contrast = "without-and-with" if plain and enhanced else "with" if enhanced else "without" if plain else None
    return next((word for word, pattern in _METHODS if pattern.search(told)), None), contrast


@lru_cache(maxsize=1024)
def _is_health_check(told: str) -> bool:
    return _HEALTH_CHECK.search(told) is not None


def _said(concept: Mapping[str, Any]) -> Iterator[str]:
    for coding in concept.get("coding") or ():
        for key in ("code", "display"):
            if isinstance(coding.get(key), str):
                yield coding[key]
    if isinstance(concept.get("text"), str):
        yield concept["text"]


def place(concept: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Site and side of a bodySite; a word that both do not know leaves the site unknown."""
    site = side = None
    for text in _said(concept):
        if text in _SIDE_CODES:
            side = side or _SIDE_CODES[text]
            continue
        bare = text
        for word, pattern in _SIDES:
            bare, found = pattern.subn("", bare)
            side = side or (word if found else None)
        site = site or _SITES.get(bare.strip().lower())
    return site, side


def _health_check(encounter: Mapping[str, Any] | None) -> str | None:
    if encounter is None:
        return None
    visit = encounter.get("class") or {}
    concepts = [
        *(encounter.get("type") or ()),
        encounter.get("serviceType") or {},
        *(encounter.get("reasonCode") or ()),
    ]
    if any(_is_health_check(text) for c in ({"coding": [visit]}, *concepts) for text in _said(c)):
        return "yes"
    return "no" if visit.get("code") in _ILL else None
