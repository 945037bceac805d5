"""Who is meant: nodes by name and by role, resolved against what the nodes say right now.

    n1 · n1,n3 · leader · follower · followers · candidate · up · down · all · random[:K]
    minority · majority · leader+K · !WORD (all but those)

It is pure: it gets what is known of the nodes and a random generator, and returns names. "leader"
may be another node a moment later, so callers always say which names came out, and `check_term`
makes an action depend on the term.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from zraft.api import NodeStatus
from zraft.cli.errors import did_you_mean
from zraft.control_api import NodeRow
from zraft.errors import Conflict, ControlError, Unavailable

WORDS = (
    "leader",
    "follower",
    "followers",
    "candidate",
    "up",
    "down",
    "all",
    "random",
    "minority",
    "majority",
)
GRAMMAR = "n1  n1,n3  leader  follower(s)  candidate  up  down  all  random:2  minority  leader+1"


class NodeView(NamedTuple):
    """What a target needs to know of a node. `alive`: there is a process, be it paused."""

    name: str
    up: bool
    alive: bool
    role: str | None = None
    term: int = 0


def views(statuses: Mapping[str, NodeStatus | None], rows: Mapping[str, NodeRow]) -> list[NodeView]:
    """Return what is known of every node, in the cluster's order."""
    result = []
    for name, status in statuses.items():
        row = rows.get(name)
        alive = status is not None or (row is not None and row.pid is not None)
        if status is None:
            result.append(NodeView(name, up=False, alive=alive))
        else:
            result.append(NodeView(name, True, alive, status.role, status.term))
    return result


def leader_of(nodes: Sequence[NodeView]) -> str | None:
    """Return the leader of the highest term: an isolated one of an older term is none."""
    leaders = [node for node in nodes if node.role == "leader"]
    return max(leaders, key=lambda node: node.term).name if leaders else None


def resolve(words: Sequence[str], nodes: Sequence[NodeView], rng: random.Random) -> list[str]:
    """Return the names that the words mean, each once, in the cluster's order.

    `up`, `down` and `followers` may mean nobody.

    Raises:
        ControlError: a word is neither a node nor a role (exit 2).
        Unavailable: there is no such node now, for example no leader (exit 6).
    """
    chosen: set[str] = set()
    for word in words:
        for part in filter(None, (piece.strip() for piece in word.split(","))):
            chosen |= _resolve_word(part, nodes, rng)
    if not any(word.strip(", ") for word in words):
        raise ControlError("no target is given", why=f"a target is {GRAMMAR}")
    return [node.name for node in nodes if node.name in chosen]


def needs_roles(words: Sequence[str], names: Sequence[str]) -> bool:
    """Return whether the words are more than names of nodes, so that the nodes must be asked."""
    parts = [part.strip() for word in words for part in word.split(",")]
    return any(part and part not in names for part in parts)


def current_term(nodes: Sequence[NodeView]) -> int:
    """Return the highest term that a node knows, 0 when none answers."""
    return max((node.term for node in nodes), default=0)


def check_term(expected: int | None, nodes: Sequence[NodeView]) -> None:
    """Refuse to act when the term is not the expected one: Conflict (exit 5)."""
    term = current_term(nodes)
    if expected is not None and term != expected:
        raise Conflict(
            f"the term is {term}, not {expected}; nothing was done",
            why="there was another election since you looked",
            try_=("zraft cluster status", f"the same command with --expect-term {term}"),
        )


def _resolve_word(word: str, nodes: Sequence[NodeView], rng: random.Random) -> set[str]:
    names = {node.name for node in nodes}
    if word in names:
        return {word}
    if word.startswith("!"):
        return names - _resolve_word(word[1:], nodes, rng)
    head, plus, extra = word.partition("+")
    if head == "leader" and plus:
        leader = _need_leader(nodes)
        others = sorted(node.name for node in nodes if node.up and node.name != leader)
        return {leader, *_sample(others, _count(word, extra), rng, word)}
    head, colon, extra = word.partition(":")
    if head == "random":
        running = sorted(node.name for node in nodes if node.up)
        return set(_sample(running, _count(word, extra) if colon else 1, rng, word))
    match word:
        case "all" | "*":
            return names
        case "up":
            return {node.name for node in nodes if node.up}
        case "down":
            return {node.name for node in nodes if not node.alive}
        case "leader":
            return {_need_leader(nodes)}
        case "followers" | "follower":
            followers = _followers(nodes)
            return set(followers if word == "followers" else _sample(followers, 1, rng, word))
        case "candidate":
            found = {n.name for n in nodes if n.role in {"candidate", "pre-candidate"}}
            if not found:
                raise Unavailable("no node is a candidate now", try_="zraft cluster status")
            return found
        case "minority" | "majority":
            count = (len(nodes) - 1) // 2 if word == "minority" else len(nodes) // 2 + 1
            if count == 0:
                raise ControlError("one node alone has no minority")
            return set(rng.sample(sorted(names), count))
        case _:
            raise _unknown(word, nodes)


def _followers(nodes: Sequence[NodeView]) -> list[str]:
    leader = leader_of(nodes)
    return sorted(node.name for node in nodes if node.role is not None and node.name != leader)


def _need_leader(nodes: Sequence[NodeView]) -> str:
    leader = leader_of(nodes)
    if leader is None:
        answering = sum(node.up for node in nodes)
        raise Unavailable(
            "no node is leader now",
            why=f"{answering} of {len(nodes)} nodes answer, a quorum is {len(nodes) // 2 + 1}",
            try_=("zraft cluster wait --for leader", "zraft cluster status"),
        )
    return leader


def _count(word: str, digits: str) -> int:
    if not digits.isdigit() or int(digits) == 0:
        raise ControlError(f'"{word}" needs a number of nodes', try_="random:2   or   leader+1")
    return int(digits)


def _sample(names: Sequence[str], count: int, rng: random.Random, word: str) -> list[str]:
    if count > len(names):
        raise Unavailable(
            f'"{word}" asks for {count} of {len(names)} nodes',
            why=f"only {', '.join(names)} can be chosen now" if names else "no node is up",
            try_="zraft cluster status",
        )
    return rng.sample(list(names), count)


def _unknown(word: str, nodes: Sequence[NodeView]) -> ControlError:
    names = [node.name for node in nodes]
    meant = did_you_mean(word, [*names, *WORDS])
    span = f"{names[0]}…{names[-1]}" if len(names) > 2 else ", ".join(names)
    return ControlError(
        f'no node "{word}" (have {span})',
        why=f"a target is {GRAMMAR}",
        try_=f"did you mean {meant}?" if meant else "zraft node list",
    )
