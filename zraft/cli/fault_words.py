"""Faults in words: what is asked for, what is in force, and what that means for the cluster.

Pure: names, links and numbers in, texts and documents out. What a fault means is computed from the
links that are cut, all faults together, and from who leads now.
"""

from __future__ import annotations

import random
import re
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from zraft.api import FaultKind
from zraft.cli.durations import format_ms, parse_duration_ms
from zraft.cli.output import join_and
from zraft.cli.targets import NodeView, resolve
from zraft.client.faults import FaultView
from zraft.errors import ControlError

CUTS = frozenset({"partition", "isolate", "one-way"})
HIT_WORDS = {
    "delay": "delayed",
    "duplicate": "doubled",
    "reorder": "held back",
    "corrupt": "damaged",
}
NOTHING = "–"
_RATE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(%?)")
_RANDOM = re.compile(r"random:(\d+)")

Link = tuple[str, str]


# ------------------------------------------------------------------------------- what is asked for


def parse_rate(text: str) -> float:
    """Return the part that `30%` or `0.3` means: above 0, at most 1. ControlError otherwise."""
    match = _RATE.fullmatch(text.strip())
    rate = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < rate <= 1:
        raise ControlError(
            f'--rate: "{text}" is not a part of something',
            why="a rate is above 0 and at most 100%",
            try_="--rate 30%   or   --rate 0.3",
        )
    return rate


def parse_ms(text: str, flag: str) -> int:
    """Return the milliseconds of `200` or of a duration, `200ms`: the flag's name has the unit."""
    return int(text) if text.isdecimal() and len(text) < 10 else parse_duration_ms(text, flag)


def parse_links(words: Sequence[str], nodes: Sequence[NodeView], rng: random.Random) -> list[Link]:
    """Return the links that `FROM:TO` words mean, each once; both sides are targets, `*` is all.

    Raises:
        ControlError: not a link, or one from a node to itself only (exit 2).
        Unavailable: a role that nobody has now (exit 6).
    """
    found: list[Link] = []
    for word in words:
        if word == "*":
            word = "*:*"
        parts = [part.replace("#", ":") for part in _RANDOM.sub(r"random#\1", word).split(":")]
        if len(parts) != 2 or not all(parts):
            raise ControlError(
                f'"{word}" is not a link',
                why="a link is FROM:TO, and each side is a target",
                try_="n1:n2   leader:followers   '*:n3'   '*'",
            )
        sides = [resolve([part], nodes, rng) for part in parts]
        pairs = [(one, other) for one in sides[0] for other in sides[1] if one != other]
        if not pairs:
            raise ControlError(f'"{word}" is no link between two nodes')
        found += [pair for pair in pairs if pair not in found]
    return found


RPCS = ("append", "vote", "snapshot")
"""The three of the paper; the names of `zraft.transport.fault_kinds`."""


def parse_messages(rpc: str | None, kind: str | None) -> list[str]:
    """Return the messages that `--rpc` and `--kind` choose; none chosen means all of them."""
    for flag, value, known in (
        ("--rpc", rpc, RPCS),
        ("--kind", kind, ("request", "reply")),
    ):
        if value is not None and value not in known:
            raise ControlError(
                f'{flag}: there is no "{value}"',
                why="heartbeats are appends, pre-votes are votes",
                try_=f"{flag} {'   or   '.join(known)}",
            )
    if rpc is None and kind is None:
        return []
    suffixes = {"request": [""], "reply": ["-reply"], None: ["", "-reply"]}[kind]
    return [name + end for name in ([rpc] if rpc else RPCS) for end in suffixes]


def parse_kind(text: str | None) -> FaultKind | None:
    """Return the kind of `--kind`; ControlError for one that does not exist."""
    kinds: tuple[FaultKind, ...] = typing.get_args(FaultKind)
    if text is None:
        return None
    for kind in kinds:
        if kind == text:
            return kind
    raise ControlError(f'--kind: no fault "{text}"', why=f"there are {', '.join(kinds)}")


# -------------------------------------------------------------------------------- what is in force


def fault_document(fault: FaultView) -> dict[str, Any]:
    """Return a fault for `--json`."""
    document: dict[str, Any] = {"id": fault.id, "kind": fault.kind}
    if fault.kind == "partition":
        document["groups"] = fault.groups
    elif fault.kind == "isolate":
        document["nodes"] = [name for group in fault.groups for name in group]
    document["links"] = [f"{one}:{other}" for one, other in fault.links]
    if len(fault.links) == 1:
        document["link"] = document["links"][0]
    if fault.kind not in CUTS:
        document |= {"rate": fault.rate, "messages": fault.messages, "seed": fault.seed}
    if fault.kind == "delay":
        dist = "normal" if fault.normal else "uniform"
        document |= {"delay_ms": fault.delay_ms, "jitter_ms": fault.jitter_ms, "dist": dist}
    return document | {
        "by": fault.by,
        "age_s": round(fault.age_ms / 1000, 1),
        "expires_s": None if fault.left_ms is None else round(fault.left_ms / 1000, 1),
        "hits": fault.hits,
        "where": where(fault),
        "params": params(fault),
    }


def where(fault: FaultView) -> str:
    """Return the nodes or links: `n1,n2 | n3`, `n1`, `n5:n2`, `n5:n1,n2`."""
    if fault.kind == "partition":
        return " | ".join(",".join(group) for group in fault.groups)
    if fault.kind == "isolate":
        return ",".join(name for group in fault.groups for name in group)
    sources = list(dict.fromkeys(one for one, _ in fault.links))
    goals = list(dict.fromkeys(other for _, other in fault.links))
    whole = {(one, other) for one in sources for other in goals if one != other}
    if whole == set(fault.links):
        if set(sources) == set(goals) and len(sources) > 1:
            return f"all links between {','.join(sources)}"
        return f"{','.join(sources)}:{','.join(goals)}"
    return " ".join(f"{one}:{other}" for one, other in fault.links)


def params(fault: FaultView) -> str:
    """Return the numbers: `30% of append`, `200±50ms normal`."""
    words = []
    if fault.kind == "delay":
        jitter = f"±{fault.jitter_ms}" if fault.jitter_ms else ""
        words.append(f"{fault.delay_ms}{jitter}ms" + (" normal" if fault.normal else ""))
    if fault.kind not in CUTS and (fault.kind != "delay" or fault.rate < 1):
        words.append(percent(fault.rate))
    if fault.messages:
        words.append(f"of {','.join(fault.messages)}")
    return " ".join(words) or NOTHING


def percent(rate: float) -> str:
    """Return a rate for people."""
    return f"{100 * rate:g}%"


def hits(fault: FaultView) -> str:
    """Return the count of what it did: `1 204 dropped`."""
    return f"{fault.hits:,}".replace(",", " ") + f" {HIT_WORDS.get(fault.kind, 'dropped')}"


def one_line(document: Mapping[str, Any]) -> str:
    """Return the line of `cluster status` about a fault: `f3 delay n5:n2 200±50ms (18s left)`."""
    left_s = document["expires_s"]
    until = "until healed" if left_s is None else f"{format_ms(left_s * 1000)} left"
    numbers = "" if document["params"] == NOTHING else f" {document['params']}"
    done = f"{document['hits']} {HIT_WORDS.get(document['kind'], 'dropped')}"
    return f"{document['id']} {document['kind']} {document['where']}{numbers} ({until}, {done})"


# ------------------------------------------------------------------------------- what that means


def sides(names: Sequence[str], faults: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Return who can talk to whom, both ways and over others' heads, largest side first."""
    cut = {
        tuple(link.split(":"))
        for fault in faults
        if fault["kind"] in CUTS
        for link in fault["links"]
    }
    left, found = list(names), []
    while left:
        side = [left.pop(0)]
        for one in side:
            near = [name for name in left if not {(one, name), (name, one)} & cut]
            side += near
            left = [name for name in left if name not in near]
        found.append(sorted(side, key=list(names).index))
    return sorted(found, key=len, reverse=True)


def cut_off(names: Sequence[str], faults: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the nodes on sides that have no quorum, empty when nothing is cut."""
    found = sides(names, faults)
    need = len(names) // 2 + 1
    if len(found) == 1:
        return []
    return [name for name in names if any(name in side and len(side) < need for side in found)]


def explain(
    fault: FaultView,
    nodes: Sequence[NodeView],
    leader: str | None,
    timing: Mapping[str, Any],
) -> list[str]:
    """Return what a fault means now: who can talk to whom, and what to expect."""
    low, high = timing.get("election_min_ms", 150), timing.get("election_max_ms", 300)
    match fault.kind:
        case "partition":
            return _partition(fault, nodes, leader, f"{low}–{high}ms")
        case "isolate":
            return _isolate(fault, nodes, leader, f"{low}–{high}ms")
        case "one-way":
            return _one_way(fault, nodes, leader, f"{low}–{high}ms")
        case "delay":
            return _delay(fault, low)
        case _:
            return _some(fault)


def _partition(
    fault: FaultView, nodes: Sequence[NodeView], leader: str | None, election: str
) -> list[str]:
    need = len(nodes) // 2 + 1
    up = {node.name for node in nodes if node.up}
    lines = [
        " and ".join(
            f"{listed(group)} {'is alone' if len(group) == 1 else 'hear each other only'}"
            for group in fault.groups
        )
        + "; clients still reach every node"
    ]
    strong = next((group for group in fault.groups if len(up & set(group)) >= need), None)
    if strong is None:
        lines.append(f"no side has a quorum of {need}: no write is accepted anywhere")
    elif leader is None or leader not in strong:
        old = "" if leader is None else f", and {leader} unable to commit"
        where_is = "nobody leads" if leader is None else f"leader {leader} is in the minority"
        lines.append(
            f"{where_is}; expect a new leader among {listed(strong)} in about {election}{old}"
        )
    else:
        weak = [name for group in fault.groups if group is not strong for name in group]
        lines.append(
            f"leader {leader} keeps a quorum and stays; {listed(weak)} refuse writes and "
            "linearizable reads, and answer --consistency stale"
        )
    return lines


def _isolate(
    fault: FaultView, nodes: Sequence[NodeView], leader: str | None, election: str
) -> list[str]:
    names = [name for group in fault.groups for name in group]
    rest = [node.name for node in nodes if node.up and node.name not in names]
    need = len(nodes) // 2 + 1
    hears, them = ("hears", "it") if len(names) == 1 else ("hear", "them")
    lines = [
        f"{join_and(names)} {hears} nobody and nobody hears {them}; clients still reach {them}"
    ]
    if len(rest) < need:
        lines.append(
            f"only {listed(rest)} can talk to each other; a quorum is {need}: no write is accepted"
        )
    elif leader in names:
        lines.append(
            f"leader {leader} can not commit any more; expect a new leader among "
            f"{listed(rest)} in about {election}"
        )
    else:
        stays = "" if leader is None else f"; leader {leader} stays"
        lines.append(f"{listed(rest)} still have a quorum{stays}")
    return lines


def _one_way(
    fault: FaultView, nodes: Sequence[NodeView], leader: str | None, election: str
) -> list[str]:
    sources = list(dict.fromkeys(one for one, _ in fault.links))
    goals = list(dict.fromkeys(other for _, other in fault.links))
    still = "hears" if len(sources) == 1 else "hear"
    lines = [
        f"{listed(goals)} no longer hear {listed(sources)}; {listed(sources)} still {still} them"
    ]
    if leader is None:
        return lines
    need = len(nodes) // 2 + 1
    deaf = [one for one, other in fault.links if other == leader]
    mute = [other for one, other in fault.links if one == leader]
    if len(nodes) - len(mute) < need:
        lines.append(
            f"leader {leader} is heard by too few: the others elect another one in about {election}"
        )
    elif len(nodes) - len(deaf) < need:
        lines.append(
            f"leader {leader} hears no quorum of answers: it steps down by itself (check_quorum), "
            f"and another one is elected"
        )
    elif mute:
        lines.append(
            f"{listed(mute)} will ask for votes, and be refused by those who hear {leader}"
        )
    return lines


def _delay(fault: FaultView, election_min_ms: int) -> list[str]:
    spread_ms = fault.jitter_ms * (3 if fault.normal else 1)
    low_ms, high_ms = max(0, fault.delay_ms - spread_ms), fault.delay_ms + spread_ms
    late = f"{high_ms}ms" if low_ms == high_ms else f"{low_ms}–{high_ms}ms"
    lines = [f"{_share(fault)} on {where(fault)} arrive {late} late"]
    if high_ms - low_ms >= election_min_ms:
        lines.append(
            f"that varies by more than the shortest election timeout ({election_min_ms}ms): "
            "leaders may be taken for dead; nothing is ever wrong, but little may get done"
        )
    else:
        lines.append("each write that has to pass there takes so much longer")
    return lines


def _some(fault: FaultView) -> list[str]:
    what = {
        "drop": ("are lost", "Raft sends again what was not answered: slower, never wrong"),
        "duplicate": ("arrive twice", "taking a message twice changes nothing"),
        "reorder": ("are overtaken by later ones", "late news is recognised and changes nothing"),
        "corrupt": (
            "arrive damaged",
            "receivers refuse and count them (peer.dropped_… in status --json); as if lost",
        ),
    }[fault.kind]
    lines = [f"{_share(fault)} on {where(fault)} {what[0]}", what[1]]
    if fault.kind in {"drop", "corrupt"} and fault.rate > 0.5:
        lines.append("so few heartbeats pass that elections are likely")
    return lines


def _share(fault: FaultView) -> str:
    kinds = f" ({', '.join(fault.messages)})" if fault.messages else ""
    return ("all messages" if fault.rate == 1 else f"{percent(fault.rate)} of the messages") + kinds


def listed(names: Collection[str]) -> str:
    """Return names for a sentence."""
    return " ".join(names) or "nobody"
