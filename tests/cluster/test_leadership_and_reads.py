"""Leadership that is handed over, and what each level of reads answers where, on real processes.

One cluster for all of it; leases are on. Faults that a test makes are ended by it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.harness import LiveCluster, live_cluster, wait_until
from zraft.api import (
    Accepted,
    Campaign,
    Consistency,
    ControlFailure,
    Heal,
    Isolate,
    TransferLeadership,
)
from zraft.client.control import Settings
from zraft.client.kv import ReadConsistency
from zraft.client.sync import Client, Info
from zraft.errors import NotRunning, Unavailable, ZraftError
from zraft.machine.kv_codec import encode_put

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

WITH_LEASES: Settings = {"reads": {"lease": True}}


@pytest.fixture(scope="module")
def live() -> Iterator[LiveCluster]:
    """Three nodes that allow lease reads."""
    with live_cluster(3, settings=WITH_LEASES) as cluster:
        yield cluster


@pytest.fixture
def client(live: LiveCluster) -> Iterator[Client]:
    """A client, and a key that it wrote."""
    with Client(live.cluster.name, environ=live.environ) as made:
        made.kv.put("k", "v")
        yield made


def followers(live: LiveCluster) -> list[str]:
    """Return who does not lead now."""
    leader = live.leader()
    return [name for name in live.names if name != leader]


def hand_over(live: LiveCluster, to: str) -> None:
    """Have the leader hand over, and wait until everybody follows `to`."""
    reply = live.cluster.ask(live.leader(), TransferLeadership(to=to))
    assert isinstance(reply, Accepted), reply
    wait_until(f"{to} leads", lambda: live.leader_now() == to or None, timeout_ms=10_000)


def stood_because(live: LiveCluster, name: str, term: int) -> str:
    """Return why a node stood for election in a term; its log is written a moment later."""

    def look() -> str | None:
        attempts = live.events(name, "election.started")
        stood = [e for e in attempts if e["term"] == term and not e["pre_vote"]]
        return str(stood[0]["reason"]) if stood else None

    return wait_until(f"{name} stood in term {term}", look, timeout_ms=10_000)


def last_transfer(live: LiveCluster, name: str) -> tuple[str, str]:
    """Return to whom a node handed over last, and how that ended."""

    def look() -> tuple[str, str] | None:
        ended = live.events(name, "transfer.ended")
        return (ended[-1]["target"], ended[-1]["outcome"]) if ended else None

    return wait_until(f"a transfer of {name} ended", look, timeout_ms=10_000)


def test_a_transfer_makes_the_named_node_leader_of_the_next_term(live: LiveCluster) -> None:
    """TimeoutNow instead of a timeout: one term further, and the target stood because it was told.

    Who does not lead, and a target that is none, are refused with the reason.
    """
    old, target = live.leader(), followers(live)[0]
    term = live.status(old).term
    follower = followers(live)[1]
    asked = live.cluster.ask_all([follower], TransferLeadership(to=target))[follower]
    assert isinstance(asked, ControlFailure)
    assert (asked.code, asked.exit_code) == ("not_leader", 6)
    asked = live.cluster.ask_all([old], TransferLeadership(to=old))[old]
    assert isinstance(asked, ControlFailure)
    assert asked.why == "it leads already"
    hand_over(live, target)
    assert live.status(target).term == term + 1
    assert stood_because(live, target, term + 1) == "transfer"
    assert last_transfer(live, old) == (target, "done")


def test_writes_during_transfers_are_answered_ok(live: LiveCluster, client: Client) -> None:
    """They wait while leadership moves, wherever they came in: no failure, nothing unknown."""
    for round_number in range(3):
        target = followers(live)[0]
        for number in range(40):
            body = encode_put(b"w%d" % number, b"%d" % round_number)
            client.submit(body, Consistency.WRITE, at=live.names[number % 3], timeout_s=10)
            if number == 20:
                client.wait(timeout_s=0)
                hand_over(live, target)
        while client.outstanding:
            for finished in client.wait():
                assert not isinstance(finished.outcome, ZraftError), finished
    assert client.kv.get("w39") == b"2"


def test_each_level_is_answered_where_it_belongs(live: LiveCluster, client: Client) -> None:
    """A follower answers linearizable and stale reads itself; a lease read is the leader's."""
    leader, follower = live.leader(), followers(live)[0]
    wait_until("a lease", lambda: live.status(leader).lease_ms, timeout_ms=10_000)
    seen: dict[str, Info] = {}
    levels: tuple[ReadConsistency, ...] = ("linearizable", "lease", "stale")
    for level in levels:
        assert client.kv.get("k", consistency=level, at=follower) == b"v"
        assert client.info is not None
        seen[level] = client.info
    assert [seen[level].node for level in levels] == [follower, leader, follower]
    assert seen["linearizable"].staleness_ms == 0
    age_ms = seen["stale"].staleness_ms
    assert age_ms is not None
    assert age_ms < 10_000
    assert live.status(follower).staleness_ms is not None


def test_a_bounded_stale_read_is_refused_by_a_node_that_is_cut_off(
    live: LiveCluster, client: Client
) -> None:
    """It still answers without a bound, and says how old that is; with one it can prove nothing."""
    follower = followers(live)[0]
    assert client.kv.get("k", consistency="stale", max_staleness=10.0, at=follower) == b"v"
    live.cluster.ask(follower, Isolate([]))
    try:
        wait_until(
            "old enough",
            lambda: (live.status(follower).staleness_ms or 0) > 100 or None,
            timeout_ms=10_000,
        )
        with pytest.raises(Unavailable):
            client.kv.get("k", consistency="stale", max_staleness=0.05, at=follower, timeout=2.0)
        assert client.kv.get("k", consistency="stale", at=follower) == b"v"
        assert client.info is not None
        assert (client.info.staleness_ms or 0) > 100
        with pytest.raises(Unavailable):
            client.kv.get("k", at=follower, timeout=2.0)
    finally:
        live.cluster.ask(follower, Heal())
    live.converged()


def test_a_campaign_skips_the_pre_vote_and_not_the_promise(live: LiveCluster) -> None:
    """A follower that promised its leader a lease does not stand, and its term stays."""
    leader, follower = live.leader(), followers(live)[0]
    wait_until("a lease", lambda: live.status(leader).lease_ms, timeout_ms=10_000)
    before = live.status(leader).term
    asked = live.cluster.ask_all([follower], Campaign())[follower]
    assert isinstance(asked, ControlFailure)
    assert "promised a leader its lease" in asked.why
    assert live.status(leader).term == before


def test_a_leader_that_stops_politely_hands_over_first(live: LiveCluster, client: Client) -> None:
    """The next leader stood because it was told to, before the old process had gone.

    A client that went on writing saw no failure.
    """
    old = live.leader()
    term = live.status(old).term
    for number in range(20):
        client.submit(encode_put(b"s%d" % number, b"1"), Consistency.WRITE, timeout_s=10)
    client.wait(timeout_s=0)
    (result,) = live.cluster.act("stop", [old])
    assert result.failure is None
    while client.outstanding:
        for finished in client.wait():
            assert not isinstance(finished.outcome, ZraftError), finished
    new = live.leader()
    assert new != old
    assert stood_because(live, new, term + 1) == "transfer"
    assert last_transfer(live, old) == (new, "done")
    with pytest.raises(NotRunning):
        live.cluster.ask(old, Campaign())
    live.cluster.act("start", [old])
    live.converged()
