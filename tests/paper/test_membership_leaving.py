"""Membership changes, part two: who leaves, and crashes in the middle (Raft §6)."""

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
from zraft.core.messages import AppendEntries, AppendEntriesResponse, InstallSnapshot, RequestVote
from zraft.core.model import (
    Configuration,
    EntryId,
    MemberId,
    Role,
    Settings,
)
from zraft.core.progress import ProgressState
from zraft.core.quorum import holds_quorum
from zraft.testing.core_cluster import CoreCluster, CrashPoint

# The leader leaves


def test_a_leader_that_removes_itself_does_not_count_itself_and_then_steps_down() -> None:
    """§6, third issue: it manages C_new without being part of a majority (pitfalls 44)."""
    cluster = led(3, 3)
    cluster.change(1, (REMOVE, 1))
    append_to(cluster, 1, 2, 3)
    final_index = cluster.raft(1).configuration.index
    assert (final_index, voters(cluster, 1)) == (3, (2, 3))
    append_to(cluster, 1, 2)  # itself and one of two: no majority of the new
    assert cluster.raft(1).commit_index < final_index
    assert cluster.raft(1).role is Role.LEADER
    cluster.beat(1)
    cluster.stabilise()
    assert cluster.raft(1).role is Role.FOLLOWER
    assert cluster.raft(1).is_removed
    assert all(cluster.raft(i).commit_index >= final_index for i in (2, 3))
    assert cluster.leader() in (2, 3), "its heir was asked to stand, and nobody waits for a timeout"


def test_of_two_members_the_leader_can_be_removed() -> None:
    """The other is left alone and leads (nebula#4472; pitfalls 44)."""
    cluster = led(2, 2)
    cluster.change(1, (REMOVE, 1))
    cluster.run(4 * ELECTION_MS)
    assert cluster.leaders() == [2]
    assert voters(cluster, 2) == (2,)
    assert isinstance(cluster.propose(2, "a"), EntryId)


def test_who_alone_holds_the_entry_that_removes_it_leads_until_it_is_committed() -> None:
    """Thesis §4.2.2, Fig. 4.6: a server outside its own newest configuration may have to stand."""
    cluster = led(2, 2)
    cluster.change(1, (REMOVE, 1))
    append_to(cluster, 1, 2)  # the joint entry is committed; the final one is in 1's log only
    cluster.flush(1)
    cluster.crash(1)
    cluster.take(lambda m: True)
    cluster.restart(1)
    assert voters(cluster, 1) == (2,)
    assert cluster.raft(2).configuration.is_joint
    cluster.run(20 * ELECTION_MS)
    assert cluster.leaders() == [2]
    assert voters(cluster, 2) == (2,)


def test_a_demoted_leader_steps_down_and_listens() -> None:
    """It gets the log from the next leader and does not stand any more."""
    cluster = led(3, 3)
    cluster.change(1, (DEMOTE, 1))
    cluster.run(10 * ELECTION_MS)
    assert cluster.leader() in (2, 3)
    assert cluster.raft(1).configuration.learners == (1,)
    assert not cluster.raft(1).is_removed
    assert cluster.terms(1) == cluster.terms(cluster.leader())
    assert not cluster.campaign(1)


# Those who left


def test_a_removed_member_learns_that_it_is_removed() -> None:
    """It is told the final entry and its commit, and is then left alone (thesis §4.2.3)."""
    cluster = led(3, 3)
    cluster.change(1, (REMOVE, 3))
    cluster.run(200)
    assert cluster.raft(3).is_removed
    leadership = cluster.raft(1).state.leadership
    assert leadership is not None
    assert (list(leadership.progress), leadership.leaving) == ([2], {})
    sent = cluster.safety.committed
    cluster.run(20 * ELECTION_MS)
    assert cluster.raft(3).term == cluster.raft(1).term == 1
    assert cluster.safety.committed == sent


def test_a_removed_member_that_can_not_be_told_is_forgotten_within_a_bound() -> None:
    """Two election timeouts after the commit nothing is sent to it any more."""
    cluster = led(3, 3)
    cluster.cut([3])
    cluster.change(1, (REMOVE, 3))
    cluster.stabilise()
    leadership = cluster.raft(1).state.leadership
    assert leadership is not None
    assert list(leadership.leaving) == [3]
    cluster.run(2 * ELECTION_MS + 100)
    assert leadership.leaving == {}


def test_a_removed_member_that_does_not_know_it_disturbs_nobody() -> None:
    """Thesis §4.2.3: stickiness and pre-votes keep it from deposing the leader (pitfalls 15)."""
    cluster = led(3, 3)
    cluster.cut([3])
    cluster.change(1, (REMOVE, 3))
    cluster.run(4 * ELECTION_MS)
    cluster.heal()
    cluster.run(20 * ELECTION_MS)
    assert (cluster.leaders(), cluster.raft(1).term) == ([1], 1)
    assert not cluster.raft(3).is_removed
    index = cluster.raft(1).configuration.index
    cluster.raft(3).on_told_removed(index, now_ms=cluster.now_ms)  # a member says so
    cluster.stabilise()
    assert cluster.raft(3).is_removed
    assert not cluster.campaign(3)


def test_a_removed_member_may_be_added_again() -> None:
    """With its log, the same id and without a restart (ClickHouse#118740; pitfalls 47)."""
    cluster = led(3, 3)
    cluster.change(1, (REMOVE, 3))
    cluster.run(200)
    cluster.propose(1, "a")
    cluster.run(200)
    cluster.change(1, (ADD, 3))
    cluster.run(500)
    assert voters(cluster, 3) == (1, 2, 3)
    assert not cluster.raft(3).is_removed
    cluster.crash(1)
    cluster.run(4 * ELECTION_MS)
    assert cluster.leader() in (2, 3)


def test_who_left_amid_a_snapshot_and_is_added_again_gets_one() -> None:
    """The transfer ended with its membership: what the leader knew of it begins anew.

    It was taken up where it had been, waiting for a snapshot that nobody sent (simulator, seed 96).
    """
    cluster = CoreCluster(3, settings=Settings(trailing_entries=0, held_bytes=0, trailing_bytes=0))
    cluster.elect(1)
    cluster.cut([3])
    cluster.propose(1, "a", "b", "c")
    cluster.stabilise()
    cluster.take_snapshot(1)
    cluster.heal()
    leadership = cluster.raft(1).state.leadership
    assert leadership is not None
    while leadership.progress[3].state is not ProgressState.SNAPSHOT:
        cluster.beat(1)
        cluster.flush(1)
        cluster.deliver(lambda m: m.dst == 3)
        cluster.flush(3)
        cluster.deliver(lambda m: m.dst == 1)
        cluster.flush(1)
    assert cluster.take(lambda m: isinstance(m, InstallSnapshot))
    cluster.cut([3])
    cluster.change(1, (REMOVE, 3))
    cluster.stabilise()
    assert list(leadership.leaving) == [3]
    cluster.heal()
    cluster.change(1, (ADD_LEARNER, 3))
    wanted: list[MemberId] = []
    while not wanted and cluster.now_ms < 5_000:
        wanted += [peer for ready in cluster.flush(1) for peer in ready.send_snapshots]
        cluster.stabilise([2, 3])
        cluster.deliver()
        if not cluster.in_flight:
            cluster.beat(1)
    assert wanted == [3]
    assert leadership.leaving == {}
    cluster.run(500)
    assert cluster.raft(3).last_id == cluster.raft(1).last_id
    assert cluster.members[3].applied == cluster.members[1].applied


def test_what_was_told_of_an_old_removal_does_not_silence_a_member_that_was_added_again() -> None:
    """The newer configuration in its own log wins, whoever says what."""
    cluster = led(3, 3)
    cluster.change(1, (REMOVE, 3))
    cluster.run(200)
    removed_at = cluster.raft(1).configuration.index
    cluster.change(1, (ADD, 3))
    cluster.run(500)
    cluster.raft(3).on_told_removed(removed_at, now_ms=cluster.now_ms)
    assert not cluster.raft(3).is_removed
    cluster.now_ms += ELECTION_MS
    assert cluster.campaign(3)


# Crashes and other leaders


def test_a_truncated_configuration_is_rolled_back() -> None:
    """§6: the one before counts again (etcd e515a67; pitfalls 42)."""
    cluster = led(3, 3)
    cluster.cut([1])
    cluster.change(1, (REMOVE, 3))
    cluster.flush(1)
    assert cluster.raft(1).configuration.is_joint
    cluster.now_ms += ELECTION_MS
    cluster.campaign(2)
    cluster.stabilise([2, 3])
    cluster.heal()
    cluster.beat(2)
    cluster.stabilise()
    assert cluster.leaders() == [2]
    assert cluster.raft(1).configuration == cluster.configuration


@pytest.mark.parametrize("heard", [(2,), (2, 3)])
def test_a_later_leader_goes_on_with_a_joint_configuration_in_its_log(
    heard: tuple[MemberId, ...],
) -> None:
    """It leaves it once an entry of its own term is committed, once (pitfalls 41, 45)."""
    cluster = led(3, 3)
    cluster.change(1, (REMOVE, 1))
    append_to(cluster, 1, *heard)
    cluster.crash(1)
    cluster.run(10 * ELECTION_MS)
    leader = cluster.leader()
    assert voters(cluster, leader) == (2, 3)
    finals = [c for c in cluster.raft(leader).state.configurations.along if c.voters == (2, 3)]
    assert [c.is_joint for c in finals] in ([True, False], [True, False, False])


def test_a_restart_finds_the_configuration_that_its_log_holds() -> None:
    """An appended one counts after the restart, too (NuRaft#67; pitfalls 41)."""
    cluster = led(3, 3)
    cluster.change(1, (REMOVE, 3))
    cluster.handle_ready(1, crash=CrashPoint.AFTER_PERSIST)
    cluster.restart(1)
    assert cluster.raft(1).configuration[:3] == ((1, 2), 2, (1, 2, 3))
    cluster.crash(2)
    cluster.restart(2)
    assert cluster.raft(2).configuration == cluster.configuration


def test_a_voter_that_does_not_know_the_candidate_judges_it_by_its_log() -> None:
    """Else those who know the change could never win without those who do not (pitfalls 43)."""
    cluster = led(4, 3)
    cluster.cut([2])
    cluster.change(1, (ADD, 4))
    cluster.run(500)
    assert voters(cluster, 4) == (1, 2, 3, 4)
    cluster.crash(1)
    cluster.heal()
    assert 4 not in cluster.raft(2).configuration.everybody
    cluster.now_ms += ELECTION_MS
    cluster.campaign(4)
    cluster.stabilise()
    assert cluster.leaders() == [4]


def test_a_learner_that_was_promoted_without_knowing_it_votes_when_it_is_asked() -> None:
    """Whether its vote counts is the candidate's to know (etcd campaign_learner_must_vote; 43)."""
    cluster = led(4, 3)
    cluster.change(1, (ADD_LEARNER, 4))
    cluster.run(500)
    cluster.change(1, (PROMOTE, 4))
    cluster.cut([4])
    cluster.stabilise()
    assert voters(cluster, 2) == (1, 2, 3, 4)
    assert cluster.raft(4).configuration.learners == (4,)
    cluster.crash(1)
    cluster.heal()
    cluster.run(10 * ELECTION_MS)
    assert cluster.leader() in (2, 3)


def test_what_the_new_ones_hold_alone_is_committed_when_the_joint_configuration_ends() -> None:
    """A slow voter that leaves does not hold up what the others have."""
    cluster = led(3, 3)
    cluster.cut([3])
    cluster.change(1, (REMOVE, 3))
    first = cluster.propose(1, "a")
    assert first is not None
    cluster.stabilise()
    assert cluster.raft(1).commit_index > first.index


def test_disjoint_majorities_are_impossible_between_consecutive_configurations() -> None:
    """§6, Fig. 10: any quorum of the old or joint one meets any of the joint or the new one."""
    old = Configuration((1, 2, 3))
    joint = Configuration((3, 4, 5), outgoing=(1, 2, 3))
    new = Configuration((3, 4, 5))
    members = range(1, 6)
    groups = [{m for m in members if mask >> m & 1} for mask in range(64)]
    for one, other in ((old, joint), (joint, joint), (joint, new)):
        for some in groups:
            if holds_quorum(some, one):
                assert not any(holds_quorum(g, other) for g in groups if not g & some)


def test_a_message_of_a_stranger_is_judged_and_its_answer_ignored() -> None:
    """A removed member's late acknowledgement or vote counts for nothing (pitfalls 30)."""
    cluster = led(3, 3)
    cluster.change(1, (REMOVE, 3))
    cluster.run(300)
    first = cluster.propose(1, "a")
    assert first is not None
    cluster.flush(1)
    cluster.take(lambda m: True)
    leadership = cluster.raft(1).state.leadership
    assert leadership is not None
    cluster.receive(AppendEntriesResponse(3, 1, 1, True, first.index, 0, 0, leadership.round))
    assert cluster.raft(1).commit_index < first.index
    cluster.receive(AppendEntriesResponse(3, 1, 9, False, 0, 1, 0, leadership.round))
    assert (cluster.raft(1).term, cluster.raft(1).role) == (1, Role.LEADER)


def test_candidates_ask_voters_and_leaders_feed_everybody() -> None:
    """Learners get appends and are asked for no votes."""
    cluster = led(3, 2)
    cluster.change(1, (ADD_LEARNER, 3))
    cluster.stabilise()
    cluster.beat(1)
    cluster.flush(1)
    assert [m.dst for m in cluster.in_flight if isinstance(m, AppendEntries)] == [2, 3]
    cluster.stabilise()
    cluster.time_out(2)
    cluster.flush(2)
    assert [m.dst for m in cluster.in_flight if isinstance(m, RequestVote)] == [1]
