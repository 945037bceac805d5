"""What a snapshot of a large store costs those who write meanwhile.

Three nodes hold a million keys of 100 B; all three are told to take a snapshot at the same time, on
one machine, while 1,000 writes a second go on, half of them of new keys, so that every table grows.
The nodes count the lengths of their turns and the silences of their leader (`zraft.node.lengths`);
what they counted before is taken off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from zraft import clock
from zraft.api import Accepted, TakeSnapshot
from zraft.client.control import Cluster
from zraft.errors import SupervisorError
from zraft.testing.bench.load import ClusterLoad

NODES = 3
KEYS = 1_000_000
VALUE_BYTES = 100
WRITES_PER_S = 1_000
FILL_OUTSTANDING = 1_000
PATIENCE_MS = 300_000
SETTINGS: dict[str, dict[str, int | bool | str]] = {"snapshot": {"min_log_bytes": 16 << 30}}
"""No node takes one on its own."""

MAX_SLICE_MS = 10  # of the limits of `zraft.node.lengths`, as the others
LONG_TURN_MS, MAX_TURN_MS = 20, 75
MAX_LONG_TURNS = 0.001
MAX_SILENCE_MS = 125


class Figures(NamedTuple):
    """What was counted while the snapshots were written, of all nodes together."""

    slices_ms: list[float]  # the longest of each node
    slices: int
    long_slices: int  # over 10 ms
    turns: int
    long_turns: int  # over 20 ms
    longer_turns: int  # over 75 ms
    long_silences: int  # over 125 ms
    elapsed_ms: float
    writes: int

    @property
    def held(self) -> bool:
        """Whether all of it stayed within the bar."""
        return (
            max(self.slices_ms) <= MAX_SLICE_MS
            and self.long_turns <= MAX_LONG_TURNS * self.turns
            and self.longer_turns == 0
            and self.long_silences == 0
        )

    def line(self) -> str:
        """Return what was counted, for people."""
        return (
            f"{self.elapsed_ms:,.0f} ms, {self.writes} writes; of {self.slices} slices "
            f"{self.long_slices} over {MAX_SLICE_MS} ms; of {self.turns} turns "
            f"{self.long_turns} over {LONG_TURN_MS} ms, {self.longer_turns} over {MAX_TURN_MS} ms; "
            f"{self.long_silences} silences of the leader over {MAX_SILENCE_MS} ms"
        )


def fill(load: ClusterLoad, keys: int = KEYS) -> None:
    """Write all keys once."""
    load.put(count=keys, outstanding=FILL_OUTSTANDING, size_bytes=VALUE_BYTES, keys=keys)


def measure(cluster: Cluster, load: ClusterLoad, keys: int = KEYS) -> Figures:
    """Take a snapshot on all nodes while writes go on; the store holds `keys` keys.

    Raises:
        SupervisorError: a node did not answer, or no snapshot came of it.
    """
    before = counters(cluster)
    start_ns = clock.monotonic_ns()
    for name in before:
        reply = cluster.ask(name, TakeSnapshot())
        assert isinstance(reply, Accepted), reply
    writes = 0
    while True:
        load.put_at_rate(
            count=WRITES_PER_S // 2,
            per_s=WRITES_PER_S,
            size_bytes=VALUE_BYTES,
            first=writes,
            keys=keys,
        )
        writes += WRITES_PER_S // 2
        elapsed_ms = (clock.monotonic_ns() - start_ns) / 1e6
        after = counters(cluster)
        if all(after[name]["snapshot.taken"] > before[name]["snapshot.taken"] for name in before):
            return figures(before, after, elapsed_ms, writes)
        if elapsed_ms > PATIENCE_MS:
            raise SupervisorError(f"no snapshot was finished within {PATIENCE_MS} ms")


def counters(cluster: Cluster) -> dict[str, Mapping[str, int]]:
    """Return the counters of each node."""
    found: dict[str, Mapping[str, int]] = {}
    for name, status in cluster.statuses(timeout_ms=5_000).items():
        if status is None:
            raise SupervisorError(f"{name} gave no status within 5 s")
        found[name] = status.counters
    return found


def figures(
    before: Mapping[str, Mapping[str, int]],
    after: Mapping[str, Mapping[str, int]],
    elapsed_ms: float,
    writes: int,
) -> Figures:
    """Return what was counted between two looks."""

    def counted(counter: str) -> int:
        return sum(after[name][counter] - before[name][counter] for name in before)

    return Figures(
        slices_ms=[after[name]["snapshot.longest_slice_us"] / 1000 for name in before],
        slices=counted("snapshot.slices"),
        long_slices=counted(f"snapshot.slices_over_{MAX_SLICE_MS}ms"),
        turns=counted("loop.turns"),
        long_turns=counted(f"loop.turns_over_{LONG_TURN_MS}ms"),
        longer_turns=counted(f"loop.turns_over_{MAX_TURN_MS}ms"),
        long_silences=counted(f"leader.silences_over_{MAX_SILENCE_MS}ms"),
        elapsed_ms=elapsed_ms,
        writes=writes,
    )
