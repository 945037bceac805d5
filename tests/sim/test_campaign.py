"""Two hundred seeds, every invariant after every step, and every rare situation reached."""

from __future__ import annotations

import os

import pytest

from zraft.testing.sim.campaign import Progress, run_campaign
from zraft.testing.sim.marks import missing

SEEDS = 200
TIME_S = 15.0


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
