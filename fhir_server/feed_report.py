"""The score card for people and programs: tables in the terminal, JSON, one page of HTML that loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape as plain
from rich.table import Table

from conformance import fhirjson
from fhir_server.feed_card import Card, Counts, Verdict, meets

SHOWN = 15
"""Rows of a list in the terminal; the page and JSON have more."""
ON_PAGE = 200
_BAR = {
    "accepted": ("Messages accepted (neither refused nor held)", "被接收的消息（未拒收、未搁置）"),
    "structure": ("Messages with all required segments and fields", "必备段和字段齐全的消息"),
    "fields_read": ("Filled fields that are read", "有内容且被读取的字段"),
    "codes_mapped": ("Results whose code is mapped", "项目代码已对照的结果"),
    "units_known": ("Results whose unit is known", "单位已识别的结果"),
    "ids_valid": ("Resident ID numbers that are valid", "校验码正确的居民身份证号"),
    "times_zoned": ("Times with a zone", "带时区的时间"),
    "results_ordered": ("Result order numbers with an order", "有对应申请的结果单号"),
    "control_ids": ("Messages whose control id is new", "控制号不重复的消息"),
}


@dataclass(frozen=True, slots=True)
class _List:
    """One list of the card: key in JSON, titles, columns, rows with the count last but one example."""

    key: str
    title: tuple[str, str]
    columns: tuple[tuple[str, str], ...]
    rows: Sequence[tuple[str, ...]]
    others: int = 0


def _rows(counts: Counts) -> list[tuple[str, ...]]:
    return [(*key, str(n)) for key, n in sorted(counts.items(), key=lambda kv: (-kv[1], kv[0]))]


def _with_example(counts: Counts, card: Card, mark: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    rows = sorted(counts.items(), key=lambda kv: (-kv[1], kv[0]))
    return [(*key, str(n), card.examples.get((*mark, *key), "")) for key, n in rows]


_NUMBERS = frozenset({"count", "filled", "read", "share", "messages", "readable"})
_COUNT = ("count", "次数")
_CODE = (("local code", "本地代码"), ("local name", "本地名称"))
_FIRST = ("first seen", "首次出现")


def _lists(card: Card) -> list[_List]:
    place = ("place", "位置")
    segments = []
    for (segment,), filled in sorted(card.filled.items()):
        unread = card.unread[segment,]
        segments.append((segment, str(filled), str(filled - unread), f"{(filled - unread) / filled:.1%}"))
    deviations = _with_example(card.deviations, card)
    return [
        _List("reasons", ("Refused or held, and why", "拒收或搁置的原因"), (("reason", "原因"), place, _COUNT, _FIRST),
              _with_example(card.reasons, card, ("reason",)), card.reasons.others),
        _List("structure", ("Against the HL7 standard of the message's version", "与消息所称版本 HL7 标准的偏差"),
              (("kind", "类别"), place, ("expected", "应为"), ("strength", "强度"), _COUNT, _FIRST), deviations,
              card.deviations.others),
        _List("segments", ("Fields read, by segment", "各段字段读取率"),
              (("segment", "段"), ("filled", "有内容"), ("read", "已读取"), ("share", "比例")), segments),
        _List("unread", ("Fields nobody reads", "未读取的字段"), (place, _COUNT), _rows(card.unread_places),
              card.unread_places.others),
        _List("unmapped_codes", ("Unmapped test codes", "未对照的项目代码"), (*_CODE, ("unit", "单位"), _COUNT),
              _rows(card.unmapped_codes), card.unmapped_codes.others),
        _List("unmapped_orders", ("Unmapped order codes", "未对照的申请代码"), (*_CODE, _COUNT), _rows(card.unmapped_orders),
              card.unmapped_orders.others),
        _List("unknown_units", ("Unknown units", "未识别的单位"), (("unit", "单位"), _COUNT), _rows(card.unknown_units),
              card.unknown_units.others),
        _List("bad_identifiers", ("Resident ID numbers that are not valid", "无效的居民身份证号"),
              (place, ("what is wrong", "问题"), _COUNT), _rows(card.bad_identifiers)),
        _List("times_without_zone", ("Times without a zone", "不带时区的时间"), (place, _COUNT), _rows(card.zoneless)),
        _List("issues", ("All issues of conversion", "转换时的全部问题"), (("issue", "问题"), ("severity", "严重程度"), _COUNT),
              _rows(card.issues)),
        _List("types", ("Messages", "消息类型"), (("type", "类型"), _COUNT), _rows(card.types)),
        _List("versions", ("HL7 versions", "HL7 版本"), (("MSH-12", "MSH-12"), _COUNT), _rows(card.versions)),
        _List("charsets", ("Character sets", "字符集"), (("charset", "字符集"), _COUNT), _rows(card.charsets)),
    ]  # fmt: skip


def _facts(card: Card) -> list[tuple[str, str, int]]:
    return [
        ("messages", "消息", card.messages),
        ("unreadable", "无法读取", card.unreadable),
        ("refused", "将被拒收", card.refused),
        ("held", "将被搁置", card.held),
        ("quality control runs", "质控", card.quality_control),
        ("control ids seen before", "控制号重复", card.duplicates),
        ("of them with other content", "其中内容不同", card.reused),
        ("orders", "申请单号", card.orders),
        ("orders without result", "有申请无结果", card.orders_without_result),
        ("results without order", "有结果无申请", card.results_without_order),
        ("of them without any order number", "其中完全无单号", card.numberless),
    ]


def as_json(card: Card, verdicts: Sequence[Verdict]) -> bytes:
    """Everything as one JSON object; shares 0 to 1, null when the files cannot tell."""
    out: dict[str, Any] = {
        "facility": card.facility,
        "meets_bar": meets(card, list(verdicts)),
        "bar": [
            {"name": v.name, "share": None if v.share is None else round(v.share, 4), "good": v.good, "of": v.whole,
             "at_least": v.at_least, "met": v.met} for v in verdicts
        ],
        "files": [{"name": f.name, "messages": f.messages, "readable": f.readable} for f in card.files],
        "counts": {english.replace(" ", "_"): n for english, _, n in _facts(card)},
        "messages_with_deviations": card.deviating,
    }  # fmt: skip
    for part in _lists(card):
        names = [english.replace(" ", "_") for english, _ in part.columns]
        out[part.key] = [
            {n: int(cell) if n in ("count", "filled", "read") else cell for n, cell in zip(names, row, strict=True)}
            for row in part.rows
        ]
        if part.others:
            out[f"{part.key}_not_listed"] = part.others
    return fhirjson.dumps(out, pretty=True) + b"\n"


def _clean(cell: str) -> str:
    """Without what a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in cell)


def show(console: Console, card: Card, verdicts: Sequence[Verdict]) -> None:
    """Tables in the terminal, the longest lists cut to SHOWN rows."""
    head = f"Feed of {card.facility}: {card.messages} messages in {len(card.files)} files"
    console.print(head, style="bold", highlight=False)
    table = Table(box=box.SIMPLE)
    for name in ("go-live bar 上线标准", "share", "count", "bar", ""):
        table.add_column(name, justify="right" if name in _NUMBERS else "left")
    for v in verdicts:
        met = "[green]ok[/]" if v.met else "[red]below[/]"
        share = "-" if v.share is None else f"{v.share:.1%}"
        judged = (f"{v.at_least:.1%}", met) if v.at_least and v.whole else ("", "")
        table.add_row("\n".join(_BAR[v.name]), share, f"{v.good}/{v.whole}", *judged)
    console.print(table)
    console.print("; ".join(f"{english} {n}" for english, _, n in _facts(card) if n), highlight=False)
    empty = [f.name for f in card.files if not f.readable]
    if empty:
        console.print(f"Files without a readable message: {_clean(', '.join(empty))}", markup=False, highlight=False)
    for part in _lists(card):
        if part.rows:
            console.print(" ".join(part.title), style="bold", highlight=False)
            console.print(_table(part))
            if len(part.rows) > SHOWN:
                console.print(f"  and {len(part.rows) - SHOWN} more rows: --json or --html", highlight=False)
    verdict = meets(card, list(verdicts))
    console.print(
        "[green]The feed meets the go-live bar. 达到上线标准。[/]"
        if verdict
        else "[red]The feed does not meet the go-live bar. 未达到上线标准。[/]"
    )


def _table(part: _List) -> Table:
    table = Table(box=box.SIMPLE)
    for english, _ in part.columns:
        table.add_column(english, justify="right" if english in _NUMBERS else "left", overflow="fold")
    for row in part.rows[:SHOWN]:
        table.add_row(*(plain(_clean(cell)) for cell in row))
    return table


_STYLE = """
body{font:15px/1.5 system-ui,"Noto Sans CJK SC","Microsoft YaHei",sans-serif;color:#1b1f24}
body{margin:0 auto;max-width:1180px;padding:16px 24px}
h1{font-size:22px;margin:0 0 4px}h2{font-size:17px;margin:28px 0 6px}small,.zh{color:#57606a}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:4px 10px;border-bottom:1px solid #d8dee4;vertical-align:top}
th{background:#f6f8fa;font-weight:600}td{overflow-wrap:anywhere}td.n,th.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
.ok{color:#116329}.below{color:#a40e26}.verdict{font-size:18px;font-weight:600;margin:12px 0;padding:10px 14px;border-left:6px solid}
.facts{display:flex;flex-wrap:wrap;gap:6px 22px;margin:12px 0}.facts b{font-variant-numeric:tabular-nums}
@media print{body{max-width:none;padding:0}}
"""


def as_html(card: Card, verdicts: Sequence[Verdict], made: datetime) -> bytes:
    """One page that stands by itself. made: when the check was run, with a zone."""
    good = meets(card, list(verdicts))
    sign = "ok" if good else "below"
    said = ("The feed meets the go-live bar.", "达到上线标准。")
    if not good:
        said = ("The feed does not meet the go-live bar.", "未达到上线标准。")
    bar = [
        (*_BAR[v.name], "–" if v.share is None else f"{v.share:.1%}", f"{v.good} / {v.whole}",
         f"≥ {v.at_least:.1%}" if v.at_least and v.whole else "–",
         "" if not (v.at_least and v.whole) else "✓ 达标 met" if v.met else "✗ 未达标 not met")
        for v in verdicts
    ]  # fmt: skip
    body = [
        f"<h1>Feed score card 数据接入评分卡：{escape(card.facility)}</h1>",
        f"<small>{made:%Y-%m-%d %H:%M %z} · {card.messages} messages 条消息 · {len(card.files)} files 个文件</small>",
        f'<p class="verdict {sign}">{said[1]} {said[0]}</p>',
        "<h2>Go-live bar 上线标准</h2>",
        _html_bar(bar),
        '<div class="facts">' + "".join(f"<span>{zh} {en} <b>{n}</b></span>" for en, zh, n in _facts(card)) + "</div>",
    ]
    for part in _lists(card):
        body += [f"<h2>{escape(part.title[1])} {escape(part.title[0])}</h2>", _html_list(part)]
    files = [(f.name, str(f.messages), str(f.readable)) for f in card.files]
    columns = (("file", "文件"), ("messages", "消息"), ("readable", "可读"))
    body += ["<h2>文件 Files</h2>", _html_list(_List("files", ("", ""), columns, files))]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(card.facility)}</title>'
    return (
        f'<!doctype html><html lang="zh-CN"><head>{head}<style>{_STYLE}</style></head><body>{"".join(body)}</body></html>\n'
    ).encode("utf-8", "replace")


def _html_bar(rows: Iterable[Sequence[str]]) -> str:
    out = [
        "<table><tr><th>指标 Measure</th><th class=n>比例 Share</th><th class=n>计数 Count</th><th class=n>标准 Bar</th><th></th></tr>"
    ]
    for english, chinese, share, count, bar, met in rows:
        sign = "ok" if met.startswith("✓") else "below"
        out.append(
            f'<tr><td>{chinese}<br><span class="zh">{english}</span></td><td class=n>{share}</td><td class=n>{count}</td>'
            f'<td class=n>{bar}</td><td class="{sign}">{met}</td></tr>'
        )
    return "".join(out) + "</table>"


def _html_list(part: _List) -> str:
    if not part.rows:
        return "<p class=zh>无 None</p>"
    numbers = [english in _NUMBERS for english, _ in part.columns]
    mark = [" class=n" if number else "" for number in numbers]
    heads = "".join(f"<th{m}>{zh} {en}</th>" for m, (en, zh) in zip(mark, part.columns, strict=True))
    lines = [
        "<tr>" + "".join(f"<td{m}>{escape(_clean(cell))}</td>" for m, cell in zip(mark, row, strict=True)) + "</tr>"
        for row in part.rows[:ON_PAGE]
    ]
    rest = len(part.rows) - ON_PAGE
    more = f"<p class=zh>另有 {rest} 行（见 --json） and {rest} more rows (see --json)</p>" if rest > 0 else ""
    return f"<table><tr>{heads}</tr>{''.join(lines)}</table>{more}"
