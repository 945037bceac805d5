"""What the peer transport tells its owner: events, counters, traces of frames. No socket here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from zraft.core.messages import Message
from zraft.core.model import MemberId
from zraft.transport.filter import DROP_COUNTERS

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


Trace = Callable[[str, Message | None, Frame], None]
"""`trace(direction, message, frame)`, direction being sent, received or dropped; of a frame that
was dropped on arrival there is no message."""


class RolledBack(NamedTuple):
    """A frame of `incarnation` came although `seen` was heard before; the peer was told so."""

    peer: MemberId
    incarnation: int
    seen: int


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
