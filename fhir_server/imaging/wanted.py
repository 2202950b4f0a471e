"""Whether an installation needs the image process."""

from __future__ import annotations

from collections.abc import Mapping

from fhir_server.settings import Settings
from mappings.profile import Profile


def wanted(settings: Settings, profiles: Mapping[str, Profile]) -> bool:
    """True when images may be sent to us, or an archive is polled, or has objects to be sent on."""
    return settings.dicom_port is not None or any(pacs.poll for p in profiles.values() for pacs in p.facility.pacs)
