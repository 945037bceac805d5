"""How fast one core is: the simulator's events, beside a loop of plain Python in the same process.

Processor time, not the clock on the wall: what else runs leaves it nearly alone. The plain loop is
the machine's own figure: a core that does half as many additions does half as many events.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from typing import NamedTuple

from zraft.testing.sim.runner import run_seed

SEEDS = (0, 1, 2, 3)
TIME_S = 8.0
ADDITIONS = 2_000_000
STEADY = 0.8  # the slowest plain loop by the quickest, where the core was nobody else's


class CpuRound(NamedTuple):
    """One round: simulated events and plain additions, each per second of one core."""

    events_per_s: float
    additions_per_s: float


def is_steady(rounds: Sequence[CpuRound]) -> bool:
    """Return whether the core ran at one speed: a core that others share runs at many."""
    plain = [found.additions_per_s for found in rounds]
    return min(plain) >= STEADY * max(plain)


def cpu_s() -> float:
    """Return the processor time of this process so far, in seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def additions_per_s() -> float:
    """Return how many additions a plain loop does in a second of one core."""
    began_s, number = cpu_s(), 0
    for step in range(ADDITIONS):
        number += step & 3
    assert number
    return ADDITIONS / (cpu_s() - began_s)


def measure_round() -> CpuRound:
    """Run some seeds with every invariant on, and the plain loop before them.

    The first call in a process also pays for imports: make one that does not count.
    """
    plain = additions_per_s()
    began_s, events = cpu_s(), 0
    for seed in SEEDS:
        outcome = run_seed(seed, time_s=TIME_S)
        assert not outcome.violations, outcome.violations
        events += outcome.events
    return CpuRound(events / (cpu_s() - began_s), plain)
