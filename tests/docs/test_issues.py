"""docs/issues.md names every issue key the program can give, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
KEY = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
MAKERS = {"Issue", "issue", "issue_once", "_issue", "_refuse"}


def keys_in_the_program() -> Iterator[str]:
    """The first argument of everything that makes an Issue."""
    for folder in ("adapters", "mappings", "conformance", "fhir_server/ingest"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call) or not node.args:
                    continue
                function = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                first = node.args[0]
                if function in MAKERS and isinstance(first, ast.Constant) and KEY.fullmatch(str(first.value)):
                    yield str(first.value)


def test_every_issue_key_is_documented_and_every_documented_key_exists() -> None:
    text = (ROOT / "docs" / "issues.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `([a-z0-9-]+)` \|", text, flags=re.MULTILINE)
    assert len(documented) == len(set(documented))
    assert set(documented) == set(keys_in_the_program())
