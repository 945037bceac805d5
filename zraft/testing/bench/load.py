"""A load on a real cluster: one client that keeps a number of durable writes outstanding."""

from __future__ import annotations

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

    def put(self, *, count: int, outstanding: int, size_bytes: int) -> Latencies:
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
                body = encode_put(b"key%d" % (sent % KEYS), value)
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
