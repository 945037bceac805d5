"""`zraft doctor`: every check has a verdict; and what is left of a lost cluster."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.data_directories import DiskCluster, append, make_cluster, noop, put
from zraft.cli.main import main
from zraft.client.environment import Check, check_clusters, check_environment, measure_syncs
from zraft.storage.directory import lock


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home for clusters, and a run directory."""
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(run))
    monkeypatch.setenv("ZRAFT_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("ZRAFT_CLUSTER", "t")
    return tmp_path / "state"


@pytest.fixture
def cluster(state: Path) -> DiskCluster:
    """Three nodes: n1 and n2 hold two entries of term 1, n2 a third, n3 two others of term 2."""
    made = make_cluster(state, run=state.parent / "run")
    for name in ("n1", "n2"):
        with made.log(name) as wal:
            append(wal, 1, 1, [noop(1), put(1, "a", "1")])
    with made.log("n2") as wal:
        append(wal, 3, 1, [put(1, "b", "2")])
    with made.log("n3") as wal:
        append(wal, 1, 1, [noop(1)])
        append(wal, 2, 2, [noop(2)])
    return made


def run(capsys: pytest.CaptureFixture[str], *arguments: str, expect: int = 0) -> str:
    """Run the program in this process; return what it printed."""
    code = main(arguments)
    printed = capsys.readouterr()
    assert code == expect, printed.out + printed.err
    return printed.out + printed.err


def document(
    capsys: pytest.CaptureFixture[str], *arguments: str, expect: int = 0
) -> dict[str, Any]:
    """Run it with --json."""
    found: dict[str, Any] = json.loads(run(capsys, *arguments, "--json", expect=expect))
    return found


def named(checks: list[Check], name: str) -> Check:
    """Return the check of that name."""
    (found,) = [check for check in checks if check.name == name]
    return found


def test_a_fit_machine_has_no_error(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each check says what it saw; the disk may be slow, and then it says so, too."""
    checks = check_environment(os.environ)
    names = [check.name for check in checks]
    assert names == ["python", "pyzmq", "kernel", "open_files", "state", "fsync", "sockets"]
    assert {check.verdict for check in checks if check.name != "fsync"} <= {"ok", "warn"}
    assert "p99" in named(checks, "fsync").says
    assert "/107 bytes" in named(checks, "sockets").says
    lines = run(capsys, "doctor").splitlines()
    assert all(line[0] in "✓!✗" for line in lines)
    assert len(lines) == len(names)


def test_syncs_are_measured_and_leave_nothing_behind(tmp_path: Path) -> None:
    """As many times as asked for, in order of size, and the file is gone."""
    times = measure_syncs(tmp_path, 5)
    assert len(times) == 5
    assert times == sorted(times)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def few_files() -> Iterator[None]:
    """A limit of open files that is too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_is_wrong_is_exit_8(
    few_files: None, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what to do about it."""
    found = document(capsys, "doctor", expect=8)
    assert found["ok"] is False
    (wrong,) = [check for check in found["checks"] if check["verdict"] == "error"]
    assert (wrong["name"], wrong["try"]) == ("open_files", "ulimit -n 4096")


def test_a_run_directory_that_is_too_long_or_open_to_others(state: Path) -> None:
    """Both make sockets impossible or unsafe."""
    long = {**os.environ, "XDG_RUNTIME_DIR": "/tmp/" + "x" * 100}
    assert named(check_environment(long), "sockets").verdict == "error"
    shared = state.parent / "shared"
    (shared / "zraft").mkdir(parents=True, mode=0o755)
    (shared / "zraft").chmod(0o755)
    found = named(check_environment({**os.environ, "XDG_RUNTIME_DIR": str(shared)}), "sockets")
    assert found.verdict == "error"
    assert "chmod 700" in found.try_


def test_a_home_where_nothing_can_be_written(state: Path) -> None:
    """Said before the disk is measured."""
    checks = check_environment({**os.environ, "ZRAFT_HOME": "/proc/zraft"})
    assert named(checks, "state").verdict == "error" or named(checks, "fsync").verdict == "error"


def test_leftovers_of_a_stopped_cluster(cluster: DiskCluster) -> None:
    """Stale sockets and temporary files; nothing of a clean one."""
    assert [check.verdict for check in check_clusters(os.environ)] == ["ok"]
    sockets = Path(cluster.file.socket_dir)
    sockets.mkdir(parents=True, mode=0o700)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(sockets / "n1.ctl"))
    (cluster.place.directory / ".n2.new").mkdir()
    (cluster.place.directory / "cluster.toml.tmp").touch()
    (found,) = check_clusters(os.environ)
    assert found.verdict == "warn"
    assert all(name in found.says for name in ("n1.ctl", ".n2.new", "cluster.toml.tmp"))


def test_foreign_locks_lost_data_and_unreadable_clusters(cluster: DiskCluster) -> None:
    """Each is an error with the name of the cluster."""
    fd = lock(cluster.place.directory / "n1")  # this process is no node
    shutil.rmtree(cluster.place.directory / "n3")
    other = cluster.place.link.parent / "other"
    other.mkdir()
    (other / "cluster.toml").write_text("format = 99\n")
    try:
        checks = check_clusters(os.environ)
    finally:
        os.close(fd)
    assert [(check.name, check.verdict) for check in checks] == [
        ("cluster other", "error"),
        ("cluster t", "error"),
        ("cluster t", "error"),
    ]
    assert "format 99" in checks[0].says
    assert f"process {os.getpid()}, which is no node" in checks[1].says
    assert "the data of n3 is gone" in checks[2].says


def test_one_survivor_of_three(cluster: DiskCluster, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 8: what the other two acknowledged alone is lost, and nobody can say how much."""
    directory = str(cluster.place.directory / "n2")
    found = document(capsys, "doctor", directory, expect=8)
    assert found["schema"] == "zraft.doctor.survivors/1"
    assert (found["best"], found["last_index"], found["last_term"]) == ("n2", 3, 1)
    assert found["missing"] == ["n1", "n3"]
    assert found["may_be_lost"] is True
    assert "nobody can say how many" in run(capsys, "doctor", directory, expect=8)


def test_all_survivors_in_one_directory(
    cluster: DiskCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last term wins, and what contradicts it was never committed."""
    found = document(capsys, "doctor", str(cluster.place.directory))
    assert (found["best"], found["has_quorum"], found["missing"]) == ("n3", True, [])
    assert found["contradictions"] == [
        {"name": "n2", "from_index": 2},
        {"name": "n1", "from_index": 2},
    ]
    text = run(capsys, "doctor", str(cluster.place.directory))
    assert "start the cluster, nothing is lost" in text
    assert "n2 holds other entries from index 2 on" in text


def test_directories_that_can_not_be_compared(
    cluster: DiskCluster, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy, another cluster, no data at all: exit 2, with the reason."""
    n1 = cluster.place.directory / "n1"
    copy = state.parent / "copy"
    shutil.copytree(n1, copy)
    assert "the same member" in run(capsys, "doctor", str(n1), str(copy), expect=2)
    other = make_cluster(state, "u", run=state.parent / "run")
    both = [str(n1), str(other.place.directory / "n1")]
    assert "different clusters" in run(capsys, "doctor", *both, expect=2)
    assert "holds no member's data" in run(capsys, "doctor", str(state.parent / "run"), expect=2)


def test_a_new_cluster_is_not_made_of_what_runs_or_needs_none(
    cluster: DiskCluster, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A majority elects a leader itself; a running survivor's log may grow; nothing is changed."""
    words = ["--new-cluster", "rescued", "-n", "1"]
    directory = cluster.place.directory
    assert "nothing has to be" in run(capsys, "doctor", str(directory), *words, expect=5)
    held = lock(directory / "n2")
    told = run(capsys, "doctor", str(directory / "n2"), *words, "--accept-loss", expect=75)
    os.close(held)
    assert f"process {os.getpid()} runs" in told
    assert "may be lost" in run(capsys, "doctor", str(directory / "n2"), *words, expect=5)
    again = ["--new-cluster", "t", "--accept-loss"]
    assert "exists" in run(capsys, "doctor", str(directory / "n2"), *again, expect=2)
    run(capsys, "doctor", *words, expect=2)
    run(capsys, "doctor", "--accept-loss", expect=2)
    assert sorted(path.name for path in state.iterdir()) == ["t"]
