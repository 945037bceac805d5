"""A node's clock: starts anywhere, runs too fast or too slow, jumps ahead, never goes back.

Like CLOCK_BOOTTIME, which production reads: a machine that slept wakes up with a clock that jumped.
"""

from __future__ import annotations

MILLION = 1_000_000


class NodeClock:
    """Local time as a function of true time: `offset + true × rate`."""

    __slots__ = ("_offset_us", "_rate")

    def __init__(self, offset_us: int, drift_ppm: int) -> None:
        """Start at `offset_us`; gain `drift_ppm` microseconds a second."""
        self._offset_us = offset_us
        self._rate = MILLION + drift_ppm

    def local_us(self, true_us: int) -> int:
        """Return what the clock shows at a true time, in microseconds."""
        return self._offset_us + true_us * self._rate // MILLION

    def local_ms(self, true_us: int) -> int:
        """Return what `clock.now_ms` reads at a true time."""
        return (self._offset_us + true_us * self._rate // MILLION) // 1000

    def true_us(self, local_ms: int) -> int:
        """Return the first true time at which the clock shows `local_ms`; below 0: before all."""
        return -((self._offset_us - local_ms * 1000) * MILLION // self._rate)

    def jump(self, ahead_us: int) -> None:
        """Go ahead all at once."""
        assert ahead_us >= 0
        self._offset_us += ahead_us
