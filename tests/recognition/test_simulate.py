"""The dry run of new rules over past orders, on a database."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from conformance import systems
from fhir_server.recognition import simulate as module
from fhir_server.recognition.decide import Outcome
from mappings.profile import load_profiles
from tests.recognition.test_candidates import add_images

AT = datetime(2025, 11, 21, 9, 0, tzinfo=UTC)
RENAL = ("L0016", "L0018", "L0020")


def test_names_the_orders_that_new_rules_would_change_and_leaves_the_others(county: Any) -> None:
    here = county.patient("county-hospital", "1", "p-1", AT - timedelta(days=30))
    there = county.patient("north-township", "1", "p-1", AT - timedelta(days=30))
    county.report("north-township", there, "r1", RENAL, AT - timedelta(days=5))
    county.order("county-hospital", here, "A", "SGN", AT)
    county.order("county-hospital", here, "B", "SGN", AT - timedelta(days=4))
    narrow = county.rules.policies[0].model_copy(update={"window_days": 3})
    new = replace(county.rules, policies=(narrow, *county.rules.policies[1:]), version="new")
    start, end = AT - timedelta(days=10), AT + timedelta(days=1)
    found = asyncio.run(module.simulate(county.url, county.rules, new, load_profiles(), start, end))
    assert found.orders == 2
    assert [(c.at, c.before, c.after, c.why) for c in found.changed] == [
        (AT, Outcome.RECOGNIZED, Outcome.NOT_RECOGNIZABLE, ("window",))
    ]
    assert "2 orders, 1 change." in module.lines(found)[0]
    assert "recognized,not-recognizable,window" in module.as_csv(found.changed).splitlines()[1]


def test_a_shorter_window_and_a_policy_without_own_results_change_what_a_hand_count_says(county: Any) -> None:
    here = county.patient("county-hospital", "1", "p-1", AT - timedelta(days=30))
    there = county.patient("north-township", "1", "p-1", AT - timedelta(days=30))
    lipids = county.rules.orderables["LIPID"].required
    county.report("north-township", there, "r1", RENAL, AT - timedelta(days=5))
    county.report("county-hospital", here, "r2", lipids, AT - timedelta(days=1))
    said = {"method": {"text": "平扫"}, "bodySite": {"text": "胸部"}}
    scan = county.report("north-township", there, "r3", ["R0045"], AT - timedelta(days=2), changes=said)
    add_images(county, "north-township", there, scan, AT - timedelta(hours=12))
    county.order("county-hospital", here, "A", "SGN", AT)
    county.order("county-hospital", here, "B", "LIPID", AT, systems.ORDERABLES)
    county.order("county-hospital", here, "C", "R0045", AT, systems.ITEMS)
    county.order("county-hospital", here, "D", "R0045", AT - timedelta(days=1), systems.ITEMS)
    narrow = county.rules.policies[0].model_copy(update={"window_days": 3, "own_facility_results": False})
    new = replace(county.rules, policies=(narrow, *county.rules.policies[1:]), version="new")
    start, end = AT - timedelta(days=10), AT + timedelta(days=1)
    found = asyncio.run(module.simulate(county.url, county.rules, new, load_profiles(), start, end))
    # A: five days are more than three. B: the own result. C: two days, images complete and within reach. D: before they were received.
    assert {(c.orderable, c.before, c.after, c.why) for c in found.changed} == {
        ("RENAL", Outcome.RECOGNIZED, Outcome.NOT_RECOGNIZABLE, ("window",)),
        ("LIPID", Outcome.RECOGNIZED, Outcome.REFERENCE_ONLY, ("own-facility",)),
    }
    assert found.outcomes[Outcome.RECOGNIZED, Outcome.RECOGNIZED] == 1
    assert found.orders == 4


def test_the_same_rules_change_nothing(county: Any) -> None:
    here = county.patient("county-hospital", "1", "p-1", AT - timedelta(days=30))
    county.order("county-hospital", here, "A", "SGN", AT)
    start, end = AT - timedelta(days=1), AT + timedelta(days=1)
    found = asyncio.run(module.simulate(county.url, county.rules, county.rules, load_profiles(), start, end))
    assert (found.orders, found.changed) == (1, ())
