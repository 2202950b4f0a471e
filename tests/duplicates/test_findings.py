"""Findings that are kept, and what people say about them."""

from __future__ import annotations

import io
import json
import zipfile
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from conformance import systems
from fhir_server.duplicates import detect, findings, report, review
from fhir_server.duplicates.findings import Wanted
from fhir_server.duplicates.report import Report, Scope
from fhir_server.duplicates.review import Reviewer
from fhir_server.errors import Category, Fault
from fhir_server.recognition import rules as rules_module
from mappings.profile import load_profiles

AT = datetime(2025, 11, 21, 1, 0, tzinfo=UTC)
START, END = AT - timedelta(days=1), AT + timedelta(days=1)
PRIOR, LONG_AGO = AT - timedelta(days=2), AT - timedelta(days=90)
RENAL = ["L0016", "L0018", "L0020"]
LATER = AT + timedelta(days=9)
OFFICE = Reviewer("office")


def audit(county: Any, scope: Scope = report.EVERYTHING) -> Report:
    with psycopg.connect(county.url) as conn:
        return detect.audit(conn, rules_module.load(), load_profiles(), START, END, scope)


@pytest.fixture
def repeat(county: Any) -> str:
    """One avoidable repeat, ordered by doctor D001 for department NK; its order's id."""
    here = county.patient("county-hospital", "1", "p-1", LONG_AGO)
    there = county.patient("north-township", "2", "p-1", LONG_AGO)
    county.report("north-township", there, "r1", RENAL, PRIOR)
    visit = county.encounter("county-hospital", here, "v1", "AMB", AT, serviceType={"coding": [{"code": "NK"}]})
    number = {"system": systems.facility_system("county-hospital", "staff"), "value": "D001"}
    order: str = county.order(
        "county-hospital",
        here,
        "P1",
        "SGN",
        AT,
        requester={"identifier": number, "display": "王医生"},
        encounter={"reference": f"Encounter/{visit}"},
    )
    county.report("county-hospital", here, "r2", RENAL, AT + timedelta(minutes=10), order=order)
    return order


def _patient(county: Any) -> str:
    """The Patient the fixture wrote first."""
    return str(next(iter(county.counts))).removeprefix("Patient/")


def keep(county: Any, found: Report, now: datetime = LATER) -> findings.Kept:
    with psycopg.connect(county.url) as conn:
        return findings.keep(conn, found, now)


def kept(county: Any, **narrowed: Any) -> list[dict[str, Any]]:
    with psycopg.connect(county.url) as conn:
        return findings.search(conn, Wanted(START, END, **narrowed))


def test_keeping_the_same_audit_twice_writes_its_findings_once(county: Any, repeat: str) -> None:
    assert keep(county, audit(county)) == findings.Kept(1, 0, 0, 0)
    assert keep(county, audit(county), LATER + timedelta(days=1)) == findings.Kept(0, 0, 1, 0)
    (found,) = kept(county)
    assert (found["version"], found["order"], found["doctor"], found["department"]) == (
        1, f"ServiceRequest/{repeat}", "D001", "NK",
    )  # fmt: skip
    assert len(found["prior"]) == len(found["repeated"]) == 3
    assert found["decision"]["rules"] == rules_module.load().version
    assert len(found["catalogue"]) == 16


def test_what_an_audit_finds_otherwise_is_a_new_version_and_the_old_one_stays(county: Any, repeat: str) -> None:
    keep(county, audit(county))
    _decline(county, "3", refusal=True)
    assert keep(county, audit(county), LATER + timedelta(days=1)) == findings.Kept(0, 1, 0, 0)
    (found,) = kept(county)
    assert (found["version"], found["kind"], found["cause"]) == (2, "justified", "reason-3")
    with psycopg.connect(county.url) as conn:
        assert [v["kind"] for v in findings.versions(conn, found["id"])] == ["avoidable", "justified"]


def test_a_repeat_that_is_none_any_more_ends_and_one_outside_the_scope_stays(county: Any, repeat: str) -> None:
    keep(county, audit(county))
    empty = audit(county, Scope(doctor="nobody"))
    assert empty.findings == ()
    assert keep(county, empty).ended == 0
    with psycopg.connect(county.url) as conn:
        conn.execute("UPDATE resource SET deleted = true WHERE id = %s", (repeat,))
    assert keep(county, audit(county), LATER + timedelta(days=1)) == findings.Kept(0, 0, 0, 1)
    assert kept(county) == []


@pytest.mark.parametrize(
    ("scope", "count"),
    [
        (Scope(facility="county-hospital"), 1), (Scope(facility="north-township"), 0), (Scope(doctor="D001"), 1),
        (Scope(doctor="D002"), 0), (Scope(department="NK"), 1), (Scope(department="WK"), 0), (Scope(item="RENAL"), 1),
        (Scope(item="L0016"), 1), (Scope(item="CBC"), 0),
    ],
)  # fmt: skip
def test_an_audit_is_narrowed_to_facility_department_doctor_and_item(
    county: Any, repeat: str, scope: Scope, count: int
) -> None:
    found = audit(county, scope)
    assert len(found.findings) == count
    assert sum(r.orders for r in found.rows if r.basis == "order") == count


def test_a_sample_is_drawn_by_a_lot_that_anybody_can_repeat(county: Any, repeat: str) -> None:
    keep(county, audit(county))
    wanted = Wanted(START, END)
    with psycopg.connect(county.url) as conn:
        first = review.sample(conn, wanted, 5, "2025-11", OFFICE, LATER)
        assert review.sample(conn, wanted, 5, "2025-11", OFFICE, LATER) == first
        assert [s["step"] for s in review.steps(conn, first[0])] == ["sampled"]
        assert [w["id"] for w in review.waiting(conn)] == first


def test_verdict_and_appeal_are_added_and_never_changed(county: Any, repeat: str) -> None:
    keep(county, audit(county))
    (found,) = kept(county)
    with psycopg.connect(county.url) as conn:
        review.judge(conn, found["id"], "avoidable", "Two days old, county mark.", OFFICE, LATER)
        review.appeal(conn, found["id"], "The patient bled.", Reviewer("chief", "county-hospital"), LATER)
        assert [w["step"] for w in review.waiting(conn)] == ["appeal"]
        review.judge(conn, found["id"], "justified", "Reason 1 stands in the record.", OFFICE, LATER)
        line = review.steps(conn, found["id"])
        assert review.waiting(conn) == []
    assert [(s["number"], s["step"], s["verdict"]) for s in line] == [
        (1, "verdict", "avoidable"), (2, "appeal", None), (3, "verdict", "justified"),
    ]  # fmt: skip
    assert review.state(line) == {"state": "judged", "verdict": "justified"}


@pytest.mark.parametrize(
    ("step", "category"),
    [
        (
            lambda c, f: review.judge(c, f, "avoidable", "x", Reviewer("a", "county-hospital"), LATER),
            Category.FORBIDDEN,
        ),
        (lambda c, f: review.judge(c, f, "maybe", "x", OFFICE, LATER), Category.INVALID),
        (lambda c, f: review.judge(c, f, "avoidable", " ", OFFICE, LATER), Category.INVALID),
        (lambda c, f: review.judge(c, "none", "avoidable", "x", OFFICE, LATER), Category.NOT_FOUND),
        (lambda c, f: review.appeal(c, f, "x", Reviewer("a", "north-township"), LATER), Category.NOT_FOUND),
    ],
)
def test_a_step_that_may_not_be_taken_is_refused(county: Any, repeat: str, step: Any, category: Category) -> None:
    keep(county, audit(county))
    (found,) = kept(county)
    with psycopg.connect(county.url) as conn, pytest.raises(Fault) as refused:
        step(conn, found["id"])
    assert refused.value.category is category


def _ledger(url: str, kind: str, at: datetime, entry: dict[str, Any], orderable: str | None = "RENAL") -> None:
    with psycopg.connect(url) as conn:
        conn.execute(
            "INSERT INTO ledger (chain, number, at, kind, person, facility, orderable, outcome, entry, hash)"
            " VALUES (%s, 1, %s, %s, %s, 'county-hospital', %s, null, %s, '')",
            (kind, at, kind, "p-1" if orderable else None, orderable, json.dumps(entry)),
        )


def _decline(county: Any, reason: str, *, refusal: bool) -> None:
    _ledger(county.url, "reminder", AT - timedelta(minutes=2), {"card": "c-1", "placers": []})
    with psycopg.connect(county.url) as conn:
        conn.execute(
            "INSERT INTO decision (card, sequence, id, at, action, facility, doctor, reason, refusal, content, entry)"
            " VALUES ('c-1', 1, 'd-1', %s, 'decline', 'county-hospital', 'D001', %s, %s, '', '{}')",
            (AT, reason, refusal),
        )


def test_a_repeat_after_an_answer_that_failed_is_a_system_cause(county: Any, repeat: str) -> None:
    entry = {"reason": "database-away", "patient": _patient(county), "drafts": 1}
    _ledger(county.url, "no-answer", AT - timedelta(minutes=2), entry, None)
    (found,) = audit(county).findings
    assert (found.kind, found.cause, found.reminder) == ("system", "repository-away", "no-answer")


@pytest.mark.parametrize(
    ("reason", "refusal", "kind", "cause"),
    [
        ("5", True, "justified", "reason-5"),
        ("98", False, "system", "missing-image"),
        ("99", False, "justified", "local-99"),
    ],
)
def test_a_decision_to_decline_counts_by_its_reason(
    county: Any, repeat: str, reason: str, refusal: bool, kind: str, cause: str
) -> None:
    _decline(county, reason, refusal=refusal)
    (found,) = audit(county).findings
    assert (found.kind, found.cause, found.reminder) == (kind, cause, "declined")


def test_a_result_known_by_loinc_whose_local_code_is_not_mapped_is_a_system_cause(county: Any) -> None:
    here = county.patient("county-hospital", "1", "p-1", LONG_AGO)
    there = county.patient("north-township", "2", "p-1", LONG_AGO)
    for item in RENAL:
        loinc = {"system": systems.LOINC, "code": rules_module.load().items[item].loinc}
        local = {"system": systems.local_codes("north-township", "tests"), "code": f"new-{item}"}
        code = {"coding": [local, loinc]}
        county.report("north-township", there, f"r{item}", [item], PRIOR, mapped=False, changes={"code": code})
    county.order("county-hospital", here, "P1", "SGN", AT)
    (found,) = audit(county).findings
    assert (found.kind, found.cause) == ("system", "unmapped-code")


def test_orders_without_a_time_of_their_own_take_obr_6_before_collection(county: Any) -> None:
    here = county.patient("county-hospital", "1", "p-1", LONG_AGO)
    county.order("county-hospital", here, "P1", "SGN", None, occurrenceDateTime=AT.isoformat())
    (row,) = audit(county).rows
    assert (row.basis, row.orders) == ("order", 1)


def test_the_workbook_has_counts_causes_and_findings(county: Any, repeat: str) -> None:
    with zipfile.ZipFile(io.BytesIO(report.as_xlsx(audit(county)))) as book:
        names = book.read("xl/workbook.xml").decode()
        texts = book.read("xl/sharedStrings.xml").decode()
    assert all(f'name="{name}"' in names for name in ("about", "counts", "causes", "findings"))
    assert repeat in texts
    assert "avoidable" in texts


def test_two_processes_find_what_one_finds(county: Any, repeat: str) -> None:
    found = detect.audit_at(county.url, None, None, START, END, processes=2)
    assert found == audit(county)
