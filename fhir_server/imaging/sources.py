"""Which facility an application entity may speak for (pure): its title, with the address or certificate the profile binds it to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from adapters.transports.dicom_scp import Caller
from mappings.facility import ImageSource, Pacs
from mappings.profile import Profile


@dataclass(frozen=True, slots=True)
class Bound:
    """One image source of one facility; ``archive``: where its pixels go, or are."""

    facility: str
    source: ImageSource
    archive: Pacs | None

    @property
    def commits(self) -> bool:
        """Whether its pixels are kept, and so can be committed to."""
        return self.source.pixels != "drop"

    @property
    def max_bytes(self) -> int:
        """Largest data set it may send."""
        return self.source.max_bytes


class Sources:
    """All image sources of all facilities, ready to be asked."""

    def __init__(self, profiles: Mapping[str, Profile]) -> None:
        self._bound: list[tuple[Bound, tuple[IPv4Network | IPv6Network, ...]]] = []
        for profile in profiles.values():
            archives = {pacs.name: pacs for pacs in profile.facility.pacs}
            for source in profile.facility.image_sources:
                networks = tuple(ip_network(address) for address in source.addresses)
                self._bound.append((Bound(profile.id, source, archives.get(source.pacs)), networks))

    def __bool__(self) -> bool:
        return bool(self._bound)

    def all(self) -> list[Bound]:
        """Every source."""
        return [bound for bound, _ in self._bound]

    def find(self, caller: Caller) -> Bound | None:
        """The source that everything about the caller agrees with; None when there is none, or those of two facilities."""
        address = ip_address(caller.address.partition("%")[0])
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        found = [
            bound
            for bound, networks in self._bound
            if bound.source.ae == caller.ae
            and (not networks or any(address in network for network in networks))
            and (not bound.source.certificate or bound.source.certificate in caller.certificate_names)
        ]
        if len({bound.facility for bound in found}) != 1:
            return None
        # What names the most about the caller is the one meant.
        return max(found, key=lambda b: bool(b.source.addresses) + bool(b.source.certificate))
