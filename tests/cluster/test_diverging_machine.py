"""A state machine that looks at the clock, in a cluster of real processes."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from tests.cluster.harness import read_events, wait_until
from tests.cluster.supervised import NAME, home
from zraft import AsyncClient
from zraft.errors import RequestError
from zraft.machine.kv_codec import encode_put
from zraft.node.digests import INTERVAL

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

AT_INDEX = 700
MODULE = f"""
import time
from zraft.machine.kv import KV

class Clocked(KV):
    def apply(self, ctx, command):
        result = super().apply(ctx, command)
        return result + str(time.time()).encode() if ctx.index == {AT_INDEX} else result
"""


def test_replicas_that_used_the_clock_stop_and_name_the_first_index(tmp_path: Path) -> None:
    """`time.time()` in one command: both followers find that one when they compare; exit 70."""
    (tmp_path / "clocked.py").write_text(MODULE)
    machine: dict[str, int | bool | str] = {"name": "clocked:Clocked", "directory": str(tmp_path)}
    with home() as place:
        up = place.up(3, settings={"machine": machine}, restart=False)

        async def write() -> None:
            async with AsyncClient(NAME, environ=place.environ) as client:
                for first in range(0, INTERVAL, 128):
                    keys = [b"k%d" % number for number in range(first, first + 128)]
                    puts = [client.command(encode_put(key, b"v")) for key in keys]
                    with contextlib.suppress(RequestError):  # the last: by then they have stopped
                        await asyncio.gather(*puts)

        asyncio.run(write())
        for name in sorted(set(up.pids) - {up.leader}):
            row = place.wait_for_state(name, "fatal", "down")
            assert row.last_exit is not None
            assert row.last_exit.code == 70

            def told(name: str = name) -> dict[str, object] | None:
                found = read_events(place.directory / name)
                return next((one for one in found if one["event"] == "digest.diverged"), None)

            event = wait_until(f"{name} says why", told, timeout_ms=10_000)
            assert (event["index"], event["exact"], event["compared"]) == (AT_INDEX, True, INTERVAL)
