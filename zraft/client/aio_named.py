"""Writes that have a name, for asyncio: the calls of `zraft.client.named`, to be awaited.

    async with client.session() as session:
        await session.kv.put("x", "1")

Any number of tasks may write in one session at once.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from zraft.api import Consistency, Flag, Reply
from zraft.client.aio_kv import AsyncKvClient
from zraft.client.named import CLOSE_TIMEOUT_S, Named
from zraft.client.pending import Name
from zraft.client.sessions import ClientSession
from zraft.errors import ProtocolError, RequestError
from zraft.machine.session_ops import SessionOp, encode_op

if TYPE_CHECKING:
    from types import TracebackType

    from zraft.client.aio import AsyncClient


class AsyncRepeat(Named["AsyncClient"]):
    """The one write that has this name; reads are the client's own."""

    def __init__(
        self, client: AsyncClient, state: ClientSession | None, name: Name = (0, 0)
    ) -> None:
        super().__init__(client, state, name)
        self.kv = AsyncKvClient(self)

    async def call(
        self,
        body: bytes,
        consistency: Consistency,
        *,
        flags: Flag = Flag.NONE,
        timeout_s: float | None = None,
        at: str | None = None,
        max_staleness_ms: int = 0,
    ) -> Reply:
        """Do what `AsyncClient.call` does; a write has its name.

        Raises:
            SessionExpired: the session is over, and the write was not repeated.
            Withdrawn: somebody asked what became of it before it was applied, and so it never is.
            RequestError, TooLargeError: as `AsyncClient.call`; OutcomeUnknown carries the id.
        """
        return await self.client.call(
            body,
            consistency,
            flags=flags,
            timeout_s=timeout_s,
            at=at,
            max_staleness_ms=max_staleness_ms,
            **self._naming(consistency),
        )

    async def command(
        self, body: bytes, *, timeout_s: float | None = None, at: str | None = None
    ) -> bytes:
        """Have the cluster's own state machine apply a command, once."""
        return (await self.call(body, Consistency.WRITE, timeout_s=timeout_s, at=at)).body


class AsyncSession(AsyncRepeat):
    """A session. Opened by its first write; closed at the end of the `with` block.

    One that ends with an unknown outcome stays open in the cluster until it expires: the write may
    still be repeated, or asked about.
    """

    def __init__(self, client: AsyncClient) -> None:
        super().__init__(client, ClientSession())

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None or issubclass(kind, RequestError):
            await self.close()

    async def close(self, *, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """End the session, unless outcomes are unknown. When that fails it expires by itself."""
        name = self._end()
        if name is not None:
            with suppress(RequestError, ProtocolError):
                await self.client.call(
                    encode_op(SessionOp.CLOSE),
                    Consistency.WRITE,
                    flags=Flag.SESSION,
                    timeout_s=timeout_s,
                    name=name,
                )
