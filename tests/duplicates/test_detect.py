"""The duplicate audit over a county with known truth: each kind is found where it was planted, and nothing else."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from conformance import systems
from fhir_server.duplicates import detect, report
from fhir_server.duplicates.report import Finding, Report
from fhir_server.recognition import rules as rules_module
from mappings.profile import load_profiles

# An order of 2025-11-21 at 09:00 in the county; everything is told to the platform a minute after it was issued.
AT = datetime(2025, 11, 21, 1, 0, tzinfo=UTC)
START, END = AT - timedelta(days=1), AT + timedelta(days=1)
PRIOR = AT - timedelta(days=2)
LONG_AGO = AT - timedelta(days=90)
RENAL = ["L0016", "L0018", "L0020"]
SGN = "SGN"  # 肾功能 of the county hospital, 3000 fen (mappings/codes/county-hospital/orders.csv)


def _audit(county: Any, start: datetime = START, end: datetime = END) -> Report:
    with psycopg.connect(county.url) as conn:
        return detect.audit(conn, rules_module.load(), load_profiles(), start, end)


def _one(county: Any) -> Finding:
    found = _audit(county).findings
    assert len(found) == 1
    return found[0]


@pytest.fixture
def people(county: Any) -> tuple[str, str]:
    """One person known at the county hospital and at the north township: the two Patient ids."""
    here = county.patient("county-hospital", "1", "p-1", LONG_AGO)
    return here, county.patient("north-township", "2", "p-1", LONG_AGO)


def test_a_repeat_of_a_visible_recognizable_panel_is_avoidable(county: Any, people: tuple[str, str]) -> None:
    here, there = people
    county.report("north-township", there, "r1", RENAL, PRIOR)
    order = county.order("county-hospital", here, "P1", SGN, AT)
    county.report("county-hospital", here, "r2", RENAL, AT + timedelta(minutes=10), order=order)
    found = _audit(county)
    (finding,) = found.findings
    assert (finding.kind, finding.cause, finding.facility, finding.orderable) == (
        "avoidable",
        "",
        "county-hospital",
        "RENAL",
    )
    assert (finding.order, finding.at, finding.basis) == (f"ServiceRequest/{order}", AT, "order")
    assert finding.price_fen == 3000
    assert len(finding.prior) == len(finding.repeated) == 3
    assert finding.decision["outcome"] == "recognized"
    assert finding.decision["rules"] == found.rules_version
    (row,) = found.rows
    assert (row.orders, row.repeats, row.avoidable, row.amount_fen) == (1, 1, 1, 3000)


def test_the_same_audit_twice_gives_the_same_findings(county: Any, people: tuple[str, str]) -> None:
    here, there = people
    county.report("north-township", there, "r1", RENAL, PRIOR)
    county.order("county-hospital", here, "P1", SGN, AT)
    assert _audit(county) == _audit(county)


def test_a_first_test_is_no_repeat(county: Any, people: tuple[str, str]) -> None:
    here, _ = people
    order = county.order("county-hospital", here, "P1", SGN, AT)
    county.report("county-hospital", here, "r1", RENAL, AT + timedelta(minutes=10), order=order)
    found = _audit(county)
    assert found.findings == ()
    assert [(r.orders, r.repeats, r.amount_fen) for r in found.rows] == [(1, 0, 0)]


def test_an_orders_own_results_do_not_make_it_a_repeat_when_it_was_entered_late(
    county: Any, people: tuple[str, str]
) -> None:
    here, _ = people
    order = county.order("county-hospital", here, "P1", SGN, AT)
    county.report("county-hospital", here, "r1", RENAL, AT - timedelta(hours=2), order=order)
    assert _audit(county).findings == ()


def test_the_window_is_judged_as_of_the_order(county: Any, people: tuple[str, str]) -> None:
    here, there = people
    days = max(rules_module.load().items[i].window_days for i in RENAL)
    county.report("north-township", there, "r1", RENAL, AT - timedelta(days=days, seconds=1))
    county.order("county-hospital", here, "P1", SGN, AT)
    assert _audit(county).findings == ()


def test_a_result_that_came_after_the_order_is_no_prior_result(county: Any, people: tuple[str, str]) -> None:
    here, there = people
    county.report("north-township", there, "r1", RENAL, AT - timedelta(hours=3), issued=AT + timedelta(minutes=1))
    county.order("county-hospital", here, "P1", SGN, AT)
    assert _audit(county).findings == ()


def test_a_report_that_existed_but_had_not_reached_the_platform_is_a_system_cause(
    county: Any, people: tuple[str, str]
) -> None:
    here, there = people
    county.report("north-township", there, "r1", RENAL, PRIOR, recorded=AT + timedelta(hours=1))
    county.order("county-hospital", here, "P1", SGN, AT)
    finding = _one(county)
    assert (finding.kind, finding.cause) == ("system", "not-yet-received")
    assert len(finding.prior) == 3


def test_a_code_mapped_only_later_is_a_system_cause(county: Any, people: tuple[str, str]) -> None:
    here, there = people
    taken = PRIOR
    county.report("north-township", there, "r1", RENAL, taken, mapped=False)
    county.order("county-hospital", here, "P1", SGN, AT)
    assert _audit(county).findings == ()
    later = AT + timedelta(hours=2)
    county.report("north-township", there, "r1", RENAL, taken, recorded=later, issued=taken + timedelta(minutes=30))
    finding = _one(county)
    assert (finding.kind, finding.cause) == ("system", "unmapped-code")


def test_a_person_linked_only_later_is_a_system_cause(county: Any) -> None:
    here = county.patient("county-hospital", "1", "p-1", LONG_AGO)
    there = county.patient("north-township", "2", "p-2", LONG_AGO)
    county.report("north-township", there, "r1", RENAL, PRIOR)
    county.order("county-hospital", here, "P1", SGN, AT)
    assert _audit(county).findings == ()
    county.patient("north-township", "2", "p-1", AT + timedelta(hours=1))
    finding = _one(county)
    assert (finding.kind, finding.cause) == ("system", "identity-not-linked")


def test_results_of_two_people_are_never_joined(county: Any) -> None:
    here = county.patient("county-hospital", "1", "p-1", LONG_AGO)
    there = county.patient("north-township", "2", "p-2", LONG_AGO)
    county.report("north-township", there, "r1", RENAL, PRIOR)
    county.order("county-hospital", here, "P1", SGN, AT)
    assert _audit(county).findings == ()


def test_a_result_voided_before_the_order_does_not_count_and_one_voided_later_does(
    county: Any, people: tuple[str, str]
) -> None:
    here, there = people
    taken = PRIOR
    county.report("north-township", there, "r1", RENAL, taken)
    county.order("county-hospital", here, "P1", SGN, AT)
    void = AT + timedelta(hours=1)
    county.report("north-township", there, "r1", RENAL, taken, recorded=void, issued=void, status="entered-in-error")
    assert _one(county).kind == "avoidable"
    county.order("county-hospital", here, "P2", SGN, void + timedelta(hours=1))
    assert [f.at for f in _audit(county).findings] == [AT]


def test_an_unknown_unit_leaves_it_undetermined(county: Any, people: tuple[str, str]) -> None:
    here, there = people
    odd = {"valueQuantity": {"value": 6, "unit": "个单位"}}
    county.report("north-township", there, "r1", RENAL, PRIOR, changes=odd)
    county.order("county-hospital", here, "P1", SGN, AT)
    finding = _one(county)
    assert (finding.kind, finding.cause) == ("undetermined", "unit")


def test_a_part_of_the_panel_is_no_repeat_but_counted(county: Any, people: tuple[str, str]) -> None:
    here, there = people
    county.report("north-township", there, "r1", RENAL[:2], PRIOR)
    county.order("county-hospital", here, "P1", SGN, AT)
    found = _audit(county)
    assert found.findings == ()
    assert [(r.orders, r.repeats, r.partial) for r in found.rows] == [(1, 0, 1)]


def test_a_lawful_reason_in_the_order_justifies_it(county: Any, people: tuple[str, str]) -> None:
    here, there = people
    county.report("north-township", there, "r1", RENAL, PRIOR)
    reason = [{"coding": [{"system": systems.REPEAT_REASONS, "code": "3"}]}]
    county.order("county-hospital", here, "P1", SGN, AT, reasonCode=reason)
    finding = _one(county)
    assert (finding.kind, finding.cause) == ("justified", "reason-3")


def test_an_emergency_visit_justifies_it(county: Any, people: tuple[str, str]) -> None:
    here, there = people
    county.report("north-township", there, "r1", RENAL, PRIOR)
    visit = county.encounter("county-hospital", here, "v1", "EMER", AT - timedelta(hours=1))
    county.order("county-hospital", here, "P1", SGN, AT, encounter={"reference": f"Encounter/{visit}"})
    finding = _one(county)
    assert (finding.kind, finding.cause) == ("justified", "reason-4")


def _tell_ledger(
    url: str, at: datetime, reason: str | None, *, placers: tuple[str, ...] = (), person: str | None = "p-1"
) -> None:
    reminder = {"card": "card-1", "placers": list(placers)}
    feedback: dict[str, Any] = {"card": "card-1", "outcome": "overridden"}
    if reason:
        feedback["reason"] = {"system": systems.REPEAT_REASONS, "code": reason}
    rows = (
        (1, "reminder", person, "RENAL", "recognized", reminder),
        (2, "feedback", None, None, "overridden", feedback),
    )
    with psycopg.connect(url) as conn:
        for number, kind, who, orderable, outcome, entry in rows:
            conn.execute(
                "INSERT INTO ledger (chain, number, at, kind, person, facility, orderable, outcome, entry, hash)"
                " VALUES ('c', %s, %s, %s, %s, 'county-hospital', %s, %s, %s, '')",
                (number, at, kind, who, orderable, outcome, json.dumps(entry)),
            )


def test_an_overridden_reminder_with_a_reason_justifies_the_order_it_was_for(
    county: Any, people: tuple[str, str]
) -> None:
    here, there = people
    county.report("north-township", there, "r1", RENAL, PRIOR)
    county.order("county-hospital", here, "P1", SGN, AT)
    _tell_ledger(county.url, AT - timedelta(minutes=1), "2")
    finding = _one(county)
    assert (finding.kind, finding.cause) == ("justified", "reason-2")


@pytest.mark.parametrize(
    ("at", "reason", "person"),
    [
        (AT - timedelta(minutes=1), None, "p-1"),
        (AT - timedelta(minutes=1), "2", "p-2"),
        (AT - timedelta(hours=25), "2", "p-1"),
    ],
)
def test_no_reason_another_person_or_another_day_does_not_justify(
    county: Any, people: tuple[str, str], at: datetime, reason: str | None, person: str
) -> None:
    here, there = people
    county.report("north-township", there, "r1", RENAL, PRIOR)
    county.order("county-hospital", here, "P1", SGN, AT)
    _tell_ledger(county.url, at, reason, person=person)
    assert _one(county).kind == "avoidable"


def test_the_placer_number_leads_from_the_reminder_to_the_order(county: Any, people: tuple[str, str]) -> None:
    here, there = people
    county.report("north-township", there, "r1", RENAL, PRIOR)
    county.order("county-hospital", here, "P1", SGN, AT)
    placer = f"{systems.facility_system('county-hospital', 'placer')}|P1"
    _tell_ledger(county.url, AT - timedelta(minutes=1), "1", placers=(placer,), person=None)
    assert _one(county).cause == "reason-1"


@pytest.mark.parametrize(
    "changes", [{"status": "revoked"}, {"status": "draft"}, {"intent": "proposal"}, {"doNotPerform": True}]
)
def test_an_order_that_was_never_placed_or_was_taken_back_is_not_counted(
    county: Any, people: tuple[str, str], changes: dict[str, Any]
) -> None:
    here, there = people
    county.report("north-township", there, "r1", RENAL, PRIOR)
    county.order("county-hospital", here, "P1", SGN, AT, **changes)
    assert _audit(county).rows == ()


def test_only_orders_of_the_period_count_its_end_excluded(county: Any, people: tuple[str, str]) -> None:
    here, _ = people
    for number, at in (
        ("P1", START),
        ("P2", END - timedelta(seconds=1)),
        ("P3", END),
        ("P4", START - timedelta(seconds=1)),
    ):
        county.order("county-hospital", here, number, SGN, at)
    assert sum(r.orders for r in _audit(county).rows) == 2


def test_an_order_code_nobody_knows_is_told_apart(county: Any, people: tuple[str, str]) -> None:
    here, _ = people
    county.order("county-hospital", here, "P1", "TJTC", AT)
    found = _audit(county)
    assert (found.rows, found.not_understood) == ((), {"county-hospital": 1})


def test_an_order_code_nobody_knows_is_judged_by_what_it_brought(county: Any, people: tuple[str, str]) -> None:
    here, there = people
    county.report("north-township", there, "r1", RENAL, PRIOR)
    order = county.order("county-hospital", here, "P1", "TJTC", AT)
    county.report("county-hospital", here, "r2", RENAL, AT + timedelta(minutes=10), order=order)
    found = _audit(county)
    assert [(f.orderable, f.kind) for f in found.findings] == [("RENAL", "avoidable")]
    assert found.not_understood == {}


def test_a_feed_without_order_times_is_counted_apart_by_collection_time(county: Any, people: tuple[str, str]) -> None:
    here, there = people
    county.report("north-township", there, "r1", RENAL, AT - timedelta(days=1))
    county.report("county-hospital", here, "r2", RENAL, AT)
    order = county.order("county-hospital", here, "P1", SGN, None)
    county.report("county-hospital", here, "r3", RENAL, AT + timedelta(hours=5), order=order)
    found = _audit(county)
    # The report of yesterday itself counts as an order of yesterday, and it was the first.
    assert [(r.facility, r.basis, r.orders, r.avoidable) for r in found.rows] == [
        ("county-hospital", "collection", 2, 2),
        ("north-township", "collection", 1, 0),
    ]
    assert {f.order.partition("/")[0] for f in found.findings} == {"ServiceRequest", "DiagnosticReport"}
    assert all(f.basis == "collection" for f in found.findings)


def test_two_reports_of_one_moment_do_not_repeat_each_other(county: Any, people: tuple[str, str]) -> None:
    here, there = people
    county.report("north-township", there, "r1", RENAL, AT)
    county.report("county-hospital", here, "r2", RENAL, AT)
    assert _audit(county).findings == ()


def test_many_orders_are_read_in_chunks(county: Any, people: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fhir_server.duplicates.orders.CHUNK", 3)
    here, there = people
    county.report("north-township", there, "r1", RENAL, PRIOR)
    for number in range(8):
        county.order("county-hospital", here, f"P{number}", SGN, AT + timedelta(minutes=number))
    found = _audit(county)
    assert [(r.orders, r.avoidable, r.amount_fen) for r in found.rows if r.basis == "order"] == [(8, 8, 24000)]
    assert len({f.id for f in found.findings}) == 8


def test_the_report_is_a_table_csv_and_json_with_the_same_figures(county: Any, people: tuple[str, str]) -> None:
    here, there = people
    county.report("north-township", there, "r1", RENAL, PRIOR)
    county.order("county-hospital", here, "P1", SGN, AT)
    found = _audit(county)
    assert report.as_csv(found).splitlines()[1] == "county-hospital,RENAL,肾功能,order,1,1,1,0,0,0,0,3000"
    values = json.loads(report.as_json(found))
    assert values["totals"][0]["avoidable"] == 1
    assert values["findings"][0]["decision"]["outcome"] == "recognized"
    assert report.table(found).row_count >= 2
