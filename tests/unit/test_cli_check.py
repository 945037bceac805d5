"""`zraft check file`: exit codes, the picture for people, the document for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zraft.cli.main import main
from zraft.testing.history import Operation, write_history

STALE = [
    Operation(
        process="c1",
        op="put",
        key="r3",
        value=40,
        invoke_ns=1,
        return_ns=2,
        status="ok",
    ),
    Operation(
        process="c2",
        op="put",
        key="r3",
        value=41,
        invoke_ns=3,
        return_ns=4,
        status="ok",
        note={"node": "n5", "index": 812, "term": 6},
    ),
    Operation(
        process="c4",
        op="get",
        key="r3",
        output=40,
        invoke_ns=5,
        return_ns=6,
        status="ok",
        note={"node": "n2"},
    ),
]


@pytest.fixture
def stale(tmp_path: Path) -> str:
    """Return the path of a history with a stale read."""
    write_history(tmp_path / "stale.jsonl", STALE)
    return str(tmp_path / "stale.jsonl")


def test_a_good_history_exits_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line says that it is linearizable, and of how much."""
    path = tmp_path / "h.jsonl"
    write_history(path, STALE[:2])
    assert main(["check", "file", str(path)]) == 0
    assert capsys.readouterr().out.startswith("linearizable ✓  (2 ops, 1 key, checked in ")


def test_a_bad_history_exits_with_8_and_shows_why(
    stale: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The operations that contradict each other, the one to blame, and what it could have seen."""
    assert main(["check", "file", stale]) == 8
    lines = capsys.readouterr().out.splitlines()
    assert lines[:-1] == [
        'linearizable ✗  key "r3": a read returned a value that was already overwritten',
        "  c1  put 40    ├────┤",
        "  c2  put 41              ├────┤              n5 index 812 term 6",
        "  c4  get → 40                      ├────┤    n2  ← cannot be placed",
        "  state before: 41 is the only legal value when it returned",
        "  minimal: these 3 of 3 ops on this key contradict each other, whatever the others did",
    ]


def test_a_bad_history_as_json(stale: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Programs get the operation, the states before it and the core, in the history's format."""
    assert main(["check", "file", stale, "--json"]) == 8
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "zraft.check/1"
    assert (document["ok"], document["verdict"]) == (False, "not-linearizable")
    assert (document["operations"], document["keys"], document["undecided"]) == (3, 1, [])
    (found,) = document["counterexamples"]
    assert found["key"] == "r3"
    assert found["operation"] == {
        "process": "c4",
        "op": "get",
        "key": "r3",
        "output": 40,
        "invoke": 5,
        "return": 6,
        "status": "ok",
        "note": {"node": "n2"},
    }
    assert (found["states_before"], found["other_states"]) == ([41], False)
    assert [op["process"] for op in found["core"]] == ["c1", "c2", "c4"]
    assert (found["minimal"], found["of"]) == (True, 3)


def test_an_undecided_history_exits_with_9(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The time is up: neither yes nor no, and the key is named."""
    many = [
        Operation(
            process=n, op=kind, key="hard", value=n, output=n, invoke_ns=1, return_ns=9, status="ok"
        )
        for n in range(24)
        for kind in ("put", "get")
    ]
    later = [
        Operation(
            process=99,
            op="get",
            key="hard",
            output=n,
            invoke_ns=10 + 2 * n,
            return_ns=11 + 2 * n,
            status="ok",
        )
        for n in (0, 1)
    ]
    path = tmp_path / "h.jsonl"
    write_history(path, [*many, *later])
    assert main(["check", "file", str(path), "--timeout", "50ms"]) == 9
    out = capsys.readouterr().out
    assert "undecided" in out
    assert 'on key "hard"; nothing wrong was found' in out


def test_a_broken_line_exits_with_65(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message names file, line and rule."""
    path = tmp_path / "h.jsonl"
    path.write_text('{"process":1}\n')
    assert main(["check", "file", str(path)]) == 65
    assert f"{path}:1: this is not an operation" in capsys.readouterr().err


def test_an_empty_history_proves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file without operations is refused: "linearizable" would sound like a result."""
    path = tmp_path / "h.jsonl"
    path.touch()
    assert main(["check", "file", str(path)]) == 65
    assert "proves nothing" in capsys.readouterr().err


def test_a_missing_file_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """There is no such file: exit 2, not a disk error."""
    assert main(["check", "file", "/nowhere/h.jsonl"]) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["invariants", "show", "replay"])
def test_verbs_that_come_later_are_refused_by_name(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A published verb that is not built yet says so."""
    assert main(["check", verb]) == 2
    assert "is not built yet" in capsys.readouterr().err
