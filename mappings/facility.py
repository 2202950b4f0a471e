"""Facility profiles: everything that differs between two hospitals, as YAML, validated at load.

A profile names its file, line and key when it is wrong. It may inherit (``base: <id>``): maps merge key by key, lists are replaced.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

ObservationStatus = Literal[
    "registered", "preliminary", "final", "amended", "corrected", "cancelled", "entered-in-error", "unknown"
]
"""http://hl7.org/fhir/R4/valueset-observation-status.html"""
ReportStatus = Literal[
    "registered",
    "partial",
    "preliminary",
    "final",
    "amended",
    "corrected",
    "appended",
    "cancelled",
    "entered-in-error",
    "unknown",
]
"""http://hl7.org/fhir/R4/valueset-diagnostic-report-status.html"""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Organization(_Part):
    """The facility as an Organization: names, business identifier, level (医院等级) and region (GB/T 2260 code), and who owns it."""

    name: str
    name_en: str = ""
    identifier: str = ""
    level: str = ""
    region: str = ""
    consortium: str = ""
    ownership: Literal["", "public", "private"] = ""


class Sender(_Part):
    """MSH-3.1 and MSH-4.1 that this facility writes; an empty application agrees with any."""

    application: str = ""
    facility: str


class Channel(_Part):
    """Who may speak for the facility: peers by network (CIDR), by client certificate name, or by a port of its own."""

    name: str = "default"
    addresses: list[str] = Field(default_factory=list)
    certificate: str = ""
    port: int = 0
    messages_per_second: float = 0
    max_bytes: int = 16 * 1024 * 1024
    backfill: bool = False
    """Carries old results in bulk: the slow lane, which notifies nobody."""


class Identifiers(_Part):
    """Reading PID-2/3/4/18/19 and PV1-19.

    patient      CX.5 type codes that name the facility's patient, best first (the patient key); "" is "no type given"
    resident_id  CX.5 type codes or CX.4 authorities that say "resident ID number"
    authorities  CX.4 namespace id -> FHIR identifier system
    dicom_issuer CX.4 that the facility's messages name for the number its modalities write as Patient ID (0010,0020) without issuer
    """

    patient: list[str] = Field(default_factory=lambda: ["PI", "MR", "PT", ""])
    resident_id: list[str] = Field(default_factory=lambda: ["NI", "NNCHN", "SB", "IDCARD"])
    authorities: dict[str, str] = Field(default_factory=dict)
    dicom_issuer: str = ""


class Codes(_Part):
    """CSV files, relative to the profile: local test codes, order codes, and units beside the shipped unit table.

    loinc  True when the facility's codes of system ``LN`` were reviewed and are LOINC: they then reach the catalogue without a table.
           Private codes labelled LN are common, so the default is not to believe the label.
    """

    tests: str = ""
    orders: str = ""
    units: str = ""
    loinc: bool = False


class Retry(_Part):
    """When a delivery that failed is tried again: after ``first_seconds``, doubled each time up to ``longest_seconds``, each with a
    random part. A message the receiver answers with an error is given up after ``most`` attempts; one that is away is waited for."""

    first_seconds: float = Field(default=1.0, gt=0, le=3600)
    longest_seconds: float = Field(default=300.0, gt=0, le=86400)
    most: int = Field(default=50, ge=1)


class Destination(_Part):
    """Where results for the facility go: an MLLP server (``host``, ``port``) or an HTTP address (``url``); one of the two.

    content      the message, or the same as FHIR Bundle or as plain JSON (HTTP only)
    application  MSH-5; facility: MSH-6, by default the first MSH-4 the facility itself writes
    charset      of the message; separators: MSH-1 and MSH-2
    tls          speak TLS over MLLP; ``ca`` verifies the server, ``certificate`` and ``key`` are shown to it. Files, relative to the
                 profile. An ``https`` address uses them too
    token_file   file whose text is sent as bearer token over HTTP, read before each connection
    timeout      seconds for a connection and for an answer
    """

    name: str = Field(default="default", pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")
    host: str = ""
    port: int = 0
    url: str = ""
    content: Literal["hl7v2", "fhir", "json"] = "hl7v2"
    application: str = ""
    facility: str = ""
    charset: Literal["utf-8", "gb18030"] = "utf-8"
    separators: str = "|^~\\&"
    tls: bool = False
    ca: str = ""
    certificate: str = ""
    key: str = ""
    token_file: str = ""
    timeout: float = Field(default=30.0, gt=0, le=600)
    retry: Retry = Field(default_factory=Retry)


class Table(_Part):
    """A table the facility exports: its header contract.

    name       of the table; MSH-9.2 of what is made of it
    columns    the standard's place -> column: ``OBX-5: 结果``; all of them have to be in the header, but the ``optional`` ones
    constants  the standard's place -> value of every row that says nothing there
    element    of an XML file: the element that is a row
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")
    columns: dict[str, str]
    constants: dict[str, str] = Field(default_factory=dict)
    optional: list[str] = Field(default_factory=list)
    element: str = ""


class Watermark(_Part):
    """A column that grows whenever a row is written: what was not there yet has a greater value, or one a little smaller than the last.

    kind     time: date or timestamp (without a zone it is the facility's time); number; text: a time written as text in ``format``
             (``yyyyMMddHHmmss``), which has to sort as the times do
    overlap  how far behind the greatest value rows may still appear (late commits): seconds, or numbers. Has to be longer than the
             longest transaction of the vendor's program
    since    the first value wanted, as the column writes it (``2026-01-01``); empty: everything
    """

    column: str = Field(min_length=1)
    kind: Literal["time", "number", "text"] = "time"
    format: str = ""
    overlap: float = Field(default=1800, ge=0)
    since: str = ""


class SyncFlag(_Part):
    """A column that says whether a row was fetched (同步标志): rows with ``unread`` are fetched, then it is set to ``read``."""

    column: str = Field(min_length=1)
    unread: int | str | None
    read: int | str


class Poll(_Part):
    """A table or view of the facility's database that is asked for new reports (中间库); one of ``watermark`` and ``flag``.

    name      of the channel
    database  its connection: a table of the databases file (setting ``databases_file``); no address stands here
    source    the table or view, ``lis.v_report``
    table     the contract in ``tables`` that says what its columns are
    report    columns that tell one report from another: its rows become one message, always all of them
    key       columns that tell one row from another; needed to set a flag
    seconds   between two looks; chunk: rows of one look at most
    latin1    texts are bytes of the facility's ``charset`` that the database takes for Latin-1
    backfill  carries old results in bulk: the slow lane, which notifies nobody
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")
    database: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")
    source: str = Field(min_length=1)
    table: str
    report: list[str] = Field(min_length=1)
    key: list[str] = Field(default_factory=list)
    watermark: Watermark | None = None
    flag: SyncFlag | None = None
    seconds: float = Field(default=10.0, ge=0.1, le=86400)
    chunk: int = Field(default=5000, ge=1, le=50_000)
    latin1: bool = False
    backfill: bool = False


class WebService(_Part):
    """A web service that takes one string, as the vendor of the facility calls it already (SOAP, ``/soap/<facility id>``).

    operation   its name; namespace: the target namespace of its WSDL, one for all of a facility; empty: ours
    parameters  names of its string parameters, in order; payload: the one that holds the message or document
    result      name of the string it answers; empty: ``<operation>Result``
    accepted, refused  what it answers: ``{id}`` inbox id, ``{status}``, ``{text}`` why it is held
    """

    operation: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,63}$")
    namespace: str = Field(default="", pattern=r"^[A-Za-z0-9:/._?=#%-]*$")
    parameters: list[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,63}$")]]
    payload: str
    result: str = Field(default="", pattern=r"^([A-Za-z_][A-Za-z0-9_.-]{0,63})?$")
    accepted: str = (
        "<Response><ResultCode>0</ResultCode><ResultContent>成功</ResultContent><MessageId>{id}</MessageId></Response>"
    )
    refused: str = "<Response><ResultCode>-1</ResultCode><ResultContent>{text}</ResultContent><MessageId>{id}</MessageId></Response>"

    @model_validator(mode="after")
    def _names_its_payload(self) -> WebService:
        if self.payload not in self.parameters or len(set(self.parameters)) != len(self.parameters):
            raise ValueError("payload has to be one of parameters, and each may stand there once")
        return self


class Pacs(_Part):
    """A picture archive of the facility.

    dicomweb    base address of its DICOMweb services (PS3.18), without a slash at the end
    host        with ``port`` and ``ae``: its DIMSE services
    endpoint    address of the DICOMweb services as the county reaches them, the Endpoint of its ImagingStudy; empty: ``dicomweb``
    poll        how new studies are asked for: ``qido`` (PS3.18 section 10.6), ``find`` (C-FIND, PS3.4 annex C), or not at all
    ca          verifies an ``https`` server; ``certificate`` and ``key`` are shown to it. Files, relative to the profile
    token_file  file whose text is sent as bearer token, read before each request
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")
    dicomweb: str = Field(default="", pattern=r"^(https?://[^\s?#]*[^\s?#/])?$")
    endpoint: str = Field(default="", pattern=r"^(https?://\S+)?$")
    host: str = ""
    port: int = Field(default=0, ge=0, le=65535)
    ae: str = Field(default="", max_length=16)
    poll: Literal["", "qido", "find"] = ""
    poll_seconds: float = Field(default=60, ge=1, le=86400)
    overlap_hours: float = Field(default=24, ge=0, le=24 * 31)
    """A study is looked for again until so long after its own date: what reaches the archive late is not missed."""
    since: date | None = None
    """Day of the oldest studies wanted when the archive is asked for the first time; by default that day."""
    ca: str = ""
    certificate: str = ""
    key: str = ""
    token_file: str = ""
    timeout: float = Field(default=30.0, gt=0, le=600)


class ImageSource(_Part):
    """An application entity that sends images (C-STORE), and what becomes of their pixels.

    ae           its title (calling AE); addresses, certificate: as of a Channel
    pixels       ``folder``: kept as files below ``folder``; ``forward``: sent on to ``pacs`` by STOW-RS; ``drop``: only for what is a
                 copy of a PACS, which has them. There is no default: no modality may delete its only copy because of us
    pacs         name of the archive that gets the pixels, or has them
    report_to    ``host:port`` where the outcome of a storage commitment is reported; empty: on the association that asked
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")
    ae: str = Field(min_length=1, max_length=16)
    addresses: list[str] = Field(default_factory=list)
    certificate: str = ""
    pixels: Literal["folder", "forward", "drop"]
    folder: str = ""
    pacs: str = ""
    report_to: str = Field(default="", pattern=r"^(\S+:\d{1,5})?$")
    max_bytes: int = Field(default=2 * 1024**3, ge=1024)
    backfill: bool = False


class Facility(_Part):
    """One facility profile. ``generic`` is the profile for a sender nobody has described yet."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")
    base: str = ""
    organization: Organization
    senders: list[Sender] = Field(default_factory=list)
    channels: list[Channel] = Field(default_factory=list)
    charset: str = ""
    time_zone: str = "Asia/Shanghai"
    identifiers: Identifiers = Field(default_factory=Identifiers)
    codes: Codes = Field(default_factory=Codes)
    performers: dict[str, str] = Field(default_factory=dict)
    """OBX-15.1/OBX-23 code or name -> facility id of the performing laboratory."""
    default_performer: Literal["sender", "unknown"] = "unknown"
    """Who performed a test when OBX-15/23 and OBR do not say: the sender itself, or nobody is named."""
    flags: dict[str, str] = Field(default_factory=dict)
    """OBX-8 text -> v3 ObservationInterpretation code, before the shipped table."""
    observation_status: dict[str, ObservationStatus] = Field(default_factory=dict)
    """OBX-11 text -> Observation.status, before the shipped table."""
    report_status: dict[str, ReportStatus] = Field(default_factory=dict)
    """OBR-25 text -> DiagnosticReport.status, before the shipped table."""
    destinations: list[Destination] = Field(default_factory=list)
    """Where results that others made for this facility are sent to (docs/outbound.md)."""
    image_sources: list[ImageSource] = Field(default_factory=list)
    """Who may send images of the facility (docs/connect-dicom.md)."""
    pacs: list[Pacs] = Field(default_factory=list)
    """Its picture archives; the first with a DICOMweb address is the Endpoint of its ImagingStudy resources."""
    triggers: dict[str, str] = Field(default_factory=dict)
    """Own message types: MSH-9 as sent (``ZLB^Z01``) -> what it means (``ORU^R01``)."""
    paths: dict[str, str] = Field(default_factory=dict)
    """Where something is really found: the standard's place -> this sender's (``PID-19: ZPI-2``, ``OBX-3.1: OBX-3.4``)."""
    tables: list[Table] = Field(default_factory=list)
    """Tables the facility exports (CSV, TSV, XLSX, JSON, XML), by header contract."""
    polls: list[Poll] = Field(default_factory=list)
    """Tables and views of its database that are asked for new reports (docs/connect-database.md)."""
    spoken_for_by: list[str] = Field(default_factory=list)
    """Facilities that may send for this one: the ECG centre that reads over its recordings. What they send is this facility's when it
    names it, by its name or as a sender (MSH-3/4, institution of a recording); never over MLLP, where channels say who speaks."""
    web_services: list[WebService] = Field(default_factory=list)
    """SOAP web services of one string that its vendor calls (docs/connect-soap.md); none: ``HIPMessageServer``."""
    date_formats: list[str] = Field(default_factory=list)
    """Dates written another way than HL7 or ISO: ``dd/MM/yyyy HH:mm:ss``, tried in order before the others."""
    sub_ids: Literal["observations", "components"] = "observations"
    """Results of one code told apart by OBX-4: an Observation each, or one with components."""
    order_numbers: Literal["lasting", "daily"] = "lasting"
    """``daily``: order and specimen numbers (OBR-3, SPM-2) start again every day, as analysers do; the day is then part of them."""
    processing_id: Literal["counts", "ignored"] = "counts"
    """``ignored``: this sender writes MSH-11 T or D in everything it sends (docs/recognition.md, Training and debugging)."""
    quality_control_patients: list[str] = Field(default_factory=list)
    """Regular expressions on the PID-3 value that mark a quality-control run."""

    @model_validator(mode="after")
    def _one_description(self) -> Facility:
        # One WSDL describes them all.
        names = [s.operation for s in self.web_services]
        if len({s.namespace for s in self.web_services}) > 1 or len(set(names)) != len(names):
            raise ValueError("web_services of a facility have one namespace, and operations of different names")
        return self
