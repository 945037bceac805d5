"""`zraft fault`: break the network between nodes, and crash nodes at chosen points, in words.

Faults act inside the nodes' transport, not in the kernel: no root, and nothing else on this machine
is touched. They can not show what tcp itself would do (retransmission, reset connections). A fault
is held by the supervisor, has an id, and stays until it is healed or its time is up.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from zraft.api import CrashAt, Heal
from zraft.cli.durations import format_ms, parse_duration_ms
from zraft.cli.errors import EXIT_OK
from zraft.cli.fault_words import (
    explain,
    fault_document,
    hits,
    params,
    parse_kind,
    parse_links,
    parse_messages,
    parse_ms,
    parse_rate,
    where,
)
from zraft.cli.node import Aim, ExpectTerm, Seed, Targets, aim
from zraft.cli.options import Run, command, noun
from zraft.cli.output import join_and, plural
from zraft.cli.targets import resolve
from zraft.client.faults import CLI, FaultView
from zraft.errors import ControlError, NotRunning

app = noun(
    "fault",
    "Break the network between nodes, and heal it.",
    [
        "zraft fault partition n1,n2",
        "zraft fault isolate leader --for 10s",
        "zraft fault drop --link leader:followers --rate 30%",
        "zraft fault heal --all",
    ],
    later=(
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
        "run",
    ),
)

SCHEMA = "zraft.faults/1"
COLUMNS = ("ID", "KIND", "WHERE", "PARAMS", "BY", "AGE", "LEFT", "HITS")

For = Annotated[
    str | None, typer.Option("--for", metavar="TIME", help="Heal it after this time: 10s.")
]
Links = Annotated[
    list[str] | None,
    typer.Option("--link", metavar="FROM:TO", help="n1:n2 · leader:followers · '*:n3' · '*'."),
]
Rate = Annotated[str, typer.Option("--rate", metavar="PART", help="Of the messages: 30% or 0.3.")]
Rpc = Annotated[str | None, typer.Option("--rpc", help="Only append, only vote, or only snapshot.")]
Kind = Annotated[str | None, typer.Option("--kind", help="Only request, or only reply.")]


def take_aim(run: Run, targets: Sequence[str], expect_term: int | None, seed: int | None) -> Aim:
    """Resolve targets; NotRunning when no node is there to be broken."""
    goal = aim(run, targets, expect_term, seed)
    if not any(node.alive for node in goal.nodes):
        raise NotRunning(
            f'no node of cluster "{run.cluster}" runs', try_=f"zraft cluster up{run.suffix}"
        )
    return goal


def told(run: Run, goal: Aim, fault: FaultView, what: str, target: str) -> int:
    """Say what was done and what it means."""
    words = explain(fault, goal.nodes, goal.leader, goal.cluster.file.settings.get("timing", {}))
    document = {
        "schema": SCHEMA,
        "ok": not fault.missed,
        "action": fault.kind,
        "id": fault.id,
        "target": target,
        "resolved": goal.names or [f"{one}:{other}" for one, other in fault.links],
        "for_ms": None if fault.left_ms is None else fault.age_ms + fault.left_ms,
        "old": {"leader": goal.leader, "term": goal.term},
        "note": "; ".join(words),
        "replaced": fault.replaced,
        "missed": fault.missed,
        "faults": [fault_document(fault)],
    }

    def human() -> None:
        run.out.line(f"{fault.id} {what}   heal: zraft fault heal {fault.id}{run.suffix}")
        for line in words:
            run.out.line(f"  note: {line}")
        if fault.replaced:
            run.out.line(f"  replaces {join_and(fault.replaced)}; keep both: --add")
        if fault.missed:
            run.out.line(
                f"  {join_and(fault.missed)} did not answer, and get it as soon as they do"
            )

    run.out.result(document, human)
    return EXIT_OK


def lasting(for_ms: int | None) -> str:
    """Say how long."""
    return "until healed" if for_ms is None else f"for {format_ms(for_ms)}"


def for_ms_of(text: str | None) -> int | None:
    """Return `--for` in milliseconds."""
    return None if text is None else parse_duration_ms(text, "--for")


# --------------------------------------------------------------------------------------- cut links


@command(
    app,
    "fault partition",
    examples=[
        "zraft fault partition n1,n2",
        "zraft fault partition n1,n2 n3,n4 --for 30s",
        "zraft fault partition leader+1",
    ],
    later=("--shape",),
)
def partition(
    run: Run,
    groups: Annotated[
        list[str], typer.Argument(metavar="GROUP...", help="Targets; the rest is one more group.")
    ],
    undo_after: For = None,
    add: Annotated[bool, typer.Option("--add", help="Keep the partitions that there are.")] = False,
    expect_term: ExpectTerm = None,
    seed: Seed = None,
) -> int:
    """Split the network: each group hears itself only. Takes the place of an earlier partition."""
    for_ms = for_ms_of(undo_after)
    goal = take_aim(run, ["all"], expect_term, seed)
    rng = random.Random(seed)
    parts = [resolve([group], goal.nodes, rng) for group in groups]
    goal = goal._replace(names=[name for part in parts for name in part])
    fault = goal.cluster.faults.partition(parts, for_ms=for_ms, owner=CLI, add=add)
    shown = " | ".join("{" + ",".join(group) + "}" for group in fault.groups)
    return told(run, goal, fault, f"partition {shown} {lasting(for_ms)}", " ".join(groups))


@command(
    app,
    "fault isolate",
    examples=["zraft fault isolate leader --for 10s", "zraft fault isolate n1"],
)
def isolate(
    run: Run,
    targets: Targets,
    undo_after: For = None,
    expect_term: ExpectTerm = None,
    seed: Seed = None,
) -> int:
    """Cut nodes off: each neither hears nor is heard by any other node. Clients still reach it."""
    for_ms = for_ms_of(undo_after)
    goal = take_aim(run, targets, expect_term, seed)
    if not goal.names:
        raise ControlError(f"nothing to isolate: {goal.target} means no node now")
    fault = goal.cluster.faults.isolate(goal.names, for_ms=for_ms, owner=CLI)
    names = [
        f"{name} ({goal.described(name)})" if goal.described(name) else name for name in goal.names
    ]
    return told(run, goal, fault, f"isolated {join_and(names)} {lasting(for_ms)}", goal.target)


@command(
    app,
    "fault one-way",
    examples=["zraft fault one-way --from n2 --to all", "zraft fault one-way --link leader:n3"],
)
def one_way(
    run: Run,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="TARGET", help="Who is not heard any more.")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="TARGET", help="Who does not hear them.")
    ] = None,
    link: Links = None,
    undo_after: For = None,
    expect_term: ExpectTerm = None,
    seed: Seed = None,
) -> int:
    """Cut one direction only: nothing passes FROM → TO, everything passes back."""
    if (from_ is None) != (to is None) or (from_ is None) == (not link):
        raise ControlError(
            "say which direction",
            why="either --from and --to, or --link",
            try_="zraft fault one-way --from n2 --to all",
        )
    for_ms = for_ms_of(undo_after)
    goal = take_aim(run, ["all"], expect_term, seed)._replace(names=[])
    words = link or [f"{from_}:{to}"]
    links = parse_links(words, goal.nodes, random.Random(seed))
    fault = goal.cluster.faults.one_way_links(links, for_ms=for_ms, owner=CLI)
    return told(run, goal, fault, f"one-way {where(fault)} {lasting(for_ms)}", " ".join(words))


# --------------------------------------------------------------------------------------- bad links


def _bad(
    run: Run,
    kind: str,
    link: list[str] | None,
    rate: str,
    chosen: Sequence[str],
    undo_after: str | None,
    seed: int | None,
    **more: Any,
) -> int:
    """Do what drop, delay, duplicate, reorder and corrupt have in common."""
    for_ms, part = for_ms_of(undo_after), parse_rate(rate)
    if not link:
        raise ControlError(
            "say which links",
            why="--link FROM:TO is missing",
            try_=(f"zraft fault {kind} --link n1:n2", f"zraft fault {kind} --link '*'"),
        )
    goal = take_aim(run, ["all"], None, seed)._replace(names=[])
    links = parse_links(link, goal.nodes, random.Random(seed))
    break_ = getattr(goal.cluster.faults, kind)
    more |= {"rate": part, "messages": chosen, "seed": seed or 0, "for_ms": for_ms, "owner": CLI}
    fault: FaultView = break_(links, **more)
    numbers = params(fault)
    return told(
        run, goal, fault, f"{kind} {where(fault)} {numbers} {lasting(for_ms)}", " ".join(link)
    )


@command(
    app,
    "fault delay",
    examples=[
        "zraft fault delay --link '*' --ms 200 --jitter 50 --dist normal",
        "zraft fault delay --link leader:n3 --ms 80 --for 1m",
    ],
)
def delay(
    run: Run,
    ms: Annotated[str, typer.Option("--ms", metavar="N", help="So many milliseconds: 200.")],
    jitter: Annotated[
        str, typer.Option("--jitter", metavar="N", help="More or less by so many milliseconds.")
    ] = "0",
    dist: Annotated[
        str, typer.Option("--dist", help="uniform, or normal: the jitter is a deviation.")
    ] = "uniform",
    rate: Rate = "100%",
    link: Links = None,
    rpc: Rpc = None,
    kind: Kind = None,
    undo_after: For = None,
    seed: Seed = None,
) -> int:
    """Hold messages on some links for a time."""
    if dist not in {"uniform", "normal"}:
        raise ControlError(f'--dist: there is no "{dist}"', try_="--dist uniform   --dist normal")
    chosen = parse_messages(rpc, kind)
    return _bad(
        run,
        "delay",
        link,
        rate,
        chosen,
        undo_after,
        seed,
        delay_ms=parse_ms(ms, "--ms"),
        jitter_ms=parse_ms(jitter, "--jitter"),
        normal=dist == "normal",
    )


def _register(kind: str, text: str, example: str) -> None:
    """Register a verb that does something to a part of the messages."""

    def verb(
        run: Run,
        rate: Rate,
        link: Links = None,
        rpc: Rpc = None,
        kind_: Kind = None,
        undo_after: For = None,
        seed: Seed = None,
    ) -> int:
        return _bad(run, kind, link, rate, parse_messages(rpc, kind_), undo_after, seed)

    verb.__doc__ = text
    command(app, f"fault {kind}", examples=[f"zraft fault {kind} --link {example}"])(verb)


_register(
    "drop",
    "Lose a part of the messages on some links.",
    "n5:followers --rate 30% --rpc append --kind reply",
)
_register("duplicate", "Send a part of the messages twice.", "'*' --rate 5%")
_register(
    "reorder",
    "Hold a part of the messages for a moment, so that later ones overtake them.",
    "'*' --rate 20%",
)
_register(
    "corrupt",
    "Damage bytes of a part of the messages; the receivers refuse and count them.",
    "'*' --rate 5%",
)


# ------------------------------------------------------------------------------------- list, heal


@command(app, "fault list", examples=["zraft fault list", "zraft fault list --json"])
def list_(run: Run) -> int:
    """List the faults in force, with what each has done so far. Starts nothing."""
    from zraft.client.control import Cluster

    faults = Cluster.open(run.cluster, run.environ).faults.list()
    document = {"schema": SCHEMA, "ok": True, "faults": [fault_document(f) for f in faults]}
    rows = [
        [
            fault.id,
            fault.kind,
            where(fault),
            params(fault),
            fault.by,
            format_ms(fault.age_ms),
            "∞" if fault.left_ms is None else format_ms(fault.left_ms),
            hits(fault),
        ]
        for fault in faults
    ]

    def human() -> None:
        if rows or run.out.mode == "plain":
            run.out.table(COLUMNS, rows)
        else:
            run.out.message("no fault is in force")

    run.out.result(document, human)
    return EXIT_OK


@command(
    app,
    "fault heal",
    examples=["zraft fault heal f1", "zraft fault heal --all", "zraft fault heal --kind delay"],
)
def heal(
    run: Run,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Faults by id: f1 f2.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Heal all of them.")] = False,
    kind: Annotated[str | None, typer.Option("--kind", help="All of one kind: delay.")] = None,
) -> int:
    """End faults by id, by kind, or all of them."""
    from zraft.client.control import Cluster

    if [bool(ids), everything, kind is not None].count(True) != 1:
        raise ControlError(
            "say what to heal",
            why="either ids, or --kind, or --all",
            try_=("zraft fault heal f1", "zraft fault heal --all"),
        )
    cluster = Cluster.open(run.cluster, run.environ)
    wanted = [part for word in ids or [] for part in word.split(",") if part]
    healed = cluster.faults.heal(*wanted, kind=parse_kind(kind))
    if everything:
        healed += heal_own(cluster)
    missed = healed[0].missed if healed else []
    document = {
        "schema": SCHEMA,
        "ok": not missed,
        "action": "heal",
        "healed": [fault.id for fault in healed],
        "missed": missed,
        "faults": [fault_document(fault) for fault in cluster.faults.list()],
    }

    def human() -> None:
        if not healed:
            run.out.line("nothing to heal: there is no such fault in force")
        for fault in healed:
            run.out.line(f"healed {fault.id} {fault.kind} {where(fault)} ({hits(fault)})")

    run.out.result(document, human)
    if missed:
        raise ControlError(
            f"{join_and(missed)} did not answer and may keep a fault for a moment",
            try_=f"zraft cluster status{run.suffix}",
        )
    return EXIT_OK


def heal_own(cluster: Any) -> list[FaultView]:
    """End faults that were told to single nodes, past the supervisor; return them."""
    from zraft.client.faults import faults_of

    statuses = cluster.statuses()
    own = [fault for fault in faults_of(statuses) if fault.by == "control"]
    names = [name for name, status in statuses.items() if status is not None and status.faults]
    if own:
        cluster.ask_all(names, Heal())
    return own


# ------------------------------------------------------------------------------------ crash points


@command(
    app,
    "fault crash-at",
    examples=["zraft fault crash-at n3 wal.batch.written", "zraft fault crash-at --list"],
)
def crash_at(
    run: Run,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="TARGET [POINT]", help="Who, and where.")
    ] = None,
    point: Annotated[str | None, typer.Option("--point", help="Where.")] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the points.")] = False,
    expect_term: ExpectTerm = None,
    seed: Seed = None,
) -> int:
    """Let nodes kill themselves (SIGKILL) when they next come to a point of their code."""
    if listing:
        return crash_points(run)
    given = list(words or [])
    if point is None and len(given) == 2:
        point = given.pop()
    if point is None or len(given) != 1:
        raise ControlError(
            "say who and where",
            why="a target and a point",
            try_=("zraft fault crash-at n3 wal.batch.written", "zraft fault crash-at --list"),
        )
    goal = take_aim(run, given, expect_term, seed)
    for name in goal.names:
        goal.cluster.ask(name, CrashAt(point))
    document = {
        "schema": "zraft.fault.crash/1",
        "ok": True,
        "action": "crash-at",
        "target": goal.target,
        "resolved": goal.names,
        "point": point,
    }

    def human() -> None:
        from zraft.crashpoints import POINTS

        run.out.line(f"{join_and(goal.names)} will die at {point}: {POINTS.get(point, '')}")
        run.out.line("  note: as by kill -9; the supervisor starts it again, without the point")

    run.out.result(document, human)
    return EXIT_OK


@command(app, "fault crash-points", examples=["zraft fault crash-points"])
def crash_points(run: Run) -> int:
    """List the points where a node can be told to die."""
    from zraft.crashpoints import POINTS

    document = {
        "schema": "zraft.fault.crash-points/1",
        "ok": True,
        "points": [{"name": name, "meaning": text} for name, text in POINTS.items()],
    }

    def human() -> None:
        run.out.table(("POINT", "MEANING"), [[name, text] for name, text in POINTS.items()])
        if run.out.mode != "plain":
            run.out.line(f"{plural(len(POINTS), 'point')}; zraft fault crash-at n3 POINT")

    run.out.result(document, human)
    return EXIT_OK
