"""Telemetry: the line's form, the two streams, limits, rotation, and a disk that refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import msgspec.json
import pytest

from zraft.telemetry import BUFFER_LINES, LineFile, Telemetry, TraceMode

SECOND_NS = 1_000_000_000


class FakeClock:
    """Both clocks of a line, set by hand."""

    def __init__(self) -> None:
        """Begin at a round time."""
        self.monotonic_ns = 5 * SECOND_NS
        self.wall_ns = 1_795_383_901 * SECOND_NS + 133_482_999


@pytest.fixture
def clock() -> FakeClock:
    """Return the clock that `make` uses."""
    return FakeClock()


@pytest.fixture
def opened(tmp_path: Path, clock: FakeClock) -> Iterator[dict[str, Telemetry]]:
    """Own one telemetry for each mode, and close them."""
    made = {mode: make(tmp_path / mode, clock, mode) for mode in ("off", "auto", "full")}
    yield made
    for telemetry in made.values():
        telemetry.close()


def make(directory: Path, clock: FakeClock, mode: str, **options: int) -> Telemetry:
    """Return a telemetry of node n1 that writes into `directory`."""
    directory.mkdir(exist_ok=True)
    trace: TraceMode = "off" if mode == "off" else "full" if mode == "full" else "auto"
    return Telemetry(
        directory,
        node="n1",
        cluster="default",
        incarnation=3,
        trace=trace,
        monotonic_ns=lambda: clock.monotonic_ns,
        wall_time_ns=lambda: clock.wall_ns,
        **options,
    )


def lines(directory: Path, stream: str = "log") -> list[dict[str, Any]]:
    """Return the lines of a stream's current file."""
    path = directory / f"{stream}.jsonl"
    if not path.exists():
        return []
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]


def test_line_has_the_published_form(tmp_path: Path, clock: FakeClock) -> None:
    """Keys, order and sentence of a line are a contract: people and programs read it."""
    telemetry = make(tmp_path, clock, "auto")
    telemetry.context = lambda: {"role": "leader", "term": 1, "commit": 17, "last": 18}
    telemetry.emit(
        "election.won", term=2, pre_vote=False, votes=["n1", "n4"], quorum=2, elapsed_ms=10
    )
    telemetry.close()
    (line,) = lines(tmp_path)
    assert line == {
        "ts": "2026-11-22T21:45:01.133482Z",
        "level": "info",
        "event": "election.won",
        "msg": "won term 2 with the votes of n1 n4 in 10 ms (pre-vote: False)",
        "cluster": "default",
        "node": "n1",
        "pid": os.getpid(),
        "inc": 3,
        "seq": 1,
        "mono_ns": 5 * SECOND_NS,
        "role": "leader",
        "term": 2,
        "commit": 17,
        "last": 18,
        "pre_vote": False,
        "votes": ["n1", "n4"],
        "quorum": 2,
        "elapsed_ms": 10,
        "v": 1,
    }
    assert list(line)[:4] == ["ts", "level", "event", "msg"]


def test_sequence_counts_over_both_streams(opened: dict[str, Telemetry], tmp_path: Path) -> None:
    """One counter from 1 over both files, so that merging restores the order of a process."""
    telemetry = opened["full"]
    telemetry.emit("node.ready", elapsed_ms=1)
    telemetry.trace("commit.advanced", old=0, new=1)
    telemetry.emit("node.ready", elapsed_ms=2)
    telemetry.write_out()
    assert [line["seq"] for line in lines(tmp_path / "full")] == [1, 3]
    assert [line["seq"] for line in lines(tmp_path / "full", "trace")] == [2]


@pytest.mark.parametrize("fields", [{}, {"elapsed_ms": 1, "more": 2}, {"elapsed": 1}])
def test_wrong_fields_are_an_assertion(
    opened: dict[str, Telemetry], fields: Mapping[str, object]
) -> None:
    """An event has exactly its fields; anything else is a bug in the program."""
    with pytest.raises(AssertionError, match=r"node\.ready"):
        opened["auto"].emit("node.ready", **fields)


def test_unknown_event_is_an_assertion(opened: dict[str, Telemetry]) -> None:
    """The list is closed."""
    with pytest.raises(AssertionError, match=r"node\.exploded"):
        opened["auto"].emit("node.exploded")


def test_warning_is_in_the_file_at_once(opened: dict[str, Telemetry], tmp_path: Path) -> None:
    """A warning takes everything buffered before it to the file, in order."""
    telemetry = opened["auto"]
    telemetry.emit("node.ready", elapsed_ms=1)
    assert lines(tmp_path / "auto") == []
    telemetry.emit("storage.sync_slow", elapsed_ms=80, bytes=512)
    assert [line["event"] for line in lines(tmp_path / "auto")] == [
        "node.ready",
        "storage.sync_slow",
    ]


def test_buffer_is_written_after_100_ms(opened: dict[str, Telemetry], tmp_path: Path) -> None:
    """A line waits at most 100 ms of the loop's time, and the deadline is known to the loop."""
    telemetry = opened["auto"]
    assert telemetry.next_deadline_ms() is None
    telemetry.emit("node.ready", elapsed_ms=1)
    telemetry.flush(1000)
    assert telemetry.next_deadline_ms() == 1100
    telemetry.flush(1099)
    assert lines(tmp_path / "auto") == []
    telemetry.flush(1100)
    assert len(lines(tmp_path / "auto")) == 1
    assert telemetry.next_deadline_ms() is None


def test_buffer_is_written_when_full(opened: dict[str, Telemetry], tmp_path: Path) -> None:
    """The 64th line writes all of them: the buffer is bounded."""
    for number in range(BUFFER_LINES + 1):
        opened["auto"].emit("node.ready", elapsed_ms=number)
    assert len(lines(tmp_path / "auto")) == BUFFER_LINES


def test_trace_off_writes_nothing(opened: dict[str, Telemetry], tmp_path: Path) -> None:
    """With trace = off no trace event is written, however it is emitted."""
    telemetry = opened["off"]
    assert not telemetry.tracing
    telemetry.trace("commit.advanced", old=0, new=1)
    telemetry.emit("commit.advanced", old=0, new=1)
    telemetry.write_out()
    assert lines(tmp_path / "off", "trace") == []


def test_trace_auto_stops_at_its_limit_and_counts_the_rest(
    tmp_path: Path, clock: FakeClock
) -> None:
    """Auto writes so many events a second, then one line that counts what is missing by kind."""
    telemetry = make(tmp_path, clock, "auto", trace_events_per_s=10)
    for number in range(25):
        telemetry.trace("commit.advanced", old=number, new=number + 1)
    telemetry.trace("request.parked", requests=1)
    telemetry.flush(1000)
    clock.monotonic_ns += SECOND_NS
    telemetry.flush(2000)
    telemetry.trace("commit.advanced", old=25, new=26)
    telemetry.close()
    written = lines(tmp_path, "trace")
    assert [line["event"] for line in written[:10]] == ["commit.advanced"] * 10
    assert written[10]["event"] == "trace.suppressed"
    assert written[10]["kinds"] == {"commit.advanced": 15, "request.parked": 1}
    assert written[10]["count"] == 16
    assert [line["event"] for line in written[11:]] == ["commit.advanced"]


def test_suppressed_traces_are_counted_at_the_end_too(tmp_path: Path, clock: FakeClock) -> None:
    """Closing in the middle of a second still writes what was left out."""
    telemetry = make(tmp_path, clock, "auto", trace_events_per_s=1)
    telemetry.trace("commit.advanced", old=0, new=1)
    telemetry.trace("commit.advanced", old=1, new=2)
    telemetry.close()
    assert [line["event"] for line in lines(tmp_path, "trace")] == [
        "commit.advanced",
        "trace.suppressed",
    ]


def test_trace_full_has_no_limit(tmp_path: Path, clock: FakeClock) -> None:
    """Full writes everything: invariants are checked from it."""
    telemetry = make(tmp_path, clock, "full", trace_events_per_s=1)
    for number in range(500):
        telemetry.trace("commit.advanced", old=number, new=number + 1)
    telemetry.close()
    assert len(lines(tmp_path, "trace")) == 500


@dataclass(frozen=True)
class FakeWon:
    """A fact with member ids, as the core reports it."""

    event: ClassVar[str] = "election.won"
    term: int
    pre_vote: bool
    votes: tuple[int, ...]
    quorum: int
    elapsed_ms: int


@dataclass(frozen=True)
class FakeLeader:
    """A fact with one member id, 0 for none."""

    event: ClassVar[str] = "leader.changed"
    leader: int
    term: int


def test_facts_of_the_core_show_labels_instead_of_member_ids(
    opened: dict[str, Telemetry], tmp_path: Path
) -> None:
    """People read n1; 0 is nobody."""
    telemetry = opened["auto"]
    telemetry.label = {7: "n1", 9: "n2"}.__getitem__
    telemetry.notices(
        [
            FakeWon(term=4, pre_vote=False, votes=(7, 9), quorum=2, elapsed_ms=3),
            FakeLeader(leader=9, term=4),
            FakeLeader(leader=0, term=5),
        ]
    )
    telemetry.write_out()
    won, led, lost = lines(tmp_path / "auto")
    assert won["votes"] == ["n1", "n2"]
    assert led["leader"] == "n2"
    assert lost["leader"] == ""
    assert lost["msg"] == "the leader of term 5 is nobody"


def test_reports_of_a_server_show_labels_too(opened: dict[str, Telemetry], tmp_path: Path) -> None:
    """A name that is one already stays."""
    telemetry = opened["auto"]
    telemetry.label = {7: "n1"}.__getitem__
    for peer in (7, "n2"):
        telemetry.report("peer.connected", peer=peer, endpoint="ipc://x")
    telemetry.write_out()
    assert [line["peer"] for line in lines(tmp_path / "auto")] == ["n1", "n2"]


def test_file_is_rotated_by_size_and_the_oldest_goes(tmp_path: Path) -> None:
    """At the size the file becomes .1; at most the configured number of old ones stays."""
    file = LineFile(tmp_path / "log.jsonl", rotate_bytes=10, rotate_files=3)
    for number in range(6):
        file.msg(b"line-%04d" % number)
        file.flush()
    file.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"log.jsonl.{n}" for n in (1, 2, 3)]
    assert (tmp_path / "log.jsonl.1").read_bytes() == b"line-0005\n"
    assert (tmp_path / "log.jsonl.3").read_bytes() == b"line-0003\n"


def test_reopen_follows_a_file_that_was_moved_away(
    opened: dict[str, Telemetry], tmp_path: Path
) -> None:
    """After reopen lines go to the old name again, and none is lost on the way."""
    telemetry = opened["auto"]
    telemetry.emit("node.ready", elapsed_ms=1)
    telemetry.write_out()
    (tmp_path / "auto" / "log.jsonl").rename(tmp_path / "auto" / "moved")
    telemetry.emit("node.ready", elapsed_ms=2)
    telemetry.reopen()
    telemetry.emit("node.ready", elapsed_ms=3)
    telemetry.write_out()
    assert len((tmp_path / "auto" / "moved").read_bytes().splitlines()) == 2
    assert [line["elapsed_ms"] for line in lines(tmp_path / "auto")] == [3]


def test_full_disk_is_counted_and_ignored() -> None:
    """ENOSPC on a diagnostic file loses lines, and nothing else."""
    file = LineFile(Path("/dev/full"), rotate_bytes=1 << 20, rotate_files=5)
    for _ in range(3):
        file.msg(b"lost")
    file.flush()
    file.flush()
    assert file.dropped_lines == 3
    file.close()


def test_missing_directory_is_counted_and_ignored(tmp_path: Path) -> None:
    """A directory that is gone loses lines until it is back."""
    file = LineFile(tmp_path / "gone" / "log.jsonl", rotate_bytes=1 << 20, rotate_files=5)
    file.msg(b"lost")
    file.flush()
    (tmp_path / "gone").mkdir()
    file.msg(b"kept")
    file.flush()
    file.close()
    assert file.dropped_lines == 1
    assert (tmp_path / "gone" / "log.jsonl").read_bytes() == b"kept\n"


def test_line_cut_by_a_crash_does_not_swallow_the_next_one(tmp_path: Path) -> None:
    """A file that ends in half a line gets a line end before the first new line."""
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"half')
    file = LineFile(path, rotate_bytes=1 << 20, rotate_files=5)
    file.msg(b'{"whole":1}')
    file.flush()
    file.close()
    assert path.read_bytes() == b'{"half\n{"whole":1}\n'


@pytest.mark.parametrize("module", ["structlog", "rich", "asyncio", "zmq"])
def test_import_is_cheap(module: str) -> None:
    """Importing the telemetry loads nothing heavy: readers need only the list of events."""
    code = f"import sys, zraft.telemetry; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_making_a_telemetry_does_not_import_rich(tmp_path: Path) -> None:
    """The import of rich through structlog would be half of a node's start."""
    code = (
        "import sys, pathlib, zraft.telemetry as t;"
        f"t.Telemetry(pathlib.Path({str(tmp_path)!r}), node='n1', cluster='c').close();"
        "sys.exit('rich' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
