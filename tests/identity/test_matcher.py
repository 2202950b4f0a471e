"""fhir_server.identity.matcher: only what agrees in everything is certain."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance.systems import RESIDENT_ID
from fhir_server.identity.matcher import certain_key, facts, judge, normalise_name

# GB 11643-1999 gives this number as its example: born 1949-12-31, even sequence: female.
EXAMPLE = "11010519491231002X"
# Invented: the same with an odd sequence (male); check characters by the standard's own weights.
MALE = "110105194912310011"


def patient(**change: Any) -> dict[str, Any]:
    out = {
        "resourceType": "Patient",
        "identifier": [{"system": RESIDENT_ID, "value": EXAMPLE}],
        "name": [{"text": "阿依古丽·买买提"}],
        "gender": "female",
        "birthDate": "1949-12-31",
    }
    out.update(change)
    return {k: v for k, v in out.items() if v is not None}


def number(value: str, **more: str) -> list[dict[str, str]]:
    return [{"system": RESIDENT_ID, "value": value, **more}]


def verdict(**change: Any) -> tuple[str, str]:
    found = judge(facts(patient()), facts(patient(**change)))
    assert found == judge(facts(patient(**change)), facts(patient()))
    return found.grade, found.reason


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"name": [{"text": "阿依古丽 • 买买提"}]},
        {"name": [{"text": "阿依古丽买买提"}]},
        {"name": [{"family": "阿依古丽", "given": ["买买提"]}]},
        {"name": [{"text": "AYIGULI"}, {"text": "阿依古丽．买买提", "use": "official"}]},
        {"name": [{"text": "AYIGULI MAIMAITI", "use": "official"}, {"text": "阿依古丽・买买提", "use": "usual"}]},
        {"identifier": number("11010519491231002x")},
        {"identifier": number("１１０１０５１９４９１２３１００２Ｘ")},
        {"identifier": [*number(EXAMPLE), {"system": "urn:other", "value": "1"}, *number(MALE, use="old")]},
    ],
)
def test_the_same_number_name_sex_and_birth_date_are_certain(change: dict[str, Any]) -> None:
    assert verdict(**change) == ("certain", "agrees")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"name": [{"text": "阿依古丽·吐尔逊"}]}, ("possible", "name-differs")),
        ({"birthDate": "1949-12-30"}, ("possible", "birth-differs")),
        ({"gender": "male"}, ("possible", "sex-differs")),
        ({"gender": "unknown"}, ("probable", "missing-sex")),
        ({"gender": "other"}, ("probable", "missing-sex")),
        ({"gender": None}, ("probable", "missing-sex")),
        ({"birthDate": None}, ("probable", "missing-birth")),
        ({"birthDate": "1949-12"}, ("probable", "missing-birth")),
        ({"name": None}, ("probable", "missing-name")),
        ({"name": [{"text": "阿依古丽·买买提之女"}]}, ("possible", "newborn")),
        ({"name": [{"text": "阿依古?·买买提"}]}, ("possible", "name-unreadable")),
        ({"name": [{"text": "无名氏"}]}, ("possible", "name-unknown")),
        # no number, a number with a wrong check character, the old form without one, two numbers
        ({"identifier": None}, ("possible", "no-resident-id")),
        ({"identifier": number("110105194912310021")}, ("possible", "no-resident-id")),
        ({"identifier": number("110105491231002")}, ("possible", "no-resident-id")),
        ({"identifier": [*number(EXAMPLE), *number(MALE)]}, ("possible", "no-resident-id")),
        ({"identifier": None, "birthDate": None}, ("possible", "missing-birth")),
        # known to be somebody else
        ({"identifier": number(MALE)}, ("certainly-not", "resident-id-differs")),
        ({"identifier": None, "birthDate": "1980-01-01"}, ("certainly-not", "birth-differs")),
        ({"identifier": None, "name": [{"text": "李四"}]}, ("certainly-not", "name-differs")),
    ],
)
def test_anything_less_is_not_certain(change: dict[str, Any], expected: tuple[str, str]) -> None:
    assert verdict(**change) == expected


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"birthDate": "2020-05-05"}, "id-birth-differs"), ({"gender": "male"}, "id-sex-differs")],
)
def test_two_records_that_agree_against_their_own_number_are_not_certain(change: dict[str, Any], reason: str) -> None:
    child = facts(patient(**change))
    found = judge(child, child)
    assert (found.grade, found.reason) == ("possible", reason)
    assert certain_key(child) is None


@pytest.mark.parametrize(
    "name",
    [
        "王芳之子",
        "王芳之女",
        "王芳之婴",
        "王芳之大双",
        "王芳之子2",
        "王芳之男婴",
        "王芳 之 长女",
        "婴儿",
        "新生儿王",
        "Baby Wang",
        "王Baby",
    ],
)
def test_newborns_are_never_matched_by_themselves(name: str) -> None:
    newborn = facts(patient(name=[{"text": name}]))
    assert judge(newborn, newborn).reason == "newborn"
    assert certain_key(newborn) is None


def test_a_name_without_width_case_or_spaces() -> None:
    assert normalise_name(" Ｗａｎｇ　jian-Guo ") == "wangjianguo"
    assert normalise_name("欧阳\u200b修") == "欧阳修"


_PATIENTS = st.builds(
    lambda identifier, name, gender, birth: facts(
        patient(
            identifier=identifier and number(identifier), name=name and [{"text": name}], gender=gender, birthDate=birth
        )
    ),
    st.sampled_from([EXAMPLE, MALE, None]),
    st.sampled_from(["张三", "张 三", "李四", "张三之子", None]),
    st.sampled_from(["male", "female", None]),
    st.sampled_from(["1949-12-31", "1950-01-01", None]),
)


@given(_PATIENTS, _PATIENTS, _PATIENTS)
def test_certain_is_symmetric_transitive_and_the_same_as_an_equal_key(a: Any, b: Any, c: Any) -> None:
    assert judge(a, b) == judge(b, a)
    certain = judge(a, b).grade == "certain"
    assert certain == (certain_key(a) is not None and certain_key(a) == certain_key(b))
    if certain and judge(b, c).grade == "certain":
        assert judge(a, c).grade == "certain"
