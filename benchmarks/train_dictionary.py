"""Trains the dictionary that bodies are compressed with, on what the converter makes of the example county's invented messages.

    python benchmarks/train_dictionary.py 2 fhir_server/store/body-2.zdict

A shipped dictionary is never replaced, for stored bodies need it: a new one gets the next number. Prints the sizes on messages of a
seed that was not trained on.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import zstandard

from adapters.convert import convert
from fhir_server.demo import run, story
from fhir_server.store.body import Codec, Names, marked
from fhir_server.store.results import flatten
from fhir_server.store.statement import render, tail_of
from mappings.profile import load_profiles

SIZE = 114688
TRAINED = (11, 12)
TESTED = 13
# Directories stand in every message but are stored once.
DIRECTORIES = ("Organization", "Practitioner", "PractitionerRole", "Location")


def bodies(seed: int) -> Iterator[tuple[str, bytes, Names]]:
    """(resource type, body as served, names of its row) of everything the county sends under one seed."""
    rng = random.Random(seed)
    profiles = load_profiles()
    now = datetime(2026, 11, 20, 10, tzinfo=ZoneInfo("Asia/Shanghai"))
    told = story.tell(run.example_panels(profiles), now, seed)
    for outgoing in told.history:
        for message in outgoing.messages:
            for entry in convert(message, profiles[outgoing.dialect.facility]).entries:
                kind = entry.resource["resourceType"]
                updated = (
                    f"2026-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}T"
                    f"{rng.randrange(24):02}:{rng.randrange(60):02}:{rng.randrange(60):02}.{rng.randrange(1000):03}Z"
                )
                if kind not in DIRECTORIES or rng.random() < 0.05:
                    order = flatten(entry.resource, facility="").order if kind == "Observation" else None
                    body = render(entry.resource, tail_of(entry.resource), 1, updated)[1]
                    yield kind, body, (entry.resource["id"], entry.patient, order)


def main(number: int, target: Path) -> None:
    """Trains, writes the file and prints what it saves."""
    samples = [marked(body, names) for seed in TRAINED for _, body, names in bodies(seed)]
    random.Random(1).shuffle(samples)
    target.write_bytes(zstandard.train_dictionary(SIZE, samples[:12000], level=3).as_bytes())
    codec = Codec({number: target.read_bytes()})
    unseen = [(body, names) for kind, body, names in bodies(TESTED) if kind == "Observation"]
    started = time.thread_time()
    packed = sum(len(codec.compress(body, names)[1]) for body, names in unseen)
    each = (time.thread_time() - started) / len(unseen)
    print(
        f"{len(samples)} samples; unseen Observations: {sum(len(body) for body, _ in unseen) / len(unseen):.0f} -> "
        f"{packed / len(unseen):.0f} bytes, {each * 1e6:.1f} us each"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
