"""`zraft check run` with real processes: a verdict, what is saved, and that nothing is left."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.harness import wait_until
from zraft.errors import ControlError
from zraft.testing.checkrun.nemesis import NEMESES, parse_nemeses
from zraft.testing.history import read_history
from zraft.testing.linearizability import check_history

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture
def place() -> Iterator[Path]:
    """Give a short directory for temporary files; afterwards no process of it is alive."""
    path = Path(tempfile.mkdtemp(prefix="zt"))
    try:
        yield path
        assert processes_in(path) == []
    finally:
        for pid in processes_in(path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(path, ignore_errors=True)


def processes_in(place: Path) -> list[int]:
    """Return the pids of all processes whose temporary files are there."""
    marker = f"TMPDIR={place}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile, or is not ours
                if marker in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def command(place: Path, *words: str) -> tuple[list[str], dict[str, str]]:
    """Return the command line of a run, and its environment."""
    code = "import sys; from zraft.cli.main import main; sys.exit(main())"
    arguments = [sys.executable, "-c", code, "check", "run", "--out", str(place / "runs"), *words]
    return arguments, {**os.environ, "TMPDIR": str(place)}


def test_a_run_gives_a_verdict_and_keeps_what_it_saw(place: Path) -> None:
    """Kills and pauses happen, the history is judged, saved, and judged the same again."""
    arguments, environ = command(
        place, "--nemesis", "kill,pause", "--time", "6s", "--seed", "7", "--nodes", "3", "--json"
    )
    done = subprocess.run(arguments, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert (document["schema"], document["ok"]) == ("zraft.check.run/1", True)
    assert document["counts"]["ok"] >= 120
    assert min(document["faults"].values()) >= 1
    assert (document["crashes"], document["shortfalls"]) == ([], [])
    directory = Path(document["directory"])
    history = read_history(directory / "history.jsonl")
    assert len(history) == document["check"]["operations"]
    assert check_history(history, use_index=False).verdict == document["check"]["verdict"]
    faults = [json.loads(line) for line in (directory / "faults.jsonl").read_text().splitlines()]
    assert len(faults) == sum(document["faults"].values())
    assert (directory / "logs" / "n1" / "log.jsonl").exists()
    assert sorted(path.name for path in place.iterdir()) == ["runs"], "the cluster left files"


@pytest.mark.timeout(180)
def test_a_short_soak_holds(place: Path) -> None:
    """Half a minute of what `scripts/soak` does for ten: all kinds at once, everything holds.

    Linearizable, equal states, no process that ended by itself, nothing that grew.
    """
    kinds = "kill,pause,membership,transfer,snapshot"
    arguments, environ = command(place, "--nemesis", kinds, "--time", "30s", "--json")
    done = subprocess.run(arguments, env=environ, capture_output=True, text=True, check=False)
    document = json.loads(done.stdout)
    told = done.stdout + done.stderr  # the seed among it
    assert document["check"]["verdict"] == "linearizable", told
    assert document["crashes"] == [], told
    assert document["counts"]["ok"] >= 600, told
    assert sum(count > 0 for count in document["faults"].values()) >= 4, told


def test_every_client_has_one_operation_at_a_time(place: Path) -> None:
    """A process id is used again only after its operation ended, and never after an unknown one."""
    arguments, environ = command(place, "--nemesis", "pause", "--time", "3s", "--json", "-n", "3")
    done = subprocess.run(arguments, env=environ, capture_output=True, text=True, check=False)
    directory = Path(json.loads(done.stdout)["directory"])
    free_ns: dict[str | int, int | None] = {}
    for op in read_history(directory / "history.jsonl"):
        since_ns = free_ns.get(op.process, 0)
        assert since_ns is not None, f"{op.process} went on after an unknown outcome"
        assert op.invoke_ns >= since_ns
        free_ns[op.process] = op.return_ns


def test_a_run_in_which_nothing_happened_proves_nothing(place: Path) -> None:
    """Of three kinds of faults at most one fits into the time: exit 9, and it says why."""
    arguments, environ = command(
        place, "--nemesis", "kill,pause,partition", "--time", "50ms", "--nodes", "3"
    )
    done = subprocess.run(arguments, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stdout + done.stderr
    assert "linearizable ✓" in done.stdout
    assert "proves too little ?  only 0 of " in done.stdout


def test_an_interrupt_leaves_nothing_behind(place: Path) -> None:
    """Ctrl-C in the middle of the faults: exit 130, no process, no directory of the cluster."""
    arguments, environ = command(place, "--nemesis", "pause", "--time", "60s", "--nodes", "3")
    process = subprocess.Popen(
        arguments, env=environ, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    assert process.stderr is not None
    try:
        said = b""
        looker = select.poll()
        looker.register(process.stderr, select.POLLIN)
        while b"pause n" not in said:
            assert looker.poll(30_000), said
            said += os.read(process.stderr.fileno(), 65536)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    wait_until("nothing runs", lambda: not processes_in(place) or None, timeout_ms=5_000)
    assert sorted(path.name for path in place.iterdir()) == ["runs"]


def test_kinds_of_faults_are_checked_before_anything_starts() -> None:
    """A typo costs nothing, and the message lists what there is."""
    assert parse_nemeses("kill, pause,kill") == ["kill", "pause"]
    assert parse_nemeses("none") == []
    with pytest.raises(ControlError) as caught:
        parse_nemeses("kil")
    assert all(kind in caught.value.why for kind in NEMESES)
