"""Disks that are lost for good, and the operators' answer to it (thesis §4.4, read backwards).

A member whose disk is gone has forgotten its votes and its entries. The production code refuses to
start on what is left of it; its id never runs again, and the operators take it out and a spare in,
in one change, as `replace` does. The spare is filled by log or snapshot and gets its vote as every
learner does.

*What a loss may cost.* A lost member never votes again, so to Raft it is a member that is down:
nothing that contradicts what is committed can be committed, however many are lost, and all goes on
as long as a majority of each configuration that may come to count keeps its disk. Without that
majority the cluster stands still for ever, which proves nothing. So a disk is lost only

    while no change is under way      nobody holds a configuration that may still be committed
    and no lost member is left        in the newest configuration: one at a time
    and a majority of the rest        of its voters is one of all of them
    and a spare is there              to take its place

*What must hold then.* An entry is committed once a majority acknowledged it, and whoever of them is
lost afterwards held it to its end: so a lost disk counts, for the rule "durable on a majority", as
what it held when it was lost, and as nothing else. That is enough: those who lack the entry are
fewer than a majority, and the lost ones vote for nobody. And whenever a disk is lost, all that is
committed is on a majority less one of the voters, on disks that are still there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zraft.core.membership import is_member
from zraft.core.model import ChangeKind, Configuration, MemberChange, MemberId, MemberInfo
from zraft.testing.sim.trace import Violation

if TYPE_CHECKING:
    from zraft.testing.sim.draws import Draws
    from zraft.testing.sim.node import SimNode
    from zraft.testing.sim.world import World


class Wipes:
    """See the module."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.held: dict[MemberId, list[int]] = {}
        """By lost member: the terms of the entries that were on its disk, from index 1 on."""
        self._instead: set[MemberId] = set()  # took the place of a lost one, and has no vote yet

    def may_strike(self, member: MemberId) -> bool:
        """Return whether this member's disk may be lost now; see the module."""
        world = self._world
        newest = world.members.newest
        voters = newest.voters
        if newest.is_joint or newest.joining or world.members.is_changing():
            return False
        if member not in voters or self.lost_of(newest):
            return False
        keep = sum(voter != member for voter in voters)
        return 2 * keep > len(voters) and bool(self._spares(newest))

    def strike(self, node: SimNode) -> None:
        """Let a member lose its disk, and its process with it.

        Raises:
            Violation: something that is committed is on too few of the disks that are left.
        """
        world = self._world
        world.marks.reach("node_wiped")
        count = len(node.shadow.terms)
        world.trace.step(world.agenda.now_us, f"wipe {node.member_id}  # {count} entries")
        self.held[node.member_id] = node.shadow.terms
        node.lose_disk()
        index = world.invariants.committed_index
        if index:
            self._check_left(node, index, world.invariants.committed_terms(index)[-1])

    def _check_left(self, gone: SimNode, index: int, term: int) -> None:
        """The last committed entry is left; whoever holds it holds all before it (Log Matching)."""
        nodes, voters = self._world.nodes, self._world.members.newest.voters
        left = [voter for voter in voters if _holds(nodes[voter].shadow.terms, index, term)]
        if 2 * (len(left) + 1) <= len(voters):
            raise Violation(
                f"{gone.member_id} of {voters} lost its disk, and {index}/{term}, which is "
                f"committed, is left on {left} only"
            )

    def lost_of(self, configuration: Configuration) -> list[MemberId]:
        """Return the members of a configuration whose disks are lost."""
        return [member for member in configuration.everybody if member in self.held]

    def lost_holders(self, index: int, term: int) -> list[MemberId]:
        """Return the lost members that had an entry on disk when they were lost."""
        return [member for member, terms in self.held.items() if _holds(terms, index, term)]

    # How the operators answer

    def living(self) -> tuple[MemberId, ...]:
        """Return the members, and the spare ones, whose disks are there."""
        return tuple(member for member in self._world.ids if member not in self.held)

    def draw_replacement(self, draws: Draws, configuration: Configuration) -> list[MemberChange]:
        """Return the change that takes a lost member out and a spare in, [] when there is none.

        The spare takes over the name of the one that it replaces, as in production.
        """
        lost, spares = self.lost_of(configuration), self._spares(configuration)
        if not lost or not spares:
            return []
        out = MemberInfo(lost[0], f"n{lost[0]}")
        spare = MemberInfo(draws.pick(spares), out.name)
        return [MemberChange(ChangeKind.ADD, spare), MemberChange(ChangeKind.REMOVE, out)]

    def _spares(self, configuration: Configuration) -> list[MemberId]:
        return [member for member in self.living() if not is_member(configuration, member)]

    def on_committed(self, old: Configuration, new: Configuration) -> None:
        """A configuration was committed after another one: who takes whose place?"""
        stay = {*new.voters, *new.learners}
        if any(member not in stay for member in self.lost_of(old)):
            self._instead |= {member for member in stay if not is_member(old, member)}
        self._instead &= stay
        for member in sorted(self._instead.intersection(new.voters)):
            self._instead.discard(member)
            self._world.marks.reach("wiped_replaced")
            self._world.trace.step(self._world.agenda.now_us, f"replaced  # {member} has its vote")


def _holds(terms: list[int], index: int, term: int) -> bool:
    return index <= len(terms) and terms[index - 1] == term
