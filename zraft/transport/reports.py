"""What the peer transport tells its owner: events, counters, traces of frames. No socket here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from zraft.core.messages import Message
from zraft.core.model import MemberId
from zraft.transport.filter import DROP_COUNTERS, FOREIGN_COUNTERS
from zraft.wire import KIND_NAMES, PeerHeader

REPORT_MS = 1000
"""At most one line a second and reason about garbage, and one Rejected a second and peer."""

SENT = "sent"
RECEIVED = "received"
SENT_DROPPED = "sent_dropped"
SENT_FAULT = "sent_fault"
SENT_TOO_LARGE = "sent_too_large"
SENT_UNKNOWN = "sent_unknown_member"
REJECTED_SENT = "rejected_sent"
HEARD_SENT = "heard_sent"
LANES_MADE_ANEW = "lanes_made_anew"
COUNTERS = (
    SENT,
    RECEIVED,
    SENT_DROPPED,
    SENT_FAULT,
    SENT_TOO_LARGE,
    SENT_UNKNOWN,
    REJECTED_SENT,
    HEARD_SENT,
    LANES_MADE_ANEW,
    *DROP_COUNTERS,
)


class Report(Protocol):
    """Takes the events of `zraft.events`: `Telemetry.emit` fits."""

    def __call__(self, event: str, /, **fields: object) -> None:
        """Write one event."""
        ...


class Frame(NamedTuple):
    """What a trace hook is told of a frame. `reason` is the counter of a drop, else empty."""

    kind: str
    peer: MemberId
    term: int
    epoch: int
    seq: int
    size_bytes: int
    reason: str = ""


def frame_of(header: PeerHeader, size: int = 0, reason: str = "") -> Frame:
    """Return what a trace hook is told of a frame that arrived."""
    kind = KIND_NAMES.get(header.kind, str(header.kind))
    return Frame(kind, header.src, header.term, header.epoch, header.seq, size, reason)


Trace = Callable[[str, Message | None, Frame], None]
"""`trace(direction, message, frame)`, direction being sent, received or dropped; of a frame that
was dropped on arrival there is no message."""


class RolledBack(NamedTuple):
    """A frame of `incarnation` came although `seen` was heard before; the peer was told so."""

    peer: MemberId
    incarnation: int
    seen: int


class Strangers(Protocol):
    """Who looks after members that come and go."""

    def on_unknown(self, member: MemberId, now_ms: int) -> None:
        """A frame of this cluster came from somebody without a lane; it was dropped."""
        ...

    def on_candidate(self, member: MemberId, now_ms: int) -> None:
        """Somebody asks for a vote."""
        ...

    def on_told_removed(self, index: int, now_ms: int) -> None:
        """A member says: no member since the committed configuration at `index`."""
        ...


class Allowance:
    """At most ten at once and one a second: keeps a flapping connection from filling the log."""

    BURST = 10

    def __init__(self, now_ms: int) -> None:
        """Start full."""
        self._left = self.BURST
        self._since_ms = now_ms

    def take(self, now_ms: int) -> bool:
        """Return whether one more is allowed now."""
        earned = (now_ms - self._since_ms) // REPORT_MS
        if earned > 0:
            self._left = min(self.BURST, self._left + earned)
            self._since_ms += earned * REPORT_MS
        if self._left == 0:
            return False
        self._left -= 1
        return True


class Garbage:
    """Frames that no member of this cluster should have sent to a socket; told once a second."""

    def __init__(self, socket: str, report: Report) -> None:
        """Nothing came yet. `socket` names it in the event."""
        self._socket = socket
        self._emit = report
        self._counts: dict[str, int] = {}
        self._report_ms = 0

    def count(self, counter: str) -> None:
        """Take note of a dropped frame, if its reason is one of these."""
        if counter in FOREIGN_COUNTERS:
            self._counts[counter] = self._counts.get(counter, 0) + 1

    def next_deadline_ms(self) -> int | None:
        """Return when `on_timer` has something to tell, None when there is nothing."""
        return self._report_ms if self._counts else None

    def on_timer(self, now_ms: int) -> None:
        """Report what came since the last time, unless that was a moment ago."""
        if not self._counts or now_ms < self._report_ms:
            return
        self._report_ms = now_ms + REPORT_MS
        counts, self._counts = self._counts, {}
        for reason, count in counts.items():
            self._emit("peer.garbage", socket=self._socket, reason=reason, count=count)
