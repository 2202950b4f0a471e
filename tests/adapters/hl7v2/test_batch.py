"""Counts of batch trailers (HL7 v2.5.1 sections 2.15.3 and 2.15.7)."""

from __future__ import annotations

import pytest

from adapters.hl7v2.batch import shortage

ONE = b"MSH|^~\\&|LIS|H1|TJ|C|20240501||ORU^R01|B1|P|2.5.1\rPID|1\r"
PART = ONE.replace(b"|2.5.1", b"|2.5.1||C1")
FHS, BHS = b"FHS|^~\\&|LIS\r", b"BHS|^~\\&|LIS\r"


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        (FHS + BHS + ONE + ONE + b"BTS|2\rFTS|1\r", ""),
        (FHS + BHS + ONE + ONE + b"BTS\rFTS\r", ""),
        (FHS + BHS + ONE + b"BTS||5\r", ""),
        (BHS + ONE + PART + b"BTS|1\r", ""),
        (BHS + ONE + PART + b"BTS|2\r", ""),
        (ONE + ONE, ""),
        (FHS + BHS + ONE + ONE + b"BTS|7\rFTS|1\r", "BTS[1]-1"),
        (BHS + ONE + b"BTS|1\r" + BHS + ONE + ONE + b"BTS|1|the rest\r", "BTS[2]-1"),
        (FHS + BHS + ONE + b"BTS|1\rFTS|3\r", "FTS[1]-1"),
        ((BHS + ONE + b"BTS|9\r").replace(b"\r", b"\n"), "BTS[1]-1"),
    ],
)
def test_a_count_that_is_there_and_wrong_is_told(raw: bytes, where: str) -> None:
    found = shortage(raw)
    assert (found.where if found else "") == where
