"""What a client knows of the nodes it may ask, and which one it asks next. No socket, no clock.

A request goes to the leader if one is known, else to the node that served last, else round the
ring: any node takes any request and passes it on. Only nodes with a finished handshake are sent to,
so "could not be sent" is certain knowledge and never a guess. A node is

    IDLE        nobody has asked it yet, or its connection is worth nothing any more
    CONNECTING  a connection is being made; it is waited for a moment, then others are tried too
    UP          requests may be sent
    DOWN        refused, or lost; tried again after a pause that doubles from 50 to 500 ms

A node that is UP but says nothing for a second, with requests waiting there, is `silent`: it hangs,
is paused, or has no leader to pass the requests to. Others are asked first from then on, and once
nothing waits there its connection is made anew.

A client that was given bare endpoints does not know who lives there: its nodes have made-up
negative keys, and it learns a member id only from the answer to a stale read, which nobody passes
on. Hints at a leader are looked up in this table and nowhere else, so no answer can send a client
to an address that is not its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from zraft.client.pending import Pending

PATIENCE_MS = 150  # how long a connection is waited for before others are tried
SILENCE_MS = 1000  # without any answer while requests wait: others are asked first
RECREATE_MS = 2000  # a connection that is not ready after this is made anew
RETRY_MIN_MS = 50
RETRY_MAX_MS = 500


class Random(Protocol):
    """The part of `random.Random` that the client uses."""

    def random(self) -> float:
        """Return a number in [0, 1)."""
        ...

    def getrandbits(self, k: int, /) -> int:
        """Return k random bits."""
        ...


class Member(NamedTuple):
    """A node that a client may ask. `key` is its member id, or negative when that is unknown."""

    key: int
    name: str
    endpoint: str


class State(Enum):
    """What is known of the connection to a node."""

    IDLE = "not tried"
    CONNECTING = "does not answer"
    UP = "connected"
    DOWN = "refused the connection"


@dataclass(slots=True, eq=False)
class Node:
    """One node. `in_flight` are the requests that were sent there and not answered, by wire id."""

    key: int
    name: str
    state: State = State.IDLE
    since_ms: int = 0  # of the state
    retry_ms: int = 0  # when DOWN: not before this
    failures: int = 0  # in a row
    slow: bool = False  # CONNECTING for longer than patience
    silent: bool = False
    waiting_since_ms: int = 0  # no answer since this, while something is in flight
    in_flight: dict[int, Pending] = field(default_factory=dict)


class NodeTable:
    """The nodes in a ring, the one in use, and the leader as far as it is known."""

    def __init__(self, members: Sequence[Member], rng: Random) -> None:
        assert members, "a client needs somebody to ask"
        self._rng = rng
        self.ring = [Node(member.key, member.name) for member in members]
        self._by_key = {node.key: node for node in self.ring}
        self._by_member = {node.key: node for node in self.ring if node.key >= 0}
        self._current = int(rng.random() * len(self.ring))
        self._connects: list[int] = []
        self.leader: Node | None = None
        self._leader_term = 0

    def __getitem__(self, key: int) -> Node:
        return self._by_key[key]

    def __contains__(self, key: int) -> bool:
        return key in self._by_key

    def named(self, name: str) -> Node | None:
        """Return the node of a name, None when there is none."""
        return next((node for node in self.ring if node.name == name), None)

    def of_member(self, member_id: int) -> Node | None:
        """Return the node of a member id, None while nobody is known to have it."""
        return self._by_member.get(member_id)

    def learn_member(self, node: Node, member_id: int) -> None:
        """Take note that the node at an endpoint said who it is."""
        self._by_member[member_id] = node

    def learn_leader(self, member_id: int, term: int) -> None:
        """Take a hint: newer terms win, and who is not in the table is nobody."""
        if term >= self._leader_term:
            self._leader_term = term
            self.leader = self._by_member.get(member_id)

    def leave(self, node: Node) -> None:
        """Prefer others from now on."""
        if self.leader is node:
            self.leader = None
        if self.ring[self._current] is node:
            self._current = (self._current + 1) % len(self.ring)

    def take_connects(self) -> list[int]:
        """Return the nodes to which a new connection is wanted; an older one is closed first."""
        connects, self._connects = self._connects, []
        return connects

    def route(self, now_ms: int) -> Node | None:
        """Return the node for the next requests.

        If it is not UP, its connection is under way and worth waiting for. None: nobody can be
        reached at the moment.
        """
        for node in self._preferred():
            if node.state is State.UP and not node.silent:
                if node is not self.leader:
                    self._current = self.ring.index(node)
                return node
            if self.want(node, now_ms):
                return node
        for node in self._preferred():
            if node.state is State.UP:
                return node
        return None

    def _preferred(self) -> Iterator[Node]:
        if self.leader is not None:
            yield self.leader
        for offset in range(len(self.ring)):
            node = self.ring[(self._current + offset) % len(self.ring)]
            if node is not self.leader:
                yield node

    def want(self, node: Node, now_ms: int) -> bool:
        """See that a connection is being made; return whether it is worth waiting for."""
        if node.state is State.UP and node.silent and not node.in_flight:
            node.state = State.IDLE  # whatever that connection is, it carries no answers
        if node.state is State.IDLE or (node.state is State.DOWN and now_ms >= node.retry_ms):
            node.state, node.since_ms, node.slow = State.CONNECTING, now_ms, False
            self._connects.append(node.key)
        if node.state is not State.CONNECTING:
            return False
        waited_ms = now_ms - node.since_ms
        if waited_ms >= RECREATE_MS:
            node.since_ms = now_ms
            self._connects.append(node.key)
        node.slow = node.slow or waited_ms >= PATIENCE_MS
        return not node.slow

    def on_connected(self, node: Node, now_ms: int) -> None:
        """Requests may be sent from now on."""
        node.state, node.since_ms = State.UP, now_ms
        node.slow = node.silent = False

    def on_disconnected(self, node: Node, now_ms: int) -> None:
        """Nothing can be sent for a while; others are preferred."""
        node.state, node.since_ms = State.DOWN, now_ms
        node.slow = node.silent = False
        pause_ms = min(RETRY_MAX_MS, RETRY_MIN_MS << min(node.failures, 10))
        node.retry_ms = now_ms + int(pause_ms * (0.5 + self._rng.random() / 2))
        node.failures += 1
        self.leave(node)

    def newly_silent(self, now_ms: int) -> list[Node]:
        """Return the nodes that became silent by now."""
        found = [
            node
            for node in self.ring
            if node.in_flight and not node.silent and now_ms - node.waiting_since_ms >= SILENCE_MS
        ]
        for node in found:
            node.silent = True
            self.leave(node)
        return found

    def on_unanswered(self, node: Node, sent_ms: int, now_ms: int) -> None:
        """A request's time ended there; a node that said nothing since it was sent is left."""
        if node.waiting_since_ms <= sent_ms:
            self.leave(node)
            node.silent = node.silent or now_ms - sent_ms >= PATIENCE_MS

    def next_silence_ms(self) -> int | None:
        """Return when the next node becomes silent, if it goes on saying nothing."""
        waiting = [n.waiting_since_ms for n in self.ring if n.in_flight and not n.silent]
        return min(waiting) + SILENCE_MS if waiting else None

    def next_connect_ms(self, routed_ms: int) -> int | None:
        """Return when `route` may find more than it did at `routed_ms`, without any news."""
        times = []
        for node in self.ring:
            if node.state is State.CONNECTING:
                times.append(node.since_ms + (RECREATE_MS if node.slow else PATIENCE_MS))
            elif node.state is State.DOWN:
                times.append(node.retry_ms)
        return min((time for time in times if time > routed_ms), default=None)
