"""`zraft node`: kill, stop, start, pause single processes, by name or by role, and measure it.

Membership is in `zraft.cli.membership`, leadership in `zraft.cli.leadership`.

Who was meant is resolved once, right before acting, and always said. `--wait` measures what the
action cost: from the signal to the new leader's first pre-vote, to its leadership, and to the next
accepted write, all on CLOCK_MONOTONIC.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from zraft import clock
from zraft.api import NodeStatus
from zraft.cli.durations import format_ms, parse_duration_ms
from zraft.cli.errors import EXIT_OK
from zraft.cli.options import Run, command, noun
from zraft.cli.output import printable
from zraft.cli.targets import NodeView, check_term, current_term, leader_of, resolve, views
from zraft.errors import Unavailable, ZraftError

if TYPE_CHECKING:
    from zraft.cli.probe import Accepted
    from zraft.client.control import Cluster
    from zraft.control_api import Action, ActionResult

app = noun(
    "node",
    "Kill, stop, start, pause, add and remove nodes. A target is a name or a role.",
    [
        "zraft node kill leader --wait",
        "zraft node start down",
        "zraft node add",
        "zraft node pause n2,n3 --for 3s",
    ],
    later=(
        "status",
        "watch",
    ),
)

ACTION_TIMEOUT_MS = 30_000
FAILOVER_TIMEOUT_MS = 10_000
CAUGHT_UP_TIMEOUT_MS = 10_000

Targets = Annotated[
    list[str],
    typer.Argument(metavar="TARGET...", help="n1 · n1,n3 · leader · followers · random:2 · down …"),
]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for the failover and measure it.")]
For = Annotated[
    str | None, typer.Option("--for", metavar="TIME", help="Undo it after this time: 3s.")
]
ExpectTerm = Annotated[
    int | None,
    typer.Option("--expect-term", metavar="N", help="Act only in this term; else exit 5."),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Make random targets repeatable.")]


class Aim(NamedTuple):
    """Who is meant, and what was known at that moment."""

    cluster: Cluster
    target: str
    names: list[str]
    nodes: list[NodeView]
    statuses: Mapping[str, NodeStatus | None]

    @property
    def leader(self) -> str | None:
        """Return the leader before the action."""
        return leader_of(self.nodes)

    @property
    def term(self) -> int:
        """Return the term before the action."""
        return current_term(self.nodes)

    def described(self, name: str) -> str:
        """Return what is known of a node, for a sentence: `leader of term 4`."""
        status = self.statuses.get(name)
        return "" if status is None else f"{status.role} of term {status.term}"


def aim(run: Run, targets: Sequence[str], expect_term: int | None, seed: int | None) -> Aim:
    """Ask all nodes and resolve the targets."""
    from zraft.client.control import Cluster

    cluster = Cluster.open(run.cluster, run.environ)
    statuses = cluster.statuses()
    nodes = views(statuses, cluster.table())
    check_term(expect_term, nodes)
    names = resolve(targets, nodes, random.Random(seed))
    return Aim(cluster, ",".join(targets), names, nodes, statuses)


def raise_failures(results: Sequence[ActionResult]) -> None:
    """Raise the first failure of an action, if there is one, with its own code and exit code."""
    failed = [result for result in results if result.failure is not None]
    if not failed:
        return
    failure = failed[0].failure
    assert failure is not None
    others = [result.name for result in failed[1:]]
    why = failure.why + (f"; the same or worse for {', '.join(others)}" if others else "")
    name = failed[0].name
    what = failure.message if failure.message.startswith(name) else f"{name}: {failure.message}"
    error = ZraftError(what, why=why, try_=tuple(failure.try_))
    error.code = failure.code  # type: ignore[misc]  # the node's own code, passed on
    error.exit_code = failure.exit_code  # type: ignore[misc]  # likewise
    raise error


# ---------------------------------------------------------------------------------------- list


@command(app, "node list", examples=["zraft node list", "zraft node list -o wide"])
def list_(run: Run) -> int:
    """List the nodes: process, role, term and why one is down. Starts nothing."""
    from zraft.cli.cluster import observe
    from zraft.cli.status import print_nodes
    from zraft.client.control import Cluster

    cluster = Cluster.open(run.cluster, run.environ)
    status = observe(cluster, run.timeout_ms(1_000))
    document = {
        "schema": "zraft.node.list/1",
        "ok": True,
        "cluster": run.cluster,
        "leader": status["leader"],
        "term": status["term"],
        "nodes": status["nodes"],
    }
    run.out.result(document, lambda: print_nodes(status["nodes"], run.out))
    return EXIT_OK


# ------------------------------------------------------------------- kill, stop, pause: break it


@command(
    app,
    "node kill",
    examples=[
        "zraft node kill leader --wait",
        "zraft node kill random:2 --seed 7",
        "zraft node kill leader --expect-term 4 --for 3s",
    ],
)
def kill(
    run: Run,
    targets: Targets,
    wait: Wait = False,
    signal: Annotated[
        str | None, typer.Option("--signal", metavar="NAME", help="Another one than SIGKILL.")
    ] = None,
    undo_after: For = None,
    expect_term: ExpectTerm = None,
    seed: Seed = None,
) -> int:
    """Kill processes (SIGKILL). They stay down until started. --wait measures the failover."""
    return _break(
        run, "kill", aim(run, targets, expect_term, seed), wait, undo_after, signal=signal
    )


@command(
    app,
    "node stop",
    examples=["zraft node stop n3", "zraft node stop leader --wait"],
    later=("--no-transfer",),
)
def stop(
    run: Run,
    targets: Targets,
    wait: Wait = False,
    undo_after: For = None,
    expect_term: ExpectTerm = None,
    seed: Seed = None,
) -> int:
    """Stop nodes in order: leadership given up, requests answered. They stay down until started."""
    return _break(run, "stop", aim(run, targets, expect_term, seed), wait, undo_after)


@command(app, "node pause", examples=["zraft node pause leader --for 3s", "zraft node pause n2"])
def pause(
    run: Run,
    targets: Targets,
    wait: Wait = False,
    undo_after: For = None,
    expect_term: ExpectTerm = None,
    seed: Seed = None,
) -> int:
    """Pause processes (SIGSTOP): they hang, as a machine that is stuck. Resume: node resume."""
    return _break(run, "pause", aim(run, targets, expect_term, seed), wait, undo_after)


def _break(
    run: Run,
    action: Action,
    goal: Aim,
    wait: bool,
    undo_after: str | None,
    signal: str | None = None,
) -> int:
    """Kill, stop or pause; with `wait`, measure until writes are accepted again."""
    from zraft.cli.probe import WriteProbe

    for_ms = None if undo_after is None else parse_duration_ms(undo_after, "--for")
    timeout_ms = run.timeout_ms(ACTION_TIMEOUT_MS)
    survivors = [node.name for node in goal.nodes if node.up and node.name not in goal.names]
    document: dict[str, Any] = {}
    if wait and goal.names:
        with WriteProbe(goal.cluster.file, survivors) as probe:
            results = _do(goal, action, for_ms, signal, timeout_ms)
            accepted = probe.first_accepted(run.timeout_ms(FAILOVER_TIMEOUT_MS))
        started_ns = min((r.mono_ns for r in results if r.mono_ns is not None), default=None)
        if started_ns is not None and accepted is not None:
            document = measured(started_ns, accepted, goal.cluster.statuses())
            document["unavailable_at_most"] = action == "stop"  # asked only once it had ended
    else:
        results = _do(goal, action, for_ms, signal, timeout_ms)
        accepted = None
    document = {**action_document(action, goal, results, for_ms), **document}

    def human() -> None:
        for line in action_lines(action, goal, results, document, for_ms):
            run.out.line(line)

    run.out.result(document, human)
    raise_failures(results)
    if wait and goal.names and accepted is None:
        raise Unavailable(
            "no write was accepted afterwards",
            why=f"{len(survivors)} of {len(goal.nodes)} nodes are left ({', '.join(survivors)}), "
            f"a quorum is {len(goal.nodes) // 2 + 1}",
            try_=(f"zraft node {_opposite(action)} {','.join(goal.names)}{run.suffix}",),
        )
    if wait is False and goal.leader in goal.names:
        run.out.hint(f"watch the failover: zraft cluster status{run.suffix}")
    return EXIT_OK


def _do(
    goal: Aim, action: Action, for_ms: int | None, signal: str | None, timeout_ms: int
) -> list[ActionResult]:
    if not goal.names:
        return []
    return goal.cluster.act(action, goal.names, for_ms=for_ms, signal=signal, timeout_ms=timeout_ms)


def measured(
    started_ns: int,
    accepted: Accepted,
    after: Mapping[str, NodeStatus | None],
) -> dict[str, Any]:
    """Return the times of a failover in ms, from the signal on; null for what did not happen."""
    leaders = [
        status for status in after.values() if status is not None and status.role == "leader"
    ]
    leader = max(leaders, key=lambda status: status.term, default=None)
    unavailable_ms = max(0, round((accepted.mono_ns - started_ns) / 1e6))
    fields: dict[str, Any] = {
        "failover_ms": None,
        "detected_ms": None,
        "election_ms": None,
        "unavailable_ms": unavailable_ms,
        "new": {
            "leader": leader.name if leader else None,
            "term": leader.term if leader else accepted.term,
        },
    }
    since_ns = leader.leader_since_mono_ns if leader else None
    if leader is None or since_ns is None or since_ns < started_ns:
        return fields  # the leader was another node: nothing to elect
    campaign_ns = leader.election_started_mono_ns or since_ns
    fields["failover_ms"] = round((since_ns - started_ns) / 1e6)
    fields["detected_ms"] = min(
        fields["failover_ms"], max(0, round((campaign_ns - started_ns) / 1e6))
    )
    fields["election_ms"] = fields["failover_ms"] - fields["detected_ms"]
    return fields


def action_document(
    action: str, goal: Aim, results: Sequence[ActionResult], for_ms: int | None
) -> dict[str, Any]:
    """Return the document of an action on nodes, without measurements."""
    signals = {result.signal for result in results if result.signal is not None}
    return {
        "schema": "zraft.node.action/1",
        "ok": all(result.failure is None for result in results),
        "action": action,
        "target": goal.target,
        "resolved": goal.names,
        "signal": signals.pop() if len(signals) == 1 else None,
        "for_ms": for_ms,
        "old": {"leader": goal.leader, "term": goal.term},
        "results": [
            {
                "name": result.name,
                "changed": result.changed,
                "pid": result.pid,
                "signal": result.signal,
                "exit_code": result.exit_code,
                "incarnation": result.incarnation,
                "message": result.failure.message if result.failure else result.message,
                "error": result.failure.code if result.failure else None,
            }
            for result in results
        ],
    }


_DONE = {"kill": "killed", "stop": "stopped", "pause": "paused", "resume": "resumed"}


def _opposite(action: str) -> str:
    return "resume" if action == "pause" else "start"


def action_lines(
    action: str,
    goal: Aim,
    results: Sequence[ActionResult],
    document: Mapping[str, Any],
    for_ms: int | None,
) -> list[str]:
    """Return what happened, in sentences: one per node, the failover on the first leader's."""
    if not results:
        return [f"nothing to {action}: {goal.target} means no node now"]
    lines = []
    for result in results:
        if result.failure is not None:
            continue
        if not result.changed:
            lines.append(f"{result.name}: {result.message or 'it was so already'}")
            continue
        facts = [goal.described(result.name), f"pid {result.pid}", result.signal or ""]
        told = ", ".join(fact for fact in facts if fact)
        lasting = "" if for_ms is None else f" for {format_ms(for_ms)}"
        lines.append(f"{_DONE[action]} {result.name} ({told}){lasting}")
    if "unavailable_ms" in document:
        lines[-1] += f" {failover_text(document)}"
    return [printable(line) for line in lines]


def failover_text(document: Mapping[str, Any]) -> str:
    """Return what the failover cost."""
    new = document["new"]
    bound = "at most " if document["unavailable_at_most"] else ""
    unavailable = f"writes unavailable {bound}{document['unavailable_ms']}ms"
    if document["failover_ms"] is None:
        return f"→ {new['leader'] or 'nobody'} leads term {new['term']} as before ({unavailable})"
    return (
        f"→ {new['leader']} leader in term {new['term']} after {document['failover_ms']}ms"
        f" (detected {document['detected_ms']}ms, election {document['election_ms']}ms;"
        f" {unavailable})"
    )


# ------------------------------------------------------------- start, restart, resume: repair it


@command(app, "node start", examples=["zraft node start n3", "zraft node start down"])
def start(run: Run, targets: Targets, seed: Seed = None) -> int:
    """Start nodes that are down and wait until they have caught up."""
    return _repair(run, "start", aim(run, targets, None, seed))


@command(app, "node restart", examples=["zraft node restart n3", "zraft node restart followers"])
def restart(run: Run, targets: Targets, expect_term: ExpectTerm = None, seed: Seed = None) -> int:
    """Stop nodes in order, start them again, and wait until they have caught up."""
    return _repair(run, "restart", aim(run, targets, expect_term, seed))


@command(app, "node resume", examples=["zraft node resume n2", "zraft node resume all"])
def resume(run: Run, targets: Targets, seed: Seed = None) -> int:
    """Let paused processes go on (SIGCONT)."""
    return _repair(run, "resume", aim(run, targets, None, seed))


def _repair(run: Run, action: Action, goal: Aim) -> int:
    from zraft.cli.catchup import caught_up_lines, wait_caught_up

    begun_ms = clock.monotonic_ms()
    caught = []
    with run.out.working(f"{action} {' '.join(goal.names)}"):
        results = _do(goal, action, None, None, run.timeout_ms(ACTION_TIMEOUT_MS))
        changed = [result for result in results if result.changed and result.failure is None]
        if action != "resume":
            run.out.progress("catching up")
            caught = wait_caught_up(goal.cluster, changed, CAUGHT_UP_TIMEOUT_MS)
    document = action_document(action, goal, results, None)
    document["caught_up"] = [one._asdict() for one in caught]
    document["elapsed_ms"] = clock.monotonic_ms() - begun_ms

    def human() -> None:
        told = {one.name for one in caught}
        rest = [result for result in results if result.name not in told]
        for line in caught_up_lines(caught):
            run.out.line(line)
        if rest or not results:
            for line in action_lines(action, goal, rest, document, None):
                run.out.line(line)

    run.out.result(document, human)
    raise_failures(results)
    return EXIT_OK


# ----------------------------------------------------------------------------------------- inspect


@command(
    app,
    "node inspect",
    examples=[
        "zraft node inspect n2 meta",
        "zraft node inspect n2 wal --last 4",
        "zraft node inspect n2 wal --index 100..120 --json",
    ],
)
def inspect(
    run: Run,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="n2 · leader · …: one node.")],
    part: Annotated[str, typer.Argument(metavar="PART", help="meta · wal · snapshot")] = "meta",
    last: Annotated[
        int | None, typer.Option("--last", metavar="N", help="wal: the newest N entries.")
    ] = None,
    index: Annotated[
        str | None, typer.Option("--index", metavar="A..B", help="wal: these entries.")
    ] = None,
) -> int:
    """Show what a node's disk says, running or not: identity, votes, log. Repairs nothing."""
    from zraft.cli.inspect import inspect_node

    return inspect_node(run, target, part, last=last, index=index)
