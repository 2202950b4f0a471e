"""What one asker may see: his role, facility and SMART scopes as a Scope."""

from __future__ import annotations

from functools import lru_cache
from typing import Final
from urllib.parse import parse_qsl

from fhir_server.access import Principal, sensitive_grants
from fhir_server.errors import Category, Fault
from fhir_server.scope.rows import Relation, Scope, since
from fhir_server.search.query import Filter, parse
from fhir_server.search.statement import Context
from fhir_server.settings import Settings
from mappings import sensitive

_OPERATING: Final = frozenset({"integrator", "administrator", "auditor"})
"""Roles that see Subscriptions of others: they look after the installation, or check it."""


def scope_of(settings: Settings, asker: Principal, context: Context, letter: str) -> Scope:
    """The scope of an asker for reads (``r``) or searches (``s``). Raises Fault FORBIDDEN for a SMART scope that cannot be enforced."""
    hidden = _hidden(asker.scopes)
    relation = None
    if asker.role == "clinician" and settings.access_by_treatment:
        after = since(context.now, settings.treatment_days)
        relation = Relation(asker.facility, asker.subject, after, context.now, settings.consent_model == "opt-out")
    narrowed = {name: [_filters(name, q) for q in queries] for name, queries in asker.narrowed(letter).items()}
    return Scope(context, relation, hidden, narrowed, asker.patient, asker.subject, asker.role in _OPERATING)


@lru_cache(maxsize=1024)
def _hidden(scopes: frozenset[str]) -> int:
    hidden = sensitive.ALL
    for name in sensitive_grants(scopes):
        hidden &= ~sensitive.bit_of(name)
    return hidden


def _filters(type: str, query: str) -> list[Filter]:
    try:
        parsed = parse(type, parse_qsl(query, keep_blank_values=True, strict_parsing=True), strict=True)
    except (Fault, ValueError):
        parsed = None
    if parsed is None or not parsed.filters or parsed.includes or parsed.sort:
        raise Fault(
            Category.FORBIDDEN, f"The scope of the token narrows {type} by a search that is not understood here."
        )
    return parsed.filters
