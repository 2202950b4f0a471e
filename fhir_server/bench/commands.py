"""``tongjian bench``: one command for each bench; figures as a table, or as one JSON line with ``--json``."""

from __future__ import annotations

import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fhir_server.settings import Settings

bench = typer.Typer(no_args_is_help=True, help="Measure this installation's program on this machine.")

Data = Annotated[
    Path | None,
    typer.Option("--data", help="Folder of the bench's own database (default: a fresh one below ./var/bench)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One line of JSON instead of a table.")]
Seconds = Annotated[float, typer.Option(min=0.1, help="How long each kind of request is measured.")]
Observations = Annotated[int, typer.Option(min=1, help="The database is filled up to this number first.")]

SCALE = "scale"
"""Name of the loaded database, beside the one that ingest begins anew each time."""

TARGETS: dict[str, tuple[str, str]] = {
    "ingest.messages_per_s": (">= 200", "435"),
    "ingest.resources_per_s": (">= 4600", "10000"),
    "ingest.ack_p99_ms": ("<= 50", ""),
    "ingest.bytes_per_observation": ("<= 1200", "800"),
    "ingest.server_peak_mb": ("<= 300", ""),
    "ingest.worker_peak_mb": ("<= 300", ""),
    "convert.messages_per_s_per_core": (">= 500", "1500"),
    "cstore.objects_per_s": (">= 150", ""),
    "poll.rows_per_min": (">= 100000", ""),
    "read.server_peak_mb": ("<= 300", ""),
    "audit.seconds": ("<= 60 at 10 M", ""),
    "search.p95_ms": ("<= 10", "5"),
    "search.page_1000.resources_per_s": (">= 20000", "65000"),
    "search.lastn.p95_ms": ("<= 20", ""),
    "search.has.p95_ms": ("<= 50", ""),
    "search.chain_to_patient.p95_ms": ("<= 50", ""),
    "search.chain_to_result.p95_ms": ("<= 50", ""),
    "search.server_peak_mb": ("<= 300", ""),
    "recognize.p99_ms": ("<= 50", "25"),
    "recognize.requests_per_s": (">= 50", ""),
    "recognize.open_loop.p99_ms": ("<= 50", "25"),
    "recognize.closed_loop.p99_ms": ("<= 50", "25"),
    "recognize.server_peak_mb": ("<= 300", ""),
}
"""Figure -> (must, aim), where there is one."""


def _settings(data: Path | None) -> Settings:
    from fhir_server import settings as settings_module  # noqa: PLC0415 - keeps `--help` fast
    from fhir_server.bench.server import folder  # noqa: PLC0415

    try:
        return settings_module.load(data_dir=folder(data))
    except settings_module.SettingsError as fault:
        typer.echo(str(fault), err=True)
        raise typer.Exit(1) from None


def _show(name: str, figures: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        import orjson  # noqa: PLC0415

        head = {"bench": name, "at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine()}
        sys.stdout.write(orjson.dumps({**head, **figures}).decode() + "\n")
        sys.stdout.flush()
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table("figure", "measured", "must", "aim", title=f"bench {name}: {machine()}")
    for key, value in _flat(figures):
        must, aim = TARGETS.get(f"{name}.{key}", ("", ""))
        table.add_row(key, "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value), must, aim)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _flat(figures: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for key, value in figures.items():
        if isinstance(value, dict):
            out += _flat(value, f"{prefix}{key}.")
        else:
            out.append((prefix + key, value))
    return out


def machine() -> str:
    """Processors, their model, memory."""
    import os  # noqa: PLC0415

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
        memory = int(Path("/proc/meminfo").read_text().split()[1]) / 1024 / 1024
    except OSError:
        return platform.platform()
    return f"{os.cpu_count()} x {model}, {memory:.0f} GB"


def _failing(work: Any) -> Any:
    """Runs a bench; a failure is one line and exit code 1."""
    from fhir_server.bench.server import BenchFailed  # noqa: PLC0415
    from fhir_server.store.embedded import EmbeddedError  # noqa: PLC0415

    try:
        return work()
    except (BenchFailed, EmbeddedError) as fault:
        typer.echo(str(fault), err=True)
        raise typer.Exit(1) from None


@bench.command()
def ingest(
    messages: Annotated[int, typer.Option(min=1, help="Messages of 20 results each.")] = 10_000,
    rate: Annotated[float, typer.Option(min=1, help="Messages a second of the open loop.")] = 100,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of the open loop.")] = 30,
    connections: Annotated[int, typer.Option(min=1, help="MLLP connections of each of the four facilities.")] = 2,
    batch_file: Annotated[int, typer.Option(min=0, help="MB of a batch file converted at the end (0: none).")] = 0,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Messages over MLLP until all are stored and searchable; acknowledgement times; bytes on disk."""
    from fhir_server.bench import ingest as part  # noqa: PLC0415

    chosen = _settings(data)
    figures = _failing(
        lambda: part.run(
            chosen, count=messages, rate=rate, seconds=seconds, connections=connections, batch_megabytes=batch_file
        )
    )
    _show("ingest", figures, as_json=as_json)


@bench.command()
def convert(
    messages: Annotated[int, typer.Option(min=4, help="Messages of 20 results each.")] = 1000, as_json: AsJson = False
) -> None:
    """Bytes to resources on one core, without I/O; python-hl7 and hl7apy beside it."""
    from fhir_server.bench import convert as part  # noqa: PLC0415

    chosen = _settings(None)
    _show("convert", _failing(lambda: part.run(chosen, count=messages)), as_json=as_json)


@bench.command()
def cstore(
    slices: Annotated[int, typer.Option(min=1, help="Objects of the study.")] = 1000,
    pixels: Annotated[int, typer.Option(min=1024, max=65535 * 1024, help="Bytes of pixels in each.")] = 512 * 512 * 2,
    associations: Annotated[int, typer.Option(min=1, max=16, help="Associations at once.")] = 4,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """A CT study by C-STORE, headers committed before each answer; dcmtk's storescp beside it."""
    from fhir_server.bench import cstore as part  # noqa: PLC0415

    chosen = _settings(data)
    _show(
        "cstore",
        _failing(lambda: part.run(chosen, slices=slices, pixels=pixels, associations=associations)),
        as_json=as_json,
    )


@bench.command()
def poll(
    rows: Annotated[int, typer.Option(min=20, help="Rows of the table, 20 a report.")] = 100_000,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """A table of a facility polled into the inbox by watermark."""
    from fhir_server.bench import poll as part  # noqa: PLC0415

    chosen = _settings(data)
    _show("poll", _failing(lambda: part.run(chosen, rows=rows)), as_json=as_json)


@bench.command()
def relay(
    messages: Annotated[int, typer.Option(min=10, help="Messages of 20 results each.")] = 3000,
    connections: Annotated[int, typer.Option(min=1, help="MLLP connections to the relay.")] = 8,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Messages through a relay to a server on the same machine."""
    from fhir_server.bench import relay as part  # noqa: PLC0415

    chosen = _settings(data)
    _show("relay", _failing(lambda: part.run(chosen, count=messages, connections=connections)), as_json=as_json)


@bench.command()
def read(
    observations: Observations = 100_000, seconds: Seconds = 10, data: Data = None, as_json: AsJson = False
) -> None:
    """Reads by id, 8 clients."""
    _measured(("read",), observations, seconds, data, as_json=as_json)


@bench.command()
def search(
    observations: Observations = 100_000, seconds: Seconds = 10, data: Data = None, as_json: AsJson = False
) -> None:
    """Patient + code + date, a patient's history, _include, pages of 1,000 Observations, $lastn, _has and chains, 8 clients."""
    _measured(("search",), observations, seconds, data, as_json=as_json)


@bench.command()
def recognize(
    observations: Observations = 100_000, seconds: Seconds = 20, data: Data = None, as_json: AsJson = False
) -> None:
    """Order-time answers through CDS Hooks: 50 calls a second in an open loop, and 16 clients in a closed one."""
    _measured(("recognize",), observations, seconds, data, as_json=as_json)


@bench.command()
def audit(
    observations: Annotated[
        int, typer.Option(min=1, help="Size of the year that is loaded, unless it is there.")
    ] = 1_000_000,
    processes: Annotated[int, typer.Option(min=0, help="Processes that audit (0: one on each core).")] = 0,
    export: Annotated[
        Path | None, typer.Option(help="Also write the year as Parquet into this folder, and audit that on DuckDB.")
    ] = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """The duplicate audit of one year of a county, beside the time to keep its findings."""
    import os  # noqa: PLC0415

    import psycopg  # noqa: PLC0415

    from fhir_server.bench import audit as part  # noqa: PLC0415
    from fhir_server.bench import load, year  # noqa: PLC0415
    from fhir_server.bench.server import database  # noqa: PLC0415

    chosen = _settings(data)

    def work() -> dict[str, Any]:
        with database(chosen, fresh=False, name=f"year_{observations}") as url:
            with psycopg.connect(url) as conn:
                loaded = load.stored(conn)
            figures: dict[str, Any] = {"observations": loaded}
            if loaded < observations:
                figures = year.load_year(url, chosen.profiles_dir, observations)
            audited = part.measure(url, chosen.profiles_dir, chosen.rules_dir, processes or os.cpu_count() or 1)
            if export is not None:
                audited["parquet"] = part.on_parquet(url, chosen.profiles_dir, chosen.rules_dir, export)
            return {**figures, **audited}

    _show("audit", _failing(work), as_json=as_json)


@bench.command()
def scale(
    observations: Annotated[list[int] | None, typer.Option(min=1, help="Sizes, ascending; repeatable.")] = None,
    seconds: Seconds = 15,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Fill a database to 1 and to 10 million Observations; measure reads, searches and order-time answers at each."""
    for size in observations or [1_000_000, 10_000_000]:
        _measured(("load", "read", "search", "recognize"), size, seconds, data, as_json=as_json)


def _measured(parts: tuple[str, ...], observations: int, seconds: float, data: Path | None, *, as_json: bool) -> None:
    from fhir_server.bench import load, sizes  # noqa: PLC0415
    from fhir_server.bench import read as reads  # noqa: PLC0415
    from fhir_server.bench import recognize as recognizes  # noqa: PLC0415
    from fhir_server.bench import search as searches  # noqa: PLC0415
    from fhir_server.bench.server import database, serving  # noqa: PLC0415
    from mappings.profile import load_profiles  # noqa: PLC0415

    chosen = _settings(data)

    def work() -> None:
        with database(chosen, fresh=False, name=SCALE) as url:
            loaded = load.load(url, chosen.profiles_dir, observations)
            if "load" in parts:
                _show("load", {**loaded, **sizes.of_database(url)}, as_json=as_json)
            with serving(chosen, url) as running:
                size = {"observations": loaded["observations"]}
                if "read" in parts:
                    _show("read", {**reads.measure(running, seconds=seconds), **size}, as_json=as_json)
                if "search" in parts:
                    _show("search", {**searches.measure(running, seconds=seconds), **size}, as_json=as_json)
                if "recognize" in parts:
                    asking = load_profiles(chosen.profiles_dir)[recognizes.FACILITY]
                    figures = recognizes.measure(running, asking, seconds=seconds)
                    _show("recognize", {**figures, **size}, as_json=as_json)

    _failing(work)
