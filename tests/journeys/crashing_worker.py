"""A worker process that kills itself (SIGKILL) at seeded moments inside the work on a batch. Prints where, as its last words.

Arguments: database URL, folder of profiles, seed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from fhir_server.ingest import inbox, pipeline, worker
from fhir_server.store import repository, rows
from mappings.profile import load_profiles

CHANCE = 0.004


def main(url: str, profiles: str, seed: str) -> None:
    """Works until killed."""
    rng = random.Random(int(seed))

    def dies(module: Any, name: str, chance: float) -> None:
        genuine: Callable[..., Any] = getattr(module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            draw = rng.random()
            if draw < chance / 2:
                _die(f"before-{name}")
            result = genuine(*args, **kwargs)
            if draw < chance:
                _die(f"after-{name}")
            return result

        setattr(module, name, call)

    dies(pipeline, "convert", CHANCE / 4)
    dies(repository, "apply", CHANCE * 4)
    dies(rows, "supersede", CHANCE * 4)
    dies(inbox, "finish", CHANCE * 4)
    dies(worker, "claim", CHANCE)
    # psycopg sends COMMIT in Transaction.__exit__: before it the work is in the server, after it it is done.
    dies(psycopg.Transaction, "__exit__", CHANCE * 4)
    worker.run(url, load_profiles(Path(profiles)), batch=10, lease=3)


def _die(where: str) -> None:
    print(where, flush=True)  # noqa: T201
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
