"""Is a result message a quality-control run? Then it is kept apart and never a patient's result.

Signs, any of which is enough: MSH-16 tells the kind of result (analysers in China write 1 calibration, 2 control there), every SPM-11
names a control role (HL7 table 0369), there is no PID at all, or PID-3 fits the facility's own control patients.
A header that runs on into its PID (the sender wrote something else than a carriage return between them) has a patient.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mappings.facility import Facility
from mappings.source import Record, part, text

RESULTS = ("ORU", "OUL", "RPT")
_RUN_KINDS = frozenset(("1", "2"))
# Table 0369: B blind sample, C calibrator, E electronic QC, F and O proficiency testing, Q control specimen, V verifying calibrator.
_CONTROL_ROLES = frozenset("BCEFOQV")


def is_quality_control(records: Sequence[Record], facility: Facility) -> bool:
    """True when the message (its MSH, PID and SPM records suffice) is a quality-control run of the facility."""
    patterns = facility.quality_control_patients
    patients = 0
    roles: list[str] = []
    for record in records:
        if record.name == "MSH":
            if not record.first(9).startswith(RESULTS) and not record.first(9, 3).startswith(RESULTS):
                return False
            if record.first(16).strip() in _RUN_KINDS:
                return True
            if record.first(14).strip():
                # The rest of a message (section 2.10.2): its PID stands in the part before it.
                return False
        elif record.name == "PID":
            patients += 1
            if patterns and any(re.search(p, part(element, 1)) for element in record.get(3) for p in patterns):
                return True
        elif record.name == "SPM":
            roles.append(record.first(11).strip().upper())
    return (not patients and not _unparted(records)) or (bool(roles) and _CONTROL_ROLES.issuperset(roles))


def _unparted(records: Sequence[Record]) -> bool:
    r"""Whether a field of the header ends with the name of the next segment (``\rPID|``, ``<br>PID|``)."""
    headers = (r for r in records if r.name == "MSH")
    return any(text(r.get(n)[-1][-1]).rstrip().endswith("PID") for r in headers for n in r.filled())
