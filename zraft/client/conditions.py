"""What the nodes' own views add up to: is there a leader, do all agree. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from zraft.api import NodeStatus
from zraft.core.model import quorum_size
from zraft.errors import ControlError

Statuses = Mapping[str, NodeStatus | None]
_UP = re.compile(r"up=(\d{1,3})")


class Leadership(msgspec.Struct, frozen=True):
    """A leader that a majority of all members follows, itself included."""

    leader: str
    term: int
    followers: list[str]


def leadership(statuses: Statuses) -> Leadership | None:
    """Return the leader that a majority of all names in `statuses` agrees on, if there is one.

    `statuses` has a key for every member; None counts as a member that does not answer.
    """
    found: Leadership | None = None
    for name, status in statuses.items():
        if status is None or status.role != "leader":
            continue
        followers = [
            other
            for other, seen in statuses.items()
            if seen is not None
            and other != name
            and (seen.leader, seen.term) == (name, status.term)
        ]
        majority = 1 + len(followers) >= quorum_size([*range(len(statuses))])
        if majority and (found is None or status.term > found.term):
            found = Leadership(name, status.term, followers)
    return found


def check_conditions(conditions: Sequence[str], nodes: int) -> None:
    """Refuse what `wait_for` does not know: ControlError (exit 2)."""
    for condition in conditions:
        match = _UP.fullmatch(condition)
        if match is not None and int(match[1]) > nodes:
            raise ControlError(f"{condition} can never be: there are {nodes} nodes")
        if match is None and condition not in {"leader", "converged"}:
            raise ControlError(
                f'"{condition}" is not a condition',
                why="there are leader, converged and up=N",
                try_="zraft cluster wait --for leader --for up=3",
            )


def unmet(condition: str, statuses: Statuses) -> str:
    """Return why a condition does not hold, empty when it does."""
    answering = {name: status for name, status in statuses.items() if status is not None}
    if match := _UP.fullmatch(condition):
        short = len(answering) < int(match[1])
        return f"{len(answering)} of {len(statuses)} nodes answer" if short else ""
    found = leadership(statuses)
    if found is None:
        return _no_leader(answering, len(statuses))
    if condition == "leader":
        return ""
    return _divergence(answering, found)


def _no_leader(answering: Mapping[str, NodeStatus], size: int) -> str:
    if not answering:
        return "no node answers"
    views = ", ".join(
        f"{name}: {status.leader or 'nobody'} in term {status.term}"
        for name, status in answering.items()
    )
    return f"no leader that {quorum_size([*range(size)])} of {size} follow ({views})"


def _divergence(answering: Mapping[str, NodeStatus], found: Leadership) -> str:
    leader = answering[found.leader]
    for name, status in answering.items():
        if (status.leader, status.term) != (found.leader, found.term):
            return f"{name} follows {status.leader or 'nobody'} in term {status.term}"
        place = (status.commit, status.applied, status.last_index)
        if place != (leader.last_index,) * 3:
            return (
                f"{name} has commit {status.commit}, applied {status.applied}, last "
                f"{status.last_index}; the leader's last is {leader.last_index}"
            )
    return ""
