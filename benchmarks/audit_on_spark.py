"""The duplicate audit over an export of ``tongjian export --parquet``, on Spark (pyspark, the extra ``spark``; Java 17), beside DuckDB.

    python benchmarks/audit_on_spark.py FOLDER [--profiles FOLDER] [--rules FOLDER]

Prints one line of JSON: seconds of each engine, orders, pairs, findings, and whether the findings are equal. Exit code 1: they are not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from fhir_server.duplicates import lake
from fhir_server.recognition import rules as rules_module
from mappings import catalogue
from mappings.profile import load_profiles

TYPES = {"BIGINT": "BIGINT", "SMALLINT": "SMALLINT", "VARCHAR": "STRING"}


class Spark:
    """Spark on this machine, as an engine of the audit."""

    def __init__(self) -> None:
        self._spark = (
            SparkSession.builder.master(f"local[{os.cpu_count()}]")
            .appName("tongjian audit")
            .config("spark.ui.enabled", "false")
            .config("spark.driver.memory", "3g")
            .config("spark.driver.host", "127.0.0.1")
            .config("spark.driver.bindAddress", "127.0.0.1")
            .config("spark.sql.shuffle.partitions", 2 * (os.cpu_count() or 1))
            .config("spark.sql.session.timeZone", "UTC")
            # Column names in double quotes, as the standard and the other two engines have them.
            .config("spark.sql.ansi.enabled", "true")
            .config("spark.sql.ansi.doubleQuotedIdentifiers", "true")
            .getOrCreate()
        )
        self._spark.sparkContext.setLogLevel("ERROR")

    def relation(self, name: str, folder: Path) -> None:
        """See lake.Engine."""
        self._spark.read.parquet(str(folder)).createOrReplaceTempView(name)

    def view(self, name: str, query: str) -> None:
        """See lake.Engine."""
        self._spark.sql(query).createOrReplaceTempView(name)

    def table(self, name: str, types: Mapping[str, str], file: Path) -> None:
        """See lake.Engine."""
        schema = ", ".join(f"`{column}` {TYPES[kind]}" for column, kind in types.items())
        # A name of its own: what Spark knows of a file must not be kept for another that took its place.
        kept = file.with_name(f"{file.stem}-{time.monotonic_ns()}.json")
        file.rename(kept)
        self._spark.read.schema(schema).json(str(kept)).createOrReplaceTempView(name)

    def rows(self, query: str) -> Iterator[tuple[Any, ...]]:
        """See lake.Engine."""
        for row in self._spark.sql(query).toLocalIterator():
            yield tuple(row)


def main() -> int:
    """Both engines, one after the other."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("folder", type=Path)
    asked.add_argument("--profiles", type=Path)
    asked.add_argument("--rules", type=Path)
    given = asked.parse_args()
    about = json.loads((given.folder / "about.json").read_text())
    period = (datetime.fromisoformat(about["start"]), datetime.fromisoformat(about["end"]))
    rules = rules_module.load(given.rules)
    profiles = load_profiles(given.profiles, catalogue=catalogue.of(given.rules))
    figures: dict[str, Any] = {}
    reports = []
    for name, made in (("duckdb", lake.Duck), ("spark", Spark)):
        engine = made()
        began = time.perf_counter()
        reports.append(lake.audit(engine, given.folder, rules, profiles, *period))
        figures[f"{name}_seconds"] = round(time.perf_counter() - began, 1)
    first, second = reports
    figures |= {
        "orders": sum(row.orders for row in first.rows), "pairs": first.pairs, "findings": len(first.findings),
        "equal": first == second,
    }  # fmt: skip
    print(json.dumps(figures))
    return 0 if first == second else 1


if __name__ == "__main__":
    sys.exit(main())
