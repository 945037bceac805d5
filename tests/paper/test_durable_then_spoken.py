"""Durable, then spoken (thesis §3.8), and what may leave before the disk (thesis §10.2.1)."""

from __future__ import annotations

import pytest

from zraft.core.messages import AppendEntries, AppendEntriesResponse, RequestVote
from zraft.core.model import Role, Settings
from zraft.core.ready import Ready
from zraft.testing.core_cluster import CoreCluster, CrashPoint
from zraft.testing.solo import Solo


def next_ready(solo: Solo) -> Ready:
    """Return the next Ready, not handled; there must be one."""
    ready = solo.raft.ready()
    assert ready is not None
    return ready


def test_a_request_for_votes_waits_for_the_vote_on_disk() -> None:
    """Fig. 2: currentTerm and votedFor are stored before RPCs are sent (pitfalls 5)."""
    solo = Solo()
    solo.raft.campaign(now_ms=0)
    ready = next_ready(solo)
    assert ready.must_persist
    assert ready.messages == []
    assert [type(m) for m in ready.messages_after_persist] == [RequestVote, RequestVote]


@pytest.mark.parametrize("pre_vote", [False, True])
def test_every_answer_to_a_vote_waits_for_the_disk(pre_vote: bool) -> None:
    """Fig. 2: stored before responding; refusals and pre-votes wait as well (pitfalls 2)."""
    solo = Solo(term=3)
    solo.raft.step(RequestVote(2, 1, 5, pre_vote, 6 if pre_vote else 5, 0, 0), now_ms=0)
    ready = next_ready(solo)
    assert ready.must_persist
    assert (ready.messages, len(ready.messages_after_persist)) == ([], 1)
    solo.raft.advance(ready)
    solo.raft.step(RequestVote(3, 1, 1, pre_vote, 2 if pre_vote else 1, 0, 0), now_ms=0)
    assert next_ready(solo).messages == []


def test_an_acknowledgement_waits_for_the_entries_on_disk() -> None:
    """Fig. 2: entries are stored before the success is sent."""
    leader, follower = Solo(), Solo()
    leader.become_leader()
    (append,) = [m for m in leader.said if isinstance(m, AppendEntries) and m.dst == 2]
    follower.raft.step(append._replace(src=2, dst=1), now_ms=0)
    ready = next_ready(follower)
    assert ready.entries is not None
    assert ready.messages == []
    assert len(ready.messages_after_persist) == 1


def test_a_leader_sends_its_entries_before_its_own_disk_has_them() -> None:
    """Thesis §10.2.1: the followers' disks work while the leader's does."""
    solo = Solo()
    solo.become_leader()
    solo.ack(2, 1)
    solo.propose("x=1")
    ready = next_ready(solo)
    assert ready.entries is not None
    assert [type(m) for m in ready.messages] == [AppendEntries]


def test_a_pre_vote_may_leave_early_but_not_with_a_term_that_is_not_durable() -> None:
    """A message never carries a term that its sender could forget."""
    solo = Solo()
    deadline_ms = solo.raft.state.election_deadline_ms
    solo.raft.on_timer(now_ms=deadline_ms, inbox_empty=True)
    ready = next_ready(solo)
    assert [m.dst for m in ready.messages] == [2, 3]
    solo.raft.advance(ready)

    learning = Solo()
    learning.raft.step(RequestVote(2, 1, 7, True, 8, 0, 0), now_ms=deadline_ms)
    learning.raft.on_timer(now_ms=deadline_ms, inbox_empty=True)
    ready = next_ready(learning)
    assert (ready.messages, ready.hard_state) == ([], (7, 0))
    assert [m.dst for m in ready.messages_after_persist] == [2, 3, 2]


def test_the_own_vote_counts_only_after_the_sync() -> None:
    """A single voter would otherwise lead a term that it can forget."""
    solo = Solo(1)
    solo.raft.campaign(now_ms=0)
    roles = [solo.raft.role]
    solo.raft.advance(next_ready(solo))
    roles.append(solo.raft.role)
    assert roles == [Role.CANDIDATE, Role.LEADER]


def test_the_own_match_counts_only_after_the_sync() -> None:
    """Thesis §10.2.1: the leader counts itself when its own write is durable."""
    solo = Solo(1)
    solo.raft.campaign(now_ms=0)
    solo.raft.advance(next_ready(solo))
    ready = next_ready(solo)
    assert ready.entries is not None
    assert solo.raft.commit_index == 0
    solo.raft.advance(ready)
    assert solo.raft.commit_index == 1


def test_what_is_not_written_yet_is_not_counted_for_the_leader() -> None:
    """Thesis §10.2.1: one follower of two and the leader's memory are no majority."""
    solo = Solo()
    solo.become_leader()
    solo.ack(2, 1)
    solo.propose("x=1")
    solo.raft.step(AppendEntriesResponse(2, 1, 1, True, 2, 0, 0, 0), now_ms=0)
    assert solo.raft.commit_index == 1
    solo.flush()
    assert solo.raft.commit_index == 2


@pytest.mark.parametrize(
    ("acknowledged", "committed"), [([2], False), ([2, 3], False), ([2, 3, 4], True)]
)
def test_followers_alone_commit_only_with_a_majority_of_their_own(
    acknowledged: list[int], committed: bool
) -> None:
    """Thesis §10.2.1: an entry may be committed before the leader itself has it on disk.

    The leader dies between sending and writing; whoever follows it must find the entry, or none.
    """
    cluster = CoreCluster(5)
    cluster.elect(1)
    cluster.propose(1, "x=1")
    cluster.handle_ready(1, crash=CrashPoint.AFTER_MESSAGES)
    cluster.deliver(lambda m: m.dst in acknowledged)
    cluster.in_flight.clear()
    cluster.run(1_500)
    cluster.restart(1)
    cluster.run(500)
    assert cluster.terms(1) == cluster.terms(cluster.leader())
    held = cluster.terms(1).count(1) == 2
    assert held or not committed


def test_nothing_happens_while_a_ready_is_outstanding() -> None:
    """One write at a time: nothing changes between hand-out and sync (pitfalls 4, 25, 26).

    So there is no write that finishes late and acknowledges entries that were replaced meanwhile,
    and after a failed sync, which ends the process, nothing was said.
    """
    solo = Solo()
    solo.raft.campaign(now_ms=0)
    ready = next_ready(solo)
    with pytest.raises(AssertionError, match="not advanced"):
        solo.raft.ready()
    with pytest.raises(AssertionError, match="not advanced"):
        solo.raft.step(RequestVote(2, 1, 5, False, 5, 0, 0), now_ms=0)
    with pytest.raises(AssertionError, match="not advanced"):
        solo.raft.propose([], now_ms=0)
    with pytest.raises(AssertionError, match="not the Ready"):
        solo.raft.advance(Ready())
    solo.raft.advance(ready)


def test_a_leader_never_reuses_an_index_of_its_term() -> None:
    """Leader Append-Only; whose write failed is gone, and with it its term (pitfalls 25)."""
    cluster = CoreCluster(3)
    cluster.elect(1)
    cluster.propose(1, "x=1")
    cluster.handle_ready(1, crash=CrashPoint.AFTER_MESSAGES)
    cluster.in_flight.clear()
    cluster.restart(1)
    cluster.elect(1)
    assert cluster.raft(1).term == 2
    assert cluster.propose(1, "y=2") == (3, 2)


def test_truncation_is_part_of_what_is_persisted() -> None:
    """A Ready's entries replace everything from their first index on, in the same write."""
    solo = Solo(terms=[1, 1, 1, 1])
    solo.append(2, term=2, prev=(2, 1), terms=[2])
    assert solo.disk.terms == [1, 1, 2]
    (ready,) = [r for r in solo.readys if r.entries is not None]
    assert ready.entries is not None
    assert (ready.entries.first_index, ready.hard_state) == (3, (2, 0))


def test_several_appends_in_a_turn_cost_one_write() -> None:
    """Group commit: what arrived in one turn of the loop is one run of entries to persist."""
    leader = Solo(settings=Settings(max_batch_bytes=1))
    leader.become_leader()
    leader.ack(2, 1)
    leader.propose(*"abcde")
    appends = leader.appends(leader.flush(), 2)
    follower = Solo()
    follower.append(2, term=1, terms=[1])
    for append in appends:
        follower.raft.step(append._replace(src=2, dst=1), now_ms=0)
    ready = next_ready(follower)
    assert ready.entries is not None
    assert (ready.entries.first_index, ready.entries.last_index) == (2, 6)
    assert len(ready.messages_after_persist) == 5
