"""The asyncio client over sockets that are made up: frames, time-outs, cancelling, closing."""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from zraft import clock
from zraft.api import Code, Consistency, Reply, Request
from zraft.client.aio import AsyncClient
from zraft.client.aio_kv import AsyncKvClient
from zraft.client.aio_named import AsyncRepeat, AsyncSession
from zraft.client.core import ClientCore
from zraft.client.kv import KvClient
from zraft.client.named import Repeat, Session
from zraft.client.sync import Client
from zraft.errors import ControlError, OutcomeUnknown, Unavailable

CLUSTER = b"cluster!"
WRITE, READ = Consistency.WRITE, Consistency.LINEARIZABLE
ENDPOINTS = "ipc:///nowhere/1,ipc:///nowhere/2"


class FakeSockets:
    """Connections that come up at once. What is sent waits in `sent` until the test answers it."""

    def __init__(self, core: ClientCore) -> None:
        self.core = core
        self.links: dict[int, None] = {}
        self.frames: list[list[Request]] = []
        self.sent: dict[bytes, tuple[int, Request]] = {}
        self.news = asyncio.Event()
        self.closed = False

    def send(self, now_ms: int) -> None:
        """Do what `Sockets.send` does."""
        for _ in range(2):
            for key, requests in self.core.outgoing(now_ms):
                self.frames.append(requests)
                self.sent.update({request.body: (key, request) for request in requests})
                self.news.set()
            for key in self.core.take_connects():
                self.core.on_connected(key, now_ms)

    def close(self) -> None:
        """Note that it was called."""
        self.closed = True


class Bench:
    """A client with such sockets."""

    def __init__(self) -> None:
        self.client = AsyncClient(endpoints=ENDPOINTS)
        self.client._sockets.close()
        self.sockets = FakeSockets(self.client.core)
        self.client._sockets = self.sockets  # type: ignore[assignment]  # the part that is used

    def answer(self, body: bytes, code: Code = Code.OK) -> None:
        """Answer what was sent with this body, and let the client see it."""
        key, request = self.sockets.sent[body]
        reply = Reply(request.request_id, code, key, 1, 7, 0, body)
        self.client.core.on_replies(key, CLUSTER, [reply], clock.now_ms())
        self.client._collect()
        self.client._pump_soon()

    def write(self, body: bytes, timeout_s: float = 10.0) -> asyncio.Task[Reply]:
        """Begin a write."""
        return asyncio.create_task(self.client.call(body, WRITE, timeout_s=timeout_s))

    async def sees(self, body: bytes) -> None:
        """Wait until a request with this body was sent."""
        while body not in self.sockets.sent:
            self.sockets.news.clear()
            await self.sockets.news.wait()


Scene = Callable[[Bench], Coroutine[Any, Any, None]]


def play(scene: Scene) -> None:
    """Run a scene, and see that nothing of it is left."""

    async def whole() -> None:
        bench = Bench()
        async with asyncio.timeout(20), bench.client:
            await scene(bench)
        assert bench.sockets.closed
        assert bench.client.outstanding == 0
        assert bench.client._waiting == {}

    asyncio.run(whole())


def test_requests_of_one_turn_of_the_loop_share_a_frame() -> None:
    """Fifty tasks, one frame; each gets its own answer, in whatever order they come."""

    async def scene(bench: Bench) -> None:
        bodies = [b"w%d" % number for number in range(50)]
        tasks = [bench.write(body) for body in bodies]
        await bench.sees(bodies[-1])
        assert [len(frame) for frame in bench.sockets.frames] == [50]
        mixed = list(bodies)
        random.Random(7).shuffle(mixed)
        for body in mixed:
            bench.answer(body)
        assert [reply.body for reply in await asyncio.gather(*tasks)] == bodies
        assert bench.client.info is not None
        assert bench.client.info.index == 7

    play(scene)


def test_a_cancelled_call_leaves_the_others_and_its_late_answer_is_dropped() -> None:
    """Nothing but the one future ends."""

    async def scene(bench: Bench) -> None:
        one, other = bench.write(b"one"), bench.write(b"other")
        await bench.sees(b"other")
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
        bench.answer(b"one")
        assert bench.client.core.counters["replies_late"] == 1
        assert not other.done()
        bench.answer(b"other")
        assert (await other).body == b"other"
        third = bench.write(b"third")
        await bench.sees(b"third")
        bench.answer(b"third")
        assert (await third).body == b"third"

    play(scene)


def test_a_call_inside_wait_for_is_cancelled_cleanly() -> None:
    """`asyncio.timeout` and `wait_for` around a call work as around anything."""

    async def scene(bench: Bench) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(bench.client.call(b"w", WRITE), 0.02)
        assert bench.client.outstanding == 0
        again = bench.write(b"again")
        await bench.sees(b"again")
        bench.answer(b"again")
        assert (await again).body == b"again"

    play(scene)


def test_a_write_that_nobody_answers_is_unknown_and_a_read_unavailable() -> None:
    """Each at its own deadline, while another goes on."""

    async def scene(bench: Bench) -> None:
        lasting = bench.write(b"lasting")
        with pytest.raises(OutcomeUnknown) as caught:
            await bench.client.call(b"short", WRITE, timeout_s=0.02)
        assert caught.value.request_id
        with pytest.raises(Unavailable):
            await bench.client.call(b"read", READ, timeout_s=0.02)
        assert not lasting.done()
        bench.answer(b"lasting")
        await lasting

    play(scene)


def test_what_was_refused_is_sent_again() -> None:
    """The core's timers run on the loop's: after its pause the write goes out a second time."""

    async def scene(bench: Bench) -> None:
        task = bench.write(b"w")
        await bench.sees(b"w")
        bench.answer(b"w", Code.BUSY)
        bench.sockets.sent.clear()
        await bench.sees(b"w")
        bench.answer(b"w")
        assert (await task).code == Code.OK
        assert bench.client.core.counters["retries"] == 1

    play(scene)


def test_closing_ends_what_waits() -> None:
    """A sent write is unknown, and says so; afterwards the client refuses."""

    async def scene(bench: Bench) -> None:
        sent = bench.write(b"sent")
        await bench.sees(b"sent")
        bench.sockets.links = dict.fromkeys(node.key for node in bench.client.core.nodes.ring)
        queued = bench.write(b"queued")
        read = asyncio.create_task(bench.client.call(b"read", READ))
        bench.client._pump_soon = lambda: None  # type: ignore[method-assign]  # they stay queued
        begun = asyncio.Event()
        asyncio.get_running_loop().call_soon(begun.set)
        await begun.wait()
        await bench.client.close()
        with pytest.raises(OutcomeUnknown, match="may or may not"):
            await sent
        for task in (queued, read):
            with pytest.raises(Unavailable) as caught:
                await task
            assert "closed" in caught.value.why
        with pytest.raises(ControlError, match="closed"):
            await bench.client.call(b"later", WRITE)
        await bench.client.close()

    play(scene)


def test_a_client_belongs_to_one_loop() -> None:
    """The second loop is refused before it touches a socket."""
    bench = Bench()

    async def use() -> None:
        task = bench.write(b"w")
        await bench.sees(b"w")
        bench.answer(b"w")
        await task

    asyncio.run(use())
    bench.sockets.sent.clear()
    with pytest.raises(ControlError, match="another event loop"):
        asyncio.run(bench.client.call(b"w", WRITE))
    asyncio.run(bench.client.close())
    assert bench.sockets.closed


def test_both_clients_have_the_same_calls() -> None:
    """Same names, arguments and defaults; only the waiting differs."""
    pairs: list[tuple[type, type, set[str]]] = [
        (KvClient, AsyncKvClient, set()),
        (Client, AsyncClient, {"submit", "wait"}),  # a task is what a submitted request is there
        (Repeat, AsyncRepeat, set()),
        (Session, AsyncSession, set()),
    ]
    for sync, aio, only_sync in pairs:
        expected = {name for name in vars(sync) if not name.startswith("_")} - only_sync
        assert expected == {name for name in vars(aio) if not name.startswith("_")}
        for name in {*expected, "__init__"}:
            one, other = getattr(sync, name), getattr(aio, name)
            if not inspect.isfunction(one):
                assert type(one) is type(other)
                continue
            ours, theirs = inspect.signature(one), inspect.signature(other)
            if name not in {"__init__", "session", "repeat"}:
                assert inspect.iscoroutinefunction(other), name
                assert ours.return_annotation == theirs.return_annotation, name
            assert list(ours.parameters.values())[2:] == list(theirs.parameters.values())[2:], name
