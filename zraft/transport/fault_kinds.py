"""Faults that lose, hold, double, disorder or damage some of the frames of some links.

A rule of this kind acts at the sender's end alone: at both ends, 30 % would be 51 %. Cuts
(`zraft.transport.links`) act at both. Each rule draws from a generator of its own, so that a seed
repeats what it does to the same frames; nothing but `random()` is drawn.

Damaged frames are damaged so that the receiver can tell: a flip that decodes to another vote would
be a member that lies, which Raft is not made for, and which the checksum of tcp and the kernel's
own sockets rule out. So a damaged copy that would still be read is cut off at its end, too.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from zraft.core.model import MemberId, Random
from zraft.errors import DecodeError, VersionError
from zraft.transport.links import Delivery, Fault
from zraft.wire import (
    KIND_APPEND_ENTRIES,
    KIND_APPEND_ENTRIES_RESPONSE,
    KIND_HEARD,
    KIND_INSTALL_SNAPSHOT,
    KIND_INSTALL_SNAPSHOT_RESPONSE,
    KIND_REQUEST_VOTE,
    KIND_REQUEST_VOTE_RESPONSE,
    decode_header,
    decode_message,
)

MESSAGE_KINDS: Final = {
    "append": KIND_APPEND_ENTRIES,
    "append-reply": KIND_APPEND_ENTRIES_RESPONSE,
    "vote": KIND_REQUEST_VOTE,
    "vote-reply": KIND_REQUEST_VOTE_RESPONSE,
    "snapshot": KIND_INSTALL_SNAPSHOT,
    "snapshot-reply": KIND_INSTALL_SNAPSHOT_RESPONSE,
}
"""Names of the message kinds that a rule may be limited to. Heartbeats are appends, pre-votes are
votes, and a snapshot is sent as many chunks, each a message."""

REORDER_MS: Final = 20  # how long a frame is held at most so that later ones overtake it
_MAX_FLIPS: Final = 8


class SomeFrames(Fault):
    """Base: changes a frame to one of the members `to`, of one of `kinds`, with chance `rate`."""

    def __init__(
        self,
        fault_id: str,
        to: Collection[MemberId],
        until_ms: int | None = None,
        *,
        rate: float,
        random: Random,
        kinds: Collection[int] = (),
    ) -> None:
        """Make a rule; no `kinds` means every kind. A `to` without members concerns nobody."""
        super().__init__(fault_id, to, until_ms)
        assert 0 < rate <= 1
        self._rate = rate
        self._random = random
        self._kinds = frozenset(kinds)

    def concerns(self, peer: MemberId) -> bool:
        """Return whether the rule is about frames to `peer`."""
        return peer in self.peers

    def outgoing(
        self, dst: MemberId, lane: int, kind: int, delivery: Delivery, random: Random
    ) -> list[Delivery]:
        """Change it if the dice say so."""
        del lane, random
        if not self.concerns(dst) or (self._kinds and kind not in self._kinds):
            return [delivery]
        if self._random.random() >= self._rate:
            return [delivery]
        self.hits += 1
        return self.change(delivery, self._random)

    def change(self, delivery: Delivery, random: Random) -> list[Delivery]:
        """Return what leaves instead."""
        raise AssertionError(f"{type(self).__name__} changes nothing")


class Drop(SomeFrames):
    """Lose frames."""

    kind = "drop"

    def change(self, delivery: Delivery, random: Random) -> list[Delivery]:
        """Return nothing."""
        del delivery, random
        return []


class Duplicate(SomeFrames):
    """Send frames twice."""

    kind = "duplicate"

    def change(self, delivery: Delivery, random: Random) -> list[Delivery]:
        """Return it twice."""
        del random
        return [delivery, delivery]


class Reorder(SomeFrames):
    """Hold frames for a moment, so that later ones overtake them."""

    kind = "reorder"

    def change(self, delivery: Delivery, random: Random) -> list[Delivery]:
        """Return it 1 to `REORDER_MS` later."""
        held_ms = 1 + int(random.random() * REORDER_MS)
        return [delivery._replace(deliver_at_ms=delivery.deliver_at_ms + held_ms)]


class Delay(SomeFrames):
    """Hold frames for `delay_ms` ± `jitter_ms`; never less than 0."""

    kind = "delay"

    def __init__(
        self,
        fault_id: str,
        to: Collection[MemberId],
        until_ms: int | None = None,
        *,
        rate: float,
        random: Random,
        kinds: Collection[int] = (),
        delay_ms: int,
        jitter_ms: int = 0,
        normal: bool = False,
    ) -> None:
        """Make a rule. `normal`: `jitter_ms` is a standard deviation, not a bound."""
        super().__init__(fault_id, to, until_ms, rate=rate, random=random, kinds=kinds)
        self._delay_ms = delay_ms
        self._jitter_ms = jitter_ms
        self._normal = normal

    def change(self, delivery: Delivery, random: Random) -> list[Delivery]:
        """Return it later."""
        held_ms = self._delay_ms
        if self._jitter_ms:
            if self._normal:  # the sum of twelve uniform numbers is as good as normal
                off = sum(random.random() for _ in range(12)) - 6
            else:
                off = 2 * random.random() - 1
            held_ms = max(0, round(held_ms + off * self._jitter_ms))
        return [delivery._replace(deliver_at_ms=delivery.deliver_at_ms + held_ms)]


class Corrupt(SomeFrames):
    """Damage bytes of frames: flipped, cut off or added; always so that the receiver can tell."""

    kind = "corrupt"

    def change(self, delivery: Delivery, random: Random) -> list[Delivery]:
        """Return it damaged."""
        return [delivery._replace(frame=damage(delivery.frame, random))]


def damage(frame: bytes, random: Random) -> bytes:
    """Return a damaged copy that no receiver takes for a frame of the same sender."""
    dice = random.random()
    broken = bytearray(frame)
    if dice < 0.2:
        del broken[int(random.random() * len(broken)) :]
    elif dice < 0.4:
        broken += bytes(int(random.random() * 256) for _ in range(1 + int(random.random() * 8)))
    else:
        for _ in range(1 + int(random.random() * _MAX_FLIPS)):
            place = int(random.random() * len(broken))
            broken[place] ^= 1 << int(random.random() * 8)
    damaged = bytes(broken)
    return frame[:-1] if could_be_read(damaged, frame) else damaged


def could_be_read(damaged: bytes, frame: bytes) -> bool:
    """Return whether a receiver might take a damaged frame for one of its sender's."""
    try:
        header, fields = decode_header(damaged)
        original, _ = decode_header(frame)
    except (DecodeError, VersionError):
        return False
    same = (header.cluster, header.src, header.dst, header.lane)
    if same != (original.cluster, original.src, original.dst, original.lane):
        return False  # the filter refuses it
    if header != original or header.kind == KIND_HEARD:
        return True
    try:
        decode_message(header, fields)
    except DecodeError:
        return False
    return True
