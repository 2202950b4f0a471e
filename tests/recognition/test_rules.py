"""Rules: what is loaded, which policy holds, and how a wrong file is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fhir_server.recognition import rules as module
from fhir_server.recognition.criteria import JUDGES
from fhir_server.recognition.rules import Mode, Rules, RulesError
from mappings import catalogue


def test_ships_the_six_lawful_reasons_and_only_the_sixth_needs_words(rules: Rules) -> None:
    # 国卫医发〔2022〕6号, the closed list of six circumstances.
    assert list(rules.reasons) == ["1", "2", "3", "4", "5", "6"]
    assert [code for code, reason in rules.reasons.items() if reason.text_required] == ["6"]


def test_names_for_every_criterion_what_it_rests_on(rules: Rules) -> None:
    assert set(rules.articles) == set(JUDGES)
    assert all(a.citation and a.text and a.source for a in rules.articles.values())


def test_rules_of_this_project_do_not_claim_an_article(rules: Rules) -> None:
    assert all("国卫" not in a.citation for a in rules.articles.values() if not a.found)


def test_a_facility_of_a_consortium_gets_the_consortium_policy_and_others_the_general_one(rules: Rules) -> None:
    assert rules.policy_of("county").id == "consortium"
    assert rules.policy_of("loner").id == "general"
    assert rules.policy_of("never heard of").id == "general"


def test_a_policy_that_names_a_consortium_comes_before_the_one_for_all(rules: Rules) -> None:
    special = rules.policies[0].model_copy(update={"id": "special", "consortia": ("c2",)})
    changed = replace(rules, policies=(*rules.policies, special))
    assert changed.policy_of("town").id == "special"
    assert changed.policy_of("county").id == "consortium"


def test_identity_and_finality_cannot_be_switched_off(rules: Rules) -> None:
    for policy in rules.policies:
        for name in ("identity", "received", "final", "mapped", "item"):
            assert policy.mode(name) is Mode.REQUIRED


def test_the_version_changes_with_the_policy_and_with_the_catalogue(tmp_path: Path) -> None:
    folder = tmp_path / "catalogue"
    shutil.copytree(catalogue.DIRECTORY, folder)
    first = module.load(folder).version
    assert first == module.load().version
    policy = folder / "policy.yaml"
    policy.write_text(policy.read_text("utf-8").replace("time_base: effective", "time_base: issued", 1), "utf-8")
    second = module.load(folder).version
    items = folder / "orderables.csv"
    items.write_text(items.read_text("utf-8").replace("CBC,lab,血常规", "CBC,lab,血细胞分析", 1), "utf-8")
    assert len({first, second, module.load(folder).version}) == 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("unit: required", "unit: maybe"), "policies.0.criteria.unit"),
        (("      unit: required\n", ""), "unit"),
        (("time_base: effective", "time_base: someday"), "policies.0.time_base"),
        (("reasons:", "raisons:"), "raisons"),
        (("policies:", "policies: ["), "policy.yaml"),
    ],
)
def test_a_wrong_policy_file_is_refused_naming_file_and_key(
    tmp_path: Path, change: tuple[str, str], named: str
) -> None:
    folder = tmp_path / "catalogue"
    shutil.copytree(catalogue.DIRECTORY, folder)
    policy = folder / "policy.yaml"
    policy.write_text(policy.read_text("utf-8").replace(*change, 1), "utf-8")
    with pytest.raises(RulesError) as fault:
        module.load(folder)
    assert "policy.yaml" in str(fault.value)
    assert named in str(fault.value)


def test_a_rules_folder_is_laid_file_by_file_over_the_shipped_rules(tmp_path: Path) -> None:
    """A consortium keeps only the files that are its own."""
    (tmp_path / "marks-county.csv").write_text("laboratory,item,scope\ncounty,*,national\n", encoding="utf-8")
    found, shipped = module.load(tmp_path), module.load()
    assert [m.laboratory for m in found.register.marks] == ["county"]
    assert found.items == shipped.items
    assert found.version != shipped.version
    assert found.catalogue_version == shipped.catalogue_version


def test_a_rules_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RulesError, match="is not a folder"):
        module.load(tmp_path / "nowhere")
