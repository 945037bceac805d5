"""Majorities, against counting by hand (pitfalls 30)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from zraft.core.model import Configuration, quorum_size
from zraft.core.quorum import (
    VoteResult,
    holds_quorum,
    majority_result,
    reached_by_majority,
    reached_by_quorum,
    vote_result,
)

values = st.lists(st.integers(0, 9), min_size=1, max_size=9)
ids = st.sets(st.integers(1, 6), min_size=1, max_size=6).map(lambda s: tuple(sorted(s)))


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    """Simple and joint ones over the members 1 … 6, with learners who are nobody else."""
    voters = draw(ids)
    outgoing = draw(st.one_of(st.just(()), ids))
    others = [member for member in range(1, 7) if member not in voters]
    learners = draw(st.sets(st.sampled_from(others))) if others else set()
    return Configuration(voters, 0, outgoing, tuple(sorted(learners)))


def is_majority(members: Iterable[int], voters: tuple[int, ...]) -> bool:
    """More than half, counted by hand."""
    return 2 * len({*members} & {*voters}) > len(voters)


@given(values)
def test_a_majority_reached_the_largest_number_that_more_than_half_reached(
    numbers: list[int],
) -> None:
    """The largest number n so that more than half of all values are n or more."""
    reached = max(n for n in numbers if sum(v >= n for v in numbers) > len(numbers) / 2)
    assert reached_by_majority(numbers) == reached


@given(values)
def test_the_order_of_the_values_does_not_matter(numbers: list[int]) -> None:
    """A scan over unsorted progress commits too much."""
    ordered = sorted(numbers, reverse=True)
    assert reached_by_majority(numbers) == reached_by_majority(ordered)


@given(st.integers(1, 9))
def test_two_quorums_always_share_a_member(members: int) -> None:
    """What all of Raft rests on; and one member less would not do."""
    everybody = range(members)
    size = quorum_size(everybody)
    quorums = list(combinations(everybody, size))
    assert all(set(a) & set(b) for a in quorums for b in quorums)
    smaller = size - 1
    assert smaller * 2 <= members


@given(
    st.integers(1, 7),
    st.dictionaries(st.integers(1, 9), st.booleans(), max_size=9),
)
def test_votes_decide_by_majorities_of_the_voters(members: int, votes: dict[int, bool]) -> None:
    """Won: a majority said yes. Lost: that cannot come any more. Strangers are ignored."""
    voters = range(1, members + 1)
    yes = sum(votes.get(voter) is True for voter in voters)
    no = sum(votes.get(voter) is False for voter in voters)
    open_ = members - yes - no
    result = majority_result(votes, voters)
    assert (result is VoteResult.WON) is (yes > members / 2)
    assert (result is VoteResult.LOST) is (yes + open_ <= members / 2)
    assert vote_result(votes, Configuration(tuple(voters))) is result


@given(configurations(), st.dictionaries(st.integers(1, 7), st.booleans(), max_size=7))
def test_a_joint_configuration_needs_both_majorities(
    configuration: Configuration, votes: dict[int, bool]
) -> None:
    """Won by both, lost when one of them can't be had any more; learners count for nothing."""
    groups = [group for group in (configuration.voters, configuration.outgoing) if group]
    yes = {member for member, granted in votes.items() if granted}
    no = {member for member, granted in votes.items() if not granted}
    won = all(is_majority(yes, group) for group in groups)
    lost = any(not is_majority({*group} - no, group) for group in groups)
    result = vote_result(votes, configuration)
    assert (result is VoteResult.WON) is won
    assert (result is VoteResult.LOST) is lost
    assert holds_quorum(yes, configuration) is won


@given(configurations(), st.lists(st.integers(0, 5), min_size=6, max_size=6))
def test_what_a_joint_quorum_reached_is_held_by_both_majorities(
    configuration: Configuration, numbers: list[int]
) -> None:
    """The largest n so that a majority of each group has n or more."""
    reached = dict(enumerate(numbers, 1))
    groups = [group for group in (configuration.voters, configuration.outgoing) if group]
    expected = max(
        n
        for n in range(6)
        if all(is_majority((m for m in group if reached[m] >= n), group) for group in groups)
    )
    assert reached_by_quorum(reached, configuration) == expected


@given(configurations(), st.sets(st.integers(1, 6)), st.sets(st.integers(1, 6)))
def test_a_joint_quorum_meets_every_quorum_of_the_old_and_of_the_new(
    configuration: Configuration, some: set[int], others: set[int]
) -> None:
    """Two leaders in one term, one of the old members and one of the new, are impossible."""
    if holds_quorum(some, configuration):
        for group in filter(None, (configuration.voters, configuration.outgoing)):
            if holds_quorum(others, Configuration(group)):
                assert some & others
