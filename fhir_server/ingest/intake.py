"""Messages that came by another way than an MLLP connection (files, polled rows, a relay) -> what the inbox keeps of them.

The way speaks for one facility. What cannot be read, or names another facility, is kept all the same: held, with its reason.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType

from adapters.contract import Envelope, Unreadable
from adapters.convert import peek, recognise, split
from conformance.issue import Issue
from fhir_server.ingest import inbox
from fhir_server.ingest.channels import Binding, Channels
from fhir_server.ingest.inbox import BACKFILL, LIVE, Arrival
from mappings.facility import Channel
from mappings.profile import Profile

_NOBODY: Mapping[str, Profile] = MappingProxyType({})


def represented(profiles: Mapping[str, Profile], facility: str) -> list[Profile]:
    """The profiles of the facilities that a facility may speak for (``spoken_for_by``)."""
    return [p for p in profiles.values() if facility in p.facility.spoken_for_by]


class Intake:
    """One channel of one facility."""

    def __init__(self, profile: Profile, channel: Channel, others: Mapping[str, Profile] = _NOBODY) -> None:
        """others: all profiles, of which those count that let this facility speak for them."""
        self.profile = profile
        self._represented = represented(others, profile.id)
        self.channel = channel
        self._binding = Binding(profile.facility, channel)
        self._channels = Channels([profile.facility])

    def messages(self, raw: bytes, kind: str = "") -> tuple[str, list[bytes]]:
        """The format of a file, recognised by its content unless ``kind`` says it, and its messages; a file nobody can take apart is
        one message."""
        kind = kind or recognise(raw, self.profile)
        return kind, list(split(io.BytesIO(raw), kind, self.profile)) or [raw]

    def arrival(self, raw: bytes, kind: str, received_at: datetime) -> tuple[Arrival, Issue | None]:
        """One message of a format, and why it is held; None when it is not."""
        profile, envelope, fault = self._peek(raw, kind)
        digest = hashlib.sha256(raw).digest()
        patients = envelope.patient_keys if envelope is not None and fault is None else ()
        control_id = envelope.control_id if envelope is not None else ""
        pointers = envelope.pointers if envelope is not None else ()
        shard, keys = inbox.ordering_keys(profile.id, control_id or digest.hex(), patients, pointers)
        status = "quality-control" if envelope is not None and envelope.quality_control else "ready"
        arrival = Arrival(
            shard=shard,
            facility=profile.id,
            channel=self.channel.name,
            format=kind,
            trigger=envelope.trigger if envelope is not None else "",
            control_id=control_id,
            sent_at=envelope.sent_at if envelope is not None else None,
            received_at=received_at,
            sha256=digest,
            size=len(raw),
            charset=envelope.charset if envelope is not None else "",
            lane=BACKFILL if self.channel.backfill else LIVE,
            keys=keys,
            status="held" if fault is not None else status,
            issues=(fault,) if fault is not None else envelope.issues if envelope is not None else (),
            raw=inbox.compress(raw),
            part=bool(pointers),
        )
        return arrival, fault

    def _peek(self, raw: bytes, kind: str) -> tuple[Profile, Envelope | None, Issue | None]:
        """Whose message it is, what is known of it, and why it is held."""
        profile = self.profile
        try:
            found = peek(raw, profile, kind)
            owner = next((p for p in self._represented if _names(found.sender, p)), None)
            if owner is not None and not _names(found.sender, profile):
                profile, found = owner, peek(raw, owner, kind)
        except Unreadable as unreadable:
            return profile, None, unreadable.issue
        if kind == "hl7v2" and profile is self.profile and profile.facility.senders:
            bound = self._channels.bind((self._binding,), found.sender)
            if isinstance(bound, Issue):
                return profile, found, bound
        return profile, found, None


def _names(sender: tuple[str, str], profile: Profile) -> bool:
    """Whether MSH-3/4, or the institution of a document, names a facility."""
    application, name = sender[0].strip(), sender[1].strip()
    return bool(name) and (
        name == profile.facility.organization.name
        or any(
            s.facility.strip() == name and s.application.strip() in ("", application) for s in profile.facility.senders
        )
    )
