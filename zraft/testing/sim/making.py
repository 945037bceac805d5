"""What one life of a simulated node is made of: the production parts, joined as a process does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zraft.core.model import Recovered
from zraft.machine.kv import KV
from zraft.node.server import Server
from zraft.storage.base import Identity, Report
from zraft.storage.snapshots import SnapshotStore
from zraft.testing.sim.bulk import SimBulk
from zraft.testing.sim.core import WatchedRaft
from zraft.testing.sim.storage import CLUSTER_ID, SimStorage, snapshot_directory
from zraft.wire_entry import EntryCodec

if TYPE_CHECKING:
    from zraft.testing.sim.node import SimNode


def open_disk(node: SimNode, report: Report) -> tuple[SimStorage, SnapshotStore]:
    """Return the log and the snapshots on a node's disk, nothing of them read yet."""
    me, segment_bytes = node.member_id, node.world.plan.segment_bytes
    identity = Identity(CLUSTER_ID, me)
    store = SnapshotStore(snapshot_directory(me), identity, files=node.disk, report=report)
    return SimStorage(me, node.disk, node.shadow, segment_bytes, report), store


def make_core(node: SimNode, recovered: Recovered) -> WatchedRaft:
    """Return the core of a node's new life."""
    raft = WatchedRaft(
        node.member_id,
        recovered,
        settings=node.world.plan.settings,
        codec=EntryCodec(),
        random=node.draws,
        now_ms=node.clock.local_ms(node.local_us),
    )
    raft.node = node
    return raft


def make_server(
    node: SimNode, raft: WatchedRaft, storage: SimStorage, store: SnapshotStore
) -> Server:
    """Join everything; the node itself is network, clients and telemetry of its server."""
    return Server(
        raft=raft,
        storage=storage,
        store=store,
        peers=node,
        bulk=SimBulk(node),
        machine=KV(),
        replies=node,
        forwards=node,
        report=node.report,
        on_notice=node.on_notice,
        clock_ns=node.clock_ns,
        limits=node.world.plan.limits,
    )
