"""``tongjian send``: files to a server, as a HIS or LIS would send them (MLLP, HL7 v2 Appendix C)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from adapters.contract import Unreadable
from adapters.convert import split
from adapters.transports.mllp import Sender, SendError

ACCEPTED = frozenset({"AA", "CA", ""})
"""MSA-1 codes of accepted messages; empty: the message itself asked for no acknowledgement (MSH-15 NE)."""


class SendFailed(Exception):
    """Nothing more can be sent; the text says where it stopped and why."""


async def send_files(files: Sequence[Path], host: str, port: int, from_address: str, patience: float) -> int:
    """Sends every message of the files on one connection; prints what was refused. Returns how many were not accepted.

    patience: seconds to wait for each acknowledgement.
    Raises SendFailed when the connection cannot be had or breaks.
    """
    console, codes, refused = Console(stderr=True), Counter[str](), 0
    sender = Sender(host, port, local_address=from_address, timeout=patience)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed} messages"),
        TimeElapsedColumn(),
    )
    try:
        with Progress(*columns, console=console) as progress:
            for file in files:
                task = progress.add_task(file.name, total=None)
                with file.open("rb") as stream:
                    for number, message in enumerate(split(stream), 1):
                        answer = await sender.send(message)
                        codes[answer.code or "sent"] += 1
                        progress.advance(task)
                        if answer.code not in ACCEPTED:
                            refused += 1
                            text = "; ".join(t for t in (answer.text, *map(str, answer.errors)) if t)
                            progress.console.print(f"{file.name} message {number}: {answer.code} {text}", markup=False)
                progress.update(task, total=progress.tasks[task].completed)
    except (SendError, Unreadable) as fault:
        raise SendFailed(f"Stopped after {sum(codes.values())} messages: {fault}") from fault
    finally:
        await sender.close()
    console.print(", ".join(f"{n} {code}" for code, n in sorted(codes.items())) or "no messages found")
    return refused
