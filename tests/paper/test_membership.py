"""Cluster membership changes (Raft §6; thesis ch. 4): joint consensus and learners."""

from __future__ import annotations

import pytest

from tests.membership_clusters import (
    ADD,
    ADD_LEARNER,
    DEMOTE,
    ELECTION_MS,
    PROMOTE,
    REMOVE,
    append_to,
    led,
    voters,
)
from zraft.core.changes import ChangeRefused, Refusal, changed
from zraft.core.model import (
    ChangeKind,
    Configuration,
    EntryId,
    MemberChange,
    MemberId,
    MemberInfo,
    Role,
    Settings,
)
from zraft.testing.core_cluster import CoreCluster

# What a change is


def test_a_change_of_voters_is_joint_first_and_then_the_new_ones_alone() -> None:
    """§6: C_old,new is logged, then C_new; both by the leader, each once."""
    cluster = led(3, 3)
    assert cluster.change(1, (REMOVE, 3)) == EntryId(2, 1)
    assert cluster.raft(1).configuration[:3] == ((1, 2), 2, (1, 2, 3))
    cluster.stabilise()
    assert cluster.raft(1).configuration[:3] == ((1, 2), 3, ())
    assert cluster.raft(1).last_id == EntryId(3, 1)


def test_the_newest_configuration_counts_as_soon_as_it_is_in_the_log() -> None:
    """§6: a server uses the latest configuration in its log, committed or not."""
    cluster = led(3, 3)
    cluster.change(1, (REMOVE, 3))
    append_to(cluster, 1, 2)
    assert cluster.raft(2).configuration.is_joint
    assert cluster.raft(2).commit_index < cluster.raft(2).configuration.index


def test_a_joint_entry_is_committed_by_both_majorities_only() -> None:
    """§6: agreement needs separate majorities of the old and of the new configuration."""
    for heard, missing in (((2, 3), 4), ((3, 4), None), ((4,), 3)):
        cluster = led(4, 3)
        cluster.change(1, (ADD, 4))
        cluster.run(500)
        begun = cluster.change(1, (REMOVE, 1), (REMOVE, 2))  # new: 3 and 4; old: all four
        assert isinstance(begun, EntryId)
        append_to(cluster, 1, *heard)
        assert (cluster.raft(1).commit_index >= begun.index) is (missing is None)
        cluster.run(200)
        assert voters(cluster, 3) == (3, 4)


def test_an_election_in_a_joint_configuration_needs_both_majorities() -> None:
    """§6: a candidate in C_old,new must win among the old and among the new."""
    cluster = led(3, 3)
    cluster.change(1, (REMOVE, 1), (REMOVE, 2))
    append_to(cluster, 1, 2, 3)
    assert cluster.raft(2).configuration.outgoing == (1, 2, 3)
    cluster.crash(3)  # the only voter of the new ones
    cluster.crash(1)
    cluster.restart(1)
    cluster.run(10 * ELECTION_MS)
    assert cluster.leaders() == []  # two of three old ones are not enough
    cluster.restart(3)
    cluster.run(10 * ELECTION_MS)
    assert cluster.leaders() == [3]


def test_a_learner_gets_the_log_and_decides_nothing() -> None:
    """Thesis §4.2.1: it is not counted for commits nor votes, and it never stands (pitfalls 17)."""
    cluster = led(3, 1)
    cluster.change(1, (ADD_LEARNER, 2), (ADD_LEARNER, 3))
    cluster.run(500)
    assert voters(cluster, 1) == (1,)
    first = cluster.propose(1, "a")
    assert first is not None
    cluster.flush(1)
    assert cluster.raft(1).commit_index == first.index  # alone
    cluster.run(100)
    assert cluster.terms(2) == cluster.terms(3) == cluster.terms(1)
    cluster.crash(1)
    assert not cluster.campaign(2)
    cluster.run(10 * ELECTION_MS)
    assert [cluster.raft(i).role for i in (2, 3)] == [Role.FOLLOWER, Role.FOLLOWER]


def test_a_member_that_was_never_added_waits_quietly() -> None:
    """Its base configuration is without itself: it neither stands nor disturbs (pitfalls 15)."""
    cluster = led(4, 3)
    cluster.run(20 * ELECTION_MS)
    assert (cluster.raft(4).term, cluster.raft(4).role) == (0, Role.FOLLOWER)
    assert (cluster.raft(1).term, cluster.leaders()) == (1, [1])


# Joining


def test_a_joining_learner_is_promoted_once_it_has_caught_up() -> None:
    """Thesis §4.2.1; etcd users asked for it for seven years (etcd#10537)."""
    cluster = led(4, 3)
    cluster.propose(1, *"abcdefgh")
    cluster.stabilise()
    cluster.change(1, (ADD, 4))
    cluster.run(500)
    assert all(voters(cluster, i) == (1, 2, 3, 4) for i in (1, 2, 3, 4))
    assert cluster.raft(1).configuration.joining == ()


def test_all_who_are_ready_are_promoted_in_one_change() -> None:
    """The first to answer is promoted; those who are ready when that is done go together."""
    cluster = led(6, 3)
    cluster.change(1, (ADD, 4), (ADD, 5), (ADD, 6))
    cluster.stabilise()
    assert voters(cluster, 1) == (1, 2, 3, 4, 5, 6)
    assert cluster.raft(1).last_id.index == 6  # no-op, learners, and twice joint and final


def test_a_learner_that_can_not_be_reached_is_not_promoted() -> None:
    """It would only make the quorum larger."""
    cluster = led(4, 3)
    cluster.cut([4])
    cluster.change(1, (ADD, 4))
    cluster.run(10 * ELECTION_MS)
    assert voters(cluster, 1) == (1, 2, 3)
    assert cluster.change(1, (PROMOTE, 4)) == ChangeRefused(Refusal.NOT_CAUGHT_UP, 4)
    cluster.heal()
    cluster.run(1000)
    assert voters(cluster, 1) == (1, 2, 3, 4)


def test_a_learner_is_promoted_only_once_it_holds_an_entry_of_the_leaders_own_term() -> None:
    """What replaces a wiped member must hold all that this one may have acknowledged."""
    cluster = led(4, 3)
    cluster.change(1, (ADD, 4))
    append_to(cluster, 1, 2, 3)
    cluster.flush(1)
    cluster.take(lambda m: True)
    cluster.cut([4])
    cluster.now_ms += ELECTION_MS
    cluster.elect(2)
    noop_index = cluster.raft(2).last_id.index
    cluster.run(500)
    assert voters(cluster, 2) == (1, 2, 3)
    cluster.heal()
    cluster.run(500)
    assert 4 in voters(cluster, 2)
    assert cluster.terms(4)[noop_index - 1] == cluster.raft(2).term


def test_a_replacement_removes_the_old_id_and_adds_the_new_one_in_one_change() -> None:
    """Identity (design): the wiped member's id never votes again; the new one is filled first."""
    cluster = led(4, 3)
    cluster.propose(1, "a")
    cluster.stabilise()
    cluster.crash(3)
    assert cluster.change(1, (REMOVE, 3), (ADD, 4)) == EntryId(3, 1)
    assert cluster.raft(1).configuration[:5] == ((1, 2), 3, (1, 2, 3), (4,), (4,))
    cluster.run(1000)
    assert voters(cluster, 1) == (1, 2, 4)


# Refusals


def test_no_change_begins_before_an_entry_of_the_own_term_is_committed() -> None:
    """Ongaro 2015 (raft-dev): changes of two leaders from one base must not meet (pitfalls 40)."""
    cluster = led(3, 3)
    cluster.now_ms += ELECTION_MS
    cluster.campaign(2)
    cluster.flush(2)
    cluster.deliver()
    cluster.flush(3)
    cluster.deliver(lambda m: m.dst == 2)
    cluster.flush(2)
    assert cluster.raft(2).role is Role.LEADER
    assert cluster.change(2, (REMOVE, 3)) == ChangeRefused(Refusal.NO_OWN_COMMIT)
    cluster.stabilise()
    assert isinstance(cluster.change(2, (REMOVE, 3)), EntryId)


def test_one_change_at_a_time() -> None:
    """§6, thesis §4.1: the next begins when the last one's final entry is committed (40, 45)."""
    cluster = led(5, 3)
    cluster.change(1, (ADD_LEARNER, 4))
    assert cluster.change(1, (ADD_LEARNER, 5)) == ChangeRefused(Refusal.IN_FLIGHT)
    cluster.stabilise()
    cluster.change(1, (REMOVE, 3))
    assert cluster.change(1, (ADD_LEARNER, 5)) == ChangeRefused(Refusal.IN_FLIGHT)
    append_to(cluster, 1, 2)
    assert not cluster.raft(1).configuration.is_joint  # the final one, not committed yet
    assert cluster.change(1, (ADD_LEARNER, 5)) == ChangeRefused(Refusal.IN_FLIGHT)
    cluster.stabilise()
    assert isinstance(cluster.change(1, (ADD_LEARNER, 5)), EntryId)


@pytest.mark.parametrize(
    ("steps", "refused"),
    [
        ([], ChangeRefused(Refusal.NOTHING)),
        ([(REMOVE, 9)], ChangeRefused(Refusal.UNKNOWN_MEMBER, 9)),
        ([(PROMOTE, 9)], ChangeRefused(Refusal.UNKNOWN_MEMBER, 9)),
        ([(DEMOTE, 9)], ChangeRefused(Refusal.UNKNOWN_MEMBER, 9)),
        ([(ADD, 2)], ChangeRefused(Refusal.ALREADY_SO, 2)),
        ([(ADD_LEARNER, 4)], ChangeRefused(Refusal.ALREADY_SO, 4)),
        ([(PROMOTE, 2)], ChangeRefused(Refusal.ALREADY_SO, 2)),
        ([(DEMOTE, 4)], ChangeRefused(Refusal.ALREADY_SO, 4)),
        ([(REMOVE, 1), (REMOVE, 2), (REMOVE, 3)], ChangeRefused(Refusal.NO_VOTER_LEFT)),
        ([(DEMOTE, 1), (REMOVE, 2), (REMOVE, 3)], ChangeRefused(Refusal.NO_VOTER_LEFT)),
        ([(DEMOTE, 2), (REMOVE, 2)], ChangeRefused(Refusal.TWICE, 2)),
        ([(ADD, i) for i in range(10, 80)], ChangeRefused(Refusal.TOO_MANY)),
    ],
)
def test_an_impossible_change_is_refused_with_its_reason(
    steps: list[tuple[ChangeKind, MemberId]], refused: ChangeRefused
) -> None:
    """Nothing of it is in the log afterwards; a follower refuses everything."""
    cluster = led(4, 3)
    cluster.change(1, (ADD_LEARNER, 4))
    cluster.stabilise()
    before = cluster.raft(1).last_id
    assert cluster.change(1, *steps) == refused
    assert cluster.change(2, *steps) == ChangeRefused(Refusal.NOT_LEADER)
    assert cluster.raft(1).last_id == before


def test_two_members_never_share_a_name() -> None:
    """A replacement takes its predecessor's name over; an addition can't."""
    base = Configuration((1, 2), members=(MemberInfo(1, "n1"), MemberInfo(2, "n2")))
    add = MemberChange(ADD, MemberInfo(3, "n2"))
    assert changed(base, [add]) == ChangeRefused(Refusal.NAME_TAKEN, 3)
    replaced = changed(base, [MemberChange(REMOVE, MemberInfo(2, "")), add])
    assert isinstance(replaced, Configuration)
    assert replaced.members == (MemberInfo(1, "n1"), MemberInfo(2, "n2"), MemberInfo(3, "n2"))


def test_a_received_snapshot_brings_its_configuration() -> None:
    """One who joins a compacted log knows the members from the snapshot (pitfalls 42)."""
    settings = Settings(trailing_entries=0, trailing_bytes=0, held_bytes=0)
    cluster = CoreCluster(4, voters=range(1, 4), settings=settings)
    cluster.elect(1)
    cluster.cut({4})
    cluster.change(1, (ADD, 4))
    cluster.stabilise()
    cluster.propose(1, "a", "b")
    cluster.stabilise()
    meta = cluster.take_snapshot(1)
    assert meta.configuration.joining == (4,)
    assert cluster.raft(1).first_index == meta.index + 1
    cluster.heal()
    cluster.run(2 * ELECTION_MS)
    snapshot = cluster.raft(4).snapshot
    assert snapshot is not None
    assert snapshot.configuration == meta.configuration
    assert voters(cluster, 4) == (1, 2, 3, 4), "the rest came with the log"
    cluster.crash(4)
    cluster.restart(4)
    assert voters(cluster, 4) == (1, 2, 3, 4)
