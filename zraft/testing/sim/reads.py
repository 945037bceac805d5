"""What reads promise beside their values, and who may hand leadership over to whom.

    lease          while a leader's lease holds, by its own clock, nobody leads a later term; so at
                   most one node can serve under a lease at any moment
    after a        no lease in a term in which a TimeoutNow was sent; and it is sent only to one
    TimeoutNow     whose disk holds the leader's whole log
    lease read     sees everything that anybody knows to be committed when it is judged
    stale read     with a bound: sees everything that was committed so long before as it says, and
                   says no more than the bound

Clocks drift by up to 5 % here, two of them by 10 %: what a lease trusts. So a node measures 1 ms as
up to 1.06 ms of the world.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from zraft.api import Consistency, Reply
from zraft.core.messages import TimeoutNow
from zraft.core.model import EntryId
from zraft.core.notices import LeaseDropped, Notice, TransferEnded
from zraft.testing.sim.trace import Violation

if TYPE_CHECKING:
    from zraft.testing.sim.history import Operation
    from zraft.testing.sim.node import SimNode
    from zraft.testing.sim.world import World

DRIFT = 1.06
ROUNDING_US = 2_000  # clocks are read in whole milliseconds


class ReadChecks:
    """See the module."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._times_us: list[int] = [0]
        self._indices: list[int] = [0]

    def on_committed(self, index: int) -> None:
        """Everything up to `index` is known to be committed from now on."""
        self._times_us.append(self._world.agenda.now_us)
        self._indices.append(index)

    def committed_at(self, time_us: int) -> int:
        """Return what was known to be committed at a moment."""
        return self._indices[max(0, bisect_right(self._times_us, time_us) - 1)]

    # Leases

    def on_turn(self, node: SimNode) -> None:
        """A node finished a turn: look at its lease, and at others' if it leads since."""
        state, server = node.raft.state, node.server
        if state.leadership is None:
            return
        if state.leadership.transfer is not None and server is not None and server.parked:
            self._world.marks.reach("write_waited_for_transfer")
        if not state.settings.lease:
            return
        leaders = self._world.leaders()
        for old in leaders:
            leadership = old.raft.state.leadership
            gave_up = leadership is not None and leadership.sent_timeout_now
            term = old.raft.state.term
            later = len(leaders) > 1 and [n.member_id for n in leaders if n.raft.state.term > term]
            # Whoever is the last to lead, and leads on, may have a lease or not: no need to look.
            if (gave_up or later) and self._has_lease(old):
                why = f"{later} lead later terms" if later else "it sent TimeoutNow"
                raise Violation(f"{old.member_id} has a lease, and {why}")

    def _has_lease(self, node: SimNode) -> bool:
        """Return whether a leader would serve under its lease now."""
        now_ms = node.clock.local_ms(self._world.agenda.now_us)
        return node.raft.lease_left_ms(now_ms) > 0

    def on_lease_read(self, node: SimNode, index: int) -> None:
        """A leader answers without asking: it must see all that anybody knows to be committed."""
        committed = self._world.invariants.committed_index
        if index < committed:
            raise Violation(f"{node.member_id} serves a lease read at {index} of {committed}")
        self._world.marks.reach("lease_read")

    # Stale reads

    def floor_of(self, operation: Operation, reply: Reply) -> int:
        """Return the index that an answered read has to see at least."""
        if operation.consistency != Consistency.STALE:
            if operation.consistency == Consistency.LINEARIZABLE and reply.member_id:
                follower = reply.leader not in (0, reply.member_id)
                if operation.kind == "get" and follower:
                    self._world.marks.reach("follower_read")
            return operation.floor
        if not operation.bound_ms:
            return 0
        if reply.staleness_ms > operation.bound_ms:
            raise Violation(f"{reply.staleness_ms} ms stale, bound {operation.bound_ms} ms")
        if reply.staleness_ms:
            self._world.marks.reach("stale_read_by_proof")
        age_us = int(reply.staleness_ms * DRIFT * 1000) + ROUNDING_US
        return self.committed_at(operation.invoke_us - age_us)

    # Transfers

    def check_target(self, node: SimNode, message: TimeoutNow) -> None:
        """A leader asks somebody to stand, whose disk must hold all that it holds itself."""
        state, theirs = node.raft.state, self._world.nodes[message.dst].shadow.terms
        last = state.log.last_id
        if state.me not in state.configuration.voters:
            # It leaves, and what it did not commit may be lost.
            last = EntryId(state.commit_index, state.log.term(state.commit_index) or 0)
        if len(theirs) < last.index or theirs[last.index - 1] != last.term:
            raise Violation(
                f"{node.member_id} tells {message.dst} to stand, which lacks entries up to {last}"
            )

    def on_notice(self, notice: Notice) -> None:
        """The core reported a fact."""
        reach = self._world.marks.reach
        if type(notice) is TransferEnded:
            reach("transfer_done" if notice.outcome == "done" else "transfer_given_up")
        elif type(notice) is LeaseDropped:
            reach("lease_dropped")
