"""One outgoing lane: a DEALER that only sends, to one peer's ROUTER, made anew when it fails.

It owns the socket, its monitor, and the count of its frames. It never reads from the DEALER and
never queues: with IMMEDIATE a frame that has no connection is refused at once.

Why sockets are made anew: libzmq stops reconnecting for good after a protocol error (a foreign
program sat on the endpoint for a moment), and a connection may be half-open. Neither shows. What
does show is `heard`, the highest seq that the other side says it got: a lane is made anew when
something was sent on it a second ago and `heard` did not pass it, or when there was no handshake
for a second; at most once a second, later every ten. Silence alone means nothing: followers do not
talk to each other. So that `heard` can be trusted, whoever received something and has sent nothing
for half a second since says so in a frame of its own, which nobody answers: after an election
followers stop talking, and slow configurations have seconds between two heartbeats.

Why its options are what they are: a restarted peer is reached in tens of milliseconds
(RECONNECT_IVL 25, no back-off), nothing written for a dead process reaches the next one
(IMMEDIATE), and there are no routing ids and no ZeroMQ heartbeats, because either can lose a
restarted peer for good or abort the process.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import zmq

from zraft import crashpoints
from zraft.core.model import MemberId
from zraft.transport.bind import HANDSHAKE_MS, set_tcp_options

MIN_BACKOFF_MS: Final = 1000
MAX_BACKOFF_MS: Final = 10_000
UNHEARD_MS: Final = 1000
"""A lane whose frames or handshake take longer than this is suspected."""
OWED_MS: Final = 500
"""What was received is acknowledged by then, if nothing else was sent that does it."""

MAX_INBOUND_FRAME_BYTES: Final = 64 << 10  # on a socket where nothing should arrive
_EVENTS: Final = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
_MONITOR_HEAD: Final = struct.Struct("=HI")  # of a monitor's first frame: event, value


class LaneOptions(NamedTuple):
    """What differs between lanes: `name` tells monitors apart, the rest are options of ZeroMQ."""

    name: str
    high_water: int  # frames that a socket holds
    reconnect_ms: int
    reconnect_max_ms: int  # 0: no back-off


PEER_LANE: Final = LaneOptions("lane", high_water=1000, reconnect_ms=25, reconnect_max_ms=0)
BULK_LANE: Final = LaneOptions("bulk", high_water=16, reconnect_ms=100, reconnect_max_ms=1000)


class OutgoingLane:
    """The lane to one peer. `connected`: the handshake is done and the connection has not ended.

    `epoch` counts the sockets of this process's lane from 1, `seq` its frames; seq goes on over
    epochs. Times are the loop's milliseconds.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        *,
        me: MemberId,
        peer: MemberId,
        endpoint: str,
        incarnation: int,
        now_ms: int,
        options: LaneOptions = PEER_LANE,
        epoch: int = 1,
    ) -> None:
        """Start connecting. `epoch`: of the first socket, above that of any lane before this."""
        self.peer = peer
        self.endpoint = endpoint
        self.epoch = epoch - 1
        self.seq = incarnation << 32
        self.connected = False
        self.backoff_ms = MIN_BACKOFF_MS
        self.peer_incarnation = 0  # the highest that this lane was told of
        self._context = context
        self._options = options
        self._monitor_name = f"inproc://{options.name}.{me:x}.{peer:x}.{incarnation}"
        self._sent_seq = 0  # the last frame that a socket took and that has to be heard
        self._unheard_seq = 0  # the frame we wait to be heard; 0 for none
        self._unheard_since_ms = 0
        self._owed_since_ms: int | None = None  # received, and nothing sent since
        self._cut_since_ms = now_ms
        self._made_ms = now_ms
        self._make(now_ms)

    def _make(self, now_ms: int) -> None:
        self.epoch += 1
        self.connected = False
        self._unheard_seq = 0
        self._made_ms = self._cut_since_ms = now_ms
        self.socket = self._make_dealer()
        address = f"{self._monitor_name}.{self.epoch}"
        self.socket.monitor(address, _EVENTS)
        self.monitor = self._context.socket(zmq.PAIR)
        self.monitor.set(zmq.LINGER, 0)
        self.monitor.connect(address)
        self.socket.connect(self.endpoint)

    def _make_dealer(self) -> zmq.Socket[bytes]:
        dealer = self._context.socket(zmq.DEALER)
        dealer.set(zmq.LINGER, 0)
        dealer.set(zmq.IMMEDIATE, 1)
        dealer.set(zmq.SNDHWM, self._options.high_water)
        dealer.set(zmq.RCVHWM, 16)
        dealer.set(zmq.RECONNECT_IVL, self._options.reconnect_ms)
        dealer.set(zmq.RECONNECT_IVL_MAX, self._options.reconnect_max_ms)
        dealer.set(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        dealer.set(zmq.MAXMSGSIZE, MAX_INBOUND_FRAME_BYTES)
        if self.endpoint.startswith("tcp://"):
            dealer.set(zmq.CONNECT_TIMEOUT, 1000)
            set_tcp_options(dealer)
        return dealer

    def send(self, frame: bytes, now_ms: int, awaited_seq: int) -> bool:
        """Hand a frame to the socket; False when it can't take it now. Never blocks or raises.

        `awaited_seq` is the frame's seq if it has to be heard by the peer, else 0.
        """
        try:
            self.socket.send(frame, zmq.NOBLOCK)
        except zmq.ZMQError:  # no connection, a full pipe, or a context that is being ended
            return False
        if crashpoints.armed:
            crashpoints.reach("send.one")
        self._owed_since_ms = None
        if awaited_seq:
            self._note_sent(awaited_seq, now_ms)
        return True

    def _note_sent(self, seq: int, now_ms: int) -> None:
        self._sent_seq = seq
        if not self._unheard_seq:
            self._unheard_seq = seq
            self._unheard_since_ms = now_ms

    def owe(self, now_ms: int) -> None:
        """Note that something arrived from the peer: some frame has to say so before long."""
        if self._owed_since_ms is None:
            self._owed_since_ms = now_ms

    def put_off_owed(self, now_ms: int) -> None:
        """Try later: the acknowledgement could not leave now."""
        self._owed_since_ms = now_ms

    def owed_deadline_ms(self) -> int | None:
        """Return when the peer has to be told what was heard; None when it knows."""
        if self._owed_since_ms is None or not self.connected:
            return None
        return self._owed_since_ms + OWED_MS

    def on_heard(self, heard: int, now_ms: int) -> None:
        """Note that the peer got frame `heard`; if it is one of this socket's, the lane works."""
        if not self._unheard_seq or not self._unheard_seq <= heard <= self.seq:
            return
        self.backoff_ms = MIN_BACKOFF_MS
        self._unheard_seq = 0 if heard >= self._sent_seq else self._sent_seq
        self._unheard_since_ms = now_ms

    def on_peer_started(self, incarnation: int) -> None:
        """A newer process of the peer spoke: what kept this lane down may be over."""
        self.peer_incarnation = incarnation
        self.backoff_ms = MIN_BACKOFF_MS

    def read_monitor(self, now_ms: int) -> list[bool]:
        """Drain the monitor; return the changes of `connected`, in order."""
        changes: list[bool] = []
        while True:
            try:
                parts = self.monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.ZMQError:
                return changes
            event, _ = _MONITOR_HEAD.unpack(parts[0])
            connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            if connected == self.connected:
                continue  # a foreign program closed the connection before the handshake
            self.connected = connected
            self._unheard_seq = 0  # what was under way is lost with its connection
            self._cut_since_ms = now_ms
            changes.append(connected)

    def renewal_deadline_ms(self) -> int | None:
        """Return when the socket is to be made anew if nothing changes; None for never."""
        if not self.connected:
            suspected_ms = self._cut_since_ms + UNHEARD_MS
        elif self._unheard_seq:
            suspected_ms = self._unheard_since_ms + UNHEARD_MS
        else:
            return None
        allowed_ms = self._made_ms + self.backoff_ms
        return suspected_ms if suspected_ms > allowed_ms else allowed_ms

    def make_anew(self, now_ms: int) -> str:
        """Close the socket, connect another one; return why: "no_handshake" or "unheard".

        A socket that served for longer than twice its back-off starts the back-off over.
        """
        reason = "unheard" if self.connected else "no_handshake"
        if now_ms - self._made_ms > 2 * self.backoff_ms:
            self.backoff_ms = MIN_BACKOFF_MS
        self.backoff_ms = min(2 * self.backoff_ms, MAX_BACKOFF_MS)
        self.close()
        self._make(now_ms)
        return reason

    def close(self) -> None:
        """Close socket and monitor; what was not sent is lost."""
        if not self.socket.closed:
            self.socket.monitor(None, 0)
        self.monitor.close(0)
        self.socket.close(0)
