"""The contract of the peer transport, and why it may be so weak.

Raft's messages are idempotent and carry term and index: they may be lost, doubled, reordered and
late. So sending never blocks, never raises, never queues in Python, and never tells whether it
worked. What the transport does promise:

- a message that `receive` returns was sent by the member it names, to this member, in this cluster,
  and not by an older life of that member's process or lane (staleness filter on (incarnation,
  epoch), never on seq: or duplicates and reordering could not be tested);
- `downs` reports a peer only when its endpoint refused a connection, which a living process never
  does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from zraft.core.messages import InstallSnapshot, Message
from zraft.core.model import MemberId


class Lane:
    """Numbers of the lanes. The bulk lane carries chunks of snapshots, and nothing else."""

    PEER = 0
    BULK = 1


class PeerDown(NamedTuple):
    """A peer's endpoint refused a raw connect: the process of that incarnation is gone."""

    peer: MemberId
    incarnation: int


class Peers(Protocol):
    """One-way lanes to every other member."""

    def send(self, messages: Sequence[Message]) -> None:
        """Hand each message to the lane of its `dst`; what can't leave now is dropped, counted."""
        ...

    def receive(self, limit: int) -> list[Message]:
        """Return messages that passed every check, out of at most `limit` frames read."""
        ...

    def downs(self) -> list[PeerDown]:
        """Return the peers found dead since the last call."""
        ...


class Bulk(Protocol):
    """Lanes for chunks of snapshots, apart from the others, so that no heartbeat waits for one.

    A lane exists only between `open` and `shut`, while a transfer runs. Like the others it promises
    nothing: the answers, which go over the lane of the peers, tell what arrived. Unlike the others
    it says whether a chunk left, as whoever sends it has it on disk and can try again.
    """

    def open(self, peer: MemberId) -> None:
        """Start connecting to a peer's bulk socket; nothing happens when the lane is there."""
        ...

    def send(self, chunk: InstallSnapshot) -> bool:
        """Hand a chunk to the lane of its `dst`; False when it can't leave now. Never blocks."""
        ...

    def renew(self, peer: MemberId) -> None:
        """Connect anew: chunks left, and no answer came for too long."""
        ...

    def shut(self, peer: MemberId) -> None:
        """End the lane; what has not left is lost. Nothing happens when there is none."""
        ...

    def receive(self, limit: int) -> list[InstallSnapshot]:
        """Return chunks that passed every check, out of at most `limit` frames read."""
        ...
