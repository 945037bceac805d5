"""Terms and roles (Raft §5.1, Figure 2 "Rules for Servers"), and what survives a crash."""

from __future__ import annotations

import pytest

from zraft.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Message,
    RequestVoteResponse,
)
from zraft.core.model import Entries, HardState, Role, Settings
from zraft.testing.core_cluster import CoreCluster, CrashPoint
from zraft.testing.solo import Solo

NOTHING = Entries(1, [], [])


def solo_as(role: Role) -> Solo:
    """Return a node in term 1 with this role."""
    if role is Role.FOLLOWER:
        return Solo(term=1)
    solo = Solo(term=1 if role is Role.PRE_CANDIDATE else 0)
    if role is Role.PRE_CANDIDATE:
        solo.time_out()
    elif role is Role.CANDIDATE:
        solo.become_candidate()
    else:
        solo.become_leader()
    assert (solo.raft.role, solo.raft.term) == (role, 1)
    return solo


def test_a_node_starts_as_follower_without_leader_and_with_nothing_committed() -> None:
    """§5.2: servers begin as followers; Fig. 2: commitIndex starts at 0."""
    solo = Solo(terms=[1, 1, 2], term=4, voted_for=3)
    assert (solo.raft.role, solo.raft.leader_id, solo.raft.commit_index) == (Role.FOLLOWER, 0, 0)
    assert (solo.raft.term, solo.raft.state.voted_for) == (4, 3)


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize(
    "message",
    [
        AppendEntries(2, 1, 5, 0, 0, 0, 0, NOTHING),
        AppendEntriesResponse(2, 1, 5, False, 0, 0, 0, 0),
        RequestVoteResponse(2, 1, 5, False, 5, False),
        RequestVoteResponse(2, 1, 5, True, 2, False),
    ],
    ids=["append", "append-response", "vote-response", "pre-vote-response"],
)
def test_every_role_adopts_a_higher_term_and_follows(role: Role, message: Message) -> None:
    """§5.1: whoever sees a larger term takes it over; a candidate or leader becomes follower."""
    solo = solo_as(role)
    solo.step(message)
    assert (solo.raft.term, solo.raft.role) == (5, Role.FOLLOWER)
    assert solo.raft.state.voted_for == 0
    assert solo.disk.hard_state == HardState(5, 0)


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE])
def test_every_role_but_a_leader_adopts_the_term_of_a_vote_request(role: Role) -> None:
    """§5.1 for RequestVote: a node that hears no leader takes the candidate's term over."""
    solo = solo_as(role)
    answer = solo.ask_vote(2, vote_term=5, last=(0, 0))
    assert (solo.raft.term, solo.raft.role, answer.term, answer.granted) == (
        5,
        Role.FOLLOWER,
        5,
        True,
    )


@pytest.mark.parametrize("role", list(Role))
def test_requests_of_an_older_term_are_refused_with_the_current_term(role: Role) -> None:
    """§5.1: a request with a stale term is rejected, with the current one (pitfalls 10, 11)."""
    solo = solo_as(role)
    append = solo.append(2, term=0)
    assert (append.success, append.term) == (False, 1)
    vote = solo.ask_vote(2, vote_term=0)
    assert (vote.granted, vote.term) == (False, 1)
    pre_vote = solo.ask_vote(2, vote_term=1, pre_vote=True)
    assert (pre_vote.granted, pre_vote.term) == (False, 1)
    assert solo.raft.role is role


def test_a_stale_leader_steps_down_when_it_is_refused() -> None:
    """§5.1: the refusal of a stale append has the term that deposes its sender (pitfalls 11)."""
    cluster = CoreCluster(3, settings=Settings(check_quorum=False))
    cluster.elect(1)
    cluster.cut([1])
    cluster.elect(2)
    cluster.heal()
    cluster.beat(1)
    cluster.stabilise()
    assert cluster.raft(1).role is Role.FOLLOWER
    cluster.beat(2)
    cluster.stabilise()
    assert (cluster.raft(1).term, cluster.raft(1).leader_id) == (2, 2)


def test_answers_of_strangers_and_of_oneself_change_nothing() -> None:
    """Only members are counted and believed: a yes, an acknowledgement, a higher term."""
    solo = Solo(term=1)
    solo.become_candidate()
    solo.step(RequestVoteResponse(9, 1, 2, False, 2, True))
    solo.step(RequestVoteResponse(9, 1, 7, False, 7, False))
    solo.step(AppendEntriesResponse(9, 1, 7, False, 0, 1, 0, 0))
    solo.step(RequestVoteResponse(1, 1, 9, False, 9, True))
    assert (solo.raft.role, solo.raft.term) == (Role.CANDIDATE, 2)


def test_a_leader_and_a_candidate_that_are_strangers_are_judged_by_term_and_log() -> None:
    """Thesis §4.1: they may know a newer configuration than this node (pitfalls 43)."""
    solo = Solo(term=1)
    assert solo.append(9, term=2, terms=[2]).success
    assert solo.raft.leader_id == 9
    solo.wait(Settings().election_min_ms)
    assert not solo.ask_vote(8, vote_term=3, last=(0, 0)).granted  # its log is behind
    assert solo.ask_vote(8, vote_term=4, last=(1, 2)).granted


def test_a_member_that_does_not_vote_never_stands_for_election() -> None:
    """A non-voter has no election timer and refuses to campaign (pitfalls 17)."""
    cluster = CoreCluster(3, voters=[1, 2])
    cluster.cut([3])
    cluster.run(5_000)
    assert not cluster.campaign(3)
    assert (cluster.raft(3).role, cluster.raft(3).term) == (Role.FOLLOWER, 0)


def test_term_and_vote_are_one_record() -> None:
    """Fig. 2 "Persistent state": both change in one write (pitfalls 3)."""
    solo = Solo()
    solo.raft.campaign(now_ms=0)
    ready = solo.raft.ready()
    assert ready is not None
    assert ready.hard_state == HardState(1, 1)


def test_a_vote_survives_a_crash() -> None:
    """§5.2 with Fig. 2: after a restart nobody votes for another in the same term (pitfalls 2)."""
    solo = Solo()
    assert solo.ask_vote(2, vote_term=3).granted
    solo.restart()
    assert solo.raft.term == 3
    assert not solo.ask_vote(3, vote_term=3).granted
    assert solo.ask_vote(2, vote_term=3).granted


def test_a_candidate_that_crashed_does_not_stand_in_the_same_term_again() -> None:
    """§5.2: its own vote was durable before it asked; the next attempt has a new term."""
    cluster = CoreCluster(3)
    cluster.campaign(1)
    cluster.handle_ready(1, crash=CrashPoint.AFTER_PERSIST)
    assert cluster.in_flight == []
    cluster.restart(1)
    cluster.campaign(1)
    assert cluster.raft(1).term == 2


def test_terms_survive_the_restart_of_everybody() -> None:
    """Fig. 2: terms never start again, so a stale log never looks newer (pitfalls 1)."""
    cluster = CoreCluster(3)
    for member_id in (1, 2, 3, 1):
        cluster.elect(member_id)
    cluster.propose(1, "x=1")
    cluster.stabilise()
    for member_id in (1, 2, 3):
        cluster.crash(member_id)
    for member_id in (1, 2, 3):
        cluster.restart(member_id)
    cluster.run(1_000)
    assert cluster.raft(cluster.leader()).term > 4
    assert [len(cluster.members[m].applied) for m in (1, 2, 3)] == [6, 6, 6]


def test_a_log_that_is_newer_than_the_stored_term_is_not_started() -> None:
    """The stored term is at least the last entry's, or the disk lost the vote (pitfalls 1)."""
    with pytest.raises(AssertionError, match="newer than the hard state"):
        Solo(terms=[1, 2], term=1)


def test_two_leaders_in_one_term_stop_the_node() -> None:
    """§5.2, Election Safety: the impossible is not survived quietly (pitfalls 60)."""
    leader = Solo()
    leader.become_leader()
    with pytest.raises(AssertionError, match="two leaders"):
        leader.append(2, term=1)
    follower = Solo()
    follower.append(2, term=1)
    with pytest.raises(AssertionError, match="two leaders"):
        follower.append(3, term=1)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(election_min_ms=300, election_max_ms=299),
        Settings(election_min_ms=0),
        Settings(heartbeat_ms=76),
        Settings(heartbeat_ms=0),
    ],
)
def test_timers_that_defeat_each_other_are_refused(settings: Settings) -> None:
    """§5.6: broadcast time ≪ election timeout; heartbeat ≤ half the shortest (pitfalls 16)."""
    with pytest.raises(AssertionError):
        Solo(settings=settings)
