"""Writes that have a name, and so are applied once however often they are sent (thesis §6.3).

    with client.session() as session:      writes get names of their own
        session.kv.put("x", "1")
    client.repeat("1f-3").kv.put("x", "1")  the write that was sent under this name before

Both have the calls of the client that they come from, for writes: what they send differs in its
name alone.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Generic, Protocol, TypedDict, TypeVar

from zraft.api import Consistency, Flag, Reply
from zraft.client.kv import KvClient
from zraft.client.pending import Name
from zraft.client.sessions import ClientSession
from zraft.errors import ProtocolError, RequestError
from zraft.machine.session_ops import SessionOp, encode_op

if TYPE_CHECKING:
    from types import TracebackType

    from zraft.client.sync import Client, Info

CLOSE_TIMEOUT_S = 1.0


class Naming(TypedDict):
    """Under which name a request is sent; reads have none."""

    session: ClientSession | None
    name: Name


class HasInfo(Protocol):
    """A client of either kind, as far as both are alike."""

    info: Info | None


AnyClient = TypeVar("AnyClient", bound=HasInfo)


class Named(Generic[AnyClient]):
    """What the two kinds of named writes have in common: whose they are, and their name."""

    def __init__(self, client: AnyClient, state: ClientSession | None, name: Name = (0, 0)) -> None:
        self.client = client
        self.state = state
        self._name = name

    @property
    def info(self) -> Info | None:
        """Where the client's last answer came from."""
        return self.client.info

    @info.setter
    def info(self, info: Info | None) -> None:
        self.client.info = info

    def _naming(self, consistency: Consistency) -> Naming:
        if consistency is Consistency.WRITE:
            return Naming(session=self.state, name=self._name)
        return Naming(session=None, name=(0, 0))

    @property
    def session_id(self) -> int:
        """The session's id; 0 while it is not open."""
        return self._name[0] if self.state is None else self.state.session_id

    def _end(self) -> Name | None:
        """End the session here; return the name under which to close it, None not to close it."""
        return None if self.state is None else self.state.end()


class Repeat(Named["Client"]):
    """The one write that has this name; reads are the client's own."""

    def __init__(self, client: Client, state: ClientSession | None, name: Name = (0, 0)) -> None:
        super().__init__(client, state, name)
        self.kv = KvClient(self)

    def call(
        self,
        body: bytes,
        consistency: Consistency,
        *,
        flags: Flag = Flag.NONE,
        timeout_s: float | None = None,
        at: str | None = None,
        max_staleness_ms: int = 0,
    ) -> Reply:
        """Do what `Client.call` does; a write has its name.

        Raises:
            SessionExpired: the session is over, and the write was not repeated.
            Withdrawn: somebody asked what became of it before it was applied, and so it never is.
            RequestError, TooLargeError: as `Client.call`. OutcomeUnknown carries the request id.
        """
        return self.client.call(
            body,
            consistency,
            flags=flags,
            timeout_s=timeout_s,
            at=at,
            max_staleness_ms=max_staleness_ms,
            **self._naming(consistency),
        )

    def command(
        self, body: bytes, *, timeout_s: float | None = None, at: str | None = None
    ) -> bytes:
        """Have the cluster's own state machine apply a command, once."""
        return self.call(body, Consistency.WRITE, timeout_s=timeout_s, at=at).body


class Session(Repeat):
    """A session. Opened by its first write; closed at the end of the `with` block.

    One that ends with an unknown outcome stays open in the cluster until it expires: the write may
    still be repeated, or asked about.
    """

    def __init__(self, client: Client) -> None:
        super().__init__(client, ClientSession())

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None or issubclass(kind, RequestError):
            self.close()

    def close(self, *, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """End the session, unless outcomes are unknown. When that fails it expires by itself."""
        name = self._end()
        if name is not None:
            with suppress(RequestError, ProtocolError):
                self.client.call(
                    encode_op(SessionOp.CLOSE),
                    Consistency.WRITE,
                    flags=Flag.SESSION,
                    timeout_s=timeout_s,
                    name=name,
                )
