"""The engine as its users see it: ids that stay, statements that can be ordered, nothing lost in silence."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from adapters.convert import convert, split
from conformance import fhirjson, systems
from mappings import engine
from mappings.directory import facility_organization_id
from mappings.facility import Facility
from mappings.model import Conversion, Entry, Tier
from mappings.profile import Profile, load_profiles

GOLDEN = Path(__file__).parent / "golden"
_PROFILES = {**load_profiles(), **load_profiles(GOLDEN / "profiles")}
_PID = "PID|1||{patient}^^^HIS^PI||张^三||19491231|M"


def _convert(
    *segments: str,
    profile: str = "county-lab",
    control: str = "C1",
    sent: str = "20240318111000",
    kind: str = "ORU^R01",
) -> Conversion:
    lines = (f"MSH|^~\\&|LIS|CXYY|TJ|TJ|{sent}||{kind}|{control}|P|2.5.1", *segments)
    return convert("\r".join(lines).encode(), _PROFILES[profile])


def _of(conversion: Conversion, kind: str) -> list[Entry]:
    return [e for e in conversion.entries if e.resource["resourceType"] == kind]


def _ids(conversion: Conversion, kind: str) -> list[str]:
    return [e.resource["id"] for e in _of(conversion, kind)]


def _report(
    *results: str, patient: str = "P1", status: str = "F", at: str = "20240318110000", **more: str
) -> Conversion:
    order = f"OBR|1|PL1|F1|XCG^血常规^L|||20240318093000|||||||||||||||{at}|||{status}"
    return _convert(_PID.format(patient=patient), order, *results, **more)


WBC, PLT = "OBX|{n}|NM|WBC^白细胞^L||{v}|10*9/L|||||{s}", "OBX|{n}|NM|PLT^血小板^L||{v}|10*9/L|||||{s}"


def test_the_same_message_twice_gives_the_same_resources_to_the_byte() -> None:
    one, two = (_report(WBC.format(n=1, v="6.1", s="F")) for _ in range(2))
    assert fhirjson.dumps(one.bundle()) == fhirjson.dumps(two.bundle())
    assert one.issues == two.issues and one.unread == two.unread


def test_ids_do_not_depend_on_the_control_id_or_the_time_of_the_message() -> None:
    one = _report(WBC.format(n=1, v="6.1", s="F"))
    two = _report(WBC.format(n=1, v="6.1", s="F"), control="C2", sent="20240319080000")
    for kind in ("Patient", "ServiceRequest", "DiagnosticReport", "Observation"):
        assert _ids(one, kind) == _ids(two, kind)


def test_a_correction_with_fewer_results_keeps_the_ids_of_the_others() -> None:
    first = _report(WBC.format(n=1, v="6.1", s="F"), PLT.format(n=2, v="200", s="F"))
    second = _report(
        PLT.format(n=1, v="210", s="C"), status="C", control="C2", sent="20240318120000", at="20240318115000"
    )
    assert _ids(second, "Observation") == _ids(first, "Observation")[1:]
    assert _ids(second, "DiagnosticReport") == _ids(first, "DiagnosticReport")


def test_equal_codes_without_sub_id_are_told_apart_by_their_ordinal_and_with_it_by_the_sub_id() -> None:
    plain = _report(*(f"OBX|{n}|ST|ORG^菌^L||{v}||||||F" for n, v in enumerate("abc", 1)))
    assert len(set(_ids(plain, "Observation"))) == 3
    marked = _report(*(f"OBX|{n}|ST|ORG^菌^L|{n}|{v}||||||F" for n, v in enumerate("abc", 1)))
    fewer = _report("OBX|1|ST|ORG^菌^L|3|c||||||C", status="C")
    assert _ids(fewer, "Observation") == _ids(marked, "Observation")[2:]


def test_the_same_filler_number_under_another_patient_is_another_report_with_the_same_business_key() -> None:
    wrong, right = (_report(WBC.format(n=1, v="6.1", s="F"), patient=p) for p in ("P1", "P2"))
    assert set(_ids(wrong, "DiagnosticReport") + _ids(wrong, "Observation")).isdisjoint(
        _ids(right, "DiagnosticReport") + _ids(right, "Observation")
    )
    keys = [e.business for c in (wrong, right) for e in _of(c, "DiagnosticReport")]
    assert keys == [f"DiagnosticReport|{systems.facility_system('county-lab', 'filler')}|F1|XCG|2024-03-18"] * 2


def test_observations_and_specimens_belong_to_their_report() -> None:
    found = _report(WBC.format(n=1, v="6.1", s="F"), "SPM|1|^S1||BLD||||||||||||||20240318090000")
    report = _ids(found, "DiagnosticReport")[0]
    assert {e.parent for e in (*_of(found, "Observation"), *_of(found, "Specimen"))} == {report}
    assert _of(found, "DiagnosticReport")[0].parent == ""


def test_an_order_and_its_result_name_the_same_service_request() -> None:
    order = _convert(
        _PID.format(patient="P1"), "ORC|NW|PL1|||||||20240318080000", "OBR|1|PL1||XCG^血常规^L", kind="ORM^O01"
    )
    result = _report(WBC.format(n=1, v="6.1", s="F"))
    assert _ids(order, "ServiceRequest") == _ids(result, "ServiceRequest")
    assert _of(order, "ServiceRequest")[0].recency > _of(result, "ServiceRequest")[0].recency


def test_a_late_preliminary_is_older_than_a_final_and_a_correction_newer() -> None:
    final = _of(_report(WBC.format(n=1, v="6.1", s="F")), "Observation")[0].recency
    late = _of(
        _report(WBC.format(n=1, v="6.0", s="P"), status="P", at="20240319110000", sent="20240319111000"), "Observation"
    )[0].recency
    corrected = _of(_report(WBC.format(n=1, v="6.2", s="C"), status="C"), "Observation")[0].recency
    newer = _of(_report(WBC.format(n=1, v="6.3", s="F"), at="20240318120000"), "Observation")[0].recency
    assert late < final < corrected < newer


def test_recency_compares_instants_and_not_their_spelling() -> None:
    beijing = _of(_report(WBC.format(n=1, v="6.1", s="F"), at="20240318110000+0800"), "Observation")[0].recency
    universal = _of(_report(WBC.format(n=1, v="6.1", s="F"), at="20240318030000+0000"), "Observation")[0].recency
    assert beijing == universal
    assert beijing.reported_at == "2024-03-18T03:00:00.000000Z"


def test_without_a_report_time_the_time_of_the_message_counts() -> None:
    found = _report(WBC.format(n=1, v="6.1", s="F"), at="")
    assert {e.recency.reported_at for e in _of(found, "Observation")} == {"2024-03-18T03:10:00.000000Z"}
    assert "issued" not in _of(found, "Observation")[0].resource


@pytest.mark.parametrize(
    ("kind", "segments", "tiers"),
    [
        ("ADT^A08", ["PV1|1|O|||||||||||||||||V1"], {"Patient": Tier.FINAL, "Encounter": Tier.FINAL}),
        (
            "ORU^R01",
            ["PV1|1|O|||||||||||||||||V1", "OBR|1|PL1|F1|X^x^L"],
            {"Patient": Tier.MENTION, "Encounter": Tier.MENTION},
        ),
        ("SIU^S12", ["PV1|1|O|||||||||||||||||V1"], {"Patient": Tier.MENTION, "Encounter": Tier.MENTION}),
    ],
)
def test_only_admissions_speak_firmly_of_patient_and_visit(
    kind: str, segments: list[str], tiers: dict[str, Tier]
) -> None:
    found = _convert(_PID.format(patient="P1"), *segments, kind=kind)
    for name, tier in tiers.items():
        assert {e.recency.tier for e in _of(found, name)} == {tier}
    assert {e.recency.tier for e in found.entries if e.patient is None} <= {Tier.MENTION, Tier.PRELIMINARY}


def test_a_withdrawn_report_withdraws_its_results() -> None:
    facility = _PROFILES["county-lab"].facility.model_copy(update={"report_status": {"作废": "entered-in-error"}})
    profile = _with(facility)
    raw = "\r".join(
        [
            "MSH|^~\\&|LIS|CXYY|TJ|TJ|20240318111000||ORU^R01|C1|P|2.5.1",
            _PID.format(patient="P1"),
            "OBR|1|PL1|F1|XCG^血常规^L|||20240318093000||||||||||||||||||作废",
            WBC.format(n=1, v="6.1", s="F"),
        ]
    )
    found = convert(raw.encode(), profile)
    assert {e.resource["status"] for e in (*_of(found, "DiagnosticReport"), *_of(found, "Observation"))} == {
        "entered-in-error"
    }


def _with(facility: Facility) -> Profile:
    base = _PROFILES["county-lab"]
    return Profile(facility, base.zone, base.tests, base.orders, base.units, base.catalogue, base.digest + "x")


def test_a_test_code_keeps_its_meaning_of_the_day_the_result_was_taken(tmp_path: Path) -> None:
    (tmp_path / "codes.csv").write_text(
        "code,name,item,valid_from,valid_to,note\nX1,钾,L0038,,2023-12-31,\nX1,葡萄糖,L0022,2024-01-01,,\n", "utf-8"
    )
    (tmp_path / "f.yaml").write_text("id: f\norganization: {name: 测试}\ncodes: {tests: codes.csv}\n", "utf-8")
    profile = load_profiles(tmp_path)["f"]
    items = []
    for taken in ("20231230", "20240102"):
        order = f"OBR|1|PL1|F1|XCG^x^L|||{taken}093000|||||||||||||||20240318110000|||F"
        raw = "\r".join(
            [
                "MSH|^~\\&|L|C|T|T|20240318111000||ORU^R01|C1|P|2.5.1",
                _PID.format(patient="P1"),
                order,
                "OBX|1|NM|X1^^L||4.1|mmol/L|||||F",
            ]
        )
        items.append(_of(convert(raw.encode(), profile), "Observation")[0].resource["code"]["coding"][1]["code"])
    assert items == ["L0038", "L0022"]


def test_nothing_kept_from_earlier_messages_changes_a_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every golden message gives the same with a cold memory as after all the others."""
    raws = [raw for path in sorted(GOLDEN.glob("*.hl7")) for raw in split(io.BytesIO(path.read_bytes()))]
    profile = _PROFILES["county-lab"]

    def all_of() -> list[tuple[bytes, object, object, object]]:
        found = [convert(raw, profile) for raw in raws]
        return [(fhirjson.dumps(c.bundle()), c.issues, sorted(c.unread, key=str), c.unmapped) for c in found]

    warm = all_of()
    cold = []
    for raw in raws:
        monkeypatch.setattr(engine, "_MEMOS", {})
        found = convert(raw, profile)
        cold.append((fhirjson.dumps(found.bundle()), found.issues, sorted(found.unread, key=str), found.unmapped))
    assert cold == warm


def test_conversions_do_not_share_what_a_caller_may_change() -> None:
    one, two = (_report(WBC.format(n=1, v="6.1", s="F"), "NTE|1||a") for _ in range(2))
    for entry in one.entries:
        entry.resource["meta"]["versionId"] = "1"
        entry.resource.setdefault("note", []).append({"text": "changed"})
        entry.resource.setdefault("extension", []).append({"url": "changed"})
    assert b"changed" not in fhirjson.dumps(two.bundle())
    assert b"versionId" not in fhirjson.dumps(_report(WBC.format(n=1, v="6.1", s="F"), "NTE|1||a").bundle())


def test_provenance_names_the_bytes_and_every_resource_about_the_patient() -> None:
    found = _report(WBC.format(n=1, v="6.1", s="F"))
    provenance = _of(found, "Provenance")[0].resource
    assert provenance["entity"][0]["what"]["identifier"]["value"].startswith("urn:sha256:")
    assert {t["reference"] for t in provenance["target"]} == {
        f"{e.resource['resourceType']}/{e.resource['id']}"
        for e in found.entries
        if e.patient and e.resource["resourceType"] != "Provenance"
    }
    assert provenance["agent"][0]["who"]["reference"] == f"Organization/{facility_organization_id('county-lab')}"


def test_a_message_without_a_time_gives_no_provenance_but_everything_else() -> None:
    found = _report(WBC.format(n=1, v="6.1", s="F"), sent="")
    assert not _of(found, "Provenance") and _of(found, "Observation")
    assert "no-message-time" in {i.key for i in found.issues}


def test_every_resource_says_which_message_it_came_from() -> None:
    found = _report(WBC.format(n=1, v="6.1", s="F"), control="C77")
    assert {e.resource["meta"]["source"] for e in found.entries} == {"urn:tongjian:county-lab#C77"}


def test_a_line_end_inside_a_code_is_no_part_of_it() -> None:
    found = _report("OBX|1|NM|WBC^白细胞^L||6.1|10*9/L|||||F||||||||||||||||||RSLT\\.br\\")
    assert _of(found, "Observation")[0].resource["category"][1]["coding"][0]["code"] == "RSLT"


def test_two_obr_of_one_report_may_state_a_time_and_a_period() -> None:
    orders = [
        f"OBR|{n}|PL1|F1|XCG^血常规^L|||{taken}|||||||||||||||||F"
        for n, taken in ((1, "20240318"), (2, "20240318|20240319"))
    ]
    report = _of(_convert(_PID.format(patient="P1"), *orders), "DiagnosticReport")[0].resource
    assert "effectiveDateTime" not in report
    assert report["effectivePeriod"] == {"start": "2024-03-18", "end": "2024-03-19"}


def test_no_usable_report_key_is_told_and_gives_an_id_that_stays() -> None:
    def once(control: str) -> Conversion:
        order = "OBR|1|||XCG^血常规^L|||20240318093000|||||||||||||||20240318110000|||F"
        return _convert(_PID.format(patient="P1"), order, WBC.format(n=1, v="6.1", s="F"), control=control)

    one, two = once("C1"), once("C2")
    assert _ids(one, "DiagnosticReport") == _ids(two, "DiagnosticReport")
    assert _of(one, "DiagnosticReport")[0].business == ""
    assert "no-report-key" in {i.key for i in one.issues}


def test_a_visit_without_any_number_makes_no_encounter_and_its_fields_are_listed() -> None:
    found = _convert(_PID.format(patient="P1"), "PV1|1|O|内科", kind="ADT^A08")
    assert not _of(found, "Encounter")
    assert {"PV1[1]-2", "PV1[1]-3"} <= {u.where for u in found.unread}
    assert "no-visit-key" in {i.key for i in found.issues}


def test_a_field_whose_rule_did_not_fire_is_listed_as_unread() -> None:
    found = _report("OBX|1|NM|WBC^白细胞^L||6.1|10*9/L|||||F|20230101|密|||||||||||||||||||A^reason^L")
    assert {"OBX[1]-12", "OBX[1]-13", "OBX[1]-32"} <= {u.where for u in found.unread}


@pytest.mark.parametrize("blank", [" ", "   ", "\\X20\\"])
def test_a_range_of_nothing_but_spaces_is_no_range(blank: str) -> None:
    found = _report(f"OBX|1|NM|WBC^白细胞^L||6.1|10*9/L|{blank}||||F")
    assert "referenceRange" not in _of(found, "Observation")[0].resource


def test_a_component_the_datatype_does_not_know_is_listed_with_its_text() -> None:
    found = _convert("PID|1||P1^^^HIS^PI^^^^CN||张^三", kind="ADT^A08")
    assert ("PID[1]-3.9", "CN") in {(u.where, u.value) for u in found.unread}


def test_a_second_repetition_of_a_single_element_is_listed() -> None:
    found = _report("OBX|1|NM|WBC^白细胞^L||6.1|10*9/L|||||F||||||A^a^L~B^b^L")
    assert _of(found, "Observation")[0].resource["method"]["text"] == "a"
    assert {"OBX[1]-17[2].1", "OBX[1]-17[2].2"} <= {u.where for u in found.unread}


def test_unmapped_codes_and_units_go_to_the_worklist_once_a_message() -> None:
    found = _report(*(f"OBX|{n}|NM|NEW^新项目^L||1|怪单位|||||F" for n in (1, 2)))
    assert [(u.kind, u.code, u.name, u.unit) for u in found.unmapped] == [
        ("code", "NEW", "新项目", ""),
        ("unit", "NEW", "新项目", "怪单位"),
    ]
    assert found.held is None


@pytest.mark.parametrize(
    ("segments", "kind", "key", "where"),
    [
        ([], "ADT^A01", "no-patient", "PID[1]"),
        (["PID|1||||无名"], "ADT^A01", "no-patient-key", "PID[1]-3"),
        ([_PID.format(patient="P1")], "", "no-message-type", "MSH[1]-9"),
        ([_PID.format(patient="P1"), "MRG|"], "ADT^A40", "no-merge-key", "MRG[1]-1"),
        ([_PID.format(patient="P1"), "OBR|1|PL1|F1|X^x^L|||20240230"], "ORU^R01", "bad-date", "OBR[1]-7"),
    ],
)
def test_content_that_cannot_be_trusted_holds_the_message_and_names_the_field(
    segments: list[str], kind: str, key: str, where: str
) -> None:
    held = _convert(*segments, kind=kind).held
    assert held is not None
    assert (held.key, held.where) == (key, where)


def test_an_issue_text_carries_no_patient_data() -> None:
    found = _convert("PID|1||P1^^^HIS^PI||张^三||19490231|M", kind="ADT^A08")
    assert found.held is not None and found.held.value == "19490231"
    assert all("张" not in i.text and "1949" not in i.text for i in found.issues)


def test_the_zone_is_assumed_once_a_message_and_said_once() -> None:
    found = _report(WBC.format(n=1, v="6.1", s="F"), PLT.format(n=2, v="200", s="F"))
    assert [i.key for i in found.issues].count("zone-assumed") == 1


def test_merging_a_patient_with_itself_says_so_and_links_nothing() -> None:
    found = _convert(_PID.format(patient="P1"), "MRG|P1^^^HIS^PI", kind="ADT^A40")
    assert found.merges == [] and "merge-with-itself" in {i.key for i in found.issues}


def test_every_number_of_the_losing_side_is_merged_but_those_the_surviving_side_bears_too() -> None:
    lost = "MRG|B1^^^HIS^PI~B2^^^LIS^PI~11010519491231002X^^^GA^NI~V7^^^HIS^VN|B3"
    pid = _PID.format(patient="P1").replace("^^^HIS^PI", "^^^HIS^PI~11010519491231002X^^^GA^NI")
    found = _convert(pid, lost, kind="ADT^A40")
    retired = {m.retired for m in found.merges}
    assert len(retired) == len(found.merges) == 3
    assert {e.resource["id"] for e in _of(found, "Patient")} == {*retired, found.merges[0].surviving}


def test_a_visit_without_a_number_is_kept_with_the_order_that_speaks_of_it() -> None:
    visit = "PV1|1|E|急诊科^^3||||D9^急^诊"
    order = "OBR|1||{n}|XCG^血常规^L|||20240318093000|||||||||||||||20240318110000|||F"
    one, again, other = (
        _convert(_PID.format(patient="P1"), visit, order.format(n=n), WBC.format(n=1, v="6.1", s="F"), control=c)
        for n, c in (("F1", "C1"), ("F1", "C2"), ("F2", "C3"))
    )
    assert _ids(one, "Encounter") == _ids(again, "Encounter") != _ids(other, "Encounter")
    assert _of(one, "Encounter")[0].resource["class"]["code"] == "EMER"
    assert (
        _of(one, "DiagnosticReport")[0].resource["encounter"]["reference"] == f"Encounter/{_ids(one, 'Encounter')[0]}"
    )


def test_an_admission_without_number_and_admission_time_is_told_by_the_time_of_its_event() -> None:
    one, two = (
        _convert("EVN|A01|20240318093000||||" + at, _PID.format(patient="P1"), "PV1|1|I|N3", kind="ADT^A01")
        for at in ("20240318080000", "20240319080000")
    )
    assert _ids(one, "Encounter") != _ids(two, "Encounter")
    assert "period" not in _of(one, "Encounter")[0].resource


def test_a_bedside_result_without_order_numbers_still_tells_who_ordered_it() -> None:
    order = "OBR|1|||GLU^血糖^L|||20240318093000|||||||||D1^护^士||||||20240318110000|||F"
    found = _convert(_PID.format(patient="P1"), "ORC|NW", order, WBC.format(n=1, v="6.1", s="F"), kind="ORU^R30")
    (request,) = _of(found, "ServiceRequest")
    assert request.resource["requester"]["reference"].startswith("Practitioner")
    assert _of(found, "DiagnosticReport")[0].resource["basedOn"] == [
        {"reference": f"ServiceRequest/{request.resource['id']}"}
    ]


@pytest.mark.parametrize(("event", "merges"), [("A40", 1), ("A34", 1), ("A18", 1), ("A47", 1), ("A08", 0), ("A24", 0)])
def test_only_merge_events_merge(event: str, merges: int) -> None:
    found = _convert(_PID.format(patient="P1"), "MRG|P9^^^HIS^PI", kind=f"ADT^{event}")
    assert len(found.merges) == merges


def test_every_entry_is_of_the_patient_of_its_group_and_carries_its_shard() -> None:
    found = _report(WBC.format(n=1, v="6.1", s="F"))
    patient = _ids(found, "Patient")[0]
    inside = [e for e in found.entries if e.patient is not None]
    assert {e.patient for e in inside} == {patient}
    assert {e.resource["id"][:2] for e in inside} == {patient[:2]}


def test_two_facilities_never_give_the_same_id() -> None:
    def make(profile: str) -> Conversion:
        return _report(WBC.format(n=1, v="6.1", s="F"), profile=profile)

    one, two = make("county-lab"), make("township")
    assert set(_ids(one, "Observation") + _ids(one, "Patient")).isdisjoint(
        _ids(two, "Observation") + _ids(two, "Patient")
    )
