"""Whole servers whose machines disagree: a clock in `apply`, a flipped bit, a wrong leader."""

from __future__ import annotations

import itertools

import pytest

from tests.server_bench import ServerBench
from zraft import clock
from zraft.api import Code
from zraft.errors import DivergedError
from zraft.machine.base import Ctx
from zraft.machine.kv import KV
from zraft.machine.kv_codec import encode_put
from zraft.node.digests import PAGE_WAIT_MS
from zraft.node.ports import Limits

INTERVAL = 16
LIMITS = Limits(digest_interval=INTERVAL)
_puts = itertools.count(1)


class Clocked(KV):
    """A machine that looks at the clock: its answers differ from node to node."""

    def apply(self, ctx: Ctx, command: bytes) -> bytes:
        """Answer with the time."""
        return super().apply(ctx, command) + b"%d" % clock.wall_time_ns()


class Flipped(KV):
    """A machine whose memory flips one bit of one value, at one index, and answers as if not."""

    def __init__(self, at_index: int) -> None:
        super().__init__()
        self.at_index = at_index

    def apply(self, ctx: Ctx, command: bytes) -> bytes:
        """Apply the command, but for one bit."""
        if ctx.index == self.at_index:
            command = command[:-1] + bytes([command[-1] ^ 1])
        return super().apply(ctx, command)


def put(bench: ServerBench, count: int) -> None:
    """Put so many keys, one after the other, each answered."""
    for _ in range(count):
        number = next(_puts)
        request = bench.request(bench.leader(), encode_put(b"k%d" % number, b"value"))
        bench.settle()
        assert bench.only_answer(request).code == Code.OK


def elected() -> ServerBench:
    """Return three servers with a leader."""
    bench = ServerBench(3, LIMITS)
    bench.run_for(1_000)
    return bench


def test_a_flipped_bit_of_a_follower_is_found_at_the_next_multiple() -> None:
    """It stops with the very index, although its answers were right; the others go on."""
    bench = elected()
    victim = bench.follower()
    bench.servers[victim].replica.machine = Flipped(at_index=21)
    put(bench, 2 * INTERVAL - 3)
    assert bench.servers[victim].applied_index < 2 * INTERVAL
    with pytest.raises(DivergedError) as stopped:
        put(bench, 2)
    assert (stopped.value.index, stopped.value.exact) == (21, True)
    assert stopped.value.compared == 2 * INTERVAL
    bench.down = {victim}
    put(bench, 3 * INTERVAL)


def test_a_flipped_bit_of_the_leader_is_found_too() -> None:
    """It leads no longer, asks since when, and stops; another leader goes on."""
    bench = elected()
    victim = bench.leader()
    bench.servers[victim].replica.machine = Flipped(at_index=9)
    put(bench, INTERVAL - 3)
    with pytest.raises(DivergedError) as stopped:
        put(bench, 2)
    assert (stopped.value.index, stopped.value.exact) == (9, True)
    bench.down = {victim}
    bench.run_for(1_000)
    put(bench, 2 * INTERVAL)


def test_a_wrong_leader_gives_up_leadership_before_it_stops() -> None:
    """Cut off at that moment, it serves nobody for the half second that it waits."""
    bench = elected()
    victim = bench.leader()
    bench.servers[victim].replica.machine = Flipped(at_index=9)
    put(bench, INTERVAL - 3)
    requests = [bench.request(victim, encode_put(b"k", b"v")) for _ in range(2)]
    while not bench.servers[victim].digests.is_wrong:
        for server in bench.servers.values():
            server.flush(now_ms=bench.now_ms)
        arrived, bench.network = bench.network, []
        for message in arrived:
            bench.servers[message.dst].on_message(message, now_ms=bench.now_ms)
    assert bench.servers[victim].raft.leader_id != victim
    assert len(requests) == 2
    bench.cut = {victim}
    with pytest.raises(DivergedError) as stopped:
        bench.run_for(PAGE_WAIT_MS + 10)
    assert stopped.value.exact is False


def test_a_machine_that_reads_the_clock_is_stopped() -> None:
    """All three differ from each other from their first command on, and are told the index."""
    bench = elected()
    for server in bench.servers.values():
        server.replica.machine = Clocked()
    first = bench.servers[bench.leader()].applied_index + 1
    with pytest.raises(DivergedError) as stopped:
        put(bench, INTERVAL)
    assert (stopped.value.index, stopped.value.exact) == (first, True)
