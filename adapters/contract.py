"""What every format and transport speaks: raw message in, envelope out, or Unreadable."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from conformance.issue import Issue


@dataclass(frozen=True, slots=True)
class Envelope:
    """What ``peek`` learns from a message without converting it; enough to accept it into the inbox.

    format         ``hl7v2``
    trigger        message code and trigger event, ``ORU^R01``
    control_id     MSH-10, empty when absent
    sender         (MSH-3.1, MSH-4.1)
    sent_at        MSH-7 with zone, None when absent or unreadable
    charset        the codec the bytes were decoded with (``utf-8``, ``gb18030`` ...)
    patient_keys   business identifiers (``<authority>|<value>``) of every patient named: PID of each group, then MRG-1; they give the
                   shard (first) and the ordering keys; empty when the message names none
    accept_ack     MSH-15 (AL, NE, ER, SU or empty)
    application_ack MSH-16
    version        MSH-12.1
    quality_control MSH-16/SPM-11/no PID told that this is a quality-control run
    pointers       MSH-14 and DSC-1 of a part of a continued message; empty for a whole one
    issues         notes made while peeking (charset mismatch)
    """

    format: str
    trigger: str
    control_id: str
    sender: tuple[str, str]
    sent_at: datetime | None
    charset: str
    patient_keys: tuple[str, ...]
    accept_ack: str = ""
    application_ack: str = ""
    version: str = ""
    quality_control: bool = False
    pointers: tuple[str, ...] = ()
    issues: tuple[Issue, ...] = ()


class Unreadable(Exception):
    """The bytes are not a message of the format; the only exception that leaves an adapter. Carries the Issue to answer with."""

    def __init__(self, issue: Issue) -> None:
        super().__init__(issue.text)
        self.issue = issue
