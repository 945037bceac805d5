"""The asyncio client: the second thin shell over `ClientCore`.

The loop watches the descriptors of the sockets; there is no task and no thread:

    call() ─ submit ─▶ core ◀─ _pump(): once per turn of the loop that has news, and at deadlines
      ▲                 ▲
      └── its future ◀──┴── _read(), _see(): what a node says, what becomes of its connection

So there is nothing that the end of a request could cancel: a cancelled call leaves the core's table
and its late answer is counted and dropped. Requests of one turn of the loop share a frame.

ZeroMQ's descriptor is edge-triggered: it tells of a change, not of a state, and any call on its
socket may take the change in. The rule is therefore: after every call on a socket, either nothing
is left to be read or a callback is under way. (docs/adr/0009 has why this is not `zmq.asyncio`.)
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

import zmq

from zraft import clock
from zraft.api import Consistency, Flag, Reply
from zraft.client.aio_kv import AsyncKvClient
from zraft.client.aio_named import AsyncRepeat, AsyncSession
from zraft.client.kv import ReadConsistency, read_level
from zraft.client.pending import Finished, Name, parse_name
from zraft.client.sessions import ClientSession
from zraft.client.sockets import FRAMES_PER_TURN, Link, Sockets, make_core, to_timeout_ms
from zraft.client.sync import Info, info_of
from zraft.errors import ControlError, Unavailable, ZraftError
from zraft.machine.session_ops import Resolution, SessionOp, decode_resolution, encode_op


class AsyncClient:
    """A client of one cluster, for one event loop: the first that it is used in.

        async with zraft.AsyncClient() as client:
            await client.kv.put("x", "1")

    Any number of tasks may use it at once. The arguments and errors are those of `Client`. A call
    that is cancelled after it was sent may have been applied, like any write nobody waited for.
    `info` is that of the answer that came last: read it before the next `await`.
    """

    def __init__(
        self,
        cluster: str | None = None,
        *,
        endpoints: str | Sequence[str] | None = None,
        timeout_s: float = 5.0,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.core, endpoints_by_key = make_core(cluster, endpoints, environ)
        self.timeout_s = timeout_s
        self.info: Info | None = None
        self.kv = AsyncKvClient(self)
        self._sockets = Sockets(self.core, endpoints_by_key, self._watch, self._unwatch)
        self._waiting: dict[int, asyncio.Future[Finished]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()
        self._next_pump: asyncio.Handle | None = None  # in this turn of the loop
        self._alarm: asyncio.TimerHandle | None = None  # at the core's next deadline
        self._closed = False

    async def __aenter__(self) -> AsyncClient:
        self._running_loop()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections.

        Calls that are waiting end: writes that were sent with OutcomeUnknown, all else with
        Unavailable.
        """
        if self._closed or self._pid != os.getpid():
            return
        self._closed = True
        for key in self._sockets.links:
            self.core.on_disconnected(key, clock.now_ms())
        self._collect()
        for request_id, future in self._waiting.items():
            self.core.cancel(request_id)
            if not future.done():
                why, try_ = "the client was closed", "make a new zraft.AsyncClient"
                error = Unavailable("nothing was sent, nothing changed", why=why, try_=try_)
                future.set_result(Finished(request_id, error, ""))
        for handle in (self._next_pump, self._alarm):
            if handle is not None:
                handle.cancel()
        self._sockets.close()

    @property
    def outstanding(self) -> int:
        """The number of requests that have not ended."""
        return self.core.outstanding

    # Requests

    async def call(
        self,
        body: bytes,
        consistency: Consistency,
        *,
        flags: Flag = Flag.NONE,
        timeout_s: float | None = None,
        at: str | None = None,
        max_staleness_ms: int = 0,
        session: ClientSession | None = None,
        name: Name = (0, 0),
    ) -> Reply:
        """Send a request, wait for its end, and return the reply that says "ok". Use `session()`.

        Raises:
            RequestError, TooLargeError: it did not end with "ok"; see `zraft.errors`.
            ControlError: there is no node `at`, or this is not the client's loop.
        """
        loop = self._running_loop()
        timeout_ms = to_timeout_ms(self.timeout_s if timeout_s is None else timeout_s)
        request_id = self.core.submit(
            body,
            consistency,
            flags,
            timeout_ms=timeout_ms,
            now_ms=clock.now_ms(),
            target=at,
            max_staleness_ms=max_staleness_ms,
            session=session,
            name=name,
        )
        future: asyncio.Future[Finished] = loop.create_future()
        self._waiting[request_id] = future
        self._pump_soon()
        try:
            finished = await future
        finally:
            del self._waiting[request_id]
            self.core.cancel(request_id)  # when the caller was cancelled, nobody waits for it
        if isinstance(finished.outcome, ZraftError):
            raise finished.outcome
        self.info = info_of(self.core, finished.outcome, finished.via)
        return finished.outcome

    def session(self) -> AsyncSession:
        """Return a session: its writes are applied once, and are sent again until that is sure.

        async with client.session() as session:
            await session.kv.put("x", "1")
        """
        return AsyncSession(self)

    def repeat(self, request_id: str) -> AsyncRepeat:
        """Return what sends a write once more under its id; see `Client.repeat`."""
        return AsyncRepeat(self, None, parse_name(request_id))

    async def resolve(self, request_id: str, *, timeout_s: float | None = None) -> Resolution:
        """Tell what became of a write in a session; see `Client.resolve`."""
        name, body = parse_name(request_id), encode_op(SessionOp.RESOLVE)
        reply = await self.call(
            body, Consistency.WRITE, flags=Flag.SESSION, timeout_s=timeout_s, name=name
        )
        return decode_resolution(reply.body)

    async def barrier(self, *, timeout_s: float | None = None, at: str | None = None) -> Info:
        """Wait until a write that changes nothing is committed and applied; tell by whom."""
        await self.call(b"", Consistency.WRITE, flags=Flag.BARRIER, timeout_s=timeout_s, at=at)
        assert self.info is not None
        return self.info

    async def command(
        self, body: bytes, *, timeout_s: float | None = None, at: str | None = None
    ) -> bytes:
        """Have the cluster's own state machine apply a command; return what `apply` returned.

        Raises:
            InvalidCommand: the machine refused it, with the machine's words.
            RequestError, TooLargeError: as `call`.
        """
        return (await self.call(body, Consistency.WRITE, timeout_s=timeout_s, at=at)).body

    async def query(
        self,
        body: bytes,
        *,
        consistency: ReadConsistency = "linearizable",
        max_staleness: float | None = None,
        timeout_s: float | None = None,
        at: str | None = None,
    ) -> bytes:
        """Ask the cluster's own state machine; return what its `query` returned. As `command`."""
        level = read_level(consistency, max_staleness)
        reply = await self.call(
            body,
            level.consistency,
            timeout_s=timeout_s,
            at=at,
            max_staleness_ms=level.max_staleness_ms,
        )
        return reply.body

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._closed:
            raise ControlError("this client is closed", try_="make a new zraft.AsyncClient")
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop or self._pid != os.getpid():
            raise ControlError(
                "this client belongs to another event loop or process",
                why="its sockets can not be shared between loops, nor used after a fork",
                try_="make one zraft.AsyncClient per event loop",
            )
        return loop

    # The loop

    def _pump_soon(self) -> None:
        if self._next_pump is None and not self._closed:
            assert self._loop is not None
            self._next_pump = self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Let the core have its turn: time passes, what can be sent is sent, requests end."""
        assert self._loop is not None
        self._next_pump = None
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        now_ms = clock.now_ms()
        self._sockets.send(now_ms)
        for link in self._sockets.links.values():
            if link.has_frames():  # the sending may have taken in the change
                self._loop.call_soon(self._read, link)
        self._collect()
        deadline_ms = self.core.next_deadline_ms()
        if deadline_ms is not None:
            wait_s = max(1, deadline_ms - now_ms) / 1000
            self._alarm = self._loop.call_later(wait_s, self._pump)

    def _collect(self) -> None:
        for finished in self.core.results():
            future = self._waiting.get(finished.request_id)
            if future is not None and not future.done():
                future.set_result(finished)

    def _read(self, link: Link) -> None:
        """Take in what a node said; the rest of a flood in the next turn."""
        if self._is_open(link):
            self._sockets.receive(link, FRAMES_PER_TURN)
            if link.has_frames():
                assert self._loop is not None
                self._loop.call_soon(self._read, link)
            self._collect()
            self._pump_soon()

    def _see(self, link: Link) -> None:
        """Take in what became of a connection."""
        if self._is_open(link):
            self._sockets.take_events(link)
            self._collect()
            self._pump_soon()

    def _is_open(self, link: Link) -> bool:
        return self._sockets.links.get(link.key) is link

    def _watch(self, link: Link) -> None:
        loop = self._loop
        assert loop is not None
        callbacks: list[tuple[zmq.Socket[bytes], Callable[[Link], None]]]
        callbacks = [(link.socket, self._read), (link.monitor, self._see)]
        for socket, callback in callbacks:
            loop.add_reader(_descriptor(socket), callback, link)
            loop.call_soon(callback, link)  # for what changed before the loop watched

    def _unwatch(self, link: Link) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            for socket in (link.socket, link.monitor):
                self._loop.remove_reader(_descriptor(socket))


def _descriptor(socket: zmq.Socket[bytes]) -> int:
    """Return the descriptor that becomes readable when something changes on a socket."""
    return int(socket.getsockopt(zmq.FD))
