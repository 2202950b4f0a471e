"""Golden pairs: a message and the facts its conversion must show, written from the message and the standard before the converter ran.

``<name>.hl7`` (``.xml``, ``.csv`` ...) is the message, ``<name>.yaml`` the facts. A path is
``Type[filter].element[index].element``; a filter is an index or ``path=value``. ``message`` picks one of a file of several. Values
compare as text; ``absent`` and ``present`` are words; ``->Type`` is a reference to a resource of the bundle.
"""

from __future__ import annotations

import io
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapters.convert import convert, recognise, split
from conformance import fhirjson
from mappings.model import Conversion, Tier
from mappings.profile import Profile, load_profiles

HERE = Path(__file__).parent / "golden"
NAMES = sorted(path.stem for path in HERE.glob("*.yaml"))
MESSAGES = {path.stem: path for path in HERE.iterdir() if path.is_file() and path.suffix != ".yaml"}
_STEP = re.compile(r"([A-Za-z_]+)((?:\[[^\]\[]*(?:\[[^\]]*\][^\]\[]*)*\])*)(?:\.|$)")
_FILTER = re.compile(r"\[([^\]\[]*(?:\[[^\]]*\][^\]\[]*)*)\]")


@pytest.fixture(scope="module")
def profiles() -> dict[str, Profile]:
    return {**load_profiles(), **load_profiles(HERE / "profiles")}


def _steps(path: str) -> list[tuple[str, list[str]]]:
    out, at = [], 0
    while at < len(path):
        found = _STEP.match(path, at)
        assert found, f"cannot read the path {path!r} at {path[at:]!r}"
        out.append((found[1], _FILTER.findall(found[2])))
        at = found.end()
    return out


def _fits(item: Any, condition: str) -> bool:
    """Whether an item fits ``path=value``; the path looks into every item of a list on its way."""
    path, _, wanted = condition.partition("=")
    found = [item]
    for name, filters in _steps(path):
        flat = [inner for i in found for inner in (i if isinstance(i, list) else [i])]
        found = _select([i[name] for i in flat if isinstance(i, dict) and name in i], filters)
    return any(_text(v) == wanted for v in found)


def _select(items: list[Any], filters: list[str]) -> list[Any]:
    for condition in filters:
        if condition.isdigit():
            items = [i[int(condition)] for i in items if isinstance(i, list) and len(i) > int(condition)]
        else:
            flat = [inner for i in items for inner in (i if isinstance(i, list) else [i])]
            items = [i for i in flat if _fits(i, condition)]
    return items


def _follow(items: list[Any], steps: list[tuple[str, list[str]]]) -> list[Any]:
    for name, filters in steps:
        items = [i[name] for i in items if isinstance(i, dict) and name in i]
        items = _select(items, filters)
    return items


def find(conversion: Conversion, path: str) -> list[Any]:
    (kind, filters), *rest = _steps(path)
    resources = [e.resource for e in conversion.entries if e.resource["resourceType"] == kind]
    if kind in ("Organization",) and not filters:
        filters = ["0"]
    kept: list[Any] = resources
    for condition in filters:
        kept = [r for r in kept if _fits(r, condition)]
    assert len(kept) <= 1 or not rest or len(kept) == 1, f"{path} names {len(kept)} resources"
    return _follow(kept, rest)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int | Decimal) else fhirjson.dumps(value).decode()


def check(conversion: Conversion, path: str, wanted: Any) -> str:
    """The empty text when the fact holds, else what is wrong."""
    found = find(conversion, path)
    if wanted == "absent":
        return "" if not found else f"{path}: should be absent, is {found}"
    if not found:
        return f"{path}: is absent, should be {wanted!r}"
    if wanted == "present":
        return ""
    if isinstance(wanted, str) and wanted.startswith("->"):
        known = {f"{e.resource['resourceType']}/{e.resource['id']}" for e in conversion.entries}
        ok = found[0].startswith(wanted[2:] + "/") and found[0] in known
        return "" if ok else f"{path}: {found[0]} is not a {wanted[2:]} of the bundle"
    return "" if _text(found[0]) == str(wanted) else f"{path}: is {found[0]!r}, should be {wanted!r}"


def _load(name: str) -> dict[str, Any]:
    # Numbers stay as written (6.30), so scalars are read as text.
    loaded: dict[str, Any] = yaml.load((HERE / f"{name}.yaml").read_text("utf-8"), Loader=yaml.BaseLoader)
    return loaded


@pytest.mark.parametrize("name", NAMES)
def test_conversion_shows_every_fact_written_for_the_message(name: str, profiles: dict[str, Profile]) -> None:
    golden = _load(name)
    raw = MESSAGES[name].read_bytes()
    kind = recognise(raw, profiles[golden["profile"]])
    if "message" in golden:
        raw = list(split(io.BytesIO(raw), kind, profiles[golden["profile"]]))[int(golden["message"]) - 1]
    conversion = convert(raw, profiles[golden["profile"]], kind, received_at=golden.get("received", ""))
    faults = [fault for path, wanted in golden.get("facts", {}).items() if (fault := check(conversion, path, wanted))]
    kinds = [e.resource["resourceType"] for e in conversion.entries]
    for kind, number in golden.get("counts", {}).items():
        if kinds.count(kind) != int(number):
            faults.append(f"{kinds.count(kind)} {kind}, should be {number}")
    for kind, tier in golden.get("tiers", {}).items():
        tiers = {e.recency.tier for e in conversion.entries if e.resource["resourceType"] == kind}
        if tiers != {Tier[tier]}:
            faults.append(f"{kind} is stated as {tiers}, should be {tier}")
    keys = {i.key for i in conversion.issues}
    faults += [f"issue {key} is missing" for key in golden.get("issues", []) if key not in keys]
    faults += [f"issue {key} should not be there" for key in golden.get("no_issues", []) if key in keys]
    held = conversion.held
    if (held.key if held else "") != golden.get("held", ""):
        faults.append(f"held by {held}, should be {golden.get('held', 'nothing')}")
    if held and "where" in golden and held.where != golden["where"]:
        faults.append(f"held at {held.where}, should be {golden['where']}")
    if conversion.quality_control != (golden.get("quality_control") == "true"):
        faults.append("quality control is not told")
    if "unread" in golden and sorted(u.where for u in conversion.unread) != sorted(golden["unread"]):
        faults.append(f"unread {sorted(u.where for u in conversion.unread)}, should be {sorted(golden['unread'])}")
    if "merges" in golden and [m.trigger for m in conversion.merges] != golden["merges"]:
        faults.append(f"merges {conversion.merges}")
    if "unmapped" in golden and [u.code for u in conversion.unmapped if u.kind == "code"] != golden["unmapped"]:
        faults.append(f"unmapped {conversion.unmapped}")
    if "no_text" in golden:
        faults += [
            f"{e.resource['resourceType']} holds {golden['no_text']}"
            for e in conversion.entries
            if fhirjson.dumps(golden["no_text"]) in fhirjson.dumps(e.resource)
        ]
    for one, other in golden.get("same_patient", []):
        if find(conversion, f"{one}.subject.reference") != [f"Patient/{find(conversion, f'{other}.id')[0]}"]:
            faults.append(f"{one} is not of {other}")
    assert not faults, "\n" + "\n".join(faults)


def test_there_are_at_least_sixty_golden_pairs_and_each_has_its_message() -> None:
    assert len(NAMES) >= 60
    assert set(MESSAGES) == set(NAMES)
