"""Deadlines: when they count, and what a process that did not run may conclude (Raft §5.6)."""

from __future__ import annotations

import pytest

from zraft.core.messages import AppendEntries
from zraft.core.model import Role
from zraft.core.notices import GraceGranted
from zraft.testing.core_cluster import CoreCluster
from zraft.testing.solo import Solo


def graces(solo: Solo) -> int:
    """Return how often a deadline was put off."""
    return sum(isinstance(notice, GraceGranted) for notice in solo.notices)


def stall(solo: Solo, for_ms: int) -> None:
    """Let the process stand still and notice it."""
    solo.now_ms += for_ms
    solo.raft.on_stall(for_ms, now_ms=solo.now_ms)
    solo.flush()


@pytest.mark.parametrize(
    ("late_ms", "inbox_empty", "stands"),
    [(-1, True, False), (0, True, True), (0, False, False), (50, False, False), (51, False, True)],
)
def test_an_election_deadline_counts_when_the_inbox_is_empty_or_long_past(
    late_ms: int, inbox_empty: bool, stands: bool
) -> None:
    """Unread mail may hold the leader's word; but a flood must not stop elections."""
    solo = Solo()
    solo.wait(solo.raft.state.election_deadline_ms + late_ms, inbox_empty=inbox_empty)
    assert (solo.raft.role is Role.PRE_CANDIDATE) is stands


@pytest.mark.parametrize(
    ("late_ms", "inbox_empty", "leads"),
    [(-1, True, True), (0, True, False), (0, False, True), (50, False, True), (51, False, False)],
)
def test_a_lost_quorum_counts_when_the_inbox_is_empty_or_long_past(
    late_ms: int, inbox_empty: bool, leads: bool
) -> None:
    """The answers of a quorum may lie unread."""
    solo = Solo()
    solo.become_leader()
    solo.wait(300 + late_ms, inbox_empty=inbox_empty)
    assert (solo.raft.role is Role.LEADER) is leads


def test_heartbeats_leave_whenever_they_are_due() -> None:
    """A leader that drowns in requests still tells that it lives."""
    solo = Solo()
    solo.become_leader()
    sent = solo.wait(50, inbox_empty=False)
    assert [type(m) for m in sent] == [AppendEntries, AppendEntries]


def test_nothing_is_due_before_the_deadline_that_is_named() -> None:
    """A loop that sleeps exactly until `next_deadline_ms` misses nothing and wakes for nothing."""
    cluster = CoreCluster(3)
    for _ in range(300):
        deadline_ms = min(cluster.raft(m).next_deadline_ms() for m in cluster.up())
        assert deadline_ms > cluster.now_ms
        cluster.now_ms = deadline_ms - 1
        before = [cluster.raft(m).role for m in cluster.up()]
        for member_id in cluster.up():
            cluster.fire(member_id)
            assert cluster.flush(member_id) == []
        assert before == [cluster.raft(m).role for m in cluster.up()]
        cluster.now_ms = deadline_ms
        for member_id in cluster.up():
            cluster.fire(member_id)
        cluster.stabilise()
    assert len(cluster.leaders()) == 1


def test_time_never_goes_back() -> None:
    """An earlier time counts as the last one; timers are whole numbers (pitfalls 58)."""
    solo = Solo()
    solo.wait(100)
    solo.raft.on_timer(now_ms=40, inbox_empty=True)
    assert solo.raft.state.now_ms == 100
    late = Solo()
    late.now_ms = 1 << 53
    late.raft.on_timer(now_ms=late.now_ms, inbox_empty=True)
    assert late.raft.state.election_deadline_ms in range(late.now_ms + 150, late.now_ms + 301)


def test_a_stall_puts_a_deadline_off_by_one_heartbeat() -> None:
    """After a pause messages may still be on their way through the I/O thread: read first."""
    solo = Solo()
    solo.append(2, term=1)
    stall(solo, 1_000)
    assert solo.wait(49) == []
    solo.wait(1)
    assert solo.raft.role is Role.PRE_CANDIDATE


def test_a_deadline_gets_one_grace_never_two_in_a_row() -> None:
    """A process that stalls again and again must still notice that the leader is gone."""
    solo = Solo()
    solo.append(2, term=1)
    for _ in range(20):
        stall(solo, 40)
    assert graces(solo) == 1
    solo.wait(0)
    assert solo.raft.role is Role.PRE_CANDIDATE


def test_a_new_deadline_has_a_new_grace() -> None:
    """Hearing the leader, or standing for election, draws another deadline."""
    solo = Solo()
    for expected in (1, 2, 3):
        solo.append(2, term=1)
        stall(solo, 500)
        assert graces(solo) == expected


def test_a_stall_that_ends_well_before_the_deadline_uses_up_no_grace() -> None:
    """Nothing is due within the grace: nothing is put off."""
    solo = Solo()
    solo.append(2, term=1)
    stall(solo, 60)
    assert graces(solo) == 0
    stall(solo, 400)
    assert graces(solo) == 1


def test_a_stalled_leader_reads_its_mail_before_it_gives_up() -> None:
    """CheckQuorum gets the same grace, once."""
    solo = Solo()
    solo.become_leader()
    stall(solo, 1_000)
    solo.wait(49)
    assert solo.raft.role is Role.LEADER
    solo.ack(2, 1)
    solo.wait(50)
    assert solo.raft.role is Role.LEADER

    alone = Solo()
    alone.become_leader()
    stall(alone, 1_000)
    stall(alone, 40)
    alone.wait(10)
    assert (alone.raft.role, graces(alone)) == (Role.FOLLOWER, 1)


def test_a_cluster_outlives_the_pause_of_any_follower() -> None:
    """A follower that slept ten seconds comes back and disturbs nobody."""
    cluster = CoreCluster(3)
    cluster.elect(1)
    asleep = cluster.raft(3)
    deadline_ms = asleep.next_deadline_ms()
    cluster.members[3].raft = None
    cluster.run(10_000)
    cluster.members[3].raft = asleep
    asleep.on_stall(cluster.now_ms - deadline_ms, now_ms=cluster.now_ms)
    cluster.run(500)
    assert (cluster.leaders(), cluster.raft(1).term, asleep.role) == ([1], 1, Role.FOLLOWER)
