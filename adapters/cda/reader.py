"""CDA R2 bytes -> Source: which kind of document it is decides how its entries are read (CDA R2; WS/T 500; C-CDA 2.1).

A report (C0007, C0006, results of C-CDA, a diagnostic imaging report) is read as a result message; any other document as a document
with its patient, visit, diagnoses and orders, its narrative kept as text. The document itself is always kept (DocumentReference
and Binary).
"""

from __future__ import annotations

import hashlib

from adapters import xmltree
from adapters.cda import wst500
from adapters.cda.header import is_cn, read_diagnoses, read_header, write_document
from adapters.cda.repair import repair
from adapters.cda.results import is_results, read_imaging, read_reports
from adapters.cda.tree import Reading
from adapters.contract import Unreadable
from adapters.segments import Draft, Message
from conformance.issue import Issue

ROOTS = frozenset(
    [
        "ClinicalDocument",
        "section",
        "observation",
        "organizer",
        "act",
        "entry",
        "component",
        "encounter",
        "procedure",
        "substanceAdministration",
        "supply",
        "recordTarget",
        "author",
        "informant",
        "participant",
        "performer",
        "documentationOf",
        "participantRole",
        "inFulfillmentOf",
        "entryRelationship",
        "custodian",
    ]
)
"""Root elements of CDA documents, and of the fragments of them that people send by mistake."""
_IMAGING = frozenset(
    {"18748-4", "18782-3", "11525-3", "17787-3", "18747-6", "18755-9", "18760-9", "25045-6", "28634-8"}
)
_IMAGING_TEMPLATE = "2.16.840.1.113883.10.20.22.1.5"


def read(raw: bytes, fallback_charset: str = "") -> Message:
    """One document. Raises Unreadable (adapters.xmltree.parse; ``not-a-document`` for a fragment without a header)."""
    tree = xmltree.parse(raw, fallback_charset)
    root = tree.root
    head = raw[:4096].decode("latin-1")
    issues = [*tree.issues, *repair(root, head)]
    if root.tag != "ClinicalDocument":
        words = f"The document element is {root.tag}, a part of a CDA document; send the whole ClinicalDocument."
        raise Unreadable(Issue("not-a-document", "error", "", words))
    reading = Reading(root)
    draft = Draft()
    code = root.find("code")
    said = code.get("code", "") if code is not None else ""
    cn = is_cn(root) and said in (wst500.LABORATORY, wst500.EXAMINATION)
    imaging = not cn and (
        said in _IMAGING or any(t.get("root") == _IMAGING_TEMPLATE for t in root.findall("templateId"))
    )
    sections = [] if cn else [s for s in root.iter("section") if is_results(s)]
    digest = hashlib.sha256(raw).hexdigest()[:32]
    body = Draft()
    # The body first tells whether there are results at all; the header is written before it.
    header = read_header(root, reading, draft, digest, issues, results=True)
    read_diagnoses(root, reading, draft)
    if cn:
        wst500.read_report(root, reading, body, header, issues)
    elif imaging:
        read_imaging(root, reading, body, header)
    else:
        for section in sections:
            read_reports(section, reading, body, header, issues)
    # A report whose entries say no result is a document: what it says is in its narrative.
    results = body.has("OBX")
    if not results:
        body = Draft()
        draft.header("CDA")
        wst500.read_orders(root, reading, body, header)
    draft.extend(body)
    write_document(root, raw, reading, draft, header, narrative=not results)
    return Message("cda", draft.records(), tree.charset, issues, reading.unread())
