"""Cases an auditor would try to catch the audit out with. What each must be was written down, from the text named beside it, before it
was run; everybody has people of his own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from conformance import systems
from fhir_server.duplicates import cases, detect
from fhir_server.recognition import rules as rules_module
from mappings.profile import load_profiles

AT = datetime(2025, 11, 21, 1, 0, tzinfo=UTC)
PRIOR, LONG_AGO = AT - timedelta(days=2), AT - timedelta(days=90)
HERE, THERE = "county-hospital", "north-township"
RENAL = ["L0016", "L0018", "L0020"]
HOUR = timedelta(hours=1)
NONE = ("", "")
Truth = dict[str, tuple[str, str]]
"""ServiceRequest or DiagnosticReport -> kind and cause; both empty: no finding."""


def _reason(code: str = "", text: str = "") -> dict[str, Any]:
    concept = {"coding": [{"system": systems.REPEAT_REASONS, "code": code}]} if code else {"text": text}
    return {"reasonCode": [concept]}


class Case:
    """One case: a person known at both places."""

    def __init__(self, county: Any, name: str) -> None:
        self.county, self.name = county, name
        self.here = county.patient(HERE, f"{name}-h", f"p-{name}", LONG_AGO)
        self.there = county.patient(THERE, f"{name}-t", f"p-{name}", LONG_AGO)
        self._numbers = 0

    def prior(self, items: list[str], at: datetime = PRIOR, **more: Any) -> str:
        """A result of the township."""
        self._numbers += 1
        return str(self.county.report(THERE, self.there, f"{self.name}{self._numbers}", items, at, **more))

    def order(self, code: str, at: datetime = AT, items: list[str] | None = None, **more: Any) -> str:
        """An order of the county hospital, and its result an hour later."""
        self._numbers += 1
        number = f"{self.name}{self._numbers}"
        system = systems.ORDERABLES if code == "OGTT" else systems.ITEMS if code[1:].isdigit() else ""
        order = str(self.county.order(HERE, self.here, f"P{number}", code, at, system, **more))
        if items:
            self.county.report(HERE, self.here, number, items, at + HOUR, order=order)
        return f"ServiceRequest/{order}"


def glucose_curve(c: Case) -> Truth:
    """Invariant 11: an order is an orderable; its own timed results are no repeats of each other."""
    order = c.order("OGTT")
    logical = order.partition("/")[2]
    for n, item in enumerate(("L0023", "L0024", "L0025")):
        c.county.report(HERE, c.here, f"{c.name}c{n}", [item], AT + n * HOUR, order=logical)
    return {order: NONE}


def glucose_series_with_a_reason(c: Case) -> Truth:
    """6号, circumstance 2: changes fast; a timed glucose ordered by itself each time, with that reason."""
    first = c.order("XT", AT - 4 * HOUR, ["L0022"])
    return {first: NONE, c.order("XT", AT, ["L0022"], **_reason("2")): ("justified", "reason-2")}


def daily_on_the_ward(c: Case) -> Truth:
    """Domain 2.4: inside the window, no reason: avoidable, of an inpatient too; with circumstance 1: justified."""
    c.prior(RENAL, AT - timedelta(days=3))
    return {
        c.order("SGN", AT - timedelta(hours=20), RENAL): ("avoidable", ""),
        c.order("SGN", AT, RENAL, **_reason("1")): ("justified", "reason-1"),
    }


def transferred_as_an_emergency(c: Case) -> Truth:
    """6号, circumstance 4: the receiving visit is an emergency."""
    c.prior(RENAL)
    visit = c.county.encounter(HERE, c.here, f"V{c.name}", "EMER", AT)
    return {c.order("SGN", encounter={"reference": f"Encounter/{visit}"}): ("justified", "reason-4")}


def merged_after_the_order(c: Case) -> Truth:
    """Invariant 9 and requirement 27: two records of one person, joined (A40) only after the order: the system's cause."""
    other = c.county.patient(HERE, f"{c.name}-x", f"p-{c.name}-x", LONG_AGO)
    c.county.report(HERE, other, f"{c.name}m", RENAL, PRIOR)
    order = c.order("SGN")
    c.county.patient(HERE, f"{c.name}-x", f"p-{c.name}", AT + HOUR)
    return {order: ("system", "identity-not-linked")}


def merged_before_the_order(c: Case) -> Truth:
    """The same joined in time: avoidable."""
    other = c.county.patient(HERE, f"{c.name}-x", f"p-{c.name}-x", LONG_AGO)
    c.county.report(HERE, other, f"{c.name}m", RENAL, PRIOR)
    c.county.patient(HERE, f"{c.name}-x", f"p-{c.name}", AT - HOUR)
    return {c.order("SGN"): ("avoidable", "")}


def unmerged_before_the_order(c: Case) -> Truth:
    """Requirement 27, every merge is reversible: what was joined by mistake and parted in time is nobody's repeat."""
    other = c.county.patient(HERE, f"{c.name}-x", f"p-{c.name}", LONG_AGO)
    c.county.report(HERE, other, f"{c.name}m", RENAL, PRIOR)
    c.county.patient(HERE, f"{c.name}-x", f"p-{c.name}-x", AT - HOUR)
    return {c.order("SGN"): NONE}


def twins(c: Case) -> Truth:
    """Requirement 27: newborns of one mother are two persons until somebody says otherwise."""
    other = c.county.patient(THERE, f"{c.name}-2", f"p-{c.name}-2", LONG_AGO)
    c.county.report(THERE, other, f"{c.name}m", RENAL, PRIOR)
    return {c.order("SGN"): NONE}


def voided_between(c: Case) -> Truth:
    """Requirement 8: void results never count."""
    c.county.report(THERE, c.there, f"{c.name}v", RENAL, PRIOR)
    void = AT - timedelta(days=1)
    c.county.report(THERE, c.there, f"{c.name}v", RENAL, PRIOR, issued=void, recorded=void, status="entered-in-error")
    return {c.order("SGN"): NONE}


def corrected_between(c: Case) -> Truth:
    """A corrected result counts."""
    c.county.report(THERE, c.there, f"{c.name}v", RENAL, PRIOR)
    later = AT - timedelta(days=1)
    c.county.report(THERE, c.there, f"{c.name}v", RENAL, PRIOR, issued=later, recorded=later, status="corrected")
    return {c.order("SGN"): ("avoidable", "")}


def voided_after_the_order(c: Case) -> Truth:
    """Invariant 8, what was visible then: the doctor could not know."""
    c.county.report(THERE, c.there, f"{c.name}v", RENAL, PRIOR)
    void = AT + timedelta(days=1)
    c.county.report(THERE, c.there, f"{c.name}v", RENAL, PRIOR, issued=void, recorded=void, status="entered-in-error")
    return {c.order("SGN"): ("avoidable", "")}


def never_performed(c: Case) -> Truth:
    """ORC-1 CA and DC: revoked; entered by mistake: no order at all."""
    c.prior(RENAL)
    return {c.order("SGN", status=s): NONE for s in ("revoked", "entered-in-error")}


def ordered_and_no_result_came(c: Case) -> Truth:
    """Domain 2.4: the order itself is what is asked about; it stands without a result."""
    c.prior(RENAL)
    return {c.order("SGN"): ("avoidable", "")}


def one_member_of_a_panel(c: Case) -> Truth:
    """Invariant 11: judged from its members; creatinine stood in an earlier panel."""
    c.prior(RENAL)
    return {c.order("L0018"): ("avoidable", "")}


def a_panel_of_which_one_was_there(c: Case) -> Truth:
    """Invariant 11: missing members give no repeat."""
    c.prior(["L0018"])
    return {c.order("SGN"): NONE}


def a_double_click(c: Case) -> Truth:
    """Two orders within a minute: neither had a result before it."""
    return {c.order("SGN", AT, RENAL): NONE, c.order("SGN", AT + timedelta(seconds=20)): NONE}


def received_after_the_order(c: Case) -> Truth:
    """Domain 2.4: not yet received is a system cause."""
    c.prior(RENAL, recorded=AT + HOUR)
    return {c.order("SGN"): ("system", "not-yet-received")}


def issued_after_the_order(c: Case) -> Truth:
    """Requirement 2 and the audit: an order placed before the earlier result was there."""
    c.prior(RENAL, AT - 3 * HOUR, issued=AT + HOUR)
    return {c.order("SGN"): NONE}


def a_code_nobody_mapped(c: Case) -> Truth:
    """Requirement 24: stored and never matched; nothing tells what it was, so it is nobody's repeat."""
    c.prior(RENAL, mapped=False)
    return {c.order("SGN"): NONE}


def of_urine_and_not_of_serum(c: Case) -> Truth:
    """recognition.md, specimen and item: glucose of a urine strip is another item."""
    c.prior(["L0231"])
    return {c.order("XT"): NONE}


def the_other_knee(c: Case) -> Truth:
    """Laterality: the left knee is not the right one."""
    c.prior(["R0031"])
    return {c.order("R0030"): NONE}


def images_nobody_knows_of(c: Case) -> Truth:
    """Missing data never counts as met: undetermined."""
    c.prior(["R0030"])
    return {c.order("R0030"): ("undetermined", "images")}


def before_surgery(c: Case) -> Truth:
    """6号, circumstance 3, said in words; urea is not decisive."""
    c.prior(["L0182", *RENAL])
    return {
        c.order("L0182", **_reason(text="术前检查")): ("justified", "reason-3"),
        c.order("SGN", **_reason(text="术前检查")): ("avoidable", ""),
    }


def a_sensitive_item(c: Case) -> Truth:
    """Invariant 14: the audit judges it; who may see the finding is asked at the door."""
    c.prior(["L0194"])
    return {c.order("L0194"): ("avoidable", "")}


def no_orders_at_all(c: Case) -> Truth:
    """A feed without orders: the report's collection stands for the order."""
    c.prior(RENAL)
    again = c.county.report(THERE, c.there, f"{c.name}w", RENAL, AT)
    return {f"DiagnosticReport/{again}": ("avoidable", "")}


def a_clock_that_runs_ahead(c: Case) -> Truth:
    """The window: dated after the order, though it was there before: not inside."""
    ahead = AT + timedelta(minutes=5)
    c.prior(RENAL, ahead, issued=ahead, recorded=AT - timedelta(minutes=5))
    return {c.order("SGN"): NONE}


def one_second_inside_and_outside(c: Case) -> Truth:
    """Requirement 2: N x 24 h is inside, one second later outside (urea and creatinine: 7 days)."""
    c.prior(RENAL, AT - timedelta(days=7))
    return {c.order("SGN"): ("avoidable", ""), c.order("SGN", AT + timedelta(seconds=1)): NONE}


CASES: tuple[Callable[[Case], Truth], ...] = tuple(
    found
    for found in list(globals().values())
    if callable(found) and getattr(found, "__annotations__", {}).get("c") == "Case"
)


def test_every_hard_case_is_what_was_written_down(county: Any) -> None:
    truth: dict[str, tuple[str, tuple[str, str]]] = {}
    for case in CASES:
        truth |= {key: (case.__name__, kind) for key, kind in case(Case(county, case.__name__)).items()}
    with psycopg.connect(county.url) as conn:
        period = (AT - timedelta(days=1), AT + timedelta(days=1))
        found = detect.audit(conn, rules_module.load(), load_profiles(), *period, cases=True)
    told = {f.order: (f.kind, f.cause) for f in found.findings}
    assert len(truth) >= 30
    differs = {
        key: (name, kind, told.get(key, NONE)) for key, (name, kind) in truth.items() if told.get(key, NONE) != kind
    }
    assert list(differs.values()) == []
    assert {f.order for f in found.findings} <= truth.keys()
    orders = {row.orderable: row.orders for row in found.rows if row.basis == "order"}
    # never_performed: the two orders taken back are not among those counted.
    assert sum(orders.values()) == sum(key.startswith("ServiceRequest/") for key in truth) - 2
    # Every figure leads to its cases, a partial one to what was fresh and what was missing.
    for figure in ("orders", "repeats", "avoidable", "justified", "undetermined", "system", "partial"):
        assert len(cases.of(figure, found.cases)) == sum(getattr(row, figure) for row in found.rows), figure
    partly = {truth[c.order][0]: (c.fresh, c.missing) for c in cases.of("partial", found.cases) if c.order in truth}
    assert partly["a_panel_of_which_one_was_there"] == (("L0018",), ("L0016", "L0020"))
