"""What a change makes of a configuration, as arithmetic (Raft §6, thesis §4.3).

Pure functions over plain values. A change of voters gives a joint configuration, whose `outgoing`
are the voters so far; learners alone come and go in one step, because they decide nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from zraft.core.model import (
    MAX_MEMBERS,
    NOBODY,
    ChangeKind,
    Configuration,
    MemberChange,
    MemberId,
    MemberInfo,
)


class Refusal(Enum):
    """Why a change of membership is not begun."""

    NOT_LEADER = "not_leader"
    TRANSFER = "transfer"
    NO_OWN_COMMIT = "no_own_commit"
    IN_FLIGHT = "in_flight"
    NOTHING = "nothing"
    TWICE = "twice"
    UNKNOWN_MEMBER = "unknown_member"
    ALREADY_SO = "already_so"
    NAME_TAKEN = "name_taken"
    NO_VOTER_LEFT = "no_voter_left"
    NOT_CAUGHT_UP = "not_caught_up"
    TOO_MANY = "too_many"


class ChangeRefused(NamedTuple):
    """A change that was not begun; `member` is whom the step that is to blame is about."""

    reason: Refusal
    member: MemberId = NOBODY


def changed(
    configuration: Configuration, changes: Sequence[MemberChange]
) -> Configuration | ChangeRefused:
    """Return what `changes` make of a configuration that is not joint; its `index` is 0.

    All steps are one change. Each member may be in one step only. A DEMOTE of a learner that waits
    to be promoted leaves it a learner.
    """
    assert not configuration.is_joint
    voters, learners = {*configuration.voters}, {*configuration.learners}
    joining = {*configuration.joining}
    if not changes:
        return ChangeRefused(Refusal.NOTHING)
    seen: set[MemberId] = set()
    for kind, member in changes:
        member_id = member.member_id
        if member_id in seen:
            return ChangeRefused(Refusal.TWICE, member_id)
        seen.add(member_id)
        refusal = _step(kind, member_id, voters, learners, joining)
        if refusal is not None:
            return ChangeRefused(refusal, member_id)
    if not voters:
        return ChangeRefused(Refusal.NO_VOTER_LEFT)
    members = _members(configuration, changes)
    taken = _name_taken(members, voters | learners)
    if taken is not None:
        return ChangeRefused(Refusal.NAME_TAKEN, taken)
    if len(voters | learners | {*configuration.voters}) > MAX_MEMBERS:
        return ChangeRefused(Refusal.TOO_MANY)
    new_voters = tuple(sorted(voters))
    new = Configuration(
        voters=new_voters,
        outgoing=() if new_voters == configuration.voters else configuration.voters,
        learners=tuple(sorted(learners)),
        joining=tuple(sorted(joining)),
    )
    return new._replace(members=_known(members, new))


def _step(
    kind: ChangeKind,
    member: MemberId,
    voters: set[MemberId],
    learners: set[MemberId],
    joining: set[MemberId],
) -> Refusal | None:
    """Do one step to the three sets, or say why not."""
    is_member = member in voters or member in learners
    if kind in (ChangeKind.ADD, ChangeKind.ADD_LEARNER):
        if is_member:
            return Refusal.ALREADY_SO
        learners.add(member)
        if kind is ChangeKind.ADD:
            joining.add(member)
        return None
    if not is_member:
        return Refusal.UNKNOWN_MEMBER
    waits = member in joining
    joining.discard(member)
    if kind is ChangeKind.REMOVE:
        voters.discard(member)
        learners.discard(member)
        return None
    if kind is ChangeKind.PROMOTE:
        if member in voters:
            return Refusal.ALREADY_SO
        learners.discard(member)
        voters.add(member)
        return None
    if member in learners and not waits:
        return Refusal.ALREADY_SO
    voters.discard(member)
    learners.add(member)
    return None


def _members(
    configuration: Configuration, changes: Sequence[MemberChange]
) -> dict[MemberId, MemberInfo]:
    members = {member.member_id: member for member in configuration.members}
    for kind, member in changes:
        if kind in (ChangeKind.ADD, ChangeKind.ADD_LEARNER):
            members[member.member_id] = member
    return members


def _name_taken(members: dict[MemberId, MemberInfo], staying: set[MemberId]) -> MemberId | None:
    """Return a member whose name another one of those who stay has, too."""
    names: set[str] = set()
    for member_id in sorted(staying):
        member = members.get(member_id)
        if member is not None and member.name:
            if member.name in names:
                return member_id
            names.add(member.name)
    return None


def _known(
    members: dict[MemberId, MemberInfo], configuration: Configuration
) -> tuple[MemberInfo, ...]:
    return tuple(members[i] for i in configuration.everybody if i in members)


def final(joint: Configuration) -> Configuration:
    """Return the configuration that ends a joint one: the new voters alone; its `index` is 0."""
    assert joint.is_joint
    new = joint._replace(index=0, outgoing=())
    return new._replace(members=_known({m.member_id: m for m in joint.members}, new))
