"""YAML with line numbers: a profile that is wrong names its line and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mappings.csv_rows import Problem

Path_ = tuple[str | int, ...]


class Document:
    """One YAML mapping. ``data`` is plain values; ``line(path)`` gives the 1-based line of a key or its nearest parent."""

    def __init__(self, file: str, data: dict[str, Any], lines: dict[Path_, tuple[str, int]]) -> None:
        self.file = file
        self.data = data
        self._lines = lines

    def place(self, path: Path_) -> tuple[str, int]:
        """File name and line where ``path`` was written (after inheritance that may be the base profile's file)."""
        for length in range(len(path), 0, -1):
            if found := self._lines.get(path[:length]):
                return found
        return self.file, 1

    def over(self, base: Document) -> Document:
        """This document laid over its base: maps merge key by key, everything else is replaced."""
        lines = dict(base._lines)
        data = _merge(base.data, self.data, (), lines, self._lines)
        return Document(self.file, data, lines)


def read(path: Path, problems: list[Problem]) -> Document | None:
    """Read one file; None when it cannot be used (the reason is in ``problems``)."""
    name = path.name
    lines: dict[Path_, tuple[str, int]] = {}
    try:
        text = path.read_bytes().decode("utf-8-sig")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(node, yaml.MappingNode):
            problems.append(Problem(name, 1, "", "is not a YAML mapping"))
            return None
        _walk(node, (), lines, name, problems)
        data = yaml.safe_load(text)
    except OSError as fault:
        problems.append(Problem(str(path), 0, "", f"cannot be read: {fault.strerror}"))
        return None
    except UnicodeDecodeError:
        problems.append(Problem(name, 0, "", "is not UTF-8"))
        return None
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark or fault.context_mark
        problems.append(
            Problem(name, mark.line + 1 if mark else 0, "", f"is not YAML: {fault.problem or fault.context}")
        )
        return None
    except yaml.YAMLError as fault:
        problems.append(Problem(name, 0, "", f"is not YAML: {fault}"))
        return None
    return Document(name, data, lines)


def _walk(
    node: yaml.Node, path: Path_, lines: dict[Path_, tuple[str, int]], file: str, problems: list[Problem]
) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            word, line = str(key.value), key.start_mark.line + 1
            if word in seen:
                problems.append(Problem(file, line, ".".join(map(str, (*path, word))), "this key stands twice"))
            seen.add(word)
            lines[(*path, word)] = (file, line)
            _walk(value, (*path, word), lines, file, problems)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*path, index)] = (file, value.start_mark.line + 1)
            _walk(value, (*path, index), lines, file, problems)


def _merge(
    base: dict[str, Any],
    top: dict[str, Any],
    path: Path_,
    lines: dict[Path_, tuple[str, int]],
    own: dict[Path_, tuple[str, int]],
) -> dict[str, Any]:
    out = dict(base)
    for key, value in top.items():
        here = (*path, str(key))
        below = base.get(key)
        if here in own:
            lines[here] = own[here]
        if isinstance(below, dict) and isinstance(value, dict):
            out[key] = _merge(below, value, here, lines, own)
            continue
        out[key] = value
        for known in [k for k in lines if k[: len(here)] == here and k != here]:
            del lines[known]
        lines.update({k: v for k, v in own.items() if k[: len(here)] == here})
    return out
