"""WS/T 500 entries: laboratory report C0007, examination report C0006, and the orders of other shared documents (C0052).

Item, result code and value are sibling entries; what belongs together is told by their order (domain of WS/T 500.7). Where the order
does not tell it, nothing is guessed: the document is held. The template has no reference range, and none is made up.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from adapters.cda.header import Header
from adapters.cda.repair import ITEM
from adapters.cda.results import interpreters, ordered, same_unit, write_values
from adapters.cda.tree import Reading, coded, instant, where
from adapters.segments import Draft
from adapters.xmltree import Element, words
from conformance.issue import Issue
from mappings.outbound.line import trimmed
from mappings.source import Element as Field

FLAG, VALUE, UNIT = "DE04.30.017", "DE04.30.015", "DE04.30.016"
_SPECIMEN, _CONDITION, _FIXATIVE = "DE04.50.134", "DE04.50.135", "DE08.50.027"
_METHOD, _KIND = "DE02.10.027", "DE04.30.018"
_REPORT, _FINDING, _CONCLUSION = "DE04.50.130", "DE04.50.131", "DE04.50.132"
_DEPARTMENT, _ORGANIZATION, _REMARK = "DE08.10.026", "DE08.10.013", "DE06.00.179"
_CLINICAL = ("DE04.01.119", "DE04.01.117", "DE06.00.296")
_ORDER, _ORDER_NUMBER = "DE06.00.288", "DE01.00.008"
_RESULT_CODES = {"1": "N", "2": "A", "3": "IND"}
"""Result codes of 2.16.156.10011.2.3.2.38: 1 normal, 2 abnormal, 3 uncertain."""
_SERVICES = (
    ("CT", "CT"), ("磁共振", "NMR"), ("MR", "NMR"), ("超声", "RUS"), ("彩超", "RUS"), ("B超", "RUS"), ("心电", "EC"), ("脑电", "EN"),
    ("核医学", "NMS"), ("X线", "RX"), ("DR", "RX"), ("放射", "RAD"), ("影像", "RAD"), ("病理", "SP"), ("内镜", "OTH"), ("胃镜", "OTH"),
)  # fmt: skip
"""Words in the kind of examination -> diagnostic service section (table 0074)."""
LABORATORY, EXAMINATION = "C0007", "C0006"


@dataclass(slots=True)
class _Item:
    """One item with what follows it."""

    element: Element
    method: str = ""
    flags: list[Element] = field(default_factory=list)
    values: list[Element] = field(default_factory=list)
    unit: str = ""
    specimens: list[Element] = field(default_factory=list)
    conditions: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Said:
    """A text of a report: data element, its name, where it stands, how many items stand before it."""

    kind: str
    name: str
    element: Element
    after: int


@dataclass(slots=True)
class _Found:
    """The data elements of a report. units: of the values, where the unit stands beside its value and not below it."""

    items: list[_Item] = field(default_factory=list)
    texts: list[_Said] = field(default_factory=list)
    others: list[Element] = field(default_factory=list)
    units: dict[Element, str] = field(default_factory=dict)
    issues: list[Issue] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    clinical: list[str] = field(default_factory=list)
    kind: str = ""
    organization: str = ""
    department: str = ""


def element_of(observation: Element) -> str:
    """The data element of an observation without its version (``DE04.30.019``), empty when it has none."""
    code = observation.find("code")
    written = code.get("code", "").strip().upper() if code is not None else ""
    return written[:11] if written.startswith("DE") else ""


def read_report(root: Element, reading: Reading, draft: Draft, header: Header, issues: list[Issue]) -> None:
    """C0007 and C0006 as OBR, SPM, OBX, NTE. Issues of severity error hold the document."""
    found = _collect(root, reading, issues)
    found.issues = issues
    first = found.items[0] if found.items else None
    if header.code == LABORATORY or not found.items:
        items = found.items if header.code == LABORATORY else []
        _order(first, found, reading, draft, header, items, found.texts)
        return
    owners = _owners(found)
    for number, item in enumerate(found.items, 1):
        texts = [t for t, owner in zip(found.texts, owners, strict=True) if owner in (0, number)]
        _order(item, found, reading, draft, header, [item] if item.values or item.flags else [], texts)


def _owners(found: _Found) -> list[int]:
    """Of each text the number of the item it is about; 0: of the whole report, which then stands below every item.

    A text that shares an entry or section with one item alone is about that item. In a flat list the texts behind an item are about it
    when texts of the same kinds stand behind each. Anything else does not tell, and all texts are of the whole report.
    """
    lines = [set(i.element.iterancestors()) for i in found.items]
    own = []
    for said in found.texts:
        beside = ([n for n, line in enumerate(lines, 1) if above in line] for above in said.element.iterancestors())
        nearest = next((numbers for numbers in beside if numbers), [])
        own.append(nearest[0] if len(nearest) == 1 else 0)
    if any(own):
        return own
    behind = [{t.kind for t in found.texts if t.after == n} for n in range(len(found.items) + 1)]
    told = not behind[0] and behind[1] and all(kinds == behind[1] for kinds in behind[1:])
    return [t.after for t in found.texts] if told else own


def _collect(root: Element, reading: Reading, issues: list[Issue]) -> _Found:
    found = _Found()
    method = ""
    loose: list[tuple[str, Element]] = []
    last: Element | None = None
    units: list[Element] = []
    for observation in root.iter("observation"):
        kind = element_of(observation)
        value = observation.find("value")
        item = found.items[-1] if found.items else None
        if kind == ITEM:
            found.items.append(_Item(observation, method))
            reading.use(observation.find("code"))
        elif kind in (FLAG, VALUE):
            reading.use(observation.find("code"))
            last = observation if kind == VALUE else last
            held = (item.flags if kind == FLAG else item.values) if item is not None else None
            if held is None or held:
                loose.append((kind, observation))
            else:
                held.append(observation)
        elif kind == UNIT and item is not None and _ancestor(observation, VALUE) is None:
            units.append(observation)
            reading.use(observation.find("code"))
            values = [*item.values, *(o for k, o in loose if k == VALUE)]
            if last in values and last not in found.units:
                found.units[last] = reading.text(value)
            elif not values and not item.unit:
                item.unit = reading.text(value)
            else:
                loose.append((kind, observation))
        elif kind == _SPECIMEN and item is not None:
            item.specimens.append(observation)
            reading.use(observation.find("code"))
        elif kind == _CONDITION and item is not None:
            item.conditions.append(reading.text(value))
            reading.use(observation)
        elif kind == _METHOD:
            method = reading.text(value)
            reading.use(observation)
        else:
            _other(kind, observation, found, reading, issues)
    if loose:
        _pair(found, loose, units, reading, issues)
    return found


def _ancestor(observation: Element, kind: str) -> Element | None:
    return next((a for a in observation.iterancestors("observation") if element_of(a) == kind), None)


def _pair(
    found: _Found, loose: list[tuple[str, Element]], units: list[Element], reading: Reading, issues: list[Issue]
) -> None:
    """All items first, all values after: the n-th value is of the n-th item, if there are as many; else nobody can tell."""
    items = found.items
    for kind in (FLAG, VALUE, UNIT):
        more = [o for k, o in loose if k == kind]
        held = [o for i in items for o in (i.flags if kind == FLAG else i.values)] if kind != UNIT else []
        if not more:
            continue
        every = held + more if kind != UNIT else units
        if len(every) != len(items) or any(_before(o, items[-1].element) for o in every):
            words_ = "Items and values cannot be told apart by their order (WS/T 500 links them by position); mend the sender."
            issues.append(Issue("positional-link", "error", where(more[0]), words_))
            return
        if kind == UNIT:
            found.units = {v: reading.text(u, "value") for i, u in zip(items, units, strict=True) for v in i.values}
            continue
        for item, one in zip(items, every, strict=True):
            (item.flags if kind == FLAG else item.values)[:] = [one]


def _before(one: Element, other: Element) -> bool:
    tree = list(other.getroottree().getroot().iter("observation"))
    return tree.index(one) < tree.index(other)


def _other(kind: str, observation: Element, found: _Found, reading: Reading, issues: list[Issue]) -> None:
    value = observation.find("value")
    said = words(value) or (value.get("displayName", "") if value is not None else "")
    if kind in (_REPORT, _FINDING, _CONCLUSION):
        code = observation.find("code")
        name = code.get("displayName", "") if code is not None else ""
        if kind == _FINDING and "主观" in name:
            # Some senders write the code of the findings at the conclusion too; its name leaves no doubt.
            told = "The conclusion (主观提示) carries the code of the findings; it was read as DE04.50.132."
            issues.append(Issue("repair-conclusion-code", "warning", where(observation), told))
            kind = _CONCLUSION
        if said:
            found.texts.append(_Said(kind, name, observation, len(found.items)))
    elif kind == _REMARK:
        found.remarks += [said] if said else []
    elif kind in _CLINICAL:
        found.clinical += [said] if said else []
    elif kind == _KIND:
        found.kind = found.kind or said
    elif kind == _ORGANIZATION:
        found.organization = found.organization or said
    elif kind == _DEPARTMENT:
        found.department = found.department or said
    elif not kind and value is not None and observation.find("code") is not None:
        found.others.append(observation)
    else:
        return
    reading.use(observation)


def _item_code(item: _Item, reading: Reading) -> Field:
    """Code or name of an item: CD has both; a text is a name when it has Chinese characters, else a code."""
    value = item.element.find("value")
    if value is None:
        return ()
    if value.get("code"):
        return coded(value, reading)
    said = reading.text(value) or value.get("value", "").strip()
    name = value.get("displayName", "").strip()
    if any("\u3400" <= c <= "\u9fff" for c in said):
        return ("", said)
    return trimmed(said, name)


def _order(
    item: _Item | None,
    found: _Found,
    reading: Reading,
    draft: Draft,
    header: Header,
    items: list[_Item],
    texts: list[_Said],
) -> None:
    laboratory = header.code == LABORATORY
    place = where(item.element) if item is not None and not laboratory else "ClinicalDocument"
    ordered(draft, place, header)
    obr = draft.add("OBR", place)
    obr.put(2, header.order)
    obr.put(3, header.report or header.document)
    exam = _item_code(item, reading) if item is not None and not laboratory else ()
    obr.put(4, exam or ("", found.kind or header.title))
    taken = next(
        (t for i in found.items for s in i.specimens if (t := instant(s.find("effectiveTime"), reading)[0])), ""
    )
    tested = instant(item.element.find("effectiveTime"), reading)[0] if item is not None else ""
    obr.put(7, taken if laboratory and taken else tested)
    obr.put(13, *((c,) for c in found.clinical))
    obr.put(22, header.reported)
    section = "LAB" if laboratory else next((s for word, s in _SERVICES if word in found.kind.upper()), "OTH")
    obr.put(24, section)
    obr.put(25, header.status)
    interpreters(obr, header)
    for remark in found.remarks:
        draft.add("NTE", "ClinicalDocument").put(3, (remark,))
    _specimens(found.items if laboratory else [item] if item is not None else [], reading, draft, header)
    for one in items:
        _result(one, tested if not taken else "", found, reading, draft, header)
    for other in found.others if laboratory else ():
        obx = draft.add("OBX", where(other))
        obx.put(3, coded(other.find("code"), reading))
        write_values(obx, other.findall("value"), reading)
        obx.put(11, header.status)
        obx.put(23, (found.organization,))
    for said in texts:
        obx = draft.add("OBX", where(said.element))
        obx.put(2, "TX")
        obx.put(3, (said.kind, said.name, "2.16.156.10011.2.2.1"))
        obx.put(5, (words(said.element.find("value")),))
        obx.put(11, header.status)
        obx.put(23, (found.organization,))


def _specimens(items: list[_Item], reading: Reading, draft: Draft, header: Header) -> None:
    """The specimen of the report: WS/T 500 repeats it below each item; what is the same is one."""
    seen: set[tuple[str, ...]] = set()
    for item in items:
        for observation in item.specimens:
            taken, received = instant(observation.find("effectiveTime"), reading)
            value = observation.find("value")
            kind = coded(value, reading) if value is not None and value.get("code") else (reading.text(value),)
            key = (taken, received, *(str(c) for c in kind))
            if not any(key) or key in seen:
                continue
            seen.add(key)
            spm = draft.add("SPM", where(observation))
            if header.specimen and len(seen) == 1:
                spm.put(2, ("", header.specimen))
            spm.put(4, kind if kind[0] or len(kind) > 1 else ())
            spm.put(17, taken)
            spm.put(18, received)
            spm.put(24, *((c,) for c in item.conditions if c))


def _result(item: _Item, tested: str, found: _Found, reading: Reading, draft: Draft, header: Header) -> None:
    obx = draft.add("OBX", where(item.element))
    obx.put(3, _item_code(item, reading))
    unit = ""
    for observation in item.values:
        value = observation.find("value")
        write_values(obx, [value] if value is not None else [], reading)
        reading.use(value)
        inner = next((o for o in observation.iter("observation") if element_of(o) == UNIT), None)
        if inner is not None:
            unit = reading.text(inner.find("value"))
            reading.use(inner)
        unit = unit or found.units.get(observation, "") or item.unit
    if unit:
        own = str(obx.fields[6][0][0]) if 6 in obx.fields else ""
        if own and not same_unit(own, unit):
            words_ = "The value has one unit and the element beside it (DE04.30.016) another; which of them is true cannot be told."
            found.issues.append(Issue("two-units", "error", where(item.element), words_))
        obx.put(6, (unit,))
    for observation in item.flags:
        value = observation.find("value")
        flag = coded(value, reading)
        if flag:
            obx.put(8, _RESULT_CODES.get(str(flag[0]), str(flag[0])) or str(flag[1]))
    obx.put(11, header.status)
    own = instant(item.element.find("effectiveTime"), reading)[0]
    # With a time of collection the time of the test is when it was analysed; without one it is all that is known.
    obx.put(14 if tested and own else 19, own)
    obx.put(17, (item.method,))
    obx.put(23, (found.organization,))


def read_orders(root: Element, reading: Reading, draft: Draft, header: Header) -> None:
    """Order facts of other shared documents: entries of C0052 with an order number (电子申请单编号), else that of the header."""
    made = 0
    for observation in root.iter("observation"):
        if element_of(observation) != _ORDER:
            continue
        numbered = next((o for o in observation.iter("observation") if element_of(o) == _ORDER_NUMBER), None)
        placer = reading.text(numbered.find("value")) if numbered is not None else ""
        name = reading.text(observation, "value")
        if not placer or not name:
            continue
        start = instant(observation.find("effectiveTime"), reading)[0]
        author = observation.find("author")
        orc = draft.add("ORC", where(observation))
        orc.put(2, placer)
        orc.put(9, instant(author.find("time"), reading)[0] if author is not None else "")
        obr = draft.add("OBR", where(observation))
        obr.put(2, placer)
        obr.put(4, ("", name))
        obr.put(6, start)
        reading.use(observation.find("code"), numbered)
        made += 1
    if header.order and not made:
        orc = draft.add("ORC", "recordTarget")
        orc.put(2, header.order)
