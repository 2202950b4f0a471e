"""A message that came as text inside another format (a SOAP payload, a JSON string) -> the bytes its reader expects.

The text is written in the character set it declares itself (MSH-18, the XML declaration), so that the bytes kept say what they are;
in UTF-8 when it declares none or one that cannot hold it, and then an XML declaration says UTF-8. Some clients send the bytes of the
document in base64 (xsd:base64Binary, ``byte[]``): no message reads like that, so it is taken out of it.
"""

from __future__ import annotations

import binascii
import re
from typing import Final

from adapters.charset import codec_named
from adapters.dicom.signature import is_dicom

_DECLARED: Final = re.compile(r"""(\s*<\?xml\b[^>]{0,200}?encoding\s*=\s*["'])([A-Za-z0-9._-]{1,40})(["'])""")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/\s]{16,}(?:=\s*){0,2}")
_STARTS: Final = (b"MSH", b"FHS", b"BHS", b"<", b"{", b"PK\x03\x04", b"\x0bMSH")


def encoded(text: str) -> bytes:
    """The bytes of a message. Half characters, which no message can hold, become question marks."""
    if _BASE64.fullmatch(text) and (inner := _from_base64(text)):
        return inner
    found = _DECLARED.match(text)
    declared = found[2] if found else _msh_18(text)
    codec = codec_named(declared) if declared else None
    if codec and codec not in ("unicode", "utf-8") and not codec.startswith(("utf-16", "utf-32")):
        try:
            return text.encode(codec)
        except UnicodeEncodeError:
            codec = None
    if found and codec != "utf-8":
        text = f"{found[1]}UTF-8{found[3]}{text[found.end() :]}"
    return text.encode("utf-8", "replace")


def _msh_18(text: str) -> str:
    """The first repetition of MSH-18; empty for what is no HL7 v2 message."""
    start = text.lstrip("\ufeff\x0b \t\r\n")
    if not start.startswith("MSH") or len(start) < 9:
        return ""
    fields = re.split(r"[\r\n]", start, maxsplit=1)[0].split(start[3])
    # MSH-1 is the separator itself: MSH-18 is the eighteenth part.
    return fields[17].split(start[5])[0].strip() if len(fields) > 17 else ""


def _from_base64(text: str) -> bytes:
    """The document; empty when the text is not base64 of something that starts like one."""
    try:
        raw = binascii.a2b_base64("".join(text.split()), strict_mode=True)
    except binascii.Error:
        return b""
    start = raw[:200].removeprefix(b"\xef\xbb\xbf").lstrip()
    return raw if start.startswith(_STARTS) or is_dicom(raw) else b""
