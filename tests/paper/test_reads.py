"""Linearizable reads without writing: ReadIndex (Raft §8, thesis §6.4)."""

from __future__ import annotations

import pytest

from zraft.core.messages import AppendEntriesResponse
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


def test_followers_do_not_answer_linearizable_reads() -> None:
    """They ask the leader for a read index, or are asked for a stale read."""
    solo = Solo()
    solo.append(2, term=1)
    assert solo.raft.read(now_ms=0) is None
