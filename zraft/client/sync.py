"""The synchronous client: a thin shell that gives `ClientCore` sockets and a clock.

It owns a ZeroMQ context and the sockets of `zraft.client.sockets`. Nothing happens between two
calls: no thread, no timer. A call sends what there is to send, waits for the first thing that
happens, takes it in, and so on until its request has ended.

A client belongs to the thread and the process that made it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from threading import get_ident
from types import TracebackType
from typing import NamedTuple

import zmq

from zraft import clock
from zraft.api import STALENESS_UNKNOWN_MS, Consistency, Flag, Reply
from zraft.client.core import ClientCore
from zraft.client.kv import KvClient, ReadConsistency, read_level
from zraft.client.named import Repeat, Session
from zraft.client.pending import Finished, Name, parse_name
from zraft.client.sessions import ClientSession
from zraft.client.sockets import FRAMES_PER_TURN, Link, Sockets, make_core, to_timeout_ms
from zraft.errors import ControlError, ZraftError
from zraft.machine.session_ops import Resolution, SessionOp, decode_resolution, encode_op


class Info(NamedTuple):
    """Where the last answer came from.

    `node` wrote it (the leader, when `via` passed the request on); `index` is that of the entry
    that was applied, or of the state that was read; `revision` is the store's, 0 when unknown.
    `staleness_ms`, of a stale read: how long ago what was read was the newest, as `Reply` says;
    None when the node never heard a leader, and for other requests 0.
    """

    node: str
    via: str
    member_id: int
    cluster_id: str
    term: int
    index: int  # type: ignore[assignment]  # a field, not tuple.index
    revision: int
    staleness_ms: int | None = 0


def info_of(core: ClientCore, reply: Reply, via: str) -> Info:
    """Return where a reply came from, that of a request which was sent to the node `via`."""
    member = core.nodes.of_member(reply.member_id)
    name = via if member is None else member.name
    cluster, age_ms = core.cluster.hex(), reply.staleness_ms
    staleness_ms = age_ms if age_ms < STALENESS_UNKNOWN_MS else None
    return Info(name, via, reply.member_id, cluster, reply.term, reply.index, 0, staleness_ms)


class Client:
    """A client of one cluster, for one thread.

    Args:
        cluster: the name of a cluster of this user and host; default `$ZRAFT_CLUSTER`, then
            `default`. A text with `://` in it is taken for `endpoints`.
        endpoints: the client endpoints of the nodes instead, as a list or separated by commas. The
            cluster's id is learned from the first answer; until then requests carry eight zero
            bytes, which any cluster accepts. Nodes are then named by their endpoints.
        timeout_s: how long a request may take if a call does not say otherwise, in seconds.
        environ: instead of the process's environment.

    Raises:
        NotRunning: there is no such cluster.
        ControlError: an endpoint or name is malformed.
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
        self.kv = KvClient(self)
        self._owner = os.getpid(), get_ident()
        self._poller = zmq.Poller()
        self._by_socket: dict[object, tuple[Link, bool]] = {}
        self._sockets = Sockets(self.core, endpoints_by_key, self._watch, self._unwatch)
        self._finished: dict[int, Finished] = {}
        self._closed = False

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections. Requests that have not ended may still be applied."""
        if self._closed or self._owner[0] != os.getpid():
            return
        self._closed = True
        self._sockets.close()

    # Requests

    def call(
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
        """
        request_id = self.submit(
            body,
            consistency,
            flags=flags,
            timeout_s=timeout_s,
            at=at,
            max_staleness_ms=max_staleness_ms,
            session=session,
            name=name,
        )
        try:
            self._take_in(0)  # what happened since the last call: a lost connection, above all
            while request_id not in self._finished:
                self._turn(None)
        finally:
            self.core.cancel(request_id)  # after an interrupt nobody waits for it
            finished = self._finished.pop(request_id, None)
        assert finished is not None
        if isinstance(finished.outcome, ZraftError):
            raise finished.outcome
        self.info = info_of(self.core, finished.outcome, finished.via)
        return finished.outcome

    def session(self) -> Session:
        """Return a session: its writes are applied once, and are sent again until that is sure.

        with client.session() as session:
            session.kv.put("x", "1")
        """
        return Session(self)

    def repeat(self, request_id: str) -> Repeat:
        """Return what sends a write once more under the id that an OutcomeUnknown carried.

        Send the same write: if it was applied, the answer is that of the first time, whatever is
        sent now. ControlError when this is not the request id of a write in a session.
        """
        return Repeat(self, None, parse_name(request_id))

    def resolve(self, request_id: str, *, timeout_s: float | None = None) -> Resolution:
        """Tell what became of a write in a session. The answer is final.

        One that was not applied is withdrawn: it never will be, not even by a copy that is still
        under way. The next write of the session, if that is this client's, lets the cluster forget
        the result. `result` is what the state machine answered, `code` is OK, or INVALID when it
        refused.

        Raises:
            SessionExpired: the session is over, and nobody knows any more.
            ControlError: this is not the request id of a write in a session.
            RequestError: it could not be asked.
        """
        name, body = parse_name(request_id), encode_op(SessionOp.RESOLVE)
        reply = self.call(
            body, Consistency.WRITE, flags=Flag.SESSION, timeout_s=timeout_s, name=name
        )
        return decode_resolution(reply.body)

    def barrier(self, *, timeout_s: float | None = None, at: str | None = None) -> Info:
        """Wait until a write that changes nothing is committed and applied; tell by whom."""
        self.call(b"", Consistency.WRITE, flags=Flag.BARRIER, timeout_s=timeout_s, at=at)
        assert self.info is not None
        return self.info

    def command(
        self, body: bytes, *, timeout_s: float | None = None, at: str | None = None
    ) -> bytes:
        """Have the cluster's own state machine apply a command; return what `apply` returned.

        Raises:
            InvalidCommand: the machine refused it, with the machine's words.
            RequestError, TooLargeError: as `call`.
        """
        return self.call(body, Consistency.WRITE, timeout_s=timeout_s, at=at).body

    def query(
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
        reply = self.call(
            body,
            level.consistency,
            timeout_s=timeout_s,
            at=at,
            max_staleness_ms=level.max_staleness_ms,
        )
        return reply.body

    def submit(
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
    ) -> int:
        """Take a request without waiting, and return its id. `wait` sends it, and returns its end.

        Requests that are submitted before the next `wait` share a frame.

        Args:
            at: the name of the only node to ask; there is no fail-over then.
            max_staleness_ms: of a stale read; 0: no bound.
            session, name: see `ClientCore.submit`.

        Raises:
            ControlError: there is no node `at`, or this is not the client's thread.
        """
        self._check_owner()
        timeout_ms = to_timeout_ms(self.timeout_s if timeout_s is None else timeout_s)
        return self.core.submit(
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

    def wait(self, *, timeout_s: float | None = None) -> list[Finished]:
        """Send what was submitted, and return what has ended, at least one request if any is out.

        Returns an empty list when nothing is outstanding, or nothing ended within `timeout_s`
        (None: requests have their own deadlines).
        """
        self._check_owner()
        until_ms = None if timeout_s is None else clock.now_ms() + to_timeout_ms(timeout_s)
        while not self._finished and self.core.outstanding:
            self._turn(until_ms)
            if until_ms is not None and clock.now_ms() >= until_ms:
                break
        finished, self._finished = list(self._finished.values()), {}
        return finished

    @property
    def outstanding(self) -> int:
        """The number of requests that have not ended."""
        return self.core.outstanding

    def _check_owner(self) -> None:
        if self._closed:
            raise ControlError("this client is closed", try_="make a new zraft.Client")
        if self._owner != (os.getpid(), get_ident()):
            raise ControlError(
                "this client belongs to another thread or process",
                why="its sockets can not be shared between threads, nor used after a fork",
                try_="make one zraft.Client per thread and process",
            )

    # Sockets

    def _turn(self, until_ms: int | None) -> None:
        """Send what can be sent, wait for the first thing that happens, and take it in."""
        core, now_ms = self.core, clock.now_ms()
        self._sockets.send(now_ms)
        self._collect()
        if not self._finished:
            deadline_ms = core.next_deadline_ms()
            if deadline_ms is None or (until_ms is not None and until_ms < deadline_ms):
                deadline_ms = until_ms
            assert deadline_ms is not None, "nothing is under way, and nothing to wait for"
            self._take_in(max(0, deadline_ms - now_ms))

    def _take_in(self, timeout_ms: int) -> None:
        """Wait for sockets and hand in what they have: answers first, then lost connections."""
        ready = self._poller.poll(timeout_ms)
        monitors: list[Link] = []
        for socket, _ in ready:
            link, is_monitor = self._by_socket[socket]
            if is_monitor:
                monitors.append(link)
            else:
                self._sockets.receive(link, FRAMES_PER_TURN)
        for link in monitors:
            self._sockets.take_events(link)
        if ready:
            self._collect()

    def _collect(self) -> None:
        for finished in self.core.results():
            self._finished[finished.request_id] = finished

    def _watch(self, link: Link) -> None:
        for socket, is_monitor in ((link.socket, False), (link.monitor, True)):
            self._poller.register(socket, zmq.POLLIN)
            self._by_socket[socket] = (link, is_monitor)

    def _unwatch(self, link: Link) -> None:
        for socket in (link.socket, link.monitor):
            self._poller.unregister(socket)
            del self._by_socket[socket]
