"""`zraft fault`: break the network between nodes, in words that say what it does.

Faults act inside the nodes' transport, not in the kernel: no root, and nothing else on this machine
is touched. The first one is `isolate`: a node neither hears nor is heard by its peers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from zraft.api import ControlDone, Heal, Isolate
from zraft.cli.durations import format_ms, parse_duration_ms
from zraft.cli.errors import EXIT_OK
from zraft.cli.node import Aim, ExpectTerm, Seed, Targets, aim
from zraft.cli.options import Run, command, noun
from zraft.cli.output import join_and
from zraft.errors import ControlError

app = noun(
    "fault",
    "Break the network between nodes, and heal it.",
    ["zraft fault isolate leader --for 10s", "zraft fault heal --all"],
    later=(
        "partition",
        "one-way",
        "drop",
        "delay",
        "duplicate",
        "reorder",
        "corrupt",
        "bandwidth",
        "hold",
        "release",
        "slow-disk",
        "disk-full",
        "fsync-error",
        "torn-write",
        "lose-unsynced",
        "bit-rot",
        "clock-skew",
        "clock-jump",
        "stall",
        "crash-at",
        "list",
        "run",
    ),
)

SCHEMA = "zraft.fault.action/1"


@command(
    app,
    "fault isolate",
    examples=["zraft fault isolate leader --for 10s", "zraft fault isolate n1"],
)
def isolate(
    run: Run,
    targets: Targets,
    undo_after: Annotated[
        str | None, typer.Option("--for", metavar="TIME", help="Heal it after this time: 10s.")
    ] = None,
    expect_term: ExpectTerm = None,
    seed: Seed = None,
) -> int:
    """Cut nodes off: each neither hears nor is heard by any other node. Clients still reach it."""
    goal = aim(run, targets, expect_term, seed)
    for_ms = None if undo_after is None else parse_duration_ms(undo_after, "--for")
    for name in goal.names:
        goal.cluster.ask(name, Isolate(peers=[], for_ms=for_ms))
    words = effect(goal, goal.cluster.file.settings.get("timing", {}))
    document = {
        "schema": SCHEMA,
        "ok": True,
        "action": "isolate",
        "target": goal.target,
        "resolved": goal.names,
        "for_ms": for_ms,
        "old": {"leader": goal.leader, "term": goal.term},
        "note": " ".join(words),
        "faults": [
            {"id": f"isolate-{name}", "kind": "isolate", "node": name} for name in goal.names
        ],
    }

    def human() -> None:
        if not goal.names:
            run.out.line(f"nothing to isolate: {goal.target} means no node now")
            return
        lasting = "until healed" if for_ms is None else f"for {format_ms(for_ms)}"
        told = [
            f"{name} ({goal.described(name)})" if goal.described(name) else name
            for name in goal.names
        ]
        run.out.line(f"isolated {join_and(told)} {lasting}")
        for line in words:
            run.out.line(f"  note: {line}")
        run.out.line(f"  heal: zraft fault heal --all{run.suffix}")

    run.out.result(document, human)
    return EXIT_OK


def effect(goal: Aim, timing: Mapping[str, Any]) -> list[str]:
    """Say what the isolation means for those who are cut off and for the others."""
    if not goal.names:
        return []
    rest = [node.name for node in goal.nodes if node.up and node.name not in goal.names]
    need = len(goal.nodes) // 2 + 1
    one = len(goal.names) == 1
    hears, them = ("hears", "it") if one else ("hear", "them")
    lines = [
        f"{join_and(goal.names)} {hears} nobody and nobody hears {them}; clients still reach {them}"
    ]
    if len(rest) < need:
        lines.append(
            f"only {_listed(rest)} can talk to each other; a quorum is {need}: no write is accepted"
        )
    elif goal.leader in goal.names:
        low, high = timing.get("election_min_ms", 150), timing.get("election_max_ms", 300)
        lines.append(
            f"leader {goal.leader} can not commit any more; expect a new leader among "
            f"{_listed(rest)} in about {low}–{high}ms"
        )
    else:
        lines.append(f"{_listed(rest)} still have a quorum; leader {goal.leader} stays")
    return lines


def _listed(names: Sequence[str]) -> str:
    return " ".join(names) or "nobody"


@command(
    app,
    "fault heal",
    examples=["zraft fault heal --all", "zraft fault heal n3"],
    later=("--kind",),
)
def heal(
    run: Run,
    targets: Annotated[
        list[str] | None, typer.Argument(metavar="[TARGET]...", help="Nodes to heal.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Heal every node.")] = False,
    seed: Seed = None,
) -> int:
    """Remove the network faults of nodes."""
    if everything == bool(targets):
        raise ControlError(
            "say what to heal",
            why="either --all or targets",
            try_=("zraft fault heal --all", "zraft fault heal n3"),
        )
    goal = aim(run, targets or ["up"], None, seed)
    before = {
        name: len(status.faults) if (status := goal.statuses[name]) is not None else 0
        for name in goal.names
    }
    replies = goal.cluster.ask_all(goal.names, Heal()) if goal.names else {}
    healed = [name for name, reply in replies.items() if isinstance(reply, ControlDone)]
    missed = [name for name in replies if name not in healed]
    document = {
        "schema": SCHEMA,
        "ok": not missed,
        "action": "heal",
        "target": "all" if everything else goal.target,
        "resolved": goal.names,
        "healed": {name: before[name] for name in healed},
        "no_answer": missed,
    }

    def human() -> None:
        removed = sum(before[name] for name in healed)
        had = [name for name in healed if before[name]]
        if removed:
            run.out.line(f"healed {join_and(had)}: {removed} fault{'s' if removed > 1 else ''} off")
        else:
            run.out.line("nothing to heal: no node has a fault")

    run.out.result(document, human)
    if missed:
        raise ControlError(
            f"{join_and(missed)} did not answer and may keep a fault",
            try_=f"zraft cluster status{run.suffix}",
        )
    return EXIT_OK
