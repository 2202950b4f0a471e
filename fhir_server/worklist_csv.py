"""The worklist as a spreadsheet: exported as CSV, filled in by a person, imported again.

Columns ``decision`` (accept, reject or empty), ``target``, ``valid_from``, ``valid_to`` and ``note`` are read on import; the
others only say which code is meant and help to decide. UTF-8 with a mark, so that spreadsheet programs see it; GB18030 is read as well.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

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


def read(raw: bytes, profiles: Mapping[str, Profile], catalogue: Catalogue) -> list[Decision]:
    """The decisions of a filled-in file. Raises CannotImport with every fault; then nothing of the file may be recorded."""
    text = _decoded(raw)
    rows = csv.DictReader(io.StringIO(text, newline=""))
    missing = [c for c in (*_KEY, "decision", "target") if c not in (rows.fieldnames or ())]
    if missing:
        raise CannotImport([f"line 1: column {', '.join(missing)} is missing"])
    out: list[Decision] = []
    faults: list[str] = []
    said: dict[tuple[str, ...], int] = {}
    for row in rows:
        cell = {k: _bare((v or "").strip()) for k, v in row.items() if isinstance(k, str) and not isinstance(v, list)}
        line, word = rows.line_num, cell.get("decision", "").lower()
        if not word:
            if cell.get("target"):
                faults.append(f"line {line}: decision: a target without accept or reject")
            continue
        if word not in ("accept", "reject"):
            faults.append(f"line {line}: decision: {word!r} is not accept or reject")
            continue
        if (word == "accept") != bool(cell.get("target")):
            faults.append(f"line {line}: target: {'is missing' if word == 'accept' else 'must be empty to reject'}")
            continue
        key = tuple(cell[k] for k in _KEY)
        decision = Decision(*key, *(cell.get(k, "") for k in _SAID[1:]))
        if wrong := check(decision, profiles, catalogue):
            faults.append(f"line {line}: {wrong}")
        elif said.setdefault((*key[:3], "" if key[2] else key[3], decision.valid_from), line) != line:
            faults.append(f"line {line}: the same code stands in an earlier line")
        out.append(decision)
    if faults:
        raise CannotImport(faults)
    return out


def _decoded(raw: bytes) -> str:
    for codec in ("utf-8-sig", "gb18030"):
        try:
            return raw.decode(codec)
        except UnicodeDecodeError:
            continue
    raise CannotImport(["the file is neither UTF-8 nor GB18030"])


def _safe(cell: str) -> str:
    return "'" + cell if cell.startswith((*_FORMULA, "'")) else cell


def _bare(cell: str) -> str:
    return cell[1:] if cell.startswith("'") else cell
