"""The CDA header as segments: MSH, PID, PV1, DG1, and TXA with the document itself (CDA R2 section 4.2; WS/T 482, WS/T 500)."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from adapters.cda.tree import Reading, address, coded, identifier, instant, named, number, person, telecom, where
from adapters.segments import Draft
from adapters.xmltree import Element, lines
from conformance.issue import Issue
from mappings.outbound.line import Line, trimmed
from mappings.source import Component
from mappings.source import Element as Field

_CLASSES = {"AMB": "O", "IMP": "I", "ACUTE": "I", "NONAC": "I", "EMER": "E", "1": "O", "2": "E", "3": "I"}
"""v3 ActCode and WS/T 500 patient type (1 outpatient, 2 emergency, 3 inpatient) -> table 0004; others are left unread."""
_PATIENT_TYPES = "2.16.156.10011.2.3.1.271"
_LEVELS = {"2.16.156.10011.1.22": 3, "2.16.156.10011.1.21": 2, "2.16.156.10011.1.27": 1, "2.16.156.10011.1.26": 1}
"""Kind of unit -> component of PL: bed, room, ward or department."""
_CONFIDENTIALITY = {"R": "R", "V": "V"}


@dataclass(slots=True)
class Header:
    """What the body needs of the header.

    code         document code (``C0007``, a LOINC code); title
    document     document number as EI; reported: when the report was written; status: of the report (OBR-25), empty when not stated
    order        number of the order (EI); report: number of the report (EI); specimen: number of the specimen
    interpreters, technicians, requester: people and organisations
    """

    code: str
    title: str
    document: Field
    reported: str
    status: str
    order: Field
    report: Field
    specimen: str
    interpreters: list[tuple[Component, ...]]
    technicians: list[tuple[Component, ...]]
    requester: Field


def is_cn(root: Element) -> bool:
    """WS/T 500: the document code or a template of its catalogue."""
    code = root.find("code")
    system = code.get("codeSystem", "") if code is not None else ""
    return system.startswith("2.16.156.10011.2.4") or any(
        t.get("root", "").startswith("2.16.156.10011.2.1.1.") for t in root.findall("templateId")
    )


def read_header(
    root: Element, reading: Reading, draft: Draft, digest: str, issues: list[Issue], results: bool
) -> Header:
    """MSH, PID, PV1 into the draft; ``digest`` numbers a document that has no id; ``results``: it is a report."""
    code = root.find("code")
    header = Header("", reading.text(root, "title"), (), "", "", (), (), "", [], [], ())
    header.code = code.get("code", "").strip() if code is not None else ""
    reading.use(code)
    own = root.find("id")
    header.document = number(own)
    series = root.find("setId")
    version = reading.value(root, "versionNumber")
    if not number(series) and version:
        series = None
    reading.use(own, series)
    msh = draft.add("MSH")
    custodian = root.find("custodian/assignedCustodian/representedCustodianOrganization")
    msh.put(4, reading.text(custodian, "name") or reading.value(custodian, "id", "extension"))
    reading.use(custodian.find("id") if custodian is not None else None)
    written = instant(root.find("effectiveTime"), reading)[0]
    relation = _relation(root, reading)
    msh.put(7, written)
    msh.put(9, ("RPT" if results else "CDA", header.code or "CDA", relation))
    msh.put(10, "/".join(str(c) for c in header.document[:1]) or digest)
    if not header.document:
        words = (
            "The document has no number (id); it is known by its bytes alone, and a later version cannot replace it."
        )
        issues.append(Issue("no-document-key", "warning", "ClinicalDocument/id", words))
    _patient(root, reading, draft, header)
    _people(root, reading, header, relation, written)
    return header


def _relation(root: Element, reading: Reading) -> str:
    related = next((r for r in root.findall("relatedDocument") if number(r.find("parentDocument/id"))
                    or number(r.find("parentDocument/setId"))), None)  # fmt: skip
    return related.get("typeCode", "").strip() if related is not None else ""


def _patient(root: Element, reading: Reading, draft: Draft, header: Header) -> None:
    pid = draft.add("PID", "recordTarget")
    role = root.find("recordTarget/patientRole")
    if role is None:
        return
    patient = role.find("patient")
    visits: list[Field] = []
    keys: list[Field] = []
    pathology: Field = ()
    for element in [*role.findall("id"), *(patient.findall("id") if patient is not None else [])]:
        kind = (
            element.get("root", "").rpartition(".")[2]
            if element.get("root", "").startswith("2.16.156.10011.1.")
            else ""
        )
        if kind in ("33", "32"):
            header.report = header.report or number(element)
        elif kind == "24":
            header.order = header.order or number(element)
        elif kind == "14":
            header.specimen = header.specimen or element.get("extension", "").strip()
        elif kind == "8":
            pathology = number(element)
        elif found := identifier(element):
            keys.append(found)
            if found[4:5] == ("VN",):
                visits.append(found)
        elif element.get("extension"):
            continue
        reading.use(element)
    header.report = header.report or pathology
    pid.put(3, *keys)
    pid.put(11, *(address(e) for e in role.findall("addr")))
    pid.put(13, *(telecom(e) for e in role.findall("telecom")))
    reading.use(*role.findall("addr"), *role.findall("telecom"))
    if patient is not None:
        _person(patient, pid, reading)
    for other in root.findall("recordTarget")[1:]:
        # The engine holds a report of two patients.
        draft.add("PID", where(other)).put(3, *(f for e in other.findall("patientRole/id") if (f := identifier(e))))
    kind = role.find("patientType/*")
    _visit(root, reading, draft, visits, kind)


def _person(patient: Element, pid: Line, reading: Reading) -> None:
    names = [named(e, reading) for e in patient.findall("name")]
    uses = {"L": "L", "C": "L", "A": "A", "P": "A", "PHON": "P", "SYL": "P", "ABC": "A"}
    kinds = [uses.get(e.get("use", "").split(" ")[0], "") for e in patient.findall("name")]
    pid.put(5, *(trimmed(n[0], n[1], "", n[2], n[3], "", kind) for n, kind in zip(names, kinds, strict=True)))
    pid.put(7, reading.value(patient, "birthTime"))
    sex = patient.find("administrativeGenderCode")
    if sex is not None:
        reading.use(sex)
        # UN (undifferentiated) is neither M nor F: table 0001 calls it other.
        pid.put(
            8, "O" if sex.get("code") == "UN" else sex.get("code", "").strip() or sex.get("displayName", "").strip()
        )
    for field, tag in (
        (10, "raceCode"),
        (16, "maritalStatusCode"),
        (17, "religiousAffiliationCode"),
        (22, "ethnicGroupCode"),
    ):
        pid.put(field, *(coded(e, reading) for e in patient.findall(tag)))
    pid.put(15, *(coded(e, reading) for e in patient.findall("languageCommunication/languageCode")))
    pid.put(23, reading.text(patient, "birthplace/place/addr"))
    pid.put(29, reading.value(patient, "deceasedTime"))
    pid.put(30, {"true": "Y", "false": "N"}.get(reading.value(patient, "deceasedInd"), ""))


def _visit(root: Element, reading: Reading, draft: Draft, visits: list[Field], kind: Element | None) -> None:
    encounter = root.find("componentOf/encompassingEncounter")
    numbers = [f for e in (encounter.findall("id") if encounter is not None else []) if (f := number(e))]
    start, end = instant(encounter.find("effectiveTime") if encounter is not None else None, reading)
    if not (visits or numbers or start):
        return
    pv1 = draft.add("PV1", "encompassingEncounter" if encounter is not None else "recordTarget")
    code = kind if kind is not None and kind.get("codeSystem") == _PATIENT_TYPES else None
    code = code if code is not None else (encounter.find("code") if encounter is not None else None)
    if code is not None and (found := _CLASSES.get(code.get("code", ""))):
        pv1.put(2, found)
        reading.use(code)
    # Inpatient number before outpatient number: a document of a stay may carry both.
    if numbers:
        value, *rest = (str(c) for c in numbers[0])
        pv1.put(19, trimmed(value, "", "", ("", *rest[1:]) if rest else ""))
    elif visits:
        pv1.put(19, (visits[-1][0],))
    pv1.put(44, start)
    pv1.put(45, end)
    if encounter is None:
        return
    reading.use(*encounter.findall("id"))
    place: list[Component] = ["", "", "", ""]
    for unit in encounter.iter("wholeOrganization"):
        said = unit.find("id")
        level = _LEVELS.get(said.get("root", "") if said is not None else "")
        text = reading.text(unit, "name") or (said.get("extension", "").strip() if said is not None else "")
        if level and text and not place[level - 1]:
            place[level - 1] = text
            reading.use(said)
    facility = encounter.find("location/healthCareFacility")
    if facility is not None and not any(place):
        place[0] = reading.text(facility, "location/name") or reading.text(facility, "serviceProviderOrganization/name")
    pv1.put(3, tuple(place))
    pv1.put(7, person(encounter.find("responsibleParty/assignedEntity"), reading))


def _people(root: Element, reading: Reading, header: Header, relation: str, written: str) -> None:
    author = root.find("author")
    header.reported = (instant(author.find("time"), reading)[0] if author is not None else "") or written
    legal = root.find("legalAuthenticator")
    signed = person(legal.find("assignedEntity"), reading) if legal is not None else ()
    header.interpreters = [signed] if signed else []
    for signature in (*root.findall("legalAuthenticator/time"), *root.findall("authenticator/time")):
        if not signature.get("value"):
            reading.use(signature)
    for entity in root.findall("authenticator/assignedEntity"):
        code = entity.find("code")
        role = code.get("displayName", "") if code is not None else ""
        who = person(entity, reading)
        if who:
            (header.technicians if "技师" in role else header.interpreters).append(who)
    if (
        author is not None
        and (who := person(author.find("assignedAuthor"), reading))
        and who not in header.interpreters
    ):
        header.interpreters.append(who)
    # CDA R2 4.2.2.7: a legal authenticator has taken the responsibility; a document that replaces another corrects it.
    if signed:
        header.status = "C" if relation == "RPLC" else "F"
    wanted = root.find("inFulfillmentOf/order/id")
    if wanted is not None and number(wanted):
        header.order = number(wanted)
        reading.use(wanted)
    asked = root.find("participant[@typeCode='PRF']/associatedEntity/scopingOrganization")
    if asked is not None:
        whole = reading.text(asked, "asOrganizationPartOf/wholeOrganization/name")
        department = reading.text(asked, "name")
        header.requester = (f"{whole} {department}".strip(),) if whole or department else ()
        reading.use(*asked.iter("id"))


def read_diagnoses(root: Element, reading: Reading, draft: Draft) -> None:
    """DE05.01.024 (diagnosis code) in any section -> DG1."""
    for observation in root.iter("observation"):
        code = observation.find("code")
        value = observation.find("value")
        if code is None or not code.get("code", "").startswith("DE05.01.024") or value is None:
            continue
        found = coded(value, reading)
        reading.use(code)
        if found:
            dg1 = draft.add("DG1", where(observation))
            dg1.put(3, found)
            dg1.put(5, instant(observation.find("effectiveTime"), reading)[0])


def write_document(root: Element, raw: bytes, reading: Reading, draft: Draft, header: Header, narrative: bool) -> None:
    """TXA and the content: the document as received, a body that is not XML, and (``narrative``) its text for people."""
    txa = draft.add("TXA", "ClinicalDocument")
    code = root.find("code")
    kind = coded(code, reading)
    txa.put(
        2,
        trimmed(*kind[:1], kind[1] if len(kind) > 1 and kind[1] else header.title, *kind[2:])
        if kind
        else (header.title,),
    )
    txa.put(6, instant(root.find("effectiveTime"), reading)[0])
    txa.put(9, *header.interpreters[-1:])
    txa.put(10, *header.interpreters[:1])
    series = number(root.find("setId"))
    txa.put(12, series or header.document)
    related = root.find("relatedDocument/parentDocument")
    if related is not None:
        parent = number(related.find("setId")) or number(related.find("id"))
        if parent and parent != series:
            txa.put(13, parent)
        reading.use(related)
    txa.put(16, str(header.document[0]) if series and header.document and header.document != series else "")
    txa.put(17, "LA" if header.status else "")
    confidentiality = reading.value(root, "confidentialityCode", "code")
    txa.put(18, _CONFIDENTIALITY.get(confidentiality, ""))
    txa.put(25, header.title)
    data = base64.b64encode(raw).decode("ascii")
    draft.add("OBX", "ClinicalDocument").fields |= {
        2: (("ED",),),
        3: (("CDA", header.title or "CDA"),),
        5: (("", "application", "xml", "Base64", data),),
    }
    other = root.find("component/nonXMLBody/text")
    if other is not None and "".join(other.itertext()).strip():
        reading.use(other)
        media = other.get("mediaType", "application/octet-stream")
        kind_, _, subtype = media.partition("/")
        encoding = "Base64" if other.get("representation") == "B64" else "A"
        content = draft.add("OBX", "nonXMLBody")
        content.put(2, "ED")
        content.put(3, ("BODY", header.title or "CDA"))
        content.put(5, ("", kind_, subtype, encoding, "".join(other.itertext())))
    if narrative:
        for section in root.iter("section"):
            said = lines([t for t in (section.find("title"), section.find("text")) if t is not None])
            if said:
                text = draft.add("OBX", where(section))
                text.put(2, "TX")
                text.put(3, ("TEXT", "narrative"))
                text.put(5, (said,))
