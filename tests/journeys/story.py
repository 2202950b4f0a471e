"""Stories of a few patients whose messages contradict, correct and cancel each other: as HL7 v2 bytes, and what the store holds after.

An event is one message. The end of a story must not depend on the order in which its messages arrive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from hypothesis import strategies as st

from conformance.fhirjson import loads
from fhir_server.ingest.inbox import LIVE, Claimed
from fhir_server.ingest.pipeline import Pipeline
from fhir_server.store.body import Codec
from mappings.ids import shard_of
from mappings.profile import Profile

_BEGIN = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)
PATIENTS = ("A", "B", "C")
REPORTS = ("R1", "R2")
CODES = ("T1", "T2", "T3")


@dataclass(frozen=True)
class Event:
    """kind: result, order, registration, merge or unlink. at: minute of the statement (OBR-22, ORC-9); sent: minute of MSH-7.

    status: OBR-25, or ORC-1 of an order. values: (code, value, OBX-11). other: the patient merged away.
    """

    kind: str
    patient: str
    report: str
    at: int
    sent: int
    status: str
    values: tuple[tuple[str, str, str], ...]
    other: str

    def message(self) -> bytes:
        """The HL7 v2.5.1 message."""
        kinds = {
            "result": "ORU^R01^ORU_R01",
            "order": "ORM^O01^ORM_O01",
            "registration": "ADT^A08^ADT_A01",
            "merge": "ADT^A40^ADT_A39",
            "unlink": "ADT^A37^ADT_A37",
        }
        control = hashlib.blake2b(repr(self).encode(), digest_size=8).hexdigest()
        lines = [f"MSH|^~\\&|LIS|ALPHA|TJ|TJ|{_time(self.sent)}||{kinds[self.kind]}|{control}|P|2.5.1"]
        pid = f"PID|1||{self.patient}^^^ALPHA^PI||王{self.patient}||19620517|M"
        if self.kind == "registration":
            return _joined([*lines, f"EVN|A08|{_time(self.sent)}", f"{pid}||||||{self.at}", "PV1|1|O"])
        if self.kind == "merge":
            return _joined([*lines, f"EVN|A40|{_time(self.sent)}", pid, f"MRG|{self.other}^^^ALPHA^PI"])
        if self.kind == "unlink":
            other = f"PID|1||{self.other}^^^ALPHA^PI||王{self.other}||19620517|M"
            return _joined([*lines, f"EVN|A37|{_time(self.sent)}", pid, other])
        placer, at = f"O{self.report}", _time(self.at)
        orc = f"ORC|{self.status if self.kind == 'order' else 'RE'}|{placer}|{self.report}||||||{at}"
        if self.kind == "order":
            return _joined([*lines, pid, "PV1|1|O", orc, f"OBR|1|{placer}|{self.report}|BIO^生化"])
        lines += [pid, "PV1|1|O", orc]
        lines += [f"OBR|1|{placer}|{self.report}|BIO^生化|||{_time(0)}|||||||||||||||{at}|||{self.status}"]
        lines += [
            f"OBX|{n}|NM|{code}^项目||{value}|mmol/L|3-9|N|||{status}|||{_time(0)}"
            for n, (code, value, status) in enumerate(self.values, 1)
        ]
        return _joined(lines)


def _joined(lines: Sequence[str]) -> bytes:
    return ("\r".join(lines) + "\r").encode()


def _time(minute: int) -> str:
    return (_BEGIN + timedelta(minutes=minute)).strftime("%Y%m%d%H%M%S")


_VALUES = st.lists(
    st.tuples(st.sampled_from(CODES), st.sampled_from(("4.0", "5.10", "6")), st.sampled_from("FFFCPXDW")),
    min_size=1,
    max_size=3,
    unique_by=lambda v: v[0],
).map(tuple)


@st.composite
def _events(draw: st.DrawFn) -> Event:
    kind = draw(st.sampled_from(("result",) * 6 + ("order", "registration", "merge", "unlink")))
    patient = draw(st.sampled_from(PATIENTS))
    at = draw(st.integers(1, 5))
    return Event(
        kind=kind,
        patient=patient,
        report=draw(st.sampled_from(REPORTS)),
        at=at,
        sent=at + draw(st.integers(0, 2)),
        status=draw(st.sampled_from(("NW", "CA", "SC", "OC") if kind == "order" else tuple("FFCPXAI"))),
        values=draw(_VALUES),
        other=draw(st.sampled_from([p for p in PATIENTS if p != patient])),
    )


stories = st.lists(_events(), min_size=2, max_size=7, unique=True)


class Teller:
    """Tells stories to the store, as a worker does, inside one transaction of ``conn`` that is taken back."""

    def __init__(self, conn: psycopg.Connection[Any], profiles: Mapping[str, Profile]) -> None:
        self._conn = conn
        self._codec = Codec.load(conn)
        conn.commit()
        self._now = _BEGIN + timedelta(hours=1)
        self._pipeline = Pipeline(profiles, self._codec, lambda: self._now)

    def tell(self, batches: Sequence[Sequence[Event]]) -> dict[str, Any]:
        """Converts and applies the messages batch by batch; gives the state at the end."""
        number = 0
        for batch in batches:
            claimed = []
            for event in batch:
                number += 1
                claimed.append(_claimed(event, number))
                one = claimed[-1]
                self._conn.execute(_CLAIMED, (one.shard, number, str(number), one.sent_at, number.to_bytes(32, "big")))
            self._now += timedelta(seconds=1)
            outcomes = self._pipeline.work(self._conn, "teller", claimed)
            assert all(o.reason not in ("conversion-failed", "store-refused") for o in outcomes), outcomes
        state = self._state()
        self._conn.rollback()
        return state

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = {}
        for rtype, withdrawn, dictionary, body, *names in self._conn.execute(
            'SELECT rtype, withdrawn, dict, body, id, patient, "order" FROM resource'
        ):
            logical = names[0]
            resource = loads(self._codec.decompress(dictionary, bytes(body), names))
            # When it came, and from which of several equal messages, is the only thing that may differ.
            for name in ("versionId", "lastUpdated", "source"):
                resource["meta"].pop(name, None)
            state[f"{rtype}/{logical}"] = (resource, withdrawn)
        for table, columns in (
            ("result", "patient, report, code, number, status, id"),
            ("source_patient", "patient, person"),
            ("identity_merge", "patient, surviving, linked"),
            ("identity_review", "patient, other, reason"),
        ):
            condition = {"result": "until IS NULL", "identity_review": "closed IS NULL"}.get(table, "true")
            rows = self._conn.execute(f"SELECT {columns} FROM {table} WHERE {condition} ORDER BY {columns}")
            state[table] = rows.fetchall()
        return state


_CLAIMED = """
INSERT INTO inbox (shard, id, facility, channel, format, trigger, control_id, sent_at, received_at, sha256, size, charset, lane, keys,
                   status, claimed_by, raw)
OVERRIDING SYSTEM VALUE VALUES (%s, %s, 'alpha', 'default', 'hl7v2', '', %s, %s, now(), %s, 0, '', 0, '{}', 'claimed', 'teller', '')
"""


def _claimed(event: Event, number: int) -> Claimed:
    sent = _BEGIN + timedelta(minutes=event.sent)
    received = _BEGIN + timedelta(hours=1)
    shard = shard_of("alpha", f"ALPHA|{event.patient}")
    return Claimed(shard, number, "alpha", "default", "hl7v2", str(number), sent, received, LIVE, 1, event.message())
