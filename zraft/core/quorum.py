"""Majorities, as arithmetic: which index a quorum holds, whether an election is decided.

Pure functions over plain values. A quorum is asked of a configuration: a majority of its voters
and, while it is joint, of the outgoing ones as well (Raft §6). Values and votes are mappings by
member id, never counters: a reply that is delivered twice counts once, and a member that does not
vote counts for nothing, the leader itself included. Everything sorts before it counts (a scan over
unsorted progress once committed with two of five, openraft#1802).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum

from zraft.core.model import Configuration, MemberId, quorum_size


class VoteResult(Enum):
    """What the answers so far amount to."""

    PENDING = "pending"
    WON = "won"
    LOST = "lost"


def reached_by_quorum(values: Mapping[MemberId, int], configuration: Configuration) -> int:
    """Return the largest number that a quorum of `configuration` has reached.

    `values` holds a number for each member of the electorate; others' numbers do not count. With
    match indices the result is the index that a quorum holds (Raft §5.3), with rounds the round
    that a quorum confirmed, with times the moment at which a quorum had last been heard.
    """
    reached = reached_by_majority([values[voter] for voter in configuration.voters])
    if not configuration.outgoing:
        return reached
    old = reached_by_majority([values[voter] for voter in configuration.outgoing])
    return min(reached, old)


def reached_by_majority(values: Iterable[int]) -> int:
    """Return the largest number that more than half of `values` have reached."""
    ranked = sorted(values, reverse=True)
    return ranked[len(ranked) // 2]


def vote_result(votes: Mapping[MemberId, bool], configuration: Configuration) -> VoteResult:
    """Return whether `votes` decides an election in `configuration`.

    While it is joint, both majorities have to say yes, and one that can't any more decides.
    """
    result = majority_result(votes, configuration.voters)
    if not configuration.outgoing or result is VoteResult.LOST:
        return result
    old = majority_result(votes, configuration.outgoing)
    return old if result is VoteResult.WON or old is VoteResult.LOST else result


def majority_result(votes: Mapping[MemberId, bool], voters: Sequence[MemberId]) -> VoteResult:
    """Return whether `votes` decides an election among `voters`; others' votes do not count."""
    yes = sum(1 for voter in voters if votes.get(voter) is True)
    no = sum(1 for voter in voters if votes.get(voter) is False)
    needed = quorum_size(voters)
    if yes >= needed:
        return VoteResult.WON
    if len(voters) - no < needed:
        return VoteResult.LOST
    return VoteResult.PENDING


def holds_quorum(members: Iterable[MemberId], configuration: Configuration) -> bool:
    """Return whether `members` are enough to decide in `configuration`."""
    return vote_result(dict.fromkeys(members, True), configuration) is VoteResult.WON
