"""Where something stands in a file of rule cases: the line of a case and of what a dotted key names inside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import yaml


@dataclass(frozen=True, slots=True)
class Lines:
    """Nodes of one case, and of the ``defaults`` and the ``world`` under it."""

    nodes: tuple[yaml.Node, ...] = ()

    def of(self, key: str) -> int | None:
        """The 1-based line of what a key (``prior.0.report.results.L0016``) names; of what is nearest around it when that itself does
        not stand there, at least of the case. Steps into a list are numbers from 0, or the ``id`` of an entry. None: not known."""
        steps = [step for step in key.split(".") if step]
        for node in self.nodes:
            line, deep = _follow(node, steps)
            if deep:
                return line
        return self.nodes[0].start_mark.line + 1 if self.nodes else None

    def beside(self, text: str) -> str:
        """``key.path: what is wrong``, with the line behind it; several faults stand on lines of their own."""
        return "\n".join(self._beside(line) for line in text.splitlines())

    def _beside(self, text: str) -> str:
        line = self.of(text.partition(":")[0].partition(" ")[0])
        return f"{text} (line {line})" if line else text


NOWHERE = Lines()


def read(text: str) -> list[Lines]:
    """The cases of a file that is YAML, in their order."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    under: tuple[yaml.Node, ...] = ()
    cases: yaml.Node | None = root
    if isinstance(root, yaml.MappingNode):
        found = _entries(root)
        under = tuple(found[key][1] for key in ("defaults", "world") if key in found)
        cases = found["cases"][1] if "cases" in found else None
    return [Lines((node, *under)) for node in cases.value] if isinstance(cases, yaml.SequenceNode) else []


def _follow(node: yaml.Node, steps: list[str]) -> tuple[int, int]:
    """The line of the last step that can be gone, and how many could be."""
    line, gone = node.start_mark.line + 1, 0
    for step in steps:
        if isinstance(node, yaml.MappingNode):
            found = _entries(node).get(step)
            if found is None and step == "0":
                continue  # one alone stands for a list of one
            if found is None:
                break
            name, node = found
            line = name.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode):
            below = _listed(node, step)
            if below is None:
                break
            node = below
            line = node.start_mark.line + 1
        else:
            break
        gone += 1
    return line, gone


def _listed(node: yaml.SequenceNode, step: str) -> yaml.Node | None:
    if step.isdecimal():
        return node.value[int(step)] if int(step) < len(node.value) else None
    for below in node.value:
        if isinstance(below, yaml.MappingNode):
            name = _entries(below).get("id")
            if name and name[1].value == step:
                return below
    return None


def _entries(node: yaml.MappingNode) -> Mapping[str, tuple[yaml.Node, yaml.Node]]:
    """Key as text -> its node and that of the value."""
    return {str(key.value): (key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)}
