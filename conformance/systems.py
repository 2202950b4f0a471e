"""Identifier and code systems, spelled once (OIDs: WS/T 500 shared documents; HL7: terminology.hl7.org)."""

from __future__ import annotations

from urllib.parse import quote

BASE = "http://tongjian.org/fhir"

# identifiers
RESIDENT_ID = "urn:oid:2.16.156.10011.1.3"
"""Resident ID card number, GB 11643-1999."""
CREDIT_CODE = "urn:oid:2.16.156.10011.1.5"
"""Organisation code (Unified Social Credit Code, GB 32100)."""
FACILITY = f"{BASE}/sid/facility"
"""Our facility id, as business identifier of the facility's Organization."""


def facility_system(facility: str, kind: str) -> str:
    """Identifier system of one facility: kind is ``patient``, ``visit``, ``placer``, ``filler``, ``specimen``, ``staff``, ``unit``."""
    return f"{BASE}/sid/{facility}/{kind}"


def local_codes(facility: str, kind: str) -> str:
    """Code system of one facility's local codes: kind is ``tests`` or ``orders``."""
    return f"{BASE}/CodeSystem/{facility}-{kind}"


def of_another_facility(system: str, facility: str) -> bool:
    """True for a code system of local codes that is not of this facility: such a code is never looked up in its tables."""
    return system.startswith(f"{BASE}/CodeSystem/") and not system.startswith(local_codes(facility, ""))


# code systems
PARENT_RESULT = f"{BASE}/sid/parent-result"
"""Names of results by the number of their order, their code and their sub-id (HL7 v2 OBR-26 with OBR-29)."""
SUB_ID = "http://hl7.org/fhir/StructureDefinition/observation-v2-subid"
"""Observation: OBX-4."""
ITEMS = f"{BASE}/CodeSystem/items"
"""Recognizable items of the catalogue."""
ORDERABLES = f"{BASE}/CodeSystem/orderables"
REPEAT_REASONS = f"{BASE}/CodeSystem/repeat-reasons"
"""Lawful reasons for repeating a recognizable test (codes 1-6)."""
OUTCOMES = f"{BASE}/CodeSystem/recognition-outcomes"
"""Outcomes of the recognition check: recognized, reference-only, not-recognizable, not-covered."""
DECISION = f"{BASE}/CodeSystem/recognition-decision"
"""What is decided on a reminder: adopt, decline, revoke."""
CARD = f"{BASE}/sid/reminder"
"""Id of an answer of the recognition check (the card's uuid), as business identifier."""
LOINC = "http://loinc.org"
UCUM = "http://unitsofmeasure.org"
V2 = "http://terminology.hl7.org/CodeSystem/v2-"
"""Prefix of the HL7 v2 tables: V2 + "0203"."""
V3 = "http://terminology.hl7.org/CodeSystem/v3-"
INTERPRETATION = V3 + "ObservationInterpretation"
OBSERVATION_CATEGORY = "http://terminology.hl7.org/CodeSystem/observation-category"
DATA_ABSENT = "http://terminology.hl7.org/CodeSystem/data-absent-reason"

DATA_ELEMENTS = "urn:oid:2.16.156.10011.2.2.1"
"""Data elements of WS 363 (``DE04.50.131``): parts of a report, no codes of tests."""

MDC = "urn:oid:2.16.840.1.113883.6.24"
"""Terms of ISO/IEEE 11073-10101: leads of an ECG."""
NO_TESTS = frozenset({DATA_ELEMENTS, MDC})
"""Code systems that name parts of a report or channels of a device; their codes wait for no mapping."""

# extensions
ABSENT = "http://hl7.org/fhir/StructureDefinition/data-absent-reason"
"""Extension in the place of a value that is not known."""
MARK = f"{BASE}/StructureDefinition/recognition-mark"
"""Observation: mark stripped from the item name (``全国HR``, ``HR``, ``*``)."""
IMAGE_QUALITY = f"{BASE}/StructureDefinition/image-quality"
"""ImagingStudy: quality of the images in the words of whoever assessed them (``甲级``, ``good``)."""
VIEW = f"{BASE}/StructureDefinition/image-view"
"""ImagingStudy.series: a view (projection) as the images name it (``PA``, ``LL``, ``MLO``); repeats."""
CONTRAST = f"{BASE}/StructureDefinition/image-contrast"
"""ImagingStudy.series: the contrast agent as the images name it, or ``without``; absent: the images do not say."""
DCM = "http://dicom.nema.org/resources/ontology/DCM"
"""DICOM Controlled Terminology (PS3.16 annex D): modalities, headings and measurements of structured reports."""
SNOMED = "http://snomed.info/sct"
STUDY_UID = "urn:dicom:uid"
"""Study Instance UIDs as identifiers, the UID as ``urn:oid:`` (http://hl7.org/fhir/R4/imagingstudy.html#notes)."""
SOURCE_TEXT = f"{BASE}/StructureDefinition/source-text"
"""Quantity or Observation: the value or unit exactly as sent, where typing changed its form."""


def source_uri(facility: str, control_id: str) -> str:
    """meta.source of everything that came in a message; a control id may hold any text, a URI may not (RFC 3986 section 3.5)."""
    return f"urn:tongjian:{facility}#{quote(control_id, safe='')}"
