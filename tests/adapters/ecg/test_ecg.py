"""ECG files: every sample as in the file, measurements, statements, and who read it.

aECG has a real sample; MUSE and Philips are made here from their public layouts.
"""

from __future__ import annotations

import base64
import random
import struct
import xml.etree.ElementTree as ET
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from adapters.contract import Unreadable
from adapters.convert import convert, recognise
from adapters.ecg import xli
from mappings.model import Conversion
from mappings.profile import load_profiles

DATA = Path(__file__).parents[2] / "data" / "aecg"
V3 = "{urn:hl7-org:v3}"
LEADS = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]


def converted(raw: bytes) -> Conversion:
    return convert(raw, load_profiles()["generic"], recognise(raw))


def kinds(found: Conversion, kind: str) -> list[dict[str, Any]]:
    return [e.resource for e in found.entries if e.resource["resourceType"] == kind]


def waves(found: Conversion, *, beat: bool = False) -> dict[str, dict[str, Any]]:
    """Lead name -> SampledData of the rhythm, or of the average beat."""
    out = {}
    for o in kinds(found, "Observation"):
        if "valueSampledData" in o and any("subid" in e["url"] for e in o.get("extension", ())) == beat:
            out[o["code"]["text"].removeprefix("Lead ")] = o["valueSampledData"]
    return out


def measured(found: Conversion) -> dict[str, str]:
    return {
        o["code"]["coding"][0]["code"]: str(o["valueQuantity"]["value"])
        for o in kinds(found, "Observation")
        if "valueQuantity" in o
    }


def samples(data: dict[str, Any]) -> list[int]:
    return [int(s) for s in data["data"].split()]


def test_every_sample_of_the_official_aecg_example_is_kept() -> None:
    raw = (DATA / "Example_aECG.xml").read_bytes()
    found = converted(raw)
    series = ET.fromstring(raw).find(f".//{V3}series")
    assert series is not None
    expected = {}
    for sequence in series.findall(f"{V3}component/{V3}sequenceSet/{V3}component/{V3}sequence"):
        code, digits = sequence.find(f"{V3}code"), sequence.find(f"{V3}value/{V3}digits")
        if code is not None and digits is not None:
            expected[code.get("code", "").removeprefix("MDC_ECG_LEAD_")] = [int(s) for s in (digits.text or "").split()]
    got = waves(found)
    assert {name: samples(data) for name, data in got.items()} == expected
    assert len(expected) == 12
    assert {
        (str(d["period"]), str(d["factor"]), str(d["origin"]["value"]), d["origin"]["code"]) for d in got.values()
    } == {("2", "2.5", "0", "uV")}
    assert len(waves(found, beat=True)) == 12


def test_measurements_and_statement_of_the_official_aecg_example() -> None:
    """Numbers from the annotation set of the average beat in the file."""
    found = converted((DATA / "Example_aECG.xml").read_bytes())
    assert measured(found) == {
        "8625-6": "148", "8633-0": "120", "8634-8": "420", "8636-3": "443", "8626-4": "44", "8632-2": "-61", "8638-9": "86",
    }  # fmt: skip
    (report,) = kinds(found, "DiagnosticReport")
    assert report["conclusion"] == "Sinus Rhythm"
    assert report["effectivePeriod"] == {"start": "2002-11-22T09:10:00+08:00", "end": "2002-11-22T09:10:10+08:00"}
    assert "annotation[MDC_ECG_BEAT]" in {u.where for u in found.unread}


def test_an_ecg_nobody_read_over_is_preliminary_and_one_without_a_patient_is_held() -> None:
    (report,) = kinds(converted((DATA / "minimum_aecg.xml").read_bytes()), "DiagnosticReport")
    assert report["status"] == "preliminary"
    held = converted((DATA / "empty.xml").read_bytes()).held
    assert held is not None
    assert held.key == "no-patient-key"


# --- GE MUSE ----------------------------------------------------------------------------------------------------------------


def muse(
    rows: list[list[int]], status: str = "CONFIRMED", statement: str = "窦性心律", edit: str = "09:34:21"
) -> bytes:
    def text(row: list[int]) -> str:
        return base64.b64encode(struct.pack(f"<{len(row)}h", *row)).decode()

    leads = "".join(
        "<LeadData><LeadAmplitudeUnitsPerBit>4.88</LeadAmplitudeUnitsPerBit><LeadAmplitudeUnits>MICROVOLTS</LeadAmplitudeUnits>"
        f"<LeadID>{name}</LeadID><WaveFormData>{text(row)}</WaveFormData></LeadData>"
        for name, row in zip(LEADS, rows, strict=False)
    )
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE RestingECG SYSTEM "restecg.dtd">
<RestingECG>
  <PatientDemographics><PatientID>P900</PatientID><DateofBirth>05-17-1962</DateofBirth><Gender>MALE</Gender>
    <PatientLastName>王</PatientLastName><PatientFirstName>建国</PatientFirstName></PatientDemographics>
  <TestDemographics><SiteName>云溪县人民医院</SiteName><AcquisitionDevice>MAC55</AcquisitionDevice><Status>{status}</Status>
    <AcquisitionTime>09:15:11</AcquisitionTime><AcquisitionDate>03-02-2026</AcquisitionDate><CartNumber>7</CartNumber>
    <EditDate>03-02-2026</EditDate><EditTime>{edit}</EditTime><OverreaderLastName>李</OverreaderLastName></TestDemographics>
  <RestingECGMeasurements><VentricularRate>72</VentricularRate><PRInterval>0</PRInterval><QRSDuration>88</QRSDuration>
    <QTInterval>380</QTInterval><QTCorrected>416</QTCorrected><PAxis>0</PAxis><RAxis>20</RAxis></RestingECGMeasurements>
  <Diagnosis><DiagnosisStatement><StmtText>{statement}</StmtText></DiagnosisStatement>
    <DiagnosisStatement><StmtFlag>ENDSLINE</StmtFlag><StmtText>正常心电图</StmtText></DiagnosisStatement></Diagnosis>
  <Waveform><WaveformType>Rhythm</WaveformType><SampleBase>500</SampleBase><SampleExponent>0</SampleExponent>{leads}</Waveform>
</RestingECG>""".encode()


def test_a_muse_file_keeps_every_sample_and_leaves_out_what_was_not_measured() -> None:
    chance = random.Random(7)
    rows = [[chance.randint(-32768, 32767) for _ in range(500)] for _ in range(8)]
    found = converted(muse(rows))
    got = waves(found)
    assert [samples(got[name]) for name in LEADS[:8]] == rows
    assert (str(got["I"]["period"]), str(got["I"]["factor"])) == ("2", "4.88")
    # PRInterval 0: the cart could not measure it; an axis of 0 degrees is a result.
    assert measured(found) == {
        "8867-4": "72",
        "8633-0": "88",
        "8634-8": "380",
        "8636-3": "416",
        "8626-4": "0",
        "8632-2": "20",
    }
    (report,) = kinds(found, "DiagnosticReport")
    assert (report["status"], report["conclusion"]) == ("final", "窦性心律 正常心电图")
    assert report["resultsInterpreter"][0]["display"].startswith("李")
    (patient,) = kinds(found, "Patient")
    assert (patient["birthDate"], patient["gender"]) == ("1962-05-17", "male")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_first_reading_and_the_confirmed_one_are_one_report_in_any_order(order: tuple[int, int]) -> None:
    first = converted(muse([[1, 2, 3]], "UNCONFIRMED", "窦性心动过速", "09:15:30"))
    second = converted(muse([[1, 2, 3]]))
    both = [(first, second)[n] for n in order]
    reports = [e for c in both for e in c.entries if e.resource["resourceType"] == "DiagnosticReport"]
    assert len({e.resource["id"] for e in reports}) == 1
    newest = max(reports, key=lambda e: e.recency).resource
    assert (newest["status"], newest["conclusion"]) == ("final", "窦性心律 正常心电图")
    assert len({i["value"] for e in reports for i in e.resource["identifier"]}) == 1


# --- Philips ----------------------------------------------------------------------------------------------------------------


def lzw(data: bytes) -> bytes:
    """Codes of 10 bits, high bits first; the table ends at 1022."""
    table = {bytes([n]): n for n in range(256)}
    codes, word = [], b""
    for byte in data:
        longer = word + bytes([byte])
        if longer in table:
            word = longer
            continue
        codes.append(table[word])
        if len(table) <= 1022:
            table[longer] = len(table)
        word = bytes([byte])
    codes.append(table[word])
    bits = "".join(f"{c:010b}" for c in codes)
    return bytes(int(bits[n : n + 8].ljust(8, "0"), 2) for n in range(0, len(bits), 8))


def packed(row: list[int]) -> bytes:
    """One XLI chunk: second differences, high bytes before low bytes, LZW."""
    words = row[:2] + [2 * row[n - 1] - row[n - 2] - row[n] + 64 for n in range(3, len(row))] + [64]
    both = [w & 0xFFFF for w in words]
    body = lzw(bytes(w >> 8 for w in both) + bytes(w & 255 for w in both))
    return struct.pack("<ihh", len(body), 1, 2 * row[1] - row[0] - row[2]) + body


def philips(data: bytes, attributes: str = 'dataencoding="Base64" compression="XLI"', confirmed: bool = True) -> bytes:
    doctor = (
        '<confirmingclinician date="2026-03-02" time="10:00:00" id="7">Smith, Ann</confirmingclinician>'
        if confirmed
        else ""
    )
    return f"""<?xml version="1.0" encoding="utf-8"?>
<restingecgdata xmlns="http://www3.medical.philips.com" status="{"Confirmed" if confirmed else "Not yet determined"}">
  <documentinfo><documenttype>PhilipsECG</documenttype><documentversion>1.04</documentversion></documentinfo>
  <dataacquisition date="2026-03-02" time="09:15:30"><machine machineid="CART-12">PageWriter TC70</machine>
    <acquirer><operator id="T1"/><institutionname>北岭镇卫生院</institutionname></acquirer>
    <signalcharacteristics><samplingrate>500</samplingrate><resolution>5</resolution></signalcharacteristics></dataacquisition>
  <patient><generalpatientdata><patientid>P-1</patientid><MRN>M-77</MRN><name><lastname>Doe</lastname><firstname>Jo</firstname></name>
    <age><dateofbirth>1980-06-15</dateofbirth></age><sex>Female</sex></generalpatientdata></patient>
  <interpretations><interpretation date="2026-03-02" time="09:15:30"><globalmeasurements><heartrate>72</heartrate><print>160</print>
    <qrsfrontaxis>Indeterminate</qrsfrontaxis></globalmeasurements>{doctor}<severity>- ABNORMAL ECG -</severity>
    <statement><leftstatement>SINUS RHYTHM</leftstatement><rightstatement>V-rate 50-99</rightstatement></statement>
  </interpretation></interpretations>
  <waveforms><parsedwaveforms {attributes} leadlabels="{" ".join(LEADS)}" samplespersecond="500" resolution="5">
{base64.b64encode(data).decode()}
  </parsedwaveforms></waveforms>
</restingecgdata>""".encode()


def rhythm() -> list[list[int]]:
    chance = random.Random(11)
    one, two = ([chance.randint(-300, 300) for _ in range(400)] for _ in range(2))
    return [one, two, *([chance.randint(-300, 300) for _ in range(400)] for _ in range(10))]


def stored(rows: list[list[int]]) -> list[list[int]]:
    """The limb leads III, aVR, aVL, aVF as what a computation from I and II misses (public description of XLI)."""
    one, two, three, right, left, foot = rows[:6]
    return [
        one,
        two,
        [b - a - c for a, b, c in zip(one, two, three, strict=True)],
        [-c - (a + b) // 2 for a, b, c in zip(one, two, right, strict=True)],
        [(a - b) // 2 - c for a, b, c in zip(one, three, left, strict=True)],
        [(a + b) // 2 - c for a, b, c in zip(two, three, foot, strict=True)],
        *rows[6:],
    ]


def test_xli_gives_back_every_sample_and_the_limb_leads() -> None:
    rows = rhythm()
    found = converted(philips(b"".join(packed(s) for s in stored(rows))))
    got = waves(found)
    assert [samples(got[name]) for name in LEADS] == rows
    assert (str(got["I"]["period"]), str(got["I"]["factor"])) == ("2", "5")


def test_a_philips_file_without_compression_says_measurements_statements_and_who_confirmed() -> None:
    rows = rhythm()
    data = b"".join(struct.pack(f"<{len(r)}h", *r) for r in rows)
    found = converted(philips(data, 'dataencoding="Base64"'))
    assert [samples(d) for d in waves(found).values()] == rows
    assert measured(found) == {"8867-4": "72", "8625-6": "160"}
    (report,) = kinds(found, "DiagnosticReport")
    assert (report["status"], report["conclusion"]) == ("final", "SINUS RHYTHM V-rate 50-99\n- ABNORMAL ECG -")
    assert (
        kinds(converted(philips(data, 'dataencoding="Base64"', confirmed=False)), "DiagnosticReport")[0]["status"]
        == "preliminary"
    )


@pytest.mark.parametrize(
    "damaged", [b"", b"\x01\x02", struct.pack("<ihh", -4, 1, 0) + b"\0" * 16, struct.pack("<ihh", 999999, 1, 0)]
)
def test_a_damaged_waveform_is_said_and_the_rest_of_the_file_is_kept(damaged: bytes) -> None:
    found = converted(philips(damaged))
    assert "bad-waveform" in {i.key for i in found.issues}
    assert found.held is None
    assert measured(found)["8867-4"] == "72"


def test_xli_cannot_grow_without_end() -> None:
    with pytest.raises(xli.XliError):
        xli.leads(struct.pack("<ihh", 4, 1, 0) + b"\xff\xff\xff\xff")


def test_an_ecg_format_we_do_not_read_is_held_with_the_reason() -> None:
    with pytest.raises(Unreadable) as fault:
        converted(b"<CardiologyXML><ObservationType>RestECG</ObservationType></CardiologyXML>")
    assert fault.value.issue.key == "unknown-format"
    assert "CardiologyXML" in fault.value.issue.text


def test_a_scale_that_is_no_number_holds_the_file() -> None:
    raw = (DATA / "minimum_aecg.xml").read_bytes().replace(b'value="2.5"', b'value="1.2.3"')
    with pytest.raises(Unreadable) as fault:
        converted(raw)
    assert fault.value.issue.key == "bad-waveform"


def test_sampling_rates_are_exact() -> None:
    assert Decimal(1000) / Decimal(500) == Decimal(str(waves(converted(muse([[1, 2]])))["I"]["period"]))


def test_a_file_of_philips_that_says_unconfirmed_is_not_final_though_it_names_a_doctor() -> None:
    golden = Path(__file__).parents[2] / "mappings" / "golden" / "ecg-philips-confirmed.xml"
    document = golden.read_text("utf-8")
    profile = load_profiles()["generic"]
    for said, status in (("Unconfirmed", "preliminary"), ("Confirmed", "final"), ("", "final")):
        raw = document.replace('status="Confirmed"', f'status="{said}"').encode()
        reports = [
            e.resource
            for e in convert(raw, profile, "philips").entries
            if e.resource["resourceType"] == "DiagnosticReport"
        ]
        assert [r["status"] for r in reports] == [status]


def test_a_mark_for_not_measured_is_no_interval_and_an_axis_may_be_below_zero() -> None:
    golden = Path(__file__).parents[2] / "mappings" / "golden" / "ecg-muse-unconfirmed.xml"
    document = (
        golden.read_text("utf-8").replace("<QTInterval>380<", "<QTInterval>-1<").replace("<RAxis>20<", "<RAxis>-20<")
    )
    found = convert(document.encode(), load_profiles()["generic"], "muse")
    assert [i.where for i in found.issues if i.key == "no-measurement"] == ["measurement[qt]"]
    values = {
        e.resource["code"]["coding"][0]["display"]: e.resource["valueQuantity"]["value"]
        for e in found.entries
        if "valueQuantity" in e.resource
    }
    assert values["QRS axis"] == -20
    assert "QT interval" not in values
