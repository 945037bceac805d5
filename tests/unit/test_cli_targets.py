"""Targets: names and roles resolved against what the nodes say."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zraft.cli.targets import NodeView, check_term, leader_of, needs_roles, resolve
from zraft.errors import Conflict, ControlError, Unavailable

NODES = [
    NodeView("n1", True, True, "follower", 4),
    NodeView("n2", True, True, "follower", 4),
    NodeView("n3", True, True, "leader", 4),
    NodeView("n4", False, True),  # paused
    NodeView("n5", False, False),  # killed
]


def meant(*words: str, nodes: list[NodeView] = NODES, seed: int = 1) -> list[str]:
    """Resolve words with a fixed seed."""
    return resolve(words, nodes, random.Random(seed))


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("n1", ["n1"]),
        ("n3,n1", ["n1", "n3"]),
        ("leader", ["n3"]),
        ("followers", ["n1", "n2"]),
        ("up", ["n1", "n2", "n3"]),
        ("down", ["n5"]),
        ("all", ["n1", "n2", "n3", "n4", "n5"]),
        ("!leader", ["n1", "n2", "n4", "n5"]),
        ("leader+2", ["n1", "n2", "n3"]),
        ("random:3", ["n1", "n2", "n3"]),
        ("leader,leader,n3", ["n3"]),
    ],
)
def test_words_mean_these_nodes(word: str, expected: list[str]) -> None:
    """Every word of the grammar gives names in the cluster's order, each once."""
    assert meant(word) == expected


def test_several_arguments_are_joined() -> None:
    """`n5 leader` means both."""
    assert meant("n5", "leader") == ["n3", "n5"]


@pytest.mark.parametrize(
    ("word", "count"), [("follower", 1), ("random", 1), ("minority", 2), ("majority", 3)]
)
def test_random_words_mean_so_many(word: str, count: int) -> None:
    """Words that choose give the right number, and the same ones for the same seed."""
    assert len(meant(word)) == count
    assert meant(word, seed=7) == meant(word, seed=7)


def test_random_words_choose_among_all() -> None:
    """Every node that is up is chosen sooner or later."""
    assert {meant("random", seed=seed)[0] for seed in range(50)} == {"n1", "n2", "n3"}


def test_leader_is_the_one_of_the_highest_term() -> None:
    """An isolated leader of an older term is not the leader."""
    nodes = [NodeView("n1", True, True, "leader", 3), NodeView("n2", True, True, "leader", 4)]
    assert leader_of(nodes) == "n2"


def test_typo_is_refused_with_the_nearest_word() -> None:
    """A wrong name says which nodes there are and what may have been meant."""
    with pytest.raises(ControlError) as caught:
        meant("leadr")
    assert caught.value.what == 'no node "leadr" (have n1…n5)'
    assert caught.value.try_ == ("did you mean leader?",)


@pytest.mark.parametrize("word", ["random:0", "random:x", "leader+", "leader+0", "", ","])
def test_malformed_word_is_a_usage_error(word: str) -> None:
    """Numbers must be numbers, and there must be a target."""
    with pytest.raises(ControlError):
        meant(word)


@pytest.mark.parametrize("word", ["leader", "candidate", "random", "leader+1", "!leader"])
def test_role_that_nobody_has_is_unavailable(word: str) -> None:
    """Without a leader, `leader` is no typo: it is exit 6, and nothing was done."""
    nodes = [NodeView(f"n{i}", False, False) for i in range(1, 4)]
    with pytest.raises(Unavailable) as caught:
        meant(word, nodes=nodes)
    assert caught.value.exit_code == 6


def test_set_words_may_mean_nobody() -> None:
    """`start down` with nothing down has nothing to do."""
    assert meant("down", nodes=NODES[:3]) == []


def test_more_than_there_are_is_refused() -> None:
    """`random:4` of three running nodes is not silently three."""
    with pytest.raises(Unavailable):
        meant("random:4")


def test_other_term_is_a_conflict() -> None:
    """--expect-term compares with the highest term that is known; exit 5."""
    check_term(4, NODES)
    check_term(None, NODES)
    with pytest.raises(Conflict) as caught:
        check_term(3, NODES)
    assert caught.value.exit_code == 5


def test_names_need_no_answers() -> None:
    """Names alone are resolved without asking any node."""
    names = ["n1", "n2"]
    assert not needs_roles(["n1,n2", "n1"], names)
    assert needs_roles(["n1", "leader"], names)


@given(st.text(max_size=12), st.integers(0, 100))
def test_any_text_gives_names_or_a_named_error(word: str, seed: int) -> None:
    """No text raises anything but our errors, and names are of the cluster."""
    try:
        found = meant(word, seed=seed)
    except (ControlError, Unavailable):
        return
    assert set(found) <= {node.name for node in NODES}
