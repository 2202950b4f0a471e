"""The moment the whole thing is for: a doctor orders, the HIS asks, the answer names the prior result (CDS Hooks 2.0 order-sign)."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import httpx
from rich.console import Console
from rich.panel import Panel as Box

from conformance.systems import ITEMS, ORDERABLES, local_codes
from fhir_server.demo.outside import ITEM
from fhir_server.demo.story import Repeat

SERVICE = "recognition-order-sign"


class HookClient:
    """The county hospital's HIS, as far as the demo needs it."""

    def __init__(self, fhir: str, token: str) -> None:
        self._fhir = fhir
        self._root = fhir.removesuffix("/fhir")
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {token}", "Accept-Language": "zh-CN"}, timeout=30
        )

    async def close(self) -> None:
        """Ends the connections."""
        await self._http.aclose()

    async def patient(self, record_number: str) -> dict[str, Any]:
        """The facility's Patient by its record number. Raises LookupError when there is not exactly one."""
        answer = await self._http.get(f"{self._fhir}/Patient", params={"identifier": record_number})
        answer.raise_for_status()
        entries = answer.json().get("entry", [])
        if len(entries) != 1:
            raise LookupError(f"{len(entries)} Patients have the record number {record_number}")
        resource: dict[str, Any] = entries[0]["resource"]
        return resource

    async def order_sign(
        self, patient: str, system: str, code: str, name: str, circumstances: dict[str, bool] | None = None
    ) -> list[dict[str, Any]]:
        """Cards for one draft order; ``circumstances`` as the HIS knows them."""
        order = {
            "resourceType": "ServiceRequest",
            "id": "draft-1",
            "status": "draft",
            "intent": "order",
            "subject": {"reference": f"Patient/{patient}"},
            "code": {"coding": [{"system": system, "code": code, "display": name}]},
        }
        body = {
            "hook": "order-sign",
            "hookInstance": str(uuid.uuid4()),
            "context": {
                "userId": "Practitioner/D001",
                "patientId": patient,
                "draftOrders": {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": order}]},
            },
            "extension": {"org.tongjian.circumstances": circumstances or {}},
        }
        answer = await self._http.post(f"{self._root}/cds-services/{SERVICE}", json=body)
        answer.raise_for_status()
        cards: list[dict[str, Any]] = answer.json()["cards"]
        return cards

    async def check(self, patient: str, code: str) -> dict[str, Any]:
        """The answer for one order over the plain REST door."""
        body = {
            "patient": patient,
            "user": "D001",
            "department": "NK",
            "orders": [{"id": "d1", "system": ITEMS, "code": code}],
        }
        answer = await self._http.post(f"{self._root}/recognition/check", json=body)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()["answers"][0]
        return found

    async def decline(self, card: dict[str, Any], reason: dict[str, Any]) -> None:
        """Feedback: the doctor repeats the test and says why."""
        feedback = {
            "feedback": [
                {
                    "card": card["uuid"],
                    "outcome": "overridden",
                    "overrideReason": {"reason": {"code": reason["code"], "system": reason["system"]}},
                    "outcomeTimestamp": datetime.now(UTC).isoformat(),
                    "extension": {"org.tongjian.patient-told": {"by": "D001", "at": datetime.now(UTC).isoformat()}},
                }
            ]
        }
        (await self._http.post(f"{self._root}/cds-services/{SERVICE}/feedback", json=feedback)).raise_for_status()


async def ask(console: Console, client: HookClient, repeat: Repeat, record_number: str) -> dict[str, Any]:
    """Asks for one repeat, shows the card, gives it back. Raises LookupError when the answer is empty."""
    patient = await client.patient(record_number)
    facility = repeat.dialect.facility
    cards = await client.order_sign(
        patient["id"], local_codes(facility, "orders"), repeat.panel.code, repeat.panel.name
    )
    if not cards:
        raise LookupError("the recognition check gave no card")
    card = cards[0]
    before = repeat.prior
    what = f"{before.panel.name}, {before.collected:%Y-%m-%d %H:%M}"
    console.print(
        Box(
            f"{before.person.name[0]}** was tested at {before.dialect.facility} ({what})"
            f" and is now ordered {repeat.panel.name} at {facility}. The hospital's HIS asks; the answer:\n\n"
            f"[bold]{card['summary']}[/]\n\n{card.get('detail', '')}",
            title="order-sign",
        )
    )
    return card


WHOLE = "CHEM"
"""A panel that no township reports whole: of its items some are fresh."""


async def ask_more(console: Console, client: HookClient, repeat: Repeat, record_number: str) -> None:
    """The same patient: a larger panel of which only a part is fresh, and the same panel in an emergency.

    Raises LookupError when the answers are not those."""
    patient = (await client.patient(record_number))["id"]
    cards = await client.order_sign(patient, ORDERABLES, WHOLE, "生化全套")
    if [c["indicator"] for c in cards] != ["info"]:
        raise LookupError("a panel of which a part is fresh gave no card for information")
    console.print(Box(f"[bold]{cards[0]['summary']}[/]", title="order-sign: a part is fresh"))
    system, panel = local_codes(repeat.dialect.facility, "orders"), repeat.panel
    if await client.order_sign(patient, system, panel.code, panel.name, {"emergency": True}):
        raise LookupError("an emergency was interrupted")
    console.print(
        Box(f"{panel.name}: no card, nobody is interrupted; the ledger keeps it.", title="order-sign: emergency")
    )


async def lapsed_mark(console: Console, client: HookClient, patients: Sequence[tuple[str, str]]) -> None:
    """A laboratory outside the consortium, whose mark counts while its quality assessment does.

    patients: for each of two results of the same item, when it was made and the record number of the patient; the second was made
    after the last round had lapsed. Raises LookupError when the answers are others."""
    said, outcomes = [], []
    for made, record_number in patients:
        answer = await client.check((await client.patient(record_number))["id"], ITEM)
        outcomes.append(answer["outcome"])
        said.append(f"tested {made}: [bold]{answer['summary']['zh']}[/]")
    if outcomes != ["recognized", "not-recognizable"]:
        raise LookupError(f"a lapsed mark gave {outcomes}")
    text = "省城检验中心 holds a national mark; nobody took part in its next round of quality assessment.\n\n"
    console.print(Box(text + "\n".join(said), title="a mark whose quality assessment lapsed"))
