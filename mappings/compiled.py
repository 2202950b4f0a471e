"""Segment maps compiled to closures: one look-up per filled field, no interpretation while a message is mapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mappings.context import Context, Event
from mappings.grammar import Rule, SegmentMap, segment_map
from mappings.source import NULL, Element, Record

Convert = Callable[[Element, Context], Any]
"""One repetition -> value, or None when it says nothing."""
Step = Callable[[Record, Context, dict[str, Any]], bool]
"""A compiled rule: reads a record, fills the resource, tells whether it read the field."""
Condition = Callable[[Record, Context], bool]
_DELETED = ((NULL,),)


@dataclass(frozen=True, slots=True)
class Datatype:
    """One datatype mapping of the guide.

    name     ``CX[Identifier]``
    make     given the rule, the function for one repetition
    reads    components it reads (1-based); the others are listed as unread when they are filled
    """

    name: str
    make: Callable[[Rule], Convert]
    reads: frozenset[int]

    @property
    def value_key(self) -> str:
        """``value[x]`` of an extension that carries this type."""
        kind = self.name[self.name.index("[") + 1 : -1].rstrip("!")
        return "value" + kind[0].upper() + kind[1:]


@dataclass(frozen=True, slots=True)
class Kept:
    """What the fields of a record that depend on profile and text alone came to: elements, events to repeat, fields read or not."""

    elements: dict[str, Any]
    lists: tuple[str, ...]
    events: tuple[Event, ...]
    read: frozenset[int]
    complete: bool
    noted: Any


class CompiledMap:
    """A segment map ready to run."""

    def __init__(
        self, name: str, source: SegmentMap, datatypes: Mapping[str, Datatype], calls: Mapping[str, Step]
    ) -> None:
        self.name = name
        self.segment = source.segment
        self.structural = frozenset(source.structural)
        self.live = frozenset(source.live)
        self._blanked = tuple(sorted({0, *source.structural, *source.varies}))
        by_field: dict[int, list[Step]] = {}
        for rule in source.rules:
            by_field.setdefault(rule.field, []).append(_compile(rule, datatypes, calls))
        self.steps = {field: tuple(steps) for field, steps in by_field.items()}
        self._live_steps = tuple((field, self.steps[field]) for field in sorted(self.live) if field in self.steps)

    def apply(self, record: Record, x: Context, out: dict[str, Any]) -> None:
        """Read one record into ``out``; marks in the context which fields were read."""
        read = x.fields_read(record)
        read |= self.structural
        x.record = record
        self._run(record, x, out, self.steps, read)
        x.field = 0

    def _run(
        self, record: Record, x: Context, out: dict[str, Any], steps: Mapping[int, tuple[Step, ...]], read: set[int]
    ) -> None:
        for field, elements in enumerate(record.fields()):
            if not elements or not field:
                continue
            todo = steps.get(field)
            if todo is None:
                continue
            x.field = field
            for step in todo:
                if step(record, x, out):
                    read.add(field)
            if elements == _DELETED:
                # HL7 null says "delete": the element is left out, and that is how it is read.
                read.add(field)

    def apply_kept(self, record: Record, x: Context, out: dict[str, Any], period: tuple[int, int]) -> None:
        """As ``apply``, but fields that are not ``live`` are read once per profile and text, and their outcome is kept.

        A laboratory sends the same code, unit, range and flag all day. ``period`` is part of the key (code maps are valid in time:
        CodeTable.period). What a step notes for the live ones (``x.order.noted``) is kept with it.
        """
        x.record = record
        fields = record.fields()
        key: list[Any] = list(fields)
        size = len(key)
        for field in self._blanked:
            if field < size:
                key[field] = None
        marked = (self.name, period, tuple(key))
        kept: Kept | None = x.memo.find(marked)
        if kept is None:
            kept = self._keep(record, x)
            x.memo.keep(marked, kept)
        out.update(kept.elements)
        for name in kept.lists:
            out[name] = out[name].copy()
        for method, field, arguments in kept.events:
            x.field = field
            getattr(x, method)(*arguments)
        x.order.noted = kept.noted
        complete = kept.complete
        missed: list[int] | None = None
        for field, steps in self._live_steps:
            if field < size and fields[field]:
                x.field = field
                done = False
                for step in steps:
                    if step(record, x, out):
                        done = True
                if not done and fields[field] != _DELETED:
                    missed = [*(missed or ()), field]
        x.field = 0
        if complete and missed is None:
            x.reading[id(record)] = None
        else:
            live = {field for field in self.live if field in self.steps} - set(missed or ())
            x.reading[id(record)] = {*kept.read, *live, *self.structural}

    def _keep(self, record: Record, x: Context) -> Kept:
        """Run the steps of the fields that are not live on an empty resource, listening to what they tell the context."""
        out: dict[str, Any] = {}
        read: set[int] = set()
        x.order.noted = None
        x.listen()
        steps = {field: todo for field, todo in self.steps.items() if field not in self.live}
        self._run(record, x, out, steps, read)
        events = x.heard()
        plain = read | self.structural | {f for f in self.live if f in self.steps}
        complete = all(field in plain for field in record.filled())
        lists = tuple(name for name in ("extension", "note", "performer") if name in out)
        return Kept(out, lists, events, frozenset(read), complete, x.order.noted)


def compile_map(name: str, datatypes: Mapping[str, Datatype], calls: Mapping[str, Step]) -> CompiledMap:
    """Load and compile one segment map. Raises ValueError when it names an unknown datatype, function or table."""
    try:
        return CompiledMap(name, segment_map(name), datatypes, calls)
    except (KeyError, FileNotFoundError) as missing:
        raise ValueError(f"{name}.yaml: unknown datatype, function or table {missing}") from missing


def _compile(rule: Rule, datatypes: Mapping[str, Datatype], calls: Mapping[str, Step]) -> Step:
    if rule.call:
        step = calls[rule.call]
    elif rule.as_:
        step = _element_step(rule, datatypes[rule.as_])
    else:
        constant, put = rule.value, _putter(rule.to, many=rule.list_)

        def step(record: Record, x: Context, out: dict[str, Any]) -> bool:
            put(out, constant)
            return True

    if not rule.when:
        return step
    tests = tuple(_condition(text, rule.row[:3]) for text in rule.when)
    inner = step

    def guarded(record: Record, x: Context, out: dict[str, Any]) -> bool:
        return all(test(record, x) for test in tests) and inner(record, x, out)

    return guarded


def _element_step(rule: Rule, datatype: Datatype) -> Step:
    convert, field, default, shape = datatype.make(rule), rule.field, rule.default, rule.shape
    limit = max(datatype.reads)
    gaps = tuple(n for n in range(1, limit) if n not in datatype.reads)
    each = rule.each
    put = _putter(rule.to, many=each or rule.list_) if not rule.extension else _extension(rule, datatype.value_key)

    def step(record: Record, x: Context, out: dict[str, Any]) -> bool:
        read = False
        for number, element in enumerate(record.get(field)):
            if number and not each:
                x.leftover(element, tuple(range(1, len(element) + 1)), number)
                continue
            value = convert(element, x)
            if value is None:
                continue
            read = True
            size = len(element)
            if size > limit or (gaps and size > 1):
                x.leftover(element, gaps + tuple(range(limit + 1, size + 1)), number)
            if default:
                value = {**default, **value}
            put(out, _fill(shape, value) if shape is not None else value)
        return read

    return step


def _fill(shape: Any, value: Any) -> Any:
    if shape == "$":
        return value
    if isinstance(shape, dict):
        return {key: _fill(inner, value) for key, inner in shape.items()}
    if isinstance(shape, list):
        return [_fill(inner, value) for inner in shape]
    return shape


def _putter(path: str, *, many: bool) -> Callable[[dict[str, Any], Any], None]:
    """A function that sets (or appends) a value at a dotted path; a list on the way is entered at its last item."""
    *parents, last = path.split(".")

    def put(out: dict[str, Any], value: Any) -> None:
        for key in parents:
            inner = out.setdefault(key, {})
            out = inner[-1] if isinstance(inner, list) else inner
        if many:
            held = out.setdefault(last, [])
            if value not in held:
                held.append(value)
        else:
            out[last] = value

    return put


def _extension(rule: Rule, value_key: str) -> Callable[[dict[str, Any], Any], None]:
    url = rule.extension
    put = _putter(f"{rule.to}.extension" if rule.to else "extension", many=True)

    def put_extension(out: dict[str, Any], value: Any) -> None:
        put(out, {"url": url, value_key: value})

    return put_extension


def _condition(text: str, segment: str) -> Condition:
    """``PV1-2 = P`` -> a test; the record of the map itself, else a peer of its group."""
    place, operator, *values = text.split()
    name, _, number = place.partition("-")
    field = int(number)
    wanted = frozenset(values)

    def value(record: Record, x: Context) -> str:
        found = record if name == segment else x.peers.get(name)
        return found.first(field) if found is not None else ""

    def filled(record: Record, x: Context) -> bool:
        found = record if name == segment else x.peers.get(name)
        return found is not None and bool(found.get(field))

    if operator == "present":
        return filled
    if operator == "absent":
        return lambda record, x: not filled(record, x)
    if operator in ("=", "in"):
        return lambda record, x: value(record, x) in wanted
    if operator == "!=":
        return lambda record, x: value(record, x) not in wanted
    raise ValueError(f"unknown condition {text!r}")
