"""WSDL 1.1 with a SOAP 1.1 and a SOAP 1.2 binding, document/literal wrapped (WS-I Basic Profile 1.1): made from a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from lxml import etree

from fhir_server.api.soap_schema import Part

_WSDL: Final = "http://schemas.xmlsoap.org/wsdl/"
_XSD: Final = "http://www.w3.org/2001/XMLSchema"
_HTTP: Final = "http://schemas.xmlsoap.org/soap/http"
_BINDINGS: Final = (
    ("Soap11", "http://schemas.xmlsoap.org/wsdl/soap/"),
    ("Soap12", "http://schemas.xmlsoap.org/wsdl/soap12/"),
)


def wsdl(namespace: str, operations: Sequence[str], types: Mapping[str, tuple[Part, ...]], address: str) -> bytes:
    """The description of a service at an absolute address; every operation has its type and ``<operation>Response`` in ``types``."""
    root = etree.Element(
        f"{{{_WSDL}}}definitions",
        {"name": "Tongjian", "targetNamespace": namespace},
        nsmap={None: _WSDL, "xsd": _XSD, "tns": namespace, "soap": _BINDINGS[0][1], "soap12": _BINDINGS[1][1]},
    )
    within = etree.SubElement(root, f"{{{_WSDL}}}types")
    schema = etree.SubElement(
        within, f"{{{_XSD}}}schema", {"targetNamespace": namespace, "elementFormDefault": "qualified"}
    )
    wrappers = {name for o in operations for name in (o, f"{o}Response")}
    for name, parts in types.items():
        if name in wrappers:
            element = etree.SubElement(schema, f"{{{_XSD}}}element", {"name": name})
            described = etree.SubElement(element, f"{{{_XSD}}}complexType")
        else:
            described = etree.SubElement(schema, f"{{{_XSD}}}complexType", {"name": name})
        order = etree.SubElement(described, f"{{{_XSD}}}sequence")
        for part in parts:
            kind = f"tns:{part.kind}" if part.kind in types else f"xsd:{part.kind}"
            least, most = "1" if part.needed else "0", "unbounded" if part.many else "1"
            etree.SubElement(
                order, f"{{{_XSD}}}element", {"name": part.tag, "type": kind, "minOccurs": least, "maxOccurs": most}
            )
    for name in sorted(wrappers):
        message = etree.SubElement(root, f"{{{_WSDL}}}message", {"name": name})
        etree.SubElement(message, f"{{{_WSDL}}}part", {"name": "parameters", "element": f"tns:{name}"})
    port = etree.SubElement(root, f"{{{_WSDL}}}portType", {"name": "TongjianPort"})
    for operation in operations:
        offered = etree.SubElement(port, f"{{{_WSDL}}}operation", {"name": operation})
        etree.SubElement(offered, f"{{{_WSDL}}}input", {"message": f"tns:{operation}"})
        etree.SubElement(offered, f"{{{_WSDL}}}output", {"message": f"tns:{operation}Response"})
    for name, soap in _BINDINGS:
        binding = etree.SubElement(root, f"{{{_WSDL}}}binding", {"name": name, "type": "tns:TongjianPort"})
        etree.SubElement(binding, f"{{{soap}}}binding", {"style": "document", "transport": _HTTP})
        for operation in operations:
            bound = etree.SubElement(binding, f"{{{_WSDL}}}operation", {"name": operation})
            etree.SubElement(bound, f"{{{soap}}}operation", {"soapAction": f"{namespace}/{operation}"})
            for side in ("input", "output"):
                inner = etree.SubElement(bound, f"{{{_WSDL}}}{side}")
                etree.SubElement(inner, f"{{{soap}}}body", {"use": "literal"})
    service = etree.SubElement(root, f"{{{_WSDL}}}service", {"name": "Tongjian"})
    for name, soap in _BINDINGS:
        served = etree.SubElement(service, f"{{{_WSDL}}}port", {"name": name, "binding": f"tns:{name}"})
        etree.SubElement(served, f"{{{soap}}}address", {"location": address})
    out: bytes = etree.tostring(root, xml_declaration=True, encoding="utf-8")
    return out
