"""The measuring commands on a real cluster: a document comes out, and nothing stays behind."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.harness import wait_until
from zraft.testing.bench import bounded
from zraft.testing.bench.load import ClusterLoad
from zraft.testing.bench.place import open_cluster, open_place

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

PUT = ["put", "--nodes", "3", "--outstanding", "8", "--rounds", "1"]
FIRST_LINE_MS = 60_000
END_S = 30


@contextmanager
def bench(words: list[str], directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `python -m zraft.testing.bench …`, and end it."""
    command = [sys.executable, "-m", "zraft.testing.bench", *words, "--dir", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def running_in(directory: Path) -> list[str]:
    """Return the command lines of all living processes that work in a directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            variables = (entry / "environ").read_bytes()
        except OSError:  # it ended meanwhile, or is not ours
            continue
        if os.fsencode(directory) in b"\0".join([*words, variables]):
            found.append(b" ".join(words).decode())
    return found


def test_put_prints_a_document_and_leaves_nothing(tmp_path: Path) -> None:
    """Both sides of a pair, their ratio, and what the machine could do in the same run."""
    with bench([*PUT, "--count", "400", "--json"], tmp_path) as process:
        out, err = process.communicate(timeout=FIRST_LINE_MS / 1000)
    assert process.returncode == 0, err.decode()
    document = json.loads(out)
    assert document["schema"] == "zraft.bench.put/1"
    assert document["host"]["directory"] == str(tmp_path.resolve())
    assert document["machine"]["fdatasync_ms"] > 0
    assert document["machine"]["round_trip_ms"] > 0
    (cell,) = document["cells"]
    (pair,) = cell["pairs"]
    assert (cell["nodes"], cell["outstanding"]) == (3, 8)
    ratio = pair["zraft"]["writes_per_s"] / pair["bare"]["writes_per_s"]
    assert pair["ratio"] == pytest.approx(ratio)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    """In the middle of a load: every process ends, every file goes, the exit code says why."""
    with bench([*PUT, "--count", "1000", "--rounds", "1000"], tmp_path) as process:
        assert process.stderr is not None
        poll = select.poll()
        poll.register(process.stderr, select.POLLIN)
        assert poll.poll(FIRST_LINE_MS), "no pair was measured"
        assert b"ratio" in process.stderr.readline()
        process.send_signal(number)
        process.communicate(timeout=END_S)
        assert process.returncode == 128 + number
        assert list(tmp_path.iterdir()) == []
    wait_until("all ended", lambda: running_in(tmp_path) == [] or None, timeout_ms=5_000)


def test_no_process_outlives_a_killed_run(tmp_path: Path) -> None:
    """Kill -9 in the middle of a load: nodes, supervisor and whoever made the load end, too."""
    with bench([*PUT, "--count", "1000", "--rounds", "1000"], tmp_path) as process:
        assert process.stderr is not None
        poll = select.poll()
        poll.register(process.stderr, select.POLLIN)
        assert poll.poll(FIRST_LINE_MS), "no pair was measured"
        wait_until(
            "nodes at work",
            lambda: any("zraft.node" in line for line in running_in(tmp_path)) or None,
            timeout_ms=10_000,
        )
        process.kill()
        process.wait(END_S)
    wait_until("all ended", lambda: running_in(tmp_path) == [] or None, timeout_ms=10_000)


def test_a_bar_is_measured_by_the_commands_that_users_type(tmp_path: Path) -> None:
    """Bar 1 in full: five starts of a stopped cluster; the exit code is that of the verdict."""
    with bench(["bars", "--only", "1", "--json"], tmp_path) as process:
        out, err = process.communicate(timeout=FIRST_LINE_MS / 1000)
    document = json.loads(out)
    (bar,) = document["bars"]
    assert (bar["number"], len(bar["rounds"])) == (1, 5), err.decode()
    assert bar["verdict"] in {"held", "missed", "not judged"}
    assert process.returncode == (8 if bar["verdict"] == "missed" else 0)
    assert list(tmp_path.iterdir()) == []


def test_many_writes_over_few_keys_keep_a_small_log(tmp_path: Path) -> None:
    """The short form of scripts/bounded: eight times what makes a snapshot goes through the log."""
    spec = bounded.Spec(
        writes=12_000,
        min_log_bytes=256 << 10,
        segment_bytes=64 << 10,
        trailing_entries=500,
        trailing_bytes=64 << 10,
        outstanding=200,
        looks=6,
    )
    with (
        open_place(str(tmp_path)) as place,
        open_cluster(place, spec.nodes, settings=spec.settings) as cluster,
        ClusterLoad(cluster, place) as load,
    ):
        looks = bounded.measure(spec, cluster, load, place)

        def are_short() -> bool | None:
            last = bounded.look(cluster, place, spec.writes)
            return not bounded.problems(spec, last, judge_memory=False) or None

        # a follower may apply and cut for a moment longer than the writes take
        wait_until("short logs", are_short, timeout_ms=10_000)
    assert len(looks) == spec.nodes * spec.looks
    assert max(one.kept_entries for one in looks[-spec.nodes :]) < spec.writes
    assert list(tmp_path.iterdir()) == []
