"""The only module that reads a clock.

Raft's timers use CLOCK_BOOTTIME: it goes on while the machine sleeps, so that a laptop that wakes
up knows that its leases and leaders are old. Lines of telemetry carry CLOCK_MONOTONIC, which all
processes of one host share, for merging; wall time is for people only.
"""

from __future__ import annotations

import time


def now_ms() -> int:
    """Return the time of Raft's timers: CLOCK_BOOTTIME in whole milliseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def now_ns() -> int:
    """Return CLOCK_BOOTTIME in nanoseconds, for measuring how long a thing took."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def monotonic_ns() -> int:
    """Return CLOCK_MONOTONIC in nanoseconds: what lines of telemetry are merged by."""
    return time.monotonic_ns()


def monotonic_ms() -> int:
    """Return CLOCK_MONOTONIC in whole milliseconds."""
    return time.monotonic_ns() // 1_000_000


def wall_time_ns() -> int:
    """Return the wall clock, nanoseconds since the epoch: for people, never for decisions."""
    return time.time_ns()
