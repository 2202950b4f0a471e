"""Qualitative results and fillers: words a laboratory writes where a number could stand, and what is sure about them.

Codes are v3 ObservationInterpretation (http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation) and data-absent-reason.
Texts are compared in the spelling of ``mappings.numbers.level``.
"""

from __future__ import annotations

import re
from functools import lru_cache

CODED_WORDS = {
    "NEG": ("阴性", "(-)", "阴性(-)", "阴性-", "-阴性", "(-)阴性", "NEG", "NEGATIVE", "NEG(-)", "NEGATIVE(-)"),
    "POS": ("阳性", "(+)", "阳性(+)", "阳性+", "+阳性", "(+)阳性", "POS", "POSITIVE", "POS(+)", "POSITIVE(+)"),
    "ND": ("未检出", "未检测到", "NOT DETECTED", "UNDETECTED"),
    "DET": ("检出", "已检出", "DETECTED"),
    "NR": ("无反应", "无反应性", "非反应性", "NON-REACTIVE", "NONREACTIVE", "NON REACTIVE"),
    "RR": ("有反应性", "反应性", "REACTIVE"),
}
"""v3 ObservationInterpretation code -> ways to write exactly that."""
_CODE_OF = {word: code for code, words in CODED_WORDS.items() for word in words}
DISPLAY = {
    "NEG": "Negative", "POS": "Positive", "ND": "Not detected", "DET": "Detected", "NR": "Non-reactive", "RR": "Reactive",
}  # fmt: skip
# A grade, not a finding everybody reads alike ("1+" may also be "1 and above"): text only, no coding.
_GRADE = re.compile(
    r"(?:弱阳性|强阳性|可疑|可疑阳性|临界|灰区|微量|TRACE|WEAK(?:LY)? (?:POSITIVE|REACTIVE)|BORDERLINE|EQUIVOCAL|INDETERMINATE|"
    r"[-+]|\+{2,4}|[1-4]\+|\+[1-4]|±|\+-|\+/-|-/\+)?(?:\((?:[-+]|\+{2,4}|[1-4]\+|\+[1-4]|±|\+-)\))?"
)
_NOTHING = re.compile(
    r"(?:-{2,}|_+|\.{2,}|/+|(?=.*\*)[*\s]+(?:\.[*\s]*)?|#+|N\.?/?A\.?|NULL|空|无结果|无数据)", re.IGNORECASE
)
_FAILED = re.compile(r"[*#]")
_ELSEWHERE = re.compile(
    r"[(]?(?:详?见(?:备注|附注|报告|报告单|附件|图|图文|图文报告|纸质报告)|SEE (?:NOTE|COMMENT|REPORT)S?)[)]?",
    re.IGNORECASE,
)
_NOT_DONE = re.compile(r"(?:未做|未测|未检|未检测|未执行|NOT DONE|NOT PERFORMED)", re.IGNORECASE)
_PENDING = re.compile(r"(?:待测|待查|待检|待报|待复查|检测中|PENDING|IN PROGRESS)", re.IGNORECASE)


@lru_cache(maxsize=4096)
def absence(bare: str) -> str:
    """data-absent-reason code when the text says that there is no value (http://hl7.org/fhir/R4/valueset-data-absent-reason.html)."""
    if _NOTHING.fullmatch(bare):
        return "error" if _FAILED.search(bare) else "unknown"
    if _ELSEWHERE.fullmatch(bare):
        return "as-text"
    if _NOT_DONE.fullmatch(bare):
        return "not-performed"
    return "temp-unknown" if _PENDING.fullmatch(bare) else ""


@lru_cache(maxsize=4096)
def finding(bare: str) -> str:
    """Interpretation code of a qualitative result, ``grade`` when it is one without a sure code, empty when it is none."""
    tight = bare.upper().replace(" (", "(").replace("( ", "(").replace(" )", ")")
    if code := _CODE_OF.get(tight):
        return code
    return "grade" if tight and _GRADE.fullmatch(tight) else ""
