"""What operators do to a cluster, done at random: members change, leadership moves, snapshots.

None of it breaks anything, and all of it has to go on while other kinds break things. So a refusal
or a lack of time is no news here: a change that could not be made now counts as not made.
"""

from __future__ import annotations

import contextlib

from zraft import clock
from zraft.api import Accepted, TakeSnapshot
from zraft.client.conditions import leadership
from zraft.errors import ZraftError
from zraft.testing.checkrun.field import ASK_MS, Field, Strike

CHANGE_MS = 4_000
LASTS_MS = (500, 2_500)


class Membership:
    """Demotes a voter for a while, or adds a node and removes it again."""

    def __init__(self) -> None:
        self._added: dict[int, str] = {}  # of strikes, by their beginnings

    def strike(self, field: Field) -> Strike | None:
        """Begin one change through the log; None: it was refused, or took too long."""
        for_ms, began_ns = field.rng.randint(*LASTS_MS), clock.monotonic_ns()
        adds = field.rng.random() < 0.5
        try:
            left = [name for name in field.cluster.reload().names if name not in field.names]
            if left:  # an addition that was cut short, or a removal that could not be made
                field.cluster.remove_node(left[0], purge=True, timeout_ms=CHANGE_MS)
                return Strike("membership", left[:1], f"remove {left[0]}", began_ns, clock.now_ms())
            if adds:
                added = field.cluster.add_node(wait=False, timeout_ms=CHANGE_MS)
                self._added[began_ns] = name = added.name
                what = f"add {name}, remove it after {for_ms}ms"
            else:
                name = field.rng.choice(field.names)
                field.cluster.demote(name, timeout_ms=CHANGE_MS)
                what = f"demote {name} for {for_ms}ms"
        except ZraftError:
            return None
        return Strike("membership", [name], what, began_ns, clock.now_ms() + for_ms)

    def undo(self, field: Field, strike: Strike) -> None:
        """Make the opposite change. One that can't be made now leaves a cluster that is as good."""
        name = self._added.pop(strike.began_ns, None)
        with contextlib.suppress(ZraftError):
            if name is not None:
                field.cluster.remove_node(name, purge=True, timeout_ms=CHANGE_MS)
            elif strike.what.startswith("demote"):
                field.cluster.promote(strike.nodes[0], wait=False, timeout_ms=CHANGE_MS)


class Transfer:
    """Hands leadership to another voter."""

    def strike(self, field: Field) -> Strike | None:
        """Do it; None when nobody leads, or it was given up."""
        began_ns = clock.monotonic_ns()
        try:
            change = field.cluster.transfer_leadership(timeout_ms=CHANGE_MS)
        except ZraftError:
            return None
        what = f"leadership to {change.leader}"
        nodes = [] if change.leader is None else [change.leader]
        return Strike("transfer", nodes, what, began_ns, clock.now_ms())

    def undo(self, field: Field, strike: Strike) -> None:
        """Do nothing: somebody leads."""


class Snapshot:
    """Asks a node for a snapshot now, the leader every other time."""

    def strike(self, field: Field) -> Strike | None:
        """Do it; None when the node is away, or has nothing new."""
        began_ns = clock.monotonic_ns()
        seen = leadership(field.cluster.statuses(timeout_ms=ASK_MS))
        leader = None if seen is None else seen.leader
        wants_leader = leader is not None and field.rng.random() < 0.5
        name = leader if wants_leader and leader is not None else field.rng.choice(field.names)
        try:
            reply = field.cluster.ask(name, TakeSnapshot(), timeout_ms=ASK_MS)
        except ZraftError:
            return None
        if not isinstance(reply, Accepted):
            return None
        what = f"snapshot of {name} at {reply.index}"
        return Strike("snapshot", [name], what, began_ns, clock.now_ms())

    def undo(self, field: Field, strike: Strike) -> None:
        """Do nothing: a snapshot stays."""
