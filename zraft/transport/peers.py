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

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import zmq

from zraft.core.messages import Message
from zraft.core.model import MemberId
from zraft.errors import DecodeError, ForeignDataError
from zraft.transport import filter as rules
from zraft.transport.base import Lane, PeerDown
from zraft.transport.bind import make_router
from zraft.transport.filter import HeaderFilter, Refused
from zraft.transport.lanes import MAX_BACKOFF_MS, OutgoingLane
from zraft.transport.links import HeldFrames, Links
from zraft.transport.probe import PROBE_MS, Probe
from zraft.transport.reports import (
    COUNTERS,
    HEARD_SENT,
    LANES_MADE_ANEW,
    RECEIVED,
    REJECTED_SENT,
    REPORT_MS,
    SENT,
    SENT_DROPPED,
    SENT_FAULT,
    SENT_TOO_LARGE,
    SENT_UNKNOWN,
    Allowance,
    Frame,
    Report,
    RolledBack,
    Trace,
)
from zraft.wire import (
    KIND_HEARD,
    KIND_NAMES,
    KIND_REJECTED,
    REJECTED_ROLLED_BACK,
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
        self._rolled_back: deque[RolledBack] = deque(maxlen=16)
        self._rejected_ms: dict[MemberId, int] = {}
        self._probes: dict[MemberId, Probe] = {}
        self._garbage: dict[str, int] = {}
        self._garbage_report_ms = 0
        self._leaving = HeldFrames()
        self._arriving = HeldFrames()
        peers = {peer: endpoint for peer, endpoint in endpoints.items() if peer != me}
        self._filter = HeaderFilter(me=me, cluster=cluster, peers=peers, lane=Lane.PEER)
        self.inbox = make_router(
            context, bind, max_frame_bytes=MAX_FRAME_BYTES, mandatory=False, now_ms=now_ms
        )
        self._lanes = {
            peer: OutgoingLane(
                context,
                me=me,
                peer=peer,
                endpoint=endpoint,
                incarnation=incarnation,
                now_ms=now_ms(),
            )
            for peer, endpoint in peers.items()
        }
        self._flaps = {peer: Allowance(now_ms()) for peer in peers}

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
        if self.trace is not None:
            kind = type(message).__name__
            self.trace(
                "received",
                message,
                Frame(kind, header.src, header.term, header.epoch, header.seq, size),
            )
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
        if refused.older_life:
            self._tell_rolled_back(refused.src, refused.older_life, now_ms)
        if self.trace is not None and refused.src:
            self.trace("dropped", None, Frame("", refused.src, 0, 0, 0, 0, refused.counter))

    def _drop(self, counter: str, header: PeerHeader) -> None:
        self._count(counter)
        if self.trace is not None:
            kind = KIND_NAMES.get(header.kind, str(header.kind))
            frame = Frame(kind, header.src, header.term, header.epoch, header.seq, 0, counter)
            self.trace("dropped", None, frame)

    def _count(self, counter: str) -> None:
        self._counters[counter] += 1
        if counter in rules.FOREIGN_COUNTERS:
            self._garbage[counter] = self._garbage.get(counter, 0) + 1

    # -------------------------------------------------------------------- rolled-back disks

    def _tell_rolled_back(self, peer: MemberId, incarnation: int, now_ms: int) -> None:
        """Tell a peer the highest incarnation that was heard of it; it knows what that means."""
        last_ms = self._rejected_ms.get(peer)
        if last_ms is not None and now_ms - last_ms < REPORT_MS:
            return
        lane = self._lanes[peer]
        seen = self._filter.incarnation(peer)
        rejected = Rejected(self._me, peer, REJECTED_ROLLED_BACK, seen)
        frame = encode_rejected(rejected, **self._next_head(lane))
        if self._send_frame(lane, frame, now_ms) != SENT:
            return
        self._counters[REJECTED_SENT] += 1
        self._rejected_ms[peer] = now_ms
        rolled_back = RolledBack(peer, incarnation, seen)
        if rolled_back not in self._rolled_back:
            self._rolled_back.append(rolled_back)
            self._emit(
                "peer.rolled_back", peer=self._label(peer), incarnation=incarnation, seen=seen
            )

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
        if rejected.reason != REJECTED_ROLLED_BACK or rejected.incarnation <= self._incarnation:
            return  # late frames of our own past were refused, rightly
        raise ForeignDataError(
            "this data directory was put back to an older state",
            why=f"peer {self._label(rejected.src)} has heard incarnation {rejected.incarnation} "
            f"of this member, and this is incarnation {self._incarnation}: votes and entries that "
            "it acknowledged since are not in this directory",
            try_="replace the node: an empty directory joins as a new member",
        )

    def rolled_back(self) -> list[RolledBack]:
        """Return the peers that spoke as an older life than one heard before, each pair once."""
        return list(self._rolled_back)

    # ------------------------------------------------------------------------- events, timers

    def downs(self) -> list[PeerDown]:
        """Return the peers found dead since the last call."""
        if not self._downs:
            return []
        downs, self._downs = self._downs, []
        return downs

    def connected(self, peer: MemberId) -> bool:
        """Return whether the lane to `peer` has a connection, as far as its events were read."""
        return self._lanes[peer].connected

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
        if self._garbage or self._probes or self.links.active or self._leaving or self._arriving:
            others = [deadline_ms, self.links.next_deadline_ms()]
            others += [probe.deadline_ms for probe in self._probes.values()]
            others += [self._leaving.next_deadline_ms(), self._arriving.next_deadline_ms()]
            others += [self._garbage_report_ms] if self._garbage else []
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
        if self._garbage and now_ms >= self._garbage_report_ms:
            self._garbage_report_ms = now_ms + REPORT_MS
            garbage, self._garbage = self._garbage, {}
            for reason, count in garbage.items():
                self._emit("peer.garbage", socket="peer", reason=reason, count=count)
        for fault in self.links.expire(now_ms):
            self._emit("fault.cleared", fault=fault.fault_id, rule=fault.rule(self._label))
        for peer, frame in self._leaving.due(now_ms):
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
