"""`zraft node inspect` on directories that no process holds: words, JSON, exit codes, no change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data_directories import DiskCluster, append, make_cluster, noop, payload, put
from tests.snapshot_files import take
from zraft.cli.entries import describe_command, describe_entry, show
from zraft.cli.inspect import parse_range
from zraft.cli.main import main
from zraft.core.model import Configuration, EntryType, MemberInfo, SnapshotMeta
from zraft.errors import ControlError
from zraft.machine.kv_codec import Compare, Delete, Put, Relation, Target, Txn, encode_txn
from zraft.storage.directory import SNAPSHOT_DIRECTORY
from zraft.storage.snapshots import SnapshotStore
from zraft.wire_entry import encode_configuration


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DiskCluster:
    """Three nodes that never ran; n2 holds four entries of two terms."""
    made = make_cluster(tmp_path / "state")
    monkeypatch.setenv("ZRAFT_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("ZRAFT_CLUSTER", "t")
    with made.log("n2") as wal:
        append(wal, 1, 1, [noop(1), put(1, "x", "1")])
        append(wal, 3, 2, [noop(2), put(2, "x", "2")])
    return made


def run(capsys: pytest.CaptureFixture[str], *arguments: str, expect: int = 0) -> str:
    """Run the program in this process; return what it printed."""
    code = main(arguments)
    printed = capsys.readouterr()
    assert code == expect, printed.err
    return printed.out + printed.err


def document(
    capsys: pytest.CaptureFixture[str], *arguments: str, expect: int = 0
) -> dict[str, Any]:
    """Run it with --json."""
    found: dict[str, Any] = json.loads(run(capsys, *arguments, "--json", expect=expect))
    return found


def test_wal_shows_entries_as_the_contract_says(
    cluster: DiskCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """One row an entry: index, term, type, bytes, crc, command, status."""
    lines = run(capsys, "node", "inspect", "n2", "wal", "--last", "2").splitlines()
    assert lines[0].split() == "INDEX TERM TYPE BYTES CRC COMMAND STATUS".split()
    assert lines[1].split() == ["3", "2", "noop", "9", "ok", "–", "durable"]
    assert lines[2].split()[:3] == ["4", "2", "command"]
    assert lines[2].split()[4:] == ["ok", "put", "x=2", "durable"]
    found = document(capsys, "node", "inspect", "n2", "wal", "--index", "2..3")
    assert found["schema"] == "zraft.node.inspect/1"
    assert [(row["index"], row["type"]) for row in found["entries"]] == [
        (2, "command"),
        (3, "noop"),
    ]
    assert found["running"] is False
    assert found["last_index"] == 4


def test_meta_says_who_it_is_and_what_a_start_would_do(
    cluster: DiskCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """Identity, incarnation, hard state, configuration, span, recovery."""
    found = document(capsys, "node", "inspect", "n2")
    assert found["member_id"] == f"{cluster.file.member_id('n2'):016x}"
    assert found["cluster_id"] == cluster.file.cluster_id
    assert (found["incarnation"], found["term"], found["voted_for"]) == (1, 2, None)
    assert found["configuration"]["voters"] == ["n1", "n2", "n3"]
    assert (found["log"]["last_index"], found["log"]["last_term"]) == (4, 2)
    assert found["recovery"] == {"action": "none", "exit": 0, "says": "nothing to repair"}
    assert document(capsys, "node", "inspect", "n1")["incarnation"] == 0
    assert "voters n1 n2 n3 (made with the cluster)" in run(capsys, "node", "inspect", "n2")


def test_a_damaged_log_is_told_and_left_alone(
    cluster: DiskCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 65 as the node itself would; entries before the damage are shown; no byte changes."""
    path = cluster.wal_path("n2")
    data = bytearray(path.read_bytes())
    data[1024 + 60] ^= 1
    path.write_bytes(data)
    found = document(capsys, "node", "inspect", "n2", "wal", expect=65)
    assert found["ok"] is False
    assert (found["damage"]["path"], found["damage"]["offset"]) == (str(path), 1024)
    assert [row["index"] for row in found["entries"]] == [1, 2]
    assert found["recovery"]["action"] == "refuse"
    assert "refuse" in run(capsys, "node", "inspect", "n2", "meta", expect=65)
    assert path.read_bytes() == bytes(data)


def test_a_directory_that_is_gone_or_foreign_is_exit_65(
    cluster: DiskCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same words as at a start."""
    (cluster.place.directory / "n3").rename(cluster.place.directory / "away")
    assert "does not exist" in run(capsys, "node", "inspect", "n3", expect=65)
    (cluster.place.directory / "n1" / "member.json").write_text('{"format": 9}')
    assert "has format 9" in run(capsys, "node", "inspect", "n1", expect=65)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["n9"], "n9"),
        (["n1", "logs"], 'no part "logs"'),
        (["n1", "wal", "--last", "0"], "at least 1"),
        (["n1", "wal", "--last", "3", "--index", "1"], "exclude each other"),
        (["n1", "meta", "--last", "3"], "meta has none"),
        (["n1", "wal", "--index", "five"], "not a range"),
        (["n1", "wal", "--index", "9..3"], "--index 3..9"),
    ],
)
def test_nonsense_is_refused(
    cluster: DiskCluster, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    """Exit 2, with the words that help."""
    assert says in run(capsys, "node", "inspect", *arguments, expect=2)


def test_ranges_of_indices() -> None:
    """A..B, A.., ..B, A."""
    assert parse_range("3..5") == (3, 5)
    assert parse_range("..5") == (1, 5)
    assert parse_range("7") == (7, 7)
    assert parse_range("7..")[0] == 7
    with pytest.raises(ControlError):
        parse_range("..")


def test_commands_in_words() -> None:
    """Every kind of command of the store, and what is not one."""
    txn = Txn(
        [Compare(Target.VALUE, Relation.EQUAL, b"a", b"1")], [Put(b"b", b"2")], [Delete(b"a")]
    )
    assert describe_command(encode_txn(txn)) == "txn if 1 hold then put b=2 else delete a"
    assert describe_command(b"\x01\x02") == "0x0102 (2 bytes)"
    assert show(b"\x1b[31m") == "0x1b5b33316d (5 bytes)"
    assert show(b"a" * 100) == "a" * 32 + "… (100 bytes)"


def test_configurations_and_strange_entries_in_words() -> None:
    """Names come from the entry itself; a type of a newer version and garbage are said to be so."""
    members = (MemberInfo(1, "n1"), MemberInfo(2, "n2"), MemberInfo(3, "n6"))
    joint = Configuration((1, 2), 0, (1,), (3,), (3,), members)
    config = payload(2, encode_configuration(joint), EntryType.CONFIG)
    words = describe_entry(config, {})
    assert words.type == "config"
    assert words.text == "voters n1 n2, outgoing n1, learners n6, joining n6"
    newer = payload(2, b"", 9)  # type: ignore[arg-type]  # a type that this version does not have
    assert describe_entry(newer, {}).type == "type 9"
    assert describe_entry(b"\xc1", {}).type == "?"


def test_meta_names_the_members_of_a_change_that_only_the_snapshot_holds(
    cluster: DiskCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log was cut behind the change: what the directory was made with is not the truth."""
    member = cluster.member("n2")
    n1, n2, _ = (one.member_id for one in member.members)
    infos = (MemberInfo(n1, "n1"), MemberInfo(n2, "n2"), MemberInfo(77, "n9"))
    changed = Configuration(tuple(sorted((n1, n2, 77))), index=3, members=tuple(sorted(infos)))
    store = SnapshotStore(member.directory / SNAPSHOT_DIRECTORY, member.identity)
    store.load()
    take(store, SnapshotMeta(4, 2, changed))
    found = document(capsys, "node", "inspect", "n2", "meta")
    assert found["configuration"]["index"] == 3
    assert found["configuration"]["voters"] == ["n1", "n2", "n9"]
    assert "voters n1 n2 n9 (index 3)" in run(capsys, "node", "inspect", "n2", "meta")
