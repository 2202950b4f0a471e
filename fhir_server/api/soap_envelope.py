"""SOAP envelopes, 1.1 (W3C Note 2000) and 1.2 (W3C Recommendation 2007): bytes -> Call, answers and faults -> bytes.

The XML of a stranger: no DTD, entities, network or XInclude; size, depth and number limited (adapters.xmltree.strict). Attachments
(SwA, MTOM) are refused. Elements are told apart by their local names below the envelope, because old clients leave out the namespace.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from lxml import etree

from adapters import xmltree
from adapters.contract import Unreadable
from fhir_server.api.soap_schema import TYPES, Part
from fhir_server.errors import Category, Fault

Element = xmltree.Element
MAX_BYTES: Final = 9_000_000
"""libxml2 takes texts of at most 10,000,000 bytes."""
_MAX_ELEMENTS: Final = 50_000
_V11: Final = "http://schemas.xmlsoap.org/soap/envelope/"
_V12: Final = "http://www.w3.org/2003/05/soap-envelope"
_WSSE: Final = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd"
_TEXT: Final = "#PasswordText"
_ONE_DOCUMENT: Final = """The payload is one document, as text, as CDATA, in base64 or as one element; \
an attachment (xop:Include, href) is not taken."""
_NOT_XML: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_RECEIVER: Final = 500
_OURS: Final = frozenset(
    ("", "http://schemas.xmlsoap.org/soap/actor/next", f"{_V12}/role/next", f"{_V12}/role/ultimateReceiver")
)
"""Values of actor (SOAP 1.1 section 4.2.2) and role (SOAP 1.2 part 1 section 2.2) that mean whoever gets the message."""
_MUST: Final = "MustUnderstand"
_VERSION: Final = "VersionMismatch"
_ALWAYS_500: Final = (_MUST, _VERSION)
"""Fault codes that are the place in a Fault of this door; with SOAP 1.2 over HTTP too they are 500 (part 2, table 20)."""
_PLAIN: Final = (Category.UNAUTHENTICATED, Category.MEDIA_TYPE)
"""Who calls is not known, or it is no SOAP: HTTP says so itself."""


_CHINESE: Final[Mapping[Category, str]] = {
    Category.INVALID: "请求有误,请按提示修改后重发。",
    Category.UNAUTHENTICATED: "未能确认调用方身份。",
    Category.FORBIDDEN: "调用方无此权限。",
    Category.NOT_FOUND: "没有找到。",
    Category.METHOD: "不支持此操作。",
    Category.NOT_ACCEPTABLE: "不支持所要求的格式。",
    Category.TOO_SLOW: "请求超时。",
    Category.CONFLICT: "与已有内容冲突。",
    Category.GONE: "已删除。",
    Category.PRECONDITION: "前提条件不满足。",
    Category.MULTIPLE: "符合条件的不止一个。",
    Category.TOO_LARGE: "内容超过上限。",
    Category.MEDIA_TYPE: "不支持此内容类型。",
    Category.UNPROCESSABLE: "内容不能处理,请按提示修改后重发。",
    Category.TOO_COSTLY: "查询范围过大,请缩小范围后重发。",
    Category.THROTTLED: "请求过于频繁,请稍后重发。",
    Category.INTERNAL: "服务器内部错误,请联系运维人员。",
    Category.UNAVAILABLE: "服务暂不可用,请稍后重发。",
    Category.TIMEOUT: "服务超时,请稍后重发。",
}
"""What went wrong in one sentence; the English text beside it names the place."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request: SOAP version (1.1 or 1.2), the element in the body, and the UsernameToken of the header (None: none)."""

    version: str
    body: Element
    username: tuple[str, str] | None

    @property
    def operation(self) -> str:
        """Local name of the element in the body."""
        return _local(self.body)


def version_of(media: str) -> str:
    """SOAP version by the Content-Type, for faults about what cannot be read. Raises Fault MEDIA_TYPE for attachments and others."""
    kind = media.partition(";")[0].strip().lower()
    if kind == "application/soap+xml":
        return "1.2"
    if kind in ("text/xml", "application/xml"):
        return "1.1"
    if kind.startswith("multipart/") or kind == "application/xop+xml":
        text = "SOAP attachments (MTOM, SwA) are not taken; put the document into the payload as text or CDATA."
        raise Fault(Category.MEDIA_TYPE, text)
    raise Fault(Category.MEDIA_TYPE, "Send text/xml (SOAP 1.1) or application/soap+xml (SOAP 1.2).")


def read(raw: bytes) -> Call:
    """An envelope. Raises Fault INVALID, TOO_LARGE."""
    if len(raw) > MAX_BYTES:
        raise Fault(
            Category.TOO_LARGE, f"The envelope is larger than {MAX_BYTES} bytes; send the payload to /messages."
        )
    try:
        root = xmltree.strict(raw, max_elements=_MAX_ELEMENTS)
    except Unreadable as unreadable:
        raise Fault(Category.INVALID, f"{unreadable.issue.key}: {unreadable.issue.text}") from None
    space, _, name = root.tag.rpartition("}")
    versions = {_V11: "1.1", _V12: "1.2"}
    if name == "Envelope" and space[1:] not in versions:
        raise Fault(
            Category.INVALID, "The namespace of the Envelope is neither that of SOAP 1.1 nor of 1.2.", where=_VERSION
        )
    if name != "Envelope":
        raise Fault(Category.INVALID, "The document is not a SOAP envelope of version 1.1 or 1.2.", where="Envelope")
    header = root.find(f"{space}}}Header")
    body = root.find(f"{space}}}Body")
    inner = [e for e in body if isinstance(e.tag, str)] if body is not None else []
    if len(inner) != 1:
        raise Fault(Category.INVALID, "The Body has to hold one element, the operation.", where="Body")
    return Call(versions[space[1:]], inner[0], _username(header, space) if header is not None else None)


def _username(header: Element, space: str) -> tuple[str, str] | None:
    """Name and password of a WS-Security UsernameToken 1.0 with a plain password. Raises Fault for other blocks that insist."""
    found = None
    for block in header:
        if block.tag == f"{{{_WSSE}}}Security":
            token = block.find(f"{{{_WSSE}}}UsernameToken")
            password = token.find(f"{{{_WSSE}}}Password") if token is not None else None
            if token is None or password is None or not password.get("Type", _TEXT).endswith(_TEXT):
                text = "Of WS-Security only a UsernameToken with #PasswordText is taken, no digest, signature or encryption."
                raise Fault(Category.INVALID, text, where="Security")
            found = ((token.findtext(f"{{{_WSSE}}}Username") or "").strip(), (password.text or "").strip())
        elif block.get(f"{space}}}mustUnderstand", "0").strip() in ("1", "true") and _for_us(block, space):
            text = f"The header {_local(block)} must be understood and is not: send without it (basicHttpBinding, no WS-Addressing)."
            raise Fault(Category.INVALID, text, where=_MUST)
    return found


def _for_us(block: Element, space: str) -> bool:
    return (block.get(f"{space}}}actor") or block.get(f"{space}}}role") or "").strip() in _OURS


def _local(element: Element) -> str:
    return str(element.tag).rpartition("}")[2]


def values(element: Element, kind: str) -> dict[str, Any]:
    """The parts of an element as JSON values; empty elements count as left out. Raises Fault INVALID naming what is wrong."""
    parts = {p.tag: p for p in TYPES[kind]}
    out: dict[str, Any] = {}
    for child in element:
        name = _local(child)
        part = parts.get(name)
        if part is None:
            known = ", ".join(parts)
            raise Fault(Category.INVALID, f"{_local(element)} has no element {name}; it has {known}.", where=name)
        value = _value(child, part)
        if value is None:
            continue
        if part.many:
            out.setdefault(part.name, []).append(value)
        elif part.name in out:
            raise Fault(Category.INVALID, f"{name} stands twice.", where=name)
        else:
            out[part.name] = value
    for part in TYPES[kind]:
        if part.needed and part.name not in out:
            raise Fault(Category.INVALID, f"{part.tag} is missing.", where=part.tag)
    return out


def _value(element: Element, part: Part) -> Any:
    if part.kind in TYPES:
        return values(element, part.kind)
    text = payload(element) if part.name == "payload" else (element.text or "").strip()
    if not text:
        return None
    if part.kind == "boolean":
        if text not in ("true", "false", "1", "0"):
            raise Fault(Category.INVALID, f"{part.tag} is true or false.", where=part.tag)
        return text in ("true", "1")
    if part.kind == "long":
        if not text.isascii() or not text.isdecimal() or len(text) > 18:
            raise Fault(Category.INVALID, f"{part.tag} is a whole number.", where=part.tag)
        return int(text)
    return text


def payload(element: Element) -> str:
    """The document inside an element: its text (escaped or CDATA), or the XML element that stands there. Raises Fault INVALID."""
    inner = [e for e in element if isinstance(e.tag, str)]
    if element.get("href") is not None:
        raise Fault(Category.INVALID, _ONE_DOCUMENT, where=_local(element))
    if not inner:
        return (element.text or "").strip()
    beside = [element.text, *(e.tail for e in element)]
    if _local(inner[0]) == "Include" or len(inner) > 1 or any(t and t.strip() for t in beside):
        raise Fault(Category.INVALID, _ONE_DOCUMENT, where=_local(element))
    out: str = etree.tostring(inner[0], encoding="unicode", with_tail=False)
    return out


# --- answers -------------------------------------------------------------------------------------------------------------------


def media_type(version: str) -> str:
    """Content-Type of an answer."""
    return "application/soap+xml; charset=utf-8" if version == "1.2" else "text/xml; charset=utf-8"


def answer(version: str, namespace: str, name: str, content: Mapping[str, Any]) -> bytes:
    """The envelope of an answer: an element of type ``name`` of TYPES."""
    root, body = _envelope(version)
    _fill(etree.SubElement(body, f"{{{namespace}}}{name}", nsmap={None: namespace}), name, namespace, content)
    return _bytes(root)


def text_answer(version: str, namespace: str, name: str, part: str, text: str) -> bytes:
    """The envelope of a single-string web service."""
    root, body = _envelope(version)
    outer = etree.SubElement(body, f"{{{namespace}}}{name}", nsmap={None: namespace})
    etree.SubElement(outer, f"{{{namespace}}}{part}").text = _clean(text)
    return _bytes(root)


def _fill(element: Element, kind: str, namespace: str, content: Mapping[str, Any]) -> None:
    for part in TYPES[kind]:
        value = content.get(part.name)
        for one in value or () if part.many else [value]:
            if one is None:
                continue
            child = etree.SubElement(element, f"{{{namespace}}}{part.tag}")
            if part.kind in TYPES:
                _fill(child, part.kind, namespace, one)
            else:
                child.text = str(one).lower() if isinstance(one, bool) else _clean(str(one))


def fault(version: str, found: Fault) -> tuple[int, bytes]:
    """HTTP status and envelope of a fault (SOAP 1.1 section 4.4 and 6.2, SOAP 1.2 part 1 section 5.4, part 2 section 7.4.2)."""
    ours = found.category.status >= _RECEIVER
    own = found.where if found.where in _ALWAYS_500 else ""
    root, body = _envelope(version)
    if version == "1.2":
        outer = etree.SubElement(body, f"{{{_V12}}}Fault")
        code = own or ("Receiver" if ours else "Sender")
        value = etree.SubElement(etree.SubElement(outer, f"{{{_V12}}}Code"), f"{{{_V12}}}Value")
        value.text = f"env:{code}"
        text = etree.SubElement(etree.SubElement(outer, f"{{{_V12}}}Reason"), f"{{{_V12}}}Text")
        text.set("{http://www.w3.org/XML/1998/namespace}lang", "en")
        text.text = _clean(found.text)
        chinese = etree.SubElement(text.getparent(), f"{{{_V12}}}Text")
        chinese.set("{http://www.w3.org/XML/1998/namespace}lang", "zh")
        chinese.text = _CHINESE[found.category]
        detail = etree.SubElement(outer, f"{{{_V12}}}Detail")
    else:
        outer = etree.SubElement(body, f"{{{_V11}}}Fault")
        code = own or ("Server" if ours else "Client")
        etree.SubElement(outer, "faultcode").text = f"env:{code}"
        etree.SubElement(outer, "faultstring").text = _clean(f"{_CHINESE[found.category]} {found.text}")
        detail = etree.SubElement(outer, "detail")
    problem = etree.SubElement(detail, "problem", {"category": found.category.code})
    if found.where:
        problem.set("where", _clean(found.where))
    status = found.category.status
    if found.category not in _PLAIN:
        status = _RECEIVER if version == "1.1" or ours or own else 400
    return status, _bytes(root)


def _envelope(version: str) -> tuple[Element, Element]:
    space = _V12 if version == "1.2" else _V11
    root = etree.Element(f"{{{space}}}Envelope", nsmap={"env": space})
    return root, etree.SubElement(root, f"{{{space}}}Body")


def _clean(text: str) -> str:
    """Text without what XML 1.0 cannot hold."""
    return _NOT_XML.sub("\ufffd", text)


def _bytes(root: Element) -> bytes:
    out: bytes = etree.tostring(root, xml_declaration=True, encoding="utf-8")
    return out
