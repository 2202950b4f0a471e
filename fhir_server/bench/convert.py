"""``tongjian bench convert``: from the bytes of a message to its resources, on one core, without I/O; and other readers beside ours."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from adapters.convert import convert
from adapters.hl7v2 import reader
from conformance import validator
from conformance.fhirjson import members
from fhir_server.bench import documents
from fhir_server.bench.messages import OBX, Message, messages
from fhir_server.ingest import worker
from fhir_server.settings import Settings
from mappings.profile import Profile, load_profiles

SEED = 20260303
LENGTHS = (10, 100, 1000)
"""Results in one message: the time for each result must not grow with their number."""
_ROUNDS = 5


def run(settings: Settings, *, count: int, slow: int = 40) -> dict[str, Any]:
    """Figures by name, those of the issue first. ``slow``: messages for the readers that take tens of milliseconds for each."""
    profiles = load_profiles(settings.profiles_dir)
    now = datetime.now(settings.zone)
    told = list(messages(profiles, count, now, seed=SEED))
    _check(told, profiles)
    worker.settle()
    gc.disable()  # as in a worker while a batch is under way
    try:
        return _measured(told, profiles, now, count, slow)
    finally:
        gc.enable()


def _measured(
    told: Sequence[Message], profiles: Mapping[str, Profile], now: datetime, count: int, slow: int
) -> dict[str, Any]:
    seconds = _best(lambda: _convert(told, profiles))
    checked = _best(lambda: _check(told, profiles))
    return {
        "messages_per_s_per_core": round(count / seconds, 1),
        "resources_per_s_per_core": round(_convert(told, profiles) / seconds, 1),
        "checked_messages_per_s_per_core": round(count / checked, 1),
        **_by_length(profiles, now, count),
        **_documents(profiles, max(4, count // 10)),
        "messages": count,
        "obx": OBX,
        **peers(told, profiles, slow),
    }


def _convert(told: Sequence[Message], profiles: Mapping[str, Profile]) -> int:
    """Number of resources made."""
    return sum(len(convert(m.raw, profiles[m.facility]).entries) for m in told)


def _check(told: Sequence[Message], profiles: Mapping[str, Profile]) -> None:
    for m in told:
        for entry in convert(m.raw, profiles[m.facility]).entries:
            validator.check(entry.resource, members(entry.resource))


def _best(work: Callable[[], object], rounds: int = _ROUNDS) -> float:
    """Least processor time of several rounds, in seconds: what others on the machine cost is not ours."""
    times = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def _by_length(profiles: Mapping[str, Profile], now: datetime, count: int) -> dict[str, float]:
    out = {}
    for obx in LENGTHS:
        number = max(4, count * OBX // obx // 4)
        told = list(messages(profiles, number, now, seed=SEED + obx, obx=obx))
        _convert(told, profiles)
        seconds = _best(partial(_convert, told, profiles), 3)
        out[f"us_per_obx_{obx}"] = round(seconds * 1e6 / (number * obx), 1)
    return out


def _documents(profiles: Mapping[str, Profile], count: int) -> dict[str, float]:
    """CDA reports of 20 items and aECG recordings a second, on one core."""
    out = {}
    for kind, make in (("cda", documents.cda), ("aecg", documents.aecg)):
        told = [make(number, SEED) for number in range(count if kind == "cda" else max(2, count // 5))]
        work = partial(_each, told, profiles["generic"], kind)
        work()
        out[f"{kind}_documents_per_s_per_core"] = round(len(told) / _best(work, 3), 1)
    return out


def _each(told: Sequence[bytes], profile: Profile, kind: str) -> None:
    for raw in told:
        convert(raw, profile, kind)


def peers(told: Sequence[Message], profiles: Mapping[str, Profile], slow: int) -> dict[str, float | None]:
    """Messages a second that readers split into segments, fields and components; None for one that is not installed.

    python-hl7 and hl7apy are given decoded text, as they want it; ours starts from the bytes.
    """
    texts = [m.raw.decode(profiles[m.facility].facility.charset or "utf-8") for m in told]

    def ours() -> None:
        for m in told:
            for record in reader.read(m.raw, profiles[m.facility].facility.charset).records:
                record.fields()

    return {
        "reader_messages_per_s": round(len(told) / _best(ours)),
        "python_hl7_messages_per_s": _python_hl7(texts[: slow * 10]),
        "hl7apy_messages_per_s": _hl7apy(texts[:slow]),
    }


def _python_hl7(texts: Sequence[str]) -> float | None:
    try:
        import hl7  # noqa: PLC0415 - a development dependency
    except ImportError:
        return None
    return round(len(texts) / _best(lambda: [hl7.parse(t) for t in texts], 2))


def _hl7apy(texts: Sequence[str]) -> float | None:
    try:
        from hl7apy.parser import parse_message  # noqa: PLC0415 - slow to import
    except ImportError:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return round(len(texts) / _best(lambda: [parse_message(t, find_groups=False) for t in texts], 1), 1)
