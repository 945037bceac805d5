"""What a node says of itself: the values of `NodeStatus`, gathered where they are.

It owns nothing and changes nothing. Every value is this node's own view at one moment of its loop;
two nodes may disagree, and showing that is what `cluster status` is for. Member ids become names
here. Instants leave as CLOCK_MONOTONIC of the host, which all its processes share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from zraft import clock
from zraft.api import (
    STALENESS_UNKNOWN_MS,
    FaultRule,
    FaultStatus,
    NodeStatus,
    PeerStatus,
    WhoamiReply,
)
from zraft.core.model import NOBODY, MemberId, Role
from zraft.core.raft import Raft
from zraft.core.state import FAR_MS
from zraft.machine.replica import Replica
from zraft.node.reading import Reading
from zraft.node.snapshotting import Snapshots
from zraft.storage.base import StorageStats
from zraft.transport.links import Fault


class StatusServer(Protocol):
    """What is asked of `Server`."""

    @property
    def raft(self) -> Raft: ...
    @property
    def applied_index(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def parked(self) -> int: ...
    @property
    def replica(self) -> Replica: ...
    @property
    def reading(self) -> Reading: ...
    @property
    def snapshots(self) -> Snapshots: ...


class StatusPeers(Protocol):
    """What is asked of the peer sockets."""

    def connected(self, peer: MemberId) -> bool: ...
    def counters(self) -> Mapping[str, int]: ...


class Counted(Protocol):
    """Somebody who counts, by dotted names that nobody else uses."""

    def counters(self) -> Mapping[str, int]: ...


@dataclass(frozen=True, slots=True)
class StatusSources:
    """Where the values come from."""

    whoami: WhoamiReply
    server: StatusServer
    revision: Callable[[], int]  # of the built-in store, 0 of another machine
    peers: StatusPeers
    faults: Callable[[], list[Fault]]
    rule_of: Callable[[Fault], FaultRule | None]
    storage_stats: Callable[[], StorageStats]
    counters: Sequence[Counted]
    dropped_lines: Callable[[], int]
    name_of: Callable[[MemberId], str]
    started_ms: int


def node_status(sources: StatusSources, now_ms: int) -> NodeStatus:
    """Return this node's view of itself and of the cluster."""
    whoami, server, raft = sources.whoami, sources.server, sources.server.raft
    state, leadership = raft.state, raft.state.leadership
    staleness_ms = server.reading.staleness_ms(now_ms)
    configuration, newest = state.configuration, raft.snapshot
    return NodeStatus(
        name=whoami.name,
        member_id=whoami.member_id,
        cluster_id=whoami.cluster_id,
        pid=whoami.pid,
        incarnation=whoami.incarnation,
        version=whoami.version,
        role=raft.role.value,
        term=raft.term,
        voted_for=_name(sources, state.voted_for),
        leader=_name(sources, raft.leader_id),
        commit=raft.commit_index,
        applied=server.applied_index,
        last_index=raft.last_id.index,
        last_term=raft.last_id.term,
        persisted_index=state.log.persisted_index,
        timer_ms=_timer_ms(raft, now_ms),
        last_contact_ms=_last_contact_ms(raft, now_ms),
        uptime_ms=now_ms - sources.started_ms,
        state_hash=f"{server.replica.digest():016x}",
        revision=sources.revision(),
        leader_since_mono_ns=None
        if leadership is None
        else _mono_ns(leadership.started_ms, now_ms),
        election_started_mono_ns=(
            None if leadership is None else _mono_ns(state.campaign_started_ms, now_ms)
        ),
        waiting=server.waiting,
        parked=server.parked,
        peers=[_peer_status(sources, peer, now_ms) for peer in state.peers],
        faults=[_fault_status(sources, fault, now_ms) for fault in sources.faults()],
        counters=_counters(sources),
        transfer_to=_name(sources, raft.transfer_to),
        lease_ms=raft.lease_left_ms(now_ms) or None,
        staleness_ms=None if staleness_ms == STALENESS_UNKNOWN_MS else staleness_ms,
        config_index=configuration.index,
        config_committed=configuration.index <= state.commit_index,
        voters=_names(sources, configuration.voters),
        outgoing=_names(sources, configuration.outgoing),
        learners=_names(sources, configuration.learners),
        joining=_names(sources, configuration.joining),
        removed=raft.is_removed,
        sessions=len(server.replica.sessions),
        first_index=raft.first_index,
        snapshot_index=0 if newest is None else newest.index,
        snapshot_term=0 if newest is None else newest.term,
        snapshot_bytes=0 if newest is None else newest.size_bytes,
        snapshot_taking=server.snapshots.is_taking,
        snapshot_failure=server.snapshots.failure,
    )


def _name(sources: StatusSources, member: MemberId) -> str | None:
    return None if member == NOBODY else sources.name_of(member)


def _names(sources: StatusSources, members: Sequence[MemberId]) -> list[str]:
    return sorted(map(sources.name_of, members))


def _timer_ms(raft: Raft, now_ms: int) -> int | None:
    deadline_ms = raft.state.election_deadline_ms
    if raft.role is Role.LEADER or deadline_ms == FAR_MS:
        return None
    return max(0, deadline_ms - now_ms)


def _last_contact_ms(raft: Raft, now_ms: int) -> int | None:
    contact_ms = raft.state.leader_contact_ms
    if raft.role is Role.LEADER or contact_ms is None:
        return None
    return max(0, now_ms - contact_ms)


def _mono_ns(then_ms: int, now_ms: int) -> int:
    """Return the CLOCK_MONOTONIC of an instant of the loop's clock, good to a millisecond."""
    return clock.monotonic_ns() - (now_ms - then_ms) * 1_000_000


def _peer_status(sources: StatusSources, peer: MemberId, now_ms: int) -> PeerStatus:
    name, connected = sources.name_of(peer), sources.peers.connected(peer)
    state = sources.server.raft.state
    configuration, leadership = state.configuration, state.leadership
    identity = PeerStatus(
        name=name,
        connected=connected,
        member_id=f"{peer:016x}",
        voter=peer in configuration.electorate,
        joining=peer in configuration.joining,
    )
    if leadership is None:
        return identity
    progress = leadership.progress[peer]
    transfer = sources.server.snapshots.sending.find(peer)
    return msgspec.structs.replace(
        identity,
        contact_ms=max(0, now_ms - progress.last_contact_ms),
        state=progress.state.value,
        match_index=progress.match_index,
        next_index=progress.next_index,
        inflight=len(progress.inflights),
        snapshot_offset=None if transfer is None else transfer.acked,
        snapshot_bytes=None if transfer is None else transfer.meta.size_bytes,
    )


def _fault_status(sources: StatusSources, fault: Fault, now_ms: int) -> FaultStatus:
    return FaultStatus(
        kind=fault.kind,
        peers=sorted(sources.name_of(peer) for peer in fault.peers),
        hits=fault.hits,
        left_ms=None if fault.until_ms is None else max(0, fault.until_ms - now_ms),
        id=fault.fault_id,
        rule=sources.rule_of(fault),
    )


def _counters(sources: StatusSources) -> dict[str, int]:
    stats = sources.storage_stats()
    counted = {name: n for source in sources.counters for name, n in source.counters().items()}
    return {
        **counted,
        **{f"peer.{name}": n for name, n in sources.peers.counters().items()},
        "telemetry.dropped_lines": sources.dropped_lines(),
        "storage.syncs": stats.syncs,
        "storage.last_sync_us": stats.last_sync_us,
        "storage.max_sync_us": stats.max_sync_us,
        "storage.bytes_written": stats.bytes_written,
        "storage.segments": stats.segments,
        "storage.repaired_bytes": stats.repaired_bytes,
    }
