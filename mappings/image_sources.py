"""Checks ``image_sources`` and ``pacs`` of a facility profile at load: where pixels go is settled before the first image comes."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

from mappings.facility import Facility, ImageSource, Pacs
from mappings.peer_files import Wrong, resolved


def checked(facility: Facility, folder: Path, wrong: Wrong) -> Facility:
    """The facility with files and folders as absolute paths; faults are told to ``wrong``."""
    archives = {pacs.name: pacs for pacs in facility.pacs}
    if len(archives) < len(facility.pacs):
        wrong(("pacs",), "a name stands twice")
    names = [channel.name for channel in facility.channels]
    out = []
    for index, source in enumerate(facility.image_sources):
        here = ("image_sources", index)
        if source.name in names:
            wrong((*here, "name"), f"{source.name!r} stands twice among channels and image sources")
        names.append(source.name)
        _check_source(source, archives, here, wrong)
        out.append(
            source.model_copy(update={"folder": str((folder / source.folder).resolve())} if source.folder else {})
        )
    kept = [_check_pacs(pacs, folder, ("pacs", index), wrong) for index, pacs in enumerate(facility.pacs)]
    return facility.model_copy(update={"image_sources": out, "pacs": kept}) if out or kept else facility


def _check_source(source: ImageSource, archives: dict[str, Pacs], here: tuple[str | int, ...], wrong: Wrong) -> None:
    # PS3.5 section 6.2, value representation AE: no backslash, no control characters, not only spaces.
    if source.ae != source.ae.strip() or not source.ae.isascii() or not source.ae.isprintable() or "\\" in source.ae:
        wrong((*here, "ae"), f"{source.ae!r} is not an application entity title (PS3.5 section 6.2)")
    if (source.pixels == "folder") != bool(source.folder):
        wrong((*here, "folder"), "is needed with pixels: folder, and only there")
    if source.pacs and source.pacs not in archives:
        wrong((*here, "pacs"), f"{source.pacs!r} is not one of the facility's pacs")
    elif source.pixels == "forward" and not (source.pacs and archives[source.pacs].dicomweb):
        wrong((*here, "pacs"), "pixels: forward needs a pacs with a dicomweb address")
    elif source.pixels == "drop" and not source.pacs:
        wrong((*here, "pacs"), "pixels: drop is for what a PACS has already: name it")
    for number, address in enumerate(source.addresses):
        try:
            ip_network(address)
        except ValueError as fault:
            wrong((*here, "addresses", number), str(fault))


def _check_pacs(pacs: Pacs, folder: Path, here: tuple[str | int, ...], wrong: Wrong) -> Pacs:
    if pacs.poll == "qido" and not pacs.dicomweb:
        wrong((*here, "dicomweb"), "poll: qido needs the address")
    if pacs.poll == "find" and not (pacs.host and pacs.port and pacs.ae):
        wrong(here, "poll: find needs host, port and ae")
    if "@" in pacs.dicomweb.partition("//")[2].partition("/")[0]:
        wrong((*here, "dicomweb"), "carries a user name: put a token into token_file")
    if pacs.token_file and not pacs.dicomweb.startswith("https:"):
        wrong((*here, "token_file"), "a token is only sent over https")
    if pacs.key and not pacs.certificate:
        wrong((*here, "key"), "is of no use without certificate")
    return pacs.model_copy(update=resolved(pacs, folder, here, wrong))


def callers(source: ImageSource) -> Iterator[tuple[str, ...]]:
    """What may belong to one facility only: the title from each address or certificate it is bound to."""
    for place in [*source.addresses, *([source.certificate] if source.certificate else [])] or [""]:
        yield ("ae", source.ae, place)
