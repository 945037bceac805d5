"""Fault rules for the links between this node and its peers: what a broken network would do.

Pure: no socket, no clock, no randomness of its own. The caller says which frame goes where and what
time it is; a rule says which copies of it arrive, and when. The transport asks at both ends: the
sender's rules act before a frame reaches a socket (nothing is queued), the receiver's rules act
after the header was accepted (what was already under way is lost too). So a fault that is set on
one node alone works in both directions, and asymmetric faults are one rule on one side.

A healthy node pays one test of `active` per frame and never calls anything here.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection
from typing import NamedTuple

from zraft.core.model import MemberId, Random


class Delivery(NamedTuple):
    """One copy of a frame, and when it goes on its way; a time that has passed means now."""

    deliver_at_ms: int
    frame: bytes


class Fault:
    """A rule in force. `peers` empty means everybody; `until_ms` None means until healed.

    `until_ms` may be moved: a lease is renewed so. `hits` counts the frames that the rule dropped
    or changed. A rule that says nothing about a direction lets its frames pass.
    """

    kind = "fault"

    def __init__(
        self, fault_id: str, peers: Collection[MemberId], until_ms: int | None = None
    ) -> None:
        """Make a rule; `Links` puts it in force."""
        self.fault_id = fault_id
        self.peers = frozenset(peers)
        self.until_ms = until_ms
        self.hits = 0

    def concerns(self, peer: MemberId) -> bool:
        """Return whether the rule is about frames to or from `peer`."""
        return not self.peers or peer in self.peers

    def rule(self, label: Callable[[MemberId], str]) -> str:
        """Return the rule for people: its kind and the names of the members it is about."""
        return f"{self.kind} {', '.join(sorted(map(label, self.peers))) or 'all'}"

    def cuts(self, peer: MemberId, *, outgoing: bool) -> bool:
        """Return whether nothing at all passes to (or from) `peer`."""
        del peer, outgoing
        return False

    def outgoing(
        self, dst: MemberId, lane: int, kind: int, delivery: Delivery, random: Random
    ) -> list[Delivery]:
        """Return what leaves in place of `delivery`, which was on its way to `dst`."""
        del dst, lane, kind, random
        return [delivery]

    def incoming(
        self, src: MemberId, lane: int, kind: int, delivery: Delivery, random: Random
    ) -> list[Delivery]:
        """Return what arrives in place of `delivery`, which came from `src`."""
        del src, lane, kind, random
        return [delivery]


class Cut(Fault):
    """Drop everything to the members `to`, and everything from the members `from_`."""

    def __init__(
        self,
        fault_id: str,
        to: Collection[MemberId],
        from_: Collection[MemberId],
        until_ms: int | None = None,
        *,
        kind: str = "partition",
    ) -> None:
        """Make a rule; `kind` is its name for people."""
        super().__init__(fault_id, {*to, *from_}, until_ms)
        self.kind = kind
        self.to = frozenset(to)
        self.from_ = frozenset(from_)

    def cuts(self, peer: MemberId, *, outgoing: bool) -> bool:
        """Return whether nothing at all passes to (or from) `peer`."""
        return peer in (self.to if outgoing else self.from_)

    def outgoing(
        self, dst: MemberId, lane: int, kind: int, delivery: Delivery, random: Random
    ) -> list[Delivery]:
        """Let nothing leave to the members this rule is about."""
        return self._drop(delivery, cut=self.cuts(dst, outgoing=True))

    def incoming(
        self, src: MemberId, lane: int, kind: int, delivery: Delivery, random: Random
    ) -> list[Delivery]:
        """Let nothing arrive from the members this rule is about."""
        return self._drop(delivery, cut=self.cuts(src, outgoing=False))

    def _drop(self, delivery: Delivery, *, cut: bool) -> list[Delivery]:
        if not cut:
            return [delivery]
        self.hits += 1
        return []


class Isolate(Cut):
    """Drop everything to and from the given members; nobody named means everybody."""

    def __init__(
        self, fault_id: str, peers: Collection[MemberId], until_ms: int | None = None
    ) -> None:
        """Make a rule."""
        super().__init__(fault_id, peers, peers, until_ms, kind="isolate")

    def cuts(self, peer: MemberId, *, outgoing: bool) -> bool:
        """Return whether nothing at all passes to (or from) `peer`."""
        return self.concerns(peer)


class Links:
    """The rules of one node, applied in the order in which they were made.

    `active` is False exactly when no rule is in force; test it before anything else.
    """

    def __init__(self, random: Random) -> None:
        """Start without faults. `random` is seeded by the owner: rules that draw are replayable."""
        self.active = False
        self._random = random
        self._faults: list[Fault] = []
        self._last_id = 0

    def isolate(self, peers: Collection[MemberId] = (), *, until_ms: int | None = None) -> Fault:
        """Drop everything to and from `peers` (nobody named: everybody) until `until_ms`."""
        self._last_id += 1
        return self.add(Isolate(f"own{self._last_id}", peers, until_ms))

    def add(self, fault: Fault) -> Fault:
        """Put a rule in force."""
        self._faults.append(fault)
        self.active = True
        return fault

    def heal(self, fault_id: str | None = None) -> list[Fault]:
        """End one fault, or all of them; return those that ended."""
        return self._end([f for f in self._faults if fault_id in {None, f.fault_id}])

    def expire(self, now_ms: int) -> list[Fault]:
        """End the faults whose time is over; return them."""
        if not self.active:
            return []
        return self._end(
            [f for f in self._faults if f.until_ms is not None and f.until_ms <= now_ms]
        )

    def next_deadline_ms(self) -> int | None:
        """Return when `expire` has something to do next; None for never."""
        return min((f.until_ms for f in self._faults if f.until_ms is not None), default=None)

    def faults(self) -> list[Fault]:
        """Return the rules in force."""
        return list(self._faults)

    def cut(self, peer: MemberId, *, outgoing: bool) -> bool:
        """Return whether nothing passes to (or from) `peer`; what is asked for counts as a hit.

        For traffic that is no frame of a lane: requests that one node forwards to another, and the
        answers to them. A partition that they could pass would be none.
        """
        for fault in self._faults:
            if fault.cuts(peer, outgoing=outgoing):
                fault.hits += 1
                return True
        return False

    def outgoing(
        self, dst: MemberId, lane: int, kind: int, frame: bytes, now_ms: int
    ) -> list[Delivery]:
        """Return what leaves instead of `frame`; an empty list means that it was dropped."""
        deliveries = [Delivery(now_ms, frame)]
        for fault in self._faults:
            deliveries = [
                kept
                for delivery in deliveries
                for kept in fault.outgoing(dst, lane, kind, delivery, self._random)
            ]
        return deliveries

    def incoming(
        self, src: MemberId, lane: int, kind: int, frame: bytes, now_ms: int
    ) -> list[Delivery]:
        """Return what arrives instead of `frame`; an empty list means that it was dropped."""
        deliveries = [Delivery(now_ms, frame)]
        for fault in self._faults:
            deliveries = [
                kept
                for delivery in deliveries
                for kept in fault.incoming(src, lane, kind, delivery, self._random)
            ]
        return deliveries

    def _end(self, ended: list[Fault]) -> list[Fault]:
        self._faults = [fault for fault in self._faults if fault not in ended]
        self.active = bool(self._faults)
        return ended


class HeldFrames:
    """Frames that a rule holds back, in the order in which they are due."""

    def __init__(self) -> None:
        """Hold nothing."""
        self._heap: list[tuple[int, int, MemberId, bytes]] = []
        self._added = 0

    def __bool__(self) -> bool:
        """Return whether anything is held."""
        return bool(self._heap)

    def add(self, at_ms: int, peer: MemberId, frame: bytes) -> None:
        """Hold a frame until `at_ms`."""
        self._added += 1
        heapq.heappush(self._heap, (at_ms, self._added, peer, frame))

    def next_deadline_ms(self) -> int | None:
        """Return when the first of them is due; None when nothing is held."""
        return self._heap[0][0] if self._heap else None

    def due(self, now_ms: int) -> list[tuple[MemberId, bytes]]:
        """Take out what is due, in order."""
        found: list[tuple[MemberId, bytes]] = []
        while self._heap and self._heap[0][0] <= now_ms:
            _, _, peer, frame = heapq.heappop(self._heap)
            found.append((peer, frame))
        return found
