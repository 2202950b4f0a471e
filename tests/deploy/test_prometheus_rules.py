"""The shipped alarms: whole, about metrics that exist with the labels they name, and explained to the operator."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES = yaml.safe_load((ROOT / "deploy" / "prometheus-rules.yaml").read_text(encoding="utf-8"))
ALARMS: list[dict[str, Any]] = [rule for group in RULES["groups"] for rule in group["rules"]]
METRIC = re.compile(r"tongjian_[a-z_]+")


def documented() -> dict[str, set[str]]:
    """Name of each sample in docs/metrics.md -> its labels."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `tongjian_"):
            name, kind, labels = (cell.strip() for cell in line.strip("|").split("|")[:3])
            names = [name.strip("`")]
            given = set(re.findall(r"`(\w+)`", labels))
            if kind == "histogram":
                names = [f"{names[0]}_{part}" for part in ("bucket", "count", "sum")]
            for one in names:
                found[one] = given | ({"le"} if one.endswith("_bucket") else set())
    return found


@pytest.mark.parametrize("rule", ALARMS, ids=lambda r: r["alert"])
def test_each_alarm_is_about_documented_metrics_and_labels(rule: dict[str, Any]) -> None:
    known = documented()
    names = METRIC.findall(rule["expr"])
    assert names or "up{" in rule["expr"]
    for name in names:
        assert name in known, name
    for name, matchers in re.findall(r"(tongjian_[a-z_]+)\{([^}]*)\}", rule["expr"]):
        assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)) <= known[name]
    grouped = {label.strip() for by in re.findall(r"\bby \(([^)]*)\)", rule["expr"]) for label in by.split(",")}
    assert grouped <= set().union(*(known[name] for name in names)) if names else not grouped


@pytest.mark.parametrize("rule", ALARMS, ids=lambda r: r["alert"])
def test_each_alarm_is_whole_and_explained_to_the_operator(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert re.fullmatch(r"\d+[mh]", rule["for"])
    assert rule["annotations"]["summary"].endswith(".")
    expression = rule["expr"]
    assert expression.count("(") == expression.count(")")
    assert expression.count("{") == expression.count("}")
    assert f"`{rule['alert']}`" in (ROOT / "docs" / "operators.md").read_text(encoding="utf-8")


def test_the_four_alarms_every_installation_needs_are_there() -> None:
    subjects = {
        "silent feed": "tongjian_last_message_timestamp_seconds",
        "growing lag": "tongjian_queue_messages",
        "held rate": "tongjian_messages_held_total",
        "disk": "tongjian_disk_free_bytes",
    }
    for subject, name in subjects.items():
        assert any(name in rule["expr"] for rule in ALARMS), subject
