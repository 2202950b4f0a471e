"""What the demo adds to the shipped county: a city laboratory outside the consortium with a mark, and the township's HIS that gets its
reports back. All invented; written into the data folder, as an installation would have it."""

from __future__ import annotations

import asyncio
import shutil
import socket
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from adapters.hl7v2 import ack
from adapters.transports.mllp_frames import Frames, frame
from fhir_server.demo.county import NORTH, Analyte, Dialect, Panel, Report, Test, Value
from fhir_server.demo.people import Person
from mappings.profile import DIRECTORY

CITY = Dialect("city-lab", "127.0.1.15", "LIS", "SCJYZX", "2.5.1", "utf-8", "UNICODE UTF-8")
ITEM = "L0016"
"""Urea: what the city laboratory reports, and has a mark for."""
UREA = Panel("UREA", "尿素", "", "serum", (Test("UREA", "尿素", "mmol/L", Analyte(3.1, 8.0, 2, 0.2, ())),))
_CITY = """id: city-lab
organization: {name: 省城检验中心, name_en: City Laboratory Centre, level: 三级甲等, region: "990001"}
senders: [{facility: SCJYZX}]
channels: [{name: default, addresses: [127.0.1.15/32]}]
time_zone: Asia/Shanghai
identifiers: {patient: [PI, ""], resident_id: [NI]}
codes: {tests: ../codes/city-lab.csv}
default_performer: sender
"""
_BACK = """
destinations:
  - {name: his, host: 127.0.0.1, port: %d}
"""


def prepare(folder: Path, port: int, today: date) -> tuple[Path, Path]:
    """Writes profiles and rules; their folders. port: of the township's HIS. The city laboratory's round ran until two days ago."""
    facilities, rules = folder / "facilities", folder / "rules"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(DIRECTORY, facilities, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    shutil.copytree(
        DIRECTORY.with_name("codes"), folder / "codes", ignore=shutil.ignore_patterns("*.py", "__pycache__")
    )
    township = facilities / f"{NORTH.facility}.yaml"
    township.write_text(township.read_text("utf-8") + _BACK % port, "utf-8")
    (facilities / "city-lab.yaml").write_text(_CITY, "utf-8")
    (folder / "codes" / "city-lab.csv").write_text(
        f"code,name,item,valid_from,valid_to,note\nUREA,尿素,{ITEM},,,\n", "utf-8"
    )
    rules.mkdir()
    begun, over = today - timedelta(days=300), today - timedelta(days=2)
    (rules / "marks.csv").write_text(
        "laboratory,item,scope,valid_from,valid_to,certificate,recorded,note\n"
        f"city-lab,{ITEM},national,{begun},{today + timedelta(days=300)},DEMO-001,,全国HR\n",
        "utf-8",
    )
    (rules / "eqa.csv").write_text(
        "laboratory,item,round,passed,score,assessed,valid_to,scope,certificate,recorded,note\n"
        f"city-lab,{ITEM},1,yes,100,{begun},{over},national,DEMO-001,,nobody took part in the next round\n",
        "utf-8",
    )
    return facilities, rules


def tested(person: Person, number: int, at: datetime) -> Report:
    """One urea of the city laboratory."""
    values = (Value("5.40", "3.10-8.00", 0),)
    return Report(CITY, person, UREA, f"SC{number:05d}", at, at, at + timedelta(minutes=40), values)


class TownshipHis:
    """The township's HIS: takes every message over MLLP and acknowledges it."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.received: list[bytes] = []
        self.arrived = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._talks: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}

    async def listen(self) -> None:
        """Starts taking messages."""
        self._server = await asyncio.start_server(self._talk, sock=self._socket)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = Frames(1 << 24)
        self._talks[writer] = asyncio.current_task()
        try:
            while data := await reader.read(65536):
                for item in frames.feed(data):
                    self.received.append(item.data)
                    number = f"HIS{len(self.received):06d}"
                    writer.write(frame(ack.acknowledge(ack.facts(item.data), "AA", None, number, datetime.now(UTC))))
                    await writer.drain()
                    self.arrived.set()
        except ConnectionError:
            return
        finally:
            del self._talks[writer]
            writer.close()

    async def close(self) -> None:
        """Ends the connections and gives the port back."""
        if self._server is not None:
            self._server.close()
        talks = [task for task in self._talks.values() if task is not None]
        for writer in list(self._talks):
            writer.close()
        await asyncio.gather(*talks)
