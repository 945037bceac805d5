"""`--where`: conditions on fields, and nothing but conditions."""

from __future__ import annotations

from typing import Any

import pytest

from zraft.cli.where import parse_where
from zraft.errors import ControlError

LINE: dict[str, Any] = {
    "node": "n3",
    "role": "leader",
    "term": 4,
    "commit": 17,
    "votes": ["n3", "n1"],
    "pre_vote": False,
    "leader": None,
    "range": {"first": 3, "last": 9},
}


@pytest.mark.parametrize(
    "text",
    [
        'role == "leader"',
        "role == 'leader' and commit > 10",
        'node != "n1" or term == 9',
        "not pre_vote",
        "term in (3, 4)",
        'node not in ["n1", "n2"]',
        '"n1" in votes',
        "3 < term < 5",
        "range.last >= 9 and range.first == 3",
        "leader is None",
        "leader == None and nothing == None",
        "not nothing",
        "not (term == 4 and commit == 18)",
        "term > -1",
        "pre_vote == False",
        "votes",
    ],
)
def test_what_holds(text: str) -> None:
    """Names are fields; a missing one is None."""
    assert parse_where(text)(LINE) is True


@pytest.mark.parametrize(
    "text",
    [
        'role == "follower"',
        "commit > 17",
        "nothing > 1",
        "nothing < 1",
        'term == "4"',
        'term > "3"',
        '"n2" in votes',
        '"n2" in nothing',
        "range.nothing.more == 1",
        "leader",
        "term == 4 and commit == 18",
    ],
)
def test_what_does_not_hold(text: str) -> None:
    """Different kinds are unequal and in no order."""
    assert parse_where(text)(LINE) is False


@pytest.mark.parametrize(
    "text",
    [
        "",
        "term ==",
        "term = 4",
        "term + 1 == 5",
        "open('/etc/passwd')",
        "votes[0] == 'n3'",
        "(lambda: 1)()",
        "[x for x in votes]",
        "f'{term}'",
        "-role",
        "{'a': 1}",
        "term := 4",
        "(" * 900,
        "not " * 240 + "a" * 100,
        "import os",
        "a\x00b",
    ],
)
def test_everything_else_is_refused_in_words(text: str) -> None:
    """No calls, no arithmetic, no indices: exit 2 with an example."""
    with pytest.raises(ControlError) as caught:
        parse_where(text)
    assert caught.value.why
    assert "--where" in caught.value.what
