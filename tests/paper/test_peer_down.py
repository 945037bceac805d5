"""Peer down: a process that is gone is replaced without waiting for a timeout.

The transport tells that an endpoint refuses connections. For the leader's endpoint that ends this
node's own stickiness and starts pre-votes, which the others refuse as long as they hear the leader:
so a wrong hint changes nothing (thesis §9.6 makes acting on it safe).
"""

from __future__ import annotations

import pytest

from zraft.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Message,
    RequestVote,
    RequestVoteResponse,
)
from zraft.core.model import Entries, Role, Settings
from zraft.core.notices import ElectionStarted, HintCancelled, HintTaken
from zraft.core.progress import ProgressState
from zraft.testing.core_cluster import CoreCluster
from zraft.testing.solo import Solo


def follower(members: int = 5, *, leader: int = 2, term: int = 1, seed: int = 1) -> Solo:
    """Return a follower that has just heard `leader`."""
    solo = Solo(members, seed=seed)
    solo.append(leader, term=term)
    return solo


def hint_delay_ms(solo: Solo) -> int:
    """Return in how many ms the hint's next pre-vote is due."""
    hint = solo.raft.state.hint
    assert hint is not None, "no hint stands"
    return hint.deadline_ms - solo.now_ms


def take_hint(solo: Solo, peer: int = 2) -> None:
    """Tell the node that the process of `peer` is gone."""
    solo.raft.on_peer_down(peer, 1, now_ms=solo.now_ms)
    solo.flush()


@pytest.mark.parametrize("term", [1, 2, 3, 4, 5, 6, 7])
def test_the_first_pre_vote_waits_for_its_rank_which_the_term_rotates(term: int) -> None:
    """rank × 5 ms + U(0, 5): rank among the other voters, so that not all stand at once.

    Node 1 is the first of 1, 3, 4, 5 while 2 leads; the term moves it on by one place.
    """
    rank = term % 4
    drawn = set()
    for seed in range(60):
        solo = follower(term=term, seed=seed)
        take_hint(solo)
        drawn.add(hint_delay_ms(solo) - rank * 5)
    assert drawn == {0, 1, 2, 3, 4}


def test_survivors_have_different_ranks() -> None:
    """Each has 5 ms of its own, so no two of them ask in the same millisecond."""
    cluster = CoreCluster(5)
    cluster.elect(3)
    cluster.crash(3)
    ranks = []
    for member_id in (1, 2, 4, 5):
        cluster.peer_down(member_id, 3)
        hint = cluster.raft(member_id).state.hint
        assert hint is not None
        ranks.append((hint.deadline_ms - cluster.now_ms) // 5)
    assert sorted(ranks) == [0, 1, 2, 3]


def test_the_pre_vote_is_repeated_every_20_ms_more_or_less_while_the_hint_stands() -> None:
    """20 ms ± 25 %: a voter that refuses now may have lost the leader by then."""
    solo = follower()
    take_hint(solo)
    solo.wait(hint_delay_ms(solo))
    waits, asked = [], 0
    for _ in range(400):
        deadline_ms = solo.raft.next_deadline_ms()
        by_hint = deadline_ms == solo.now_ms + hint_delay_ms(solo)
        sent = solo.wait(max(0, deadline_ms - solo.now_ms))
        if by_hint:
            waits.append(hint_delay_ms(solo))
            asked += {m.dst for m in sent if isinstance(m, RequestVote)} == {2, 3, 4, 5}
    assert asked == len(waits) > 200
    assert (min(waits), max(waits)) == (15, 25)
    assert len(set(waits)) == 11


def test_a_hint_that_cannot_win_reports_no_more_elections_than_the_timeout() -> None:
    """Without a majority the question is repeated for as long as it takes, quietly."""
    cluster = CoreCluster(5)
    cluster.elect(1)
    for member_id in (1, 2, 3):
        cluster.crash(member_id)
    cluster.peer_down(4, 1)
    cluster.peer_down(5, 1)
    cluster.run(3_000)
    started = [n for n in cluster.members[4].notices if isinstance(n, ElectionStarted)]
    assert 10 <= len(started) <= 21
    cluster.restart(2)
    cluster.run(60)
    assert len(cluster.leaders()) == 1


def test_the_hint_is_repeated_also_after_a_majority_refused() -> None:
    """Refused by those who still hear the leader, it is a follower again, and asks again."""
    solo = follower(3)
    take_hint(solo)
    solo.wait(hint_delay_ms(solo))
    solo.answer_vote(3, granted=False)
    solo.step(RequestVoteResponse(3, 1, 1, True, 2, False))
    again = solo.wait(hint_delay_ms(solo))
    assert [m.dst for m in again] == [2, 3]
    solo.answer_vote(3)
    assert solo.raft.role is Role.CANDIDATE


def test_leader_and_term_stay_while_the_hint_stands() -> None:
    """A hint is no fact: clients are still sent to the leader."""
    solo = follower()
    take_hint(solo)
    for _ in range(10):
        solo.wait(hint_delay_ms(solo))
    assert (solo.raft.leader_id, solo.raft.term) == (2, 1)
    assert solo.disk.hard_state.term == 1


def test_the_hint_ends_this_nodes_stickiness_only() -> None:
    """It votes for another survivor although it heard the leader a moment ago."""
    solo = follower()
    assert not solo.ask_vote(3, vote_term=2, pre_vote=True).granted
    take_hint(solo)
    assert solo.ask_vote(3, vote_term=2, pre_vote=True).granted
    assert solo.ask_vote(3, vote_term=2).granted


@pytest.mark.parametrize(
    "message",
    [
        AppendEntries(2, 1, 1, 0, 0, 0, 0, Entries(1, [], [])),
        AppendEntries(2, 1, 1, 7, 1, 0, 0, Entries(8, [], [])),
        RequestVoteResponse(2, 1, 1, True, 2, False),
        AppendEntriesResponse(2, 1, 1, True, 0, 0, 0, 0),
    ],
    ids=["append", "append that does not fit", "refused pre-vote", "append response"],
)
def test_any_message_of_the_leaders_term_cancels_the_hint(message: Message) -> None:
    """The leader lives: stickiness is back, and the timer is the ordinary one."""
    solo = follower()
    take_hint(solo)
    solo.step(message)
    assert solo.raft.state.hint is None
    assert [(n.peer, n.term) for n in solo.notices if isinstance(n, HintCancelled)] == [(2, 1)]
    assert not solo.ask_vote(3, vote_term=2, pre_vote=True).granted


@pytest.mark.parametrize(
    "message",
    [
        RequestVoteResponse(3, 1, 1, True, 2, False),
        RequestVoteResponse(2, 1, 0, True, 2, False),
        AppendEntries(2, 1, 0, 0, 0, 0, 0, Entries(1, [], [])),
    ],
    ids=["another peer", "the leader's past", "an append of the past"],
)
def test_other_messages_do_not_cancel_the_hint(message: Message) -> None:
    """Only the leader itself, in the term in which it leads, proves that it lives."""
    solo = follower()
    take_hint(solo)
    solo.step(message)
    assert solo.raft.state.hint is not None


def test_a_higher_term_ends_the_hint() -> None:
    """It was about a leader of the old term."""
    solo = follower()
    take_hint(solo)
    solo.append(3, term=2)
    assert (solo.raft.state.hint, solo.raft.leader_id) == (None, 3)


def test_a_second_hint_for_the_same_leader_does_not_start_again() -> None:
    """The transport may report a dead endpoint as often as it likes."""
    solo = follower()
    take_hint(solo)
    before = solo.raft.state.hint
    take_hint(solo)
    assert solo.raft.state.hint is before
    assert sum(isinstance(n, HintTaken) for n in solo.notices) == 1


def test_a_hint_about_another_follower_changes_nothing() -> None:
    """Only the leader's process matters to a follower."""
    solo = follower()
    take_hint(solo, peer=3)
    assert solo.raft.state.hint is None
    assert solo.wait(100) == []


@pytest.mark.parametrize("settings", [Settings(pre_vote=False), Settings(disconnect_hint=False)])
def test_without_pre_vote_or_when_turned_off_the_timeout_decides(settings: Settings) -> None:
    """Without pre-vote a wrong hint would raise the term, so it is not taken."""
    solo = Solo(settings=settings)
    solo.append(2, term=1)
    take_hint(solo)
    assert solo.raft.state.hint is None
    assert not solo.ask_vote(3, vote_term=2).granted
    assert solo.wait(149) == []


def test_on_a_leader_the_peers_progress_goes_to_probe() -> None:
    """What was in flight to a dead process is lost; the window starts empty again."""
    solo = Solo()
    solo.become_leader()
    solo.ack(2, 1)
    solo.propose("a", "b")
    solo.flush()
    assert solo.raft.state.leadership is not None
    progress = solo.raft.state.leadership.progress[2]
    assert (progress.state, progress.next_index) == (ProgressState.REPLICATE, 4)
    take_hint(solo, peer=2)
    assert (progress.state, progress.next_index, len(progress.inflights)) == (
        ProgressState.PROBE,
        2,
        0,
    )
    assert solo.raft.role is Role.LEADER


def test_a_leader_takes_no_hint_about_itself_or_others() -> None:
    """It leads: there is nobody to replace."""
    solo = Solo()
    solo.become_leader()
    take_hint(solo, peer=3)
    assert (solo.raft.state.hint, solo.raft.role) == (None, Role.LEADER)


@pytest.mark.parametrize("members", [3, 5, 7])
@pytest.mark.parametrize("seed", range(20))
def test_a_majority_with_the_hint_elects_in_tens_of_milliseconds(members: int, seed: int) -> None:
    """A dead leader is replaced long before the shortest election timeout of 150 ms."""
    cluster = CoreCluster(members, seed=seed)
    cluster.run(1_000)
    dead = cluster.leader()
    cluster.crash(dead)
    for member_id in cluster.up():
        cluster.peer_down(member_id, dead)
    cluster.run(50)
    assert len(cluster.leaders()) == 1
    assert cluster.raft(cluster.leader()).term == 2


def test_a_minority_with_the_hint_waits_for_the_others_timeouts() -> None:
    """The others hear nothing either: the election is won when they stop sticking."""
    cluster = CoreCluster(5)
    cluster.elect(1)
    cluster.crash(1)
    cluster.peer_down(2, 1)
    cluster.run(149)
    assert cluster.leaders() == []
    cluster.run(30)
    assert cluster.leaders() == [2]


def test_a_single_wrong_hint_changes_no_term_and_no_leader() -> None:
    """The others refuse the pre-vote, and the leader's next heartbeat voids the hint."""
    cluster = CoreCluster(5)
    cluster.elect(1)
    cluster.peer_down(3, 1)
    cluster.run(1_000)
    assert (cluster.leaders(), cluster.raft(1).term) == ([1], 1)
    assert cluster.raft(3).state.hint is None
    assert {cluster.raft(m).leader_id for m in cluster.up()} == {1}


def test_wrong_hints_again_and_again_change_no_term() -> None:
    """A flapping connection of one follower is its own affair."""
    cluster = CoreCluster(3)
    cluster.elect(1)
    for _ in range(200):
        cluster.peer_down(3, 1)
        cluster.run(7)
    assert (cluster.leaders(), cluster.raft(1).term) == ([1], 1)


def test_a_hinted_node_whose_log_is_behind_does_not_win() -> None:
    """Pre-vote judges the log as ever (Raft §5.4.1)."""
    cluster = CoreCluster(3)
    cluster.elect(1)
    cluster.cut_one_way(1, 3)
    cluster.propose(1, "x=1")
    cluster.stabilise()
    cluster.crash(1)
    cluster.peer_down(3, 1)
    cluster.run(100)
    assert cluster.raft(3).role is not Role.LEADER
    cluster.run(1_000)
    assert cluster.leaders() == [2]


def test_saying_yes_to_anothers_pre_vote_puts_the_own_one_off() -> None:
    """Who was just told that it would win is given 20 ms ± 25 % to win, or the vote splits."""
    waits = set()
    for seed in range(60):
        solo = follower(seed=seed)
        take_hint(solo)
        solo.step(RequestVote(3, 1, 1, True, 2, 1, 1))
        waits.add(hint_delay_ms(solo))
    assert min(waits) >= 15
    assert max(waits) <= 25


@pytest.mark.parametrize(
    ("me", "other", "role"), [(3, 1, Role.FOLLOWER), (1, 3, Role.PRE_CANDIDATE)]
)
def test_of_two_crossing_pre_votes_the_one_with_the_greater_id_is_given_up(
    me: int, other: int, role: Role
) -> None:
    """Both say yes to each other; if both went on, the vote would split."""
    solo = Solo(5, me=me)
    solo.append(2, term=1)
    take_hint(solo)
    solo.wait(hint_delay_ms(solo))
    assert solo.raft.role is Role.PRE_CANDIDATE
    assert solo.ask_vote(other, vote_term=2, pre_vote=True).granted
    assert (solo.raft.role, solo.raft.leader_id) == (role, 2)


def test_the_next_life_of_the_dead_leader_does_not_cancel_the_hint_by_saying_yes() -> None:
    """A process that leads never grants a pre-vote: a yes comes from one that was started anew."""
    solo = follower()
    take_hint(solo)
    solo.wait(hint_delay_ms(solo))
    solo.step(RequestVoteResponse(2, 1, 1, True, 2, True))
    assert solo.raft.state.hint is not None


def test_a_refusal_of_the_leader_itself_cancels_the_hint() -> None:
    """It answers, so it lives; it leads, so it refuses."""
    solo = follower()
    take_hint(solo)
    solo.wait(hint_delay_ms(solo))
    solo.step(RequestVoteResponse(2, 1, 1, True, 2, False))
    assert solo.raft.state.hint is None
