"""`zraft sim`: one document for machines, a line to replay for people, no accidental success."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zraft.cli.main import main


def test_run_prints_one_document_that_a_replay_repeats(capsys: pytest.CaptureFixture[str]) -> None:
    """Hash, events, simulated time and violations are there, and the same seed gives them again."""
    assert main(["sim", "run", "3", "--time", "2s", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["violations"] == []
    assert first["simulated_ms"] >= 2000
    assert first["events"] > 100
    assert main(["sim", "replay", "3", "--time", "2s", "--json", "--steps", "50"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["trace_hash"], again["events"]) == (first["trace_hash"], first["events"])
    assert 0 < len(again["trace"]) <= 50


def test_a_planted_bug_exits_with_8_and_says_how_to_see_it_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A broken invariant is not an error of the program, and not a success."""
    assert main(["sim", "run", "3", "--time", "2s", "--break", "quorum-off-by-one"]) == 8
    out = capsys.readouterr().out
    assert "✗ seed 3" in out
    assert "replay: zraft sim replay 3 --time 2s --break quorum-off-by-one  # zraft" in out
    assert main(["sim", "run", "3", "--time", "2s", "-q"]) == 0, "the bug was not taken out again"


def test_replay_writes_the_steps_into_a_file(tmp_path: Path) -> None:
    """A trace can be kept and compared."""
    path = tmp_path / "3.txt"
    assert main(["sim", "replay", "3", "--time", "1s", "-q", "--trace", str(path)]) == 0
    assert path.read_text().startswith("at ")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["sim", "hunt"], "not built yet"),
        (["sim", "run", "x"], "integer"),
        (["sim", "run", "1", "--time", "5"], "not a duration"),
        (["sim", "run", "1", "--break", "gremlins"], "known are"),
        (["sim", "run", "1", "--until", "violation"], "not built yet"),
    ],
)
def test_what_can_not_be_run_is_refused(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2, and the message says what was wrong."""
    assert main(arguments) == 2
    assert text in capsys.readouterr().err
