"""`zraft node inspect` on real processes: running, under load, stopped, killed and paused."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.harness import live_cluster
from tests.cluster.test_cli import PROGRAM, Shell

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def zraft() -> Iterator[Shell]:
    """A shell beside three nodes."""
    with live_cluster(3) as live:
        yield Shell(live)


def puts_in(document: dict[str, Any]) -> dict[str, str]:
    """Return the puts among the shown entries, each with its status.

    Each stands between the opening and the closing of a session, so that it can be repeated; the
    last closing may still be on its way.
    """
    rows = document["entries"]
    return {row["command"]: row["status"] for row in rows if row["command"].startswith("put ")}


def test_running_paused_and_killed_nodes_tell_the_same_log(zraft: Shell) -> None:
    """What was acknowledged is on the disk of a majority, and is shown, whatever runs."""
    for number in range(5):
        zraft.run("kv", "put", f"key{number}", str(number))
    zraft.run("cluster", "wait", "--for", "converged")
    running = zraft.json("node", "inspect", "leader", "wal", "--last", "15")
    assert running["running"] is True
    puts = puts_in(running)
    assert [put.split()[1] for put in puts] == [f"key{number}={number}" for number in range(5)]
    assert {*puts.values()} == {"committed"}
    zraft.run("node", "pause", "n1")
    zraft.run("node", "kill", "n2")
    for name in ("n1", "n2"):
        found = puts_in(zraft.json("node", "inspect", name, "wal", "--last", "15"))
        assert [*found] == [*puts]
    assert {*found.values()} == {"durable"}
    meta = zraft.json("node", "inspect", "n2", "meta")
    assert (meta["running"], meta["recovery"]["action"]) == (False, "none")
    zraft.run("node", "resume", "n1")
    zraft.run("node", "start", "n2")


def test_a_log_that_is_being_written_is_seen_as_of_one_moment(zraft: Shell) -> None:
    """Looks at a busy leader never find damage, and the log never gets shorter."""
    writer = subprocess.Popen(
        ["sh", "-c", f'while "{PROGRAM}" kv put k v -q; do :; done'],
        env=zraft.environ,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        last = 0
        for _ in range(10):
            seen = zraft.json("node", "inspect", "leader", "wal", "--last", "1")
            assert (seen["damage"], seen["torn"]) == (None, None)
            assert seen["last_index"] >= last
            last = seen["last_index"]
    finally:
        writer.kill()
        writer.wait()


def test_a_backup_of_a_running_cluster_is_its_state_at_one_index(
    zraft: Shell, tmp_path: Path
) -> None:
    """All that was acknowledged before is in it, and its digest is the nodes' own at that index."""
    zraft.run("kv", "put", "last", "words")
    path = tmp_path / "b.zbak"
    saved = zraft.json("backup", "save", str(path))
    verified = zraft.json("backup", "verify", str(path))
    assert {key: saved[key] for key in verified if key != "schema"} == {
        key: value for key, value in verified.items() if key != "schema"
    }
    zraft.run("cluster", "wait", "--for", "converged")
    rows = zraft.json("cluster", "status")["nodes"]
    assert {(row["applied"], row["state_hash"]) for row in rows} == {
        (saved["index"], saved["digest"])
    }
    assert zraft.error("backup", "save", str(path), expect=74)["message"].endswith("exists")
