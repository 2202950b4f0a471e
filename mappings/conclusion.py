"""The doctor's conclusion of a report in words, kept apart from the findings it rests on (DiagnosticReport.conclusion).

Two habits: one OBX for each part of the report, told by its name or the suffix of its code (``PATH&IMP``, HL7 v2.5.1 section 7.2.4); or
the whole report as lines of text, where headings tell (``检查所见：... 诊断意见：...``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from mappings.datatypes import plain
from mappings.findings import absence
from mappings.source import Record, text

_CONCLUSIONS = frozenset(
    {
        "检查结论", "检查提示", "诊断意见", "诊断结论", "诊断提示", "影像诊断", "超声提示", "印象", "结论", "主观提示", "检查诊断",
        "病理诊断", "超声诊断", "超声印象", "心电图诊断", "内镜诊断", "镜检诊断", "放射诊断", "影像学诊断", "诊断结果",
        "检验结论", "诊断",
        "impression", "conclusion", "diagnosis", "final diagnosis", "imp", "19005-8", "22637-3", "121072", "121073", "121076",
        "121077", "de04.50.130", "de04.50.132",
    }
)  # fmt: skip
"""Names and codes of the result that is the doctor's conclusion, not the finding."""

_FINDINGS = frozenset(
    {
        "检查所见", "影像所见", "影像表现", "超声所见", "超声描述", "镜下所见", "肉眼所见", "内镜所见", "镜检所见",
        "大体所见", "大体检查", "检查描述",
        "影像描述", "描述", "所见", "放射所见", "临床诊断", "临床资料", "临床病史", "病史", "检查部位",
        "检查方法", "检查技术", "检查项目", "送检材料", "客观所见", "de04.50.131",
        "标本", "补充报告", "建议", "备注",
        "findings", "finding", "gross", "gross description", "microscopic", "microscopic description", "history", "clinical history",
        "technique", "comparison", "gdt", "59776-5", "18782-3", "22634-0", "22635-7", "121070", "121071",
    }
)  # fmt: skip
"""Names and codes of the parts of a report that are no conclusion."""
_HEADINGS = "|".join(sorted(map(re.escape, _CONCLUSIONS | _FINDINGS), key=len, reverse=True))
_HEADING = re.compile(
    rf"(?:(?<=^)|(?<=[\s。；;，,]))[【\[〔]?({_HEADINGS})(?:[】\]〕]\s*[：:]?|\s*[：:])\s*",
    re.IGNORECASE | re.MULTILINE,
)


def of(records: Sequence[Record], texts_alone: bool, measured: Collection[int]) -> str:
    """The conclusion, or empty text.

    records      OBX of the order
    texts_alone  the report is nothing but text (TX, FT): without a named conclusion its headings tell, else it is its own conclusion
    measured     ``id`` of records that hold a number or a finding
    """
    said: list[str] = []
    for record in records:
        if not record.get(3) or record.first(2).upper() not in ("TX", "FT", "ST") or id(record) in measured:
            continue
        if _names(record) & _CONCLUSIONS:
            said += _lines(record)
    if not said and texts_alone:
        rest = [line for record in records if not _names(record) & _FINDINGS for line in _lines(record)]
        said = headed(rest)
    # A stroke or dashes in the place of words ("/", "----", "***") is no conclusion.
    if all(line.strip() in ("", '""') or absence(line.strip()) in ("unknown", "error") for line in said):
        return ""
    return "\n".join(line for line in said if line != '""').strip()


def headed(lines: list[str]) -> list[str]:
    """The parts under headings of conclusions; all lines when there is no heading at all."""
    whole = "\n".join(lines)
    found = list(_HEADING.finditer(whole))
    if not found:
        return lines
    ends = [*(heading.start() for heading in found[1:]), len(whole)]
    parts = zip(found, ends, strict=True)
    return [whole[h.end() : end].strip() for h, end in parts if h[1].casefold() in _CONCLUSIONS]


def _lines(record: Record) -> list[str]:
    return ["^".join(text(c) for c in element) for element in record.get(5)]


def _names(record: Record) -> set[str]:
    """Code and name of OBX-3, and the suffix of a code."""
    written = [plain(record.get(3)[0], n).casefold() for n in (1, 2, 4, 5)] if record.get(3) else []
    return {name for w in written for name in (w, w.rpartition("&")[2])}
