"""The public CDA and aECG corpus: how much converts, and that what comes out is valid FHIR."""

from __future__ import annotations

from collections import Counter

from conformance import validator
from tests import cda_corpus
from tests.cda_corpus import documents


def test_at_least_95_percent_of_the_files_convert() -> None:
    every = documents()
    assert len(every) == 566
    assert sum(not d.reason for d in every) / len(every) >= 0.95


def test_every_refused_or_held_file_is_listed_with_its_reason() -> None:
    assert cda_corpus.PAGE.read_text("utf-8") == cda_corpus.page()


def test_every_resource_is_valid_and_no_text_is_empty() -> None:
    faults: Counter[str] = Counter()
    seen = 0
    for document in documents():
        for entry in document.conversion.entries if document.conversion else ():
            seen += 1
            faults += Counter(f"{document.file}: {i.where} {i.text}" for i in validator.check(entry.resource))
    assert seen > 3000
    assert list(faults) == []


def test_every_document_that_converts_is_kept_whole_with_its_patient() -> None:
    for document in documents():
        if document.conversion is None or document.reason:
            continue
        kinds = {e.resource["resourceType"] for e in document.conversion.entries}
        assert {"Patient", "DocumentReference", "Binary"} <= kinds, document.file
