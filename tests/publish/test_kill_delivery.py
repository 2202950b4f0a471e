"""A server that is killed while it delivers: nothing is lost, nothing changes on the way, and the order holds."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from adapters.transports.mllp import Sender
from tests.journeys.installation import Installation
from tests.publish.his import County, His, profiles_to, result
from tests.seeds import seed_of

QUICK = "retry: {first_seconds: 0.05, longest_seconds: 0.5, most: 50}, timeout: 2"


def test_sigkill_in_the_middle_of_deliveries_loses_nothing(database_url: str, tmp_path: Path) -> None:
    seed = seed_of("kill_delivery")
    rng = random.Random(seed)
    versions, patients = 3, 4

    async def story() -> None:
        async with His() as his:
            # Every third message is cut off or never answered: a kill meets deliveries in every state.
            his.answers = [a for _ in range(10) for a in rng.choices(["AA", "cut", "AE"], weights=[4, 1, 1], k=3)] + [
                "AA"
            ]
            place = f"{{host: 127.0.0.1, port: {his.port}, {QUICK}}}"
            county = County(database_url, profiles_to(tmp_path / "profiles", [place]))
            server = Installation(
                tmp_path / "data", tmp_path / "profiles", database_url=database_url, mllp_host="127.0.0.1", workers=1
            )
            await asyncio.to_thread(server.start)
            server.keep_running()
            try:
                for version in range(1, versions + 1):
                    async with Sender("127.0.0.1", server.mllp_port, local_address="127.0.5.1") as lab:
                        for person in range(1, patients + 1):
                            raw = result(
                                f"m{person}-{version}", value=f"{person}.{version}", number=f"F{person}", person=person,
                                status="F" if version == 1 else "C", sent=f"202603010800{version:02d}",
                                ordered_by="乙镇卫生院",
                            )  # fmt: skip
                            assert (await lab.send(raw)).code == "AA"
                    if version == 2:
                        enough = (version - 1) * patients + 2
                        async with asyncio.timeout(30):
                            while len(set(his.received)) < enough:  # noqa: ASYNC110 - waits for somebody else's socket
                                await asyncio.sleep(0.005)
                        assert server.kill("server", rng)
                        async with asyncio.timeout(60):
                            while not await asyncio.to_thread(server.ready):  # noqa: ASYNC110 - as above
                                await asyncio.sleep(0.1)
                await county.until(
                    "SELECT status, count(*) FROM delivery GROUP BY 1", [("delivered", versions * patients)], seconds=60
                )
                assert county.sql("SELECT count(*) FROM outbox WHERE published IS NULL") == [(0,)]
            finally:
                await asyncio.to_thread(server.stop)
            for person in range(1, patients + 1):
                got = [v for v in his.values() if v.startswith(f"{person}.")]
                # repeated perhaps, never overtaken, none missing
                assert sorted(got) == got
                assert sorted(set(got)) == [f"{person}.{n}" for n in range(1, versions + 1)]
            # what came again came as the same bytes, under the same number
            assert len(set(his.received)) == len(set(his.numbers())) == versions * patients

    asyncio.run(story())
