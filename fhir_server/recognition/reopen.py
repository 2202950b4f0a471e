"""Answers already given whose mark or quality assessment no longer stands: each gets a ledger row of kind ``reopened``.

Marks and EQA rounds are read as the server starts, so that is when it looks: a round recorded since that says "failed" or "lapsed" of a
day on or before the result takes back what the answer rested on (国卫医发〔2022〕6号: who failed may not mark). The past row stays.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import asyncpg
import orjson

from fhir_server.recognition import marks
from fhir_server.recognition.ledger import Ledger, Row
from fhir_server.recognition.rules import Rules

LOOKED_BACK: Final = timedelta(days=365)
"""How far back answers are looked at: the longest window of the shipped catalogue that a mark is asked for, but for one item."""

_CHUNK: Final = 2000
_GIVEN: Final = """
SELECT l.chain, l.number, l.at, l.person, l.facility, l.orderable, l.card, l.department, l.doctor, l.entry FROM ledger l
WHERE l.kind = 'reminder' AND l.at >= $1 AND (l.chain, l.number) > ($2, $3)
  AND NOT EXISTS (SELECT FROM ledger o WHERE o.card = l.card AND o.kind = 'reopened')
ORDER BY l.chain, l.number LIMIT $4"""

log = logging.getLogger(__name__)


async def reopen(pool: asyncpg.Pool, ledger: Ledger, rules: Rules, at: datetime) -> int:
    """Writes the rows; how many. ``rules``: with the register as it is now and the facilities' regions; at: now (aware).

    Running it again writes nothing again. Raises OSError when the ledger takes no row, and what asyncpg raises.
    """
    register = rules.register
    if not register.marks and not register.rounds:
        return 0
    place: tuple[str, int] = ("", 0)
    written = 0
    while True:
        async with pool.acquire() as connection:
            found = await connection.fetch(_GIVEN, at - LOOKED_BACK, *place, _CHUNK)
        rows = [row for given in found if (row := _row(given, rules, at))]
        await ledger.record(*rows)
        written += len(rows)
        if len(found) < _CHUNK:
            break
        place = (found[-1]["chain"], found[-1]["number"])
    if written:
        log.warning("answers_reopened count=%d", written)
    return written


def _row(given: Mapping[str, Any], rules: Rules, at: datetime) -> Row | None:
    answer = orjson.loads(given["entry"])
    decision = answer["decision"]
    region = rules.standing_of(given["facility"]).region
    lost = marks.reopened(rules.register, shown(decision, given["at"], region, rules), at)
    if not lost:
        return None
    entry = {
        "card": given["card"],
        "patient": answer.get("patient"),
        "orderable": given["orderable"],
        "user": given["doctor"],
        "department": given["department"],
        "items": [{"item": r.shown.item, "laboratory": r.shown.laboratory, "reason": r.reason} for r in lost],
        "reports": sorted(
            {
                m["result"]["report"] or m["result"]["observation"].partition("/_history")[0]
                for m in decision["members"]
                if m["result"] and m["item"] in {r.shown.item for r in lost}
            }
        ),
        "rules": rules.version,
    }
    return Row("reopened", at, given["facility"], entry, given["person"], given["orderable"])


def shown(decision: Mapping[str, Any], at: datetime, region: str, rules: Rules) -> Iterable[marks.Shown]:
    """The results of a decision as the ledger keeps it that rested on a mark or an assessment."""
    policy = next((p for p in rules.policies if p.id == decision["policy"]), None)
    for member in decision["members"]:
        result, item = member["result"], rules.items.get(member["item"])
        rested = {"mark", "eqa"} & set(member["criteria"].get("met", ()))
        if result is None or not rested or not result["performer"]:
            continue
        base = (item.time_base if item else "") or (policy.time_base if policy else "effective")
        if result[base]:
            made = datetime.fromisoformat(result[base])
            yield marks.Shown(
                decision["orderable"]["code"], at, result["performer"], member["item"], made, region, rested
            )
