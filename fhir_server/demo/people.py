"""Invented people. Identity numbers use an area code that was never assigned (339999), so they belong to nobody."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import date, timedelta

from mappings.resident_id import check_character

AREA = "339999"
_FAMILY = "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董萧程曹袁邓许傅沈曾彭吕"
_COMPOUND = ("欧阳", "司马", "上官", "诸葛")
_GIVEN = "伟芳娜秀英敏静丽强磊军洋勇艳杰娟涛明超霞平刚桂兰玉萍红梅建国华文斌宇浩凯辉鑫琳雪倩"
_RARE = ("邹㛃", "赵䶮", "古丽·买买提", "李𬭎")  # last: outside the BMP, four bytes in GB18030


@dataclass(frozen=True, slots=True)
class Person:
    """One invented person. sex: GB/T 2261.1 code, ``1`` male, ``2`` female. resident_id: empty for those without one."""

    number: int
    name: str
    sex: str
    birth: date
    resident_id: str
    phone: str


def _name(rng: random.Random, number: int) -> str:
    if number < len(_RARE):
        return _RARE[number]
    family = rng.choice(_COMPOUND) if rng.random() < 0.03 else rng.choice(_FAMILY)
    return family + "".join(rng.sample(_GIVEN, 1 if rng.random() < 0.2 else 2))


def population(size: int, rng: random.Random, today: date) -> list[Person]:
    """``size`` people; one in twenty has no identity number (newborns, people who left the card at home)."""
    people: list[Person] = []
    for number in range(size):
        sex = rng.choice("12")
        birth = today - timedelta(days=rng.randrange(2 * 365, 88 * 365))
        body = f"{AREA}{birth:%Y%m%d}{rng.randrange(50) * 20 + number % 10 * 2 + (sex == '1'):03d}"
        resident_id = "" if number % 20 == 19 else body + check_character(body)
        people.append(Person(number, _name(rng, number), sex, birth, resident_id, f"1{rng.randrange(10**10):010d}"))
    return people
