"""Two hundred seeds, every invariant after every step, and every rare situation reached."""

from __future__ import annotations

import os
import resource

import pytest

from zraft.testing.sim.campaign import Progress, run_campaign
from zraft.testing.sim.marks import missing
from zraft.testing.sim.runner import run_seed

SEEDS = 200
TIME_S = 15.0
LEAST_EVENTS_PER_S = 15_000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hundred_seeds_hold_and_reach_every_situation() -> None:
    """No seed breaks an invariant, and together they prove that they tested something."""
    jobs = min(2, os.cpu_count() or 1)
    totals = run_campaign(range(SEEDS), time_s=TIME_S, jobs=jobs, progress=Progress(None, TIME_S))
    report = "\n".join(totals.lines())
    assert totals.seeds == SEEDS
    trace = "\n".join(totals.failed[0]["trace"][-80:]) if totals.failed else ""
    assert [document["seed"] for document in totals.failed] == [], report + "\n" + trace
    assert missing(totals.marks) == [], report
    under_faults_s = SEEDS * TIME_S
    assert totals.operations >= 100 * under_faults_s, report
    assert sum(totals.faults.values()) >= 2 * under_faults_s, report
    assert totals.undecided_keys == 0, report


def cpu_s() -> float:
    """Return the processor time of this process, which other work on the machine leaves alone."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
def test_a_core_handles_fifteen_thousand_events_a_second() -> None:
    """Speed is how many seeds fit into a night."""
    events, began_s = 0, cpu_s()
    for seed in range(6):
        events += run_seed(seed, time_s=8.0).events
    assert events / (cpu_s() - began_s) >= LEAST_EVENTS_PER_S
