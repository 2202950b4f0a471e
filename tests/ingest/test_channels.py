"""fhir_server.ingest.channels: a connection speaks only for the facility whose channel it is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from conformance.issue import Issue
from fhir_server.ingest.channels import Binding, ChannelError, Channels, listeners
from mappings.facility import Channel, Facility, Organization, Sender


def facility(name: str, *channels: Channel, senders: tuple[Sender, ...] = ()) -> Facility:
    return Facility(
        id=name,
        organization=Organization(name=name),
        channels=list(channels),
        senders=list(senders or (Sender(facility=name.upper()),)),
    )


COUNTY = facility(
    "county",
    Channel(name="lis", addresses=["10.0.0.0/24"]),
    senders=(Sender(application="LIS", facility="COUNTY"), Sender(application="HIS", facility="COUNTY")),
)
TOWN = facility("town", Channel(addresses=["10.0.1.7/32", "fd00::/8"]))
PORT = facility("port", Channel(name="own", port=4001))
CERT = facility("cert", Channel(certificate="clinic.example"))
BOTH = facility("both", Channel(certificate="both.example", addresses=["10.0.9.0/24"]))
SILENT = facility("silent", Channel())
ALL = Channels([COUNTY, TOWN, PORT, CERT, BOTH, SILENT])


def bound(port: int, address: str, names: tuple[str, ...], sender: tuple[str, str]) -> str:
    """Facility and channel, or key and field of the issue."""
    found = ALL.bind(ALL.candidates(port, address, names), sender)
    if isinstance(found, Binding):
        return f"{found.facility.id}/{found.channel.name}"
    assert found.severity == "fatal"
    return f"{found.key} {found.where}"


@pytest.mark.parametrize(
    ("port", "address", "names", "sender", "expected"),
    [
        (2575, "10.0.0.9", (), ("LIS", "COUNTY"), "county/lis"),
        (2575, "10.0.0.9", (), (" HIS ", "COUNTY"), "county/lis"),
        (2575, "10.0.1.7", (), ("anything", "TOWN"), "town/default"),
        (2575, "fd00::17", (), ("", "TOWN"), "town/default"),
        (2575, "::ffff:10.0.1.7", (), ("", "TOWN"), "town/default"),
        (4001, "192.0.2.1", (), ("X", "PORT"), "port/own"),
        (2575, "192.0.2.1", ("clinic.example",), ("X", "CERT"), "cert/default"),
        (2575, "10.0.9.1", ("both.example",), ("X", "BOTH"), "both/default"),
        # another clinic's name on the own line
        (2575, "10.0.1.7", (), ("LIS", "COUNTY"), "foreign-facility MSH-4"),
        (4001, "10.0.1.7", (), ("", "TOWN"), "foreign-facility MSH-4"),
        (2575, "192.0.2.1", ("clinic.example",), ("X", "PORT"), "foreign-facility MSH-4"),
        # nobody's line
        (2575, "192.0.2.1", (), ("LIS", "COUNTY"), "foreign-facility MSH-4"),
        (2575, "192.0.2.1", ("both.example",), ("X", "BOTH"), "foreign-facility MSH-4"),
        (2575, "10.0.9.1", (), ("X", "BOTH"), "foreign-facility MSH-4"),
        (2575, "192.0.2.1", (), ("X", "SILENT"), "foreign-facility MSH-4"),
        (2575, "not an address", (), ("", "TOWN"), "foreign-facility MSH-4"),
        # names nobody has
        (2575, "10.0.0.9", (), ("PACS", "COUNTY"), "unknown-facility MSH-3"),
        (2575, "10.0.0.9", (), ("LIS", "NOBODY"), "unknown-facility MSH-4"),
        (2575, "10.0.0.9", (), ("LIS", ""), "unknown-facility MSH-4"),
    ],
)
def test_binds_a_connection_to_the_facility_that_both_line_and_header_name(
    port: int, address: str, names: tuple[str, ...], sender: tuple[str, str], expected: str
) -> None:
    assert bound(port, address, names, sender) == expected


def test_facilities_behind_one_address_are_told_apart_by_their_sender() -> None:
    shared = Channel(addresses=["10.1.0.1/32"])
    channels = Channels([facility("a", shared), facility("b", shared)])
    line = channels.candidates(2575, "10.1.0.1")
    found = [channels.bind(line, ("", name)) for name in ("A", "B")]
    assert [f.facility.id for f in found if isinstance(f, Binding)] == ["a", "b"]


def test_the_most_specific_channel_of_a_facility_is_the_one_meant() -> None:
    one = facility(
        "one",
        Channel(name="any", addresses=["10.0.0.0/8"]),
        Channel(name="tls", addresses=["10.0.0.0/8"], certificate="x"),
    )
    channels = Channels([one])
    found = channels.bind(channels.candidates(2575, "10.0.0.1", ("x",)), ("", "ONE"))
    assert isinstance(found, Binding)
    assert found.channel.name == "tls"


def test_one_sender_of_two_facilities_on_one_line_is_refused() -> None:
    same = (Sender(facility="SAME"),)
    shared = Channel(addresses=["10.1.0.1/32"])
    channels = Channels([facility("a", shared, senders=same), facility("b", shared, senders=same)])
    found = channels.bind(channels.candidates(2575, "10.1.0.1"), ("", "SAME"))
    assert isinstance(found, Issue)
    assert found.key == "unknown-facility"


def test_contradicting_profiles_are_named() -> None:
    with pytest.raises(ChannelError, match=r"port 4001 belongs to a and b"):
        Channels([facility("a", Channel(port=4001)), facility("b", Channel(port=4001))])
    with pytest.raises(ChannelError, match=r"facility a, channel default: '10\.0\.0\.300/8'"):
        Channels([facility("a", Channel(addresses=["10.0.0.300/8"]))])


def test_lists_the_ports_to_listen_on() -> None:
    two = facility("two", Channel(name="x", port=4003), Channel(name="y", port=4002), Channel(name="z"))
    assert listeners({f.id: SimpleNamespace(facility=f) for f in (PORT, two, COUNTY)}) == [4001, 4002, 4003]
