"""What the peer transport sends, takes and drops, as lines of the trace stream.

A hot hook: it is set only while traces are on, and asks for nothing that is not at hand.
"""

from __future__ import annotations

from collections.abc import Callable

from zraft.core.messages import AppendEntries, Message
from zraft.core.model import MemberId
from zraft.telemetry import Telemetry
from zraft.transport.reports import Frame


class PeerTrace:
    """The `trace` hook of `PeerSockets`."""

    def __init__(self, telemetry: Telemetry, name_of: Callable[[MemberId], str]) -> None:
        self._telemetry = telemetry
        self._name_of = name_of

    def __call__(self, direction: str, message: Message | None, frame: Frame) -> None:
        """Write one line about one frame."""
        telemetry, peer = self._telemetry, self._name_of(frame.peer)
        if direction == "dropped":
            telemetry.trace("rpc.dropped", kind=frame.kind, peer=peer, reason=frame.reason)
            return
        facts: dict[str, object] = {
            "kind": frame.kind,
            "peer": peer,
            "message_term": frame.term,
            "epoch": frame.epoch,
            "frame_seq": frame.seq,
            "bytes": frame.size_bytes,
            "heartbeat": isinstance(message, AppendEntries) and not message.entries.terms,
        }
        if direction == "sent":
            telemetry.trace("rpc.sent", **facts)
        else:
            telemetry.trace("rpc.received", **facts)
