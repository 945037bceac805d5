"""Broken networks between real processes: who serves, who refuses, and that healing heals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter

import pytest

from tests.cluster.harness import LiveCluster, live_cluster, wait_until
from tests.cluster.test_durability import check_ends, check_states, check_writes
from tests.cluster.writers import writers_on
from zraft import clock
from zraft.api import CrashAt, FaultStatus, NodeStatus
from zraft.client.faults import CLI
from zraft.client.sync import Client
from zraft.errors import ControlError, RequestError, Unavailable

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

NODES = 5
SOON_MS = 15_000
WRITE_S = 1.0
GONE_MS = 3_000
LOAD_MS = 8_000
ENOUGH_ACKNOWLEDGED = 300

OWNER = """
import sys
from zraft.client.control import Cluster
import os
cluster = Cluster.open(sys.argv[1], os.environ)
print(cluster.faults.isolate([sys.argv[2]], owner="a script").id, flush=True)
sys.stdin.read()
"""


def client_of(live: LiveCluster) -> Client:
    """Return a client of the cluster."""
    return Client(live.cluster.name, environ=live.environ)


def faults_in(live: LiveCluster, name: str) -> list[FaultStatus]:
    """Return the faults in force in a node."""
    return live.status(name).faults


def other_leader(live: LiveCluster, old: str, among: list[str]) -> NodeStatus:
    """Wait until one of these nodes leads in a later term, followed by a majority."""

    def look() -> NodeStatus | None:
        found = live.leader_now()
        return live.status(found) if found in among and found != old else None

    return wait_until("another leader", look, timeout_ms=SOON_MS)


def test_the_majority_serves_the_minority_refuses_and_healing_converges() -> None:
    """The leader and one more against three: the three go on, the two never say ok."""
    with live_cluster(NODES) as live, client_of(live) as client:
        old = live.leader()
        weak = [old, next(name for name in live.names if name != old)]
        strong = [name for name in live.names if name not in weak]
        client.kv.put("before", "1", at=old)
        live.converged()
        fault = live.cluster.faults.partition([weak])
        assert (fault.groups, fault.missed) == ([weak, strong], [])
        new = other_leader(live, old, strong)
        client.kv.put("kept", "1", at=new.name)
        assert client.kv.get("kept", at=strong[0]) == b"1"
        for name in weak:
            with pytest.raises(RequestError):
                client.kv.put("lost", "1", at=name, timeout=WRITE_S)
            with pytest.raises(Unavailable):
                client.kv.get("before", at=name, timeout=WRITE_S)
            assert client.kv.get("before", at=name, consistency="stale") == b"1"
        assert live.cluster.faults.list()[0].hits > 0
        assert [ended.id for ended in live.cluster.faults.heal()] == [fault.id]
        check_states(live.converged())
        found = [client.kv.get(key) for key in ("before", "kept", "lost")]
        assert found == [b"1", b"1", None]


def test_a_cut_off_follower_reaches_nobody_through_forwarding() -> None:
    """It believes in its leader for a while yet, and no request passes in its name."""
    with live_cluster(3) as live, client_of(live) as client:
        leader = live.leader()
        follower = next(name for name in live.names if name != leader)
        client.kv.put("a", "1", at=follower)
        live.cluster.faults.isolate([follower])
        assert live.status(follower).leader in {leader, None}
        with pytest.raises(RequestError):
            client.kv.put("a", "2", at=follower, timeout=WRITE_S)
        with pytest.raises(Unavailable):
            client.kv.get("a", at=follower, timeout=WRITE_S)
        assert client.kv.get("a", at=leader) == b"1"
        live.cluster.faults.heal()
        live.converged()


def test_a_leader_that_nobody_hears_is_replaced() -> None:
    """One way out is cut: the others elect somebody, and the old one, which hears them, follows."""
    with live_cluster(NODES) as live:
        old = live.leader()
        rest = [name for name in live.names if name != old]
        live.cluster.faults.one_way([old], rest)
        new = other_leader(live, old, rest)
        wait_until(
            "the old leader follows",
            lambda: live.status(old).role != "leader" or None,
            timeout_ms=SOON_MS,
        )
        assert live.status(new.name).term >= new.term
        live.cluster.faults.heal()
        check_states(live.converged())


def test_a_leader_that_hears_nobody_steps_down() -> None:
    """One way in is cut: its heartbeats still arrive, and it gives up by CheckQuorum."""
    with live_cluster(NODES) as live:
        old = live.leader()
        rest = [name for name in live.names if name != old]
        live.cluster.faults.one_way(rest, [old])
        other_leader(live, old, rest)
        assert live.events(old, "check_quorum.lost")
        live.cluster.faults.heal()
        check_states(live.converged())


@pytest.mark.timeout(120)
def test_bad_links_lose_no_acknowledged_write() -> None:
    """A tenth to a third of all messages lost, late, doubled, overtaken and damaged, under load."""
    with live_cluster(NODES) as live, writers_on(live) as writers:
        faults, links = live.cluster.faults, live.cluster.faults.all_links()
        made = [
            faults.drop(links, 0.3, seed=7),
            faults.delay(links, 10, jitter_ms=8, rate=0.5, seed=7),
            faults.duplicate(links, 0.2, seed=7),
            faults.reorder(links, 0.2, seed=7),
            faults.corrupt(links, 0.1, seed=7),
        ]
        writers.watch(LOAD_MS)
        held = {fault.id: fault.hits for fault in faults.list()}
        assert held.keys() == {fault.id for fault in made}
        assert min(held.values()) > 50, held
        refused = Counter[str]()
        for name in live.names:
            refused.update(live.status(name).counters)
        assert refused["peer.dropped_garbage"] > 0
        assert refused["peer.sent_fault"] > 0
        assert len(faults.heal()) == len(made)
        writers.watch(500)
        history = writers.stop()
        check_states(live.converged())
        check_writes(live, history)
        check_ends(live)
    outcomes = Counter(write.outcome for write in history)
    sys.stderr.write(f"{dict(outcomes)} {held}\n")
    assert outcomes["ok"] >= ENOUGH_ACKNOWLEDGED


def test_a_fault_ends_at_its_time() -> None:
    """`for_ms`: in force at once, gone after it, in the nodes and in the list, with a log line."""
    with live_cluster(3) as live:
        follower = next(name for name in live.names if name != live.leader())
        began_ms = clock.now_ms()
        fault = live.cluster.faults.isolate([follower], for_ms=700)
        assert [known.id for known in faults_in(live, follower)] == [fault.id]
        wait_until(
            "it is over", lambda: faults_in(live, follower) == [] or None, timeout_ms=GONE_MS
        )
        assert clock.now_ms() - began_ms >= 700
        assert live.cluster.faults.list() == []
        told = live.events(follower, "fault.injected", "fault.cleared")
        assert [event["event"] for event in told] == ["fault.injected", "fault.cleared"]
        live.converged()


def test_a_fault_ends_with_its_owner_and_with_the_supervisor() -> None:
    """A script's fault goes when the script is killed, and when the supervisor is; what the
    command line made stays in force, and the next supervisor holds it again."""
    with live_cluster(3) as live:
        leader = live.leader()
        one, other = (name for name in live.names if name != leader)
        words = [sys.executable, "-c", OWNER, live.cluster.name, one]
        with subprocess.Popen(
            words, env=live.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as script:
            assert script.stdout is not None
            fault_id = script.stdout.readline().decode().strip()
            (fault,) = live.cluster.faults.list()
            assert (fault.id, fault.by) == (fault_id, "a script")
            assert faults_in(live, one)
            script.kill()
        wait_until("it is over", lambda: faults_in(live, one) == [] or None, timeout_ms=GONE_MS)
        assert live.cluster.faults.list() == []

        live.cluster.faults.isolate([one])
        lasting = live.cluster.faults.drop([(leader, other)], 0.1, owner=CLI)
        supervisor = live.cluster.supervisor()
        assert supervisor is not None
        os.kill(supervisor.pid, signal.SIGKILL)
        wait_until("it is over", lambda: faults_in(live, one) == [] or None, timeout_ms=GONE_MS)
        assert [known.id for known in faults_in(live, leader)] == [lasting.id]
        assert [fault.id for fault in live.cluster.faults.list()] == [lasting.id]

        another = live.cluster.faults.delay([(one, other)], 5)  # starts the next supervisor
        assert live.cluster.supervisor() is not None
        assert [fault.id for fault in live.cluster.faults.list()] == [lasting.id, another.id]
        live.cluster.faults.heal(lasting.id)
        assert faults_in(live, leader) == []
        live.cluster.faults.heal()
        live.converged()


def test_a_restarted_node_gets_the_faults_that_concern_it() -> None:
    """Its new process has them as soon as it serves; faults of others it does not have."""
    with live_cluster(3) as live:
        leader = live.leader()
        one, other = (name for name in live.names if name != leader)
        cut = live.cluster.faults.one_way([one], [leader])
        slow = live.cluster.faults.delay([(other, leader)], 1)
        live.cluster.act("kill", [one])
        assert live.cluster.act("start", [one])[0].failure is None
        wait_until("it knows", lambda: faults_in(live, one) or None, timeout_ms=GONE_MS)
        assert [known.id for known in faults_in(live, one)] == [cut.id]
        assert [known.id for known in faults_in(live, other)] == [slow.id]
        live.cluster.faults.heal()


def test_faults_are_healed_by_id_and_by_kind_and_partitions_replace_each_other() -> None:
    """A second partition takes the first one's place unless it is added; unknown ids are exit 4."""
    with live_cluster(3) as live:
        faults = live.cluster.faults
        first = faults.partition([["n1"]])
        second = faults.partition([["n2"]])
        assert second.replaced == [first.id]
        third = faults.partition([["n3"]], add=True)
        delay = faults.delay([("n1", "n2")], 5)
        assert [fault.id for fault in faults.list()] == [second.id, third.id, delay.id]
        with pytest.raises(ControlError, match=first.id) as unknown:
            faults.heal(first.id)
        assert (unknown.value.code, unknown.value.exit_code) == ("not_found", 4)
        assert [fault.id for fault in faults.heal(kind="delay")] == [delay.id]
        assert [fault.id for fault in faults.heal(third.id)] == [third.id]
        assert [fault.id for fault in faults.heal()] == [second.id]
        for groups in ([["n1", "n2", "n3"]], [["n1"], ["n1", "n2"]], [["n9"]]):
            with pytest.raises(ControlError):
                faults.partition(groups)
        with pytest.raises(ControlError):
            faults.drop([("n1", "n2")], 1.5)
        assert faults.list() == []
        live.converged()


def test_nodes_that_were_started_so_refuse_faults() -> None:
    """`testing.faults = "refused"`: the supervisor says so, and the nodes themselves."""
    with live_cluster(3, settings={"testing": {"faults": "refused"}}) as live:
        with pytest.raises(ControlError, match="refuse faults") as refusal:
            live.cluster.faults.isolate(["n1"])
        assert "--no-faults" in refusal.value.why
        with pytest.raises(ControlError, match="refuses faults"):
            live.cluster.ask("n1", CrashAt("flush.sent"))
        assert all(faults_in(live, name) == [] for name in live.names)
        assert live.cluster.faults.heal() == []
