"""Bundle -> the segments of one ORU^R01^ORU_R01 (HL7 v2.5.1 section 7.3.1): MSH, PID, PV1, and for each report ORC to SPM.

Pure: the same Bundle and letter give the same message, to the byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from mappings.annotations import NOTE
from mappings.outbound.dialect import Dialect, sender_name
from mappings.outbound.line import Line
from mappings.outbound.people import Resources, notes, patient, visit
from mappings.outbound.result import Result
from mappings.profile import Profile


@dataclass(frozen=True, slots=True)
class Letter:
    """To whom, from whom, and what the receiver itself knows of the patient and the order.

    receiver, sender    profiles; the sender is the facility whose message the report came in
    control_id          MSH-10, at most 20 characters
    at                  MSH-7, aware
    application, facility  MSH-5, MSH-6; the receiver's own MSH-4 name when ``facility`` is empty
    charset             name of table 0211 for MSH-18
    own_patients        the receiver's own Patients that are this person
    own_orders          its own ServiceRequests that may be the order of the report
    own_visit           its own Encounter of the order
    """

    receiver: Profile
    sender: Profile
    control_id: str
    at: datetime
    application: str = ""
    facility: str = ""
    charset: str = "UNICODE UTF-8"
    own_patients: tuple[dict[str, Any], ...] = ()
    own_orders: tuple[dict[str, Any], ...] = ()
    own_visit: dict[str, Any] | None = field(default=None)


def by_reference(bundle: Mapping[str, Any]) -> Resources:
    """The resources of a Bundle by ``<type>/<id>``."""
    resources = [e["resource"] for e in bundle.get("entry", ()) if "resource" in e]
    return {f"{r['resourceType']}/{r['id']}": r for r in resources if "id" in r}


def segments(bundle: Mapping[str, Any], letter: Letter) -> list[Line]:
    """The message. The Bundle holds the reports with their results, specimens, patient, and whoever they name; what is missing is
    written by the name its reference displays."""
    resources = by_reference(bundle)
    dialect = Dialect(letter.receiver, letter.sender)
    out = [_header(letter)]
    reports = [r for r in resources.values() if r["resourceType"] == "DiagnosticReport"]
    told = {r.get("reference") for report in reports for r in report.get("result", ())}
    alone = [r for k, r in resources.items() if r["resourceType"] == "Observation" and k not in told]
    subject: dict[str, Any] = next((r.get("subject", {}) for r in (*reports, *alone)), {})
    who = resources.get(str(subject.get("reference", "")))
    if who is not None:
        out.append(patient(who, letter.own_patients, dialect))
        out += notes([e["valueAnnotation"] for e in who.get("extension", ()) if e["url"] == NOTE], resources, dialect)
    where: dict[str, Any] = next((r["encounter"] for r in (*reports, *alone) if "encounter" in r), {})
    found = letter.own_visit or resources.get(str(where.get("reference", "")))
    if found is not None:
        out.append(visit(found, resources, dialect))
    writer = Result(resources, list(letter.own_orders), dialect)
    for report in reports:
        out += writer.report(report)
    for observation in alone:
        out += writer.alone(observation)
    return out


def _header(letter: Letter) -> Line:
    """MSH from field 3 on; the delimiters are the adapter's. Original mode: the receiver answers with one acknowledgement."""
    line = Line("MSH")
    line.put(3, "TONGJIAN")
    line.put(4, (sender_name(letter.sender),))
    line.put(5, (letter.application,))
    line.put(6, (letter.facility or sender_name(letter.receiver),))
    line.put(7, letter.at.astimezone(letter.receiver.zone).strftime("%Y%m%d%H%M%S%z"))
    line.put(9, ("ORU", "R01", "ORU_R01"))
    line.put(10, letter.control_id)
    line.put(11, "P")
    line.put(12, "2.5.1")
    line.put(18, letter.charset)
    return line
