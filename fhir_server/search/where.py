"""The conditions of a search while they are put together, and the forms in which a page needs them (search/sql, search/page)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fhir_server.search.statement import kinds_of


@dataclass(slots=True)
class Where:
    """Conditions on ``resource r``, to be joined by AND; the first two (type, not deleted) stand in every search.

    PostgreSQL cannot estimate how often values occur that its statistics have never seen, above all in lists, so it is not left to
    guess whether to walk an index in page order or to collect matches and sort (search/page):
    narrow   they leave few rows (an identifier, a patient, an id): collect and sort
    hashed   one of them is a hash that few rows have
    placed   they name patients or ids
    keyed    they name one patient: the plan is the same for every value
    driven   what narrows them is in ``either``
    tokens   they contain a token search that may match much or little: collect in windows
    own      one of them is a list of hashes that the GIN index finds
    common   conditions on ``resource_kind k``; with ``named`` one of them names hashes to look for
    linked   a chain among these finds the rows whatever their number: their type is no way to begin
    values   the same, where the second form reads every value of all kinds: the first is better where kinds are named
    either   conditions in two forms: to look at row by row, and to find the rows by an index; both name the same arguments
    """

    texts: list[str]
    narrow: bool = False
    hashed: bool = False
    placed: bool = False
    keyed: bool = False
    driven: bool = False
    tokens: bool = False
    own: bool = False
    linked: bool = False
    common: list[str] = field(default_factory=list)
    named: bool = False
    either: list[tuple[str, str]] = field(default_factory=list)
    values: list[tuple[str, str]] = field(default_factory=list)

    def each(self) -> list[str]:
        """As conditions that are looked at row by row."""
        return [*self._own_and_common(), *(f"({one}) IS TRUE" for one, _ in (*self.either, *self.values))]

    def _own_and_common(self) -> list[str]:
        if not self.common:
            return self.texts
        # IS TRUE keeps PostgreSQL from making it a join, which would not keep the order of the rows nor stop when the page is full.
        kind = " AND ".join(["k.id = r.tokens[1]", *self.common])
        return [*self.texts, f"(EXISTS (SELECT FROM resource_kind k WHERE {kind})) IS TRUE"]

    def collected(self) -> list[str]:
        """As conditions that find the rows by an index, if one of them can."""
        if self.narrow and not self.driven:
            return self.each()
        found = [text for _, text in self.either]
        found += [f"({one}) IS TRUE" if self.named or self.own else text for one, text in self.values]
        if not self.named or self.narrow or self.own:
            return [*self._own_and_common(), *found]
        return [*self.texts, f"r.tokens[1] = ANY({kinds_of(self.common)})", *found]


@dataclass(slots=True)
class Every:
    """Hashes of single values, one array containment for all: those of the row's own, those it shares with its kind."""

    own: list[int] = field(default_factory=list)
    common: list[int] = field(default_factory=list)


def any_of(ends: Sequence[Where], found: Where) -> None:
    """Adds to ``found`` that one of several sets of conditions on the same resource holds, each looked up by its own index."""
    each = " OR ".join(f"({' AND '.join(end.each())})" for end in ends)
    by_index = " UNION ALL ".join(
        f"SELECT r.shard, r.id FROM resource r WHERE {' AND '.join(end.collected())}"  # noqa: S608 -- placeholders only
        for end in ends
    )
    found.either.append((each, f"(r.shard, r.id) IN ({by_index})"))
    if all(end.narrow for end in ends):
        found.narrow = found.driven = True
    else:
        found.tokens = True
