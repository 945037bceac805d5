"""`logs tail`: files that grow, are rotated, appear and lie; filters; heartbeats; the story."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zraft import clock
from zraft.cli.logfiles import LogFile, LogFiles, boot_time
from zraft.cli.logs import Filters, Heartbeats, wait_for_line
from zraft.cli.main import main
from zraft.cli.merge import Line
from zraft.cli.where import parse_where
from zraft.telemetry import Telemetry

BASE_NS = clock.monotonic_ns() - 600_000_000_000


def record(node: str, seq: int, at_ms: int, event: str = "role.changed", **fields: Any) -> str:
    """Return one line of a file, some minutes ago."""
    return json.dumps(
        {
            "ts": "2999-01-01T00:00:00.000000Z",
            "level": "info",
            "event": event,
            "msg": f"{event} {seq}",
            "cluster": "c",
            "node": node,
            "pid": 7,
            "inc": 1,
            "seq": seq,
            "mono_ns": BASE_NS + at_ms * 1_000_000,
            "role": "follower",
            "term": 2,
            **fields,
            "v": 1,
        }
    )


def write(path: Path, *lines: str) -> Path:
    """Append lines to a file, which may be new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory of a cluster of two nodes that does not run."""
    monkeypatch.setenv("ZRAFT_HOME", str(tmp_path))
    monkeypatch.delenv("ZRAFT_CLUSTER", raising=False)
    directory = tmp_path / "default"
    members = "".join(
        f'[[members]]\nname = "n{i}"\nmember_id = "{i:016x}"\nnew = false\n' for i in (1, 2)
    )
    directory.mkdir()
    (directory / "cluster.toml").write_text(
        f'format = 1\nname = "default"\ncluster_id = "{1:016x}"\ntransport = "ipc"\n'
        f'socket_dir = "/tmp/none"\nbase_port = 0\nephemeral = false\n{members}[settings]\n'
    )
    return directory


@pytest.fixture
def opened() -> Iterator[list[LogFile]]:
    """Close every file that a test puts here."""
    files: list[LogFile] = []
    yield files
    for file in files:
        file.close()


def seqs(lines: list[Line]) -> list[int]:
    """Return the sequence numbers of lines."""
    return [line.place[0] for line in lines]


def tail(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """Run `logs tail` and return the lines of stdout."""
    assert main(["logs", "tail", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_grown_file_gives_complete_lines_once(tmp_path: Path, opened: list[LogFile]) -> None:
    """A line that is half written comes when it is whole."""
    path = write(tmp_path / "log.jsonl", record("n1", 1, 1))
    file = LogFile(path, "n1", boot_time())
    opened.append(file)
    assert seqs(file.read_tail(1 << 20)[0]) == [1]
    assert file.read_new() == []
    text = record("n1", 2, 2)
    with path.open("a") as writer:
        writer.write(text[:20])
    assert file.read_new() == []
    with path.open("a") as writer:
        writer.write(text[20:] + "\n")
    assert seqs(file.read_new()) == [2]


def test_rotation_loses_nothing(tmp_path: Path, opened: list[LogFile]) -> None:
    """What was written before the rename and after it comes, in order."""
    path = write(tmp_path / "log.jsonl", record("n1", 1, 1))
    file = LogFile(path, "n1", boot_time())
    opened.append(file)
    file.read_tail(1 << 20)
    write(path, record("n1", 2, 2))
    path.rename(tmp_path / "log.jsonl.1")
    write(path, record("n1", 3, 3))
    assert seqs(file.read_new()) == [2, 3]
    write(path, record("n1", 4, 4))
    assert seqs(file.read_new()) == [4]


def test_tail_reads_rotated_files_too(tmp_path: Path, opened: list[LogFile]) -> None:
    """The last lines may stand in `.1`, `.2`; a small budget says that there is more."""
    for number in (3, 2, 1):
        write(tmp_path / f"log.jsonl.{number}", record("n1", 10 - number, 10 - number))
    path = write(tmp_path / "log.jsonl", record("n1", 10, 10))
    file = LogFile(path, "n1", boot_time())
    opened.append(file)
    assert seqs(file.read_tail(1 << 20)[0]) == [7, 8, 9, 10]
    lines, whole = file.read_tail(len(record("n1", 10, 10)) + 10)
    assert (seqs(lines)[-1], whole) == (10, False)


def test_file_that_appears_later_is_followed(tmp_path: Path, opened: list[LogFile]) -> None:
    """A node that starts after `logs tail -f` is seen from its first line."""
    file = LogFile(tmp_path / "n9" / "log.jsonl", "n9", boot_time())
    opened.append(file)
    assert file.read_tail(1 << 20) == ([], True)
    assert file.read_new() == []
    write(file.path, record("n9", 1, 1))
    assert seqs(file.read_new()) == [1]


def test_new_nodes_are_discovered(cluster: Path) -> None:
    """A node's directory that appears is taken in."""
    files = LogFiles(cluster, None)
    write(cluster / "n3" / "log.jsonl", record("n3", 1, 1))
    files.discover()
    assert [line.node for line in files.read_new()] == ["n3"]
    files.close()


def test_what_is_not_json_is_wrapped(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback in `err` and a torn line become events named stderr, in valid JSON."""
    write(cluster / "n1" / "log.jsonl", record("n1", 1, 1), '{"torn', '{"seq": "x"}', "[1]")
    with (cluster / "n1" / "log.jsonl").open("ab") as file:
        file.write(record("n1", 2, 2).encode().replace(b'"n1"', b'"n\xce"') + b"\n")
    write(cluster / "n1" / "err", "Traceback (most recent call last):", "ValueError: \x1b[2J")
    lines = [json.loads(line) for line in tail(capsys, "--json")]
    wrapped = [line for line in lines if line["event"] == "stderr"]
    assert len(wrapped) == 6
    assert all(line["level"] == "error" for line in wrapped)
    assert "\x1b" not in "".join(tail(capsys))


def test_lines_of_all_nodes_are_merged_and_counted(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both streams of all nodes, by time; -n takes the last ones."""
    write(cluster / "n1" / "log.jsonl", record("n1", 1, 10), record("n1", 3, 30))
    write(cluster / "n1" / "trace.jsonl", record("n1", 2, 20, "commit.advanced", level="debug"))
    write(cluster / "n2" / "log.jsonl", record("n2", 1, 15), record("n2", 2, 35))
    order = [json.loads(line)["mono_ns"] for line in tail(capsys, "--json")]
    assert len(order) == 5
    assert order == sorted(order)
    last = [
        (entry["node"], entry["seq"]) for entry in map(json.loads, tail(capsys, "--json", "-n2"))
    ]
    assert last == [("n1", 3), ("n2", 2)]


def test_filters(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By node, level, event glob, excluded glob and term."""
    write(
        cluster / "n1" / "log.jsonl",
        record("n1", 1, 1, "election.started", term=2),
        record("n1", 2, 2, "election.won", term=3),
        record("n1", 3, 3, "vote.denied", level="debug"),
        record("n1", 4, 4, "peer.down", level="warning"),
    )
    write(cluster / "n2" / "log.jsonl", record("n2", 9, 5, "vote.granted"))

    def found(*arguments: str) -> list[int]:
        return [json.loads(line)["seq"] for line in tail(capsys, "--json", *arguments)]

    assert found("n1") == [1, 2, 3, 4]
    assert found("n2,n1", "-l", "info") == [1, 2, 4, 9]
    assert found("-l", "warning") == [4]
    assert found("-e", "election.*,vote.granted") == [1, 2, 9]
    assert found("-e", "election.*", "--not-event", "*.won") == [1]
    assert found("--term", "3") == [2]
    assert found("--since", "1h") == [1, 2, 3, 4, 9]
    assert found("--since", "1m") == []
    assert tail(capsys, "--field", "event", "-n", "1") == ["vote.granted"]


def test_lines_are_chosen_by_a_condition_on_their_fields(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--where looks at every field, and works together with the other filters."""
    lines = [record("n1", i, i, commit=i, role="leader" if i % 2 else "follower") for i in range(9)]
    write(cluster / "n1" / "log.jsonl", *lines)
    chosen = tail(capsys, "--json", "--where", 'role == "leader" and commit > 4')
    assert [json.loads(line)["commit"] for line in chosen] == [5, 7]


def test_waiting_sees_what_comes_and_not_what_was(cluster: Path) -> None:
    """Also in a file that did not exist; of lines that are read together, the earliest."""
    now_ms = (clock.monotonic_ns() - BASE_NS) // 1_000_000
    before = record("n1", 1, now_ms - 5_000, "election.won")
    write(cluster / "n1" / "log.jsonl", before)
    looks = 0

    def pause() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            late = [record("n1", 2, now_ms + 70, "election.won"), record("n1", 3, now_ms + 80)]
            write(cluster / "n1" / "log.jsonl", *late)
            write(cluster / "n2" / "log.jsonl", record("n2", 1, now_ms + 60, "election.won"))
            write(cluster / "n2" / "log.jsonl", record("n2", 2, now_ms + 50, "election.lost"))

    since_ns = BASE_NS + now_ms * 1_000_000
    wanted = Filters("trace", ("election.w*",), (), None, since_ns, None)
    files = LogFiles(cluster, None)
    found = wait_for_line(files, wanted, 10_000, pause)
    assert found is not None
    assert (found.node, found.place[0], looks) == ("n2", 1, 3)
    not_there = wanted._replace(where=parse_where('node not in ("n1", "n2")'))
    assert wait_for_line(files, not_there, 0, pause) is None
    files.close()


def test_waiting_in_vain_ends_with_6_and_looking_back_finds(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A time-out is not a usage error; --since takes the past in, the first match is printed."""
    write(
        cluster / "n1" / "log.jsonl",
        record("n1", 1, 570_000, "election.won"),
        record("n1", 2, 580_000, "election.won"),
    )
    assert main(["logs", "wait", "election.*", "--timeout", "20ms", "--json"]) == 6
    error = json.loads(capsys.readouterr().err)["error"]
    assert (error["code"], error["exit"]) == ("not_seen", 6)
    assert main(["logs", "wait", "election.*", "n1", "--since", "2h", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seq"] == 1
    condition = ["--where", "seq == 2"]
    assert main(["logs", "wait", "election.*", "--since", "2h", *condition, "--field", "seq"]) == 0
    assert capsys.readouterr().out == "2\n"
    for wrong in (["nonsense.*"], ["election.*", "n7"], ["election.*", "--where", "1 +"]):
        assert main(["logs", "wait", *wrong]) == 2


def test_heartbeats_are_hidden_and_counted(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Empty appends and their answers are one line that says how many; answers to others stay."""

    def rpc(node: str, seq: int, event: str, peer: str, kind: str, number: int, beat: bool) -> str:
        fields = {"peer": peer, "kind": kind, "epoch": 0, "frame_seq": number, "heartbeat": beat}
        return record(node, seq, seq, event, level="debug", **fields)

    ask, say = "AppendEntries", "AppendEntriesResponse"
    write(
        cluster / "n1" / "trace.jsonl",
        rpc("n1", 1, "rpc.sent", "n2", ask, 1, beat=True),
        rpc("n1", 4, "rpc.received", "n2", say, 1, beat=False),
        rpc("n1", 5, "rpc.sent", "n2", ask, 2, beat=False),
        rpc("n1", 8, "rpc.received", "n2", say, 2, beat=False),
    )
    write(
        cluster / "n2" / "trace.jsonl",
        rpc("n2", 2, "rpc.received", "n1", ask, 1, beat=True),
        rpc("n2", 3, "rpc.sent", "n1", say, 1, beat=False),
        rpc("n2", 6, "rpc.received", "n1", ask, 2, beat=False),
        rpc("n2", 7, "rpc.sent", "n1", say, 2, beat=False),
    )
    lines = tail(capsys)
    assert len(lines) == 5
    assert lines[-1].strip() == "── 4 heartbeats hidden (show: --heartbeats) ──"
    assert [json.loads(line)["seq"] for line in tail(capsys, "--json")] == [5, 6, 7, 8]
    assert len(tail(capsys, "--json", "--heartbeats")) == 8


def test_answer_to_an_unseen_append_counts_as_heartbeat() -> None:
    """Most answers are; a suppressed append must not make its answer a story."""
    fields = {"event": "rpc.sent", "peer": "n1", "kind": "AppendEntriesResponse"}
    content = {**fields, "epoch": 0, "frame_seq": 1, "heartbeat": False}
    line = Line("n2", 1, 1, (1, 0), 1, "", True, b"", content)
    assert Heartbeats().is_one(line)


def test_story_is_aligned(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Time, node, role, term, event, sentence: in columns, without colour in a pipe."""
    write(
        cluster / "n1" / "log.jsonl",
        record("n1", 1, 1, role="leader", term=12),
        record("n1", 2, 2, "election.won", role="candidate"),
    )
    first, second = tail(capsys)
    assert first[12:] == " n1  LEAD t12  role.changed         role.changed 1"
    assert second[12:] == " n1  CAND t2   election.won         election.won 2"


def test_many_lines_are_read_as_far_as_needed(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wanted line far from the end is found, and counts stay right."""
    rare = record("n1", 1, 0, "election.won")
    write(cluster / "n1" / "log.jsonl", rare, *(record("n1", i, i) for i in range(2, 4000)))
    write(cluster / "n2" / "log.jsonl", *(record("n2", i, i) for i in range(1, 4000)))
    found = [json.loads(line)["seq"] for line in tail(capsys, "--json", "-e", "election.won")]
    assert found == [1]
    assert len(tail(capsys, "-n", "5000")) == 5000


def test_lines_of_the_program_itself_are_understood(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `Telemetry` writes is what `logs tail` reads."""
    (cluster / "n1").mkdir()
    telemetry = Telemetry(cluster / "n1", node="n1", cluster="default", incarnation=1)
    telemetry.emit("node.ready", elapsed_ms=12)
    telemetry.close()
    (line,) = tail(capsys)
    assert "node.ready" in line
    assert f"{os.getpid()}" in tail(capsys, "--json")[0]
