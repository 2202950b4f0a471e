"""Hospital levels. Sources: 医院分级管理 (three 级, 特甲乙丙等); Hangzhou (zjnews 2021-10-18) and Ganzhou (notice) level rules."""

from __future__ import annotations

import pytest

from fhir_server.recognition import levels
from fhir_server.recognition.levels import LevelRule, read


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("三级特等", (3, 4)),
        ("三级甲等", (3, 3)),
        ("三甲", (3, 3)),
        ("三甲医院", (3, 3)),
        ("３A", (3, 3)),
        ("三级(未定等)", (3, 0)),
        ("三级", (3, 0)),
        ("二级乙等", (2, 2)),
        ("一级", (1, 0)),
        ("乡镇卫生院", (0, 0)),
        ("村卫生室", (0, 0)),
        ("三级甲等综合医院", (3, 3)),
        ("二级甲等中医医院", (2, 3)),
        ("二级妇幼保健院", (2, 0)),
        ("一级乡镇卫生院", (1, 0)),
        ("二级及以上", None),
        ("", None),
        ("大医院", None),
    ],
)
def test_a_level_is_read_as_it_is_written(text: str, level: tuple[int, int] | None) -> None:
    assert read(text) == level


def test_any_rule_that_allows_is_enough_and_an_unknown_level_is_unknown() -> None:
    rules = (LevelRule(performing="same"), LevelRule(performing="higher"))
    assert levels.allowed(rules, "二级甲等", "三级甲等") is True
    assert levels.allowed(rules, "三级甲等", "二级甲等") is False
    assert levels.allowed(rules, "", "三级甲等") is None
