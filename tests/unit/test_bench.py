"""Figures and verdicts of the measuring commands; the measuring itself is tests/cluster's."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from zraft.errors import ConfigError
from zraft.testing.bench import bounded, snapshots
from zraft.testing.bench.bars import judge_sim, verdict
from zraft.testing.bench.command import numbers, run
from zraft.testing.bench.cpu import CpuRound
from zraft.testing.bench.latency import Latencies, median, percentile
from zraft.testing.bench.place import find_disk


def test_percentile_is_a_value_that_was_measured() -> None:
    """The 99th of a hundred values is the last one; nothing gives 0."""
    values = [float(value) for value in range(100)]
    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.99) == 99
    assert percentile(values, 1.0) == 99
    assert percentile([], 0.5) == 0


def test_median_of_an_even_number_is_the_mean_of_the_middle_two() -> None:
    """The order of the values does not matter."""
    assert median([9, 1, 5]) == 5
    assert median([4, 1, 3, 2]) == 2.5
    assert median([]) == 0


def test_rates_are_operations_by_the_time_of_the_whole_load() -> None:
    """Latencies are those of single operations, in ms."""
    latencies = Latencies()
    for took_ms in (1, 2, 3):
        latencies.add(took_ms * 1_000_000)
    rates = latencies.finish().rates()
    assert (rates.p50_ms, rates.p99_ms, rates.max_ms) == (2, 3, 3)
    assert rates.writes_per_s > 0


@pytest.mark.parametrize(
    ("held", "delay_ms", "said"),
    [
        (True, 20.0, "held"),
        (False, 20.0, "missed"),
        (True, 20.1, "not judged"),
        (False, 20.1, "not judged"),
    ],
)
def test_a_bar_on_a_busy_machine_is_not_judged(held: bool, delay_ms: float, said: str) -> None:
    """Above 20 ms of wake-up delay neither a pass nor a failure is said."""
    assert verdict(held, delay_ms) == said


@pytest.mark.parametrize(
    ("events_per_s", "slowest_loop", "delay_ms", "said"),
    [
        (15_000.0, 10e6, 1.0, "held"),
        (14_999.0, 16e6, 1.0, "missed"),
        (14_999.0, 15e6, 1.0, "not judged"),
        (14_999.0, 20e6, 20.1, "not judged"),
        (15_000.0, 20e6, 20.1, "not judged"),
    ],
)
def test_a_simulator_on_a_core_of_many_speeds_is_judged_only_if_it_holds(
    events_per_s: float, slowest_loop: float, delay_ms: float, said: str
) -> None:
    """Plain loops that differ by a fifth and more tell of others on the core."""
    loops = [20e6, slowest_loop, 19e6, 20e6]
    bar = judge_sim([CpuRound(events_per_s, loop) for loop in loops], delay_ms)
    assert bar.verdict == said
    assert bool(bar.unjudged) is (said == "not judged")
    assert f"{min(loops) / 1e6:.1f} to 20.0 M" in bar.facts


def test_lists_of_numbers_are_positive() -> None:
    """0 outstanding writes would wait for ever."""
    assert numbers("1,64,1000") == [1, 64, 1000]
    with pytest.raises(argparse.ArgumentTypeError, match="0 is not a positive number"):
        numbers("3,0")


def test_data_goes_to_a_disk_or_nowhere(tmp_path: Path) -> None:
    """A directory in memory is refused with what to do; the wanted one is made."""
    with pytest.raises(ConfigError, match="not on a disk"):
        find_disk("/dev/shm/zraft-bench", {})
    assert not Path("/dev/shm/zraft-bench").exists()
    assert find_disk(str(tmp_path / "new"), {}) == (tmp_path / "new").resolve()


def test_failures_are_told_with_their_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    """What, why and what to try on stderr; an interrupt is 130."""

    def fail() -> int:
        raise ConfigError("no", why="because", try_="yes")

    def interrupt() -> int:
        raise KeyboardInterrupt

    assert run(fail) == 78
    assert capsys.readouterr().err == "error[config]: no\n  why: because\n  try: yes\n"
    assert run(interrupt) == 130


def looks(node: str, log_bytes: list[int], memory_bytes: list[int]) -> list[bounded.Look]:
    """Return what a node held at equal distances."""
    return [
        bounded.Look(
            node=node,
            writes=number * 100,
            log_bytes=log,
            kept_entries=10,
            snapshot_index=number,
            memory_bytes=memory,
        )
        for number, (log, memory) in enumerate(zip(log_bytes, memory_bytes, strict=True))
    ]


def test_a_log_or_a_memory_that_grows_is_a_problem() -> None:
    """The log has a limit; of memory the second half has no more than the first, with a margin."""
    spec = bounded.Spec()
    flat, limit = [100, 110, 109, 112], spec.max_log_bytes
    assert bounded.problems(spec, looks("n1", [1, limit, 5, limit], flat)) == []
    (log,) = bounded.problems(spec, looks("n1", [1, limit + 1, 5, 5], flat))
    assert "n1 had a log" in log
    (memory,) = bounded.problems(spec, looks("n2", [1] * 4, [100, 110, 115, 122]))
    assert "n2 grew from 110 to 122" in memory
    assert bounded.problems(spec, looks("n2", [1] * 4, [1, 2, 3, 4]), judge_memory=False) == []
    (none,) = bounded.problems(spec, looks("n3", [1], [1]))
    assert none == "n3 took no snapshot"


@pytest.mark.parametrize(
    ("changed", "held"),
    [
        ({}, True),
        ({"snapshot.longest_slice_us": 10_001}, False),
        ({"loop.turns_over_20ms": 12}, False),
        ({"loop.turns_over_75ms": 3}, False),
        ({"leader.silences_over_125ms": 8}, False),
    ],
)
def test_the_bar_of_snapshots_counts_what_came_in_between(
    changed: dict[str, int], held: bool
) -> None:
    """Whatever was long before the snapshots began does not count; each limit does."""
    before = {
        "loop.turns": 5_000,
        "loop.turns_over_20ms": 10,
        "loop.turns_over_75ms": 2,
        "leader.silences_over_125ms": 7,
        "snapshot.longest_slice_us": 0,
        "snapshot.slices": 300,
        "snapshot.slices_over_10ms": 4,
    }
    later = {"loop.turns": 6_999, "snapshot.longest_slice_us": 9_000, "snapshot.slices": 500}
    after = {**before, **later, **changed}
    found = snapshots.figures({"n1": before}, {"n1": after}, 1000.0, 10)
    assert found.held is held
    assert found.turns == 1_999
    assert "10 writes; of 200 slices 0 over 10 ms" in found.line()
