"""Leader election (Raft §5.2, Figure 2 "RequestVote RPC", "Candidates")."""

from __future__ import annotations

import pytest

from zraft.core.messages import AppendEntries, RequestVote, RequestVoteResponse
from zraft.core.model import HardState, Role, Settings
from zraft.core.notices import ElectionLost
from zraft.testing.core_cluster import CoreCluster
from zraft.testing.solo import Solo

NO_PRE_VOTE = Settings(pre_vote=False)


def test_a_follower_that_hears_its_leader_stays_follower() -> None:
    """§5.2: valid messages of a leader keep a server a follower."""
    solo = Solo()
    for _ in range(50):
        solo.append(2, term=1)
        solo.wait(149)
    assert (solo.raft.role, solo.raft.term, solo.raft.leader_id) == (Role.FOLLOWER, 1, 2)


def test_a_follower_without_leader_starts_an_election() -> None:
    """§5.2: it raises its term, votes for itself and asks all others in parallel."""
    solo = Solo(5, terms=[1, 1], settings=NO_PRE_VOTE)
    asked = solo.time_out()
    assert (solo.raft.role, solo.raft.term) == (Role.CANDIDATE, 2)
    assert solo.disk.hard_state == HardState(2, 1)
    assert asked == [RequestVote(1, peer, 2, False, 2, 2, 1) for peer in (2, 3, 4, 5)]


@pytest.mark.parametrize(
    ("members", "yes", "no", "role"),
    [
        (1, 0, 0, Role.LEADER),
        (2, 0, 0, Role.CANDIDATE),
        (2, 1, 0, Role.LEADER),
        (2, 0, 1, Role.FOLLOWER),
        (3, 1, 0, Role.LEADER),
        (3, 0, 1, Role.CANDIDATE),
        (3, 0, 2, Role.FOLLOWER),
        (4, 1, 1, Role.CANDIDATE),
        (4, 2, 1, Role.LEADER),
        (4, 1, 2, Role.FOLLOWER),
        (5, 1, 2, Role.CANDIDATE),
        (5, 2, 0, Role.LEADER),
        (5, 2, 2, Role.LEADER),
        (5, 1, 3, Role.FOLLOWER),
        (7, 2, 3, Role.CANDIDATE),
        (7, 3, 0, Role.LEADER),
    ],
)
def test_a_majority_of_the_whole_cluster_decides(
    members: int, yes: int, no: int, role: Role
) -> None:
    """§5.2: won with votes of a majority of all servers, lost when that cannot be any more."""
    solo = Solo(members)
    solo.become_candidate()
    for position, peer in enumerate(solo.peers[: yes + no]):
        if solo.raft.role is Role.CANDIDATE:
            solo.answer_vote(peer, granted=position >= no)
    assert solo.raft.role is role


def test_a_vote_that_arrives_twice_counts_once() -> None:
    """§5.2 counts servers, not answers (pitfalls 8)."""
    solo = Solo(5)
    solo.become_candidate()
    roles = []
    for peer in (2, 2, 2, 2, 3):
        solo.answer_vote(peer)
        roles.append(solo.raft.role)
    assert roles == [Role.CANDIDATE] * 4 + [Role.LEADER]


@pytest.mark.parametrize(
    "late",
    [
        RequestVoteResponse(2, 1, 1, False, 1, True),
        RequestVoteResponse(2, 1, 2, True, 3, True),
        RequestVoteResponse(2, 1, 1, False, 2, True),
    ],
    ids=["of the last election", "of a pre-vote", "of a node that did not enter the term"],
)
def test_answers_to_another_question_are_not_votes(late: RequestVoteResponse) -> None:
    """§5.2: a vote counts in the election it was given in only (pitfalls 7)."""
    solo = Solo(3)
    solo.become_candidate()
    solo.become_candidate()
    assert solo.raft.term == 2
    solo.step(late)
    assert solo.raft.role is Role.CANDIDATE


def test_one_vote_a_term_for_the_first_who_asks() -> None:
    """§5.2: at most one vote in a term, first come, first served."""
    solo = Solo()
    assert solo.ask_vote(2, vote_term=1).granted
    assert not solo.ask_vote(3, vote_term=1).granted
    assert solo.ask_vote(3, vote_term=2).granted


def test_a_request_that_arrives_twice_is_granted_twice() -> None:
    """Fig. 2: votedFor is null *or candidateId*: the same vote, said again (pitfalls 9)."""
    solo = Solo()
    assert [solo.ask_vote(2, vote_term=1).granted for _ in range(3)] == [True, True, True]


def test_candidates_and_leaders_vote_for_nobody_else_in_their_term() -> None:
    """§5.2: a candidate has spent its vote on itself; so has a leader (pitfalls 16)."""
    candidate = Solo()
    candidate.become_candidate()
    assert not candidate.ask_vote(2, vote_term=1).granted
    leader = Solo()
    leader.become_leader()
    assert not leader.ask_vote(2, vote_term=1).granted


def test_a_candidate_follows_a_leader_of_its_own_term() -> None:
    """§5.2: an append with a term at least as large as its own makes it a follower."""
    solo = Solo()
    solo.become_candidate()
    answer = solo.append(2, term=1, terms=[1])
    assert (solo.raft.role, solo.raft.leader_id, solo.raft.term) == (Role.FOLLOWER, 2, 1)
    assert (answer.success, answer.match_index) == (True, 1)


def test_a_candidate_follows_a_leader_of_a_higher_term() -> None:
    """§5.2: the same for a larger term, which it adopts."""
    solo = Solo()
    solo.become_candidate()
    answer = solo.append(2, term=4)
    assert (solo.raft.role, solo.raft.leader_id, solo.raft.term) == (Role.FOLLOWER, 2, 4)
    assert (answer.success, answer.term) == (True, 4)


def test_a_candidate_refuses_a_leader_of_a_lower_term_and_stays_candidate() -> None:
    """§5.2: with a smaller term the append is rejected, and it continues as candidate."""
    solo = Solo(term=5)
    solo.become_candidate()
    answer = solo.append(2, term=5)
    assert (solo.raft.role, solo.raft.term) == (Role.CANDIDATE, 6)
    assert (answer.success, answer.term) == (False, 6)


def test_a_new_leader_tells_everybody_at_once() -> None:
    """§5.2: it sends appends to all others to establish its authority, and keeps sending."""
    solo = Solo(5)
    at_once = solo.become_leader()
    assert {m.dst for m in at_once if isinstance(m, AppendEntries)} == {2, 3, 4, 5}
    later = solo.wait(50)
    assert [(type(m), m.dst) for m in later] == [(AppendEntries, peer) for peer in (2, 3, 4, 5)]


def test_election_timeouts_are_drawn_anew_from_the_whole_range() -> None:
    """§5.2, §9.3: 150–300 ms by default, chosen again for every election, every value possible."""
    solo = Solo()
    drawn = []
    for _ in range(3_000):
        solo.append(2, term=1)
        drawn.append(solo.raft.state.election_deadline_ms - solo.now_ms)
    assert (min(drawn), max(drawn)) == (150, 300)
    assert len(set(drawn)) == 151
    equal = Solo(settings=Settings(election_min_ms=200, election_max_ms=200))
    assert equal.raft.state.election_deadline_ms == 200


def test_only_the_leader_and_a_granted_vote_restart_the_timer() -> None:
    """Fig. 2 "Followers": an append of the *current* leader or *granting* a vote, nothing else."""
    solo = Solo(5, terms=[3], term=3)
    solo.now_ms = 100
    before = solo.raft.state.election_deadline_ms

    assert not solo.append(2, term=2).success
    assert not solo.ask_vote(2, vote_term=3, last=(0, 0)).granted
    assert not solo.ask_vote(2, vote_term=9, last=(5, 2)).granted
    assert solo.ask_vote(3, vote_term=10, last=(1, 3), pre_vote=True).granted
    assert solo.raft.state.election_deadline_ms == before

    assert solo.ask_vote(3, vote_term=10, last=(1, 3)).granted
    assert solo.raft.state.election_deadline_ms >= 250
    solo.now_ms = 200
    solo.append(3, term=10)
    assert solo.raft.state.election_deadline_ms >= 350


def test_a_split_vote_is_followed_by_an_election_in_a_new_term() -> None:
    """§5.2: without a majority the candidate times out and starts again."""
    solo = Solo(5, settings=NO_PRE_VOTE)
    solo.time_out()
    solo.answer_vote(2, granted=False)
    solo.answer_vote(3, granted=False)
    assert (solo.raft.role, solo.raft.term) == (Role.CANDIDATE, 1)
    again = solo.time_out()
    assert (solo.raft.role, solo.raft.term) == (Role.CANDIDATE, 2)
    assert {m.dst for m in again} == {2, 3, 4, 5}
    lost = [n for n in solo.notices if isinstance(n, ElectionLost)]
    assert [(n.term, n.votes, n.reason) for n in lost] == [(1, (1,), "timeout")]


@pytest.mark.parametrize("seed", range(20))
def test_split_votes_do_not_go_on(seed: int) -> None:
    """§5.2: random timeouts make one server win soon, also when all stood at the same moment."""
    cluster = CoreCluster(4, settings=NO_PRE_VOTE, seed=seed)
    for member_id in (1, 2, 3, 4):
        cluster.campaign(member_id)
    cluster.run(1_500)
    assert len(cluster.leaders()) == 1


def test_requests_without_an_answer_are_sent_again() -> None:
    """§5.1: servers retry RPCs that get no response in time, and do not raise the term for it."""
    solo = Solo(5)
    solo.become_candidate()
    solo.answer_vote(2)
    again = solo.wait(50)
    assert [(type(m), m.dst, m.term) for m in again] == [(RequestVote, p, 1) for p in (3, 4, 5)]


def test_a_voter_that_refused_is_asked_again() -> None:
    """A voter may have heard the leader a moment ago; its mind is changed by time, not by term."""
    solo = Solo(5)
    solo.time_out()
    solo.answer_vote(2, granted=False)
    solo.answer_vote(3)
    again = solo.wait(50)
    assert [m.dst for m in again] == [2, 4, 5]
    solo.answer_vote(2)
    assert solo.raft.role is Role.CANDIDATE


def test_a_candidate_that_lost_waits_for_its_timer_in_the_same_term() -> None:
    """A majority of refusals ends the attempt; the term it raised stays."""
    solo = Solo(3)
    solo.become_candidate()
    solo.answer_vote(2, granted=False)
    solo.answer_vote(3, granted=False)
    assert (solo.raft.role, solo.raft.term, solo.raft.leader_id) == (Role.FOLLOWER, 1, 0)
    assert solo.wait(10) == []


def test_a_cluster_of_one_leads_and_commits_alone() -> None:
    """Its own vote and its own disk are the majority."""
    cluster = CoreCluster(1)
    cluster.run(300)
    assert cluster.leaders() == [1]
    cluster.propose(1, "x=1")
    cluster.stabilise()
    assert len(cluster.members[1].applied) == 2
    cluster.crash(1)
    cluster.restart(1)
    cluster.run(300)
    assert len(cluster.members[1].applied) == 3


@pytest.mark.parametrize("members", [2, 3, 4, 5, 7])
def test_a_cluster_elects_exactly_one_leader_and_keeps_it(members: int) -> None:
    """§5.2, at most one leader a term; a healthy cluster changes neither leader nor term."""
    cluster = CoreCluster(members)
    cluster.run(1_000)
    leader, term = cluster.leader(), cluster.raft(cluster.leader()).term
    cluster.run(5_000)
    assert cluster.leaders() == [leader]
    assert {cluster.raft(m).term for m in cluster.up()} == {term}
    assert {cluster.raft(m).leader_id for m in cluster.up()} == {leader}


def test_a_pre_candidate_that_votes_for_another_stands_no_longer() -> None:
    """It would compete with the leader that it has just helped to elect."""
    solo = Solo(5)
    solo.ask_vote(4, vote_term=1, last=(0, 0), term=1, pre_vote=True)
    roles = []
    solo.time_out()
    roles.append(solo.raft.role)
    assert solo.ask_vote(3, vote_term=solo.raft.term, term=solo.raft.term).granted
    roles.append(solo.raft.role)
    assert roles == [Role.PRE_CANDIDATE, Role.FOLLOWER]


def test_after_a_timeout_no_leader_is_known() -> None:
    """Requests must not be sent on to a leader that hangs; they are kept for the next one."""
    solo = Solo(3)
    solo.append(2, term=1)
    assert solo.raft.leader_id == 2
    solo.time_out()
    assert solo.raft.leader_id == 0
