"""What the nodes' own views add up to: is there a leader, do all agree. Pure functions.

Who counts is what the leader's configuration says: a majority is one of its voters (of both sets
while a change is under way). A view without a configuration counts every name as a voter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from zraft.api import NodeStatus
from zraft.errors import ControlError

Statuses = Mapping[str, NodeStatus | None]


class Leadership(msgspec.Struct, frozen=True):
    """A leader that a majority of the voters follows, itself included if it is one."""

    leader: str
    term: int
    followers: list[str]


def leadership(statuses: Statuses) -> Leadership | None:
    """Return the leader that a majority of its voters agrees on, if there is one.

    `statuses` has a key for every node; None counts as a node that does not answer.
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
        agreed = all(
            len({name, *followers} & set(voters)) >= majority(voters)
            for voters in electorates(status, statuses)
        )
        if agreed and (found is None or status.term > found.term):
            found = Leadership(name, status.term, followers)
    return found


def majority(voters: Collection[str]) -> int:
    """Return how many of them decide."""
    return len(voters) // 2 + 1


def electorates(leader: NodeStatus, statuses: Statuses) -> list[list[str]]:
    """Return the sets of voters that each need a majority: one, or two during a change."""
    found = [voters for voters in (leader.voters, leader.outgoing) if voters]
    return found or [[*statuses]]


def members(leader: NodeStatus, statuses: Statuses) -> set[str]:
    """Return everybody who gets the log."""
    if not leader.voters:
        return set(statuses)
    return {*leader.voters, *leader.outgoing, *leader.learners}


def is_settled(leader: NodeStatus) -> bool:
    """Return whether no change of membership is under way."""
    return leader.config_committed and not leader.outgoing


# ------------------------------------------------------------------------------------ conditions


def check_conditions(conditions: Sequence[str], nodes: int) -> None:
    """Refuse what `unmet` does not know: ControlError (exit 2)."""
    for condition in conditions:
        match = _UP.fullmatch(condition)
        if match is not None and int(match[1]) > nodes:
            raise ControlError(f"{condition} can never be: there are {nodes} nodes")
        if not any(pattern.fullmatch(condition) for pattern, _ in _CONDITIONS):
            raise ControlError(
                f'"{condition}" is not a condition',
                why=f"there are {WORDS}",
                try_="zraft cluster wait --for leader --for up=3",
            )


def unmet(condition: str, statuses: Statuses) -> str:
    """Return why a condition does not hold, empty when it does."""
    for pattern, look in _CONDITIONS:
        if match := pattern.fullmatch(condition):
            return look(statuses, match[1] if match.re.groups else "")
    raise AssertionError(condition)  # `check_conditions` refused it


def _up(statuses: Statuses, wanted: str) -> str:
    answering = len(_answering(statuses))
    return f"{answering} of {len(statuses)} nodes answer" if answering < int(wanted) else ""


def _leader(statuses: Statuses, _wanted: str) -> str:
    if leadership(statuses) is not None:
        return ""
    answering = _answering(statuses)
    if not answering:
        return "no node answers"
    views = ", ".join(
        f"{name}: {status.leader or 'nobody'} in term {status.term}"
        for name, status in answering.items()
    )
    size = len(statuses)
    return f"no leader that {majority(statuses)} of {size} follow ({views})"


def _no_leader(statuses: Statuses, _wanted: str) -> str:
    found = leadership(statuses)
    return f"{found.leader} leads term {found.term}" if found is not None else ""


def _another_leader(statuses: Statuses, wanted: str) -> str:
    found = leadership(statuses)
    if found is None:
        return _leader(statuses, "")
    return f"{wanted} leads term {found.term}" if found.leader == wanted else ""


def _quorum(statuses: Statuses, _wanted: str) -> str:
    answering = _answering(statuses)
    newest = max(answering.values(), key=lambda s: (s.term, s.config_index), default=None)
    for voters in electorates(newest, statuses) if newest is not None else [[*statuses]]:
        here = [name for name in voters if name in answering]
        if len(here) < majority(voters):
            return f"{len(here)} of {len(voters)} voters answer"
    return ""


def _term(statuses: Statuses, wanted: str) -> str:
    term = max((status.term for status in _answering(statuses).values()), default=0)
    return f"the term is {term}" if term < int(wanted) else ""


def _index(statuses: Statuses, wanted: str) -> str:
    leader = _who_leads(statuses)
    if leader is None:
        return _leader(statuses, "")
    return f"the commit index is {leader.commit}" if leader.commit < int(wanted) else ""


def _converged(statuses: Statuses, _wanted: str) -> str:
    leader = _who_leads(statuses)
    if leader is None:
        return _leader(statuses, "")
    counted = members(leader, statuses)
    for name, status in _answering(statuses).items():
        if name not in counted:
            continue
        if (status.leader, status.term) != (leader.name, leader.term):
            return f"{name} follows {status.leader or 'nobody'} in term {status.term}"
        place = (status.commit, status.applied, status.last_index)
        if place != (leader.last_index,) * 3:
            return (
                f"{name} has commit {status.commit}, applied {status.applied}, last "
                f"{status.last_index}; the leader's last is {leader.last_index}"
            )
    return ""


def _voters(statuses: Statuses, wanted: str) -> str:
    leader = _who_leads(statuses)
    if leader is None:
        return _leader(statuses, "")
    if not is_settled(leader):
        return "a change of membership is under way"
    if len(leader.voters) != int(wanted):
        return f"the voters are {', '.join(leader.voters)}"
    return ""


def _learner_caught_up(statuses: Statuses, wanted: str) -> str:
    leader = _who_leads(statuses)
    if leader is None:
        return _leader(statuses, "")
    if wanted not in members(leader, statuses):
        return f"{wanted} is no member"
    peer = next((peer for peer in leader.peers if peer.name == wanted), None)
    if peer is None:  # it leads
        return ""
    match = peer.match_index or 0
    return f"{wanted} has {match} of {leader.commit} entries" if match < leader.commit else ""


def _faults(statuses: Statuses, wanted: str) -> str:
    answering = _answering(statuses)
    found = {
        fault.id if fault.rule is not None else f"{name}-{fault.id}"
        for name, status in answering.items()
        for fault in status.faults
    }
    if len(found) == int(wanted):
        return ""
    return f"{len(found)} faults are in force" + (f" ({', '.join(sorted(found))})" if found else "")


def _answering(statuses: Statuses) -> dict[str, NodeStatus]:
    return {name: status for name, status in statuses.items() if status is not None}


def _who_leads(statuses: Statuses) -> NodeStatus | None:
    found = leadership(statuses)
    return statuses[found.leader] if found is not None else None


_UP = re.compile(r"up=(\d{1,3})")
_CONDITIONS: tuple[tuple[re.Pattern[str], Callable[[Statuses, str], str]], ...] = (
    (_UP, _up),
    (re.compile("leader"), _leader),
    (re.compile("no-leader"), _no_leader),
    (re.compile(r"leader!=(\S+)"), _another_leader),
    (re.compile("quorum"), _quorum),
    (re.compile(r"term>=(\d{1,18})"), _term),
    (re.compile(r"index>=(\d{1,18})"), _index),
    (re.compile("converged"), _converged),
    (re.compile(r"voters=(\d{1,3})"), _voters),
    (re.compile(r"learner-caught-up=(\S+)"), _learner_caught_up),
    (re.compile(r"faults=(\d{1,5})"), _faults),
)
WORDS = (
    "leader, no-leader, leader!=NAME, quorum, converged, up=N, voters=N, term>=N, index>=N, "
    "learner-caught-up=NAME, faults=N"
)
