"""A load on a real cluster: one client that keeps a number of durable writes outstanding."""

from __future__ import annotations

import select
from types import TracebackType

from zraft import clock
from zraft.api import Consistency
from zraft.client.control import Cluster
from zraft.client.sync import Client
from zraft.errors import ZraftError
from zraft.machine.kv_codec import encode_put
from zraft.testing.bench.latency import Latencies
from zraft.testing.bench.place import Place

KEYS = 1_000
TIMEOUT_S = 30.0
PACE_MS = 2  # how long a paced load waits before it looks at the clock again


class ClusterLoad:
    """A client of a running cluster; a context manager."""

    def __init__(self, cluster: Cluster, place: Place) -> None:
        """Connect to it."""
        self._client = Client(cluster.name, environ=place.environ(), timeout_s=TIMEOUT_S)

    def __enter__(self) -> ClusterLoad:
        self._client.barrier()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def put(self, *, count: int, outstanding: int, size_bytes: int, keys: int = KEYS) -> Latencies:
        """Put `count` values with so many outstanding, and return how long each took.

        Raises:
            ZraftError: a write was not acknowledged.
        """
        client, value = self._client, b"v" * size_bytes
        sent = done = 0
        sent_ns: dict[int, int] = {}
        latencies = Latencies()
        while done < count:
            while sent < count and sent - done < outstanding:
                body = encode_put(b"key%d" % (sent % keys), value)
                request_id = client.submit(body, Consistency.WRITE)
                sent_ns[request_id] = clock.monotonic_ns()
                sent += 1
            finished = client.wait()
            now_ns = clock.monotonic_ns()
            for request_id, outcome, _ in finished:
                if isinstance(outcome, ZraftError):
                    raise outcome
                latencies.add(now_ns - sent_ns.pop(request_id))
            done += len(finished)
        return latencies.finish()

    def put_at_rate(
        self, *, count: int, per_s: int, size_bytes: int, first: int, keys: int
    ) -> None:
        """Put `count` values, so many a second: half of them to the `keys` keys, half to new ones.

        `first`: how many were put before in this way.

        Raises:
            ZraftError: a write was not acknowledged.
        """
        client, value = self._client, b"w" * size_bytes
        start_ns = clock.monotonic_ns()
        sent = 0
        while sent < count or client.outstanding:
            due = min(count, (clock.monotonic_ns() - start_ns) * per_s // 1_000_000_000)
            for number in range(first + sent, first + due):
                key = keys + number if number % 2 else number * 7919 % keys
                client.submit(encode_put(b"key%d" % key, value), Consistency.WRITE)
            sent = due
            if not client.outstanding:
                select.poll().poll(PACE_MS)
            for _, outcome, _ in client.wait(timeout_s=PACE_MS / 1000):
                if isinstance(outcome, ZraftError):
                    raise outcome
