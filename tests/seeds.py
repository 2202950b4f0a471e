"""Seeds of the randomised tests: fixed, so that a run can be repeated; with ``TONGJIAN_SEED=random`` they look further (make kills)."""

from __future__ import annotations

import os
import random
import zlib

from hypothesis import settings

GIVEN = os.environ.get("TONGJIAN_SEED", "")
"""Empty: each test its own fixed seed. A number: that one. ``random``: another one at each run."""

settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None)


def load_profile() -> None:
    """Property tests follow TONGJIAN_SEED too. No deadline: a loaded machine is no fault."""
    settings.load_profile("random" if GIVEN else "fixed")


def seed_of(name: str) -> int:
    """The seed (0 to 2**32 - 1) of a test, printed so that a failure can be run again."""
    seed = random.randrange(2**32) if GIVEN == "random" else int(GIVEN or zlib.crc32(name.encode()))
    print(f"seed of {name}: {seed}")  # noqa: T201 - shown when the test fails
    return seed
