"""Figures and verdicts of the measuring commands; the measuring itself is tests/cluster's."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from zraft.errors import ConfigError
from zraft.testing.bench.bars import verdict
from zraft.testing.bench.command import numbers, run
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
