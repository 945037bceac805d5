"""A leader that is cut off: another one is elected, and nothing that the old one says counts."""

from __future__ import annotations

import pytest

from tests.cluster.harness import LiveCluster, elections_won, live_cluster, wait_until
from zraft.api import Consistency, Heal, Isolate, NodeStatus
from zraft.client.control import Settings
from zraft.client.sync import Client
from zraft.errors import OutcomeUnknown, RequestError, Unavailable
from zraft.machine.kv_codec import encode_put

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

NODES = 5
CREDULOUS: Settings = {"timing": {"check_quorum": False}}
ELECTED_MS = 15_000
WRITE_S = 2.0


def isolate(live: LiveCluster, name: str) -> None:
    """Cut a node off from all others; its clients and operators still reach it."""
    live.cluster.ask(name, Isolate([]))


def other_leader(live: LiveCluster, old: str) -> NodeStatus:
    """Wait until somebody else leads and return what it says."""

    def look() -> NodeStatus | None:
        statuses = live.cluster.statuses().values()
        leaders = [s for s in statuses if s is not None and s.role == "leader" and s.name != old]
        return max(leaders, key=lambda s: s.term, default=None)

    return wait_until("another leader", look, timeout_ms=ELECTED_MS)


def test_what_an_isolated_leader_takes_is_never_acknowledged_and_vanishes() -> None:
    """Without CheckQuorum it believes for ever: writes are unknown, reads refused, and healed it
    follows and has forgotten its own entry."""
    with live_cluster(NODES, settings=CREDULOUS) as live:
        old = live.leader()
        with Client(live.cluster.name, environ=live.environ) as client:
            client.kv.put("before", "1", at=old)
            isolate(live, old)
            new = other_leader(live, old)

            with pytest.raises(OutcomeUnknown):
                client.kv.put("lost", "1", at=old, timeout=WRITE_S)
            with pytest.raises(Unavailable):
                client.kv.get("before", at=old, timeout=WRITE_S)
            assert client.kv.get("before", at=old, consistency="stale") == b"1"
            client.kv.put("kept", "1", at=new.name)

            cut_off = live.status(old)
            assert (cut_off.role, cut_off.leader) == ("leader", old)
            assert cut_off.term < new.term, "two leaders, but never of one term"
            assert cut_off.last_index > cut_off.commit, "the write is in its log, and only there"
            assert sum(fault.hits for fault in cut_off.faults) > 0

            live.cluster.ask(old, Heal())
            statuses = live.converged()
            assert statuses[old].role == "follower"
            assert len({status.state_hash for status in statuses.values()}) == 1
            for name in live.names:
                found = [client.kv.get(k, at=name) for k in ("before", "kept", "lost")]
                assert found == [b"1", b"1", None], name


def test_an_isolated_leader_steps_down_by_itself_and_comes_back_without_a_stir() -> None:
    """With CheckQuorum it gives up on its own; PreVote keeps its term, so healing moves nobody."""
    with live_cluster(NODES) as live:
        old = live.leader()
        with Client(live.cluster.name, environ=live.environ) as client:
            client.kv.put("before", "1", at=old)
            term = live.status(old).term
            isolate(live, old)
            body = encode_put(b"early", b"1")
            early = client.submit(body, Consistency.WRITE, at=old, timeout_s=WRITE_S)
            client.wait(timeout_s=0)  # on its way, whether it still leads or not
            new = other_leader(live, old)

            gave_up = wait_until(
                "it steps down", lambda: follower(live, old), timeout_ms=ELECTED_MS
            )
            assert gave_up.leader is None
            assert gave_up.term == term, "it asks, and does not raise its term"
            with pytest.raises(RequestError):
                client.kv.put("late", "1", at=old, timeout=WRITE_S)
            results = {finished.request_id: finished.outcome for finished in client.wait()}
            assert isinstance(results[early], RequestError), "never ok"

            live.cluster.ask(old, Heal())
            statuses = live.converged()
            assert {status.leader for status in statuses.values()} == {new.name}
            found = {key: client.kv.get(key) for key in ("before", "early", "late")}
            assert found["before"] == b"1"
            assert found["early"] is None
        won = elections_won(live.all_events("election.won"))
        assert [name for _, name in won][-2:] == [old, new.name], "healing elected nobody"
        assert live.events(old, "check_quorum.lost")


def follower(live: LiveCluster, name: str) -> NodeStatus | None:
    """Return the status of a node that does not lead."""
    status = live.status(name)
    return status if status.role != "leader" else None
