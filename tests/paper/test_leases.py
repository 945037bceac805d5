"""Reads under a lease (thesis §6.4.1): when a leader may answer without asking, and when not."""

from __future__ import annotations

from zraft.core.messages import (
    AppendEntriesResponse,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)
from zraft.core.model import Role, Settings
from zraft.core.notices import LeaseDropped, TransferEnded
from zraft.testing.core_cluster import CoreCluster
from zraft.testing.solo import Solo

LEASES = Settings(lease=True)
LEASE_MS = 135  # the minimal election timeout, 150, less 10 %


def leader(members: int = 3, settings: Settings = LEASES) -> Solo:
    """Return a leader that has committed its no-op; its first round began at 1000."""
    solo = Solo(members, settings=settings)
    solo.now_ms = 1000
    solo.become_leader()
    for peer in solo.peers:
        solo.ack(peer, 1)
    return solo


def index_at(solo: Solo, now_ms: int) -> int | None:
    """Return what a lease read at this time is answered at, None without a lease."""
    solo.now_ms = now_ms
    return solo.raft.lease_read(now_ms=now_ms)


def test_a_lease_lasts_the_minimal_timeout_less_ten_percent_from_when_its_round_began() -> None:
    """Thesis §6.4.1: what every voter of a quorum promised, less what their clocks may differ."""
    solo = leader()
    assert index_at(solo, 1000 + LEASE_MS - 1) == 1
    assert index_at(solo, 1000 + LEASE_MS) is None


def test_a_lease_counts_from_the_sending_and_not_from_the_answer() -> None:
    """Pitfalls 37: an answer may have travelled for long, and the promise is old by then."""
    solo = Solo(settings=LEASES)
    solo.now_ms = 1000
    solo.become_leader()
    solo.now_ms = 1120
    solo.ack(2, 1)
    assert solo.raft.lease_left_ms(1120) == 15
    assert index_at(solo, 1000 + LEASE_MS) is None


def test_a_quorum_has_to_answer_and_the_oldest_of_them_decides() -> None:
    """Three of five, this node among them: the second best round counts."""
    solo = Solo(5, settings=LEASES)
    solo.now_ms = 1000
    solo.become_leader()
    solo.ack(2, 1, round_=1)
    assert solo.raft.lease_left_ms(1000) == 0
    solo.ack(3, 1, round_=1)
    solo.wait(50)
    solo.ack(2, 1, round_=2)
    assert solo.raft.lease_left_ms(1050) == LEASE_MS - 50
    solo.ack(4, 1, round_=2)
    assert solo.raft.lease_left_ms(1050) == LEASE_MS


def test_every_heartbeat_extends_the_lease() -> None:
    """Without reads, too: a lease is there before somebody wants it."""
    solo = leader()
    for beat in range(1, 8):
        solo.wait(50)
        solo.ack(2, 1)
        assert solo.raft.lease_left_ms(1000 + beat * 50) == LEASE_MS


def test_no_lease_before_an_entry_of_the_own_term_is_committed() -> None:
    """Thesis §6.4, pitfalls 34: a new leader does not know what is committed."""
    solo = Solo(terms=[1, 1], term=1, settings=LEASES)
    solo.now_ms = 1000
    solo.become_leader()
    solo.ack(2, 2)
    assert solo.raft.lease_left_ms(1000) == LEASE_MS
    assert index_at(solo, 1001) is None
    solo.ack(2, 3)
    assert index_at(solo, 1002) == 3


def test_no_lease_without_the_setting() -> None:
    """Off by default: nobody promises anything then."""
    solo = leader(settings=Settings())
    assert index_at(solo, 1001) is None


def test_a_follower_has_no_lease() -> None:
    """Only a leader can know."""
    solo = Solo(settings=LEASES)
    solo.append(2, term=1, terms=[1], commit=1)
    assert index_at(solo, 1) is None


def test_a_stall_drops_the_lease_until_a_later_round_is_answered() -> None:
    """Pitfalls 35, 37: a process that stood still doubts what it knew before."""
    solo = leader()
    solo.propose("x")
    solo.flush()
    solo.now_ms = 1040
    solo.raft.on_stall(40, now_ms=1040)
    solo.flush()
    assert [n.late_ms for n in solo.notices if isinstance(n, LeaseDropped)] == [40]
    solo.ack(2, 2, round_=1)
    assert solo.raft.lease_left_ms(1040) == 0
    solo.wait(10)
    solo.ack(2, 2)
    assert solo.raft.lease_left_ms(1050) == LEASE_MS


def test_no_lease_in_a_term_after_timeout_now_was_sent() -> None:
    """Pitfalls 37: the successor may be elected already, in spite of every promise."""
    solo = leader()
    assert solo.raft.transfer(2, now_ms=solo.now_ms) is None
    assert solo.raft.lease_left_ms(solo.now_ms) == LEASE_MS, "not yet: nothing was sent"
    assert TimeoutNow(1, 2, 1) in solo.flush()
    assert index_at(solo, 1001) is None
    while not any(isinstance(notice, TransferEnded) for notice in solo.notices):
        solo.wait(solo.settings.heartbeat_ms)
        solo.ack(3, 1)
    assert solo.raft.role is Role.LEADER
    assert index_at(solo, solo.now_ms) is None, "the transfer was aborted; the lease stays away"


def ask_vote(solo: Solo, *, pre_vote: bool = False, transfer: bool = False, term: int = 9) -> bool:
    """Let 2 ask for a vote in `term`; return whether it was given."""
    request = RequestVote(2, solo.me, term - pre_vote, pre_vote, term, 9, 1, transfer)
    answers = [m.granted for m in solo.step(request) if isinstance(m, RequestVoteResponse)]
    assert len(answers) == 1
    return answers[0]


def test_a_promise_outlives_a_higher_term_that_was_learnt_elsewhere() -> None:
    """A stray answer raises the term, and the leader is forgotten; its lease is not."""
    voter = Solo(me=3, settings=LEASES)
    voter.now_ms = 1000
    voter.append(1, term=1, terms=[1])
    voter.step(AppendEntriesResponse(2, 3, 8, False, 0, 0, 0, 0))
    assert (voter.raft.term, voter.raft.leader_id) == (8, 0)
    voter.now_ms = 1149
    assert not ask_vote(voter)
    assert not ask_vote(voter, pre_vote=True)
    voter.now_ms = 1150
    assert ask_vote(voter)


def test_a_node_that_starts_votes_for_nobody_for_one_minimal_timeout() -> None:
    """It may have promised a leader its lease, and does not remember; pre-votes are votes, too."""
    voter = Solo(me=3, settings=LEASES)
    voter.now_ms = 149
    assert not ask_vote(voter)
    assert not ask_vote(voter, pre_vote=True)
    voter.now_ms = 150
    assert ask_vote(voter, pre_vote=True)
    assert ask_vote(voter)


def test_without_leases_a_node_that_starts_votes_at_once() -> None:
    """The price is paid only by who wants leases."""
    assert ask_vote(Solo(me=3))


def test_a_vote_that_the_leader_asked_for_passes_the_promise() -> None:
    """The leader gave up its lease before it asked."""
    voter = Solo(me=3, settings=LEASES)
    voter.append(1, term=1, terms=[1])
    assert ask_vote(voter, transfer=True, term=2)


def test_a_campaign_keeps_its_own_promise() -> None:
    """A vote for oneself is a vote: it could make the quorum that the lease excludes."""
    voter = Solo(me=3, settings=LEASES)
    voter.now_ms = 1000
    voter.append(1, term=1, terms=[1])
    voter.now_ms = 1149
    assert not voter.raft.campaign(now_ms=1149)
    voter.now_ms = 1150
    assert voter.raft.campaign(now_ms=1150)


def test_a_dead_leaders_lease_binds_nobody_where_a_refused_connection_proves_its_death() -> None:
    """The fast fail-over stays fast with leases on, on sockets of this machine."""
    voter = Solo(me=3, settings=LEASES)
    voter.now_ms = 1000
    voter.append(1, term=1, terms=[1])
    voter.raft.on_peer_down(1, 1, now_ms=1001)
    voter.now_ms = 1001
    assert ask_vote(voter, pre_vote=True)


def test_elsewhere_the_hint_ends_no_promise() -> None:
    """Between hosts a refused connection may have other reasons: a firewall, another address."""
    voter = Solo(me=3, settings=LEASES._replace(hint_ends_promise=False))
    voter.now_ms = 1000
    voter.append(1, term=1, terms=[1])
    voter.raft.on_peer_down(1, 1, now_ms=1001)
    voter.now_ms = 1001
    assert not ask_vote(voter, pre_vote=True)
    voter.wait(30)
    assert voter.raft.role is Role.FOLLOWER, "it does not stand itself, either"


def test_beyond_the_trusted_drift_a_lease_read_may_be_stale() -> None:
    """What the setting trusts, shown: the leader's clock runs at half speed here.

    The others elect a successor after 150 ms of theirs, when the leader's clock has shown 75.
    """
    cluster = CoreCluster(3, settings=LEASES)
    cluster.run(150)
    cluster.elect(1)
    cluster.run(60)
    began_ms = cluster.now_ms
    cluster.cut([1])
    cluster.now_ms = began_ms + 200
    assert cluster.campaign(2)
    cluster.stabilise([2, 3])
    cluster.propose(2, "new")
    cluster.stabilise([2, 3])
    assert cluster.raft(2).commit_index > cluster.raft(1).commit_index
    slow_ms = began_ms + 100
    stale = cluster.raft(1).lease_read(now_ms=slow_ms)
    assert stale == cluster.raft(1).commit_index
    true_ms = began_ms + 200
    assert cluster.raft(1).lease_read(now_ms=true_ms) is None, "with a right clock it has ended"
