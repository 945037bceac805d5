"""Faults in words: what is asked for, and what it means for those who lead and follow."""

from __future__ import annotations

import random
from typing import Any

import pytest

from zraft.cli.fault_words import (
    cut_off,
    explain,
    fault_document,
    hits,
    one_line,
    params,
    parse_kind,
    parse_links,
    parse_messages,
    parse_ms,
    parse_rate,
    sides,
    where,
)
from zraft.cli.targets import NodeView
from zraft.client.faults import FaultView
from zraft.errors import ControlError
from zraft.transport.fault_kinds import MESSAGE_KINDS

NAMES = ["n1", "n2", "n3", "n4", "n5"]
NODES = [
    NodeView(name, up=True, alive=True, role="leader" if name == "n5" else "follower", term=1)
    for name in NAMES
]
Link = tuple[str, str]


def fault(kind: str, links: list[Link], **more: Any) -> FaultView:
    """A fault as the supervisor shows it."""
    values: dict[str, Any] = {
        "groups": [],
        "rate": 1.0,
        "delay_ms": 0,
        "jitter_ms": 0,
        "normal": False,
        "messages": [],
        "seed": 1,
        "by": "cli",
        "age_ms": 41_200,
        "left_ms": None,
        "hits": 1204,
    }
    return FaultView(id="f1", kind=kind, links=links, **{**values, **more})


def between(*groups: list[str]) -> FaultView:
    """A partition into these groups."""
    side = {name: number for number, group in enumerate(groups) for name in group}
    links = [(a, b) for a in NAMES for b in NAMES if side[a] != side[b]]
    return fault("partition", links, groups=list(groups))


@pytest.mark.parametrize(
    ("text", "rate"), [("30%", 0.3), ("0.3", 0.3), ("100%", 1.0), ("1", 1.0), (".5", 0.5)]
)
def test_a_rate_is_percent_or_part(text: str, rate: float) -> None:
    """Both forms of the command line."""
    assert parse_rate(text) == pytest.approx(rate)


@pytest.mark.parametrize("text", ["0", "0%", "101%", "1.5", "-3%", "x", "", "3 %"])
def test_an_impossible_rate_is_refused(text: str) -> None:
    """Nothing is guessed; 1.5 could mean two things."""
    with pytest.raises(ControlError, match="--rate"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("word", "links"),
    [
        ("n1:n2", [("n1", "n2")]),
        ("leader:n1,n2", [("n5", "n1"), ("n5", "n2")]),
        ("*:n3", [("n1", "n3"), ("n2", "n3"), ("n4", "n3"), ("n5", "n3")]),
        ("leader:followers", [("n5", "n1"), ("n5", "n2"), ("n5", "n3"), ("n5", "n4")]),
        ("!leader:leader", [("n1", "n5"), ("n2", "n5"), ("n3", "n5"), ("n4", "n5")]),
    ],
)
def test_a_link_is_from_and_to_and_each_side_a_target(word: str, links: list[Link]) -> None:
    """Roles are resolved on both sides; a node has no link to itself."""
    assert parse_links([word], NODES, random.Random(1)) == links


def test_all_links_and_random_targets_on_a_link() -> None:
    """`*` is every pair both ways; the colon of `random:2` does not cut the link."""
    assert len(parse_links(["*"], NODES, random.Random(1))) == 20
    assert len(parse_links(["random:2:leader"], NODES, random.Random(3))) >= 1
    assert parse_links(["n1:n2", "n1:n2"], NODES, random.Random(1)) == [("n1", "n2")]


@pytest.mark.parametrize("word", ["n1", "n1:", ":n2", "n1->n2", "n1:n2:n3", "n1:n1", "n1:n9"])
def test_what_is_no_link_is_refused(word: str) -> None:
    """With the form that is wanted."""
    with pytest.raises(ControlError):
        parse_links([word], NODES, random.Random(1))


def test_milliseconds_need_no_unit_where_the_flag_has_it() -> None:
    """`--ms 200` is published; a duration is understood as well."""
    assert [parse_ms(text, "--ms") for text in ("200", "0", "80ms", "2s")] == [200, 0, 80, 2000]
    with pytest.raises(ControlError, match="--jitter"):
        parse_ms("-5", "--jitter")


def test_messages_are_chosen_by_rpc_and_kind() -> None:
    """Either flag alone leaves the other open."""
    assert parse_messages(None, None) == []
    assert parse_messages("append", "reply") == ["append-reply"]
    assert parse_messages("vote", None) == ["vote", "vote-reply"]
    assert parse_messages("snapshot", "request") == ["snapshot"]
    assert parse_messages(None, "request") == ["append", "vote", "snapshot"]
    assert {*parse_messages(None, "request"), *parse_messages(None, "reply")} == {*MESSAGE_KINDS}
    with pytest.raises(ControlError, match="heartbeet"):
        parse_messages("heartbeet", None)
    assert parse_kind("delay") == "delay"
    with pytest.raises(ControlError, match="dealy"):
        parse_kind("dealy")


def test_a_fault_is_shown_as_published() -> None:
    """Place, numbers and hits, in the table, the status line and the document."""
    cut = between(["n1", "n2"], ["n3", "n4", "n5"])
    assert where(cut) == "n1,n2 | n3,n4,n5"
    assert (params(cut), hits(cut)) == ("–", "1 204 dropped")
    slow = fault(
        "delay",
        [("n5", "n2")],
        delay_ms=200,
        jitter_ms=50,
        normal=True,
        left_ms=18_000,
        hits=87,
    )
    assert (where(slow), params(slow), hits(slow)) == ("n5:n2", "200±50ms normal", "87 delayed")
    document = fault_document(slow)
    assert one_line(document) == "f1 delay n5:n2 200±50ms normal (18.0s left, 87 delayed)"
    assert (document["link"], document["delay_ms"], document["expires_s"]) == ("n5:n2", 200, 18.0)
    lossy = fault("drop", [("n1", "n2"), ("n2", "n1")], rate=0.3, messages=["append"])
    assert (where(lossy), params(lossy)) == ("all links between n1,n2", "30% of append")
    assert fault_document(cut)["groups"] == [["n1", "n2"], ["n3", "n4", "n5"]]


def test_sides_are_who_can_talk_to_whom_in_any_way() -> None:
    """One cut direction is enough to separate; a bridge joins both of its sides."""
    halves = fault_document(between(["n1", "n2"], ["n3", "n4", "n5"]))
    assert sides(NAMES, [halves]) == [["n3", "n4", "n5"], ["n1", "n2"]]
    assert cut_off(NAMES, [halves]) == ["n1", "n2"]
    one_way = fault_document(fault("one-way", [("n2", name) for name in NAMES if name != "n2"]))
    assert cut_off(NAMES, [one_way]) == ["n2"]
    lossy = fault_document(fault("drop", [("n1", "n2")], rate=0.5))
    assert cut_off(NAMES, [lossy, halves, one_way]) == ["n1", "n2"]
    assert cut_off(NAMES, [lossy]) == []
    bridge = fault_document(fault("one-way", [("n1", "n5"), ("n1", "n4"), ("n2", "n4")]))
    assert sides(NAMES, [bridge]) == [NAMES]


@pytest.mark.parametrize(
    ("broken", "sentences"),
    [
        (
            between(["n4", "n5"], ["n1", "n2", "n3"]),
            ["leader n5 is in the minority", "expect a new leader among n1 n2 n3", "n5 unable"],
        ),
        (between(["n1", "n2"], ["n3", "n4", "n5"]), ["leader n5 keeps a quorum", "n1 n2 refuse"]),
        (between(["n1", "n2"], ["n3"], ["n4", "n5"]), ["no side has a quorum of 3"]),
        (
            fault("isolate", [("n5", "n1"), ("n1", "n5")], groups=[["n5"]]),
            ["n5 hears nobody and nobody hears it", "leader n5 can not commit any more"],
        ),
        (
            fault("one-way", [("n2", name) for name in NAMES if name != "n2"]),
            ["n1 n3 n4 n5 no longer hear n2; n2 still hears them"],
        ),
        (
            fault("one-way", [("n5", name) for name in NAMES if name != "n5"]),
            ["leader n5 is heard by too few"],
        ),
        (
            fault("one-way", [(name, "n5") for name in NAMES if name != "n5"]),
            ["leader n5 hears no quorum of answers: it steps down by itself"],
        ),
        (
            fault("delay", [("n5", "n1")], delay_ms=200, jitter_ms=100),
            ["all messages on n5:n1 arrive 100–300ms late", "leaders may be taken for dead"],
        ),
        (
            fault("drop", [("n5", "n1")], rate=0.3),
            ["30% of the messages on n5:n1 are lost", "slower, never wrong"],
        ),
        (fault("duplicate", [("n5", "n1")], rate=0.3), ["arrive twice"]),
        (fault("reorder", [("n5", "n1")], rate=0.3), ["overtaken"]),
        (fault("corrupt", [("n5", "n1")], rate=0.9), ["refuse and count", "elections are likely"]),
    ],
)
def test_what_a_fault_means_is_said(broken: FaultView, sentences: list[str]) -> None:
    """Who can talk to whom, and what to expect, with n5 leading."""
    text = "\n".join(explain(broken, NODES, "n5", {}))
    for sentence in sentences:
        assert sentence in text
