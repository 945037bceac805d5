"""`zraft snapshot list` and `show` on files that no process made: sound, damaged, newer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.data_directories import DiskCluster, make_cluster
from zraft.cli.main import main
from zraft.core.model import SnapshotMeta
from zraft.storage.snapshot_file import MAGIC, RecordType, encode_record
from zraft.storage.snapshots import SnapshotStore

SECTIONS = (("sessions", b"s" * 10), ("machine", b"m" * 100), ("machine", b"n" * 50))


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DiskCluster:
    """Three nodes that never ran; n1 and n2 have a snapshot."""
    made = make_cluster(tmp_path / "state")
    monkeypatch.setenv("ZRAFT_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("ZRAFT_CLUSTER", "t")
    for name, index in (("n1", 40), ("n2", 30)):
        take(made, name, index)
    return made


def take(cluster: DiskCluster, name: str, index: int) -> Path:
    """Write a snapshot into a member's directory; return its path."""
    member = cluster.member(name)
    store = SnapshotStore(member.snapshot_directory, member.identity)
    store.load()
    writer = store.begin(SnapshotMeta(index, 2, member.configuration, 1234, 0xABC))
    for section, chunk in SECTIONS:
        writer.write(section, chunk)
    writer.finish()
    return member.snapshot_directory / f"{index:020d}-2.snap"


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


def test_list_names_each_nodes_snapshots(
    cluster: DiskCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of all nodes, or of the nodes named; a node without any has none."""
    found = document(capsys, "snapshot", "list")
    rows = [(one["node"], one["index"], one["term"], one["digest"]) for one in found["snapshots"]]
    assert rows == [("n1", 40, 2, f"{0xABC:016x}"), ("n2", 30, 2, f"{0xABC:016x}")]
    assert document(capsys, "snapshot", "list", "n3")["snapshots"] == []
    assert "snapshot take" in run(capsys, "snapshot", "list", "n3")
    assert "0040-2.snap" in run(capsys, "snapshot", "list", "n1")
    run(capsys, "snapshot", "list", "n7", expect=2)


def test_show_reads_all_of_it(cluster: DiskCluster, capsys: pytest.CaptureFixture[str]) -> None:
    """Sections, sizes, membership by name; `node inspect NAME snapshot` says the same."""
    found = document(capsys, "snapshot", "show", "n1")
    assert found["sections"] == [
        {"name": "sessions", "chunks": 1, "size_bytes": 10},
        {"name": "machine", "chunks": 2, "size_bytes": 150},
    ]
    assert found["configuration"]["voters"] == ["n1", "n2", "n3"]
    assert document(capsys, "node", "inspect", "n1", "snapshot") == found
    assert "every byte was checked" in run(capsys, "snapshot", "show", "n1", "--index", "40")
    assert "ends at index 7" in run(capsys, "snapshot", "show", "n1", "--index", "7", expect=4)
    assert "no snapshot" in run(capsys, "snapshot", "show", "n3", expect=4)


def test_damage_is_named_and_is_exit_65(
    cluster: DiskCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """A byte in the middle shows when all of it is read; one in the header at once."""
    path = cluster.member("n1").snapshot_directory / f"{40:020d}-2.snap"
    data = bytearray(path.read_bytes())
    data[-80] ^= 1
    path.write_bytes(data)
    assert document(capsys, "snapshot", "list")["ok"]
    assert "damaged" in run(capsys, "snapshot", "show", "n1", expect=65)
    data[20] ^= 1
    path.write_bytes(data)
    found = document(capsys, "snapshot", "list", expect=65)
    assert [one["damage"] is None for one in found["snapshots"]] == [False, True]
    assert "damaged" in run(capsys, "snapshot", "list", expect=65)


def test_a_later_format_is_refused_by_name(
    cluster: DiskCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is no damage: the message says which version reads it."""
    path = cluster.member("n1").snapshot_directory / f"{40:020d}-2.snap"
    end = path.read_bytes()[-21:]
    header = encode_record(RecordType.HEADER, msgpack.packb([2, "as it will be then"]))
    path.write_bytes(MAGIC + header + end)
    for words in (["snapshot", "list"], ["snapshot", "show", "n1"]):
        told = run(capsys, *words, expect=65)
        assert "damaged" not in told
