"""The client without its sockets: which request goes where, when again, and how it ends.

It owns the request table. It has no socket, no clock (`now_ms` comes in) and no randomness of its
own (`rng` comes in), so that the synchronous client and an asyncio one are thin shells around it:

    submit()  ──▶ queued ──outgoing()──▶ in flight ──on_replies()──▶ results()
                    ▲                        │
                    └── later ◀── refused, or a read whose node was lost or fell silent

A shell makes the connections that `take_connects` names, tells what became of them, sends what
`outgoing` returns and hands in what arrives. Every submitted request ends exactly once in
`results`, unless it is cancelled.

What is sent again, and nothing else: a read, and a write of a session (thesis §6.3), at any time;
another write, when it was certainly not applied (it was refused as UNAVAILABLE, NOT_LEADER or BUSY,
or could not be sent). Every attempt has an id of its own, so that a late or doubled answer to an
earlier attempt can not be taken for an answer to the present one. A write without a session that
was sent, and whose connection ended, is OutcomeUnknown at once; one of a session only when its time
is over. A session is opened when the first write needs it, which waits until then.

A hint at the leader is followed at most three times in a row; then the next node in the ring is
asked, after a pause of 20 to 500 ms (full jitter). A node is told a little less time than there is
(a tenth, at most 100 ms), so that its own "no leader in time" still arrives: that is an answer, and
silence is not.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from heapq import heappop, heappush
from weakref import WeakValueDictionary

from zraft.api import Code, Consistency, Flag, Reply, Request
from zraft.client import outcomes
from zraft.client.nodes import Member, Node, NodeTable, Random, State
from zraft.client.pending import WITHOUT_SESSION, Finished, Name, Pending
from zraft.client.sessions import ClientSession
from zraft.errors import ControlError, DecodeError, OutcomeUnknown, Withdrawn, ZraftError
from zraft.machine.session_ops import SessionOp, decode_opened, encode_op
from zraft.wire import MAX_CLIENT_FRAME_BYTES

ANY_CLUSTER = bytes(8)  # in a request's frame: whoever you are
MAX_HINTS = 3  # followed in a row
BACKOFF_MIN_MS = 20
BACKOFF_MAX_MS = 500
MAX_FRAME_REQUESTS = 1000
MARGIN_MAX_MS = 100  # a node is told that much less time, or a tenth if that is shorter
REQUEST_OVERHEAD_BYTES = 80  # at most, around a body in a frame

_RETRIED = frozenset({Code.UNAVAILABLE, Code.NOT_LEADER, Code.BUSY})
_REFUSED = frozenset(
    {Code.INVALID, Code.TOO_LARGE, Code.UNSUPPORTED, Code.SESSION_EXPIRED, Code.WITHDRAWN}
)


class ClientCore:
    """See the module. `cluster` is the cluster's id, zeros until an answer tells it."""

    def __init__(
        self, members: Sequence[Member], *, rng: Random, cluster: bytes = ANY_CLUSTER
    ) -> None:
        self.nodes = NodeTable(members, rng)
        self.cluster = cluster
        self.counters: Counter[str] = Counter()
        self._rng = rng
        self._nonce = rng.getrandbits(32) | WITHOUT_SESSION
        self._count = 0
        self._now_ms = 0  # of the last `outgoing`
        self._table: dict[int, Pending] = {}
        self._queue: deque[Pending] = deque()
        self._later: list[tuple[int, int, Pending]] = []  # (when, request id, …)
        self._deadlines: list[tuple[int, int, Pending]] = []
        self._finished: list[Finished] = []
        self._sessions: WeakValueDictionary[int, ClientSession] = WeakValueDictionary()  # open ones

    @property
    def outstanding(self) -> int:
        """The number of requests that have not ended."""
        return len(self._table)

    def submit(
        self,
        body: bytes,
        consistency: int,
        flags: int = Flag.NONE,
        *,
        timeout_ms: int,
        now_ms: int,
        target: str | None = None,
        max_staleness_ms: int = 0,
        session: ClientSession | None = None,
        name: Name = (0, 0),
    ) -> int:
        """Take a request and return its id; `results` tells how it ended.

        Args:
            max_staleness_ms: of a stale read; 0: no bound.
            target: the name of the only node to ask; it may still pass the request on.
            session: that a write is to be named in.
            name: that a write has already, or that is asked about; instead of `session`.

        Raises:
            ControlError: there is no node `target`.
            TypeError: the body is not bytes, which no node would take.
        """
        if type(body) is not bytes:
            raise TypeError(f"the body of a request is bytes, not {type(body).__name__}")
        node = None
        if target is not None:
            node = self.nodes.named(target)
            if node is None:
                names = ", ".join(node.name for node in self.nodes.ring)
                raise ControlError(
                    f'no node "{target}"', why=f"known are {names}", try_="zraft node list"
                )
        request_id = self._new_id()
        deadline_ms = now_ms + max(0, timeout_ms)
        flags = int(flags)  # each operation on a flag makes an object
        head = request_id, body, consistency, flags, now_ms, deadline_ms, node, request_id
        pending = Pending(*head, max_staleness_ms, session, name)
        self._enter(pending)
        if session is None or not pending.is_write:
            self._queue.append(pending)
        elif session.is_open(now_ms):
            pending.name = session.next_name()
            self._queue.append(pending)
        else:
            session.waiting.append(pending)
            self._open(session, pending)
        return request_id

    def _enter(self, pending: Pending) -> None:
        self._table[pending.request_id] = pending
        heappush(self._deadlines, (pending.deadline_ms, pending.request_id, pending))

    def _open(self, session: ClientSession, first: Pending) -> None:
        """Have a session opened within the time that a write has; or take more time for it."""
        opening, deadline_ms = session.opening, first.deadline_ms
        if opening is None:
            request_id, body = self._new_id(), encode_op(SessionOp.OPEN)
            head = request_id, body, Consistency.WRITE, int(Flag.SESSION), first.submitted_ms
            opening = session.opening = Pending(*head, deadline_ms, None, request_id, opens=session)
            self._enter(opening)
            self._queue.append(opening)
        elif deadline_ms > opening.deadline_ms:
            opening.deadline_ms = deadline_ms
            self._enter(opening)

    def cancel(self, request_id: int) -> None:
        """Forget a request: nobody waits for it any more. It may have been sent."""
        pending = self._table.get(request_id)
        if pending is not None:
            self._close(pending)

    def _new_id(self) -> int:
        self._count += 1
        if self._count >> 32:
            self._nonce, self._count = self._rng.getrandbits(32) | WITHOUT_SESSION, 1
        return self._nonce << 32 | self._count

    # Time, and what leaves

    def outgoing(self, now_ms: int) -> list[tuple[int, list[Request]]]:
        """Let time pass, and return what is to be sent now: one frame per entry, in order."""
        self._now_ms = now_ms
        self._expire(now_ms)
        while self._later and self._later[0][0] <= now_ms:
            pending = heappop(self._later)[2]
            if not pending.done:
                self._queue.append(pending)
        for node in self.nodes.newly_silent(now_ms):
            self.counters["nodes_silent"] += 1
            self._move_repeatable(node)
        return self._send_queued(now_ms) if self._queue else []

    def _send_queued(self, now_ms: int) -> list[tuple[int, list[Request]]]:
        queue, self._queue = self._queue, deque()
        route: Node | None = None
        routed = False
        frames: list[tuple[int, list[Request]]] = []
        open_frames: dict[int, tuple[list[Request], int]] = {}
        for pending in queue:
            if pending.done:
                continue
            node = pending.target
            if node is None:
                if not routed:
                    route, routed = self.nodes.route(now_ms), True
                node = route
            elif node.state is not State.UP or (node.silent and not node.in_flight):
                self.nodes.want(node, now_ms)
            if node is None or node.state is not State.UP:
                self._queue.append(pending)
                continue
            request = self._attempt(pending, node, now_ms)
            size_bytes = len(pending.body) + REQUEST_OVERHEAD_BYTES
            batch, used_bytes = open_frames.get(node.key, (None, 0))
            if (
                batch is None
                or used_bytes + size_bytes > MAX_CLIENT_FRAME_BYTES
                or len(batch) >= MAX_FRAME_REQUESTS
            ):
                batch, used_bytes = [], 0
                frames.append((node.key, batch))
            batch.append(request)
            open_frames[node.key] = (batch, used_bytes + size_bytes)
        return frames

    def _attempt(self, pending: Pending, node: Node, now_ms: int) -> Request:
        """Note that a request is in flight and return it as it goes over the wire."""
        if pending.attempts:
            pending.wire_id = self._new_id()
            self.counters["retries"] += 1
        pending.attempts += 1
        pending.node, pending.sent_ms = node, now_ms
        if not node.in_flight:
            node.waiting_since_ms = now_ms
        node.in_flight[pending.wire_id] = pending
        left_ms = pending.deadline_ms - now_ms
        told_ms = max(1, left_ms - min(left_ms // 10, MARGIN_MAX_MS))
        ack_below = 0
        if pending.name[0] and pending.is_write:
            session = pending.session
            of_session = session is not None and pending.name[0] == session.session_id
            ack_below = session.ack_below() if session is not None and of_session else 1
        head = pending.wire_id, *pending.name, ack_below, told_ms
        kind = pending.consistency, pending.flags
        return Request(*head, *kind, pending.body, pending.max_staleness_ms)

    def take_connects(self) -> list[int]:
        """Return the nodes that the shell shall connect to now; an older socket is closed first."""
        return self.nodes.take_connects()

    def next_deadline_ms(self) -> int | None:
        """Return when `outgoing` must be called at the latest; None: nothing is under way."""
        while self._deadlines and self._deadlines[0][2].done:
            heappop(self._deadlines)
        while self._later and self._later[0][2].done:
            heappop(self._later)
        if not self._table:
            return None
        times = [heap[0][0] for heap in (self._deadlines, self._later) if heap]
        silence_ms = self.nodes.next_silence_ms()
        if silence_ms is not None:
            times.append(silence_ms)
        if self._queue:
            connect_ms = self.nodes.next_connect_ms(self._now_ms)
            if connect_ms is not None:
                times.append(connect_ms)
        return min(times)

    # What the shell learns

    def on_connected(self, key: int, now_ms: int) -> None:
        """The handshake with a node is done: it can be sent to."""
        self.nodes.on_connected(self.nodes[key], now_ms)

    def on_disconnected(self, key: int, now_ms: int) -> None:
        """A connection was lost, or refused; all that had arrived on it was handed in before.

        Writes that were in flight there are OutcomeUnknown; what may be repeated goes to another
        node at once.
        """
        node = self.nodes[key]
        was = node.state
        self.nodes.on_disconnected(node, now_ms)
        lost, node.in_flight = node.in_flight, {}
        self.counters["connections_lost"] += was is State.UP
        for pending in lost.values():
            pending.node = None
            pending.unsure = pending.unsure or pending.is_write
            if pending.is_write and (not pending.repeatable or pending.target is node):
                sent_ms_ago = now_ms - pending.sent_ms
                error = outcomes.unknown_by_loss(self._case(pending), node.name, sent_ms_ago)
                self._finish(pending, error, node.name)
            elif pending.target is node:
                self._lose_target(pending, node, "closed the connection")
            else:
                self._queue.append(pending)
        if was is not State.UP:
            for pending in [pending for pending in self._queue if pending.target is node]:
                self._lose_target(pending, node, State.DOWN.value)

    def on_send_failed(self, key: int, wire_ids: Sequence[int], now_ms: int) -> None:
        """These could not be sent: certainly not applied. They are tried again after a moment."""
        node = self.nodes[key]
        for wire_id in wire_ids:
            pending = node.in_flight.pop(wire_id, None)
            if pending is not None:
                pending.node = None
                self._delay(pending, now_ms)

    def on_replies(self, key: int, cluster: bytes, replies: Sequence[Reply], now_ms: int) -> None:
        """Take what a node answered. What nobody waits for, or another cluster sent, is counted."""
        if cluster != self.cluster:
            if self.cluster != ANY_CLUSTER:
                self.counters["replies_foreign"] += len(replies)
                return
            self.cluster = cluster
        node = self.nodes[key]
        node.waiting_since_ms, node.failures, node.silent = now_ms, 0, False
        in_flight = node.in_flight
        for reply in replies:
            pending = in_flight.pop(reply.request_id, None)
            if pending is None:
                self.counters["replies_late"] += 1
                continue
            pending.node = None
            if pending.consistency == Consistency.STALE:  # nobody passes these on
                self.nodes.learn_member(node, reply.member_id)
            self.nodes.learn_leader(reply.leader, reply.term)
            if reply.code == Code.OK:
                self._finish(pending, reply, node.name)
            else:
                self._settle(pending, node, reply, now_ms)

    def results(self) -> list[Finished]:
        """Return the requests that ended since the last call."""
        finished, self._finished = self._finished, []
        return finished

    # How requests go on, and end

    def _settle(self, pending: Pending, node: Node, reply: Reply, now_ms: int) -> None:
        """Take an answer that is not "ok": try again, or tell why not."""
        name = self._speaker(node, reply)
        certain = reply.code in _RETRIED or not pending.is_write
        is_last = pending.target is not None or now_ms >= self._last_call_ms(pending)
        if reply.code in _REFUSED or (certain and is_last):
            if reply.code == Code.SESSION_EXPIRED and pending.session is not None:
                pending.session.expire(pending.name[0])
            error = outcomes.refused(self._case(pending), name, reply)
            self._finish(pending, error, node.name)
            return
        if not certain:  # UNKNOWN, or a code of a newer node
            pending.unsure = True
            if is_last or not pending.repeatable:
                error = outcomes.unknown_by_reply(self._case(pending), name, reply)
                self._finish(pending, error, node.name)
                return
        pending.refusal = name, reply
        pending.refusals += 1
        if reply.code == Code.NOT_LEADER:
            hinted = self.nodes.of_member(reply.leader)
            pending.hints += 1
            if hinted is not None and hinted is not node and pending.hints <= MAX_HINTS:
                self._queue.append(pending)
                return
            pending.hints = 0
        if reply.code != Code.BUSY:
            self.nodes.leave(node)
        self._delay(pending, now_ms, reply.delay_ms)

    def _speaker(self, node: Node, reply: Reply) -> str:
        """Return the name of who wrote a reply: the node, or one that it passed the request to."""
        member = self.nodes.of_member(reply.member_id)
        return member.name if member is not None else node.name

    def _delay(self, pending: Pending, now_ms: int, least_ms: int = 0) -> None:
        """Try again after a random pause: full jitter, doubling from 20 to 500 ms."""
        ceiling_ms = min(BACKOFF_MAX_MS, BACKOFF_MIN_MS << min(pending.refusals, 10))
        due_ms = now_ms + 1 + least_ms + int(self._rng.random() * ceiling_ms)
        if due_ms < self._last_call_ms(pending):  # otherwise it ends as refused, at its deadline
            heappush(self._later, (due_ms, pending.request_id, pending))

    def _last_call_ms(self, pending: Pending) -> int:
        """Return when a request that was refused is not sent again.

        A node would have too little time to refuse it before the deadline, and what is certainly
        not applied would end as unknown. Reads have nothing to lose.
        """
        if not pending.is_write:
            return pending.deadline_ms
        timeout_ms = pending.deadline_ms - pending.submitted_ms
        return pending.deadline_ms - min(timeout_ms // 5, 2 * MARGIN_MAX_MS)

    def _move_repeatable(self, node: Node) -> None:
        """Ask somebody else what a silent node was asked; other writes may be applied, and stay."""
        if len(self.nodes.ring) == 1:
            return
        for wire_id, pending in list(node.in_flight.items()):
            if pending.repeatable and pending.target is None:
                pending.unsure = pending.unsure or pending.is_write
                del node.in_flight[wire_id]
                pending.node = None
                self._queue.append(pending)

    def _expire(self, now_ms: int) -> None:
        """End every request whose time is over."""
        while self._deadlines and self._deadlines[0][0] <= now_ms:
            pending = heappop(self._deadlines)[2]
            if not pending.done and pending.deadline_ms <= now_ms:
                node = pending.node
                error = self._too_late(pending, now_ms)
                if node is not None:
                    self.nodes.on_unanswered(node, pending.sent_ms, now_ms)
                self._finish(pending, error, "" if node is None else node.name)

    def _too_late(self, pending: Pending, now_ms: int) -> ZraftError:
        """Return how a request ends whose time is over."""
        case, node = self._case(pending), pending.node
        waited_ms = now_ms - pending.submitted_ms
        if node is not None:
            sent_ms_ago = now_ms - pending.sent_ms
            if pending.is_write:
                return outcomes.unknown_by_time(case, node.name, sent_ms_ago)
            return outcomes.not_read(case, node.name, sent_ms_ago)
        if pending.refusal is not None:
            return outcomes.refused(case, *pending.refusal)
        if pending.attempts:  # its nodes were lost, one after the other
            return outcomes.not_read(case, "nobody", waited_ms)
        session = pending.session
        opening = None if session is None else session.opening
        if opening is not None and opening.attempts:
            return outcomes.no_session(case, str(self._too_late(opening, now_ms).why))
        nodes = self.nodes.ring if pending.target is None else [pending.target]
        states = ", ".join(f"{node.name} {node.state.value}" for node in nodes)
        return outcomes.not_reached(case, waited_ms, states)

    def _lose_target(self, pending: Pending, node: Node, state: str) -> None:
        self._finish(pending, outcomes.target_lost(self._case(pending), node.name, state), "")

    def _case(self, pending: Pending) -> outcomes.Case:
        leader = self.nodes.leader
        leader_name = None if leader is None else leader.name
        named = pending.name != (0, 0)
        return outcomes.Case(pending.is_write, pending.shown_id, leader_name, named, pending.unsure)

    def _finish(self, pending: Pending, outcome: Reply | ZraftError, via: str) -> None:
        self._close(pending)
        if pending.opens is not None:
            self._on_opened(pending.opens, pending, outcome, via)
            return
        if pending.session is not None:
            known = not isinstance(outcome, OutcomeUnknown)
            pending.session.settle(pending.name, self._now_ms, known=known)
        elif pending.name[0] and isinstance(outcome, Reply | Withdrawn):
            session = self._sessions.get(pending.name[0])  # it was asked about, or repeated
            if session is not None:
                session.learn(pending.name, self._now_ms)
        self._finished.append(Finished(pending.request_id, outcome, via))

    def _on_opened(
        self, session: ClientSession, opening: Pending, outcome: Reply | ZraftError, via: str
    ) -> None:
        """Go on with the writes that waited for a session; or end them, for there is none."""
        if isinstance(outcome, Reply):
            try:
                ttl_ms = decode_opened(outcome.body)
            except DecodeError as malformed:
                outcome = malformed
            else:
                self._queue.extend(session.open(outcome.index, ttl_ms, opening.sent_ms))
                self._sessions[session.session_id] = session
                return
        waiting, session.waiting, session.opening = session.waiting, [], None
        for pending in waiting:
            if not pending.done:
                error = outcomes.no_session(self._case(pending), outcome.why)
                self._finish(pending, error, via)

    def _close(self, pending: Pending) -> None:
        """Take a request out of the table and of its node; queues skip what is done."""
        pending.done, pending.body = True, b""
        del self._table[pending.request_id]
        if pending.node is not None:
            pending.node.in_flight.pop(pending.wire_id, None)
            pending.node = None
