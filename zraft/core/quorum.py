"""Majorities, as arithmetic: which index a quorum holds, whether an election is decided.

Pure functions over plain values. Votes are sets of member ids, never counters: a reply that is
delivered twice counts once. Everything sorts before it counts (a scan over unsorted progress once
committed with two of five, openraft#1802).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum

from zraft.core.model import MemberId, quorum_size


class VoteResult(Enum):
    """What the answers so far amount to."""

    PENDING = "pending"
    WON = "won"
    LOST = "lost"


def reached_by_quorum(values: Iterable[int], voters: int) -> int:
    """Return the largest number that a majority of `voters` values has reached.

    `values` holds one number for each voter; with match indices the result is the index that a
    quorum holds (Raft §5.3), with rounds the round that a quorum confirmed, with times the moment
    at which a quorum had last been heard.
    """
    ranked = sorted(values, reverse=True)
    assert len(ranked) == voters > 0, (len(ranked), voters)
    return ranked[voters // 2]


def vote_result(votes: Mapping[MemberId, bool], voters: Sequence[MemberId]) -> VoteResult:
    """Return whether `votes` decides an election among `voters`; others' votes do not count."""
    yes = sum(1 for voter in voters if votes.get(voter) is True)
    no = sum(1 for voter in voters if votes.get(voter) is False)
    needed = quorum_size(voters)
    if yes >= needed:
        return VoteResult.WON
    if len(voters) - no < needed:
        return VoteResult.LOST
    return VoteResult.PENDING
