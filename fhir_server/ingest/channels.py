"""Which facility a connection may speak for (pure).

A connection is told by the port it came in on, its client certificate and its address; the profiles say which channels these open
(mappings.facility Channel). MSH-3/4 (HL7 v2.5.1 section 2.15.9.3-4) then has to name a sender of one of those facilities, so no
clinic can speak for another. A channel that names neither port, certificate nor address opens nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Protocol

from conformance.issue import Issue
from mappings.facility import Channel, Facility, Organization

Network = IPv4Network | IPv6Network


class HasFacility(Protocol):
    """A loaded profile."""

    @property
    def facility(self) -> Facility:
        """The facility it describes."""
        ...


@dataclass(frozen=True, slots=True)
class Binding:
    """One channel of one facility."""

    facility: Facility
    channel: Channel


class ChannelError(Exception):
    """The profiles contradict each other; the text names the facilities and what to change."""


NOBODY = Facility(id="nobody", organization=Organization(name=""))
"""Stands for the facility of a connection that no channel knows, to read the header of what it sends."""


class Channels:
    """All channels of all facilities, ready to be asked."""

    def __init__(self, facilities: Iterable[Facility]) -> None:
        """Raises ChannelError when an address is no network, or two facilities share a port or a sender on one channel."""
        self._channels: list[tuple[Binding, tuple[Network, ...]]] = []
        self._senders: dict[str, list[tuple[str, Facility]]] = {}
        ports: dict[int, str] = {}
        for facility in facilities:
            for sender in facility.senders:
                self._senders.setdefault(sender.facility.strip(), []).append((sender.application.strip(), facility))
            for channel in facility.channels:
                if not (channel.port or channel.certificate or channel.addresses):
                    continue
                if channel.port and ports.setdefault(channel.port, facility.id) != facility.id:
                    raise ChannelError(
                        f"port {channel.port} belongs to {ports[channel.port]} and {facility.id}: give each its own"
                    )
                self._channels.append((Binding(facility, channel), _networks(facility.id, channel)))
        self._own_ports = frozenset(ports)

    def candidates(self, port: int, address: str, certificate_names: Iterable[str] = ()) -> tuple[Binding, ...]:
        """The channels a connection opens. ``port``: the local one; ``address``: of the peer; names: of its verified certificate.

        Everything a channel names has to hold. A port of its own opens only the channels that name it.
        """
        names = frozenset(certificate_names)
        peer = _address(address)
        return tuple(
            binding
            for binding, networks in self._channels
            if (binding.channel.port == port if port in self._own_ports else not binding.channel.port)
            and (not binding.channel.certificate or binding.channel.certificate in names)
            and (not networks or (peer is not None and any(peer in network for network in networks)))
        )

    def bind(self, candidates: tuple[Binding, ...], sender: tuple[str, str]) -> Binding | Issue:
        """The channel whose facility MSH-3.1/MSH-4.1 (``sender``) names, or the Issue to refuse the message with."""
        application, name = sender[0].strip(), sender[1].strip()
        named = self._senders.get(name, [])
        agreeing = {f.id for a, f in named if a in ("", application)}
        found = [b for b in candidates if b.facility.id in agreeing]
        if len({b.facility.id for b in found}) == 1:
            # The channel that names the most about the connection is the one meant.
            return max(
                found, key=lambda b: bool(b.channel.port) + bool(b.channel.certificate) + bool(b.channel.addresses)
            )
        if found:
            return _issue("unknown-facility", "MSH-4", "Several facilities of this connection have this sender.", name)
        if not name:
            return _issue("unknown-facility", "MSH-4", "MSH-4 names no sending facility.", None)
        if agreeing:
            return _issue(
                "foreign-facility", "MSH-4", "This connection may not speak for the facility that MSH-4 names.", name
            )
        if named:
            return _issue(
                "unknown-facility", "MSH-3", "The facility in MSH-4 has no such sending application.", application
            )
        return _issue("unknown-facility", "MSH-4", "No facility profile has this sender.", name)


def listeners(profiles: Mapping[str, HasFacility]) -> list[int]:
    """The ports of their own that channels ask for, ascending."""
    return sorted({c.port for p in profiles.values() for c in p.facility.channels if c.port})


def _issue(key: str, where: str, text: str, value: str | None) -> Issue:
    return Issue(key, "fatal", where, text, value)


def _networks(facility: str, channel: Channel) -> tuple[Network, ...]:
    try:
        return tuple(ip_network(a, strict=False) for a in channel.addresses)
    except ValueError as error:
        raise ChannelError(f"facility {facility}, channel {channel.name}: {error}") from None


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        found = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(found, IPv6Address) and found.ipv4_mapped:
        return found.ipv4_mapped
    return found
