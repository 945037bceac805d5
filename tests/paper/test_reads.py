"""Linearizable reads without writing: ReadIndex (Raft §8, thesis §6.4)."""

from __future__ import annotations

import pytest

from zraft.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    ReadIndex,
    ReadIndexResponse,
)
from zraft.core.model import Settings
from zraft.testing.core_cluster import CoreCluster
from zraft.testing.solo import Solo


def leader(members: int = 3) -> Solo:
    """Return a leader of term 1 that has committed its no-op, index 1."""
    solo = Solo(members)
    solo.become_leader()
    for peer in solo.peers:
        solo.ack(peer, 1)
    return solo


def read(solo: Solo) -> int:
    """Ask for a read, and send its round."""
    read_id = solo.raft.read(now_ms=solo.now_ms)
    assert read_id is not None
    solo.flush()
    return read_id


def test_a_read_waits_for_answers_of_a_quorum_to_a_later_append() -> None:
    """Thesis §6.4: a round of heartbeats that begins after the read arrived."""
    solo = leader(5)
    read_id = read(solo)
    solo.ack(2, 1)
    assert solo.reads == []
    solo.ack(3, 1)
    assert solo.reads == [(read_id, 1)]


def test_an_answer_to_an_earlier_round_does_not_confirm_a_read() -> None:
    """Thesis §6.4: it may have been given before the read arrived (pitfalls 35)."""
    solo = leader()
    first = read(solo)
    second = read(solo)
    solo.ack(2, 1, round_=0)
    assert solo.reads == []
    solo.ack(2, 1, round_=1)
    assert solo.reads == [(first, 1)]
    solo.ack(2, 1, round_=2)
    assert solo.reads == [(first, 1), (second, 1)]


def test_one_answer_twice_does_not_confirm_a_read() -> None:
    """A quorum is made of members, not of answers (pitfalls 30)."""
    solo = leader(5)
    read(solo)
    for _ in range(4):
        solo.ack(2, 1)
    assert solo.reads == []


def test_answers_of_another_term_do_not_confirm_a_read() -> None:
    """A round is bound to its leadership (pitfalls 35)."""
    solo = Solo(term=4)
    solo.become_leader()
    solo.ack(2, 1)
    read(solo)
    solo.step(AppendEntriesResponse(2, 1, 4, True, 1, 0, 0, 1))
    assert solo.reads == []


def test_a_new_leader_answers_no_read_before_it_committed_an_entry_of_its_term() -> None:
    """Thesis §6.4: only then does it know what is committed (pitfalls 34)."""
    solo = Solo(terms=[1, 1], term=1)
    solo.become_leader()
    read_id = read(solo)
    solo.ack(2, 2)
    assert (solo.reads, solo.raft.can_serve_reads) == ([], False)
    solo.ack(2, 3)
    assert (solo.reads, solo.raft.can_serve_reads) == ([(read_id, 3)], True)


def test_a_cluster_of_one_waits_for_its_own_entry_as_well() -> None:
    """Also after a restart: what it had committed it knows again only then (pitfalls 34, 36)."""
    cluster = CoreCluster(1)
    cluster.elect(1)
    cluster.propose(1, "x=1")
    cluster.stabilise()
    cluster.crash(1)
    cluster.restart(1)
    cluster.time_out(1)
    cluster.handle_ready(1)
    read_id = cluster.read(1)
    assert (cluster.members[1].reads, cluster.raft(1).can_serve_reads) == ([], False)
    cluster.stabilise()
    assert cluster.members[1].reads == [(read_id, 3)]
    assert len(cluster.members[1].applied) == 3


def test_a_read_gets_the_commit_index_of_its_round() -> None:
    """Thesis §6.4, step 2: what is committed when the read arrives, not less."""
    solo = leader()
    solo.propose("a")
    solo.flush()
    solo.ack(2, 2)
    read_id = read(solo)
    solo.propose("b")
    solo.flush()
    solo.ack(2, 3)
    assert solo.reads == [(read_id, 2)]


def test_reads_that_arrive_in_one_turn_share_a_round() -> None:
    """Thesis §6.4: one round of heartbeats serves any number of reads, but no later one."""
    solo = leader()
    ids = {solo.raft.read(now_ms=0) for _ in range(10)}
    sent = solo.flush()
    assert len(ids) == 1
    assert [m.dst for m in sent] == [2, 3]
    assert read(solo) not in ids


def test_a_round_that_was_lost_is_sent_again_with_the_next_heartbeat() -> None:
    """No retry layer of its own."""
    cluster = CoreCluster(3)
    cluster.elect(1)
    cluster.read(1)
    cluster.flush(1)
    cluster.in_flight.clear()
    cluster.stabilise()
    assert cluster.members[1].reads == []
    cluster.beat(1)
    cluster.stabilise()
    assert cluster.members[1].reads == [(1, 1)]


def test_a_refusal_confirms_that_its_sender_still_follows() -> None:
    """Thesis §6.4 asks who still accepts the leader, not whose log is complete."""
    solo = leader()
    read_id = read(solo)
    solo.refuse(3, (1, 0))
    assert solo.reads == [(read_id, 1)]


@pytest.mark.parametrize("check_quorum", [True, False])
def test_a_leader_that_was_replaced_answers_no_read(check_quorum: bool) -> None:
    """Thesis §6.4: it cannot confirm its leadership, whatever it believes (pitfalls 35)."""
    cluster = CoreCluster(3, settings=Settings(check_quorum=check_quorum))
    cluster.elect(1)
    cluster.cut([1])
    cluster.elect(2)
    cluster.propose(2, "x=new")
    cluster.stabilise()
    read_id = cluster.read(1)
    cluster.stabilise()
    cluster.heal()
    cluster.run(500)
    assert cluster.members[1].reads == []
    assert cluster.members[1].aborted_reads == [read_id]


def test_reads_end_with_the_leadership() -> None:
    """Both those whose round is out and those whose round is not are given back."""
    solo = leader()
    first = read(solo)
    second = solo.raft.read(now_ms=0)
    solo.append(3, term=2)
    assert solo.aborted_reads == [first, second]
    assert solo.reads == []


def test_a_read_id_is_never_used_again() -> None:
    """One id for each attempt, also in the next leadership (pitfalls 35)."""
    solo = leader()
    first = read(solo)
    solo.append(3, term=2)
    solo.become_leader()
    assert read(solo) > first


def questions(solo: Solo) -> list[ReadIndex]:
    """Return every question for a read index that was sent."""
    return [message for message in solo.said if isinstance(message, ReadIndex)]


def follower() -> Solo:
    """Return a follower of 2 in term 1."""
    solo = Solo()
    solo.append(2, term=1, terms=[1], commit=1)
    return solo


def test_a_follower_asks_its_leader_and_answers_at_the_index_it_is_told() -> None:
    """Thesis §6.4, last paragraph: the leader's work is one number, not the read."""
    solo = follower()
    read_id = read(solo)
    assert questions(solo) == [ReadIndex(1, 2, 1, read_id)]
    assert solo.reads == []
    solo.step(ReadIndexResponse(2, 1, 1, read_id, 7))
    assert solo.reads == [(read_id, 7)]


def test_a_follower_without_leader_answers_no_read() -> None:
    """There is nobody to ask."""
    assert Solo().raft.read(now_ms=0) is None


def test_reads_of_one_turn_share_a_question_and_later_ones_do_not() -> None:
    """A read that arrived after the question left needs a later index."""
    solo = follower()
    first = solo.raft.read(now_ms=0)
    assert solo.raft.read(now_ms=0) == first
    solo.flush()
    assert read(solo) != first
    assert len(questions(solo)) == 2


def test_a_lost_question_is_given_up_and_its_id_never_used_again() -> None:
    """One id per attempt: a late answer must not meet a later read (pitfalls 35: etcd #20418)."""
    solo = follower()
    first = read(solo)
    solo.append(2, term=1, prev=(1, 1))
    solo.wait(solo.settings.election_min_ms)
    assert solo.aborted_reads == [first]
    second = read(solo)
    assert second != first
    solo.step(ReadIndexResponse(2, 1, 1, first, 1))
    assert solo.reads == []
    solo.step(ReadIndexResponse(2, 1, 1, second, 1))
    assert solo.reads == [(second, 1)]


def test_a_refused_question_is_asked_again_under_another_id() -> None:
    """The leader stepped down, or never was one."""
    solo = follower()
    first = read(solo)
    solo.step(ReadIndexResponse(2, 1, 1, first, 0))
    assert (solo.reads, solo.aborted_reads) == ([], [first])


def test_a_question_is_bound_to_leader_and_term() -> None:
    """An answer of a leadership that ended says nothing (pitfalls 35: etcd-io/raft #397)."""
    solo = follower()
    read_id = read(solo)
    solo.append(3, term=2, prev=(1, 1))
    assert solo.aborted_reads == [read_id]
    solo.step(ReadIndexResponse(2, 1, 1, read_id, 1))
    solo.step(ReadIndexResponse(2, 1, 2, read_id, 1))
    assert solo.reads == []


def test_a_leader_answers_a_follower_once_a_quorum_confirmed_a_later_round() -> None:
    """The same rule as for its own reads, and the same round serves both."""
    solo = leader(5)
    own = solo.raft.read(now_ms=0)
    sent = solo.step(ReadIndex(4, 1, 1, 77))
    assert not [m for m in sent if isinstance(m, ReadIndexResponse)]
    assert {m.round for m in sent if isinstance(m, AppendEntries)} == {1}
    solo.ack(2, 1)
    assert ReadIndexResponse(1, 4, 1, 77, 1) in solo.ack(3, 1)
    assert solo.reads == [(own, 1)]


def test_a_new_leader_answers_no_follower_before_it_committed_an_entry_of_its_term() -> None:
    """Thesis §6.4, pitfalls 34: its commit index may be behind what was acknowledged."""
    solo = Solo(terms=[1, 1], term=1)
    solo.become_leader()
    solo.step(ReadIndex(3, 1, 2, 5))
    assert not [m for m in solo.ack(2, 2) if isinstance(m, ReadIndexResponse)]
    assert ReadIndexResponse(1, 3, 2, 5, 3) in solo.ack(2, 3)


def test_who_does_not_lead_refuses_a_question() -> None:
    """So the follower need not wait for its time-out."""
    solo = follower()
    assert ReadIndexResponse(1, 3, 1, 9, 0) in solo.step(ReadIndex(3, 1, 1, 9))
    deposed = leader()
    deposed.step(ReadIndex(3, 1, 1, 9))
    deposed.raft.step_down(now_ms=0)
    assert ReadIndexResponse(1, 3, 1, 9, 0) in deposed.flush()


def test_a_follower_cut_off_with_an_old_leader_reads_nothing_stale() -> None:
    """Both believe in a leadership that ended; no quorum confirms it."""
    cluster = CoreCluster(5)
    cluster.elect(1)
    cluster.cut([1, 2])
    cluster.read(2)
    cluster.elect(3)
    cluster.propose(3, "new")
    cluster.run(100)
    assert cluster.members[2].reads == []
    cluster.heal()
    cluster.run(500)
    read_id = cluster.read(2)
    cluster.run(100)
    assert [state.read_id for state in cluster.members[2].reads] == [read_id]
