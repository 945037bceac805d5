"""Membership in a simulated world: operators that change it, and what must hold meanwhile.

    safety     what is committed is on a majority of each part of the configuration in force
    one step   each committed configuration follows from the one before: joint first, then its end
    one time   a leader has at most one that is not committed
    who leads  only somebody with a vote in a configuration that counts, or may still count

Majorities are counted here by hand: a check must not trust the arithmetic that it checks.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from zraft.core.changes import ChangeRefused
from zraft.core.configurations import Configurations
from zraft.core.membership import is_member
from zraft.core.messages import RequestVote
from zraft.core.model import (
    ChangeKind,
    Configuration,
    EntryType,
    MemberChange,
    MemberId,
    MemberInfo,
    Role,
)
from zraft.core.notices import (
    ConfigCommitted,
    ConfigRolledBack,
    MemberDemoted,
    MemberPromoted,
    MemberRemoved,
    Notice,
    RoleChanged,
)
from zraft.core.state import RaftState
from zraft.testing.sim.trace import Violation
from zraft.wire_entry import Entry, decode_configuration

if TYPE_CHECKING:
    from zraft.testing.sim.draws import Draws
    from zraft.testing.sim.node import SimNode
    from zraft.testing.sim.world import World

_CONFIG = int(EntryType.CONFIG)  # plain numbers: comparing with an enum's member is slower


REPLACE_GAP_US = 20_000
"""Mean, between attempts to replace a lost member at the end of a run."""


class MemberChecks:
    """What has been seen of the configurations of one world; see the module."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._committed = [world.base]
        self._appended: list[Configuration] = []  # by anybody, committed later or not

    @property
    def newest(self) -> Configuration:
        """The newest configuration that anybody knows to be committed."""
        return self._committed[-1]

    def on_appended(self, configurations: Sequence[Configuration]) -> None:
        """A node is about to store configurations, and may have told of them already."""
        self._appended += configurations

    def is_changing(self) -> bool:
        """Return whether somebody holds a configuration that may still be committed.

        One that was replaced counts, too, until something else is committed in its place.
        """
        known = [*self._appended, *(node.raft.configuration for node in self._world.up())]
        committed_index = self._world.invariants.committed_index
        return any(configuration.index > committed_index for configuration in known)

    # The committed log

    def on_committed(self, index: int, entry: Entry) -> None:
        """An entry became part of the committed log."""
        if entry.type != _CONFIG:
            return
        new, old = decode_configuration(entry.body)._replace(index=index), self._committed[-1]
        if old.is_joint:
            follows = new.voters == old.voters and not new.is_joint
        elif new.is_joint:
            follows = new.outgoing == old.voters != new.voters
        else:
            follows = new.voters == old.voters
        if not follows:
            raise Violation(f"{new} is committed after {old}")
        self._committed.append(new)
        self._world.wipes.on_committed(old, new)

    def check_held(
        self, index: int, term: int, holders: Collection[MemberId], along: Configurations
    ) -> None:
        """An entry is committed by a node that knows the configurations `along` its log.

        In force was the newest one at that index, or, for an entry before it, the next: the change
        after that begins only when this one is committed.
        """
        at, *later = along.since(index)
        in_force = [at] if at.index == index else [at, *later[:1]]
        if not any(_decides(holders, configuration) for configuration in in_force):
            raise Violation(
                f"{index}/{term} is committed, and durable on {holders} only; in force: {in_force}"
            )

    def check_still_held(self, index: int, term: int, holders: Collection[MemberId]) -> None:
        """A disk overwrote entries: one that is committed must still be where it counts."""
        newest = self.newest
        in_force = [newest]
        if index > newest.index:
            in_force += [one for one in self._appended if one.index > newest.index]
        if not any(_decides(holders, configuration) for configuration in in_force):
            raise Violation(f"{index}/{term} was committed, and is durable on {holders} only now")

    # Leaders

    def check_leader(self, node: SimNode, state: RaftState) -> None:
        """A leader finished a turn."""
        if state.configuration.index <= state.commit_index:
            return  # the newest is committed, and with it all before it
        uncommitted = [c for c in state.configurations.along if c.index > state.commit_index]
        leadership = state.leadership
        assert leadership is not None
        if len(uncommitted) > 1 and state.commit_index >= leadership.noop_index:
            raise Violation(f"{node.member_id} leads with two changes under way: {uncommitted}")

    def check_elected(self, node: SimNode, state: RaftState) -> None:
        """Somebody leads a term for the first time."""
        counting = state.configurations.since(state.commit_index)
        if not any(state.me in configuration.electorate for configuration in counting):
            raise Violation(f"{node.member_id} leads term {state.term} without a vote")
        if state.configuration.index > state.commit_index:
            self._world.marks.reach("config_inherited")

    # Marks

    def on_notice(self, notice: Notice) -> None:
        """The core of a node reported a fact."""
        reach = self._world.marks.reach
        match notice:
            case ConfigCommitted(outgoing=(_, *_)):
                reach("joint_committed")
            case ConfigRolledBack():
                reach("config_rolled_back")
            case MemberPromoted():
                reach("learner_promoted")
            case MemberDemoted():
                reach("voter_demoted")
            case MemberRemoved():
                reach("member_removed")
            case RoleChanged(old="leader", reason="removed" | "demoted"):
                reach("leader_removed")
            case _:
                pass


def _decides(holders: Collection[MemberId], configuration: Configuration) -> bool:
    return all(
        2 * sum(voter in holders for voter in voters) > len(voters)
        for voters in (configuration.voters, configuration.outgoing)
        if voters
    )


class Operators:
    """They add, promote, demote, remove and replace members, whenever the plan says so."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._draws = world.draws("operators")
        self.active = False
        self.begun = 0
        self._gap_us = world.plan.change_gap_us
        self._ends = False

    def start(self) -> None:
        """Begin to change things, if the plan has a pace for it."""
        self.active = self._gap_us > 0
        if self.active:
            self._plan_next()

    def end(self) -> None:
        """Begin no more changes, but those without which a lost member stays a member."""
        self.active = bool(self._world.wipes.held)
        if self.active:
            self._gap_us, self._ends = REPLACE_GAP_US, True
            self._plan_next()

    def _plan_next(self) -> None:
        gap_us = 1 + self._draws.exponential(self._gap_us)
        self._world.agenda.after(gap_us, self._act)

    def _act(self, _: None) -> None:
        if not self.active:
            return
        leader = self._world.leader()
        agenda = self._world.agenda
        if leader is not None and not leader.paused and leader.busy_us <= agenda.now_us:
            self._change(leader)
            agenda.events += 1
        self._plan_next()

    def _change(self, leader: SimNode) -> None:
        """Ask a leader for a change that makes sense, in its eyes.

        While a lost member is one of its members, nothing but its replacement does: any other
        change may take a vote from those who keep the cluster going.
        """
        world, raft = self._world, leader.raft
        wipes = world.wipes
        steps = wipes.draw_replacement(self._draws, raft.configuration)
        if not steps and not self._ends and not wipes.lost_of(world.members.newest):
            steps = draw_steps(self._draws, raft.configuration, wipes.living())
        if not steps:
            return
        now_us = world.agenda.now_us
        words = " ".join(f"{s.kind.name.lower()}={s.member.member_id}" for s in steps)
        world.trace.step(now_us, f"change {leader.member_id} {words}")
        begun = raft.change_members(steps, now_ms=leader.clock.local_ms(now_us))
        if isinstance(begun, ChangeRefused):
            world.marks.reach("change_refused")
        else:
            self.begun += 1
        leader.maybe_turn()

    # Those who do not know that they left

    def on_asked(self, message: RequestVote) -> None:
        """Somebody asks for votes: who is no member is told so, as in production."""
        src, dst = message.src, message.dst
        state = self._world.nodes[dst].raft.state
        configuration = state.configuration
        if is_member(configuration, src) or configuration.is_joint:
            return
        if 0 < configuration.index <= state.commit_index:
            plan = self._world.plan
            delay_us = plan.latency_us + self._draws.below(plan.jitter_us + 1)
            self._world.agenda.after(delay_us, self._tell, (dst, src, configuration.index))

    def _tell(self, cargo: tuple[MemberId, MemberId, int]) -> None:
        teller, told, index = cargo
        world, node = self._world, self._world.nodes[told]
        now_us = world.agenda.now_us
        reads = node.server is not None and not node.paused and node.busy_us <= now_us
        if not reads or world.network.links[teller][told].cuts:
            return  # lost; it will ask again
        world.marks.reach("told_removed")
        world.trace.step(now_us, f"told-removed {told} index={index}")
        node.raft.on_told_removed(index, now_ms=node.clock.local_ms(now_us))
        node.maybe_turn()


def draw_steps(
    draws: Draws, configuration: Configuration, ids: tuple[MemberId, ...]
) -> list[MemberChange]:
    """Return the steps of a change, [] if the one that was drawn has nobody to be about."""
    voters, learners = configuration.voters, configuration.learners
    spares = [member for member in ids if not is_member(configuration, member)]
    kind = draws.weighted(
        (
            ("add", 3.0),
            ("add-learner", 1.0),
            ("promote", 1.5),
            ("demote", 1.0),
            ("remove", 2.0),
            ("replace", 2.0),
            ("swap", 0.7),
        )
    )
    if kind in {"add", "add-learner"} and spares:
        how = ChangeKind.ADD if kind == "add" else ChangeKind.ADD_LEARNER
        return [_step(how, draws.pick(spares))]
    if kind == "promote" and learners:
        return [_step(ChangeKind.PROMOTE, draws.pick(learners))]
    if kind == "demote" and len(voters) > 2:
        return [_step(ChangeKind.DEMOTE, draws.pick(voters))]
    if kind == "remove" and (learners or len(voters) > 2):
        among = configuration.everybody if len(voters) > 2 else learners
        return [_step(ChangeKind.REMOVE, draws.pick(among))]
    if kind == "replace" and spares:
        gone = draws.pick(voters if len(voters) > 2 else (*learners, *spares))
        steps = [_step(ChangeKind.ADD, draws.pick(spares))]
        return [*steps, _step(ChangeKind.REMOVE, gone)] if gone not in spares else steps
    if kind == "swap" and learners:
        out = draws.pick(voters)
        return [_step(ChangeKind.PROMOTE, draws.pick(learners)), _step(ChangeKind.DEMOTE, out)]
    return []


def _step(kind: ChangeKind, member: MemberId) -> MemberChange:
    return MemberChange(kind, MemberInfo(member, f"n{member}"))


def is_settled(node: SimNode) -> bool:
    """Return whether a leader has brought every change to its end, and no member is lost."""
    raft = node.raft
    configuration = raft.configuration
    return (
        raft.role is Role.LEADER
        and not configuration.is_joint
        and not configuration.joining
        and configuration.index <= raft.commit_index
        and not node.world.wipes.lost_of(configuration)
    )
