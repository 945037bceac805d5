"""The production core, watched: the only hook that the simulator has inside a `Server`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zraft.core.raft import Raft
from zraft.core.ready import Ready

if TYPE_CHECKING:
    from zraft.testing.sim.node import SimNode


class WatchedRaft(Raft):
    """The production core, and somebody who sees each Ready before it is handled."""

    __slots__ = ("node",)
    node: SimNode

    def ready(self) -> Ready | None:
        """Return what `Raft.ready` returns."""
        ready = Raft.ready(self)  # in every turn: super() costs a call
        if ready is not None:
            self.node.on_ready(ready)
        return ready

    def read(self, *, now_ms: int) -> int | None:
        """Return what `Raft.read` returns."""
        read_id = super().read(now_ms=now_ms)
        if read_id is not None:
            self.node.world.invariants.on_read_asked(self.node, read_id)
        return read_id

    def lease_read(self, *, now_ms: int) -> int | None:
        """Return what `Raft.lease_read` returns."""
        index = super().lease_read(now_ms=now_ms)
        if index is not None:
            self.node.world.reads.on_lease_read(self.node, index)
        return index
