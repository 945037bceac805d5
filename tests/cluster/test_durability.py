"""What was acknowledged survives everything short of a broken disk: kill -9, pauses, all at once.

The schedule of faults comes from a seed, which is printed; the interleaving with the processes does
not. `ZRAFT_TEST_SEED=<seed>` repeats the schedule.
"""

from __future__ import annotations

import os
import random
import secrets
import sys
from collections import Counter
from itertools import pairwise

import pytest

from tests.cluster.harness import LiveCluster, elections_won, live_cluster, wait_until
from tests.cluster.writers import Write, Writers, value_of, writers_on
from zraft import clock
from zraft.api import NodeStatus
from zraft.client.sync import Client
from zraft.control_api import Action

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

NODES = 5
MINORITY_MS = 45_000
ANYTHING_MS = 15_000
ENOUGH_ACKNOWLEDGED = 5_000
ENOUGH_KILLS = 20
ENOUGH_PAUSES = 20
ENOUGH_LEADER_CHANGES = 10


class Faults:
    """Kills and pauses nodes at random for a while; the supervisor undoes each after its time."""

    def __init__(self, live: LiveCluster, rng: random.Random) -> None:
        self.counts: Counter[str] = Counter()
        self._live = live
        self._rng = rng

    def step(self, most: int) -> int:
        """Break something unless `most` nodes are broken; return how long to wait, in ms."""
        broken = self.broken()
        whole = [name for name in self._live.names if name not in broken]
        if len(broken) < most and whole:
            leader = self._live.leader_now()
            wants_leader = leader in whole and self._rng.random() < 0.5
            name = leader if wants_leader and leader is not None else self._rng.choice(whole)
            self._break(name)
        return self._rng.randint(10, 250)

    def _break(self, name: str) -> None:
        action: Action = "kill" if self._rng.random() < 0.5 else "pause"
        for_ms = self._rng.randint(50, 400 if action == "kill" else 1_200)
        (result,) = self._live.cluster.act(action, [name], for_ms=for_ms)
        # Between the look and the deed its state can change: then nothing was done.
        self.counts[action] += result.failure is None and result.changed

    def broken(self) -> list[str]:
        """Return the nodes that do not run at the moment."""
        rows = self._live.cluster.table()
        return [name for name, row in rows.items() if row.state != "running"]

    def wait_for_all(self) -> None:
        """Wait until the supervisor has undone everything."""
        try:
            wait_until("every node runs", lambda: not self.broken() or None, timeout_ms=20_000)
        except AssertionError:
            sys.stderr.write(f"{self._live.cluster.table()}\n")
            raise

    def rage(self, writers: Writers, *, most: int, duration_ms: int) -> None:
        """Break nodes, at most so many at a time, for so long."""
        end_ms = clock.now_ms() + duration_ms
        while clock.now_ms() < end_ms:
            writers.watch(self.step(most))


@pytest.mark.timeout(300)
def test_no_acknowledged_write_is_lost() -> None:
    """Kills, pauses and the death of all five at once lose nothing that was acknowledged."""
    seed = int(os.environ.get("ZRAFT_TEST_SEED") or secrets.randbits(32))
    sys.stderr.write(f"seed of the faults: {seed}\n")
    with live_cluster(NODES) as live, writers_on(live) as writers:
        faults = Faults(live, random.Random(seed))
        faults.rage(writers, most=NODES // 2, duration_ms=MINORITY_MS)
        faults.rage(writers, most=NODES, duration_ms=ANYTHING_MS)
        faults.wait_for_all()
        live.leader()
        writers.watch(500)
        for result in live.cluster.act("kill", live.names):
            assert result.failure is None, result.failure
            faults.counts["kill"] += 1
        history = writers.stop()
        live.bring_up()
        statuses = live.converged(timeout_ms=60_000)
        check_states(statuses)
        check_writes(live, history)
        check_ends(live)
        check_enough(live, history, faults)


def check_states(statuses: dict[str, NodeStatus]) -> None:
    """All nodes applied the same entries and hold the same state."""
    assert len({status.applied for status in statuses.values()}) == 1
    hashes = {name: status.state_hash for name, status in statuses.items()}
    assert None not in hashes.values()
    assert len(set(hashes.values())) == 1, hashes


def check_writes(live: LiveCluster, history: list[Write]) -> None:
    """What was acknowledged is there, what failed is not; what is unknown may be either."""
    with Client(live.cluster.name, environ=live.environ) as client:
        there = {item.key.decode(): item.value.decode() for item in client.kv.scan()}
    lost = [w.key for w in history if w.outcome == "ok" and there.get(w.key) != value_of(w.key)]
    assert lost == [], f"{len(lost)} acknowledged writes are lost"
    undead = [w.key for w in history if w.outcome == "failed" and w.key in there]
    assert undead == [], f"{len(undead)} writes failed for certain, and are there"
    assert set(there) <= {w.key for w in history}, "keys that nobody wrote"


def check_ends(live: LiveCluster) -> None:
    """Every process that ended was killed on purpose: none aborted, none crashed."""
    exits = live.events("supervisor", "process.exited")
    odd = [e["msg"] for e in exits if e["signal"] != "SIGKILL" or not e["expected"]]
    assert odd == []
    rows = live.cluster.table().values()
    assert [row.last_exit for row in rows if row.last_exit and not row.last_exit.expected] == []


def check_enough(live: LiveCluster, history: list[Write], faults: Faults) -> None:
    """A quiet run proves nothing."""
    outcomes = Counter(write.outcome for write in history)
    leaders = [node for _, node in elections_won(live.all_events("election.won"))]
    changes = sum(1 for old, new in pairwise(leaders) if old != new)
    sys.stderr.write(f"{dict(outcomes)}, {dict(faults.counts)}, {changes} leader changes\n")
    assert outcomes["ok"] >= ENOUGH_ACKNOWLEDGED
    assert faults.counts["kill"] >= ENOUGH_KILLS
    assert faults.counts["pause"] >= ENOUGH_PAUSES
    assert changes >= ENOUGH_LEADER_CHANGES
