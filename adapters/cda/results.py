"""Results of CDA entries as OBR, SPM, OBX: one organizer or single observation is one report (C-CDA 2.1 result organizer 4.1, result
observation 4.2; XD-LAB). Data types by HL7 v3 R1: PQ, REAL, INT, IVL_PQ, RTO, CD, ST, ED, TS, BL."""

from __future__ import annotations

from adapters.cda.header import Header
from adapters.cda.tree import Reading, coded, instant, number, person, where
from adapters.segments import Draft
from adapters.xmltree import Element, lines
from conformance.issue import Issue
from mappings.outbound.line import Line, trimmed
from mappings.source import Element as Field
from mappings.units import shipped

RESULTS = frozenset(
    {"30954-2", "26436-6", "18719-5", "18723-7", "18721-1", "18725-2", "18728-6", "18717-9", "18720-3", "18729-4"}
)
"""LOINC codes of sections that hold results: relevant tests and laboratory data, laboratory studies, and the specialties of XD-LAB."""
_ORGANIZER = "2.16.840.1.113883.10.20.22.4.1"
_OBSERVATION = "2.16.840.1.113883.10.20.22.4.2"
_COMMENT = "48767-8"
_STATUS = {
    "completed": ("F", "F"), "active": ("P", "P"), "new": ("O", "O"), "held": ("I", "S"), "suspended": ("I", "S"),
    "aborted": ("X", "X"),    "cancelled": ("X", "X"), "obsolete": ("W", "X"), "nullified": ("W", "X"),
}  # fmt: skip
"""ActStatus -> OBX-11, OBR-25 (tables 0085, 0123). No status: nothing."""
_NUMBERS = frozenset({"PQ", "REAL", "INT", "MO"})
_CODED = frozenset({"CD", "CE", "CO", "CV", "CS"})


def is_results(section: Element) -> bool:
    """A section with results: by its code, or by a template of its entries."""
    code = section.find("code")
    if code is not None and code.get("code") in RESULTS:
        return True
    roots = {t.get("root") for t in section.iterfind("entry//templateId")}
    return bool(roots & {_ORGANIZER, _OBSERVATION})


def read_reports(section: Element, reading: Reading, draft: Draft, header: Header, issues: list[Issue]) -> int:
    """All reports of a section; gives their number. Entries that are no results stay unread."""
    made = 0
    for entry in section.findall("entry"):
        organizers = [
            o for o in entry.iter("organizer") if any(_is_result(c) for c in o.findall("component/observation"))
        ]
        inside = {c for o in organizers for c in o.iter("observation")}
        single = [
            o
            for o in entry.iter("observation")
            if o not in inside and o.getparent().tag in ("entry", "entryRelationship") and _is_result(o)
        ]
        for organizer in organizers:
            made += _report(
                organizer,
                [c for c in organizer.findall("component/observation") if _is_result(c)],
                reading,
                draft,
                header,
                issues,
            )
        for observation in single:
            if observation.getparent() is entry or not organizers:
                made += _report(observation, [observation], reading, draft, header, issues)
    reading.use(section.find("code"))
    return made


def _is_result(observation: Element) -> bool:
    code = observation.find("code")
    if code is None or code.get("code", "").startswith("DE"):
        return False
    return observation.get("moodCode", "EVN") == "EVN" and (
        observation.find("value") is not None or observation.find("statusCode") is not None
    )


def _report(
    act: Element, observations: list[Element], reading: Reading, draft: Draft, header: Header, issues: list[Issue]
) -> int:
    """One OBR with its specimen and results; ``act`` is an organizer, or the observation itself."""
    said = [o for o in observations if not _negated(o, issues)]
    if not said:
        return 0
    status = reading.value(act, "statusCode", "code")
    ordered(draft, where(act), header)
    obr = draft.add("OBR", where(act))
    placer = next((f for i in act.iterfind("reference/externalAct/id") if (f := number(i))), header.order)
    own = act.find("id")
    obr.put(2, placer)
    obr.put(3, number(own) or header.report or header.document)
    reading.use(own)
    code = coded(act.find("code"), reading) or (("", header.title) if header.title else ())
    obr.put(4, code)
    start, end = instant(act.find("effectiveTime"), reading)
    obr.put(7, start)
    obr.put(8, end if end != start else "")
    author = act.find("author")
    obr.put(22, (instant(author.find("time"), reading)[0] if author is not None else "") or header.reported)
    obr.put(25, _STATUS.get(status, ("", ""))[1] or header.status)
    interpreters(obr, header)
    specimen(act, reading, draft)
    who = _organization(act, reading)
    for observation in said:
        _result(observation, status, who, reading, draft, header)
    return 1


def _negated(observation: Element, issues: list[Issue]) -> bool:
    if observation.get("negationInd") != "true":
        return False
    told = "The observation says that this was not found or not done (negationInd); it is not stored as a result."
    issues.append(Issue("negated-result", "warning", where(observation), told))
    return True


def ordered(draft: Draft, place: str, header: Header) -> None:
    """Who asked for the report -> ORC-21; no segment when nobody is named."""
    if header.requester:
        draft.add("ORC", place).put(21, header.requester)


def interpreters(obr: Line, header: Header) -> None:
    """Who signed and who measured -> OBR-32, OBR-34 (NDL.1 is a CNN: number, family, given)."""
    obr.put(32, *((tuple(str(c) for c in p[:3]),) for p in header.interpreters))
    obr.put(34, *((tuple(str(c) for c in p[:3]),) for p in header.technicians))


def specimen(act: Element, reading: Reading, draft: Draft) -> None:
    """specimen/specimenRole of a report -> SPM."""
    for role in act.findall("specimen/specimenRole"):
        spm = draft.add("SPM", f"{where(act)}/specimen")
        found = number(role.find("id"))
        reading.use(role.find("id"))
        spm.put(2, ("", tuple(str(c) for c in found)) if found else ())
        spm.put(4, coded(role.find("specimenPlayingEntity/code"), reading))


def _organization(act: Element, reading: Reading) -> Field:
    performer = act.find("performer/assignedEntity/representedOrganization")
    if performer is None:
        return ()
    name = reading.text(performer, "name")
    found = performer.find("id")
    reading.use(found)
    value = found.get("extension", "") or found.get("root", "") if found is not None else ""
    return trimmed(name, "", "", "", "", "", "", "", "", value)


def _result(observation: Element, outer: str, who: Field, reading: Reading, draft: Draft, header: Header) -> None:
    obx = draft.add("OBX", where(observation))
    obx.put(3, coded(observation.find("code"), reading))
    values = observation.findall("value")
    reading.use(*values)
    write_values(obx, values, reading)
    ranges = observation.findall("referenceRange/observationRange")
    unit = str(obx.fields[6][0][0]) if 6 in obx.fields else ""
    obx.put(7, *((_range(r, unit, reading),) for r in ranges))
    reading.use(*(r.find("interpretationCode") for r in ranges))
    obx.put(
        8, *(f[:1] if f[0] else f[1:2] for c in observation.findall("interpretationCode") if (f := coded(c, reading)))
    )
    status = reading.value(observation, "statusCode", "code") or outer
    said = _STATUS.get(status, ("", ""))[0] or header.status
    obx.put(11, "I" if said == "P" and 5 not in obx.fields else said)
    obx.put(14, instant(observation.find("effectiveTime"), reading)[0])
    obx.put(16, person(observation.find("author/assignedAuthor"), reading))
    obx.put(17, *(coded(c, reading) for c in observation.findall("methodCode")))
    obx.put(20, *(coded(c, reading) for c in observation.findall("targetSiteCode")))
    found = number(observation.find("id"))
    obx.put(21, found)
    reading.use(observation.find("id"), observation.find("text"))
    obx.put(23, _organization(observation, reading) or who)
    for comment in observation.iterfind("entryRelationship/act"):
        code = comment.find("code")
        if code is not None and code.get("code") == _COMMENT:
            note = draft.add("NTE", where(comment))
            note.put(3, reading.text(comment, "text"))
            reading.use(comment)


def same_unit(one: str, two: str) -> bool:
    """Whether two units as written are the same one, as far as the table of units knows."""
    if one == two:
        return True
    known = shipped()
    code = known.lookup(one).ucum
    return code is not None and code == known.lookup(two).ucum


def _range(observed: Element, unit: str, reading: Reading) -> str:
    """The range as numbers when it has them, else its text. Nothing is made up: no range stays no range, and limits that are not in
    the unit of the value keep their own."""
    value = observed.find("value")
    reading.use(value)
    text = reading.text(observed, "text")
    if value is None or (value.find("low") is None and value.find("high") is None):
        return text
    low, high = (value.find(side) for side in ("low", "high"))
    one, two = (e.get("value", "") if e is not None else "" for e in (low, high))
    of = [e.get("unit", "").strip() if e is not None else "" for e in (low, high)]
    if any(u not in ("", "1") and not same_unit(u, unit) for u in of):
        one, two = (f"{number} {u}".strip() for number, u in zip((one, two), of, strict=True))
    if one and two:
        return f"{one}-{two}"
    if one:
        return f"{_sign(low, '>')}{one}"
    return f"{_sign(high, '<')}{two}" if two else text


def _sign(side: Element | None, mark: str) -> str:
    return mark if side is not None and side.get("inclusive") == "false" else f"{mark}="


def write_values(obx: Line, values: list[Element], reading: Reading) -> None:
    """value elements -> OBX-2, 5, 6; no value, or one that is null, leaves OBX-5 empty."""
    out: list[Field] = []
    kind = unit = ""
    for value in values:
        made = _value(value, reading)
        if made is not None:
            kind, field, measured = made
            out.append(field)
            unit = unit or measured
    obx.put(2, kind)
    obx.put(5, *out)
    obx.put(6, (unit,) if unit in ("", "1") or kind not in ("NM", "SN") else (unit, "", "UCUM"))


def _value(value: Element, reading: Reading) -> tuple[str, Field, str] | None:
    """One value -> (OBX-2, repetition, unit), None when it says nothing."""
    kind = value.get("type", "").rpartition(":")[2].strip()
    low, high = value.find("low"), value.find("high")
    written = value.get("value", "").strip()
    unit = value.get("unit", "").strip()
    if kind == "IVL_TS":
        start, end = instant(value, reading)
        return ("DR", (start, end), "") if start or end else None
    if low is not None or high is not None:
        return _interval(low, high)
    if kind.startswith("RTO"):
        parts = [value.find(side) for side in ("numerator", "denominator")]
        one, two = (p.get("value", "") if p is not None else "" for p in parts)
        units = [p.get("unit", "") if p is not None else "" for p in parts]
        if one and two and any(u not in ("", "1") for u in units):
            # A ratio of quantities is no titre: a field of numbers has no room for two units.
            return "ST", (" / ".join(" ".join((n, u)).strip() for n, u in zip((one, two), units, strict=True)),), ""
        return ("SN", ("", one, ":", two), "") if one and two else None
    if kind == "TS":
        return ("TS", (written,), "") if written else None
    if kind in _CODED or (not kind and value.get("code")):
        found = coded(value, reading)
        return ("CWE", found, "") if found else None
    said = reading.text(value) or reading.text(value, "originalText")
    if kind in _NUMBERS or (not kind and written):
        if written:
            return "NM", (written,), unit
        translation = value.find("translation")
        if not said and translation is not None:
            # A quantity that is no number: the translation holds what the laboratory wrote.
            told = reading.text(translation, "originalText")
            measured = translation.get("displayName", "").strip() or translation.get("code", "").strip()
            return (
                ("NM", (translation.get("value", "").strip(),), told or measured)
                if translation.get("value")
                else (("ST", (f"{told} {measured}".strip(),), "") if told or measured else None)
            )
        return ("ST", (said,), unit) if said else None
    if kind == "BL":
        return ("ST", (written,), "") if written else None
    said = said or written
    return ("ST", (said,), unit) if said else None


def _interval(low: Element | None, high: Element | None) -> tuple[str, Field, str] | None:
    one, two = (e.get("value", "").strip() if e is not None else "" for e in (low, high))
    unit = next((e.get("unit", "").strip() for e in (low, high) if e is not None and e.get("unit")), "")
    if one and two and all(e is None or same_unit(e.get("unit", "").strip(), unit) for e in (low, high)):
        return "SN", ("", one, "-", two), unit
    if one and two:
        every = (f"{n} {e.get('unit', '').strip()}".strip() for n, e in ((one, low), (two, high)) if e is not None)
        return "ST", ("-".join(every),), ""
    if one:
        return "SN", (_sign(low, ">"), one), unit
    return ("SN", (_sign(high, "<"), two), unit) if two else None


def read_imaging(root: Element, reading: Reading, draft: Draft, header: Header) -> None:
    """A diagnostic imaging report in narrative (C-CDA 2.1 section 1.1.8): each section is one text result of the report."""
    ordered(draft, "ClinicalDocument", header)
    obr = draft.add("OBR", "ClinicalDocument")
    obr.put(2, header.order)
    obr.put(3, header.report or number(root.find("setId")) or header.document)
    event = root.find("documentationOf/serviceEvent")
    code = coded(event.find("code"), reading) if event is not None else ()
    obr.put(4, code or coded(root.find("code"), reading))
    start, end = instant(event.find("effectiveTime") if event is not None else None, reading)
    obr.put(7, start)
    obr.put(8, end if end != start else "")
    obr.put(22, header.reported)
    obr.put(24, "RAD")
    obr.put(25, header.status)
    interpreters(obr, header)
    for section in root.iter("section"):
        text = section.find("text")
        said = lines([text]) if text is not None else ""
        if not said:
            continue
        obx = draft.add("OBX", where(section))
        obx.put(2, "TX")
        title = reading.text(section, "title")
        found = coded(section.find("code"), reading)
        obx.put(3, (found[0], title or (found[1] if len(found) > 1 else ""), *found[2:]) if found else ("", title))
        obx.put(5, (said,))
        obx.put(11, header.status)
        reading.use(section.find("text"))
