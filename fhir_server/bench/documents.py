"""Documents for ``tongjian bench convert``: a laboratory report C0007 of 20 items and a 12-lead aECG of ten seconds at 500 Hz."""

from __future__ import annotations

import random

_DE = 'codeSystem="2.16.156.10011.2.2.1"'
_LEADS = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")


def cda(number: int, seed: int, items: int = 20) -> bytes:
    """One report; ``number`` is its report number."""
    chance = random.Random(seed + number)  # noqa: S311 - test data
    entries = "".join(_item(n, chance) for n in range(items))
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<ClinicalDocument xmlns="urn:hl7-org:v3" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
<templateId root="2.16.156.10011.2.1.1.27"/><id root="2.16.156.10011.1.1" extension="D{number}"/>
<code code="C0007" codeSystem="2.16.156.10011.2.4"/><title>检验报告</title>
<effectiveTime value="20260302103000"/>
<recordTarget><patientRole><id root="2.16.156.10011.1.12" extension="ZY{number}"/><id root="2.16.156.10011.1.33" extension="R{number}"/>
<id root="2.16.156.10011.1.24" extension="S{number}"/>
<patient>
<id root="2.16.156.10011.1.13" extension="P{number % 500}"/><name>王建国</name>
<administrativeGenderCode code="1"/><birthTime value="19620517"/></patient></patientRole></recordTarget>
<author><time value="20260302102500"/><assignedAuthor>
<id root="2.16.156.10011.1.7" extension="D1"/></assignedAuthor></author>
<legalAuthenticator><assignedEntity><id root="2.16.156.10011.1.4" extension="D2"/>
<assignedPerson><name>李审核</name></assignedPerson></assignedEntity>
</legalAuthenticator><component><structuredBody><component><section><code code="30954-2" codeSystem="2.16.840.1.113883.6.1"/>
<text/>{entries}</section>
</component></structuredBody>
</component></ClinicalDocument>""".encode()


def _item(number: int, chance: random.Random) -> str:
    def entry(code: str, inner: str) -> str:
        return f'<entry><observation classCode="OBS" moodCode="EVN"><code code="{code}.00" {_DE}/>{inner}</observation></entry>'

    unit = entry("DE04.30.016", '<value xsi:type="ST">mmol/L</value>').replace("entry>", "entryRelationship>")
    return (
        entry("DE04.30.019", f'<effectiveTime value="20260302095000"/><value xsi:type="ST">T{number}</value>')
        + entry(
            "DE04.30.017", f'<value xsi:type="CD" code="{chance.choice("12")}" codeSystem="2.16.156.10011.2.3.2.38"/>'
        )
        + entry("DE04.30.015", f'<value xsi:type="REAL" value="{chance.uniform(1, 90):.2f}"/>{unit}')
    )


def aecg(number: int, seed: int, samples: int = 5000) -> bytes:
    """One recording; ``number`` is its id."""
    chance = random.Random(seed + number)  # noqa: S311 - test data
    sequences = "".join(
        f'<component><sequence><code code="MDC_ECG_LEAD_{lead}"/><value xsi:type="SLIST_PQ"><origin value="0" unit="uV"/>'
        f'<scale value="2.5" unit="uV"/><digits>{" ".join(str(chance.randint(-400, 400)) for _ in range(samples))}</digits></value>'
        "</sequence></component>"
        for lead in _LEADS
    )
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<AnnotatedECG xmlns="urn:hl7-org:v3" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
<id root="1.2.3" extension="E{number}"/>
<effectiveTime><center value="20260302091000"/></effectiveTime><componentOf><timepointEvent><componentOf><subjectAssignment>
<subject><trialSubject>
<id root="1.2.4" extension="P{number % 500}"/><subjectDemographicPerson><name>王建国</name>
<administrativeGenderCode code="M"/>
<birthTime value="19620517"/></subjectDemographicPerson></trialSubject></subject>
</subjectAssignment></componentOf></timepointEvent></componentOf>
<component><series><code code="RHYTHM"/><component><sequenceSet><component><sequence>
<code code="TIME_RELATIVE"/>
<value xsi:type="GLIST_PQ"><head value="0" unit="s"/><increment value="0.002" unit="s"/></value></sequence></component>
{sequences}</sequenceSet></component></series></component>
</AnnotatedECG>""".encode()
