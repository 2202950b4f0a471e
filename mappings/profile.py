"""Facility profiles as the engine uses them: the YAML checked, code maps and units read, one digest over all that decides a mapping.

Every fault of every file is found in one go and named by file, line and key. After loading nothing reads the disk.
"""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from types import MappingProxyType
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import ValidationError

from conformance import systems
from mappings import catalogue as catalogue_module
from mappings import code_table, codes, destinations, image_sources, paths, polls, profile_yaml, times, triggers, units
from mappings.catalogue import Catalogue
from mappings.codes import CodeTable, Found, LocalOrder, LocalTest, clean_name
from mappings.csv_rows import Problem
from mappings.facility import Facility
from mappings.peer_files import Wrong
from mappings.profile_yaml import Document
from mappings.units import UnitTable

DIRECTORY = Path(__file__).with_name("facilities")
GENERIC = "generic"
_LOINC_NAMES = frozenset({"LN", "LOINC", "http://loinc.org", "2.16.840.1.113883.6.1"})


@dataclass(frozen=True, slots=True)
class Profile:
    """Everything known about one facility.

    digest           hex digest over the profile, its code maps, units and the catalogue: the mapping version kept with every resource
    quality_control  compiled expressions of ``quality_control_patients``
    prices           orderable -> own price in fen
    """

    facility: Facility
    zone: ZoneInfo
    tests: CodeTable[LocalTest] = field(repr=False)
    orders: CodeTable[LocalOrder] = field(repr=False)
    units: UnitTable = field(repr=False)
    catalogue: Catalogue = field(repr=False)
    digest: str
    quality_control: tuple[re.Pattern[str], ...] = field(default=(), repr=False)
    prices: Mapping[str, int] = field(default_factory=dict, repr=False)

    @property
    def id(self) -> str:
        """The facility id."""
        return self.facility.id

    def find_test(self, code: str, name: str = "", system: str = "", at: str = "") -> Found[LocalTest]:
        """A test as sent (OBX-3 code, text, coding system; date of the result ``YYYY-MM-DD``) -> its mapping.

        The facility's table is asked first, unless the code says that it is another facility's. A code of system ``LN`` reaches the
        catalogue by itself only where the profile says that these codes are LOINC (``codes.loinc``).
        """
        if systems.of_another_facility(system, self.id):
            bare, mark = clean_name(name or code)
            return Found(None, "", bare, mark)
        found = self.tests.find(code, name, at)
        if found.mapping is None and not found.conflict and self.facility.codes.loinc and system in _LOINC_NAMES:
            item = self.catalogue.by_loinc.get(code)
            if item is not None:
                test = LocalTest(
                    code, name, item.code, item.loinc, item.name_zh, item.unit, item.specimens, item.window_days
                )  # fmt: skip
                return Found(test, "code", found.name, found.mark)
        return found


class ProfileError(Exception):
    """Profiles cannot be used; ``problems`` names every fault with file, line and key."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(p) for p in problems))
        self.problems = problems


def load_profiles(directory: Path | None = None, *, catalogue: Catalogue | None = None) -> Mapping[str, Profile]:
    """Read all ``*.yaml`` of a directory (default: the shipped ones) -> profiles by facility id; ``generic`` is always among them.

    A profile of the directory may inherit from a shipped one (``base:``). Raises ProfileError with all faults at once, and
    CatalogueError when the shipped catalogue itself is wrong.
    """
    problems: list[Problem] = []
    known = catalogue or catalogue_module.shipped()
    shipped = _documents(DIRECTORY, problems)
    own = (
        shipped if directory is None or directory.resolve() == DIRECTORY.resolve() else _documents(directory, problems)
    )
    every = shipped | own
    wanted = {GENERIC: every[GENERIC]} | own if GENERIC in every else own
    out: dict[str, Profile] = {}
    for facility_id, (folder, document) in wanted.items():
        merged = _inherit(facility_id, document, every, problems)
        if merged is not None and (profile := _profile(folder, merged, known, problems)) is not None:
            out[facility_id] = profile
    _check_together(wanted, out, problems)
    if problems:
        raise ProfileError(problems)
    return MappingProxyType(out)


def _documents(directory: Path, problems: list[Problem]) -> dict[str, tuple[Path, Document]]:
    out: dict[str, tuple[Path, Document]] = {}
    if not directory.is_dir():
        problems.append(Problem(str(directory), 0, "", "is not a directory"))
        return out
    for path in sorted(directory.glob("*.yaml")):
        document = profile_yaml.read(path, problems)
        if document is None:
            continue
        facility_id = document.data.get("id")
        if not isinstance(facility_id, str):
            problems.append(Problem(path.name, document.place(("id",))[1], "id", "a facility id is needed"))
            continue
        if facility_id in out:
            problems.append(
                Problem(
                    path.name,
                    document.place(("id",))[1],
                    "id",
                    f"{facility_id!r} is also in {out[facility_id][1].file}",
                )
            )
            continue
        out[facility_id] = (directory, document)
    return out


def _inherit(
    facility_id: str, document: Document, every: Mapping[str, tuple[Path, Document]], problems: list[Problem]
) -> Document | None:
    """The document laid over its bases. Code files named in a base are read relative to the base's folder."""
    chain, seen = [document], {facility_id}
    while base := chain[-1].data.get("base"):
        here = chain[-1]
        if base in seen:
            problems.append(Problem(here.file, here.place(("base",))[1], "base", "inherits from itself"))
            return None
        if base not in every:
            problems.append(Problem(here.file, here.place(("base",))[1], "base", f"{base!r} is not a profile"))
            return None
        seen.add(base)
        chain.append(every[base][1])
    merged = chain.pop()
    while chain:
        merged = chain.pop().over(merged)
    return merged


def _profile(folder: Path, document: Document, catalogue: Catalogue, problems: list[Problem]) -> Profile | None:
    before = len(problems)
    try:
        facility = Facility.model_validate(document.data)
    except ValidationError as fault:
        for error in fault.errors():
            path = tuple(error["loc"])
            file, line = document.place(path)
            problems.append(Problem(file, line, ".".join(map(str, path)), error["msg"]))
        return None

    def wrong(path: tuple[str | int, ...], text: str) -> None:
        file, line = document.place(path)
        problems.append(Problem(file, line, ".".join(map(str, path)), text))

    zone = _zone(facility, wrong)
    _check_values(facility, wrong)
    patterns: list[re.Pattern[str]] = []
    for index, expression in enumerate(facility.quality_control_patients):
        try:
            patterns.append(re.compile(expression))
        except re.error as fault:
            wrong(("quality_control_patients", index), f"is not a regular expression: {fault}")

    facility = destinations.checked(facility, folder, wrong)
    facility = image_sources.checked(facility, folder, wrong)
    polls.check(facility, wrong)
    # Where results are sent to decides no mapping.
    digest = hashlib.sha256(facility.model_dump_json(exclude={"destinations", "image_sources", "polls"}).encode())
    digest.update(catalogue.digest.encode())
    digest.update(units.TABLE.read_bytes().replace(b"\r\n", b"\n"))

    def path_of(key: str, name: str) -> Path | None:
        if not name:
            return None
        for place in (folder, DIRECTORY):
            if (place / name).is_file():
                digest.update((place / name).read_bytes().replace(b"\r\n", b"\n"))
                return place / name
        wrong(("codes", key), f"{name!r} is not a file (looked for beside the profile)")
        return None

    tests_file = path_of("tests", facility.codes.tests)
    orders_file = path_of("orders", facility.codes.orders)
    units_file = path_of("units", facility.codes.units)
    tests = codes.read_tests(tests_file, catalogue, problems) if tests_file else codes.EMPTY_TESTS
    orders = codes.read_orders(orders_file, catalogue, problems) if orders_file else codes.EMPTY_ORDERS
    table = units.shipped()
    if units_file:
        table = UnitTable(units.read_rows(units_file, problems), table)
    if len(problems) > before or zone is None:
        return None
    return Profile(
        facility, zone, tests, orders, table, catalogue, digest.hexdigest(), tuple(patterns), codes.prices(orders)
    )  # fmt: skip


def _zone(facility: Facility, wrong: Wrong) -> ZoneInfo | None:
    try:
        return ZoneInfo(facility.time_zone)
    except (ZoneInfoNotFoundError, ValueError):
        wrong(("time_zone",), f"{facility.time_zone!r} is not a time zone")
        return None


def _check_values(facility: Facility, wrong: Wrong) -> None:
    if facility.charset:
        try:
            codecs.lookup(facility.charset)
        except LookupError:
            wrong(("charset",), f"{facility.charset!r} is not a character set")
    for target, source in facility.paths.items():
        for path in (target, source):
            try:
                paths.parse(path)
            except ValueError as fault:
                wrong(("paths", target), str(fault))
    for index, table in enumerate(facility.tables):
        for part, places in (("columns", table.columns), ("constants", table.constants)):
            for place in places:
                try:
                    paths.parse(place)
                except ValueError as fault:
                    wrong(("tables", index, part, place), str(fault))
    for sent, means in facility.triggers.items():
        code, _, event = means.partition("^")
        if not event or not triggers.known_trigger(code, event):
            wrong(("triggers", sent), f"{means!r} is not a message type like ORU^R01")
    for index, form in enumerate(facility.date_formats):
        try:
            times.pattern(form)
        except ValueError as fault:
            wrong(("date_formats", index), str(fault))
    for text, code in facility.flags.items():
        if code_table.table("Interpretation").get(code) is None:
            wrong(("flags", text), f"{code!r} is not an ObservationInterpretation code")
    names: set[str] = set()
    for index, channel in enumerate(facility.channels):
        if channel.name in names:
            wrong(("channels", index, "name"), f"{channel.name!r} stands twice")
        names.add(channel.name)
        for number, address in enumerate(channel.addresses):
            try:
                ip_network(address)
            except ValueError as fault:
                wrong(("channels", index, "addresses", number), str(fault))
        if not 0 <= channel.port <= 65535:
            wrong(("channels", index, "port"), "is not a port")


def _check_together(
    wanted: Mapping[str, tuple[Path, Document]], profiles: Mapping[str, Profile], problems: list[Problem]
) -> None:
    """Faults that only show between profiles: one sender in two facilities, one certificate or port for two, an unknown laboratory."""
    owner: dict[tuple[str, ...], str] = {}
    # An empty application agrees with any: such a name must not serve another facility under some application.
    open_names = {s.facility for p in profiles.values() for s in p.facility.senders if not s.application}
    for facility_id, profile in profiles.items():
        document = wanted[facility_id][1]

        def claim(
            key: tuple[str, ...], path: tuple[str | int, ...], who: str = facility_id, doc: Document = document
        ) -> None:
            other = owner.setdefault(key, who)
            if other != who:
                problems.append(
                    Problem(doc.file, doc.place(path)[1], ".".join(map(str, path)), f"belongs to {other!r} already")
                )

        for index, sender in enumerate(profile.facility.senders):
            claim(("sender", sender.application, sender.facility), ("senders", index))
            if sender.facility in open_names:
                claim(("name", sender.facility), ("senders", index))
        for index, channel in enumerate(profile.facility.channels):
            if channel.certificate:
                claim(("certificate", channel.certificate), ("channels", index, "certificate"))
            if channel.port:
                claim(("port", str(channel.port)), ("channels", index, "port"))
        for index, source in enumerate(profile.facility.image_sources):
            for caller in image_sources.callers(source):
                claim(caller, ("image_sources", index, "ae"))
        for local, laboratory in profile.facility.performers.items():
            if laboratory not in profiles:
                place = document.place(("performers", local))
                problems.append(
                    Problem(document.file, place[1], f"performers.{local}", f"{laboratory!r} is not a facility")
                )
