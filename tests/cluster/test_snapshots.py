"""Snapshots on real processes: the log stays short, and who missed what is cut gets a snapshot."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from tests.cluster.bare_nodes import BareNodes, bare_nodes
from tests.cluster.harness import wait_until
from zraft import wire
from zraft.api import Accepted, Code, Consistency, CrashAt, Heal, Isolate, NodeStatus, TakeSnapshot
from zraft.api import Request as ClientRequest
from zraft.crashpoints import POINTS
from zraft.machine.kv_codec import encode_put
from zraft.node.faults import ARM_AFTER_MS

pytestmark = pytest.mark.cluster

VALUE_BYTES = 1024
KEYS = 50
SEGMENT_BYTES = 64 << 10
LOG_BYTES = 128 << 10  # that make a snapshot
HELD_BYTES = 64 << 10
SETTINGS = {
    "storage": {"segment_bytes": SEGMENT_BYTES, "prealloc_bytes": 4 << 10},
    "snapshot": {
        "min_log_bytes": LOG_BYTES,
        "trailing_entries": 20,
        "trailing_bytes": 32 << 10,
        "held_bytes": HELD_BYTES,
        "chunk_bytes": 8 << 10,
    },
}
"""A snapshot every 120 writes; what is held back is less than any test writes meanwhile."""
MOST_SEGMENTS = 8
"""What a log that is cut needs: what is held, what makes the next snapshot, one made ahead."""

_written = count(1)


@pytest.fixture(scope="module")
def nodes() -> Iterator[BareNodes]:
    """Three members; each test leaves them running and equal."""
    with bare_nodes(3, SETTINGS) as found:
        found.start_all()
        found.leader()
        yield found


def fill(nodes: BareNodes, name: str, size_bytes: int) -> None:
    """Write so many bytes of values through a node, over few keys."""
    cluster = nodes.cluster_id.to_bytes(8, "big")
    left = size_bytes // VALUE_BYTES
    with nodes.dealer(f"{name}.client") as dealer:
        while left > 0:
            numbers = [next(_written) for _ in range(min(left, 100))]
            left -= len(numbers)
            requests = [
                ClientRequest(n, 0, 0, 0, 10_000, Consistency.WRITE, 0, _put(n)) for n in numbers
            ]
            dealer.send(wire.encode_requests(cluster, requests))
            answered: set[int] = set()
            while len(answered) < len(numbers):
                assert dealer.poll(15_000), f"no reply from {name}"
                _, replies = wire.decode_replies(dealer.recv())
                assert all(reply.code == Code.OK for reply in replies), replies
                answered |= {reply.request_id for reply in replies}


def _put(number: int) -> bytes:
    return encode_put(b"k%d" % (number % KEYS), b"%8d" % number * (VALUE_BYTES // 8))


def equal(nodes: BareNodes) -> list[NodeStatus]:
    """Wait until all nodes have applied the same and have the same state; return their views."""

    def is_so() -> list[NodeStatus] | None:
        views = [nodes.status(name) for name in nodes.names]
        return views if len({(view.applied, view.state_hash) for view in views}) == 1 else None

    return wait_until("equal states", is_so, timeout_ms=20_000)


def segments(nodes: BareNodes, name: str) -> int:
    """Return how many files the log of a node has."""
    return len(list((nodes.directory / name / "wal").iterdir()))


def snapshot_files(nodes: BareNodes, name: str) -> list[str]:
    """Return the names in a node's directory of snapshots."""
    return sorted(path.name for path in (nodes.directory / name / "snap").iterdir())


def test_the_log_is_cut_behind_snapshots_on_every_node(nodes: BareNodes) -> None:
    """Ten times what makes a snapshot is written: one snapshot and a short log stay."""
    fill(nodes, nodes.leader(), 10 * LOG_BYTES)
    for view in equal(nodes):
        assert view.counters["snapshot.taken"] >= 2, view  # how many depends on how fast it went
        assert view.first_index > 500, view
        assert view.first_index - 1 <= view.snapshot_index <= view.applied
    for name in nodes.names:

        def is_short(name: str = name) -> bool | None:
            return segments(nodes, name) <= MOST_SEGMENTS or None

        wait_until(f"the log of {name} is short", is_short, timeout_ms=10_000)

        def is_one(name: str = name) -> bool | None:
            return len(snapshot_files(nodes, name)) == 1 or None

        wait_until(f"one snapshot of {name}", is_one, timeout_ms=10_000)


def test_an_operator_takes_a_snapshot(nodes: BareNodes) -> None:
    """The answer names the index; the file has it in its name when it is there."""
    follower = nodes.follower()
    assert nodes.put(follower, b"one more", b"entry").code == Code.OK
    index = equal(nodes)[0].applied
    begun = nodes.ask(follower, TakeSnapshot())
    assert isinstance(begun, Accepted)
    assert begun.index == index

    def is_there() -> bool | None:
        view = nodes.status(follower)
        return (view.snapshot_index == index and not view.snapshot_taking) or None

    wait_until("the snapshot", is_there, timeout_ms=10_000)
    assert snapshot_files(nodes, follower)[-1].startswith(f"{index:020d}-")
    again = nodes.ask(follower, TakeSnapshot())
    assert (again.index, nodes.status(follower).snapshot_taking) == (index, False)


def test_all_start_again_from_snapshot_and_log(nodes: BareNodes) -> None:
    """kill -9 for everybody: the states are what they were."""
    before = equal(nodes)[0]
    for name in nodes.names:
        nodes.runs[name].kill()
    nodes.start_all()
    nodes.leader()
    after = equal(nodes)[0]
    assert after.applied > before.applied, "the no-op of the new term"
    assert after.revision == before.revision
    assert all(nodes.status(name).snapshot_index > 0 for name in nodes.names)


def test_a_node_that_was_down_gets_a_snapshot(nodes: BareNodes) -> None:
    """What it missed is cut away: it catches up by InstallSnapshot, over the bulk lane."""
    follower = nodes.follower()
    last = nodes.status(follower).last_index
    nodes.runs[follower].kill()
    leader = nodes.leader([name for name in nodes.names if name != follower])
    fill(nodes, leader, 5 * LOG_BYTES)

    def is_cut() -> bool | None:
        return nodes.status(leader).first_index > last + 1 or None

    wait_until("the leader cuts its log", is_cut, timeout_ms=10_000)
    nodes.start(follower)
    view = next(view for view in equal(nodes) if view.name == follower)
    assert view.counters["snapshot.chunks_received"] > 1
    assert nodes.status(leader).counters["bulk.sent"] > 1
    log = nodes.directory / leader / "log.jsonl"
    told = f'"peer":"{follower}"'

    def is_told() -> bool | None:
        begun = [line for line in log.read_text().splitlines() if "snapshot.send_begun" in line]
        return any(told in line for line in begun) or None

    wait_until("the leader's log names the follower", is_told, timeout_ms=10_000)

    def one_is_left() -> bool | None:
        now = nodes.status(follower)
        name = f"{now.snapshot_index:020d}-{now.snapshot_term}.snap"
        return snapshot_files(nodes, follower) == [name] or None

    wait_until("older snapshots are freed", one_is_left, timeout_ms=10_000)
    value = nodes.get(follower, b"k1")
    assert value is not None
    assert len(value) == VALUE_BYTES


@pytest.mark.parametrize("point", [point for point in POINTS if point.startswith("install.")])
def test_a_node_dies_while_it_installs_a_snapshot_and_catches_up(
    nodes: BareNodes, point: str
) -> None:
    """Whatever was done by then: after kill -9 it starts, and ends up with the state of all."""
    follower = nodes.follower()
    leader = nodes.leader()
    last = nodes.status(follower).last_index
    nodes.ask(follower, Isolate([], None))
    fill(nodes, leader, 3 * LOG_BYTES)

    def is_cut() -> bool | None:
        return nodes.status(leader).first_index > last + 1 or None

    wait_until("the leader cuts its log", is_cut, timeout_ms=10_000)
    nodes.ask(follower, CrashAt(point))
    armed_ms = nodes.status(follower).uptime_ms + ARM_AFTER_MS + 25

    def is_armed() -> bool | None:
        return nodes.status(follower).uptime_ms > armed_ms or None

    wait_until("the point is armed", is_armed, timeout_ms=10_000)
    nodes.ask(follower, Heal())
    assert nodes.runs[follower].end() == -9
    assert f"crash point {point}:" in nodes.err(follower)
    assert nodes.start(follower).ready, nodes.err(follower)
    equal(nodes)
