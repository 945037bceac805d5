"""The bulk lanes of a simulated node: the same links as its other messages, and no promises."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zraft.core.messages import InstallSnapshot
from zraft.core.model import MemberId

if TYPE_CHECKING:
    from zraft.testing.sim.node import SimNode


class SimBulk:
    """Satisfies `Bulk`. A lane that is not open takes nothing; a renewed one loses nothing."""

    def __init__(self, node: SimNode) -> None:
        self._node = node
        self._open: set[MemberId] = set()

    def open(self, peer: MemberId) -> None:
        """Let chunks leave to a peer."""
        self._open.add(peer)

    def send(self, chunk: InstallSnapshot) -> bool:
        """Put a chunk on its way; False without a lane."""
        if chunk.dst not in self._open:
            return False
        self._node.send([chunk])
        return True

    def renew(self, peer: MemberId) -> None:
        """A connection made anew is no better here: links lose as they did."""
        assert peer in self._open

    def shut(self, peer: MemberId) -> None:
        """Let no more chunks leave."""
        self._open.discard(peer)

    def receive(self, limit: int) -> list[InstallSnapshot]:
        """A simulated node is given its chunks with its messages."""
        raise AssertionError("the simulated loop reads the inbox itself")
