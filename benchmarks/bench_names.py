"""Measures the proposals of the mapping worklist on local names (benchmarks/local_names.csv): top-1, top-5, refused.

    python benchmarks/bench_names.py [--misses tuning]

Half of the rows are ``unseen``: their misses are never printed, and nothing was changed because of one of them.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import sys
import time
from pathlib import Path

from mappings.proposals import Local, shipped_proposer

FILE = Path(__file__).with_name("local_names.csv")
WANTED = {"top1": 0.85, "top5": 0.97, "refused": 0.90}


def rows(path: Path = FILE) -> list[dict[str, str]]:
    """The rows of the set."""
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(line for line in lines if not line.startswith("# ")))


def half(row: dict[str, str]) -> str:
    """``tuning`` or ``unseen``, by a hash of what the row says, so that it never moves; the round of a set written in rounds."""
    if "round" in row:
        return f"round {row['round']}"
    digest = hashlib.sha256("|".join((row["name"], row["code"], row["unit"])).encode()).digest()
    return "unseen" if digest[0] % 2 else "tuning"


def measure(some: list[dict[str, str]]) -> tuple[dict[str, float], list[str]]:
    """Shares (top1, top5 of the names with an item; refused of the others) and the misses, one line each."""
    proposer = shipped_proposer()
    counts = {"named": 0, "top1": 0, "top5": 0, "strange": 0, "refused": 0}
    misses: list[str] = []
    for row in some:
        found = [
            p.item
            for p in proposer.propose(Local(row["code"], row["name"], row["unit"], row["range"], row["specimen"]))
        ]
        wanted = set(row["item"].split("|")) - {""}
        if wanted:
            counts["named"] += 1
            counts["top1"] += bool(found) and found[0] in wanted
            counts["top5"] += bool(wanted & set(found))
            wrong = not found or found[0] not in wanted
        else:
            counts["strange"] += 1
            counts["refused"] += not found
            wrong = bool(found)
        if wrong:
            misses.append(f"{row['name']} {row['code']} [{row['unit']}] wanted {row['item'] or 'nothing'} got {found}")
    return {
        "named": counts["named"],
        "top1": counts["top1"] / max(1, counts["named"]),
        "top5": counts["top5"] / max(1, counts["named"]),
        "strange": counts["strange"],
        "refused": counts["refused"] / max(1, counts["strange"]),
    }, misses


def main() -> int:
    """Prints a line for each half; exit code 1 when a half misses what is wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, default=FILE)
    parser.add_argument("--misses", choices=("tuning",), help="print the misses of the tuning half")
    given = parser.parse_args()
    every, bad = rows(given.file), 0
    shipped_proposer()
    start = time.perf_counter()
    print(f"{'half':8} {'names':>6} {'top-1':>7} {'top-5':>7} {'without item':>13} {'refused':>8}")
    for which in sorted({half(row) for row in every}):
        shares, misses = measure([r for r in every if half(r) == which])
        print(
            f"{which:8} {shares['named']:6.0f} {shares['top1']:7.1%} {shares['top5']:7.1%} {shares['strange']:13.0f}"
            f" {shares['refused']:8.1%}"
        )
        bad += any(shares[name] < share for name, share in WANTED.items())
        if given.misses == which:
            print(*misses, sep="\n")
    print(f"{(time.perf_counter() - start) / max(1, len(every)) * 1000:.1f} ms a name")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
