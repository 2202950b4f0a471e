"""SQL text in the making, and the arrays of kinds that conditions name (search/sql)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from typing import Any


@dataclass(frozen=True, slots=True)
class Context:
    """What the meaning of a search value depends on: zone of dates without one, address of this server, now (aware)."""

    zone: tzinfo
    base: str
    now: datetime


@dataclass(slots=True)
class Statement:
    """SQL text in the making: ``arg`` adds a value and gives its placeholder. window: the range of ``r.shard`` that is read, if any."""

    args: list[Any] = field(default_factory=list)
    window: str = ""

    def arg(self, value: Any, cast: str) -> str:
        """Placeholder with its PostgreSQL type: ``$3::bigint[]``."""
        self.args.append(value)
        return f"${len(self.args)}::{cast}"

    @property
    def within(self) -> str:
        """The window as a further condition, for what looks at the same shards beside the search itself."""
        return f" AND {self.window}" if self.window else ""


def kinds_of(conditions: list[str]) -> str:
    """The array of the numbers of all kinds that meet the conditions on ``k``."""
    return f"ARRAY(SELECT k.id FROM resource_kind k WHERE {' AND '.join(conditions)})"  # noqa: S608 -- placeholders only
