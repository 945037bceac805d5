"""Leadership transfer (thesis §3.10): who may get it, when, and what it may not do."""

from __future__ import annotations

import pytest

from zraft.core.configurations import Configurations
from zraft.core.messages import RequestVote, RequestVoteResponse, TimeoutNow
from zraft.core.model import NOBODY, Configuration, Role, Settings
from zraft.core.notices import TransferEnded
from zraft.core.transfer import TransferRefusal
from zraft.testing.core_cluster import CoreCluster
from zraft.testing.solo import Solo


def leader(members: int = 3, settings: Settings | None = None) -> Solo:
    """Return a leader of term 1 whose no-op, index 1, is on every disk."""
    solo = Solo(members, settings=settings)
    solo.become_leader()
    for peer in solo.peers:
        solo.ack(peer, 1)
    return solo


def outcomes(solo: Solo) -> list[str]:
    """Return how transfers ended."""
    return [notice.outcome for notice in solo.notices if isinstance(notice, TransferEnded)]


def begin(solo: Solo, target: int = NOBODY) -> TransferRefusal | None:
    """Ask for a transfer."""
    return solo.raft.transfer(target, now_ms=solo.now_ms)


def answer(solo: Solo, request: RequestVote) -> bool:
    """Let a vote be asked for; return whether it was given."""
    answers = [m.granted for m in solo.step(request) if isinstance(m, RequestVoteResponse)]
    assert len(answers) == 1
    return answers[0]


def test_only_a_leader_hands_over_and_only_to_another_voter() -> None:
    """Thesis §3.10; a learner that leads breaks everything (pitfalls 17: etcd db54973)."""
    follower = Solo()
    assert begin(follower) is TransferRefusal.NOT_LEADER
    solo = Solo()
    solo.configuration = Configuration((1, 2, 3), learners=(4,))
    solo.restart()
    solo.become_leader()
    assert begin(solo, 1) is TransferRefusal.MYSELF
    assert begin(solo, 4) is TransferRefusal.LEARNER
    assert begin(solo, 5) is TransferRefusal.UNKNOWN
    assert begin(solo, 2) is None
    assert begin(solo, 3) is TransferRefusal.UNDER_WAY
    assert begin(solo, 2) is None, "the same one again is no error"


def test_timeout_now_waits_until_the_target_holds_the_whole_log() -> None:
    """Thesis §3.10, step 2: it must win with the log it has."""
    solo = leader()
    solo.propose("x")
    solo.flush()
    assert begin(solo, 2) is None
    assert not [m for m in solo.flush() if isinstance(m, TimeoutNow)]
    solo.ack(3, 2)
    assert not [m for m in solo.said if isinstance(m, TimeoutNow)]
    assert TimeoutNow(1, 2, 1) in solo.ack(2, 2)


def test_no_proposals_while_leadership_is_handed_over() -> None:
    """Thesis §3.10, step 1: otherwise the target never catches up."""
    solo = leader()
    assert begin(solo, 2) is None
    assert solo.raft.propose([], now_ms=solo.now_ms) is None
    assert not solo.raft.takes_proposals
    solo.flush()
    while solo.now_ms < solo.settings.election_max_ms:
        solo.wait(solo.settings.heartbeat_ms)
        solo.ack(3, 1)
    assert outcomes(solo) == ["timeout"]
    assert solo.raft.role is Role.LEADER
    assert solo.propose("x").index == 2


def test_the_best_target_was_heard_lately_and_holds_most_of_the_log() -> None:
    """A voter that is gone, however long its log, would only waste a timeout."""
    solo = leader(5)
    solo.propose("x", "y")
    solo.flush()
    solo.ack(2, 3)
    solo.now_ms += solo.settings.election_max_ms
    for peer, match in ((3, 2), (4, 3), (5, 2)):
        solo.ack(peer, match)
    assert begin(solo) is None
    assert solo.raft.transfer_to == 4


def test_a_leader_that_hears_nobody_has_no_target() -> None:
    """It says so at once, instead of taking no proposals for a timeout."""
    solo = leader()
    solo.now_ms += solo.settings.election_max_ms
    assert begin(solo) is TransferRefusal.NOBODY_THERE
    assert begin(Solo(1)) is TransferRefusal.NOT_LEADER


def test_a_transfer_ends_at_once_when_the_targets_process_is_gone() -> None:
    """Its endpoint refuses: there is nothing to wait for."""
    solo = leader()
    assert begin(solo, 2) is None
    solo.raft.on_peer_down(2, 1, now_ms=solo.now_ms)
    solo.flush()
    assert outcomes(solo) == ["target_gone"]
    assert solo.raft.takes_proposals


def test_the_target_stands_at_once_and_says_that_the_leader_asked_for_it() -> None:
    """Thesis §3.10, step 3: its requests pass the stickiness of those who hear the leader."""
    follower = Solo(me=2)
    follower.append(1, term=1, terms=[1])
    sent = follower.step(TimeoutNow(1, 2, 1))
    assert follower.raft.role is Role.CANDIDATE
    requests = [m for m in sent if isinstance(m, RequestVote)]
    assert [(m.dst, m.term, m.pre_vote, m.transfer) for m in requests] == [
        (1, 2, False, True),
        (3, 2, False, True),
    ]


def test_one_who_hears_the_leader_votes_when_the_leader_asked_for_it() -> None:
    """Thesis §4.2.3: the flag marks an election that is no disturbance; without it he refuses."""
    voter = Solo(me=3)
    voter.append(1, term=1, terms=[1])
    disturbing = RequestVote(2, 3, 2, False, 2, 1, 1)
    assert not answer(voter, disturbing)
    assert answer(voter, disturbing._replace(transfer=True))


def test_the_flag_passes_stickiness_and_nothing_else() -> None:
    """A short log, or a vote that was given, refuses a chosen successor like anybody else."""
    voter = Solo(me=3)
    voter.append(1, term=1, terms=[1, 1])
    behind = RequestVote(2, 3, 2, False, 2, 1, 1, transfer=True)
    assert not answer(voter, behind)


def test_a_timeout_now_of_an_older_term_is_void() -> None:
    """Its sender leads no more; the election would depose a leader that nobody asked to go."""
    follower = Solo(me=2)
    follower.append(3, term=5, terms=[5])
    assert follower.step(TimeoutNow(1, 2, 4)) == []
    assert (follower.raft.role, follower.raft.leader_id) == (Role.FOLLOWER, 3)


@pytest.mark.parametrize("role", ["learner", "no member"])
def test_one_who_does_not_vote_ignores_timeout_now(role: str) -> None:
    """Pitfalls 17: etcd db54973, NuRaft #436, hashicorp GH-398."""
    solo = Solo(me=2)
    solo.append(1, term=1, terms=[1])
    learners = (2,) if role == "learner" else ()
    solo.raft.state.configurations = Configurations(Configuration((1, 3), learners=learners))
    assert solo.step(TimeoutNow(1, 2, 1)) == []
    assert solo.raft.role is Role.FOLLOWER


def test_leadership_moves_in_one_step_of_the_term_and_keeps_the_log() -> None:
    """The whole hand-over among three: no split vote, no second election, nothing lost."""
    cluster = CoreCluster(3)
    cluster.elect(1)
    cluster.propose(1, "x", "y")
    assert cluster.transfer(1, 3) is None
    cluster.stabilise()
    assert (cluster.leader(), cluster.raft(3).term) == (3, 2)
    assert cluster.terms(3) == [1, 1, 1, 2]
    assert all(cluster.raft(member).commit_index == 4 for member in (1, 2, 3))


def test_a_lost_timeout_now_is_sent_again_with_the_next_heartbeat() -> None:
    """One lost message must not cost a whole time-out without proposals."""
    cluster = CoreCluster(3)
    cluster.elect(1)
    assert cluster.transfer(1, 2) is None
    cluster.flush(1)
    cluster.take(lambda message: isinstance(message, TimeoutNow))
    cluster.run(cluster.settings.heartbeat_ms)
    assert cluster.leader() == 2


def test_a_target_that_lags_is_filled_before_it_is_told() -> None:
    """Thesis §3.10, step 2: it was cut off, and comes back in time."""
    cluster = CoreCluster(3)
    cluster.elect(1)
    cluster.cut([3])
    cluster.propose(1, "x", "y")
    cluster.stabilise()
    cluster.heal()
    assert cluster.transfer(1, 3) is None
    cluster.run(2 * cluster.settings.heartbeat_ms)
    assert cluster.leader() == 3
    assert cluster.terms(3) == [1, 1, 1, 2]


def test_campaign_skips_the_pre_vote_and_not_stickiness() -> None:
    """An operator's campaign is no transfer: who hears the leader refuses it."""
    cluster = CoreCluster(3)
    cluster.elect(1)
    assert cluster.campaign(2)
    cluster.stabilise()
    assert cluster.raft(2).role is not Role.LEADER
    assert (cluster.leader(), cluster.raft(3).leader_id) == (1, 1)
