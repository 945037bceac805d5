"""What must hold of snapshots, and which of their situations a run has reached.

A snapshot stands for the canon up to its index: nobody applies it in part, goes back to an older
one, drops what follows it in a log that agrees, or says that it is installed before it is durable.
That its state is the right one shows in the digest, which every node must have at one index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zraft.core.messages import InstallSnapshotResponse
from zraft.core.model import SnapshotMeta
from zraft.core.notices import LogCompacted, Notice, SnapshotIgnored, SnapshotInstalled
from zraft.testing.sim.trace import Violation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zraft.testing.sim.node import SimNode
    from zraft.testing.sim.world import World

MARKS = {
    "snapshot.taken": "snapshot_taken",
    "snapshot.send_resumed": "snapshot_resumed",
    "snapshot.send_ended": "snapshot_given_up",
    "snapshot.failed": "snapshot_refused",
    "snapshot.refused": "snapshot_refused",
}
FAILURES = {"snapshot.failed", "snapshot.refused", "snapshot.damaged"}


class SnapshotWatch:
    """See the module. `terms` are those of the canon, which grows."""

    def __init__(self, world: World, terms: Sequence[int]) -> None:
        self._world = world
        self._terms = terms

    def check_restored(
        self, node: SimNode, meta: SnapshotMeta, *, handed: int, log: Sequence[int]
    ) -> None:
        """A node's state and log are replaced; `log` are the terms that its log held.

        Raises:
            Violation: that takes something back, or is not what was committed.
        """
        index, me = meta.index, node.member_id
        if index > len(self._terms) or self._terms[index - 1] != meta.term:
            raise Violation(f"{me} installs a snapshot of {meta.last_id}, never committed")
        if index <= handed:
            raise Violation(f"{me} rolls back from {handed} to a snapshot of {index}")
        if index <= len(log) and log[index - 1] == meta.term:
            raise Violation(f"{me} drops what follows {meta.last_id} in its log, for a snapshot")

    def check_answer(self, node: SimNode, answer: InstallSnapshotResponse) -> None:
        """A node says that it has everything up to an index: it must be durable there."""
        index, shadow = answer.last_included_index, node.shadow
        if answer.installed and shadow.terms[:index] != self._terms[:index]:
            raise Violation(f"{node.member_id} says that {index} is installed; it is not durable")

    def on_report(self, node: SimNode, event: str) -> None:
        """A node reported an event; without a fault of the disk no snapshot fails.

        Raises:
            Violation: one did.
        """
        if event in FAILURES:
            if not node.fuse.error:
                raise Violation(f"{node.member_id}: {event}, and nothing was wrong")
            node.fuse.error = False
        mark = MARKS.get(event)
        if mark is not None:
            self._world.marks.reach(mark)

    def on_notice(self, notice: Notice) -> None:
        """The core reported a fact."""
        match notice:
            case LogCompacted():
                self._world.marks.reach("log_compacted")
            case SnapshotInstalled():
                self._world.marks.reach("snapshot_installed")
            case SnapshotIgnored():
                self._world.marks.reach("snapshot_not_needed")
            case _:
                pass
