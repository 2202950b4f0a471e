"""The world of one rule case: facility profiles, catalogue, policy and register, through the same loaders the server uses.

What a case gives is written to a folder of its own as the files an installation would have, and loaded from there.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError

from fhir_server.recognition import marks_csv
from fhir_server.recognition import rules as rules_module
from fhir_server.recognition.case_file import Case, CaseError, World
from fhir_server.recognition.policy import Policy
from fhir_server.recognition.rules import Rules, RulesError, faults
from mappings import catalogue
from mappings.catalogue import Catalogue, CatalogueError
from mappings.csv_rows import Problem
from mappings.profile import Profile, ProfileError, load_profiles

_ORGANIZATION: Final = ("name", "name_en", "level", "region", "consortium", "ownership")
_OURS: Final = ("id", "sender", "tests", "orders", "units", *_ORGANIZATION)
_ITEM_COLUMNS: Final = ("code", "name", "item", "valid_from", "valid_to", "note")
_ORDER_COLUMNS: Final = ("code", "name", "orderable", "price_fen", "valid_from", "valid_to", "note")


@dataclass(frozen=True, slots=True)
class Built:
    """profiles by facility id; rules as they are for these facilities."""

    profiles: Mapping[str, Profile]
    rules: Rules
    catalogue: Catalogue


def build(case: Case, rules: Path | None = None) -> Built:
    """The world of a case over a rules folder (default: the shipped one). Raises CaseError naming the key that is wrong."""
    world = World.model_validate(case.model_dump(include=set(World.model_fields)))
    return _built(json.dumps(world.model_dump(), sort_keys=True, default=str), rules)


@lru_cache(maxsize=64)
def _built(text: str, folder: Path | None) -> Built:
    world = World.model_validate(json.loads(text))
    try:
        with tempfile.TemporaryDirectory() as name:
            base = _catalogue_folder(world, Path(name), folder or catalogue.DIRECTORY)
            rules, examples, known = (
                _load(base) if base == (folder or catalogue.DIRECTORY) else _load_changed(base, world)
            )
            rules = replace(
                rules,
                policies=_policies(world, rules, examples),
                register=_register(world, rules, Path(name), base),
            )
            profiles = load_profiles(_profile_folder(world, known, Path(name)), catalogue=known)
            return Built(profiles, rules.among(profiles), known)
    except CatalogueError as fault:
        raise CaseError("\n".join(str(p) for p in fault.problems)) from None
    except ProfileError as fault:
        # A facility that could not be read is missing in the lists of the others too: that is said once.
        own = [p for p in fault.problems if not p.key.startswith("performers.")] or fault.problems
        raise CaseError("\n".join(_of_profile(p, world) for p in own)) from None
    except RulesError as fault:
        raise CaseError(str(fault)) from None


def _load_changed(base: Path, world: World) -> tuple[Rules, Mapping[str, Policy], Catalogue]:
    """``_load`` of the case's own catalogue; a fault is told with the key of the case."""
    try:
        return _load.__wrapped__(base)
    except CatalogueError as fault:
        raise CaseError("\n".join(_of_catalogue(p, base, world) for p in fault.problems)) from None


def _of_catalogue(problem: Problem, base: Path, world: World) -> str:
    line = (base / problem.file).read_text("utf-8").splitlines()[problem.line - 1] if problem.line else ""
    code = next(csv.reader([line]), [""])[0]
    given, key = (world.items, "items") if problem.file == "items.csv" else (world.orderables, "orderables")
    return f"{key}.{code}.{problem.key}: {problem.text}" if code in given else str(problem)


def _of_profile(problem: Problem, world: World) -> str:
    """A fault of a facility's files, told with the key of the case it was made from: ``facilities.north.tests.1201.item``."""
    for given in world.facilities:
        facility = str(given["id"])
        if problem.file == f"{facility}.yaml":
            return f"facilities.{facility}.{problem.key}: {problem.text}"
        for kind in ("tests", "orders", "units"):
            if problem.file == f"{facility}-{kind}.csv":
                table = given.get(kind)
                # Line 1 is the header.
                codes = (
                    list(table) if isinstance(table, Mapping) else range(len(table) if isinstance(table, list) else 0)
                )
                row = problem.line - 2
                step = f".{codes[row]}" if 0 <= row < len(codes) else f", line {problem.line} of it"
                return f"facilities.{facility}.{kind}{step}: {problem.key}: {problem.text}"
    return str(problem)


@lru_cache(maxsize=4)
def _load(base: Path) -> tuple[Rules, Mapping[str, Policy], Catalogue]:
    return rules_module.load(base), rules_module.examples(base), catalogue.of(base)


def _catalogue_folder(world: World, temporary: Path, base: Path) -> Path:
    if not world.items and not world.orderables:
        return base
    target = temporary / "catalogue"
    shutil.copytree(catalogue.DIRECTORY, target)
    shutil.copytree(base, target, dirs_exist_ok=True)
    if world.items:
        _change_rows(target / "items.csv", world.items, "items")
    if world.orderables:
        plain = {
            c: {k: v for k, v in row.items() if k not in ("required", "optional")}
            for c, row in world.orderables.items()
        }
        _change_rows(target / "orderables.csv", plain, "orderables")
        members = {c: row for c, row in world.orderables.items() if "required" in row or "optional" in row}
        header, rows = _read(target / "members.csv")
        rows = [r for r in rows if r["orderable"] not in members]
        for code, row in members.items():
            for role in ("required", "optional"):
                rows += [{"orderable": code, "item": i, "role": role} for i in row.get(role) or ()]
        _write(target / "members.csv", header, rows)
    return target


def _change_rows(path: Path, changed: Mapping[str, Mapping[str, Any]], key: str) -> None:
    header, rows = _read(path)
    by_code = {row["code"]: row for row in rows}
    for code, given in changed.items():
        if unknown := sorted(set(given) - set(header) - {"code"}):
            raise CaseError(f"{key}.{code}: {', '.join(unknown)}: not a column of {path.name} ({', '.join(header)})")
        row = by_code.setdefault(code, dict.fromkeys(header, "") | {"category": "lab", "window_status": "suggestion"})
        row |= {"code": code} | {k: _cell(v) for k, v in given.items()}
        row["name_zh"], row["name_en"] = row["name_zh"] or code, row["name_en"] or row["name_zh"] or code
    _write(path, header, by_code.values())


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    lines = [line for line in path.read_text("utf-8-sig").splitlines() if not line.startswith("# ")]
    reader = csv.DictReader(io.StringIO("\n".join(lines)))
    return list(reader.fieldnames or ()), list(reader)


def _write(path: Path, header: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, list(header), lineterminator="\n", restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({k: _cell(v) for k, v in row.items()} for row in rows)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return "|".join(map(str, value))
    return value.isoformat() if isinstance(value, date | datetime) else str(value)


def _policies(world: World, rules: Rules, examples: Mapping[str, Policy]) -> tuple[Policy, ...]:
    known = {p.id: p for p in rules.policies} | dict(examples)
    if world.policy is not None:
        # One policy for whoever asks.
        policy = _policy(world.policy, known, "policy")
        return (policy.model_copy(update={"consortia": (), "regions": ()}),)
    if world.policies:
        return tuple(_policy(given, known, f"policies.{n}") for n, given in enumerate(world.policies))
    return tuple(rules.policies)


def _policy(given: str | Mapping[str, Any], known: Mapping[str, Policy], key: str) -> Policy:
    name = given if isinstance(given, str) else str(given.get("base", "general"))
    if name not in known:
        raise CaseError(f"{key}: {name!r} is not a policy; known are {', '.join(sorted(known))}")
    if isinstance(given, str):
        return known[name]
    data = known[name].model_dump(mode="json", by_alias=True)
    changes = {k: v for k, v in given.items() if k != "base"}
    merged = data | changes | {"criteria": data["criteria"] | dict(changes.get("criteria") or {})}
    try:
        return Policy.model_validate(merged)
    except ValidationError as fault:
        raise CaseError("\n".join(f"{key}.{line}" for line in faults(fault))) from None


_REGISTER: Final = {
    "agreements": ("id", "name", "regions", "valid_from", "valid_to", "recorded"),
    "marks": ("laboratory", "item", "scope", "valid_from", "valid_to", "certificate", "recorded"),
    "eqa": (
        "laboratory",
        "item",
        "round",
        "passed",
        "score",
        "assessed",
        "valid_to",
        "scope",
        "certificate",
        "recorded",
    ),
}


def _register(world: World, rules: Rules, temporary: Path, base: Path) -> Any:
    given = {"agreements": world.agreements, "marks": world.marks, "eqa": world.eqa}
    if not any(given.values()):
        return rules.register
    folder = temporary / "register"
    folder.mkdir()
    if base.resolve() != catalogue.DIRECTORY.resolve():
        for own in (base / "regions.csv", *base.glob("agreements*.csv")):
            if own.is_file():
                shutil.copy(own, folder)
    for kind, rows in given.items():
        columns = _REGISTER[kind]
        for number, row in enumerate(rows):
            if unknown := sorted(set(row) - set(columns)):
                raise CaseError(f"{kind}.{number}: {', '.join(unknown)}: unknown key; known are {', '.join(columns)}")
        if rows:
            defaults = {"item": "*"} if kind != "agreements" else {}
            _write(folder / f"{kind}-case.csv", columns, [defaults | row for row in rows])
    problems: list[Problem] = []
    register = marks_csv.load(folder, rules.items, problems)
    if problems:
        # Line 1 is the header: line n is row n - 2 of the list.
        raise CaseError("\n".join(f"{p.file.partition('-')[0]}.{p.line - 2}.{p.key}: {p.text}" for p in problems))
    return register


def _profile_folder(world: World, known: Catalogue, temporary: Path) -> Path:
    folder = temporary / "facilities"
    folder.mkdir()
    ids = [str(f.get("id") or "") for f in world.facilities]
    if not all(ids):
        raise CaseError("facilities: each facility needs an id")
    names = {str(f["name"]): str(f["id"]) for f in world.facilities if f.get("name")}
    senders = {str(f.get("sender") or f["id"].upper()): str(f["id"]) for f in world.facilities}
    for given in world.facilities:
        facility = str(given["id"])
        organization = {k: str(given[k]) for k in _ORGANIZATION if given.get(k) is not None}
        profile: dict[str, Any] = {
            "id": facility,
            "organization": {"name": facility} | organization,
            "senders": [{"facility": given.get("sender") or facility.upper()}],
            "default_performer": "sender",
            "performers": {i: i for i in ids} | senders | names,
        }
        profile |= {k: v for k, v in given.items() if k not in _OURS}
        tests, orders = f"{facility}-tests.csv", f"{facility}-orders.csv"
        own = {code: {"item": code, "name": item.name_zh} for code, item in known.items.items()}
        _table(folder / tests, _ITEM_COLUMNS, "item", given.get("tests"), own, f"facilities.{facility}.tests")
        panels = {code: {"orderable": code, "name": o.name_zh} for code, o in known.orderables.items()}
        _table(
            folder / orders, _ORDER_COLUMNS, "orderable", given.get("orders"), panels, f"facilities.{facility}.orders"
        )
        profile["codes"] = {"tests": tests, "orders": orders} | dict(profile.get("codes") or {})
        if given.get("units"):
            units = f"{facility}-units.csv"
            _table(
                folder / units,
                ("source", "ucum", "case", "note"),
                "ucum",
                given["units"],
                {},
                f"facilities.{facility}.units",
                "source",
            )
            profile["codes"]["units"] = units
        (folder / f"{facility}.yaml").write_text(yaml.safe_dump(profile, allow_unicode=True), "utf-8")
    return folder


def _table(
    path: Path,
    columns: tuple[str, ...],
    target: str,
    given: Any,
    default: Mapping[str, Any],
    key: str,
    code: str = "code",
) -> None:
    """A code table: CSV text, a list of rows, or code -> target (or columns); without one, the catalogue's own codes."""
    if isinstance(given, str) and "\n" in given:
        path.write_text(given, "utf-8")
        return
    table = default if given is None else given
    if isinstance(table, Mapping):
        rows = [{code: c} | (dict(v) if isinstance(v, Mapping) else {target: v}) for c, v in table.items()]
    elif isinstance(table, list) and all(isinstance(row, Mapping) for row in table):
        rows = [dict(row) for row in table]
    else:
        raise CaseError(f"{key}: CSV text with a header line, a list of rows, or code: {target} is needed")
    _write(path, columns, [{"name": row.get(code, "")} | row for row in rows])
