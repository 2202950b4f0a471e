"""Checks ``destinations`` of a facility profile at load: what cannot be reached or understood is said then, with file, line and key."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from mappings.facility import Destination, Facility
from mappings.peer_files import Wrong, resolved

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|[0-9A-Fa-f:]{2,39}")


def checked(facility: Facility, folder: Path, wrong: Wrong) -> Facility:
    """The facility with the files of its destinations as absolute paths; faults are told to ``wrong``."""
    names: set[str] = set()
    out = []
    for index, destination in enumerate(facility.destinations):
        here = ("destinations", index)
        if destination.name in names:
            wrong((*here, "name"), f"{destination.name!r} stands twice")
        names.add(destination.name)
        _check_address(destination, here, wrong)
        _check_form(destination, here, wrong)
        out.append(destination.model_copy(update=resolved(destination, folder, here, wrong)))
    return facility.model_copy(update={"destinations": out}) if out else facility


def _check_address(destination: Destination, here: tuple[str | int, ...], wrong: Wrong) -> None:
    if bool(destination.host) == bool(destination.url):
        wrong(here, "needs either host and port (MLLP) or url (HTTP)")
    if destination.host:
        if not _HOST.fullmatch(destination.host):
            wrong((*here, "host"), f"{destination.host!r} is not a host name or address")
        if not 1 <= destination.port <= 65535:
            wrong((*here, "port"), "is not a port (1 to 65535)")
    if destination.url:
        try:
            parts = urlsplit(destination.url)
            known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
            hidden = "@" in parts.netloc or bool(parts.fragment)
        except ValueError:
            known, hidden = False, False
        if not known or hidden or any(c.isspace() for c in destination.url):
            wrong(
                (*here, "url"), f"{destination.url!r} is not an http or https address (without user name and fragment)"
            )
        if destination.tls or destination.port:
            wrong(here, "tls and port belong to MLLP; an https address says both")


def _check_form(destination: Destination, here: tuple[str | int, ...], wrong: Wrong) -> None:
    marks = destination.separators
    if (
        not 5 <= len(marks) <= 6
        or len(set(marks)) != len(marks)
        or any(not 33 <= ord(c) <= 126 or c.isalnum() for c in marks)
    ):
        wrong(
            (*here, "separators"),
            "five different punctuation marks are needed: field, component, repetition, escape, sub-component",
        )
    if destination.content != "hl7v2" and not destination.url:
        wrong((*here, "content"), f"{'a FHIR Bundle' if destination.content == 'fhir' else 'JSON'} goes to a url")
    if destination.key and not destination.certificate:
        wrong((*here, "key"), "is of no use without certificate")
    if (destination.ca or destination.certificate) and not (destination.tls or destination.url.startswith("https:")):
        wrong((*here, "ca" if destination.ca else "certificate"), "needs tls: true or an https address")
    if destination.token_file and not destination.url.startswith("https:"):
        wrong((*here, "token_file"), "a token is only sent over https")
    if destination.retry.longest_seconds < destination.retry.first_seconds:
        wrong((*here, "retry", "longest_seconds"), "is shorter than first_seconds")
