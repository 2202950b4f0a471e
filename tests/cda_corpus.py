"""The public CDA corpus: parts of documents are put into an invented document, and everything is converted with the generic profile.

``python -m tests.cda_corpus`` writes docs/refused-documents.md.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from adapters.contract import Unreadable
from adapters.convert import convert, recognise
from adapters.xmltree import root_name
from mappings.model import Conversion
from mappings.profile import load_profiles

ROOT = Path(__file__).parents[1]
ARCHIVE = ROOT / "tests" / "data" / "cda" / "corpus.zip"
AECG = ROOT / "tests" / "data" / "aecg"
PAGE = ROOT / "docs" / "refused-documents.md"
_PATIENT = (
    '<recordTarget><patientRole><id root="2.16.840.1.113883.19.5" extension="P1"/><patient>'
    "<name><given>Eve</given><family>Invented</family></name>"
    '<administrativeGenderCode code="F"/><birthTime value="19800101"/></patient></patientRole></recordTarget>'
)
_HEADER = frozenset(
    [
        "recordTarget",
        "author",
        "informant",
        "participant",
        "documentationOf",
        "inFulfillmentOf",
        "custodian",
        "componentOf",
        "authorization",
        "authenticator",
    ]
) | {"legalAuthenticator", "informationRecipient", "dataEnterer", "relatedDocument"}


def whole(raw: bytes, number: int) -> bytes:
    """The file as a document: a part of one stands where it belongs, beside an invented patient where it brings none."""
    kind = root_name(raw)
    if kind in ("ClinicalDocument", "AnnotatedECG"):
        return raw
    part = re.sub(r"^\s*<\?xml[^>]*\?>", "", raw.decode("utf-8-sig", "replace"))
    head, body = "" if kind == "recordTarget" else _PATIENT, ""
    if kind in _HEADER:
        head += part
    elif kind == "section":
        body = f"<component>{part}</component>"
    elif kind == "component" and "<section" in part[:400]:
        body = part
    elif kind == "entry":
        body = f"<component><section>{part}</section></component>"
    else:
        inner = f"<organizer>{part}</organizer>" if kind == "component" else part
        body = f"<component><section><entry>{inner}</entry></section></component>"
    return (
        '<ClinicalDocument xmlns="urn:hl7-org:v3" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:sdtc="urn:hl7-org:sdtc">'
        f'<id root="2.16.840.1.113883.19.5" extension="{number}"/><code code="34133-9" codeSystem="2.16.840.1.113883.6.1"/>'
        f'<title>Summary</title><effectiveTime value="20260301080000+0800"/>{head}'
        f"<component><structuredBody>{body}</structuredBody></component></ClinicalDocument>"
    ).encode()


@dataclass(frozen=True, slots=True)
class Document:
    """One file: its conversion, None when it is unreadable; reason: why it is refused or held, with the sentence that says it."""

    file: str
    conversion: Conversion | None
    reason: str
    words: str


def _files() -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(ARCHIVE) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".xml"):
                yield name, archive.read(name)
    for path in sorted(AECG.glob("*.xml")):
        yield path.name, path.read_bytes()


@cache
def documents() -> tuple[Document, ...]:
    """All files, converted."""
    profile = load_profiles()["generic"]
    out = []
    for number, (name, raw) in enumerate(_files()):
        document = whole(raw, number)
        try:
            found = convert(document, profile, recognise(document))
        except Unreadable as fault:
            out.append(Document(name, None, fault.issue.key, fault.issue.text))
            continue
        held = found.held
        out.append(Document(name, found, held.key if held else "", f"{held.where}: {held.text}" if held else ""))
    return tuple(out)


def page() -> str:
    """docs/refused-documents.md."""
    every = documents()
    refused = [d for d in every if d.reason]
    rows = "\n".join(f"| {d.file} | `{d.reason}` | {d.words} |" for d in refused)
    return f"""# Documents of the public corpus that are refused or held

{len(every)} CDA and aECG files (tests/data/SOURCES.md); {len(every) - len(refused)} convert with the generic profile
({100 * (len(every) - len(refused)) / len(every):.1f} %). Parts of documents (a section, an entry) are put into an invented document
first: alone they name no patient and are held as `not-a-document`. Written by `python -m tests.cda_corpus`; a test compares it.

| file | key | why |
|---|---|---|
{rows}
"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
