"""Clusters of bare cores for the tests of membership."""

from __future__ import annotations

from zraft.core.model import ChangeKind, MemberId, Settings
from zraft.testing.core_cluster import CoreCluster

ADD, ADD_LEARNER = ChangeKind.ADD, ChangeKind.ADD_LEARNER
PROMOTE, DEMOTE, REMOVE = ChangeKind.PROMOTE, ChangeKind.DEMOTE, ChangeKind.REMOVE
ELECTION_MS = Settings().election_max_ms


def led(members: int, voters: int, leader: MemberId = 1) -> CoreCluster:
    """Return a cluster of which the first `voters` vote, led by `leader`, who has committed."""
    cluster = CoreCluster(members, voters=range(1, voters + 1))
    cluster.elect(leader)
    assert cluster.raft(leader).commit_index == 1
    return cluster


def voters(cluster: CoreCluster, member_id: MemberId) -> tuple[MemberId, ...]:
    """Return who votes by a member's newest configuration, which must not be joint."""
    configuration = cluster.raft(member_id).configuration
    assert not configuration.is_joint
    return configuration.voters


def append_to(cluster: CoreCluster, leader: MemberId, *receivers: MemberId) -> None:
    """Let the leader persist and send; only `receivers` hear it and answer, all else is lost."""
    cluster.flush(leader)
    cluster.deliver(lambda m: m.dst in receivers)
    for member_id in receivers:
        cluster.flush(member_id)
    cluster.take(lambda m: m.dst != leader)
    cluster.deliver(lambda m: m.dst == leader)
