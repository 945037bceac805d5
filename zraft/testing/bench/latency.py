"""How long single operations took, and what that makes per second."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from zraft import clock


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """Return the value below which that fraction of an ordered sequence lies; 0 when empty."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(len(ordered) * fraction))]


def median(values: Sequence[float]) -> float:
    """Return the middle value, the mean of the two middle ones; 0 when empty."""
    if not values:
        return 0.0
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """One load: writes per second, and latencies in ms."""

    writes_per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float


class Latencies:
    """Collects while a load runs; the clock starts when it is made."""

    def __init__(self) -> None:
        self._start_ns = clock.monotonic_ns()
        self._elapsed_ns = 0
        self._took_ns: list[int] = []
        self.add = self._took_ns.append
        """Take note of one operation that took so many ns."""

    def finish(self) -> Latencies:
        """Stop the clock."""
        self._elapsed_ns = clock.monotonic_ns() - self._start_ns
        return self

    def rates(self) -> Rates:
        """Return what it comes to; only after `finish`."""
        ordered = sorted(self._took_ns)
        return Rates(
            writes_per_s=len(ordered) / (self._elapsed_ns / 1e9),
            p50_ms=percentile(ordered, 0.5) / 1e6,
            p99_ms=percentile(ordered, 0.99) / 1e6,
            max_ms=percentile(ordered, 1.0) / 1e6,
        )
