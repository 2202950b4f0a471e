"""What becomes of the public HL7 v2 corpus under the generic profile; ``python -m tests.corpus_report`` rewrites the two documents."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from adapters.contract import Unreadable
from adapters.convert import convert, split
from adapters.hl7v2 import reader
from mappings.model import Conversion
from mappings.profile import load_profiles
from mappings.trigger import trigger

HERE = Path(__file__).parent
CORPUS = HERE / "data" / "corpus"
REFUSED = HERE.parent / "docs" / "refused-messages.md"
COVERAGE = HERE.parent / "docs" / "mapping-coverage.md"
FAMILIES = ("ADT", "ORM", "OML", "ORU", "OUL", "MDM")
_PLACE = re.compile(r"([A-Z0-9]{3})\[\d+\]-\d+")


@dataclass
class Message:
    """One message of the corpus: file, number in the file, message code, its conversion or why it cannot be read."""

    file: str
    number: int
    code: str
    conversion: Conversion | None
    reason: str = ""
    where: str = ""
    filled: Counter[str] = field(default_factory=Counter)

    @property
    def converted(self) -> bool:
        """Something about a patient came out (the CLI then exits 0 or 1, not 2), or it is a control run, kept apart."""
        found = self.conversion
        return found is not None and (found.quality_control or any(e.patient is not None for e in found.entries))


@cache
def messages() -> tuple[Message, ...]:
    """Every message of the corpus, converted with the generic profile."""
    profile = load_profiles()["generic"]
    out: list[Message] = []
    with (CORPUS / "manifest.csv").open(encoding="utf-8", newline="") as lines:
        files = [row["file"] for row in csv.DictReader(lines)]
    for file in files:
        for number, raw in enumerate(split(io.BytesIO((CORPUS / file).read_bytes())), 1):
            try:
                source = reader.read(raw)
            except Unreadable as fault:
                out.append(Message(file, number, _code_of(raw), None, fault.issue.key, fault.issue.where))
                continue
            conversion = convert(raw, profile)
            held = conversion.held
            filled = Counter(record.name for record in source.records for _ in record.filled())
            code = trigger(source.header)[0]
            reason, where = (held.key, held.where) if held else ("", "")
            out.append(Message(file, number, code, conversion, reason, where, filled))
    return tuple(out)


def _code_of(raw: bytes) -> str:
    """Message code of bytes that cannot be read, for counting."""
    found = re.search(rb"MSH(.)[^\r\n]*", raw)
    fields = found[0].split(found[1]) if found else []
    return fields[8][:3].decode("ascii", "replace") if len(fields) > 8 else ""


def by_file() -> dict[str, list[Message]]:
    """Messages of each file."""
    out: dict[str, list[Message]] = {}
    for message in messages():
        out.setdefault(message.file, []).append(message)
    return out


def shares() -> dict[str, tuple[int, int]]:
    """Segment -> (filled fields, mapped fields) over the converted messages of the families we map."""
    filled: Counter[str] = Counter()
    unread: Counter[str] = Counter()
    for message in messages():
        found = message.conversion
        if message.code not in FAMILIES or found is None or found.quality_control or not message.converted:
            continue
        filled += message.filled
        unread += Counter(m[1] for u in found.unread if (m := _PLACE.fullmatch(u.where)))
    return {name: (filled[name], filled[name] - unread[name]) for name in sorted(filled)}


def refused_document() -> str:
    """docs/refused-messages.md as it must be."""
    files = {f: m for f, m in by_file().items() if any(x.code in FAMILIES for x in m)}
    converted = sum(all(x.converted for x in m) for m in files.values())
    stored = sum(all(x.converted and not x.reason for x in m) for m in files.values())
    lines = [
        "# Messages of the corpus that are refused or held",
        "",
        "The corpus is `tests/data/corpus` (its manifest names source and licence of each file); the profile is `generic`.",
        "A test keeps this page true; `python -m tests.corpus_report` rewrites it.",
        "",
        f"Files with {', '.join(FAMILIES)}: {len(files)}.",
        f"In {converted} of them ({converted / len(files):.1%}) every message converts.",
        f"{stored} ({stored / len(files):.1%}) would be stored as they are; the rest of the converted is held.",
        "",
        "## Nothing is converted",
        "",
        "The bytes are no message, or no patient is named, so that nothing could be said of anybody (`tongjian convert` exits with 2).",
        "",
        "| file | message | type | reason | where |",
        "|---|---|---|---|---|",
    ]
    lines += [_row(m) for m in messages() if not m.converted]
    lines += [
        "",
        "## Held",
        "",
        "The content is at fault. What the message says is mapped, so that it can be looked at (`tongjian convert` exits with 1);",
        "the server acknowledges it, holds it with this reason and stores none of it until it is mended or sent again.",
        "",
        "| file | message | type | reason | where |",
        "|---|---|---|---|---|",
    ]
    lines += [_row(m) for m in messages() if m.converted and m.reason]
    lines += ["", "## Reasons", "", "| reason | meaning |", "|---|---|"]
    lines += [f"| {key} | {text} |" for key, text in REASONS.items()]
    return "\n".join(lines) + "\n"


REASONS = {
    "no-header": "There is no MSH segment.",
    "too-short-header": "The MSH segment ends before MSH-9, the message type.",
    "no-message-type": "MSH-9 is empty.",
    "no-patient": "There is no PID segment.",
    "no-patient-key": "PID names no identifier: PID-3 and PID-2, 4, 18 and 19 are empty.",
    "bad-date": "A date that identity or a decision rests on does not exist (birth date, time of a result; in orders also OBR-6, TQ1-7 "
    "and the start in OBR-27 or ORC-7). On a report those three are leftovers of the order: a warning, and the field is listed as "
    "unread.",
    "unknown-trigger": "MSH-9 names a message type or trigger event that stands in no HL7 table.",
    "no-control-id": "MSH-10 is empty.",
    "charset-mismatch": "The bytes are not in the character set that MSH-18 declares.",
    "future-date": "Something that happened lies more than a day after the message was received.",
    "birth-date-conflict": "The birth date is not the one in the resident ID number.",
    "continued-message": "A part of a message (DSC, MSH-14) whose other part did not follow.",
    "no-link": "A link message (A24, A37) names only one patient.",
    "obx-without-obr": "A result message has results without an order: it is not known what was reported.",
}


def _row(message: Message) -> str:
    return f"| {message.file} | {message.number} | {message.code or '-'} | {message.reason} | {message.where} |"


def coverage_document() -> str:
    """docs/mapping-coverage.md as it is now."""
    lines = [
        "# Mapped share of fields",
        "",
        f"Over the {', '.join(FAMILIES)} messages of `tests/data/corpus` that convert with the profile `generic`:",
        "how many filled fields of each segment a mapping rule reads. The others are listed as unread in the conversion.",
        "A test prints this table and fails when a share falls; `python -m tests.corpus_report` rewrites the page.",
        "Rows of the guide that stay unread: ADR 0004.",
        "",
        "| segment | filled fields | mapped | share |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {filled} | {mapped} | {mapped / filled:.1%} |" for name, (filled, mapped) in shares().items()
    ]
    total, mapped = (sum(column) for column in zip(*shares().values(), strict=True))
    lines.append(f"| all | {total} | {mapped} | {mapped / total:.1%} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    REFUSED.write_text(refused_document(), "utf-8")
    COVERAGE.write_text(coverage_document(), "utf-8")
