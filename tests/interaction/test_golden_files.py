"""Every `*.txt` beside this file is a script whose output is exactly what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from zraft.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Message,
    RequestVote,
    RequestVoteResponse,
)
from zraft.core.model import Entries
from zraft.testing.compact import ScriptError, message_text, parse_message, parse_terms
from zraft.testing.core_disk import payload_at
from zraft.testing.interaction import Interaction, parse_script, rewritten

FILES = sorted(Path(__file__).parent.glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_script_does_what_its_file_says(path: Path, rewrite: bool) -> None:
    """Every Ready, message and state is as written down and read by a person."""
    text = path.read_text(encoding="utf-8")
    now = rewritten(text)
    if rewrite:
        path.write_text(now, encoding="utf-8")
        return
    assert now.splitlines() == text.splitlines()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_script_begins_with_what_is_to_be_seen(path: Path) -> None:
    """Its reader is told first what the script shows."""
    first = next(iter(parse_script(path.read_text(encoding="utf-8"))))
    assert first.comments
    assert not first.commands


@pytest.mark.parametrize(
    "message",
    [
        RequestVote(1, 2, 3, False, 3, 4, 2),
        RequestVote(1, 2, 3, True, 4, 0, 0),
        RequestVoteResponse(1, 2, 3, False, 3, True),
        RequestVoteResponse(1, 2, 3, True, 5, False),
        AppendEntries(1, 2, 3, 4, 2, 1, 7, Entries(5, [], [])),
        AppendEntries(
            1, 2, 3, 4, 2, 1, 7, Entries(5, [2, 3], [payload_at(5, 2), payload_at(6, 3)])
        ),
        AppendEntriesResponse(1, 2, 3, True, 6, 0, 0, 7),
        AppendEntriesResponse(1, 2, 3, False, 0, 5, 2, 7),
    ],
    ids=message_text,
)
def test_a_message_is_shown_whole(message: Message) -> None:
    """What is shown can be read back, so nothing is missing in it."""
    assert parse_message(message_text(message)) == message


@pytest.mark.parametrize(
    "command",
    [
        "nodes",
        "nodes 3 speed=9",
        "fly 1",
        "at noon",
        "at 5ms",
        "inject 1->2",
        "inject 1->2 Hello term=1",
        "cut 1",
        "peer-down 1",
        "propose",
        "crash 1 after-persist",
    ],
)
def test_a_line_that_is_no_command_is_refused(command: str) -> None:
    """A typing error in a script is reported, not skipped."""
    interaction = Interaction()
    if not command.startswith("nodes"):
        interaction.run("nodes 3")
        interaction.run("at 10ms")
    with pytest.raises(ScriptError):
        interaction.run(command)


def test_commands_need_a_cluster() -> None:
    """A script begins with `nodes`."""
    with pytest.raises(ScriptError, match="no cluster"):
        Interaction().run("status")


def test_a_block_without_separator_is_refused() -> None:
    """Otherwise its commands would be taken for comments."""
    with pytest.raises(ScriptError, match="----"):
        list(parse_script("nodes 3\nstatus"))


def test_terms_of_a_log_can_be_abbreviated() -> None:
    """`1x3,4` is 1 1 1 4."""
    assert parse_terms("1x3,4") == [1, 1, 1, 4]
    assert parse_terms("") == []
