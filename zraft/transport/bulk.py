"""The bulk lanes over ZeroMQ: chunks of snapshots, apart from everything that must not wait.

A bound ROUTER that only receives, and a DEALER a peer that exists only while this node sends it a
snapshot. They are sockets, connections and buffers of their own, so a heartbeat never stands behind
a chunk (measured: behind chunks on one connection up to 170 ms, beside them 5 ms). Frames, header
checks, staleness filter and fault rules are those of the peer lanes; of the kinds only
InstallSnapshot is taken here.

No frame comes back on a bulk lane, so `heard` can't tell whether it works: the answers on the peer
lane do, and whoever sends the snapshot calls `renew` when they stay away. A lane without a
handshake is made anew here, as the others are.

The loop drives it as it drives `PeerSockets`: `pollables`, `on_ready`, `receive`, `on_timer`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import zmq

from zraft.core.messages import InstallSnapshot
from zraft.core.model import MemberId
from zraft.errors import DecodeError
from zraft.transport import filter as rules
from zraft.transport.base import Lane
from zraft.transport.bind import make_router
from zraft.transport.filter import HeaderFilter, Refused
from zraft.transport.lanes import BULK_LANE, OutgoingLane
from zraft.transport.links import HeldFrames, Links
from zraft.transport.reports import (
    LANES_MADE_ANEW,
    RECEIVED,
    SENT,
    SENT_DROPPED,
    SENT_FAULT,
    SENT_TOO_LARGE,
    SENT_UNKNOWN,
    Frame,
    Garbage,
    Report,
    Trace,
    frame_of,
)
from zraft.wire import (
    KIND_INSTALL_SNAPSHOT,
    KIND_NAMES,
    PeerHeader,
    decode_header,
    decode_message,
    encode_message,
)

MAX_BULK_FRAME_BYTES = 1 << 20
COUNTERS = (
    SENT,
    RECEIVED,
    SENT_DROPPED,
    SENT_FAULT,
    SENT_TOO_LARGE,
    SENT_UNKNOWN,
    LANES_MADE_ANEW,
    *rules.DROP_COUNTERS,
)


class BulkSockets:
    """`Bulk` over sockets. `trace` may be set at any time; None costs one test a frame."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        *,
        me: MemberId,
        cluster: bytes,
        incarnation: int,
        bind: str,
        peers: Collection[MemberId],
        endpoint_of: Callable[[MemberId], str | None],
        links: Links,
        report: Report,
        now_ms: Callable[[], int],
    ) -> None:
        """Bind `bind`, and connect to nobody yet. `peers`: whose frames are taken.

        Raises:
            SupervisorError: the endpoint is in use (exit code 75).
            StorageError: the endpoint can not be bound.
        """
        self.trace: Trace | None = None
        self.pollables_version = 0
        self._context = context
        self._me = me
        self._cluster = cluster
        self._incarnation = incarnation
        self._endpoint_of = endpoint_of
        self._links = links
        self._emit = report
        self._now_ms = now_ms
        self._lanes: dict[MemberId, OutgoingLane] = {}
        self._past: dict[MemberId, OutgoingLane] = {}  # shut; epoch and seq go on after theirs
        self._counters = dict.fromkeys(COUNTERS, 0)
        self._garbage = Garbage("bulk", report)
        self._leaving = HeldFrames()
        self._arriving = HeldFrames()
        self._filter = HeaderFilter(
            me=me, cluster=cluster, peers=[peer for peer in peers if peer != me], lane=Lane.BULK
        )
        self.inbox = make_router(
            context, bind, max_frame_bytes=MAX_BULK_FRAME_BYTES, mandatory=False, now_ms=now_ms
        )

    def add_peer(self, peer: MemberId) -> None:
        """Take the chunks of another member."""
        self._filter.add(peer)

    def drop_peer(self, peer: MemberId) -> None:
        """Refuse the chunks of a member from now on, and send it none."""
        self.shut(peer)
        self._filter.remove(peer)

    # ------------------------------------------------------------------------------- sending

    def open(self, peer: MemberId) -> None:
        """Start connecting to a peer's bulk socket; see `Bulk.open`."""
        if peer in self._lanes:
            return
        endpoint = self._endpoint_of(peer)
        if endpoint is None:
            self._counters[SENT_UNKNOWN] += 1
            return
        past = self._past.get(peer)
        lane = self._lanes[peer] = OutgoingLane(
            self._context,
            me=self._me,
            peer=peer,
            endpoint=endpoint,
            incarnation=self._incarnation,
            now_ms=self._now_ms(),
            options=BULK_LANE,
            epoch=1 if past is None else past.epoch + 1,
        )
        lane.seq = lane.seq if past is None else past.seq
        self.pollables_version += 1

    def is_connected(self, peer: MemberId) -> bool:
        """Return whether there is a lane to a peer, with a connection."""
        lane = self._lanes.get(peer)
        return lane is not None and lane.connected

    def send(self, chunk: InstallSnapshot) -> bool:
        """Hand a chunk to the lane of its `dst`; see `Bulk.send`."""
        lane = self._lanes.get(chunk.dst)
        if lane is None:
            self._counters[SENT_UNKNOWN] += 1
            return False
        lane.seq += 1
        frame = encode_message(
            chunk,
            lane=Lane.BULK,
            cluster=self._cluster,
            incarnation=self._incarnation,
            epoch=lane.epoch,
            seq=lane.seq,
            heard=0,
        )
        counter = self._send_frame(lane, frame)
        self._counters[counter] += 1
        if self.trace is not None:
            reason = "" if counter == SENT else counter
            kind = KIND_NAMES[KIND_INSTALL_SNAPSHOT]
            facts = Frame(kind, lane.peer, chunk.term, lane.epoch, lane.seq, len(frame), reason)
            self.trace("dropped" if reason else "sent", chunk, facts)
        return counter in {SENT, SENT_FAULT}

    def _send_frame(self, lane: OutgoingLane, frame: bytes) -> str:
        """Send what the links make of a frame; return the counter that it goes to."""
        now_ms = self._now_ms()
        if len(frame) > MAX_BULK_FRAME_BYTES:
            return SENT_TOO_LARGE  # it would only end the connection
        if not self._links.active:
            return SENT if lane.send(frame, now_ms, 0) else SENT_DROPPED
        counter = SENT_FAULT  # lost on the way: whoever sent it can't know
        kind = KIND_INSTALL_SNAPSHOT
        for at_ms, copy in self._links.outgoing(lane.peer, Lane.BULK, kind, frame, now_ms):
            if at_ms > now_ms:
                self._leaving.add(at_ms, lane.peer, copy)
                counter = SENT
            else:
                counter = SENT if lane.send(copy, now_ms, 0) else SENT_DROPPED
        return counter

    def renew(self, peer: MemberId) -> None:
        """Connect anew; see `Bulk.renew`."""
        lane = self._lanes.get(peer)
        if lane is not None:
            self._make_anew(lane, self._now_ms())

    def shut(self, peer: MemberId) -> None:
        """End the lane to a peer; see `Bulk.shut`."""
        lane = self._lanes.pop(peer, None)
        if lane is None:
            return
        self._past[peer] = lane
        lane.close()
        self.pollables_version += 1

    # ----------------------------------------------------------------------------- receiving

    def receive(self, limit: int) -> list[InstallSnapshot]:
        """Take at most `limit` frames; return the chunks of those that passed every check."""
        chunks: list[InstallSnapshot] = []
        now_ms = self._now_ms()
        for _ in range(limit):
            try:
                parts = self.inbox.recv_multipart(zmq.NOBLOCK)
            except zmq.ZMQError:
                break
            chunk = self._accept(parts, now_ms)
            if chunk is not None:
                chunks.append(chunk)
        for _, frame in self._arriving.due(now_ms):
            chunk = self._decode_again(frame)
            if chunk is not None:
                chunks.append(chunk)
        return chunks

    def _accept(self, parts: list[bytes], now_ms: int) -> InstallSnapshot | None:
        checked = self._filter.check(parts)
        if isinstance(checked, Refused):
            self._count(checked.counter)
            if self.trace is not None and checked.src:
                self.trace("dropped", None, Frame("", checked.src, 0, 0, 0, 0, checked.counter))
            return None
        header, fields = checked
        if not self._links.active:
            return self._decode(header, fields, len(parts[1]))
        deliveries = self._links.incoming(header.src, Lane.BULK, header.kind, parts[1], now_ms)
        if not deliveries:
            self._drop(rules.DROPPED_FAULT, header)
        for at_ms, copy in deliveries:
            self._arriving.add(at_ms, header.src, copy)
        return None

    def _decode_again(self, frame: bytes) -> InstallSnapshot | None:
        """Decode a frame that the links kept or changed; its header had passed the filter."""
        try:
            header, fields = decode_header(frame)
        except DecodeError:
            self._count(rules.DROPPED_GARBAGE)
            return None
        return self._decode(header, fields, len(frame))

    def _decode(
        self, header: PeerHeader, fields: list[object], size: int
    ) -> InstallSnapshot | None:
        if header.kind != KIND_INSTALL_SNAPSHOT:
            self._drop(rules.DROPPED_UNKNOWN_KIND, header)
            return None
        try:
            message = decode_message(header, fields)
        except DecodeError:
            self._drop(rules.DROPPED_GARBAGE, header)
            return None
        assert isinstance(message, InstallSnapshot), "the kind says so"
        self._counters[RECEIVED] += 1
        if self.trace is not None:
            self.trace("received", message, frame_of(header, size))
        return message

    def _drop(self, counter: str, header: PeerHeader) -> None:
        self._count(counter)
        if self.trace is not None:
            self.trace("dropped", None, frame_of(header, reason=counter))

    def _count(self, counter: str) -> None:
        self._counters[counter] += 1
        self._garbage.count(counter)

    # -------------------------------------------------------------------------------- driving

    def counters(self) -> dict[str, int]:
        """Return how many frames went which way since the start, by `bulk.` names."""
        return {f"bulk.{name}": count for name, count in self._counters.items()}

    def pollables(self) -> list[tuple[zmq.Socket[bytes] | int, int]]:
        """Return what to wait for, with the events to wait for."""
        found: list[tuple[zmq.Socket[bytes] | int, int]] = [(self.inbox, zmq.POLLIN)]
        return found + [(lane.monitor, zmq.POLLIN) for lane in self._lanes.values()]

    def on_ready(self, pollable: object) -> bool:
        """Handle a pollable that is ready; False when it is none of the monitors."""
        for lane in self._lanes.values():
            if lane.monitor is pollable:
                lane.read_monitor(self._now_ms())
                return True
        return False

    def next_deadline_ms(self) -> int | None:
        """Return when `on_timer` has something to do; None when only an event can change that."""
        garbage_ms = self._garbage.next_deadline_ms()
        if not (self._lanes or self._leaving or self._arriving or garbage_ms is not None):
            return None  # nearly always, and asked every turn
        due = [lane.renewal_deadline_ms() for lane in self._lanes.values()]
        due += [self._leaving.next_deadline_ms(), self._arriving.next_deadline_ms(), garbage_ms]
        return min((deadline_ms for deadline_ms in due if deadline_ms is not None), default=None)

    def on_timer(self, now_ms: int) -> None:
        """Make lanes anew that have no handshake, send what the links held, report."""
        for lane in self._lanes.values():
            due_ms = lane.renewal_deadline_ms()
            if due_ms is not None and due_ms <= now_ms:
                lane.read_monitor(now_ms)
                due_ms = lane.renewal_deadline_ms()
                if due_ms is not None and due_ms <= now_ms:
                    self._make_anew(lane, now_ms)
        for peer, frame in self._leaving.due(now_ms):
            lane_now = self._lanes.get(peer)
            if lane_now is not None:
                lane_now.send(frame, now_ms, 0)
        self._garbage.on_timer(now_ms)

    def _make_anew(self, lane: OutgoingLane, now_ms: int) -> None:
        lane.make_anew(now_ms)
        self.pollables_version += 1
        self._counters[LANES_MADE_ANEW] += 1

    def close(self) -> None:
        """Close every socket; what was not sent is lost."""
        for lane in self._lanes.values():
            lane.close()
        self._lanes.clear()
        self.inbox.close(0)
