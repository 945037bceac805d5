"""Signals through a descriptor, the garbage collector's policy, and the notes a node leaves."""

from __future__ import annotations

import gc
import json
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from zraft import clock
from zraft.errors import ConfigError
from zraft.node import notes
from zraft.node.__main__ import check_system
from zraft.node.collector import (
    BUDGET_MS,
    FIRST_GUESS_US,
    FULL_EVERY_MS,
    MIDDLE_EVERY,
    YOUNG_EVERY_MS,
    Collector,
)
from zraft.node.signals import Signals

Report = list[tuple[str, dict[str, object]]]


@pytest.fixture
def signals() -> Iterator[Signals]:
    """Signals of this process, put back afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    found = Signals()
    yield found
    found.close()
    assert signal.getsignal(signal.SIGTERM) is before


def readable(fd: int) -> bool:
    """Tell whether a poll would return at once."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def test_signals_wake_the_poll_and_are_taken_once(signals: Signals) -> None:
    """The descriptor is readable after a signal, and not any more after it was taken."""
    assert not readable(signals.fd)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR1):
        signal.raise_signal(number)
    assert readable(signals.fd)
    assert signals.take() == {signal.SIGTERM, signal.SIGUSR1}
    assert not readable(signals.fd)
    assert signals.take() == set()


def test_a_flood_of_signals_loses_none(signals: Signals) -> None:
    """When the pipe is full its bytes are lost, but which signals came is still known."""
    for _ in range(70_000):  # a pipe holds 65,536
        signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGTERM)
    assert signals.take() == {signal.SIGUSR1, signal.SIGTERM}
    assert not readable(signals.fd)


@pytest.fixture
def report() -> Report:
    """Where events go."""
    return []


@pytest.fixture
def collector(report: Report) -> Iterator[Collector]:
    """The policy, in force for one test."""
    before = gc.get_threshold()
    found = Collector(lambda event, **fields: report.append((event, fields)))
    yield found
    found.close()
    assert gc.get_threshold() == before


def grow_old(collector: Collector, objects: int, now_ms: int = 0) -> list[list[int]]:
    """Make so many container objects that survive until they are old."""
    kept: list[list[int]] = [[] for _ in range(objects)]
    for look in range(2 * MIDDLE_EVERY):
        collector.on_turn(now_ms + look * YOUNG_EVERY_MS)
    return kept


def test_generation_2_is_never_collected_on_its_own(collector: Collector) -> None:
    """However many objects are made: a full collection in a loop's turn could be an election."""
    before = gc.get_stats()[2]["collections"]
    kept = grow_old(collector, 300_000)
    assert kept
    assert gc.get_stats()[2]["collections"] == before


def test_values_that_replace_others_do_not_gather(collector: Collector) -> None:
    """As many are freed as are made, so the interpreter never looks: each turn does, if due."""
    collector.on_turn(0)
    store = {key: (key, key) for key in range(4_000)}
    collector.freeze()
    for key in store:
        store[key] = (key, -key)
    assert gc.is_tracked(store[0]), "the interpreter looked on its own: make more of them"
    collector.on_turn(YOUNG_EVERY_MS - 1)
    assert gc.is_tracked(store[0])
    collector.on_turn(YOUNG_EVERY_MS)
    assert not any(gc.is_tracked(item) for item in store.values())


def test_survivors_are_old_within_a_second(collector: Collector) -> None:
    """They are visited once more while they are small, and then by full collections only."""
    collector.freeze()
    kept: list[list[int]] = [[]]
    for look in range(2 * MIDDLE_EVERY):
        collector.on_turn(look * YOUNG_EVERY_MS)
    assert any(found is kept for found in gc.get_objects(generation=2))


def test_frozen_objects_are_not_visited_again(collector: Collector) -> None:
    """What recovery read back is out of every later collection."""
    kept = [[] for _ in range(50_000)]  # type: ignore[var-annotated]  # any containers
    collector.freeze()
    assert gc.get_freeze_count() >= len(kept)
    assert len(gc.get_objects(generation=2)) < len(kept)


def test_an_idle_node_collects_what_was_made_since(collector: Collector, report: Report) -> None:
    """Cycles that lived long and died are freed; then there is a pause until the next time."""
    collector.freeze()
    kept = grow_old(collector, 1_000)
    kept[0].append(kept)  # type: ignore[arg-type]  # a cycle
    del kept
    collector.maybe_collect(FULL_EVERY_MS)
    ((event, fields),) = report
    assert event == "gc.collected"
    assert isinstance(fields["objects"], int)
    assert fields["objects"] >= 1000
    collector.maybe_collect(FULL_EVERY_MS + 1)
    collector.maybe_collect(3 * FULL_EVERY_MS)
    assert len(report) == 1  # nothing has grown old since


def test_a_collection_that_would_take_too_long_is_not_run(
    collector: Collector, report: Report
) -> None:
    """Beyond the budget the survivors are only frozen: memory in dead cycles, not an election."""
    collector.freeze()
    frozen = gc.get_freeze_count()
    kept = grow_old(collector, 2 * int(BUDGET_MS * 1000 / FIRST_GUESS_US))
    collector.maybe_collect(FULL_EVERY_MS)
    assert report == []
    assert gc.get_freeze_count() >= frozen + len(kept)
    collector.maybe_collect(3 * FULL_EVERY_MS)
    assert report == []  # they count no more


def test_a_large_store_is_no_short_collection(collector: Collector, report: Report) -> None:
    """A few containers may hold a million items: those count that were put into them."""
    collector.freeze()
    store: dict[int, tuple[int, int]] = {}
    for look in range(2 * MIDDLE_EVERY):
        first = look * 4_000
        store.update((number, (number, number)) for number in range(first, first + 4_000))
        collector.on_turn(look * YOUNG_EVERY_MS)
    assert len(gc.get_objects(generation=2)) < 10_000, "the items are out of every collection"
    collector.maybe_collect(FULL_EVERY_MS)
    assert report == []


def test_one_slow_collection_is_not_the_last_one(
    collector: Collector, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever kept it from running makes it look slow; what it looked like is forgotten."""
    now_ns = 0

    def slow_clock() -> int:
        nonlocal now_ns
        now_ns += 60_000_000
        return now_ns

    monkeypatch.setattr(clock, "now_ns", slow_clock)
    collector.freeze()
    runs = 0
    for idle in range(1, 40):
        assert grow_old(collector, 1_000, idle * FULL_EVERY_MS)
        collector.maybe_collect(idle * FULL_EVERY_MS)
        runs = len(report)
        if runs == 2:
            break
    assert runs == 2
    assert idle > 2, "the next one was put off"


def test_progress_is_told_at_most_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first line comes after a second, the readiness line always, and then the end."""
    now_ms = 5_000
    monkeypatch.setattr(clock, "now_ms", lambda: now_ms)
    read_fd, write_fd = os.pipe()
    pipe = notes.ReadyPipe(write_fd)
    for elapsed_ms in (0, 999, 1000, 1001, 1999, 2000):
        now_ms = 5_000 + elapsed_ms
        pipe.progress(f"after {elapsed_ms}")
    pipe.ready({"pid": 1})
    pipe.close()
    with os.fdopen(read_fd) as reader:
        lines = [json.loads(line) for line in reader]
    assert lines == [{"progress": "after 1000"}, {"progress": "after 2000"}, {"pid": 1}]


def test_a_pipe_that_nobody_reads_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full pipe, a closed one and none at all are ignored."""
    now_ms = 0
    monkeypatch.setattr(clock, "now_ms", lambda: now_ms)
    read_fd, write_fd = os.pipe()
    pipe = notes.ReadyPipe(write_fd)
    for now_ms in range(0, 100_000_000, 1000):
        pipe.progress("x" * 60_000)
        if now_ms > 10_000:
            break
    os.close(read_fd)
    pipe.ready({"pid": 1})
    notes.ReadyPipe(None).ready({"pid": 1})
    notes.ReadyPipe(123_456).ready({"pid": 1})  # not a descriptor


def test_node_json_and_exit_json_replace_each_other(tmp_path: Path) -> None:
    """While a node runs there is node.json, after it ended in order there is exit.json."""
    note = notes.process_note(3)
    assert note["pid"] == os.getpid()
    notes.write_node_file(tmp_path, note)
    assert json.loads((tmp_path / "node.json").read_bytes()) == note
    notes.write_exit_file(tmp_path, code=74, reason="storage", error="no", why="because")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exit.json"]
    assert json.loads((tmp_path / "exit.json").read_bytes()) == {
        "pid": os.getpid(),
        "code": 74,
        "reason": "storage",
        "error": "no",
        "why": "because",
    }
    notes.write_node_file(tmp_path, note)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["node.json"]


def test_notes_are_not_worth_an_error(tmp_path: Path) -> None:
    """A directory that is gone is ignored: ownership is proven by the lock, not by notes."""
    gone = tmp_path / "gone"
    notes.write_node_file(gone, {})
    notes.write_exit_file(gone, code=0, reason="x")


@pytest.mark.parametrize(
    ("platform", "release"),
    [("darwin", "23.1.0"), ("linux", "5.3.18"), ("linux", "4.19.0-25-amd64"), ("win32", "10")],
)
def test_other_systems_are_refused(platform: str, release: str) -> None:
    """Anything but Linux 5.4 or newer is refused with one sentence and exit code 78."""
    with pytest.raises(ConfigError, match=platform):
        check_system(platform, release)


@pytest.mark.parametrize("release", ["5.4.0", "5.15.0-91-generic", "6.18.44-fc", "10.0"])
def test_newer_linux_is_taken(release: str) -> None:
    """Also with what distributions, WSL2 and virtual machines put behind the number."""
    check_system("linux", release)
