"""``make fuzz``: damaged messages through reading, peeking and converting for FUZZ_SECONDS of CPU time (hypothesis; docs/fuzzing.md).

A target is a list of sound files and a function that may raise Unreadable and nothing else. Add a format with one row of ``TARGETS``.
A finding is shrunk by hypothesis, printed with its bytes, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from xml.sax.saxutils import escape

import xlsxwriter
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from lxml import etree

from adapters.contract import Unreadable
from adapters.convert import convert, peek, recognise, split
from adapters.dicom import package
from adapters.payload import encoded
from conformance import validator
from fhir_server.api import soap_envelope, soap_schema
from fhir_server.errors import Fault
from mappings.profile import Profile, load_profiles

HERE = Path(__file__).parent
_ROUND = 400
"""Examples between two looks at the clock."""
_SLOWEST = 5.0
"""Seconds of CPU time one damaged message of a few kilobytes may take."""

_BITS = (
    b"|", b"^", b"~", b"\\", b"&", b"\r", b"\n", b"\r\n", b"\x0b", b"\x1c\r", b"\0", b"\xef\xbb\xbf", b'""', b"MSH|^~\\&|",
    b"MSH", b"PID|", b"OBR|", b"OBX|", b"ORC|", b"SPM|", b"NTE|", b"DSC|", b"ADD|", b"FHS|", b"BTS|", b"MRG|", b"TXA|", b"ED",
    b"SN", b"NM", b"NA", b"\\X", b"\\X0D\\", b"\\.br\\", b"\\E\\", b"\x81\x30\x81\x30", b"\xb0\xa1", b"\xff\xfe", b"20240230",
    b"99999999999999", b"-0", b"1E400", b"1e-99999", "↑".encode(), "阳性".encode(), "≥1:160".encode(), b"9" * 60, b"A" * 300,
    b"~" * 40, b"^" * 40, b"<", b">", b"&amp;", b"</section>", b"<entry>", b'code=""', b'value="', b"nullFlavor",
    b"<!DOCTYPE a>", b"<!--",
    b"DE04.30.015.00", b"xsi:type", b"]]>", b"<![CDATA[", b"s:mustUnderstand=",
    b"&#0;", b",", b'"', b"UNICODE UTF-8", b"GB18030", b"8859/1",
)  # fmt: skip
"""What a damage puts in: delimiters, segment ids, escapes, parts of characters, odd numbers and dates."""


@dataclass(frozen=True, slots=True)
class Target:
    """``seeds``: the sound files; ``run``: reads one input."""

    seeds: Callable[[], list[bytes]]
    run: Callable[[bytes, Profile], None]


def hl7v2(raw: bytes, profile: Profile) -> None:
    """Split, peek and convert; what is converted is valid FHIR; peek and conversion agree about control runs."""
    for message in split(io.BytesIO(raw)):
        try:
            envelope = peek(message, profile)
            conversion = convert(message, profile)
        except Unreadable as refused:
            assert refused.issue.key and refused.issue.text
            continue
        assert envelope.quality_control == conversion.quality_control or conversion.held is not None
        faults = [
            i for e in conversion.entries for i in validator.check(e.resource) if i.severity in ("error", "fatal")
        ]
        assert not faults, faults[:3]
        for issue in conversion.issues:
            assert issue.key and issue.text
    try:
        convert(raw, profile)
    except Unreadable:
        return


def documents(raw: bytes, profile: Profile) -> None:
    """CDA, ECG and tables: recognised, split, peeked at and converted; what is converted is valid FHIR."""
    kind = recognise(raw, profile)
    if kind == "hl7v2":
        return
    for message in split(io.BytesIO(raw), kind, profile):
        try:
            peek(message, profile, kind)
            conversion = convert(message, profile, kind)
        except Unreadable as refused:
            assert refused.issue.key and refused.issue.text
            continue
        faults = [
            i for e in conversion.entries for i in validator.check(e.resource) if i.severity in ("error", "fatal")
        ]
        assert conversion.held is not None or not faults, faults[:3]


def images(raw: bytes, profile: Profile) -> None:
    """DICOM objects and study packages, whatever the first bytes have become; the header of what is taken ends before the pixels."""
    try:
        peek(raw, profile, "dicom")
        conversion = convert(raw, profile, "dicom", "2026-03-09T00:00:00Z")
        for one in package.unpack(raw):
            assert one.startswith(package.header_bytes(one))
    except Unreadable as refused:
        assert refused.issue.key and refused.issue.text
        return
    faults = [i for e in conversion.entries for i in validator.check(e.resource) if i.severity in ("error", "fatal")]
    assert conversion.held is not None or not faults, faults[:3]


def soap(raw: bytes, profile: Profile) -> None:
    """Envelopes: a Fault or a call; the payload, wherever it stands, is read as a document; answers and faults are XML."""
    try:
        call = soap_envelope.read(raw)
        for name in soap_schema.OPERATIONS:
            if call.operation == name:
                documents(encoded(soap_envelope.values(call.body, name).get("payload", "")), profile)
        for element in call.body:
            documents(encoded(soap_envelope.payload(element)), profile)
    except Fault as fault:
        for version in ("1.1", "1.2"):
            status, answer = soap_envelope.fault(version, fault)
            assert status >= HTTPStatus.BAD_REQUEST
            etree.fromstring(answer)
        return
    etree.fromstring(soap_envelope.text_answer(call.version, "urn:x", "R", "r", call.operation))


def _files(pattern: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(HERE.parent.glob(pattern))]


def _tables() -> list[bytes]:
    """The golden tables, and each as a workbook, as JSON lines and as XML."""
    out = _files("mappings/golden/table-*.csv")
    for raw in _files("mappings/golden/table-*.csv"):
        rows = [line.split(",") for line in raw.decode("gb18030").splitlines()]
        named = [dict(zip(rows[0], row, strict=False)) for row in rows[1:]]
        book = io.BytesIO()
        with xlsxwriter.Workbook(book, {"in_memory": True}) as made:
            sheet = made.add_worksheet()
            for number, row in enumerate(rows):
                sheet.write_row(number, 0, row)
        out.append(book.getvalue())
        out.append("\n".join(json.dumps(row, ensure_ascii=False) for row in named).encode())
        cells = ("".join(f"<{n}>{v}</{n}>" for n, v in row.items() if n) for row in named)
        out.append(f"<rows>{''.join(f'<row>{c}</row>' for c in cells)}</rows>".encode())
    return out


def _envelopes() -> list[bytes]:
    """Golden messages in SOAP envelopes of both versions: escaped, as CDATA, as an element, in base64; and calls of every operation."""
    out = []
    spaces = ("http://schemas.xmlsoap.org/soap/envelope/", "http://www.w3.org/2003/05/soap-envelope")
    token = (
        '<w:Security xmlns:w="http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd" s:mustUnderstand="1">'
        "<w:UsernameToken><w:Username>u</w:Username><w:Password>p</w:Password></w:UsernameToken></w:Security>"
    )
    messages = [
        m.decode("utf-8", "replace") for m in _files("mappings/golden/*.hl7")[:6] + _files("mappings/golden/c*.xml")[:3]
    ]
    bodies = []
    for text in messages:
        wrapped = [escape(text), f"<![CDATA[{text}]]>", base64.b64encode(text.encode()).decode()]
        wrapped += [text.partition("?>")[2] or text] if text.startswith("<") else []
        bodies += [f"<t:Submit><t:payload>{w}</t:payload><t:format>cda</t:format></t:Submit>" for w in wrapped]
    for name in soap_schema.OPERATIONS[1:]:
        inner = "".join(f"<t:{p.tag}>{1 if p.kind == 'long' else 'x'}</t:{p.tag}>" for p in soap_schema.TYPES[name])
        bodies.append(f"<t:{name}>{inner}</t:{name}>")
    for number, body in enumerate(bodies):
        head = (
            f'<s:Envelope xmlns:s="{spaces[number % 2]}" xmlns:t="{soap_schema.NAMESPACE}"><s:Header>{token}</s:Header>'
        )
        out.append(f"{head}<s:Body>{body}</s:Body></s:Envelope>".encode())
    return out


TARGETS = {
    "hl7v2": Target(lambda: _files("mappings/golden/*.hl7"), hl7v2),
    "cda": Target(lambda: _files("mappings/golden/c*.xml"), documents),
    "aecg": Target(lambda: _files("mappings/golden/ecg-aecg*.xml"), documents),
    "muse": Target(lambda: _files("mappings/golden/ecg-muse*.xml"), documents),
    "philips": Target(lambda: _files("mappings/golden/ecg-philips*.xml"), documents),
    "tables": Target(_tables, documents),
    "dicom": Target(lambda: _files("mappings/golden/dicom-*.dcm") + _files("mappings/golden/dicom-*.study"), images),
    "soap": Target(_envelopes, soap),
}


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A sound message with one to six damages."""
    out = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.integers(0, 7))
        at = draw(st.integers(0, max(len(out) - 1, 0)))
        end = min(len(out), at + draw(st.integers(0, 60)))
        if kind == 0:
            del out[at:]
        elif kind == 1:
            out[at:at] = draw(st.sampled_from(_BITS))
        elif kind == 2:
            out[at:end] = draw(st.sampled_from(_BITS))
        elif kind == 3:
            del out[at:end]
        elif kind == 4:
            out[at:at] = out[at:end] * draw(st.integers(1, 8))
        elif kind == 5:
            out[at:end] = draw(st.binary(max_size=12))
        elif kind == 6:
            # The same length as before: what follows stays where lengths say it is.
            put = draw(st.binary(min_size=1, max_size=4))
            out[at : at + len(put)] = put
        else:
            other = draw(st.sampled_from(seeds))
            cut = draw(st.integers(0, len(other)))
            out[at:end] = other[cut : cut + 400]
    return bytes(out)


def fuzz(target: Target, seconds: float, first_seed: int) -> int:
    """Runs until ``seconds`` of CPU time are used; gives the number of inputs. Raises what a finding raised, after shrinking."""
    seeds = target.seeds()
    profiles = dict(load_profiles())
    profiles = {**profiles, **load_profiles(HERE.parent / "mappings" / "golden" / "profiles")}
    every = ["generic", *(name for name in profiles if name != "generic")]
    count = 0

    def once(raw: bytes, profile: str) -> None:
        nonlocal count
        count += 1
        began = time.process_time()
        target.run(raw, profiles[profile])
        assert time.process_time() - began < _SLOWEST

    until = time.process_time() + seconds
    number = first_seed
    while time.process_time() < until:
        rounds = settings(
            max_examples=_ROUND,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        )
        seed(number)(rounds(given(damaged(seeds), st.sampled_from(every))(once)))()
        number += 1
    return count


def main() -> int:
    """FUZZ_SECONDS (default 600) of CPU time over all targets; ``--seed`` repeats a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("targets", nargs="*", default=list(TARGETS))
    chosen = parser.parse_args()
    seconds = float(os.environ.get("FUZZ_SECONDS", "600")) / len(chosen.targets)
    for name in chosen.targets:
        count = fuzz(TARGETS[name], seconds, chosen.seed)
        sys.stdout.write(f"{name}: {count} inputs in {seconds:.0f} CPU seconds, seed {chosen.seed}, nothing found\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
