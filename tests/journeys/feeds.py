"""Feeds whose every message can be accounted for afterwards.

A line is one connection of one facility: a sender that repeats each message until it is acknowledged, then sends the next, as a LIS
does. Each of its patients has a serial report: message after message corrects the same result to the next number, so that version n
of that Observation has the value n exactly when nothing was lost, doubled or overtaken. Registrations count in the same way in
PID-13, and single reports have a number of their own.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from adapters.transports.mllp import Sender, SendError

FACILITIES = {"alpha": "127.0.4.1", "beta": "127.0.4.2", "gamma": "127.0.4.3", "delta": "127.0.4.4"}
_BEGIN = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)
_PROFILE = """
id: {name}
organization: {{name: {name}}}
senders: [{{facility: {sender}}}]
channels: [{{addresses: [{address}/32]}}]
identifiers: {{patient: [PI, ""], resident_id: [NI]}}
default_performer: sender
"""


def write_profiles(folder: Path) -> Path:
    """Profiles of three invented facilities, each told by its address."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, address in FACILITIES.items():
        text = _PROFILE.format(name=name, sender=name.upper(), address=address)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


@dataclass(slots=True)
class Told:
    """What the acknowledged messages of one patient said."""

    serial: int = 0
    registrations: int = 0
    singles: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Line:
    """One connection. ``told``: per patient, of acknowledged messages; ``acknowledged``: their control ids, in order; ``waited``:
    seconds until each answer."""

    facility: str
    number: int
    seed: int
    patients: int = 4
    told: dict[str, Told] = field(default_factory=dict)
    acknowledged: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    waited: list[float] = field(default_factory=list)

    def messages(self) -> Iterator[tuple[str, Told, bytes]]:
        """Without end: control id, what the patient's messages have said once this one is acknowledged, bytes."""
        rng = random.Random(self.seed)
        names = [f"{self.number}-{n}" for n in range(self.patients)]
        count = 0
        while True:
            count += 1
            patient = rng.choice(names)
            before = self.told.setdefault(patient, Told())
            after = Told(before.serial, before.registrations, list(before.singles))
            control = f"L{self.number}-{count}"
            if after.registrations == 0 or rng.random() < 0.08:
                after.registrations += 1
                body = self._registration(patient, after.registrations)
                kind = "ADT^A08^ADT_A01"
            else:
                after.serial += 1
                body = self._serial(patient, after.serial)
                if rng.random() < 0.3:
                    after.singles.append(count)
                    body += self._single(patient, count)
                kind = "ORU^R01^ORU_R01"
            sender = self.facility.upper()
            sent = _time(count)
            yield control, after, f"MSH|^~\\&|LIS|{sender}|TJ|TJ|{sent}||{kind}|{control}|P|2.5.1\r{body}".encode()

    def _pid(self, patient: str, phone: str = "") -> str:
        return (
            f"PID|1||P{patient}^^^{self.facility.upper()}^PI||王{patient}||19620517|M||||||{phone}".rstrip("|") + "\r"
        )

    def _registration(self, patient: str, count: int) -> str:
        return f"EVN|A08|{_time(count)}\r{self._pid(patient, str(count))}PV1|1|O\r"

    def _serial(self, patient: str, count: int) -> str:
        at = _time(count)
        status = "F" if count == 1 else "C"
        return (
            self._pid(patient)
            + f"OBR|1||S{patient}|BIO^生化|||{at}|||||||||||||||{at}|||{status}\r"
            + f"OBX|1|NM|SERIAL^序号||{count}|mmol/L|0-9|N|||{status}|||{at}\r"
        )

    def _single(self, patient: str, number: int) -> str:
        at = _time(number)
        return (
            f"OBR|2||X{patient}-{number}|BIO^生化|||{at}|||||||||||||||{at}|||F\r"
            f"OBX|1|NM|SINGLE^单项||{number}|mmol/L|0-9|N|||F|||{at}\r"
        )

    def after(self, count: int) -> Line:
        """The same line when only its first ``count`` messages were acknowledged."""
        line = Line(self.facility, self.number, self.seed, self.patients)
        for control, after, raw in line.messages():
            if len(line.acknowledged) == count:
                break
            line.told[control_patient(raw)] = after
            line.acknowledged.append(control)
        return line

    async def send(self, port: int, count: int, pause: float = 0.0, enough: Callable[[], bool] = lambda: True) -> None:
        """Sends ``count`` messages, and on until ``enough``; each again and again until it is accepted. A refusal (AR) fails."""
        sender = Sender("127.0.0.1", port, local_address=FACILITIES[self.facility], timeout=20)
        try:
            for control, after, raw in self.messages():
                await self._until_accepted(sender, control, raw)
                self.told[control_patient(raw)] = after
                self.acknowledged.append(control)
                if len(self.acknowledged) >= count and enough():
                    return
                if pause:
                    await asyncio.sleep(pause)
        finally:
            await sender.close()

    async def _until_accepted(self, sender: Sender, control: str, raw: bytes) -> None:
        wait = 0.05
        while True:
            began = time.monotonic()
            try:
                answer = await sender.send(raw)
            except SendError:
                self.answers["none"] += 1
                await sender.close()
            else:
                self.waited.append(time.monotonic() - began)
                self.answers[answer.code] += 1
                if answer.code == "AA":
                    return
                assert answer.code == "AE", (control, answer)
            await asyncio.sleep(wait)
            wait = min(wait * 2, 1.0)


def control_patient(raw: bytes) -> str:
    """The patient (without the P of PID-3) a message of a line is about."""
    return raw.split(b"PID|1||P", 1)[1].split(b"^", 1)[0].decode()


def _time(seconds: int) -> str:
    return (_BEGIN + timedelta(seconds=seconds)).strftime("%Y%m%d%H%M%S")
