"""The courier: what no receiver is needed for. What receivers answer: test_deliver.py."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fhir_server.publish.courier import Outcome, courier
from mappings.facility import Destination


@pytest.mark.parametrize("token", [b"\xb2\xe2\xca\xd4", "令牌".encode()])
def test_a_token_file_that_is_no_token_is_a_receiver_not_reached_and_is_tried_again(
    tmp_path: Path, token: bytes
) -> None:
    """GB 18030 bytes, and Chinese characters: what a HIS administrator may save by mistake."""
    file = tmp_path / "token"
    file.write_bytes(token)

    async def carried() -> Outcome:
        one = courier(Destination(name="d", url="https://127.0.0.1:1/", token_file=str(file)))
        try:
            return await one.carry(b"MSH|", "C1")
        finally:
            await one.close()

    assert asyncio.run(carried()) == Outcome("away", "away: token file (not plain ASCII text)")
