"""The members change under load while nodes are killed; nothing acknowledged is lost."""

from __future__ import annotations

import os
import random
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby

import pytest

from tests.cluster.harness import LiveCluster, elections_won, live_cluster
from tests.cluster.test_durability import check_states, check_writes
from tests.cluster.writers import value_of, writers_on
from zraft.client.sync import Client

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def kill_one(live: LiveCluster, rng: random.Random) -> None:
    """Kill a voter for a moment; the supervisor starts it again while the change goes on."""
    leader = live.leader()
    voters = live.status(leader).voters
    name = rng.choice(voters)
    (result,) = live.cluster.act("kill", [name], for_ms=rng.randint(50, 400))
    assert result.failure is None, result.failure


def check_leaders(live: LiveCluster) -> None:
    """No term had two leaders, those of removed nodes included (Raft §5.2)."""
    directories = [path for path in live.directory.iterdir() if (path / "log.jsonl").exists()]
    won = sorted(
        (term, path.name)
        for path in directories
        for term, _ in elections_won(live.events(path.name, "election.won"))
    )
    for term, group in groupby(won, key=lambda election: election[0]):
        leaders = {name for _, name in group}
        assert len(leaders) == 1, f"term {term}: {leaders}"


@pytest.mark.timeout(180)
def test_three_five_four_three_under_load_and_kills() -> None:
    """Two join, the leader leaves, another leaves; a voter dies during each change (Raft §6)."""
    seed = int(os.environ.get("ZRAFT_TEST_SEED") or secrets.randbits(32))
    sys.stderr.write(f"seed of the kills: {seed}\n")
    rng = random.Random(seed)
    with live_cluster(3) as live, writers_on(live) as writers:
        for _ in range(2):
            kill_one(live, rng)
            added = live.cluster.add_node(timeout_ms=60_000)
            assert added.role == "voter"
            writers.watch(200)
        assert live.cluster.reload().names == ["n1", "n2", "n3", "n4", "n5"]
        for leader_goes in (True, False):
            leader = live.leader()
            gone = leader if leader_goes else next(name for name in live.names if name != leader)
            kill_one(live, rng)
            assert live.cluster.remove_node(gone, timeout_ms=60_000).role == "gone"
            live.cluster.reload()
            writers.watch(200)
        assert len(live.names) == 3
        history = writers.stop()
        statuses = live.converged(timeout_ms=60_000)
        assert {tuple(status.voters) for status in statuses.values()} == {tuple(live.names)}
        check_states(statuses)
        check_writes(live, history)
        check_leaders(live)
        acknowledged = sum(write.outcome == "ok" for write in history)
        sys.stderr.write(f"{acknowledged} acknowledged writes\n")
        assert acknowledged > 100


def test_a_wiped_node_comes_back_as_another_member() -> None:
    """It never votes with a lost memory: a new id, a learner first, filled, then promoted."""
    with live_cluster(3) as live, Client(live.cluster.name, environ=live.environ) as client:
        client.kv.put("before", "1")
        leader = live.leader()
        name = next(other for other in live.names if other != leader)
        old_id = live.status(name).member_id
        live.cluster.act("kill", [name])
        shutil.rmtree(live.directory / name)
        (started,) = live.cluster.act("start", [name])
        assert started.failure is not None
        assert started.failure.exit_code == 65 or "65" in started.failure.message
        replaced = live.cluster.replace_node(name, timeout_ms=60_000)
        assert (replaced.role, replaced.member_id != old_id) == ("voter", True)
        statuses = live.converged()
        assert statuses[name].member_id == replaced.member_id
        assert statuses[name].voters == live.names
        check_states(statuses)
        client.kv.put("after", "2")


SESSION = """
import select, sys
from itertools import count
from zraft.client.sync import Client
with Client(sys.argv[1], timeout_s=10) as client, client.session() as session:
    for number in count(1):
        session.kv.put(f"rolling-{number}", "x")
        if select.select([0], [], [], 0)[0]:
            break
print(number)
"""
"""Writes in one session until its standard input ends; any write that does not end well ends it."""


@contextmanager
def session_on(live: LiveCluster) -> Iterator[subprocess.Popen[bytes]]:
    """Run SESSION; afterwards it is gone."""
    popen = subprocess.Popen(
        [sys.executable, "-c", SESSION, live.cluster.name],
        env=live.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield popen
    finally:
        popen.kill()
        popen.communicate()


def test_a_rolling_restart_under_load_loses_nothing() -> None:
    """One after the other, the leader last and only after it handed over; no session sees it."""
    with live_cluster(3) as live, writers_on(live) as writers, session_on(live) as session:
        before = {name: live.status(name).pid for name in live.names}
        result = live.cluster.rolling_restart(timeout_ms=60_000)
        told, _ = session.communicate(timeout=20)
        assert session.returncode == 0, "a write of the session failed"
        assert int(told) > 1
        assert result.left == []
        assert len(result.handovers_ms) == 1
        history = writers.stop()
        statuses = live.converged()
        assert all(statuses[name].pid != pid for name, pid in before.items())
        check_states(statuses)
        with Client(live.cluster.name, environ=live.environ) as client:
            there = {item.key.decode(): item.value.decode() for item in client.kv.scan("w")}
        kept = [there.get(w.key) == value_of(w.key) for w in history if w.outcome == "ok"]
        assert all(kept), f"{kept.count(False)} acknowledged writes are lost"
