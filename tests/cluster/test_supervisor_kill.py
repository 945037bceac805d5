"""The supervisor is not needed for serving: kill -9 of it costs no write, and nothing is left."""

from __future__ import annotations

import os
import signal
from collections import Counter

import pytest

from tests.cluster.harness import LiveCluster, live_cluster, wait_until
from tests.cluster.writers import writers_on

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

NODES = 5
ROUNDS = 3
AWAY_MS = 400


def kill_supervisor(live: LiveCluster) -> None:
    """End the supervisor as hard as possible and wait until it is gone."""
    found = live.cluster.supervisor()
    assert found is not None
    os.kill(found.pid, signal.SIGKILL)
    wait_until(
        "the supervisor is gone",
        lambda: live.cluster.supervisor() is None or None,
        timeout_ms=5_000,
    )


def test_killing_the_supervisor_under_load_fails_no_write() -> None:
    """Three times kill -9 under load, a follower paused in between: same pids, every write ok;
    and `down` ends all of it, the paused node too."""
    with live_cluster(NODES) as live:
        followers = [name for name in live.names if name != live.up.leader]
        pids = {name: row.pid for name, row in live.cluster.table().items()}
        with writers_on(live) as writers:
            for name in followers[:ROUNDS]:
                kill_supervisor(live)
                writers.watch(AWAY_MS)
                (paused,) = live.cluster.act("pause", [name])  # starts the next supervisor
                assert paused.failure is None, paused.failure
                kill_supervisor(live)
                writers.watch(AWAY_MS)
                (resumed,) = live.cluster.act("resume", [name])
                assert resumed.failure is None, resumed.failure
                rows = live.cluster.table()
                assert {name: row.pid for name, row in rows.items()} == pids
            history = writers.stop()
        outcomes = Counter(write.outcome for write in history)
        assert set(outcomes) == {"ok"}, outcomes
        assert outcomes["ok"] >= ROUNDS * AWAY_MS // 10
        (last,) = live.cluster.act("pause", [followers[0]])
        assert last.failure is None, last.failure
        kill_supervisor(live)
