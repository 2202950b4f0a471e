"""DiagnosticReport, Observation, Specimen -> ORC, OBR, OBX, NTE, SPM (HL7 v2.5.1 chapters 4.5 and 7.4)."""

from __future__ import annotations

from typing import Any

from conformance import systems
from mappings.annotations import REPORT_NOTE
from mappings.conclusion import headed
from mappings.documents import VALUE_ATTACHMENT
from mappings.outbound import value
from mappings.outbound.dialect import Dialect
from mappings.outbound.line import Line, trimmed
from mappings.outbound.parent import put_parent
from mappings.outbound.people import (
    Resources,
    address,
    cnn,
    ei,
    identifier_code,
    notes,
    performer,
    practitioner,
    resolve,
    xon,
)
from mappings.outbound.specimen import specimen
from mappings.source import Element
from mappings.units import Unit

_ANALYSED = "http://hl7.org/fhir/StructureDefinition/observation-analysis-date-time"
_ABNORMAL_TEST = "http://hl7.org/fhir/StructureDefinition/observation-nature-of-abnormal-test"
_SECTION = systems.V2 + "0074"
_TYPE_OF_RESULT = systems.V2 + "0936"
_CONCLUSION: Element = ("结论", "结论", "L")
"""OBX-3 of a conclusion no result of the report says."""


class Result:
    """Writes the reports of one Bundle. ``orders``: the receiver's own ServiceRequests; their numbers are the ones it knows."""

    def __init__(self, resources: Resources, orders: list[dict[str, Any]], dialect: Dialect) -> None:
        self._resources = resources
        self._orders = orders
        self._dialect = dialect
        self._groups = 0

    # --- reports -----------------------------------------------------------------------------------------------------------

    def report(self, report: dict[str, Any]) -> list[Line]:
        """ORC, OBR, NTE, OBX with NTE, SPM. Results of several specimens get an OBR each, so that it is clear which is from which."""
        observations = [o for r in report.get("result", ()) if (o := resolve(r, self._resources)) is not None]
        named = [r.get("reference", "") for r in report.get("specimen", ())]
        named += [o["specimen"]["reference"] for o in observations if "reference" in o.get("specimen", {})]
        specimens = [s for r in dict.fromkeys(named) if (s := resolve({"reference": r}, self._resources)) is not None]
        if len(specimens) < 2:
            return self._group(report, observations, specimens, first=True)
        out: list[Line] = []
        loose = [o for o in observations if not _specimen_of(o)]
        if loose:
            out += self._group(report, loose, [], first=True)
        for one in specimens:
            mine = [o for o in observations if _specimen_of(o) == f"Specimen/{one['id']}"]
            out += self._group(report, mine, [one], first=not out)
        return out

    def alone(self, observation: dict[str, Any]) -> list[Line]:
        """A result without a report: an OBR with its own code."""
        report: dict[str, Any] = {
            k: observation[k] for k in ("code", "effectiveDateTime", "issued", "basedOn") if k in observation
        }
        report["status"] = observation.get("status", "unknown")
        found = resolve(observation.get("specimen", {}), self._resources)
        return self._group(report, [observation], [found] if found else [], first=True)

    def _group(
        self,
        report: dict[str, Any],
        observations: list[dict[str, Any]],
        specimens: list[dict[str, Any]],
        *,
        first: bool,
    ) -> list[Line]:
        self._groups += 1
        orc, obr = self._order(report)
        put_parent(obr, observations)
        out = [orc, obr]
        if first:
            said = [e["valueAnnotation"] for e in report.get("extension", ()) if e["url"] == REPORT_NOTE]
            out += notes(said, self._resources, self._dialect)
        number = 0
        day = _day(report)
        narrative = "conclusion" in report
        for observation in observations:
            for line in self._observation(observation, day, narrative):
                if line.name == "OBX":
                    number += 1
                    line.put(1, str(number))
                out.append(line)
        for line in self._rest(report, observations) if first else ():
            number += 1
            line.put(1, str(number))
            out.append(line)
        out += [specimen(n, s, self._dialect) for n, s in enumerate(specimens, 1)]
        return out

    def _order(self, report: dict[str, Any]) -> tuple[Line, Line]:
        d = self._dialect
        orc, obr = Line("ORC"), Line("OBR")
        numbers = {identifier_code(i): i for i in reversed(report.get("identifier", ())) if i.get("value")}
        request = next((r for b in report.get("basedOn", ()) if (r := resolve(b, self._resources))), {})
        own = self._own(numbers.get("PLAC"))
        placer = own or numbers.get("PLAC")
        orc.put(1, "RE")
        obr.put(1, str(self._groups))
        for line in (orc, obr):
            line.put(2, ei(placer, "placer", d) if placer else ())
            line.put(3, ei(numbers["FILL"], "filler", d) if "FILL" in numbers else ())
        orc.put(4, ei(numbers["PGN"], "group", d) if "PGN" in numbers else ())
        obr.put(4, d.order_code(report.get("code", {}), _day(report)))
        period = report.get("effectivePeriod", {})
        obr.put(7, d.time(report.get("effectiveDateTime", "") or period.get("start", "")))
        obr.put(8, d.time(period.get("end", "")))
        self._asked(request, orc, obr)
        obr.put(22, d.time(report.get("issued", "")))
        sections = (c for category in report.get("category", ()) for c in category.get("coding", ()))
        obr.put(24, next((c.get("code", "") for c in sections if c.get("system") == _SECTION), ""))
        obr.put(25, d.report_status(report.get("status", "unknown")))
        interpreters = [cnn(r, self._resources, d) for r in report.get("resultsInterpreter", ())]
        obr.put(32, *interpreters)
        for field, role in ((34, "TN"), (35, "TR")):
            obr.put(field, *(cnn(r, self._resources, d) for r in report.get("performer", ()) if self._role(r) == role))
        return orc, obr

    def _own(self, placer: dict[str, Any] | None) -> dict[str, Any] | None:
        """The receiver's own placer number of the order, when it has an order with this number."""
        for order in self._orders if placer else ():
            for identifier in order.get("identifier", ()):
                if placer and identifier_code(identifier) == "PLAC" and identifier.get("value") == placer["value"]:
                    return dict(identifier)
        return None

    def _asked(self, request: dict[str, Any], orc: Line, obr: Line) -> None:
        """Who ordered: ORC-12 and OBR-16 the person, ORC-21 the facility."""
        asker = request.get("requester", {})
        who = practitioner(asker, self._resources, self._dialect)
        orc.put(12, who)
        obr.put(16, who)
        employer = asker if not who else (resolve(asker, self._resources) or {}).get("organization", {})
        if employer:
            orc.put(21, xon(employer, self._resources, self._dialect))

    def _role(self, reference: dict[str, Any]) -> str:
        found = resolve(reference, self._resources) or {}
        return next((c.get("code", "") for r in found.get("code", ()) for c in r.get("coding", ())), "")

    # --- results -----------------------------------------------------------------------------------------------------------

    def _observation(self, observation: dict[str, Any], day: str, narrative: bool) -> list[Line]:
        d = self._dialect
        line = Line("OBX")
        code, own = d.test_code(observation.get("code", {}), day)
        unit = value.unit_element(observation)
        ranges = value.range_text(observation)
        read = d.receiver.units.coded(*_triplet(unit)) if unit else None
        context = value.Context(
            d, read or Unit("", None) if unit else None, ranges, self._expected(observation, own), narrative
        )
        components = observation.get("component", [])
        together = all(c.get("code") == observation.get("code") for c in components)
        kind, values = value.write(observation, context)
        if components and together:
            kind, values = value.write_components(components, context) or (kind, values)
        line.put(2, kind)
        line.put(3, code)
        line.put(4, _sub_id(observation))
        line.put(5, *values)
        line.put(6, unit)
        line.put(7, (ranges,))
        line.put(8, *(self._flag(i) for i in observation.get("interpretation", ())))
        abnormal = (e["valueCodeableConcept"] for e in observation.get("extension", ()) if e["url"] == _ABNORMAL_TEST)
        line.put(10, *(c["coding"][0]["code"] for c in abnormal if c.get("coding")))
        line.put(11, self._status(observation))
        line.put(14, d.time(observation.get("effectiveDateTime", "")))
        self._performers(observation, line)
        if "method" in observation:
            line.put(17, d.coded(observation["method"], "methods"))
        device = observation.get("device", {}).get("identifier", {})
        line.put(18, ei(device, "device", d) if device.get("value") else ())
        analysed = (e["valueDateTime"] for e in observation.get("extension", ()) if e["url"] == _ANALYSED)
        line.put(19, *map(d.time, analysed))
        if "bodySite" in observation:
            line.put(20, d.coded(observation["bodySite"], "BodySite"))
        own_numbers = [i for i in observation.get("identifier", ()) if i.get("value")]
        line.put(21, ei(own_numbers[0], "filler", d) if own_numbers else ())
        kinds = (c for category in observation.get("category", ()) for c in category.get("coding", ()))
        line.put(29, next((c.get("code", "") for c in kinds if c.get("system") == _TYPE_OF_RESULT), ""))
        out = [line, *notes(observation.get("note", ()), self._resources, d)]
        files = [e["valueAttachment"] for e in observation.get("extension", ()) if e["url"] == VALUE_ATTACHMENT]
        if files:
            kind, elements = self._files(files)
            line.put(2, kind)
            line.put(5, *elements)
        if components and not together:
            out += [part for c in components for part in self._part(observation, c, day)]
        return out

    def _part(self, observation: dict[str, Any], component: dict[str, Any], day: str) -> list[Line]:
        """A component with a code of its own: a result below the first, with the same status and time."""
        shared = ("status", "effectiveDateTime", "performer", "specimen", "extension")
        whole = {k: observation[k] for k in shared if k in observation}
        return self._observation({**whole, **component}, day, narrative=False)

    def _expected(self, observation: dict[str, Any], own: Any) -> str:
        """The unit the reader expects of the test: with it a number that came as text is a number."""
        if own is not None:
            return str(own.unit)
        receiver = self._dialect.receiver
        if receiver.id != self._dialect.sender.id:
            return ""
        item = next(
            (c["code"] for c in observation.get("code", {}).get("coding", ()) if c.get("system") == systems.ITEMS), ""
        )
        known = receiver.catalogue.items.get(item)
        return known.unit if known is not None else ""

    def _flag(self, concept: dict[str, Any]) -> Element:
        """OBX-8. A flag without a code the receiver has a word for is written as the laboratory's own text."""
        codes = [
            c["code"] for c in concept.get("coding", ()) if c.get("system") == systems.INTERPRETATION and "code" in c
        ]
        text = concept.get("text", "")
        for code in codes:
            word = self._dialect.flag(code, text if len(codes) == 1 else "")
            if word:
                return (word,)
        return (text,) if not codes else ("", text)

    def _status(self, observation: dict[str, Any]) -> str:
        status = observation.get("status", "unknown")
        reasons = (c.get("code") for c in observation.get("dataAbsentReason", {}).get("coding", ()))
        if (
            status == "cancelled"
            and "not-asked" in reasons
            and "N" not in self._dialect.receiver.facility.observation_status
        ):
            return "N"
        return self._dialect.observation_status(status)

    def _performers(self, observation: dict[str, Any], line: Line) -> None:
        for who in observation.get("performer", ()):
            if str(who.get("reference", "")).startswith("Organization/"):
                field, element = performer(who, self._resources, self._dialect)
                if field == 23 and field not in line.fields:
                    line.put(24, address(who, self._resources))
            elif self._role(who) == "MDIR":
                field, element = 25, practitioner(who, self._resources, self._dialect)
            else:
                field, element = 16, practitioner(who, self._resources, self._dialect)
            if field == 16 or field not in line.fields:
                line.put(field, *line.fields.get(field, ()), element)

    # --- attachments and conclusion ----------------------------------------------------------------------------------------

    def _files(self, files: list[dict[str, Any]]) -> tuple[str, list[Element]]:
        """Attachments -> ED with the data, or RP with the address when the data is not in the Bundle."""
        elements: list[Element] = []
        kinds = set()
        for attachment in files:
            media = attachment.get("contentType", "application/octet-stream").partition(";")[0].strip()
            kind, _, subtype = media.partition("/")
            binary = resolve({"reference": attachment.get("url", "")}, self._resources) or {}
            data = attachment.get("data") or binary.get("data")
            kinds.add("ED" if data else "RP")
            elements.append(
                ("", kind, subtype, "Base64", data) if data else trimmed(attachment.get("url", ""), "", kind, subtype)
            )
        return ("ED" if "ED" in kinds else "RP"), elements

    def _rest(self, report: dict[str, Any], observations: list[dict[str, Any]]) -> list[Line]:
        """What the report itself holds and no result says: files, and a conclusion."""
        out: list[Line] = []
        written = {
            e["valueAttachment"].get("url")
            for o in observations
            for e in o.get("extension", ())
            if e["url"] == VALUE_ATTACHMENT
        }
        texts = [o["valueString"] for o in observations if "valueString" in o]
        for form in report.get("presentedForm", ()):
            if form.get("url") in written and form.get("url"):
                continue
            kind, elements = self._files([form])
            line = Line("OBX")
            line.put(2, kind)
            line.put(3, trimmed(form.get("title", "") or "报告", form.get("title", "") or "报告", "L"))
            line.put(5, *elements)
            line.put(
                11,
                self._dialect.observation_status(_OBX_STATUS.get(report.get("status", ""), report.get("status", ""))),
            )
            out.append(line)
        conclusion = report.get("conclusion", "")
        if (
            conclusion
            and conclusion not in ("\n".join(texts), *texts)
            and not all(p in texts for p in conclusion.split("\n"))
            and conclusion != "\n".join(headed(texts)).strip()
        ):
            line = Line("OBX")
            line.put(2, "FT" if "\n" in conclusion else "TX")
            line.put(3, _CONCLUSION)
            line.put(5, (conclusion,))
            line.put(
                11,
                self._dialect.observation_status(_OBX_STATUS.get(report.get("status", ""), report.get("status", ""))),
            )
            out.append(line)
        return out


_OBX_STATUS = {"partial": "preliminary", "appended": "corrected"}
"""DiagnosticReport.status -> Observation.status where the code systems differ."""


def _day(report: dict[str, Any]) -> str:
    taken = report.get("effectiveDateTime", "") or report.get("effectivePeriod", {}).get("start", "")
    return str(taken or report.get("issued", ""))[:10]


def _specimen_of(observation: dict[str, Any]) -> str:
    return str(observation.get("specimen", {}).get("reference", ""))


def _sub_id(observation: dict[str, Any]) -> Element:
    names = ("original-sub-identifier", "group", "sequence", "identifier")
    for extension in observation.get("extension", ()):
        if extension["url"] == systems.SUB_ID:
            parts = {p["url"]: p.get("valueString", "") for p in extension.get("extension", ())}
            return trimmed(*(parts.get(n, "") for n in names))
    return ()


def _triplet(unit: Element) -> tuple[str, str, str]:
    parts = [c if isinstance(c, str) else "&".join(c) for c in (*unit, "", "", "")]
    return parts[0], parts[1], parts[2]
