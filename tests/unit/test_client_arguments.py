"""What a program does wrong with a client: an error at once, and nobody hangs."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zraft import Client
from zraft.client.kv import as_bytes
from zraft.errors import ControlError, Unavailable

NOWHERE = "ipc:///nonexistent/for-tests.client"

FORGETFUL = """
import gc, sys, warnings, zmq
from zraft import Client, Unavailable
warnings.simplefilter("always")
gc.disable()
router = zmq.Context.instance().socket(zmq.ROUTER)
router.bind(sys.argv[1])
for number in range(20):
    client = Client(endpoints=sys.argv[1], timeout_s=0.05)
    try:
        client.kv.get("a")
    except Unavailable:
        pass
    if number % 2:
        client.circle = [client, client._sockets._context]  # whatever the order is
    del client
gc.collect()
router.close(0)
print("still here")
"""

FORGETFUL_ASYNC = """
import asyncio, gc, sys, warnings, zmq
from zraft import AsyncClient, Unavailable
warnings.simplefilter("always")
gc.disable()
router = zmq.Context.instance().socket(zmq.ROUTER)
router.bind(sys.argv[1])
async def ask():
    client = AsyncClient(endpoints=sys.argv[1], timeout_s=0.05)
    try:
        await client.kv.get("a")
    except Unavailable:
        pass
for number in range(5):
    asyncio.run(ask())
gc.collect()
router.close(0)
print("still here")
"""


@pytest.fixture
def client() -> Iterator[Client]:
    """A client whose nodes are nowhere."""
    with Client(endpoints=NOWHERE, timeout_s=0.05) as client:
        yield client


@pytest.mark.parametrize("program", [FORGETFUL, FORGETFUL_ASYNC], ids=["client", "async"])
def test_a_client_that_was_never_closed_can_be_collected(tmp_path: Path, program: str) -> None:
    """ZeroMQ waits for sockets that are still open; in a garbage collection, that was for good."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", program, f"ipc://{tmp_path}/s"]
    done = subprocess.run(command, cwd=root, capture_output=True, timeout=60, check=False)
    assert done.stdout == b"still here\n", done.stderr
    assert b"ResourceWarning: a zraft client was not closed" in done.stderr


@pytest.mark.parametrize("timeout_s", [-1, math.nan, math.inf, 1e300])
def test_a_timeout_that_is_none_is_refused(client: Client, timeout_s: float) -> None:
    """Of a call, of a wait, and of the client."""
    with pytest.raises(ControlError, match="is impossible"):
        client.command(b"a", timeout_s=timeout_s)
    with pytest.raises(ControlError, match="is impossible"):
        client.wait(timeout_s=timeout_s)
    client.timeout_s = timeout_s
    with pytest.raises(ControlError, match="is impossible"):
        client.kv.get("a")


def test_no_time_at_all_is_a_timeout(client: Client) -> None:
    """As it is anywhere else."""
    with pytest.raises(Unavailable):
        client.query(b"a", timeout_s=0)


@pytest.mark.parametrize("odd", [5, None, 1.5, ["a"], True])
def test_keys_and_values_of_other_types_are_refused(client: Client, odd: object) -> None:
    """`bytes(5)` would be five zeros, and `bytes(["a"])` an error that does not say why."""
    with pytest.raises(TypeError, match="str or bytes, not"):
        client.kv.put(odd, "value")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="str or bytes, not"):
        client.kv.put("key", odd)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="str or bytes, not"):
        client.kv.get(odd)  # type: ignore[arg-type]


def test_everything_that_holds_bytes_is_taken() -> None:
    """Text in UTF-8, the rest as it is."""
    assert as_bytes("é") == as_bytes(b"\xc3\xa9") == b"\xc3\xa9"
    for held in (bytearray(b"ab"), memoryview(b"ab")):
        assert as_bytes(held) == b"ab"  # type: ignore[arg-type]  # taken, though not promised


def test_a_command_that_is_no_bytes_is_refused_and_not_sent(client: Client) -> None:
    """A node drops such a frame, so nobody would ever answer."""
    for odd in ("text", 5, None):
        with pytest.raises(TypeError, match="is bytes, not"):
            client.command(odd)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="is bytes, not"):
            client.query(odd)  # type: ignore[arg-type]
    assert client.core.outstanding == 0
