"""mappings.outbound: a Bundle as a result message; read again it says the same."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.convert import convert, split
from adapters.hl7v2 import reader, writer
from adapters.hl7v2.delimiters import STANDARD, Separators
from conformance import systems
from conformance.validator import check
from fhir_server.demo import story
from fhir_server.demo.run import example_panels
from mappings.outbound.message import Letter
from mappings.profile import Profile, load_profiles
from tests.mappings.outbound.facts import facts

GOLDEN = Path(__file__).parents[1] / "golden"
AT = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)
PROFILES = {**load_profiles(), **load_profiles(GOLDEN / "profiles")}


def letter(sender: Profile, receiver: Profile, **more: Any) -> Letter:
    return Letter(receiver, sender, "C1", AT, **more)


def again(
    raw: bytes, sender: Profile, receiver: Profile, separators: Separators = STANDARD, codec: str = "utf-8"
) -> tuple[Any, Any]:
    """Facts of a message read by its sender's profile, and of what is written of it, read by the receiver's."""
    first = convert(raw, sender)
    assert first.held is None, first.held
    written = writer.oru(first.bundle(), letter(sender, receiver, charset=writer.CHARSETS[codec]), separators, codec)
    second = convert(written, receiver)
    assert second.held is None, second.held
    assert [i for e in second.entries for i in check(e.resource)] == []
    return facts(first, sender.zone), facts(second, receiver.zone)


def golden(name: str) -> tuple[bytes, Profile]:
    """Bytes of a golden message (of a batch: the message it is about) and the profile that reads them."""
    told = yaml.load((GOLDEN / f"{name}.yaml").read_text("utf-8"), Loader=yaml.BaseLoader)
    raw = (GOLDEN / f"{name}.hl7").read_bytes()
    if "message" in told:
        raw = list(split(io.BytesIO(raw)))[int(told["message"]) - 1]
    return raw, PROFILES[told["profile"]]


def golden_results() -> list[str]:
    """Every golden message that gives a report of a patient."""
    out = []
    for path in sorted(GOLDEN.glob("*.yaml")):
        told = yaml.load(path.read_text("utf-8"), Loader=yaml.BaseLoader)
        if "held" in told or told.get("quality_control") == "true" or not path.with_suffix(".hl7").exists():
            continue
        raw, profile = golden(path.stem)
        if profile.facility.sub_ids == "components":
            continue  # components are written as results of their own: the same facts in another shape
        found = convert(raw, profile)
        if found.held is None and any(e.resource["resourceType"] == "DiagnosticReport" for e in found.entries):
            out.append(path.stem)
    assert len(out) >= 38
    return out


@pytest.mark.parametrize("name", golden_results())
def test_a_golden_message_written_again_says_the_same(name: str) -> None:
    raw, profile = golden(name)
    # What is written follows the standard, also for a facility that sends a dialect of its own.
    plain = {"paths": {}, "date_formats": []}
    receiver = replace(profile, facility=profile.facility.model_copy(update=plain))
    one, other = again(raw, profile, receiver)
    assert other == one


@pytest.fixture(scope="module")
def told() -> story.Story:
    return story.tell(example_panels(load_profiles()), AT, 7)


@pytest.mark.parametrize("sender", ["county-hospital", "north-township", "south-township", "east-clinic"])
@pytest.mark.parametrize("receiver", ["county-hospital", "north-township", "south-township", "east-clinic"])
def test_results_of_the_example_county_arrive_in_every_facility_as_they_were(
    told: story.Story, sender: str, receiver: str
) -> None:
    outgoing = next(o for o in told.history if o.dialect.facility == sender)
    results = [m for m in outgoing.messages if b"ORU" in m[:200] and b"QC" not in m]
    assert len(results) > 20
    compared = 0
    for raw in random.Random(11).sample(results, 20):
        codec = "gb18030" if receiver == "north-township" else "utf-8"
        one, other = again(raw, PROFILES[sender], PROFILES[receiver], codec=codec)
        if sender != receiver:
            _forget_what_only_the_sender_knows(one, other, PROFILES[receiver])
        assert other == one
        compared += sum(len(r["results"]) for r in one["reports"])
    assert compared > 60


def _forget_what_only_the_sender_knows(one: Any, other: Any, receiver: Profile) -> None:
    """An item the receiver has no code for arrives with its LOINC code and the laboratory's name instead of the item code; the
    laboratory is called as the receiver calls it."""
    items = {r.item for r in receiver.tests.rows}
    orderables = {r.orderable for r in receiver.orders.rows}
    for side in (one, other):
        for report in side["reports"]:
            if not set(report["code"][0]) & orderables:
                report["code"] = report["code"][1]
            for result in report["results"]:
                if not set(result["code"][0]) & items:
                    result["code"] = result["code"][1]
            report["results"].sort(key=repr)


def test_the_receiver_gets_its_own_codes_flags_and_numbers() -> None:
    county_hospital, north = PROFILES["county-hospital"], PROFILES["north-township"]
    raw = (
        "MSH|^~\\&|LIS|YXRMYY|||20260301080000||ORU^R01|1|P|2.5.1||||||UNICODE UTF-8\r"
        "PID|1||55001^^^YXRMYY^PI~330106196205170015^^^^NI||王建国||19620517|M\r"
        "ORC|RE|P77^BLWSY|F77\r"
        "OBR|1|P77^BLWSY|F77|XCG^血常规|||20260301070000|||||||||||||||20260301080000|||F\r"
        "OBX|1|NM|WBC^白细胞||6.30|10^9/L|3.5-9.5|N|||F\r"
        "OBX|2|NM|AFU-X^自建项目||7|U/L|||||F\r"
    ).encode()
    own = {
        "resourceType": "Patient", "id": "n1",
        "identifier": [{"system": systems.facility_system("north-township", "patient"), "value": "8001",
                        "type": {"coding": [{"code": "PI"}]}}],
    }  # fmt: skip
    order = {
        "resourceType": "ServiceRequest", "id": "n2",
        "identifier": [{"system": systems.facility_system("north-township", "placer"), "value": "P77",
                        "type": {"coding": [{"code": "PLAC"}]}}],
    }  # fmt: skip
    bundle = convert(raw, county_hospital).bundle()
    written = writer.oru(bundle, letter(county_hospital, north, own_patients=(own,), own_orders=(order,))).decode()
    lines = {line[:5] if line.startswith("OBX") else line[:3]: line for line in written.split("\r")}
    assert lines["MSH"].startswith("MSH|^~\\&|TONGJIAN|YXRMYY||BLWSY|20260301160000+0800||ORU^R01^ORU_R01|C1|P|2.5.1|")
    assert lines["MSH"].endswith("|UNICODE UTF-8")
    first, second, third = lines["PID"].split("|")[3].split("~")
    assert first == "8001^^^^PI"
    # the other facility's number names whose it is, so that nobody takes it for an own one
    assert second.startswith("55001^^^YXRMYY&http") and third == "330106196205170015^^^&2.16.156.10011.1.3&ISO^NI"
    assert lines["OBR"].split("|")[2] == lines["ORC"].split("|")[2] == "P77"
    assert lines["OBR"].split("|")[3].startswith("F77^YXRMYY^http")
    assert lines["OBR"].split("|")[4].startswith("3001^血常规^L")
    assert lines["OBX|1"].split("|")[3].startswith("1001^白细胞^L^6690-2^^LN")
    # N is negative in this township, M is normal
    assert lines["OBX|1"].split("|")[8] == "M"
    assert lines["OBX|1"].split("|")[15] == "YXLAB^云溪县人民医院^L"
    # a code only the sender knows says so, and is looked up in nobody's table
    assert lines["OBX|2"].split("|")[3] == "AFU-X^自建项目^http://tongjian.org/fhir/CodeSystem/county-hospital-tests"


def test_segments_stand_in_the_order_of_the_standard() -> None:
    raw = (GOLDEN / "oru-blood-count.hl7").read_bytes()
    profile = PROFILES["county-lab"]
    written = writer.oru(convert(raw, profile).bundle(), letter(profile, profile)).decode()
    assert [line[:3] for line in written.split("\r")] == [
        "MSH", "PID", "PV1", "ORC", "OBR", "OBX", "OBX", "NTE", "OBX", "OBX", "OBX", "SPM", "",
    ]  # fmt: skip


HEAD = "MSH|^~\\&|LIS|X|||20260301080000||ORU^R01|1|P|2.5.1||||||UNICODE UTF-8\rPID|1||P1^^^H^PI||张三||19600101|M\r"


@pytest.mark.parametrize(
    ("report", "results"),
    [("X", "WW"), ("X", "X"), ("C", "CF"), ("F", "FW"), ("P", "PI"), ("F", "XN"), ("A", "FP"), ("I", "I"), ("", "F")],
)
def test_corrections_cancellations_and_withdrawals_keep_their_status(report: str, results: str) -> None:
    lines = [f"OBX|{n}|NM|T{n}^t||5.{n}|mmol/L|||||{status}" for n, status in enumerate(results, 1)]
    raw = (
        HEAD + f"ORC|RE|P1|F1\rOBR|1|P1|F1|A^a|||20260301|||||||||||||||20260301080000|||{report}\r" + "\r".join(lines)
    )
    one, other = again(raw.encode(), PROFILES["generic"], PROFILES["generic"])
    assert other == one


def test_a_report_entered_in_error_is_told_by_results_that_are_wrong() -> None:
    raw = HEAD + "OBR|1|P1|F1|A^a|||20260301|||||||||||||||20260301080000|||F\rOBX|1|NM|T^t||5.1|mmol/L|||||F\r"
    profile = PROFILES["generic"]
    bundle = convert(raw.encode(), profile).bundle()
    for entry in bundle["entry"]:
        if entry["resource"]["resourceType"] in ("DiagnosticReport", "Observation"):
            entry["resource"]["status"] = "entered-in-error"
    written = writer.oru(bundle, letter(profile, profile))
    fields = {line[:3]: line.split("|") for line in written.decode().split("\r") if line}
    assert (fields["OBR"][25], fields["OBX"][11]) == ("X", "W")
    second = facts(convert(written, profile), profile.zone)
    assert [r["status"] for r in second["reports"]] == ["entered-in-error"]


def test_results_of_several_specimens_stay_with_their_specimen() -> None:
    raw = HEAD + (
        "OBR|1|P1|F1|A^a|||20260301|||||||||||||||20260301080000|||F\r"
        "SPM|1|^S1||SER^血清^HL70487\rOBX|1|NM|GLU^葡萄糖||5.1|mmol/L|||||F\r"
        "SPM|2|^S2||UR^尿^HL70487\rOBX|2|NM|GLU^葡萄糖||0.3|mmol/L|||||F\rOBX|3|NM|PRO^蛋白||0.1|g/L|||||F\r"
    )
    one, other = again(raw.encode(), PROFILES["generic"], PROFILES["generic"])
    assert other == one
    assert sorted(r["specimen"][1][0] for r in one["reports"][0]["results"]) == ["S1", "S2", "S2"]


# --- any value ---------------------------------------------------------------------------------------------------------------

TEXT = st.text(
    st.characters(codec="gb18030", exclude_categories=["Cc", "Cs", "Co", "Cn"], exclude_characters="\ufeff")
    | st.sampled_from("|^&~\\\n血清阴性#"),
    min_size=1, max_size=30,
).map(lambda t: "\n".join(" ".join(p.split()) for p in t.split("\n")).strip()).filter(lambda t: t and t != '""')  # fmt: skip
NUMBER = st.decimals(-999, 99999, places=3, allow_nan=False, allow_infinity=False).map(str) | st.integers(0, 10**6).map(
    str
)
COMPARATOR = st.sampled_from(["<", ">", "<=", ">=", "", "≤"])


def escaped(text: str) -> str:
    out = text.replace("\\", "\\E\\").replace("|", "\\F\\").replace("^", "\\S\\").replace("&", "\\T\\")
    return out.replace("~", "\\R\\").replace("\n", "\\.br\\")


STRUCTURED = st.tuples(COMPARATOR, NUMBER, st.sampled_from(["", "-", ":", "/", "+"]), NUMBER | st.just(""))
TITRE = st.tuples(st.sampled_from(["", ">=", "<"]), st.just("1:"), st.integers(1, 2560).map(str))
CODED = st.tuples(st.sampled_from(["A", "B12", ""]), TEXT.map(escaped), st.sampled_from(["L", "LN", "SCT", "99X", ""]))
WORDS = ["阴性", "阳性(+)", "±", "***.**", "--", "未做", "见报告", '""', "", "5.6↑", "弱阳性", "１２．５"]
VALUE = st.one_of(
    st.tuples(st.just("NM"), NUMBER),
    st.tuples(st.sampled_from(["ST", "NM"]), st.tuples(COMPARATOR, NUMBER).map("".join).map(escaped)),
    st.tuples(st.just("SN"), STRUCTURED.map("^".join)),
    st.tuples(st.just("ST"), TITRE.map("".join)),
    st.tuples(st.sampled_from(["ST", "TX", "FT", "NM", "SN", "ID", ""]), TEXT.map(escaped)),
    st.tuples(st.just("CWE"), CODED.map("^".join)),
    st.tuples(st.sampled_from(["NM", "CWE"]), st.lists(NUMBER, min_size=2, max_size=4).map("~".join)),
    st.tuples(st.just("TS"), st.sampled_from(["2026", "202602", "20260228", "202602281530", "20260228153000.123+0300"])),
    st.tuples(st.just("TM"), st.sampled_from(["0730", "073000"])),
    st.tuples(st.just("DR"), st.just("20260201^20260228")),
    st.tuples(st.just("ST"), st.sampled_from(WORDS)),
)  # fmt: skip
RANGE = st.sampled_from(["", "3.5-9.5", "<5", "阴性", "3.9~6.1", "4.50&5.90", "≥60", "成人:1-2"]) | TEXT
UNIT = st.sampled_from(["", "mmol/L", "10^9/L", "μmol/L", "S/CO", "个/HP", "%"]) | TEXT


@settings(max_examples=400, deadline=None)
@given(
    VALUE,
    RANGE,
    UNIT,
    TEXT,
    TEXT,
    st.sampled_from("FPCXWIADN"),
    st.sampled_from(["", "H", "↑", "N", "M", "L~A"]),
    st.data(),
)
def test_any_value_arrives_as_it_was(
    value: tuple[str, str], range_: str, unit: str, name: str, note: str, status: str, flag: str, data: Any
) -> None:
    raw = HEAD + (
        "ORC|RE|P1|F1\rOBR|1|P1|F1|A^a|||20260301|||||||||||||||20260301080000|||F\r"
        f"OBX|1|{value[0]}|T1^{escaped(name)}|1|{value[1]}|{escaped(unit)}|{escaped(range_)}|{flag}|||{status}|||20260301070000\r"
        f"NTE|1||{escaped(note)}\r"
    )
    profile = PROFILES[data.draw(st.sampled_from(["generic", "county-lab"]))]
    separators = data.draw(
        st.sampled_from([STANDARD, Separators("|", "$", "~", "\\", "&"), Separators("!", "@", "%", "?", ";")])
    )
    codec = data.draw(st.sampled_from(sorted(writer.CHARSETS)))
    one, other = again(raw.encode(), profile, profile, separators, codec)
    assert other == one


def test_a_patient_without_a_family_name_part_and_odd_identifiers_arrives() -> None:
    raw = HEAD.replace("P1^^^H^PI", "P1^^^H&1.2.3.4&ISO^PI~X9^^^&2b5f1e0e-0d7b-4c57-a1f4-b1f0a9e9d001&UUID^MR").replace(
        "张三", "Smith^John^Q^Jr^Dr^^L~张^三"
    )
    raw += "OBR|1||F1|A^a||||||||||||||||||||||F\rOBX|1|NM|T^t||5.1|mmol/L|||||F\r"
    one, other = again(raw.encode(), PROFILES["generic"], PROFILES["generic"])
    assert other == one


def test_times_in_another_zone_keep_their_instant() -> None:
    raw = HEAD + (
        "OBR|1||F1|A^a|||20260301070000+0000|||||||||||||||20260301080000Z|||F\r"
        "OBX|1|NM|T^t||5.1|mmol/L|||||F|||20260228230000-0330\r"
    )
    one, other = again(raw.encode(), PROFILES["generic"], PROFILES["generic"])
    assert other == one


def test_reading_what_was_written_needs_no_guess() -> None:
    profile = PROFILES["county-lab"]
    bundle = convert((GOLDEN / "oru-gbk.hl7").read_bytes(), profile).bundle()
    for codec, name in writer.CHARSETS.items():
        message = reader.read(writer.oru(bundle, replace(letter(profile, profile), charset=name), codec=codec))
        assert message.charset == codec
        assert message.issues == []


def test_a_report_written_by_a_client_loses_nothing_it_says() -> None:
    profile = PROFILES["generic"]
    text = {"coding": [{"system": systems.LOINC, "code": "85354-9", "display": "Blood pressure"}], "text": "血压"}
    parts = [
        {
            "code": {"text": name},
            "valueQuantity": {"value": number, "unit": "mmHg", "system": systems.UCUM, "code": "mm[Hg]"},
        }
        for name, number in (("收缩压", 121), ("舒张压", 80))
    ]
    resources = [
        {"resourceType": "Patient", "id": "p", "identifier": [{"value": "7"}], "name": [{"text": "张三"}]},
        {"resourceType": "Observation", "id": "o", "status": "final", "code": text, "component": parts,
         "subject": {"reference": "Patient/p"}},
        {"resourceType": "DiagnosticReport", "id": "r", "status": "amended", "code": {"text": "体检"},
         "subject": {"reference": "Patient/p"}, "result": [{"reference": "Observation/o"}], "conclusion": "正常\n复查",
         "presentedForm": [{"contentType": "application/pdf", "data": "JVBERi0xLjQK", "title": "报告单"}]},
        {"resourceType": "Observation", "id": "alone", "status": "final", "code": {"text": "身高"}, "valueInteger": 170,
         "subject": {"reference": "Patient/p"}},
    ]  # fmt: skip
    bundle = {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": r} for r in resources]}
    found = facts(convert(writer.oru(bundle, letter(profile, profile)), profile), profile.zone)
    report = next(r for r in found["reports"] if r["code"][1] == "体检")
    assert (report["status"], report["conclusion"]) == ("corrected", "正常\n复查")
    assert report["files"] == [("application/pdf", "JVBERi0xLjQK")]
    values = {r["code"][1]: r.get("valueQuantity", {}).get("value") for r in report["results"]}
    assert (values["收缩压"], values["舒张压"]) == ("121", "80")
    assert [r["results"][0]["valueQuantity"]["value"] for r in found["reports"] if r["code"][1] == "身高"] == ["170"]
