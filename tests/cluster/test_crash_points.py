"""Every crash point in turn, under load: the node dies there, comes back, and nothing is lost."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator

import pytest

from tests.cluster.harness import LiveCluster, live_cluster, wait_until
from tests.cluster.test_durability import check_states, check_writes
from tests.cluster.writers import Writers, writers_on
from zraft import clock
from zraft.api import CrashAt, StepDown
from zraft.client.control import Settings
from zraft.client.sync import Client
from zraft.control_api import NodeRow
from zraft.crashpoints import POINTS
from zraft.errors import ZraftError

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SETTINGS: Settings = {
    "storage": {"segment_bytes": 64 << 10, "prealloc_bytes": 4 << 10},
    "snapshot": {"min_log_bytes": 64 << 10, "size_percent": 1},
    "supervisor": {"crash_limit": 1_000, "backoff_min_ms": 10, "backoff_max_ms": 50},
}
"""Small segments and many snapshots, so that each of their points comes often, and restarts without
patience. Points of a snapshot that is received are test_snapshots.py's."""

LEADER_ONLY = frozenset({"flush.sent", "send.one"})
FOLLOWER_ONLY = frozenset({"forward.before-send", "forward.sent", "flush.before-answers"})
REACHED_MS = 10_000
TOTAL_MS = 90_000
SEED = 20


class Prodder:
    """Does what brings a node to a point that load alone does not: elections, forwarding."""

    def __init__(self, live: LiveCluster, client: Client) -> None:
        self._live = live
        self._client = client
        self._count = 0

    def prod(self, name: str, point: str) -> None:
        """Nudge once; whatever comes of it."""
        self._count += 1
        try:
            if "vote" in point or "answers" in point:
                leader = self._live.leader_now()
                if leader is not None:
                    self._live.cluster.ask(leader, StepDown(), timeout_ms=300)
            self._client.kv.put("prod", str(self._count), at=name, timeout=0.2)
        except ZraftError:
            return  # it died, or somebody else leads by now: that is the point


def target_of(live: LiveCluster, point: str, rng: random.Random) -> str:
    """Return a node that comes to the point."""
    leader = live.leader()
    if point in LEADER_ONLY:
        return leader
    others = [name for name in live.names if name != leader]
    return rng.choice(others if point in FOLLOWER_ONLY else [leader, *others])


def row(live: LiveCluster, name: str) -> NodeRow:
    """Return the supervisor's row of a node."""
    return live.cluster.table()[name]


def die_at(live: LiveCluster, prodder: Prodder, name: str, point: str) -> None:
    """Arm a point in a node, see that it dies there and is up again."""
    before = live.status(name)
    live.cluster.ask(name, CrashAt(point))
    deadline_ms = clock.now_ms() + REACHED_MS
    while row(live, name).pid == before.pid:
        assert clock.now_ms() < deadline_ms, f"{name} never came to {point}"
        prodder.prod(name, point)

    def back() -> bool | None:
        status = live.cluster.statuses(timeout_ms=500)[name]
        return (status is not None and status.pid != before.pid) or None

    wait_until(f"{name} is back from {point}", back, timeout_ms=REACHED_MS)
    last = row(live, name).last_exit
    assert last is not None
    assert (last.pid, last.signal) == (before.pid, "SIGKILL"), (point, last)
    assert f"crash point {point}:" in last.stderr_tail, (point, last.stderr_tail)


def points() -> list[str]:
    """Return the points that any node comes to; the others need a leader's snapshot."""
    return [point for point in POINTS if not point.startswith("install.")]


def rounds(writers: Writers) -> Iterator[str]:
    """Yield every point, while the load goes on."""
    for point in points():
        writers.watch(0)
        yield point


@pytest.mark.timeout(180)
def test_a_node_may_die_at_any_point_and_nothing_acknowledged_is_lost() -> None:
    """Leader or follower, before and after each persist, send and apply: it comes back, all nodes
    end up equal, and what was acknowledged is there."""
    rng = random.Random(SEED)
    began_ms = clock.now_ms()
    with (
        live_cluster(3, settings=SETTINGS) as live,
        writers_on(live) as writers,
        Client(live.cluster.name, environ=live.environ) as client,
    ):
        prodder = Prodder(live, client)
        for point in rounds(writers):
            began = clock.now_ms()
            die_at(live, prodder, target_of(live, point, rng), point)
            sys.stderr.write(f"{point}: {clock.now_ms() - began} ms\n")
        client.kv.delete("prod", timeout=10)
        history = writers.stop()
        check_states(live.converged(timeout_ms=60_000))
        check_writes(live, history)
        acknowledged = sum(write.outcome == "ok" for write in history)
    took_ms = clock.now_ms() - began_ms
    sys.stderr.write(f"{len(points())} points, {acknowledged} acknowledged writes, {took_ms} ms\n")
    assert acknowledged > 1_000
    assert took_ms < TOTAL_MS


def test_a_point_can_be_disarmed_and_an_unknown_one_is_refused() -> None:
    """Disarmed, the node lives on; a name that is none is exit 2."""
    with live_cluster(3) as live, Client(live.cluster.name, environ=live.environ) as client:
        leader = live.leader()
        with pytest.raises(ZraftError, match="no crash point") as refusal:
            live.cluster.ask(leader, CrashAt("nowhere"))
        assert refusal.value.exit_code == 2
        pid = live.status(leader).pid
        live.cluster.ask(leader, CrashAt("wal.seal.before"))
        live.cluster.ask(leader, CrashAt(""))
        for number in range(100):
            client.kv.put(f"k{number}", "v")
        assert live.status(leader).pid == pid
