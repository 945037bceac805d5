"""Servers that disturb a cluster (Raft §6; thesis §4.2.3, §6.2, §9.6): three rules together.

Stickiness: who hears a leader ignores elections. CheckQuorum: a leader without a quorum steps down.
Pre-vote: nobody raises a term before it knows that it can win.
"""

from __future__ import annotations

import pytest

from zraft.core.messages import RequestVote, RequestVoteResponse
from zraft.core.model import Role, Settings
from zraft.core.notices import QuorumLost
from zraft.testing.core_cluster import CoreCluster
from zraft.testing.solo import Solo

# Stickiness


@pytest.mark.parametrize("pre_vote", [False, True])
def test_who_hears_a_leader_neither_votes_nor_learns_the_term(pre_vote: bool) -> None:
    """§6, thesis §4.2.3: within the *minimum* election timeout of hearing a current leader."""
    solo = Solo()
    solo.append(2, term=1)
    solo.now_ms += 149
    answer = solo.ask_vote(3, vote_term=9, pre_vote=pre_vote)
    assert (answer.granted, answer.term) == (False, 1)
    assert (solo.raft.term, solo.raft.leader_id) == (1, 2)


@pytest.mark.parametrize("pre_vote", [False, True])
def test_who_does_not_hear_a_leader_any_more_votes(pre_vote: bool) -> None:
    """Thesis §4.2.3: after the minimum election timeout the request is judged as usual."""
    solo = Solo()
    solo.append(2, term=1)
    solo.now_ms += 150
    assert solo.ask_vote(3, vote_term=2, pre_vote=pre_vote).granted


@pytest.mark.parametrize("pre_vote", [False, True])
def test_a_leader_refuses_elections_while_it_leads(pre_vote: bool) -> None:
    """Thesis §4.2.3: it hears itself; if it lost its quorum, CheckQuorum ends that."""
    solo = Solo()
    solo.become_leader()
    answer = solo.ask_vote(3, vote_term=9, last=(9, 9), pre_vote=pre_vote)
    assert (answer.granted, answer.term, solo.raft.role) == (False, 1, Role.LEADER)


def test_without_check_quorum_nobody_sticks_to_a_leader() -> None:
    """The two are on together or off together: a leader that nobody leaves could be cut off."""
    settings = Settings(check_quorum=False, pre_vote=False)
    follower = Solo(settings=settings)
    follower.append(2, term=1)
    assert follower.ask_vote(3, vote_term=2).granted
    leader = Solo(settings=settings)
    leader.become_leader()
    assert leader.ask_vote(3, vote_term=2, last=(1, 1)).granted
    assert leader.raft.role is Role.FOLLOWER


# CheckQuorum


def test_a_leader_that_hears_no_quorum_steps_down() -> None:
    """Thesis §6.2: after an election timeout without answers of a majority."""
    solo = Solo(5)
    solo.become_leader()
    while solo.now_ms < 299:
        solo.wait(min(50, 299 - solo.now_ms))
        solo.ack(2, 1)
    assert solo.raft.role is Role.LEADER
    solo.wait(1)
    assert (solo.raft.role, solo.raft.term, solo.raft.leader_id) == (Role.FOLLOWER, 1, 0)
    assert [n.heard for n in solo.notices if isinstance(n, QuorumLost)] == [(2,)]


def test_a_leader_that_hears_a_quorum_stays() -> None:
    """Thesis §6.2: itself and two of four others, also when these refuse its appends."""
    solo = Solo(5)
    solo.become_leader()
    for _ in range(40):
        solo.wait(50)
        solo.ack(2, 1)
        solo.refuse(3, (1, 0))
    assert solo.raft.role is Role.LEADER


def test_every_quorum_will_do_not_always_the_same_peers() -> None:
    """Each peer's last answer counts, not a tally per period that starts again."""
    solo = Solo(5)
    solo.become_leader()
    for n in range(30):
        solo.wait(50)
        solo.ack(2 + n % 4, 1)
    assert solo.raft.role is Role.LEADER


def test_a_cluster_of_one_never_loses_its_quorum() -> None:
    """It hears itself."""
    cluster = CoreCluster(1)
    cluster.run(5_000)
    assert cluster.leaders() == [1]
    assert cluster.raft(1).term == 1


# Pre-vote


def test_a_pre_vote_changes_nothing_at_the_voter() -> None:
    """Thesis §9.6: it stores no vote, does not raise the term, and can be given to many."""
    solo = Solo(term=3)
    for candidate in (2, 3):
        answer = solo.ask_vote(candidate, vote_term=4, pre_vote=True)
        assert (answer.granted, answer.term, answer.vote_term) == (True, 3, 4)
    assert solo.readys[-1].hard_state is None
    assert (solo.raft.state.voted_for, solo.raft.term, solo.raft.role) == (0, 3, Role.FOLLOWER)


def test_a_pre_candidate_raises_its_term_only_when_a_majority_would_vote() -> None:
    """Thesis §9.6: asks for term + 1 while its own stays; then stands for election."""
    solo = Solo(5, term=3)
    asked = solo.time_out()
    assert asked == [RequestVote(1, peer, 3, True, 4, 0, 0) for peer in (2, 3, 4, 5)]
    assert (solo.raft.role, solo.raft.term) == (Role.PRE_CANDIDATE, 3)
    solo.answer_vote(2)
    assert solo.raft.term == 3
    real = solo.answer_vote(3)
    assert real == [RequestVote(1, peer, 4, False, 4, 0, 0) for peer in (2, 3, 4, 5)]


def test_a_pre_candidate_that_hears_the_leader_follows_it_again() -> None:
    """Thesis §9.6: nothing has happened."""
    solo = Solo()
    solo.append(2, term=1)
    solo.time_out()
    assert solo.raft.role is Role.PRE_CANDIDATE
    assert solo.append(2, term=1).success
    assert (solo.raft.role, solo.raft.term, solo.raft.leader_id) == (Role.FOLLOWER, 1, 2)


def test_a_node_that_was_cut_off_comes_back_without_disturbing() -> None:
    """Thesis §9.6: its term stays as it is, so nobody has to learn a higher one."""
    cluster = CoreCluster(5)
    cluster.run(1_000)
    leader, term = cluster.leader(), cluster.raft(cluster.leader()).term
    away = next(m for m in cluster.members if m != leader)
    cluster.cut([away])
    cluster.run(10_000)
    assert cluster.raft(away).term == term
    cluster.heal()
    cluster.run(1_000)
    assert (cluster.leader(), cluster.raft(leader).term) == (leader, term)
    assert cluster.raft(away).leader_id == leader


def test_without_pre_vote_a_node_that_was_cut_off_deposes_the_leader_once() -> None:
    """§6: what pre-vote prevents; it ends, since all learn the term (pitfalls 15)."""
    cluster = CoreCluster(3, settings=Settings(pre_vote=False))
    cluster.elect(1)
    cluster.cut([3])
    cluster.run(3_000)
    away_term = cluster.raft(3).term
    assert away_term > 5
    cluster.heal()
    cluster.run(2_000)
    term = cluster.raft(cluster.leader()).term
    assert term > away_term
    cluster.run(5_000)
    assert cluster.raft(cluster.leader()).term == term


def test_a_pre_vote_answer_of_a_lower_term_counts() -> None:
    """The answer repeats the term asked about (pitfalls 13): a node ahead behind a dead leader.

    The voter here answers from its own, lower term, before it has learned the candidate's.
    """
    solo = Solo(3, term=7)
    solo.time_out()
    solo.step(RequestVoteResponse(2, 1, 2, True, 8, True))
    assert (solo.raft.role, solo.raft.term) == (Role.CANDIDATE, 8)


def test_a_node_ahead_and_a_dead_leader_do_not_stand_still() -> None:
    """The others learn the higher term from its pre-vote, and somebody wins (pitfalls 13)."""
    cluster = CoreCluster(3)
    cluster.elect(1)
    cluster.propose(1, "x=1")
    cluster.stabilise()
    cluster.cut([3])
    for _ in range(4):
        cluster.campaign(3)
    cluster.stabilise()
    cluster.propose(1, "y=2")
    cluster.stabilise()
    cluster.heal()
    cluster.crash(1)
    cluster.run(2_000)
    assert cluster.leaders() == [2]
    assert cluster.raft(2).term > 5
    assert len(cluster.members[3].applied) == 4


def test_a_refused_pre_vote_teaches_the_higher_term() -> None:
    """A pre-candidate that lags behind in term learns it from the refusal (pitfalls 13)."""
    solo = Solo(term=2)
    solo.time_out()
    solo.step(RequestVoteResponse(2, 1, 6, True, 3, False))
    assert (solo.raft.term, solo.raft.role) == (6, Role.FOLLOWER)


def test_a_late_pre_vote_answer_starts_no_second_election() -> None:
    """Once it stands for election or leads, pre-votes are past (pitfalls 13)."""
    solo = Solo(5)
    solo.time_out()
    solo.answer_vote(2)
    solo.answer_vote(3)
    late = RequestVoteResponse(4, 1, 0, True, 1, True)
    solo.step(late)
    assert (solo.raft.role, solo.raft.term) == (Role.CANDIDATE, 1)
    solo.answer_vote(2)
    solo.answer_vote(3)
    solo.step(late)
    assert (solo.raft.role, solo.raft.term) == (Role.LEADER, 1)


def test_old_pre_votes_are_forgotten_with_a_new_attempt() -> None:
    """Each attempt counts anew, its own vote first (pitfalls 13)."""
    solo = Solo(5)
    solo.time_out()
    solo.answer_vote(2)
    solo.time_out()
    solo.answer_vote(3)
    assert solo.raft.role is Role.PRE_CANDIDATE


@pytest.mark.parametrize("vote_term", [0, 3, 5])
def test_a_pre_vote_for_a_term_that_has_begun_is_refused(vote_term: int) -> None:
    """Thesis §9.6: only a term beyond the voter's own can still be won; the answer teaches it."""
    solo = Solo(term=5)
    term = max(0, vote_term - 1)
    answer = solo.ask_vote(2, vote_term=vote_term, term=term, last=(9, 9), pre_vote=True)
    assert (answer.granted, answer.term, answer.vote_term) == (False, 5, vote_term)


def test_a_real_request_from_a_node_without_pre_vote_is_answered() -> None:
    """A cluster in which only some have pre-vote on still elects (pitfalls 13)."""
    solo = Solo(settings=Settings(pre_vote=True))
    assert solo.ask_vote(2, vote_term=1).granted
    other = Solo(settings=Settings(pre_vote=False))
    assert other.ask_vote(2, vote_term=1, pre_vote=True).granted


# All three, in networks that are neither whole nor cut in two


def test_partial_connectivity_of_three_keeps_a_stable_leader() -> None:
    """A–B and B–C but not A–C: one leader, one term, whoever led first (pitfalls 14)."""
    for first in (1, 2, 3):
        cluster = CoreCluster(3)
        cluster.elect(first)
        cluster.cut([1], [3])
        cluster.run(3_000)
        leader, term = cluster.leader(), cluster.raft(cluster.leader()).term
        assert (leader, term) == (first, 1)
        cluster.run(20_000)
        assert (cluster.leader(), cluster.raft(leader).term) == (leader, term)
        cluster.propose(leader, "x=1")
        cluster.stabilise()
        assert cluster.raft(leader).commit_index == 2


def test_partial_connectivity_of_five_finds_a_stable_leader() -> None:
    """The leader reaches one other only, which reaches everybody (pitfalls 14; Cloudflare 2020)."""
    cluster = CoreCluster(5)
    cluster.elect(1)
    cluster.cut([1], [3, 4, 5])
    cluster.run(3_000)
    leader, term = cluster.leader(), cluster.raft(cluster.leader()).term
    assert leader != 1
    cluster.propose(leader, "x=1")
    cluster.stabilise()
    assert cluster.raft(leader).commit_index > 1
    cluster.run(20_000)
    assert (cluster.leader(), cluster.raft(leader).term) == (leader, term)


@pytest.mark.parametrize("hub", [1, 2, 3, 4, 5])
def test_a_star_elects_its_hub_and_stays_so(hub: int) -> None:
    """Only the hub reaches a quorum: it wins in the end, and terms stop growing (pitfalls 14)."""
    cluster = CoreCluster(5)
    rim = [m for m in cluster.members if m != hub]
    for member_id in rim:
        cluster.cut([member_id], [m for m in rim if m != member_id])
    cluster.run(5_000)
    assert cluster.leaders() == [hub]
    term = cluster.raft(hub).term
    cluster.run(20_000)
    assert (cluster.leaders(), cluster.raft(hub).term) == ([hub], term)


@pytest.mark.parametrize("direction", ["deaf", "mute"])
def test_a_leader_with_one_way_links_is_replaced(direction: str) -> None:
    """Thesis §6.2: deaf, it hears no quorum and steps down; mute, the others miss it."""
    cluster = CoreCluster(3)
    cluster.elect(1)
    for other in (2, 3):
        pair = (other, 1) if direction == "deaf" else (1, other)
        cluster.cut_one_way(*pair)
    cluster.run(2_000)
    assert cluster.leader() in (2, 3)
    leader, term = cluster.leader(), cluster.raft(cluster.leader()).term
    cluster.run(5_000)
    assert (cluster.leaders(), cluster.raft(leader).term) == ([leader], term)


@pytest.mark.parametrize("direction", ["deaf", "mute"])
def test_a_follower_with_one_way_links_disturbs_nobody(direction: str) -> None:
    """Deaf, it asks for pre-votes and is refused for ever; mute, nobody notices."""
    cluster = CoreCluster(3)
    cluster.elect(1)
    for other in (1, 2):
        pair = (other, 3) if direction == "deaf" else (3, other)
        cluster.cut_one_way(*pair)
    cluster.run(10_000)
    assert (cluster.leaders(), cluster.raft(1).term) == ([1], 1)
    cluster.heal()
    cluster.run(500)
    assert (cluster.leaders(), cluster.raft(1).term) == ([1], 1)
    assert cluster.raft(3).leader_id == 1
