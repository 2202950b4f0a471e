"""Settings: environment variables over one TOML file over defaults; typed, documented in docs/settings.md (a test compares).

Environment: ``TONGJIAN_<NAME>`` in upper case; ``DATABASE_URL`` is understood without the prefix. The file is ``tongjian.toml`` in
the working directory, or the one that ``TONGJIAN_CONFIG`` names.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, AliasChoices, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from fhir_server import clock

OWN_MACHINE = frozenset({"127.0.0.1", "::1", "localhost"})


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError) as fault:
        raise ValueError(f"'{name}' is not a time zone name such as Asia/Shanghai") from fault
    return name


def _addresses(text: str) -> str:
    for entry in text.split():
        parts = urlsplit(entry)
        if parts.scheme not in ("https", "http") or not parts.hostname or parts.query or parts.username is not None:
            raise ValueError(f"'{entry}' is not the beginning of an address such as https://his.example.org/fhir/")
        if "*" in parts.hostname.removeprefix("*.") or parts.hostname.removeprefix("*.").count(".") < (
            "*" in parts.hostname
        ):
            raise ValueError(
                f"'{entry}': a star stands for the first part of a name of at least three (*.apps.example.org)"
            )
    return text


def _origins(text: str) -> str:
    for entry in text.split():
        parts = urlsplit(entry)
        if (
            parts.scheme not in ("https", "http")
            or not parts.hostname
            or "*" in entry
            or entry != f"{parts.scheme}://{parts.netloc}"
        ):
            raise ValueError(f"'{entry}' is not an origin such as https://his.example.org")
    return text


def _networks(text: str) -> str:
    for entry in text.split():
        try:
            ipaddress.ip_network(entry)
        except ValueError:
            raise ValueError(f"'{entry}' is not a network such as 10.20.0.0/16") from None
    return text


class SettingsError(Exception):
    """The settings cannot be used; the text names each wrong setting and what it should be."""


class Settings(BaseSettings):
    """All settings of one installation. Sizes in bytes, times in the unit the name ends with."""

    model_config = SettingsConfigDict(env_prefix="TONGJIAN_", extra="forbid", populate_by_name=True)

    database_url: str = Field(
        "",
        validation_alias=AliasChoices("database_url", "DATABASE_URL", "TONGJIAN_DATABASE_URL"),
        description="PostgreSQL 15 or newer, postgresql://user:password@host:port/name. Empty: an embedded PostgreSQL in data_dir.",
    )
    data_dir: Path = Field(Path("var"), description="Folder of the embedded database, the signing keys and the spool.")
    profiles_dir: Path | None = Field(
        None, description="Folder of facility profiles (*.yaml). Empty: the shipped example county."
    )
    rules_dir: Path | None = Field(
        None,
        description="Folder of the consortium's own rules (items, orderables, members, marks, eqa, sensitive: CSV; policy: YAML), laid "
        "file by file over the shipped ones. Empty: the shipped ones.",
    )
    clients_file: Path | None = Field(
        None,
        description="TOML file of systems that may ask for tokens with a signed assertion (SMART backend services).",
    )
    oidc_file: Path | None = Field(
        None,
        description="YAML file of OpenID Connect providers whose access tokens are accepted, with the mapping of their claims "
        "(docs/access.md). Empty: none.",
    )
    host: str = Field("127.0.0.1", description="Address the HTTP server listens on.")
    port: int = Field(8080, ge=0, le=65535, description="HTTP port; 0 takes a free one.")
    base_url: str = Field(
        "", description="Address of the FHIR API as clients see it. Empty: http://<host>:<port>/fhir."
    )
    https_certificate: Path | None = Field(
        None, description="PEM certificate chain; set together with https_key to serve HTTPS."
    )
    https_key: Path | None = Field(None, description="PEM private key of https_certificate.")
    https_client_ca: Path | None = Field(
        None, description="PEM authorities; when set, HTTP clients must show a certificate they issued."
    )
    http_max_connections: int = Field(
        1000, ge=1, description="HTTP connections open at once; beyond, the one that waits longest is closed."
    )
    http_read_seconds: float = Field(
        30, gt=0, description="The head of an HTTP request has to arrive within this time, and then its body."
    )
    http_keep_alive_seconds: int = Field(
        30, ge=1, description="An HTTP connection without a request is closed after this time."
    )
    mllp_host: str = Field("127.0.0.1", description="Address the MLLP server listens on.")
    mllp_port: int = Field(
        2575, ge=0, le=65535, description="MLLP port shared by all channels without a port of their own; 0: free."
    )
    mllp_certificate: Path | None = Field(
        None, description="PEM certificate chain; set together with mllp_key for MLLP over TLS."
    )
    mllp_key: Path | None = Field(None, description="PEM private key of mllp_certificate.")
    mllp_client_ca: Path | None = Field(
        None, description="PEM authorities; when set, senders must show a certificate they issued."
    )
    mllp_max_message: int = Field(
        16 * 1024 * 1024, ge=1024, description="Largest accepted message; a channel may set less."
    )
    mllp_max_connections: int = Field(
        1000,
        ge=1,
        description="MLLP connections at once; beyond, one that never sent a message is closed, else the new one.",
    )
    mllp_frame_seconds: float = Field(
        300, gt=0, description="A message that began has to be complete within this time."
    )
    mllp_idle_seconds: float = Field(3600, gt=0, description="A silent connection is closed after this time.")
    dicom_host: str = Field("127.0.0.1", description="Address the DICOM server listens on.")
    dicom_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of the DICOM server (C-STORE, C-ECHO), often 11112. Empty: none; 0: free.",
    )
    dicom_ae_title: str = Field(
        "TONGJIAN", min_length=1, max_length=16, description="Application entity title modalities call."
    )
    dicom_certificate: Path | None = Field(
        None, description="PEM certificate chain; set together with dicom_key for DICOM over TLS."
    )
    dicom_key: Path | None = Field(None, description="PEM private key of dicom_certificate.")
    dicom_client_ca: Path | None = Field(
        None, description="PEM authorities; when set, modalities must show a certificate they issued."
    )
    dicom_max_associations: int = Field(
        20, ge=1, le=200, description="DICOM associations at once; beyond, a new one is rejected for the time being."
    )
    dicom_max_pdu: int = Field(
        131_072, ge=4096, le=16_777_216, description="Largest protocol data unit a modality may send; it is told so."
    )
    dicom_max_object: int = Field(
        2 * 1024**3, ge=1024, description="Largest DICOM object; an image source of a profile may set less."
    )
    dicom_idle_seconds: float = Field(60, gt=0, description="A silent association is ended after this time.")
    dicom_object_seconds: float = Field(600, gt=0, description="A DICOM object that began has to end within this time.")
    dicom_study_seconds: float = Field(
        30, ge=0, description="A study that got no new object for this time goes to the inbox as it is."
    )
    dicom_release_seconds: float = Field(
        5, ge=0, description="The same after the end of the association that brought its last object."
    )
    drop_dir: Path | None = Field(
        None,
        description="Folder with one folder for each facility, named by its id; files put there are taken in, then moved to "
        "its done or failed. Empty: none.",
    )
    drop_seconds: float = Field(
        2.0, gt=0, description="A file in drop_dir is complete when it did not change for this time."
    )
    relay_server: str = Field(
        "", description="`tongjian relay`: address of the county's server, https://host:port, without a path."
    )
    relay_secret_file: Path | None = Field(
        None, description="`tongjian relay`: file with its bearer token, or with the secret of relay_client."
    )
    relay_client: str = Field(
        "", description="`tongjian relay`: id of the system client whose secret it shows; empty: a bearer token."
    )
    relay_ca: Path | None = Field(
        None,
        description="`tongjian relay`: PEM authorities that the server is verified with; empty: those of the system.",
    )
    relay_name: str = Field(
        "", description="`tongjian relay`: its name in the status of the server; empty: the name of the machine."
    )
    relay_drop_dir: Path | None = Field(
        None, description="`tongjian relay`: folder whose files it takes, then moves to done or failed. Empty: none."
    )
    relay_max_bytes: int = Field(
        10 * 1024**3, ge=1024**2, description="`tongjian relay`: size of its queue; then senders are refused."
    )
    relay_keep_free_bytes: int = Field(
        500 * 1024**2, ge=0, description="`tongjian relay`: free space of its disk below which senders are refused."
    )
    relay_batch_bytes: int = Field(
        1024**2, ge=16 * 1024, description="`tongjian relay`: bytes of a batch at most, unless one message is larger."
    )
    relay_answer_seconds: float = Field(
        60,
        gt=0,
        description="`tongjian relay`: time the server has to answer a batch, and the line to take a part of it.",
    )
    relay_longest_pause_seconds: float = Field(
        60,
        gt=0,
        description="`tongjian relay`: the server is tried again after 1 s, 2 s, 4 s ... and at last every so many seconds.",
    )
    relay_read_seconds: float = Field(
        600, gt=0, description="A batch of a relay on a bad line has to arrive within this time."
    )
    databases_file: Path | None = Field(
        None,
        description="TOML file with the connections of polled databases (polls of the profiles); nobody else may read it. "
        "Empty: none is polled.",
    )
    workers: int = Field(2, ge=0, le=64, description="Converter processes that `tongjian serve` starts.")
    claim_batch: int = Field(80, ge=1, le=500, description="Messages one worker converts in one transaction.")
    lease_seconds: float = Field(
        30, ge=2, description="A worker that shows no heartbeat for this time loses its messages to others."
    )
    delivery_keep_days: int = Field(
        90,
        ge=0,
        description="Messages of the delivery queue are kept this long after delivery; who got which report stays known. 0: for ever.",
    )
    audit_keep_days: int = Field(
        1096, ge=183, description="Entries of the audit log are kept this long: 6 months at least, 3 years by default."
    )
    subscription_endpoints: Annotated[str, AfterValidator(_addresses)] = Field(
        "",
        description="Where notifications of Subscriptions may be sent: beginnings of addresses, blanks between them "
        "(https://his.example.org/fhir/ https://*.apps.example.org http://10.20.4.7:8080). Empty: nowhere.",
    )
    subscription_networks: Annotated[str, AfterValidator(_networks)] = Field(
        "",
        description="Networks that a name in subscription_endpoints may lead to although they are not public (10.20.0.0/16 fd00::/8). "
        "An address that is listed as such needs none.",
    )
    subscription_ca: Path | None = Field(
        None, description="PEM authorities that vouch for https endpoints of Subscriptions. Empty: those of the system."
    )
    subscription_attempts: int = Field(
        10, ge=1, description="Failed attempts in a row after which a Subscription goes into error; its events wait."
    )
    read_connections: int = Field(10, ge=1, description="Database connections of the API for reading.")
    write_connections: int = Field(4, ge=1, description="Database connections of the API for writing.")
    statement_timeout_ms: int = Field(
        10_000,
        ge=100,
        description="A query that runs longer is stopped and answered with 503, a search with 422 (too-costly).",
    )
    max_request: int = Field(16 * 1024 * 1024, ge=1024, description="Largest HTTP request body.")
    hook_deadline_ms: int = Field(
        500, ge=10, description="The order-time answer is empty when it is not ready by then."
    )
    cors_origins: Annotated[str, AfterValidator(_origins)] = Field(
        "",
        description="Origins of clients that run in a browser and call this API from there, blanks between them "
        "(https://his.example.org). Empty: none.",
    )
    access_by_treatment: bool = Field(
        True,
        description="Clinicians see patients with whom their facility has a treatment relationship (visit, order, referral), or whom "
        "they opened by break-glass. False: all patients.",
    )
    treatment_days: int = Field(
        30,
        ge=0,
        description="Days for which a visit that ended, or an order, still counts as a treatment relationship.",
    )
    consent_model: str = Field(
        "opt-out",
        pattern="^(opt-out|opt-in)$",
        description="What holds for patients who gave no Consent: other facilities see their results (opt-out) or do not (opt-in).",
    )
    break_glass_hours: int = Field(8, ge=1, le=72, description="Hours for which break-glass opens a patient's record.")
    time_zone: Annotated[str, AfterValidator(_zone)] = Field(
        "Asia/Shanghai", description="Zone of search values and of messages that state none."
    )
    sandbox: bool = Field(
        False,
        description="A server to try things out on, never one with real patients: only then may a clock be given.",
    )
    sandbox_clock: str = Field(
        "",
        description="Time the server takes for now (2025-11-21T17:00:00+08:00), or a file that holds it and may change while it runs. "
        "Needs sandbox, and addresses of this machine alone.",
    )
    otlp_endpoint: str = Field(
        "", description="OpenTelemetry collector for traces (OTLP/HTTP), e.g. http://collector:4318. Empty: no traces."
    )
    trace_ratio: float = Field(1.0, ge=0, le=1, description="Share of messages and requests that are traced.")
    golive_accepted: float = Field(
        0.99, ge=0, le=1, description="Go-live bar of `tongjian check`: share of messages neither refused nor held."
    )
    golive_structure: float = Field(
        0.9, ge=0, le=1, description="Messages with every segment and field that HL7 requires, of a known structure."
    )
    golive_fields_read: float = Field(0.9, ge=0, le=1, description="Fields with content that a mapping rule reads.")
    golive_codes_mapped: float = Field(0.95, ge=0, le=1, description="Results whose code is mapped to the catalogue.")
    golive_units_known: float = Field(0.98, ge=0, le=1, description="Results with a unit whose unit is known.")
    golive_ids_valid: float = Field(
        0.98, ge=0, le=1, description="Resident ID numbers with a valid date and check digit."
    )
    golive_times_zoned: float = Field(
        0.0, ge=0, le=1, description="Times of day with a zone; 0: the zone of the profile holds for those without."
    )
    golive_results_ordered: float = Field(
        0.9,
        ge=0,
        le=1,
        description="Order numbers of results that an order in the files has; not judged without orders.",
    )
    golive_control_ids: float = Field(0.999, ge=0, le=1, description="Messages whose control id (MSH-10) is new.")
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="DEBUG, INFO, WARNING or ERROR.")

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Settings:
        # A key or an authority without a certificate would leave the port unencrypted in silence.
        for name in ("https", "mllp", "dicom"):
            certificate, key, authority = (
                getattr(self, f"{name}_{part}") for part in ("certificate", "key", "client_ca")
            )
            if (key or authority) and not certificate:
                raise ValueError(f"{name}_certificate is missing beside {name}_key or {name}_client_ca")
        return self

    @model_validator(mode="after")
    def _clock_only_in_a_sandbox(self) -> Settings:
        if not self.sandbox_clock:
            return self
        if not self.sandbox:
            raise ValueError(
                "sandbox_clock is for a sandbox only: set sandbox too, never on a server with real patients"
            )
        if not {self.host, self.mllp_host, self.dicom_host} <= OWN_MACHINE:
            raise ValueError(
                "sandbox_clock needs host, mllp_host and dicom_host to be addresses of this machine (127.0.0.1)"
            )
        if clock.instant(self.sandbox_clock) is None and not Path(self.sandbox_clock).is_file():
            raise ValueError("sandbox_clock is neither an RFC 3339 time with zone nor a file that holds one")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line over environment over TOML file."""
        file = Path(os.environ.get("TONGJIAN_CONFIG", "tongjian.toml"))
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=file)

    @property
    def zone(self) -> ZoneInfo:
        """time_zone as a ZoneInfo."""
        return ZoneInfo(self.time_zone)

    def fhir_base(self, port: int | None = None) -> str:
        """Absolute address of the FHIR API, without a trailing slash; ``port`` is the one really bound when it was 0."""
        scheme = "https" if self.https_certificate else "http"
        return (self.base_url or f"{scheme}://{self.host}:{port or self.port}/fhir").rstrip("/")


def load(**given: Any) -> Settings:
    """Settings from the command line (values that are not None), environment and file. Raises SettingsError."""
    named = os.environ.get("TONGJIAN_CONFIG")
    if named and not Path(named).is_file():
        raise SettingsError(f"TONGJIAN_CONFIG names {named}, which is not a file.")
    try:
        return Settings(**{k: v for k, v in given.items() if v is not None})
    except ValidationError as fault:
        lines = [f"setting {'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in fault.errors(include_input=False)]
        raise SettingsError("\n".join(lines)) from None
    except ValueError as fault:
        raise SettingsError(f"The settings file cannot be read: {fault}") from fault
