"""The worklist as a spreadsheet: exported as CSV, filled in by a person, imported again.

Columns ``decision`` (accept, reject or empty), ``target``, ``valid_from``, ``valid_to`` and ``note`` are read on import; the
others only say which code is meant and help to decide. UTF-8 with a mark, so that spreadsheet programs see it.

What these write is read: UTF-8, GB18030, UTF-16 with a mark; comma, semicolon or tab; dates as ``2026/1/5``. Codes they took for
numbers (``001`` as ``1``) are faults.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Mapping, Sequence

from fhir_server.code_decisions import Decision, Recorded, check
from fhir_server.worklist import Entry
from mappings.catalogue import Catalogue
from mappings.profile import Profile

PROPOSED = 3
"""Proposals in columns of their own."""
_KEY = ("facility", "kind", "code", "name")
_SAID = ("decision", "target", "valid_from", "valid_to", "note")
_HELP = ("units", "ranges", "specimens", "examples", "count", "first_seen", "last_seen")
_FORMULA = ("=", "+", "-", "@", "\t")
_NUMBER = re.compile(r"\d{1,30}(\.\d{1,30})?(E\+\d\d?)?", re.ASCII)
_DAY = re.compile(r"(\d{4})/(\d\d?)/(\d\d?)", re.ASCII)
_ROUNDED = 1e-5
"""What a spreadsheet leaves out of a long number (``1.23457E+11``)."""


class CannotImport(Exception):
    """The file cannot be used; ``faults`` has one line for each fault, with the line of the file."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


def write(entries: Sequence[Entry]) -> bytes:
    """The worklist as CSV bytes. Cells that a spreadsheet would take for a formula begin with an apostrophe."""
    out = io.StringIO()
    proposed = [f"proposal_{n}{part}" for n in range(1, PROPOSED + 1) for part in ("", "_name", "_score")]
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow([*_KEY, *_SAID, *proposed, *_HELP])
    for e in entries:
        shown: list[str] = []
        for p in e.proposals[:PROPOSED]:
            shown += [p.item, p.name, f"{p.score:.2f}"]
        shown += [""] * (3 * PROPOSED - len(shown))
        helps = [" | ".join(part) for part in (e.units, e.ranges, e.specimens, e.examples)]
        dates = [e.first_seen.isoformat(timespec="seconds"), e.last_seen.isoformat(timespec="seconds")]
        row = [e.facility, e.kind, e.code, e.name, *[""] * len(_SAID), *shown, *helps, str(e.count), *dates]
        writer.writerow([_safe(cell) for cell in row])
    return b"\xef\xbb\xbf" + out.getvalue().encode()


def write_history(decisions: Sequence[Recorded]) -> bytes:
    """Decisions as CSV bytes: what, who, when, valid and recorded time."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow([*_KEY, *_SAID, "recorded", "recorded_by", "until", "replayed"])
    for r in decisions:
        d = r.decision
        times = [t.isoformat(timespec="seconds") if t else "" for t in (r.recorded, r.until, r.replayed)]
        said = ["accept" if d.target else "reject", d.target, d.valid_from, d.valid_to, d.note]
        row = [d.facility, d.kind, d.code, d.name, *said, times[0], r.recorded_by, times[1], times[2]]
        writer.writerow([_safe(cell) for cell in row])
    return b"\xef\xbb\xbf" + out.getvalue().encode()


def read(
    raw: bytes,
    profiles: Mapping[str, Profile],
    catalogue: Catalogue,
    sent: Mapping[tuple[str, str, str], Collection[str]],
) -> list[Decision]:
    """The decisions of a filled-in file. ``sent``: the codes messages brought (worklist.sent).

    Raises CannotImport with every fault; then nothing of the file may be recorded.
    """
    text = _decoded(raw)
    head = text.partition("\n")[0]
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
    out: list[Decision] = []
    faults: list[str] = []
    said: dict[tuple[str, ...], int] = {}
    try:
        missing = [c for c in (*_KEY, "decision", "target") if c not in (rows.fieldnames or ())]
        if missing:
            raise CannotImport([f"line 1: column {', '.join(missing)} is missing"])
        for row in rows:
            cell = {k: _bare((v or "").strip()) for k, v in row.items() if isinstance(k, str)}
            decision, wrong = _decided(cell)
            if decision is not None:
                key = (decision.facility, decision.kind, decision.code, "" if decision.code else decision.name)
                wrong = check(decision, profiles, catalogue) or _changed(decision, sent)
                if not wrong and said.setdefault((*key, decision.valid_from), rows.line_num) != rows.line_num:
                    wrong = "the same code stands in an earlier line"
                out.append(decision)
            if wrong:
                faults.append(f"line {rows.line_num}: {wrong}")
    except csv.Error as fault:
        raise CannotImport([*faults, f"line {rows.line_num + 1}: this is no CSV ({fault})"]) from None
    if faults:
        raise CannotImport(faults)
    return out


def _decided(cell: Mapping[str, str]) -> tuple[Decision | None, str]:
    """The decision of a row, or why there is none; neither for a row without one."""
    word = cell.get("decision", "").lower()
    if not word:
        return None, "decision: a target without accept or reject" if cell.get("target") else ""
    if word not in ("accept", "reject"):
        return None, f"decision: {word!r} is not accept or reject"
    if (word == "accept") != bool(cell.get("target")):
        return None, f"target: {'is missing' if word == 'accept' else 'must be empty to reject'}"
    if "\x00" in "".join(cell.values()):
        return None, "the row has a NUL character"
    days = [_DAY.sub(lambda d: f"{d[1]}-{int(d[2]):02}-{int(d[3]):02}", cell.get(k, "")) for k in _SAID[2:4]]
    facility, kind, code, name = (cell[k] for k in _KEY)
    return Decision(facility, kind, code, name, cell["target"], days[0], days[1], cell.get("note", "")), ""


def _changed(d: Decision, sent: Mapping[tuple[str, str, str], Collection[str]]) -> str:
    """Says so when the code is another one that was sent, taken for a number: the decision would be about the wrong test."""
    number = _number(d.code)
    names = sent.get((d.facility, d.kind, d.code), ())
    if number is None or (names and (not d.name or d.name in names)):
        return ""
    for (facility, kind, code), known in sent.items():
        other = _number(code) if (facility, kind) == (d.facility, d.kind) and code != d.code else None
        near = other is not None and abs(other - number) <= (_ROUNDED * number if "E" in d.code else 0)
        if near and (not names or d.name in known):
            return f"code: {d.code!r} was not sent, {code!r} was; a spreadsheet took it for a number. Import the column as text."
    return ""


def _number(code: str) -> float | None:
    return float(code) if _NUMBER.fullmatch(code) else None


def _decoded(raw: bytes) -> str:
    utf16 = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    for codec in ("utf-16",) if utf16 else ("utf-8-sig", "gb18030"):
        try:
            return raw.decode(codec)
        except UnicodeDecodeError:
            continue
    raise CannotImport(["the file is neither UTF-8, UTF-16 nor GB18030"])


def _safe(cell: str) -> str:
    return "'" + cell if cell.startswith((*_FORMULA, "'")) else cell


def _bare(cell: str) -> str:
    return cell[1:] if cell.startswith("'") else cell
