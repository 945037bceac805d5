"""The peer transport over ZeroMQ: a bound ROUTER that only receives, a DEALER a peer that sends.

It owns these sockets, their monitors and the probes; it filters what arrives, keeps the lanes in
repair, and reports. It never blocks, never starts a thread, never queues a message of its own, and
never lets bytes from the network raise, with one exception that is meant to end the process: a
peer's proof that this data directory was put back to an older state (`ForeignDataError`).

How the loop drives it, each turn:

- wait for `pollables()`, asked again when `pollables_version` has changed since, and at most until
  `next_deadline_ms()`;
- `on_ready(pollable)` for each of them that is ready, except `inbox`;
- `receive(limit)` and `downs()`, then with the other timers `on_timer(now_ms)`;
- `send(messages)` while it flushes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import zmq

from zraft.core.messages import Message
from zraft.core.model import MemberId
from zraft.errors import DecodeError
from zraft.transport import filter as rules
from zraft.transport.base import Lane, PeerDown
from zraft.transport.bind import make_router
from zraft.transport.filter import HeaderFilter, Refused
from zraft.transport.lanes import MAX_BACKOFF_MS, OutgoingLane
from zraft.transport.links import HeldFrames, Links
from zraft.transport.probe import PROBE_MS, Probe
from zraft.transport.rejections import Rejections
from zraft.transport.reports import (
    COUNTERS,
    HEARD_SENT,
    LANES_MADE_ANEW,
    RECEIVED,
    REJECTED_SENT,
    SENT,
    SENT_DROPPED,
    SENT_FAULT,
    SENT_TOO_LARGE,
    SENT_UNKNOWN,
    Allowance,
    Frame,
    Garbage,
    Report,
    Strangers,
    Trace,
    frame_of,
)
from zraft.wire import (
    KIND_HEARD,
    KIND_REJECTED,
    KIND_REQUEST_VOTE,
    FrameHead,
    PeerHeader,
    Rejected,
    UnknownKind,
    decode_header,
    decode_message,
    decode_rejected,
    encode_heard,
    encode_message,
    encode_rejected,
)
from zraft.wire_entry import MAX_FRAME_BYTES


def _hex(member: MemberId) -> str:
    return f"{member:016x}"


class PeerSockets:
    """`Peers` over sockets. See the module for how a loop drives it.

    `trace` may be set at any time; None costs one test a frame. `inbox` is the receiving socket.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        *,
        me: MemberId,
        cluster: bytes,
        incarnation: int,
        bind: str,
        endpoints: Mapping[MemberId, str],
        links: Links,
        report: Report,
        now_ms: Callable[[], int],
        label: Callable[[MemberId], str] = _hex,
    ) -> None:
        """Bind `bind` and start connecting to every peer in `endpoints` (`me` is left out).

        The caller holds the lock of the data directory: an ipc path is taken from whoever has it.

        Raises:
            SupervisorError: the endpoint is in use (exit code 75).
            StorageError: the endpoint can not be bound.
        """
        assert len(cluster) == 8, "a cluster id is eight bytes"
        assert 0 < incarnation < 1 << 32, "incarnations count boots from 1"
        self.trace: Trace | None = None
        self.strangers: Strangers | None = None
        self.links = links
        self.pollables_version = 0
        self._me = me
        self._cluster = cluster
        self._incarnation = incarnation
        self._emit = report
        self._now_ms = now_ms
        self._label = label
        self._counters = dict.fromkeys(COUNTERS, 0)
        self._inbox_empty = True
        self._downs: list[PeerDown] = []
        self.rejections = Rejections(
            me=me, incarnation=incarnation, send=self._send_rejected, report=report, label=label
        )
        self._probes: dict[MemberId, Probe] = {}
        self._garbage = Garbage("peer", report)
        self._leaving = HeldFrames()
        self._arriving = HeldFrames()
        self._filter = HeaderFilter(me=me, cluster=cluster, peers=(), lane=Lane.PEER)
        self.inbox = make_router(
            context, bind, max_frame_bytes=MAX_FRAME_BYTES, mandatory=False, now_ms=now_ms
        )
        self._context = context
        self._lanes: dict[MemberId, OutgoingLane] = {}
        self._past: dict[MemberId, OutgoingLane] = {}  # dropped; epoch and seq go on after theirs
        self._flaps: dict[MemberId, Allowance] = {}
        for peer, endpoint in endpoints.items():
            if peer != me:
                self.add_peer(peer, endpoint)

    def has_peer(self, peer: MemberId) -> bool:
        """Return whether there is a lane to a member."""
        return peer in self._lanes

    def add_peer(self, peer: MemberId, endpoint: str) -> None:
        """Start connecting to a member that has no lane, and take its frames."""
        assert peer not in {self._me, *self._lanes}, peer
        past, now_ms = self._past.pop(peer, None), self._now_ms()
        lane = self._lanes[peer] = OutgoingLane(
            self._context,
            me=self._me,
            peer=peer,
            endpoint=endpoint,
            incarnation=self._incarnation,
            now_ms=now_ms,
            epoch=1 if past is None else past.epoch + 1,
        )
        lane.seq = lane.seq if past is None else past.seq
        self._flaps[peer] = Allowance(now_ms)
        self._filter.add(peer)
        self.pollables_version += 1

    def drop_peer(self, peer: MemberId) -> None:
        """End the lane to a member; what it sends is refused from now on."""
        lane = self._past[peer] = self._lanes.pop(peer)
        lane.close()
        probe = self._probes.pop(peer, None)
        if probe is not None:
            probe.close()
        self._filter.remove(peer)
        self.pollables_version += 1

    # ------------------------------------------------------------------------------- sending

    def send(self, messages: Sequence[Message]) -> None:
        """Hand each message to the lane of its `dst`; what can't leave now is dropped, counted."""
        if not messages:
            return
        now_ms = self._now_ms()
        for message in messages:
            lane = self._lanes.get(message.dst)
            if lane is None:
                self._counters[SENT_UNKNOWN] += 1
                continue
            lane.seq += 1
            frame = encode_message(
                message,
                lane=Lane.PEER,
                cluster=self._cluster,
                incarnation=self._incarnation,
                epoch=lane.epoch,
                seq=lane.seq,
                heard=self._filter.heard(message.dst),
            )
            counter = self._send_frame(lane, frame, now_ms)
            if self.trace is not None:
                self._trace_sent(message, lane, len(frame), counter)

    def _send_frame(self, lane: OutgoingLane, frame: bytes, now_ms: int) -> str:
        """Send what the links make of a frame; return the counter that it went to."""
        if len(frame) > MAX_FRAME_BYTES:
            counter = SENT_TOO_LARGE  # it would only end the connection
        elif self.links.active:
            counter = self._send_through_links(lane, frame, now_ms)
        else:
            counter = SENT if lane.send(frame, now_ms, lane.seq) else SENT_DROPPED
        self._counters[counter] += 1
        return counter

    def _send_through_links(self, lane: OutgoingLane, frame: bytes, now_ms: int) -> str:
        kind = decode_header(frame)[0].kind
        counter = SENT_FAULT
        for at_ms, copy in self.links.outgoing(lane.peer, Lane.PEER, kind, frame, now_ms):
            if at_ms > now_ms:
                self._leaving.add(at_ms, lane.peer, copy)
                counter = SENT
            else:
                counter = SENT if lane.send(copy, now_ms, lane.seq) else SENT_DROPPED
        return counter

    def _trace_sent(self, message: Message, lane: OutgoingLane, size: int, counter: str) -> None:
        assert self.trace is not None
        reason = "" if counter == SENT else counter
        frame = Frame(
            type(message).__name__, lane.peer, message.term, lane.epoch, lane.seq, size, reason
        )
        self.trace("dropped" if reason else "sent", message, frame)

    # ----------------------------------------------------------------------------- receiving

    @property
    def inbox_empty(self) -> bool:
        """Whether the last `receive` left nothing behind that a timer should wait for.

        True as well when it read nothing but garbage: a flood of it must not stop elections.
        """
        return self._inbox_empty

    def receive(self, limit: int) -> list[Message]:
        """Take at most `limit` frames; return the messages of those that passed every check.

        Raises:
            ForeignDataError: a peer has heard a later life of this member: the data directory was
                put back to an older state, and this process must end (exit code 65).
        """
        messages: list[Message] = []
        now_ms = self._now_ms()
        drained = False
        recv = self.inbox.recv_multipart
        for _ in range(limit):
            try:
                parts = recv(zmq.NOBLOCK)
            except zmq.ZMQError:
                drained = True
                break
            message = self._accept(parts, now_ms)
            if message is not None:
                messages.append(message)
        self._inbox_empty = drained or not messages
        for _, frame in self._arriving.due(now_ms):
            message = self._decode_again(frame)
            if message is not None:
                messages.append(message)
        return messages

    def _accept(self, parts: list[bytes], now_ms: int) -> Message | None:
        checked = self._filter.check(parts)
        if isinstance(checked, Refused):
            self._refuse(checked, now_ms)
            return None
        header, fields = checked
        src = header.src
        lane = self._lanes[src]
        if header.incarnation > lane.peer_incarnation:
            lane.on_peer_started(header.incarnation)
        lane.on_heard(header.heard, now_ms)
        if header.kind == KIND_HEARD:
            return None
        lane.owe(now_ms)
        if not self.links.active:
            return self._decode(header, fields, len(parts[1]))
        deliveries = self.links.incoming(src, Lane.PEER, header.kind, parts[1], now_ms)
        if not deliveries:
            self._drop(rules.DROPPED_FAULT, header)
            return None
        for at_ms, copy in deliveries:
            self._arriving.add(at_ms, src, copy)
        return None

    def _decode(self, header: PeerHeader, fields: list[object], size: int) -> Message | None:
        try:
            if header.kind == KIND_REJECTED:
                self._on_rejected(decode_rejected(header, fields))
                return None
            message = decode_message(header, fields)
        except UnknownKind:
            self._drop(rules.DROPPED_UNKNOWN_KIND, header)
            return None
        except DecodeError:
            self._drop(rules.DROPPED_GARBAGE, header)
            return None
        self._counters[RECEIVED] += 1
        if header.kind == KIND_REQUEST_VOTE and self.strangers is not None:
            self.strangers.on_candidate(header.src, self._now_ms())
        if self.trace is not None:
            self.trace("received", message, frame_of(header, size))
        return message

    def _decode_again(self, frame: bytes) -> Message | None:
        """Decode a frame that the links kept or changed; its header had passed the filter."""
        try:
            header, fields = decode_header(frame)
        except DecodeError:
            self._count(rules.DROPPED_GARBAGE)
            return None
        return self._decode(header, fields, len(frame))

    def _refuse(self, refused: Refused, now_ms: int) -> None:
        self._count(refused.counter)
        if refused.counter == rules.DROPPED_SRC and self.strangers is not None:
            self.strangers.on_unknown(refused.src, now_ms)
        if refused.older_life:
            seen = self._filter.incarnation(refused.src)
            self.rejections.tell_rolled_back(refused.src, refused.older_life, seen, now_ms)
        if self.trace is not None and refused.src:
            self.trace("dropped", None, Frame("", refused.src, 0, 0, 0, 0, refused.counter))

    def _drop(self, counter: str, header: PeerHeader) -> None:
        self._count(counter)
        if self.trace is not None:
            self.trace("dropped", None, frame_of(header, reason=counter))

    def _count(self, counter: str) -> None:
        self._counters[counter] += 1
        self._garbage.count(counter)

    # ------------------------------------------------------------------------------ rejections

    def _send_rejected(self, rejected: Rejected, now_ms: int) -> bool:
        lane = self._lanes[rejected.dst]
        frame = encode_rejected(rejected, **self._next_head(lane))
        if self._send_frame(lane, frame, now_ms) != SENT:
            return False
        self._counters[REJECTED_SENT] += 1
        return True

    def _next_head(self, lane: OutgoingLane) -> FrameHead:
        """Return what stands in the header of the next frame of the transport's own on a lane."""
        lane.seq += 1
        return FrameHead(
            lane=Lane.PEER,
            cluster=self._cluster,
            incarnation=self._incarnation,
            epoch=lane.epoch,
            seq=lane.seq,
            heard=self._filter.heard(lane.peer),
        )

    def _on_rejected(self, rejected: Rejected) -> None:
        index = self.rejections.on_rejected(rejected)
        if index is not None and self.strangers is not None:
            self.strangers.on_told_removed(index, self._now_ms())

    # ------------------------------------------------------------------------- events, timers

    def downs(self) -> list[PeerDown]:
        """Return the peers found dead since the last call."""
        if not self._downs:
            return []
        downs, self._downs = self._downs, []
        return downs

    def connected(self, peer: MemberId) -> bool:
        """Return whether the lane to `peer` has a connection, as far as its events were read."""
        return peer in self._lanes and self._lanes[peer].connected

    def incarnation(self, peer: MemberId) -> int:
        """Return the highest incarnation of `peer` that was heard, 0 for none."""
        return self._filter.incarnation(peer)

    def counters(self) -> dict[str, int]:
        """Return how many frames went which way since the start."""
        return dict(self._counters)

    def pollables(self) -> list[tuple[zmq.Socket[bytes] | int, int]]:
        """Return what to wait for, with the events to wait for."""
        found: list[tuple[zmq.Socket[bytes] | int, int]] = [(self.inbox, zmq.POLLIN)]
        # the descriptor tells news once, and all is read then; polling the socket costs more
        found += [(lane.monitor, zmq.POLLIN) for lane in self._lanes.values()]
        waiting = (probe.pollable() for probe in self._probes.values())
        return found + [pollable for pollable in waiting if pollable is not None]

    def on_ready(self, pollable: object) -> bool:
        """Handle a pollable that is ready; False when it is none of the monitors and probes."""
        for lane in self._lanes.values():
            if lane.monitor is pollable:
                self._on_monitor(lane, self._now_ms())
                return True
        for peer, probe in self._probes.items():
            waiting = probe.pollable()
            if waiting is not None and waiting[0] == pollable:
                probe.on_ready()
                self._on_probe(peer, probe)
                return True
        return False

    def _on_monitor(self, lane: OutgoingLane, now_ms: int) -> None:
        for connected in lane.read_monitor(now_ms):
            if self._flaps[lane.peer].take(now_ms):
                self._emit(
                    "peer.connected" if connected else "peer.disconnected",
                    peer=self._label(lane.peer),
                    endpoint=lane.endpoint,
                )
            if not connected and lane.peer not in self._probes:
                probe = Probe(lane.endpoint, now_ms + PROBE_MS)
                self._probes[lane.peer] = probe
                self._on_probe(lane.peer, probe)

    def _on_probe(self, peer: MemberId, probe: Probe) -> None:
        self.pollables_version += 1  # another descriptor, other events, or none any more
        if probe.outcome is None:
            return
        del self._probes[peer]
        if probe.refused:
            down = PeerDown(peer, self._filter.incarnation(peer))
            self._downs.append(down)
            self._emit("peer.down", peer=self._label(peer), incarnation=down.incarnation)
        elif self._flaps[peer].take(self._now_ms()):
            self._emit("peer.probed", peer=self._label(peer), outcome=probe.outcome)

    def next_deadline_ms(self) -> int | None:
        """Return when `on_timer` has something to do; None when only an event can change that."""
        deadline_ms: int | None = None
        for lane in self._lanes.values():
            for due_ms in (lane.renewal_deadline_ms(), lane.owed_deadline_ms()):
                if due_ms is not None and (deadline_ms is None or due_ms < deadline_ms):
                    deadline_ms = due_ms
        garbage_ms = self._garbage.next_deadline_ms()
        held = self._leaving or self._arriving
        if garbage_ms is not None or self._probes or self.links.active or held:
            others = [deadline_ms, garbage_ms, self.links.next_deadline_ms()]
            others += [probe.deadline_ms for probe in self._probes.values()]
            others += [self._leaving.next_deadline_ms(), self._arriving.next_deadline_ms()]
            deadline_ms = min((due for due in others if due is not None), default=None)
        return deadline_ms

    def on_timer(self, now_ms: int) -> None:
        """Make lanes anew that nothing passes, give up on probes, report, end faults."""
        for lane in self._lanes.values():
            due_ms = lane.renewal_deadline_ms()
            if due_ms is not None and due_ms <= now_ms:
                self._make_anew(lane, now_ms)
            owed_ms = lane.owed_deadline_ms()
            if owed_ms is not None and owed_ms <= now_ms:
                self._tell_heard(lane, now_ms)
        for peer, probe in list(self._probes.items()):
            probe.on_timer(now_ms)
            if probe.outcome is not None:
                self._on_probe(peer, probe)
        self._garbage.on_timer(now_ms)
        for fault in self.links.expire(now_ms):
            self._emit("fault.cleared", fault=fault.fault_id, rule=fault.rule(self._label))
        for peer, frame in self._leaving.due(now_ms):
            if peer in self._lanes:
                self._lanes[peer].send(frame, now_ms, 0)

    def _make_anew(self, lane: OutgoingLane, now_ms: int) -> None:
        self._on_monitor(lane, now_ms)
        due_ms = lane.renewal_deadline_ms()
        if due_ms is None or due_ms > now_ms or not self._inbox_empty:
            return  # what we did not know yet, or have not read yet, may speak for it
        before_ms = lane.backoff_ms
        reason = lane.make_anew(now_ms)
        self.pollables_version += 1
        self._counters[LANES_MADE_ANEW] += 1
        if before_ms < MAX_BACKOFF_MS:  # a peer that stays away is not news every ten seconds
            self._emit(
                "peer.reconnected",
                peer=self._label(lane.peer),
                reason=reason,
                backoff_ms=lane.backoff_ms,
            )

    def _tell_heard(self, lane: OutgoingLane, now_ms: int) -> None:
        """Tell a peer what arrived, as nothing else told it for a while; nobody answers this."""
        frame = encode_heard(src=self._me, dst=lane.peer, **self._next_head(lane))
        passes = not self.links.active or bool(
            self.links.outgoing(lane.peer, Lane.PEER, KIND_HEARD, frame, now_ms)
        )
        if passes and lane.send(frame, now_ms, 0):
            self._counters[HEARD_SENT] += 1
        else:
            lane.put_off_owed(now_ms)

    def close(self) -> None:
        """Close every socket; what was not sent is lost."""
        for probe in self._probes.values():
            probe.close()
        self._probes.clear()
        for lane in self._lanes.values():
            lane.close()
        self.inbox.close(0)
