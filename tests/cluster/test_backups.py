"""Backups and what is left of a lost cluster, with real processes, through the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cluster.harness import live_cluster
from tests.cluster.test_cli import Shell
from zraft import Client

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_a_cluster_is_restored_and_another_is_made_of_one_survivor(tmp_path: Path) -> None:
    """Snapshot, backup, restore into one node; then two of three are lost, and one is enough."""
    with live_cluster(3) as live:
        zraft = Shell(live)

        def get(key: str, cluster: str) -> bytes | None:
            with Client(cluster, environ=zraft.environ) as client:
                return client.kv.get(key)

        with Client(zraft.environ["ZRAFT_CLUSTER"], environ=zraft.environ) as client:
            client.kv.put("kept", "before")
            taken = zraft.json("snapshot", "take", "all")
            assert [one["node"] for one in taken["snapshots"]] == ["n1", "n2", "n3"]
            client.kv.put("also", "after the snapshot")
            path = tmp_path / "b.zbak"
            saved = zraft.json("backup", "save", str(path))
            client.kv.put("late", "not in the backup")

        again = zraft.json("backup", "restore", str(path), "-C", "again", "-n", "1", "--yes")
        assert again["cluster_id"] != saved["cluster_id"]
        kept = [get(key, "again") for key in ("kept", "also", "late")]
        assert kept == [b"before", b"after the snapshot", None]
        with Client("again", environ=zraft.environ) as client:
            client.kv.put("new", "word")
        zraft.run("cluster", "restart", "-C", "again")
        assert get("new", "again") == b"word"
        zraft.error("backup", "restore", str(path), "-C", "again", "--yes", expect=2)
        zraft.run("cluster", "down", "--purge", "--yes", "-C", "again")

        directory = Path(zraft.json("cluster", "down")["dir"])
        words = ["--new-cluster", "rescued", "-n", "3"]
        quorum = zraft.error("doctor", str(directory), *words, expect=5)
        assert "nothing has to be recovered" in quorum["message"]
        for name in ("n2", "n3"):
            shutil.move(directory / name, tmp_path / name)
        lost = zraft.error("doctor", str(directory), *words, expect=5)
        assert "may be lost" in lost["message"]
        rescued = zraft.json("doctor", str(directory), *words, "--accept-loss")
        assert [node["name"] for node in rescued["nodes"]] == ["n1", "n2", "n3"]
        assert get("late", "rescued") == b"not in the backup"
        zraft.run("cluster", "down", "--purge", "--yes", "-C", "rescued")
