"""The header filter: which frames are a peer's, said to us, by its present life. Pure, no socket.

A frame passes only if all of it holds, in this order: one body frame of bounded size, a header of
a version we read, our cluster, our member id as `dst`, another known member as `src`, our lane, and
an (incarnation, epoch) not lower than the highest heard from that member on this lane. `seq` plays
no part: the network may double and reorder frames, and the fault rules do so on purpose; Raft takes
it. Each reason to drop is a counter of its own.

A lower incarnation is either a late frame of a process that has been replaced since, or a data
directory that was put back to an older state. They can't be told apart here, so the sender is told
the highest incarnation heard, and only the second kind of sender finds it higher than its own.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from zraft.core.model import MemberId
from zraft.errors import DecodeError, VersionError
from zraft.wire import PeerHeader, decode_header
from zraft.wire_entry import MAX_FRAME_BYTES


class Refused(NamedTuple):
    """Why a frame was dropped: the name of a counter.

    `older_life` is the sender's incarnation when that is lower than one heard before, else 0.
    """

    counter: str
    src: MemberId = 0
    older_life: int = 0


DROPPED_PARTS = "dropped_parts"
DROPPED_SIZE = "dropped_size"
DROPPED_GARBAGE = "dropped_garbage"
DROPPED_VERSION = "dropped_version"
DROPPED_CLUSTER = "dropped_cluster"
DROPPED_DST = "dropped_dst"
DROPPED_SRC = "dropped_src"
DROPPED_LANE = "dropped_lane"
DROPPED_STALE = "dropped_stale"
DROPPED_FAULT = "dropped_fault"
DROPPED_UNKNOWN_KIND = "dropped_unknown_kind"

DROP_COUNTERS = (
    DROPPED_PARTS,
    DROPPED_SIZE,
    DROPPED_GARBAGE,
    DROPPED_VERSION,
    DROPPED_CLUSTER,
    DROPPED_DST,
    DROPPED_SRC,
    DROPPED_LANE,
    DROPPED_STALE,
    DROPPED_FAULT,
    DROPPED_UNKNOWN_KIND,
)

FOREIGN_COUNTERS = frozenset(DROP_COUNTERS[:8])
"""Frames that no member of this cluster should have sent to this socket."""


class HeaderFilter:
    """The filter of one lane and what it remembers of each peer: its life, and what was heard."""

    def __init__(
        self, *, me: MemberId, cluster: bytes, peers: Collection[MemberId], lane: int
    ) -> None:
        """Know the members; nothing was heard of anybody yet."""
        self._me = me
        self._cluster = cluster
        self._lane = lane
        self._newest = dict.fromkeys(peers, (0, 0))
        self._heard = dict.fromkeys(peers, 0)
        self._gone: dict[MemberId, tuple[int, int]] = {}

    def add(self, peer: MemberId) -> None:
        """Let the frames of another member pass; what was heard of it before is remembered."""
        self._newest.setdefault(peer, self._gone.pop(peer, (0, 0)))
        self._heard.setdefault(peer, 0)

    def remove(self, peer: MemberId) -> None:
        """Refuse the frames of a member from now on."""
        self._gone[peer] = self._newest.pop(peer)
        del self._heard[peer]

    def heard(self, peer: MemberId) -> int:
        """Return the highest seq received from `peer`, 0 for none: our header's `heard`."""
        return self._heard[peer]

    def incarnation(self, peer: MemberId) -> int:
        """Return the highest incarnation of `peer` that was heard, 0 for none."""
        return self._newest[peer][0]

    def check(self, parts: list[bytes]) -> tuple[PeerHeader, list[Any]] | Refused:
        """Return header and fields of a frame that passes (see the module), else why it doesn't.

        `parts` is what a ROUTER received: the connection's id, then what was sent.
        """
        if len(parts) != 2:
            return Refused(DROPPED_PARTS)
        frame = parts[1]
        if len(frame) > MAX_FRAME_BYTES:
            return Refused(DROPPED_SIZE)
        try:
            header, fields = decode_header(frame)
        except VersionError:
            return Refused(DROPPED_VERSION)
        except DecodeError:
            return Refused(DROPPED_GARBAGE)
        if header.cluster != self._cluster:
            return Refused(DROPPED_CLUSTER)
        if header.dst != self._me:
            return Refused(DROPPED_DST)
        src = header.src
        newest = self._newest.get(src)
        if newest is None:
            return Refused(DROPPED_SRC, src)
        if header.lane != self._lane:
            return Refused(DROPPED_LANE, src)
        life = (header.incarnation, header.epoch)
        if life != newest:
            if life < newest:
                older_life = header.incarnation if header.incarnation < newest[0] else 0
                return Refused(DROPPED_STALE, src, older_life)
            self._newest[src] = life
        self._heard[src] = max(self._heard[src], header.seq)
        return header, fields
