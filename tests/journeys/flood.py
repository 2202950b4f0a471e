"""A sender that sends all it can over many connections, as a process of its own.

Arguments: MLLP port, facility, connections, messages of each connection. Prints how many were accepted, and in how many seconds.
"""

from __future__ import annotations

import asyncio
import sys
import time

from adapters.transports.mllp import Sender
from tests.journeys.feeds import FACILITIES


def message(facility: str, connection: int, number: int) -> bytes:
    """A result message with 20 OBX; the same arguments give the same bytes."""
    at = f"20260301{number // 3600 % 24:02d}{number // 60 % 60:02d}{number % 60:02d}"
    name = facility.upper()
    patient = f"F{connection}-{number % 7}"
    lines = [
        f"MSH|^~\\&|LIS|{name}|TJ|TJ|{at}||ORU^R01^ORU_R01|F{connection}-{number}|P|2.5.1",
        f"PID|1||{patient}^^^{name}^PI||李{connection}||19700101|F",
        f"OBR|1||F{connection}-{number}|BIO^生化|||{at}|||||||||||||||{at}|||F",
    ]
    lines += [f"OBX|{n}|NM|T{n}^项目{n}||{number}.{n}|mmol/L|0-9|N|||F|||{at}" for n in range(1, 21)]
    return ("\r".join(lines) + "\r").encode()


async def flood(port: int, facility: str, connections: int, count: int) -> int:
    """Returns how many messages were accepted."""

    async def one(connection: int) -> int:
        sender = Sender("127.0.0.1", port, local_address=FACILITIES[facility], timeout=120)
        async with sender:
            answers = [await sender.send(message(facility, connection, n)) for n in range(count)]
        return sum(a.code == "AA" for a in answers)

    return sum(await asyncio.gather(*(one(c) for c in range(connections))))


def main(port: str, facility: str, connections: str, count: str) -> None:
    """Sends, then prints."""
    began = time.monotonic()
    accepted = asyncio.run(flood(int(port), facility, int(connections), int(count)))
    print(accepted, f"{time.monotonic() - began:.3f}")  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
