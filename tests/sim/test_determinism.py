"""One seed is one run: in any order, in any process, with any hash seed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from zraft.testing.sim.runner import run_seed

TIME_S = 4.0
SEEDS = (3, 8, 11)  # the first goes without the codec, the last with it


def hashes_elsewhere(seeds: tuple[int, ...], hash_seed: str) -> dict[int, str]:
    """Run seeds in a process of their own; return their trace hashes."""
    done = subprocess.run(
        [sys.executable, "-m", "zraft.testing.sim.worker", "--time-s", f"{TIME_S:g}"],
        input="".join(f"{seed}\n" for seed in seeds).encode(),
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        stdout=subprocess.PIPE,
        check=True,
        timeout=100,
    )
    documents = [json.loads(line) for line in done.stdout.splitlines()]
    return {document["seed"]: document["trace_hash"] for document in documents}


def test_the_same_seed_twice_is_the_same_run() -> None:
    """Nothing is left over from one run that the next could see."""
    first = [run_seed(seed, time_s=TIME_S) for seed in SEEDS]
    second = [run_seed(seed, time_s=TIME_S) for seed in reversed(SEEDS)]
    assert [o.trace_hash for o in first] == [o.trace_hash for o in reversed(second)]
    assert [o.events for o in first] == [o.events for o in reversed(second)]


def test_other_processes_and_hash_seeds_give_the_same_run() -> None:
    """Neither the order of sets nor that of earlier runs decides anything."""
    here = {seed: run_seed(seed, time_s=TIME_S).trace_hash for seed in SEEDS}
    assert hashes_elsewhere(SEEDS, "1") == here
    assert hashes_elsewhere(SEEDS[::-1], "4242") == here


def test_other_seeds_are_other_runs() -> None:
    """A hash that ignored what happens would pass every other test here."""
    hashes = [run_seed(seed, time_s=1.0).trace_hash for seed in range(8)]
    assert len(set(hashes)) == len(hashes)


def test_keeping_more_steps_or_the_trace_changes_nothing() -> None:
    """Who looks at a run does not change it: a replay is the run."""
    plain = run_seed(SEEDS[0], time_s=TIME_S)
    looked_at = run_seed(SEEDS[0], time_s=TIME_S, steps=10_000, trace=True)
    assert looked_at.trace_hash == plain.trace_hash
    assert len(looked_at.trace) > 1000
