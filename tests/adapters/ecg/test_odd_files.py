"""ECG files that are not as the usual ones: several series, units that are not said, other versions, two carts at one second.

All are made here, from the HL7 aECG schema and the public layouts of MUSE and Philips (1.03, 1.04); expected values stand in the files.
"""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest

from tests.adapters.ecg.test_ecg import LEADS, converted, kinds, measured, muse, packed, rhythm, samples, stored, waves


def lead(
    name: str, digits: str, scale: str = '<scale value="5" unit="uV"/>', origin: str = '<origin value="0" unit="uV"/>'
) -> str:
    return (
        f'<component><sequence><code code="{name}" codeSystem="2.16.840.1.113883.6.24"/><value>{origin}{scale}'
        f"<digits>{digits}</digits></value></sequence></component>"
    )


def sequences(*leads: str, head: str = "20260302091530.000", unit: str = ' unit="s"', step: str = "0.002") -> str:
    return (
        f'<component><sequenceSet><component><sequence><code code="TIME_ABSOLUTE"/><value><head value="{head}"/>'
        f'<increment value="{step}"{unit}/></value></sequence></component>{"".join(leads)}</sequenceSet></component>'
    )


def annotated(*pairs: tuple[str, str], author: str = "<assignedDevice/>", time: str = "20260302091600") -> str:
    inner = "".join(f'<component><annotation><code code="{c}"/>{v}</annotation></component>' for c, v in pairs)
    return (
        f'<subjectOf><annotationSet><activityTime value="{time}"/><author><assignedEntity><assignedAuthorType>{author}'
        f"</assignedAuthorType></assignedEntity></author>{inner}</annotationSet></subjectOf>"
    )


def series(body: str, low: str = "20260302091530", number: str = "s1") -> str:
    return (
        f'<component><series><id root="{number}"/><code code="RHYTHM"/><effectiveTime><low value="{low}"/></effectiveTime>'
        f"{body}</series></component>"
    )


def aecg(*every: str) -> bytes:
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<AnnotatedECG xmlns="urn:hl7-org:v3" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><id root="a1"/>
<effectiveTime><low value="20260302091530"/></effectiveTime><componentOf><timepointEvent><componentOf><subjectAssignment><subject>
<trialSubject><id root="1.2.3" extension="P7"/><subjectDemographicPerson><name>张三</name></subjectDemographicPerson></trialSubject>
</subject></subjectAssignment></componentOf></timepointEvent></componentOf>{"".join(every)}</AnnotatedECG>""".encode()


def leads_of(raw: bytes) -> list[dict[str, Any]]:
    return [o for o in kinds(converted(raw), "Observation") if "valueSampledData" in o]


def unread(raw: bytes) -> dict[str, str]:
    return {u.where: u.value for u in converted(raw).unread}


HEART_RATE = ("MDC_ECG_HEART_RATE", '<value value="72" unit="bpm"/>')


def test_each_series_of_an_aecg_is_a_report_with_its_own_time_measurements_and_leads() -> None:
    first = series(sequences(lead("MDC_ECG_LEAD_II", "1 2 3")) + annotated(HEART_RATE))
    second = series(
        sequences(lead("MDC_ECG_LEAD_II", "4 5 6"), head="20260302101530.000")
        + annotated(("MDC_ECG_HEART_RATE", '<value value="90" unit="/min"/>')),
        "20260302101530",
        "s2",
    )
    found = converted(aecg(first, second))
    reports = kinds(found, "DiagnosticReport")
    assert [r["effectiveDateTime"] for r in reports] == ["2026-03-02T09:15:30+08:00", "2026-03-02T10:15:30+08:00"]
    rates = {
        o["effectiveDateTime"]: str(o["valueQuantity"]["value"])
        for o in kinds(found, "Observation")
        if "valueQuantity" in o
    }
    assert rates == {"2026-03-02T09:15:30+08:00": "72", "2026-03-02T10:15:30+08:00": "90"}
    assert [o["valueSampledData"]["data"] for o in kinds(found, "Observation") if "valueSampledData" in o] == [
        "1 2 3",
        "4 5 6",
    ]
    assert len({r["id"] for r in reports}) == 2
    assert all(len(r["result"]) == 2 for r in reports)


def test_leads_recorded_one_after_the_other_have_their_own_times_and_one_name_twice_is_two_leads() -> None:
    raw = aecg(
        series(
            sequences(lead("MDC_ECG_LEAD_I", "1 2"), lead("MDC_ECG_LEAD_II", "3 4"))
            + sequences(lead("MDC_ECG_LEAD_V1", "5 6"), head="20260302091532.500")
            + sequences(lead("MDC_ECG_LEAD_II", "7 8 9 10"))
        )
    )
    found = [(o["code"]["text"], o["effectiveDateTime"], o["valueSampledData"]["data"]) for o in leads_of(raw)]
    assert found == [
        ("Lead I", "2026-03-02T09:15:30.000+08:00", "1 2"),
        ("Lead II", "2026-03-02T09:15:30.000+08:00", "3 4"),
        ("Lead V1", "2026-03-02T09:15:32.500+08:00", "5 6"),
        ("Lead II", "2026-03-02T09:15:30.000+08:00", "7 8 9 10"),
    ]
    assert len({o["id"] for o in leads_of(raw)}) == 4


@pytest.mark.parametrize(
    "faulty",
    [
        sequences(lead("MDC_ECG_LEAD_II", "1 2"), unit=""),
        sequences(lead("MDC_ECG_LEAD_II", "1 2"), unit=' unit="min"'),
        sequences(lead("MDC_ECG_LEAD_II", "1 2"), step="0"),
        sequences(lead("MDC_ECG_LEAD_II", "1 2"), step="NaN"),
        sequences(lead("MDC_ECG_LEAD_II", "1 2", '<scale unit="uV"/>')),
        sequences(lead("MDC_ECG_LEAD_II", "1 2", '<scale value="5"/>')),
        sequences(lead("MDC_ECG_LEAD_II", "1 2", origin='<origin value="5"/>')),
        sequences(lead("MDC_ECG_LEAD_II", "")),
        sequences('<component><sequence><code code="MDC_ECG_LEAD_II"/></sequence></component>'),
    ],
)
def test_no_unit_scale_or_interval_is_made_up(faulty: str) -> None:
    raw = aecg(series(faulty + sequences(lead("MDC_ECG_LEAD_V1", "7 8"))))
    found = converted(raw)
    assert [(i.key, i.where) for i in found.issues if i.key == "bad-waveform"] == [("bad-waveform", "lead[II]")]
    assert {n: samples(d) for n, d in waves(found).items()} == {"V1": [7, 8]}


def test_odd_increments_scales_and_origins_are_exact() -> None:
    raw = aecg(
        series(sequences(lead("MDC_ECG_LEAD_II", "-1 0", '<scale value="0.0025" unit="mV"/>', '<origin value="-0.1" unit="mV"/>'),
                         unit=' unit="us"', step="1953.125"))
    )  # fmt: skip
    (data,) = waves(converted(raw)).values()
    assert [str(data[k]) for k in ("period", "factor")] == ["1.953125", "2.5"]
    assert str(data["origin"]["value"]) == "-100"


def test_a_measurement_without_a_unit_gets_none() -> None:
    found = converted(
        aecg(
            series(
                annotated(
                    ("MDC_ECG_TIME_PD_QT", '<value value="0.4"/>'),
                    ("MDC_ECG_TIME_PD_PR", '<value value="0.16" unit="s"/>'),
                )
            )
        )
    )
    quantities = {o["code"]["coding"][0]["code"]: o["valueQuantity"] for o in kinds(found, "Observation")}
    assert "unit" not in quantities["8634-8"]
    assert (str(quantities["8625-6"]["value"]), quantities["8625-6"]["unit"]) == ("0.16", "s")


def test_what_a_person_annotated_counts_before_the_device_and_both_are_told() -> None:
    device = annotated(
        ("MDC_ECG_TIME_PD_QT", '<value value="440" unit="ms"/>'),
        ("MDC_ECG_INTERPRETATION", "<value>心房颤动</value>"),
        ("MDC_ECG_TIME_PD_RR", '<value value="800" unit="ms"/>'),
    )
    person = annotated(
        ("MDC_ECG_TIME_PD_QT", '<value value="400" unit="ms"/>'),
        ("MDC_ECG_INTERPRETATION", "<value>窦性心律</value>"),
        author="<assignedPerson><name>李四</name></assignedPerson>",
        time="20260302103000",
    )
    raw = aecg(series(sequences(lead("MDC_ECG_LEAD_II", "1 2")) + device + person))
    found = converted(raw)
    (report,) = kinds(found, "DiagnosticReport")
    assert (report["status"], report["conclusion"], report["issued"]) == (
        "final",
        "窦性心律",
        "2026-03-02T10:30:00+08:00",
    )
    assert measured(found) == {"8634-8": "400"}
    assert unread(raw) == {
        "annotation[MDC_ECG_TIME_PD_QT]": "440 ms",
        "annotation[device]": "心房颤动",
        "annotation[MDC_ECG_TIME_PD_RR]": "800 ms",
    }


def test_a_derived_series_that_is_no_average_beat_is_not_called_one() -> None:
    def derived(kind: str, digits: str) -> str:
        inner = sequences(lead("MDC_ECG_LEAD_II", digits))
        return f'<derivation><derivedSeries><code code="{kind}"/>{inner}</derivedSeries></derivation>'

    both = derived("RHYTHM", "4 5") + derived("REPRESENTATIVE_BEAT", "6 7")
    found = converted(aecg(series(sequences(lead("MDC_ECG_LEAD_V1", "1 2")) + both)))
    assert {n: samples(d) for n, d in waves(found).items()} == {"V1": [1, 2], "II": [4, 5]}
    assert {n: samples(d) for n, d in waves(found, beat=True).items()} == {"II": [6, 7]}


def test_a_sequence_that_is_no_lead_and_the_filters_are_listed() -> None:
    cutoff = '<code code="X" displayName="Cutoff Frequency"/><value value="150" unit="Hz"/>'
    filtered = f"<controlVariable><controlVariable>{cutoff}</controlVariable></controlVariable>"
    told = unread(aecg(series(filtered + sequences(lead("MDC_RESP_RATE", "1 2")))))
    assert told == {
        "controlVariable[Cutoff Frequency]": "150 Hz",
        "sequence[MDC_RESP_RATE]": "a sequence that is no lead of an ECG",
    }


# --- MUSE -------------------------------------------------------------------------------------------------------------------


def test_two_muse_files_of_one_second_without_a_cart_are_two_reports() -> None:
    first = muse([[1, 2, 3]]).replace(b"<CartNumber>7</CartNumber>", b"")
    second = first.replace(b"<PatientID>", b"<PatientID>9")
    assert first != second
    numbers = [kinds(converted(raw), "DiagnosticReport")[0]["identifier"][0]["value"] for raw in (first, second)]
    assert len(set(numbers)) == 2


def test_two_muse_files_of_one_day_without_a_time_are_two_reports() -> None:
    first = muse([[1, 2, 3]]).replace(b"AcquisitionTime", b"NoTime")
    second = muse([[1, 2, 4]]).replace(b"AcquisitionTime", b"NoTime")
    ids = [kinds(converted(raw), "DiagnosticReport")[0]["id"] for raw in (first, second)]
    assert len(set(ids)) == 2


def test_a_muse_date_of_another_form_keeps_its_time() -> None:
    raw = muse([[1, 2, 3]]).replace(b"03-02-2026", b"2026-03-02")
    (report,) = kinds(converted(raw), "DiagnosticReport")
    assert (
        report["effectiveDateTime"] == kinds(converted(muse([[1, 2, 3]])), "DiagnosticReport")[0]["effectiveDateTime"]
    )


@pytest.mark.parametrize(
    ("there", "instead"),
    [
        (b"<LeadAmplitudeUnits>MICROVOLTS</LeadAmplitudeUnits>", b""),
        (b"<LeadID>I</LeadID>", b"<LeadID>I</LeadID><LeadSampleCountTotal>2500</LeadSampleCountTotal>"),
        (b"<LeadID>I</LeadID>", b"<LeadID>I</LeadID><LeadSampleSize>4</LeadSampleSize>"),
        (b"<LeadAmplitudeUnitsPerBit>4.88<", b"<LeadAmplitudeUnitsPerBit>0.00<"),
        (b"<SampleBase>500<", b"<SampleBase>-500<"),
        (b"<SampleBase>500<", b"<SampleBase>NaN<"),
        (b"<SampleBase>500<", b"<SampleBase>Infinity<"),
    ],
)
def test_a_muse_lead_that_is_cut_or_has_no_unit_stays_in_the_file(there: bytes, instead: bytes) -> None:
    raw = muse([[1, 2, 3]])
    assert there in raw
    found = converted(raw.replace(there, instead))
    assert waves(found) == {}
    assert "bad-waveform" in {i.key for i in found.issues}


def test_a_muse_file_of_windows_says_its_name_and_what_it_has_more() -> None:
    text = muse([[1, 2, 3]]).decode().replace("UTF-8", "ISO-8859-1").replace("utf-8", "ISO-8859-1")
    text = text.replace("<PatientID>", "<Race>UNKNOWN</Race><PatientID>", 1)
    for raw in (
        text.replace("ISO-8859-1", "UTF-16").encode("utf-16"),
        text.replace("ISO-8859-1", "GB2312").encode("gb18030"),
    ):
        found = converted(raw)
        assert found.held is None
        assert kinds(found, "Patient")[0]["name"] == kinds(converted(muse([[1, 2, 3]])), "Patient")[0]["name"]
        assert ("PatientDemographics/Race", "UNKNOWN") in {(u.where, u.value) for u in found.unread}


# --- Philips ----------------------------------------------------------------------------------------------------------------


def sierra(rows: list[list[int]], length: int, extra: str = "") -> bytes:
    data = base64.b64encode(b"".join(packed(s) for s in stored(rows))).decode()
    beat = base64.b64encode(struct.pack("<3h", 1, -2, 3)).decode()
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<restingecgdata xmlns="http://www3.medical.philips.com" status="Not yet determined" lang="en">
<documentinfo><documenttype>SierraECG</documenttype><documentversion>1.03</documentversion></documentinfo>
<dataacquisition date="2026-03-02" time="07:27:34" statflag="False"><machine machineid="0001">HeartstartMRx</machine>
<acquirer><operatorid>OP5</operatorid><institutionname>EMS</institutionname></acquirer><signalcharacteristics>
<samplingrate>500</samplingrate><signalresolution>5</signalresolution><acquisitiontype>STD-12</acquisitiontype>
<bitspersample>16</bitspersample><signaloffset>0</signaloffset><signalsigned>True</signalsigned>
<numberchannelsallocated>12</numberchannelsallocated></signalcharacteristics></dataacquisition>
<patient><generalpatientdata><patientid>X1</patientid><name><lastname>Doe</lastname></name><sex>Female</sex></generalpatientdata></patient>
<measurements><globalmeasurements><qrsfrontaxis>-21</qrsfrontaxis><sthorizaxis>Indeterminate</sthorizaxis><tfrontaxis>Failed</tfrontaxis>
<meanventrate>41</meanventrate><meanprint>151</meanprint><meanqrsdur>135</meanqrsdur><meanqtint>476</meanqtint><meanqtc>393</meanqtc>
</globalmeasurements></measurements>
<interpretations><interpretation date="2026-03-02" time="07:27:34"><interpretationmeasurements><heartrate>42</heartrate>
</interpretationmeasurements><statement><leftstatement>Sinus bradycardia</leftstatement><rightstatement>rate&lt; 50</rightstatement>
</statement></interpretation></interpretations>
<waveforms><parsedwaveforms compressflag="True" compressmethod="XLI" dataencoding="Base64" durationperchannel="{length}"{extra}>{data}
</parsedwaveforms><repbeats dataencoding="Base64"
samplespersec="1000" resolution="1.0"><repbeat leadname="III">{beat}</repbeat></repbeats>
</waveforms></restingecgdata>""".encode()


def test_a_philips_file_of_1_03_has_leads_measurements_and_beats() -> None:
    rows = rhythm()
    found = converted(sierra(rows, 800))
    assert {n: samples(d) for n, d in waves(found).items()} == dict(zip(LEADS, rows, strict=True))
    assert {n: samples(d) for n, d in waves(found, beat=True).items()} == {"III": [1, -2, 3]}
    assert measured(found) == {
        "8867-4": "42",
        "8625-6": "151",
        "8633-0": "135",
        "8634-8": "476",
        "8636-3": "393",
        "8632-2": "-21",
    }
    told = {(u.where, u.value) for u in found.unread}
    assert {("globalmeasurements/meanventrate", "41"), ("globalmeasurements/tfrontaxis", "Failed")} <= told
    assert kinds(found, "DiagnosticReport")[0]["status"] == "preliminary"


@pytest.mark.parametrize(
    ("length", "extra"), [(11000, ""), (800, ' signaloffset="2048"'), (800, ' signalsigned="False"')]
)
def test_philips_samples_that_cannot_be_what_the_file_says_are_not_shown(length: int, extra: str) -> None:
    found = converted(sierra(rhythm(), length, extra))
    assert waves(found) == {}
    assert "bad-waveform" in {i.key for i in found.issues}
    assert measured(found)["8867-4"] == "42"


def test_a_scale_of_nothing_shows_no_flat_line_and_a_zero_is_no_measurement() -> None:
    raw = sierra(rhythm(), 800).replace(b"<signalresolution>5<", b"<signalresolution>0<")
    found = converted(raw.replace(b"<meanqtint>476<", b"<meanqtint>0<"))
    assert waves(found) == {}
    assert {i.key for i in found.issues} >= {"bad-waveform", "no-measurement"}
    assert "8634-8" not in measured(found)
    assert measured(found)["8867-4"] == "42"
