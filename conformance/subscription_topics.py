"""Topic-based subscriptions in R4 (Subscriptions R5 Backport 1.1.0, http://hl7.org/fhir/uv/subscriptions-backport/STU1.1): the
guide's canonical URLs, and the topics of this server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from conformance.systems import BASE

GUIDE: Final = "http://hl7.org/fhir/uv/subscriptions-backport/"
_DEFINITION: Final = GUIDE + "StructureDefinition/"
PROFILE: Final = _DEFINITION + "backport-subscription"
STATUS_PROFILE: Final = _DEFINITION + "backport-subscription-status-r4"
NOTIFICATION_PROFILE: Final = _DEFINITION + "backport-subscription-notification-r4"
SERVER: Final = GUIDE + "CapabilityStatement/backport-subscription-server-r4"
IMPLEMENTATION_GUIDE: Final = GUIDE + "ImplementationGuide/hl7.fhir.uv.subscriptions-backport"
TOPIC_OF_SERVER: Final = _DEFINITION + "capabilitystatement-subscriptiontopic-canonical"
"""Extension of CapabilityStatement.rest.resource: one topic the server has."""
FILTER: Final = _DEFINITION + "backport-filter-criteria"
CONTENT: Final = _DEFINITION + "backport-payload-content"
HEARTBEAT: Final = _DEFINITION + "backport-heartbeat-period"
TIMEOUT: Final = _DEFINITION + "backport-timeout"
MAX_COUNT: Final = _DEFINITION + "backport-max-count"
CHANNEL_TYPE: Final = _DEFINITION + "backport-channel-type"
CONTENTS: Final = ("empty", "id-only", "full-resource")


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic of this server.

    url      canonical URL
    told     topics of the outbox that are events of it
    focus    resource types an event may be about
    filters  types that filters may name: the focus, or what belongs to it (the results of a report, the patient)
    """

    url: str
    told: frozenset[str]
    focus: tuple[str, ...]
    filters: tuple[str, ...]


_RESULTS: Final = ("DiagnosticReport", "Observation")
TOPICS: Final[dict[str, Topic]] = {
    topic.url: topic
    for topic in (
        Topic(f"{BASE}/SubscriptionTopic/result-new", frozenset({"result-new"}), _RESULTS, (*_RESULTS, "Patient")),
        Topic(
            f"{BASE}/SubscriptionTopic/result-corrected-or-voided",
            frozenset({"result-corrected", "result-voided"}),
            _RESULTS,
            (*_RESULTS, "Patient"),
        ),
        Topic(
            f"{BASE}/SubscriptionTopic/recognition-reopened",
            frozenset({"answer-reopened"}),
            ("DetectedIssue",),
            ("DetectedIssue", "Patient"),
        ),
    )
}
"""Canonical URL -> topic."""
