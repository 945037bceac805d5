"""What an installed snapshot does to those who wait, and to what was being applied."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server_bench import ServerBench
from zraft.api import Code
from zraft.core.model import Settings
from zraft.machine.kv import KV
from zraft.machine.kv_codec import encode_put
from zraft.node.ports import Limits, SnapshotLimits
from zraft.node.snapshotting import EVERY_MS, REST

NO_MERCY = Settings(trailing_entries=0, trailing_bytes=0, held_bytes=0)
SMALL = Limits(snapshots=SnapshotLimits(min_log_bytes=2_000, chunk_bytes=100))


def test_a_write_whose_place_a_snapshot_took_is_answered_as_unknown() -> None:
    """Nobody can say what stood there, and nobody waits until a deadline (pitfall 33)."""
    bench = ServerBench(3, SMALL, settings=NO_MERCY)
    bench.run_for(1_000)
    old = bench.leader()
    bench.cut = {old}
    waiting = bench.request(old, encode_put(b"lost", b"1"), deadline_ms=60_000)
    bench.settle()
    last_index = bench.servers[old].raft.last_id.index
    bench.run_for(1_500)
    leader = bench.leader()
    for number in range(200):
        bench.request(leader, encode_put(b"k%d" % number, b"v"))
    bench.run_for(2_000)
    assert bench.servers[leader].raft.first_index > last_index + 1, "what it misses is cut away"
    assert bench.answers[waiting] == []
    bench.cut = set()
    bench.run_for(3_000)
    snapshot = bench.servers[old].raft.snapshot
    assert snapshot is not None
    assert snapshot.index > last_index
    assert bench.only_answer(waiting).code == Code.UNKNOWN
    assert len({server.replica.digest() for server in bench.servers.values()}) == 1


def test_a_log_that_grew_while_a_snapshot_was_written_is_cut_without_one_more_write() -> None:
    """A burst ends while its first snapshot is being written: the rest does not stay for good."""
    bench = ServerBench(3, SMALL, settings=NO_MERCY)
    bench.run_for(1_000)
    leader = bench.leader()
    for number in range(500):
        bench.request(leader, encode_put(b"k%d" % (number % 10), b"v" * 20))
    bench.run_for(2_000)
    for server in bench.servers.values():
        snapshot = server.raft.snapshot
        assert snapshot is not None
        applied = server.replica.applied.index
        assert applied - snapshot.index < 2_000 // 20, (applied, snapshot)
        assert server.raft.first_index == snapshot.index + 1, "what it covers is cut away"


@pytest.mark.parametrize(("slow_us", "pause_ms"), [(100, EVERY_MS), (5_000, REST * 10)])
def test_a_slice_that_took_long_is_followed_by_a_long_pause(slow_us: int, pause_ms: int) -> None:
    """Whoever wants the processor or the disk meanwhile gets most of it. A slice looks twice."""
    bench = ServerBench(1, Limits(snapshots=SnapshotLimits(slice_ms=1)))
    bench.run_for(1_000)
    node = bench.leader()
    for number in range(3_000):
        bench.request(node, encode_put(b"k%d" % number, b"v" * 100))
        if number % 100 == 0:
            bench.settle()
    bench.run_for(100)
    server = bench.servers[node]
    bench.slow_us = slow_us
    server.snapshots.begin()
    server.flush(now_ms=bench.now_ms)
    assert server.snapshots.is_taking
    assert server.snapshots.longest_slice_us >= slow_us
    assert server.snapshots.next_deadline_ms() >= bench.now_ms + pause_ms
    bench.run_for(60_000)
    assert not server.snapshots.is_taking


def test_a_machine_that_gives_no_snapshot_ends_the_snapshot_and_not_the_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At once or after a chunk: all serve on, and a later try succeeds, when there is one."""
    bench = ServerBench(3, SMALL, settings=NO_MERCY)
    bench.run_for(1_000)
    leader = bench.leader()

    def half(_store: KV) -> Iterator[bytes]:
        yield b"half of it"
        raise LookupError("the other half")

    def nothing(_store: KV) -> Iterator[bytes]:
        raise LookupError("nothing")

    def put_many() -> None:
        for number in range(150):
            bench.request(leader, encode_put(b"k%d" % (number % 10), b"v" * 20))
        bench.run_for(2_000)

    for broken, why in ((nothing, "LookupError: nothing"), (half, "LookupError: the other half")):
        with monkeypatch.context() as patch:
            patch.setattr(KV, "snapshot", broken)
            put_many()
        for server in bench.servers.values():
            assert server.snapshots.failure == f"the state machine's snapshot() failed: {why}"
            assert server.raft.snapshot is None
            assert not server.snapshots.is_taking
    put_many()
    for server in bench.servers.values():
        assert server.raft.snapshot is not None
        assert server.snapshots.failure == ""
    assert {answer.code for (answer,) in bench.answers.values()} == {Code.OK}
