"""The asyncio client on three real nodes: many tasks, cancelling at random, a killed leader."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import zraft
from tests.client_fake_nodes import FakeNodes
from tests.cluster.bare_nodes import BareNodes, bare_nodes
from zraft.errors import NotFound, OutcomeUnknown, RequestError, Unavailable
from zraft.machine.kv_codec import Compare, Get, Put, Relation, Target, Txn

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def nodes() -> Iterator[BareNodes]:
    """Three nodes, running, with a leader; the tests share them."""
    with bare_nodes(3) as found:
        found.start_all()
        found.leader()
        yield found


def client_of(nodes: BareNodes) -> zraft.AsyncClient:
    return zraft.AsyncClient("c", environ={"ZRAFT_HOME": str(nodes.base)})


def test_the_store_in_a_loop(nodes: BareNodes) -> None:
    """Every call of `kv` once, awaited."""

    async def use() -> None:
        async with client_of(nodes) as client:
            kv = client.kv
            revision = (await kv.put("a/1", "one")).revision
            assert client.info is not None
            assert client.info.revision == revision
            assert await kv.get("a/1") == b"one"
            assert await kv["a/1"] == b"one"
            assert await kv.get("missing") is None
            with pytest.raises(NotFound, match="missing"):
                await kv["missing"]
            assert await kv.cas("a/1", expect="one", set="two")
            result = await kv.compare_and_set("a/1", expect="one", set="three")
            assert not result.succeeded
            entry = await kv.entry("a/1")
            assert entry is not None
            assert entry.version == 2
            absent = Compare(Target.VERSION, Relation.EQUAL, b"a/2", 0)
            txn = Txn([absent], [Put(b"a/2", b"x")], [Get(b"a/2")])
            assert (await kv.transact(txn)).succeeded
            assert [item.key for item in await kv.scan("a/")] == [b"a/1", b"a/2"]
            assert await kv.count("a/") == 2
            assert await kv.delete("a/2")
            barrier = await client.barrier()
            assert await kv.get("a/1", consistency="stale", at=barrier.node) == b"two"

    asyncio.run(use())


def test_five_hundred_tasks_of_which_many_are_cancelled(nodes: BareNodes) -> None:
    """Those that were left alone get their own values; the client serves on."""
    rng = random.Random(11)

    async def put_and_get(client: zraft.AsyncClient, number: int) -> bytes | None:
        await client.kv.put(f"t/{number}", f"v{number}")
        return await client.kv.get(f"t/{number}")

    async def use() -> None:
        async with client_of(nodes) as client:
            tasks = [asyncio.create_task(put_and_get(client, number)) for number in range(500)]
            for _ in range(4):
                await asyncio.wait(rng.sample(tasks, 50), return_when=asyncio.FIRST_COMPLETED)
                for task in rng.sample(tasks, 50):
                    task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            kept = [(n, value) for n, value in enumerate(ended) if isinstance(value, bytes)]
            assert len(kept) >= 300
            assert all(value == f"v{number}".encode() for number, value in kept)
            assert all(isinstance(v, (bytes, asyncio.CancelledError)) for v in ended)
            assert client.outstanding == 0
            assert await client.kv.get("t/none") is None

    asyncio.run(use())


def test_answers_that_arrived_before_the_connection_was_lost_count() -> None:
    """A node answers all and dies: none of it is unknown; the next read is Unavailable."""
    directory = Path(tempfile.mkdtemp(prefix="zf"))
    fakes = FakeNodes(directory)

    async def use() -> None:
        async with zraft.AsyncClient(endpoints=fakes.endpoint(1)) as client:
            await client.kv.put("x", "1")
            puts = [client.kv.put(f"k{number}", "v") for number in range(50)]
            results = await asyncio.gather(*puts)
            assert [result.revision for result in results] == list(range(3, 53))
            with pytest.raises(Unavailable):
                await client.kv.get("x", timeout=0.3)

    try:
        for _ in range(3):
            fakes.start(1, "ok,last-words")
            asyncio.run(use())
            fakes.kill(1)
            fakes.output(1).close()
    finally:
        fakes.close()
        shutil.rmtree(directory)


class Acknowledged:
    """The keys whose puts were acknowledged."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self._news = asyncio.Event()

    def add(self, key: str) -> None:
        """Note one."""
        self.keys.append(key)
        self._news.set()

    async def reaches(self, count: int) -> None:
        """Wait until there are so many."""
        while len(self.keys) < count:
            self._news.clear()
            await self._news.wait()


def test_a_killed_leader_costs_no_acknowledged_write(nodes: BareNodes) -> None:
    """Sixteen tasks write on; what was acknowledged is there, and every other end has a name."""
    acknowledged = Acknowledged()
    others: list[RequestError] = []

    async def write(client: zraft.AsyncClient, who: int, stop: asyncio.Event) -> None:
        number = 0
        while not stop.is_set():
            key = f"k/{who}/{number}"
            try:
                await client.kv.put(key, "v", timeout=10)
                acknowledged.add(key)
            except (OutcomeUnknown, Unavailable) as error:
                others.append(error)
            number += 1

    async def use() -> None:
        async with client_of(nodes) as client, asyncio.timeout(60):
            stop = asyncio.Event()
            tasks = [asyncio.create_task(write(client, who, stop)) for who in range(16)]
            await acknowledged.reaches(100)
            leader = (await client.barrier()).node
            nodes.runs[leader].kill()
            await acknowledged.reaches(len(acknowledged.keys) + 200)
            stop.set()
            await asyncio.gather(*tasks)
            stored = {item.key.decode() for item in await client.kv.scan("k/", keys_only=True)}
            assert set(acknowledged.keys) <= stored
            assert len(others) <= 32

    asyncio.run(use())
