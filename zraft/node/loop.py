"""The one loop of a node: no Python threads, no locks, no sleep, exact deadlines.

A turn, in this order:

     1  wait          until something arrives, or exactly until the next deadline
     2  stall guard   how late did we wake, how long was the last turn? (before anything is judged)
     3  operators     signals, then the control socket
     4  peers         the inbox, in bounded batches; peers whose process is gone
     5  clients       a bounded batch; *then the clock is read again*, because a lease judged by an
                      older time serves stale reads; answers and losses of forwarded requests
     6  bulk          a few chunks of a snapshot: they may wait, nobody else waits for them
     7  timers        heartbeats whenever due; the rest once the inbox is empty (the core decides)
     8  flush         persist, send, apply a few milliseconds' worth, collect replies; send replies
     9  housekeeping  zero-fill the next segment, collect garbage, write the diagnostics

Timers run after the inbox, because a process that was paused finds its deadlines passed *and* the
heartbeats that prove them wrong waiting to be read. The I/O thread was paused, too, so the inbox
may still look empty: that is what the stall guard's grace is for.

An idle leader gathers: when only acknowledgements of a heartbeat wake it and no request waits, it
gives the other followers a millisecond before it reads, and takes all answers in one turn. Clients,
operators and signals end that millisecond at once. (Measured with five nodes: 72 turns a second
became 43, which is what an idle leader costs.)

The loop owns no state of Raft. It ends by returning why, or by an exception that its caller turns
into an exit code.
"""

from __future__ import annotations

import select
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import zmq

from zraft import clock
from zraft.api import Reply, Request
from zraft.core.messages import Message
from zraft.core.model import MemberId
from zraft.node.clients import ForwardBatch, Ready, RequestBatch
from zraft.node.lengths import Lengths
from zraft.node.signals import REOPEN_SIGNAL, STOP_SIGNALS
from zraft.transport.base import PeerDown

GATHER_MS = 1
LINES_SLACK_MS = 100  # diagnostics wait so long for a turn that comes anyway
PEER_BATCH = 64
PEER_BATCHES = 8  # a turn; then timers, clients and the disk have their turn, too
BULK_BATCH = 4  # chunks a turn, of up to 256 KiB, each to be written
MAX_WAIT_MS = 1000
MIN_STALL_MS = 20
STALL_REPORT_MS = 1000
HAND_OVER_PATIENCE_MS = 1000
STOP_PATIENCE_MS = 500
STOP_QUIET_MS = 20  # without a request, before the sockets close: none is under way any more
IDLE_WINDOW_MS = 250
IDLE_INPUTS = 64  # messages and requests in a window: more is load
IDLE_GAP_MS = 25  # until the next deadline: room for a collection


class LoopServer(Protocol):
    """What the loop calls of `Server`; times are those of `clock.now_ms`."""

    @property
    def drained(self) -> bool: ...
    @property
    def handing_over(self) -> bool: ...
    @property
    def waiting(self) -> int: ...
    def next_deadline_ms(self) -> int: ...
    def on_stall(self, late_ms: int, *, now_ms: int, grace: bool) -> None: ...
    def on_message(self, message: Message, *, now_ms: int) -> None: ...
    def on_peer_down(self, peer: MemberId, incarnation: int, *, now_ms: int) -> None: ...
    def on_requests(self, client: bytes, requests: list[Request], *, now_ms: int) -> None: ...
    def on_forward_replies(
        self, leader: MemberId, replies: list[Reply], *, now_ms: int
    ) -> None: ...
    def on_forward_lost(self, leader: MemberId, *, now_ms: int) -> None: ...
    def on_timer(self, *, now_ms: int, inbox_empty: bool) -> None: ...
    def flush(self, *, now_ms: int) -> bool: ...
    def transfer(self, *, now_ms: int) -> object | None: ...
    def prepare_stop(self, *, now_ms: int) -> None: ...
    def finish_stop(self, *, now_ms: int) -> None: ...


class LoopLanes(Protocol):
    """What the loop calls of `PeerSockets` and of `BulkSockets`."""

    @property
    def inbox(self) -> zmq.Socket[bytes]: ...
    @property
    def pollables_version(self) -> int: ...
    def pollables(self) -> list[tuple[zmq.Socket[bytes] | int, int]]: ...
    def next_deadline_ms(self) -> int | None: ...
    def on_ready(self, pollable: object) -> bool: ...
    def on_timer(self, now_ms: int) -> None: ...
    def receive(self, limit: int) -> Sequence[Message]: ...


class LoopPeers(LoopLanes, Protocol):
    """What the loop calls of `PeerSockets` alone."""

    @property
    def inbox_empty(self) -> bool: ...
    def downs(self) -> list[PeerDown]: ...


class LoopClients(Protocol):
    """What the loop calls of `ClientSockets`."""

    @property
    def has_lost(self) -> bool: ...
    def expect_leader(self, leader: MemberId, now_ms: int) -> None: ...
    def receive(self, ready: Ready) -> list[RequestBatch]: ...
    def receive_forwarded(self, ready: Ready) -> list[ForwardBatch]: ...
    def flush_replies(self) -> None: ...


class LoopControl(Protocol):
    """What the loop calls of `Control`."""

    stop_asked: bool
    block_ms: int

    def run(self, ready: Ready) -> None: ...


class LoopSignals(Protocol):
    """What the loop calls of `Signals`."""

    fd: int

    def take(self) -> set[int]: ...


class LoopTelemetry(Protocol):
    """What the loop calls of `Telemetry`."""

    def emit(self, event: str, /, **fields: object) -> None: ...
    def next_deadline_ms(self) -> int | None: ...
    def flush(self, now_ms: int) -> None: ...
    def reopen(self) -> None: ...


class LoopHousekeeping(Protocol):
    """What the loop does when nothing else is to be done."""

    def prepare(self, budget_bytes: int) -> bool:
        """Zero-fill or sync a piece of the log's space, or free one that is not needed."""
        ...

    def maybe_collect(self, now_ms: int) -> None:
        """Collect garbage if that is due."""
        ...

    def report(self, now_ms: int) -> None:
        """Report what was dropped, not too often."""
        ...


@dataclass(slots=True)
class LoopParts:
    """Everything that the loop runs; all of it belongs to the process that makes the loop."""

    poller: zmq.Poller
    urgent: zmq.Poller  # clients and operators: what ends the gathering of answers
    server: LoopServer
    peers: LoopPeers
    bulk: LoopLanes
    clients: LoopClients
    control: LoopControl
    signals: LoopSignals
    telemetry: LoopTelemetry
    housekeeping: LoopHousekeeping
    leader_id: Callable[[], MemberId]
    leads: Callable[[], bool]
    contact_ms: Callable[[], int | None]  # when the present leader was heard last


class Loop:
    """See the module. One per process."""

    def __init__(
        self,
        parts: LoopParts,
        *,
        heartbeat_ms: int,
        prealloc_bytes: int,
        stall_grace: bool = True,
    ) -> None:
        """Register the signals' descriptor; everything else is registered by its owner."""
        self.turns = 0
        self.stalls = 0
        self.worst_late_ms = 0
        self._turn_lengths = Lengths("loop.turns")
        self._silences = Lengths("leader.silences")
        self._contact_ms: int | None = None
        self._parts = parts
        self._stall_ms = max(MIN_STALL_MS, heartbeat_ms // 2)
        self._prealloc_bytes = prealloc_bytes
        self._stall_grace = stall_grace
        self._woke_ns = clock.now_ns()
        self._more = False
        self._inputs = 0
        self._window_start_ms = clock.now_ms()
        self._idle = False
        self._to_prepare = True
        self._quiet_ms: int | None = None  # while it stops: when it may close its sockets
        self._stall_report_ms = 0
        self._reopen_asked = False
        self._lanes_version: tuple[int, int] | None = None
        self._watched: list[zmq.Socket[bytes] | int] = []
        for poller in (parts.poller, parts.urgent):
            poller.register(parts.signals.fd, zmq.POLLIN)

    def counters(self) -> dict[str, int]:
        """Return the counters for `status`."""
        return {
            "loop.turns": self.turns,
            "loop.stalls": self.stalls,
            "loop.worst_late_ms": self.worst_late_ms,
            **self._turn_lengths.counters(),
            **self._silences.counters(),
        }

    def run(self) -> str:
        """Turn until somebody asks to stop, then stop in order; return who asked."""
        while True:
            reason = self.turn()
            if reason is not None:
                self._stop(reason)
                return reason

    def turn(self) -> str | None:
        """Run one turn; return the reason to stop, None to go on."""
        ready = self._wait()
        reason = self._operators(ready)
        inbox_empty = self._peers(ready)
        self._clients(ready)
        self._bulk(ready)
        self._work(inbox_empty=inbox_empty)
        return reason

    def _stop(self, reason: str) -> None:
        """Hand leadership over, take no more requests, and let those in the log be decided.

        Writes that come in during the hand-over wait, and go to the next leader. Those that come
        later are refused, until clients have learned where to go and send nothing more: a request
        that is in the socket when it closes is one whose outcome nobody knows. Sockets are closed
        after this only: a process whose peer socket is gone counts as dead, and must not lead any
        more. A second request to stop ends the patience, and leadership is given up.
        """
        parts = self._parts
        server = parts.server
        parts.telemetry.emit("node.stopping", reason=reason)
        parts.control.stop_asked = False
        hurry = False
        if server.transfer(now_ms=clock.now_ms()) is None:
            hurry = not self._turn_until(lambda: not server.handing_over, HAND_OVER_PATIENCE_MS)
        server.prepare_stop(now_ms=clock.now_ms())
        if not hurry:
            self._quiet_ms = clock.now_ms() + STOP_QUIET_MS
            self._turn_until(lambda: server.drained and self._is_quiet(), STOP_PATIENCE_MS)
        parts.server.finish_stop(now_ms=clock.now_ms())
        parts.server.flush(now_ms=clock.now_ms())
        parts.clients.flush_replies()

    def _turn_until(self, done: Callable[[], bool], patience_ms: int) -> bool:
        """Turn until something is so, or for so long; False when asked to stop meanwhile."""
        give_up_ms = clock.now_ms() + patience_ms
        while not done() and clock.now_ms() < give_up_ms:
            if self.turn() is not None:
                return False
        return True

    def _is_quiet(self) -> bool:
        return self._quiet_ms is None or clock.now_ms() >= self._quiet_ms

    # 1, 2: wait, and notice how late it got

    def _wait(self) -> Ready:
        parts = self._parts
        self._watch_lanes()
        start_ns = clock.now_ns()
        turn_ms = (start_ns - self._woke_ns) // 1_000_000
        timeout_ms = 0 if self._more or parts.clients.has_lost else self._timeout_ms(start_ns)
        ready = dict(parts.poller.poll(timeout_ms))
        self._turn_lengths.add((start_ns - self._woke_ns) / 1e6)
        self._woke_ns = clock.now_ns()
        overshoot_ms = (self._woke_ns - start_ns) // 1_000_000 - timeout_ms
        late_ms = max(0, overshoot_ms) + turn_ms
        self.turns += 1
        if late_ms > self._stall_ms:
            self._on_stall(late_ms, turn_ms)
        if self._idle and self._only_inbox(ready):
            ready.update(parts.urgent.poll(GATHER_MS))
        return ready

    def _only_inbox(self, ready: Ready) -> bool:
        """Return whether nothing but answers that nobody waits for came in: see the module."""
        parts = self._parts
        return (
            len(ready) == 1
            and parts.peers.inbox in ready
            and parts.leads()
            and parts.server.waiting == 0
        )

    def _watch_lanes(self) -> None:
        """Poll what the peer transport waits for at the moment; it tells when that changed."""
        peers, bulk = self._parts.peers, self._parts.bulk
        version = (peers.pollables_version, bulk.pollables_version)
        if version == self._lanes_version:
            return
        self._lanes_version = version
        for pollable in self._watched:
            self._parts.poller.unregister(pollable)
        self._watched = []
        for pollable, events in (*peers.pollables(), *bulk.pollables()):
            self._parts.poller.register(pollable, events)
            self._watched.append(pollable)

    def _timeout_ms(self, now_ns: int) -> int:
        """Return the whole milliseconds until the next deadline, rounded up, or poll would spin.

        Deadlines are whole milliseconds and `now` is rounded down, so the difference is exact.
        """
        now_ms = now_ns // 1_000_000
        deadline_ms = self._next_deadline_ms(now_ms)
        return max(0, deadline_ms - now_ms)

    def _next_deadline_ms(self, now_ms: int) -> int:
        parts = self._parts
        deadline_ms = min(parts.server.next_deadline_ms(), now_ms + MAX_WAIT_MS)
        peers_ms, lines_ms = parts.peers.next_deadline_ms(), parts.telemetry.next_deadline_ms()
        if peers_ms is not None and peers_ms < deadline_ms:
            deadline_ms = peers_ms
        bulk_ms = parts.bulk.next_deadline_ms()
        if bulk_ms is not None and bulk_ms < deadline_ms:
            deadline_ms = bulk_ms
        if lines_ms is not None and lines_ms + LINES_SLACK_MS < deadline_ms:
            deadline_ms = lines_ms + LINES_SLACK_MS
        if self._quiet_ms is not None and now_ms < self._quiet_ms < deadline_ms:
            deadline_ms = self._quiet_ms
        return deadline_ms

    def _on_stall(self, late_ms: int, turn_ms: int) -> None:
        now_ms = self._woke_ns // 1_000_000
        self.stalls += 1
        self.worst_late_ms = max(self.worst_late_ms, late_ms)
        self._parts.server.on_stall(late_ms, now_ms=now_ms, grace=self._stall_grace)
        if now_ms >= self._stall_report_ms:
            self._stall_report_ms = now_ms + STALL_REPORT_MS
            self._parts.telemetry.emit("loop.stalled", late_ms=late_ms, turn_ms=turn_ms)

    # 3: operators

    def _operators(self, ready: Ready) -> str | None:
        parts = self._parts
        if parts.signals.fd in ready:
            taken = parts.signals.take()
            self._reopen_asked = self._reopen_asked or REOPEN_SIGNAL in taken
            for number in sorted(STOP_SIGNALS & taken):
                return signal.Signals(number).name
        parts.control.run(ready)
        if parts.control.stop_asked:
            return "control"
        if parts.control.block_ms:
            # An operator asked for a stall: the only deliberate sleep of a node.
            block_ms, parts.control.block_ms = parts.control.block_ms, 0
            select.poll().poll(block_ms)
        return None

    # 4, 5, 6: what came in

    def _peers(self, ready: Ready) -> bool:
        """Take in what peers sent; return whether the inbox is empty now."""
        parts = self._parts
        now_ms = clock.now_ms()
        for pollable in ready:
            parts.peers.on_ready(pollable)
        for _ in range(PEER_BATCHES):
            messages = parts.peers.receive(PEER_BATCH)
            for message in messages:
                parts.server.on_message(message, now_ms=now_ms)
            self._inputs += len(messages)
            if parts.peers.inbox_empty:
                break
        for down in parts.peers.downs():
            parts.server.on_peer_down(down.peer, down.incarnation, now_ms=now_ms)
        self._note_silence(parts.contact_ms())
        return parts.peers.inbox_empty

    def _note_silence(self, contact_ms: int | None) -> None:
        """Count how long the leader said nothing, or this loop did not listen."""
        last_ms, self._contact_ms = self._contact_ms, contact_ms
        if last_ms is not None and contact_ms is not None:
            self._silences.add(contact_ms - last_ms)

    def _clients(self, ready: Ready) -> None:
        parts = self._parts
        batches = parts.clients.receive(ready)
        if batches:
            now_ms = clock.now_ms()  # after they were taken: see the module
            for batch in batches:
                parts.server.on_requests(batch.client, batch.requests, now_ms=now_ms)
                self._inputs += len(batch.requests)
            if self._quiet_ms is not None:
                self._quiet_ms = now_ms + STOP_QUIET_MS
        forwarded = parts.clients.receive_forwarded(ready)
        if forwarded:
            now_ms = clock.now_ms()
            for leader, replies, lost in forwarded:
                if replies:
                    parts.server.on_forward_replies(leader, replies, now_ms=now_ms)
                if lost:
                    parts.server.on_forward_lost(leader, now_ms=now_ms)

    def _bulk(self, ready: Ready) -> None:
        """Take in a few chunks; what is left makes the next poll return at once."""
        parts = self._parts
        bulk_ms = parts.bulk.next_deadline_ms()
        for pollable in ready:
            parts.bulk.on_ready(pollable)
        if parts.bulk.inbox in ready or bulk_ms is not None:
            now_ms = clock.now_ms()
            for chunk in parts.bulk.receive(BULK_BATCH):
                parts.server.on_message(chunk, now_ms=now_ms)
                self._inputs += 1

    # 7, 8, 9: what is to be done about it

    def _work(self, *, inbox_empty: bool) -> None:
        parts = self._parts
        now_ms = clock.now_ms()
        parts.peers.on_timer(now_ms)
        parts.bulk.on_timer(now_ms)
        parts.server.on_timer(now_ms=now_ms, inbox_empty=inbox_empty)
        self._more = parts.server.flush(now_ms=now_ms)
        parts.clients.flush_replies()
        parts.clients.expect_leader(parts.leader_id(), now_ms)
        self._tidy_up()

    def _tidy_up(self) -> None:
        parts = self._parts
        now_ms = clock.now_ms()
        window_ended = self._watch_load(now_ms)
        if not self._more:
            if window_ended or not self._idle or self._to_prepare:
                self._to_prepare = parts.housekeeping.prepare(self._prealloc_bytes)
            if self._idle and parts.server.next_deadline_ms() - now_ms >= IDLE_GAP_MS:
                parts.housekeeping.maybe_collect(now_ms)
        parts.housekeeping.report(now_ms)
        if self._reopen_asked:
            self._reopen_asked = False
            parts.telemetry.reopen()
        parts.telemetry.flush(now_ms)

    def _watch_load(self, now_ms: int) -> bool:
        """Decide whether the loop idles: little came in for a whole window, and since.

        Returns whether a window ended.
        """
        if self._inputs > IDLE_INPUTS:
            self._idle = False
        if now_ms - self._window_start_ms < IDLE_WINDOW_MS:
            return False
        self._idle = self._inputs <= IDLE_INPUTS
        self._inputs = 0
        self._window_start_ms = now_ms
        return True
