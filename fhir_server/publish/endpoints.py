"""Where notifications may go: addresses an administrator listed, nothing else (no request forgery).

Settings.subscription_endpoints lists beginnings of URLs; an address behind a name must be public, or in a network of
Settings.subscription_networks, or itself the listed host. It is looked up once for each request and the request goes to that very
address, so that a name that changes its address between check and use leads nowhere else.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

from fhir_server.settings import Settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_PORTS: Final = {"http": 80, "https": 443}
_SECONDS: Final = 5.0
_NOT_LISTED: Final = (
    "The endpoint is not on this server's list of addresses that may be called. Ask its administrator to add it to the setting "
    "subscription_endpoints."
)


class NotAllowed(Exception):
    """An address that is not called; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What the two settings say."""

    listed: tuple[SplitResult, ...]
    networks: tuple[Network, ...]

    @classmethod
    def of(cls, settings: Settings) -> Endpoints:
        """The settings' lists; their values were checked when they were read."""
        return cls(
            tuple(urlsplit(entry) for entry in settings.subscription_endpoints.split()),
            tuple(ipaddress.ip_network(entry) for entry in settings.subscription_networks.split()),
        )

    def require(self, url: str) -> SplitResult:
        """The parts of an address that is listed. Raises NotAllowed."""
        try:
            parts = urlsplit(url)
            port, host = parts.port, parts.hostname
        except ValueError:
            parts, port, host = urlsplit(""), None, None
        if parts.scheme not in _PORTS or not host or port == 0 or any(c in url for c in "\r\n\t\\ "):
            raise NotAllowed("The endpoint must be an absolute https address.")
        if parts.username is not None or parts.fragment or ".." in parts.path.split("/") or "%2e" in parts.path.lower():
            raise NotAllowed("The endpoint must have no user name, no fragment and no '..'.")
        if not any(_covers(entry, parts) for entry in self.listed):
            raise NotAllowed(_NOT_LISTED)
        return parts

    async def address(self, parts: SplitResult) -> str:
        """The IP address to connect to. Raises NotAllowed when one behind the name may not be called, OSError when it has none."""
        host, port = str(parts.hostname), parts.port or _PORTS[parts.scheme]
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_SECONDS):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [_address(str(entry[4][0])) for entry in found]
        if not addresses:
            raise OSError("the name has no address")
        literal = _literal(host)
        for address in addresses:
            if address != literal and not self._open(address):
                raise NotAllowed(
                    "The name of the endpoint leads to an address that is not public and not in the setting subscription_networks."
                )
        return str(addresses[0])

    def _open(self, address: Address) -> bool:
        if any(address in network for network in self.networks):
            return True
        return address.is_global and not address.is_multicast


def _covers(entry: SplitResult, asked: SplitResult) -> bool:
    host, wanted = str(asked.hostname), str(entry.hostname)
    same = host.endswith(wanted[1:]) if wanted.startswith("*.") else host == wanted
    ports = (p.port or _PORTS[p.scheme] for p in (entry, asked))
    path, start = asked.path or "/", entry.path or "/"
    below = path == start or path.startswith(start if start.endswith("/") else start + "/")
    return asked.scheme == entry.scheme and same and len(set(ports)) == 1 and below


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _address(text: str) -> Address:
    found = ipaddress.ip_address(text.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found
