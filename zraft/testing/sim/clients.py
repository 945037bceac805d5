"""Simulated clients: production `ClientCore`s over simulated connections, never at rest.

A client has a few processes. Each does one operation at a time, thinks, and goes on; one whose
outcome is unknown never speaks again under its old name, as a judge of histories wants it. Written
values are unique. Some operations go to one node drawn at random and to no other: a client that
only ever asks the leader it knows never sees what a replaced one would answer. In some worlds
clients write in sessions: what was lost on its way is sent again under the same name. What else
they do with their sessions is in `SessionUse`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zraft.api import Consistency, Reply, Request
from zraft.client.core import ClientCore
from zraft.client.nodes import Member
from zraft.client.pending import Finished
from zraft.core.model import MemberId
from zraft.errors import OutcomeUnknown, SessionExpired
from zraft.machine.kv_codec import encode_cas, encode_delete, encode_get, encode_put
from zraft.machine.kv_results import (
    decode_cas_result,
    decode_delete_result,
    decode_get_result,
    decode_put_result,
)
from zraft.testing.sim.history import Operation
from zraft.testing.sim.network import CLUSTER
from zraft.testing.sim.session_use import SessionUse
from zraft.wire import decode_replies, decode_requests, encode_replies, encode_requests

if TYPE_CHECKING:
    from zraft.testing.sim.world import World

CONNECT_US = 300
SEND_US = 200
KINDS = (("put", 4.0), ("get", 4.0), ("cas", 1.5), ("delete", 0.5))


class SimClient:
    """See the module."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self._number = number
        self._draws = world.draws(f"client {number}")
        members = [Member(member_id, f"n{member_id}", "") for member_id in world.ids]
        self._core = ClientCore(members, rng=self._draws)
        self._connected: dict[MemberId, int] = {}  # to which life of a node
        self._wake_us = -1
        self._open: dict[int, tuple[int, Operation]] = {}
        self._lives: dict[int, int] = {}
        self._seen: dict[bytes, bytes | None] = {}
        self._values = 0
        self._sessions = SessionUse(world, number, self._core, self._pump)
        self.quiet = False

    @property
    def outstanding(self) -> int:
        """Operations that have not ended."""
        return len(self._open) + self._sessions.outstanding

    def hush(self) -> None:
        """Begin nothing any more."""
        self.quiet = self._sessions.quiet = True

    def start(self) -> None:
        """Let the processes begin."""
        plan = self._world.plan
        for process in range(self._number - 1, plan.processes, plan.clients):
            self._lives[process] = 0
            self._world.agenda.after(self._draws.exponential(plan.think_us), self._step, process)

    # Operations

    def _step(self, process: int) -> None:
        """One process begins its next operation."""
        if self.quiet:
            return
        world, draws, plan = self._world, self._draws, self._world.plan
        world.agenda.events += 1
        kind = draws.weighted(KINDS)
        key = b"k%d" % draws.below(plan.keys)
        value: bytes | None = None
        expected: bytes | None = None
        if kind in {"put", "cas"}:
            self._values += 1
            value = b"c%d.%d" % (self._number, self._values)
            value += b"." * draws.below(plan.padding_bytes + 1)
        consistency = Consistency.WRITE
        if kind == "put":
            assert value is not None
            body = encode_put(key, value)
        elif kind == "cas":
            assert value is not None
            expected = self._seen.get(key)
            body = encode_cas(key, expected, value)
        elif kind == "delete":
            body = encode_delete(key)
        else:
            body, consistency = encode_get(key), self._level()
        is_bounded = consistency == Consistency.STALE and draws.chance(plan.bounded)
        bound_ms = plan.bound_ms if is_bounded else 0
        now_us = world.agenda.now_us
        operation = Operation(
            f"p{process}.{self._lives[process]}",
            kind,
            key,
            value,
            expected,
            body,
            now_us,
            world.invariants.committed_index,
            consistency=consistency,
            bound_ms=bound_ms,
        )
        world.history.invoke(operation)
        now_ms = now_us // 1000
        target = f"n{draws.pick(world.ids)}" if draws.chance(plan.scatter) else None
        request_id = self._core.submit(
            body,
            consistency,
            timeout_ms=plan.timeout_ms,
            now_ms=now_ms,
            target=target,
            max_staleness_ms=bound_ms,
            session=self._sessions.session,
        )
        self._open[request_id] = (process, operation)
        world.trace.state(now_us, self._number, request_id, operation.floor)
        self._pump()

    def _level(self) -> Consistency:
        """Return what a read may see."""
        draws, plan = self._draws, self._world.plan
        if draws.chance(plan.stale_reads):
            return Consistency.STALE
        return Consistency.LEASE if draws.chance(plan.lease_reads) else Consistency.LINEARIZABLE

    def _finish(self, finished: Finished) -> None:
        if self._sessions.take(finished):
            return
        process, operation = self._open.pop(finished.request_id)
        world = self._world
        operation.return_us = world.agenda.now_us
        outcome = finished.outcome
        if isinstance(outcome, Reply):
            operation.output = self._output(operation, outcome.body)
            operation.term = outcome.term
            world.trace.state(operation.return_us, self._number, outcome.index)
            world.history.on_ok(operation, outcome)
        elif isinstance(outcome, OutcomeUnknown | SessionExpired):
            if isinstance(outcome, SessionExpired):
                world.marks.reach("session_expired")
            self._lives[process] += 1
            world.history.on_unknown(operation)
            if isinstance(outcome, OutcomeUnknown):
                self._sessions.on_unknown(operation, outcome)
        else:
            world.history.on_fail(operation)
        self._sessions.maybe_end()
        pause_us = 1 + self._draws.exponential(world.plan.think_us)
        world.agenda.after(pause_us, self._step, process)

    def _output(self, operation: Operation, body: bytes) -> object:
        key = operation.key
        if operation.kind == "put":
            decode_put_result(body)
            self._seen[key] = operation.value
            return None
        if operation.kind == "cas":
            result = decode_cas_result(body)
            if result.succeeded:
                self._seen[key] = operation.value
            else:
                self._seen[key] = None if result.current is None else result.current.value
            return result.succeeded
        if operation.kind == "delete":
            self._seen[key] = None
            return decode_delete_result(body).deleted > 0
        item = decode_get_result(body).item
        self._seen[key] = None if item is None else item.value
        return self._seen[key]

    # The shell around the core: connections, frames, timers

    def _pump(self) -> None:
        world = self._world
        agenda, core = world.agenda, self._core
        now_ms = agenda.now_us // 1000
        for key, requests in core.outgoing(now_ms):
            delay_us = SEND_US + self._draws.below(SEND_US)
            agenda.after(delay_us, self._arrive, (key, self._connected.get(key), requests))
        for key in core.take_connects():
            self._connected.pop(key, None)
            agenda.after(CONNECT_US + self._draws.below(CONNECT_US), self._connect, key)
        for finished in core.results():
            self._finish(finished)
        deadline_ms = core.next_deadline_ms()
        if deadline_ms is None:
            return
        when_us = max(deadline_ms * 1000, agenda.now_us + 1)
        if self._wake_us <= agenda.now_us or when_us < self._wake_us:
            self._wake_us = when_us
            agenda.at(when_us, self._on_wake)

    def _on_wake(self, _: None) -> None:
        if self._world.agenda.now_us == self._wake_us:
            self._pump()

    def _connect(self, key: MemberId) -> None:
        world = self._world
        node = world.nodes[key]
        now_ms = world.agenda.now_us // 1000
        if node.server is None:
            self._core.on_disconnected(key, now_ms)
        elif node.paused:
            return  # no handshake: the core makes a new connection when it has waited enough
        else:
            self._connected[key] = node.incarnation
            self._core.on_connected(key, now_ms)
        world.agenda.events += 1
        self._pump()

    def on_node_lost(self, key: MemberId) -> None:
        """A node's process ended; a connection that was made since is another one."""
        life = self._connected.get(key)
        if life is not None and (
            self._world.nodes[key].server is None or self._world.nodes[key].incarnation != life
        ):
            del self._connected[key]
            self._core.on_disconnected(key, self._world.agenda.now_us // 1000)
            self._world.agenda.events += 1
            self._pump()

    def _arrive(self, cargo: tuple[MemberId, int | None, list[Request]]) -> None:
        """A frame of requests reaches a node, if the life it was sent to still is."""
        key, life, requests = cargo
        node = self._world.nodes[key]
        if node.server is None or node.incarnation != life:
            return
        self._world.agenda.events += 1
        if self._world.plan.codec:
            _, requests = decode_requests(encode_requests(CLUSTER, requests))
        node.on_requests(b"c%d.%d" % (self._number, life), requests)

    def on_replies(self, cargo: tuple[MemberId, int, list[Reply]]) -> None:
        """A frame of replies arrives, unless its connection ended."""
        key, life, replies = cargo
        if self._connected.get(key) != life:
            return
        world = self._world
        world.agenda.events += 1
        if world.plan.codec:
            _, replies = decode_replies(encode_replies(CLUSTER, replies))
        self._core.on_replies(key, CLUSTER, replies, world.agenda.now_us // 1000)
        self._pump()
