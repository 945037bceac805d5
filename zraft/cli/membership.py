"""`zraft node add | remove | replace | promote | demote`: who is a member, and how it becomes one.

The change goes through the log (Raft §6); this module says who is meant, asks before something is
lost, shows how far a new node has caught up, and what came of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zraft import clock
from zraft.cli.confirm import confirm, confirm_by_name
from zraft.cli.durations import format_ms
from zraft.cli.errors import EXIT_OK
from zraft.cli.node import Aim, ExpectTerm, aim, app
from zraft.cli.options import Run, command
from zraft.cli.output import join_and, plural
from zraft.errors import ControlError, MembershipRefused

if TYPE_CHECKING:
    from zraft.client.control import MemberEvent, MemberResult

TIMEOUT_MS = 120_000
TOLD_EVERY_MS = 1_000

Target = Annotated[str, typer.Argument(metavar="TARGET", help="One node: n3 · leader · down …")]
Waits = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Wait until it is a voter. It goes on anyway.")
]
Force = Annotated[
    bool, typer.Option("--force", help="Also when the voters that are left are no quorum.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def one(goal: Aim) -> str:
    """Return the one node that is meant; ControlError when it is none or several."""
    if len(goal.names) != 1:
        raise ControlError(
            f'"{goal.target}" means {join_and(goal.names) or "no node"}; this takes one at a time',
            why="one change of membership is under way at a time (Raft §6)",
            try_="zraft node list",
        )
    return goal.names[0]


class Steps:
    """Tells how far a change is: on a terminal's last line, elsewhere once a second."""

    def __init__(self, run: Run) -> None:
        self._out = run.out
        self._told_ms = clock.monotonic_ms()

    def __call__(self, event: MemberEvent) -> None:
        """Take one step."""
        text = step_text(event)
        self._out.progress(text)
        if self._out.interactive or self._out.machine:
            return
        now_ms = clock.monotonic_ms()
        lasting = event.kind in {"waiting", "catching-up"}
        if lasting and now_ms - self._told_ms < TOLD_EVERY_MS:
            return
        self._told_ms = now_ms
        self._out.message(text)


def step_text(event: MemberEvent) -> str:
    """Return a step as a sentence."""
    from zraft.client.members import progress_text

    match event.kind:
        case "started":
            return f"{event.name} runs"
        case "waiting":
            return f"{event.name}: waiting: {event.message}"
        case "joined":
            return f"{event.name} joined; it listens and does not vote yet"
        case "catching-up":
            return f"{event.name} {progress_text(event)}"
        case "promoted":
            return f"{event.name} has caught up"
        case "out":
            return f"{event.name} is out of the configuration"
        case "stopped":
            return f"{event.name} stopped"


def member_document(result: MemberResult, target: str) -> dict[str, Any]:
    """Return the document of a change of membership."""
    return {
        "schema": "zraft.node.action/1",
        "ok": True,
        "action": result.action,
        "target": target,
        "resolved": [result.name],
        "signal": None,
        "old": {"leader": result.old_leader, "term": result.old_term},
        "new": {"leader": result.leader, "term": result.term},
        "role": result.role,
        "member_id": result.member_id,
        "config_index": result.config_index,
        "voters": result.voters,
        "learners": result.learners,
        "caught_up_ms": result.caught_up_ms,
        "data": result.data,
        "elapsed_ms": result.elapsed_ms,
        "results": [{"name": result.name, "changed": result.changed, "pid": result.pid}],
    }


def member_lines(result: MemberResult) -> list[str]:
    """Return what a change of membership did, in sentences."""
    voters = f"voters now {' '.join(result.voters)}"
    took = f" in {format_ms(result.elapsed_ms)}"
    caught = (
        "" if result.caught_up_ms is None else f", caught up in {format_ms(result.caught_up_ms)}"
    )
    match result.action:
        case "add" | "replace" | "promote":
            done = {"add": "added", "replace": "replaced", "promote": "promoted"}[result.action]
            pid = "" if result.pid is None else f" (pid {result.pid})"
            is_ = {
                "voter": f"it votes{caught}; {voters}",
                "learner": f"it listens{caught} and does not vote; {voters}",
                "joining": "it listens, and votes as soon as it has caught up",
                "gone": "",
            }[result.role]
            lines = [f"{done} {result.name}{pid}: {is_}"]
        case "demote":
            lines = [f"demoted {result.name}: it listens and does not vote{took}; {voters}"]
        case "remove":
            lines = [f"removed {result.name}{took}; {voters}"]
    if result.data:
        kept = "its data is kept" if result.action == "remove" else "the old data is kept"
        lines.append(f"{kept} in {result.data}")
    if result.leader != result.old_leader:
        lines.append(f"{result.leader} leads term {result.term} (before: {result.old_leader})")
    return lines


def _show(run: Run, result: MemberResult, target: str) -> int:
    def human() -> None:
        for line in member_lines(result):
            run.out.line(line)
        hint = advice(result)
        if hint:
            run.out.hint(hint)

    run.out.result(member_document(result, target), human)
    return EXIT_OK


def advice(result: MemberResult) -> str:
    """Return what the number of voters means, when it is even: one more would cost nothing."""
    count = len(result.voters)
    if count % 2 or result.role == "joining":
        return ""
    spare = (count - 1) // 2
    return f"{count} voters survive the loss of {spare}, as {count - 1} do: an odd number is best"


# ------------------------------------------------------------------------------------- the verbs


@command(
    app,
    "node add",
    examples=["zraft node add", "zraft node add n6 --no-wait", "zraft node add --learner"],
)
def add(
    run: Run,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Default: the first free n1, n2, …")
    ] = None,
    learner: Annotated[
        bool, typer.Option("--learner", help="It gets the log and never votes.")
    ] = False,
    wait: Waits = True,
) -> int:
    """Add a node. It joins as a learner and votes by itself once it has caught up.

    The name of an addition that was interrupted goes on with that one.
    """
    from zraft.client.control import Cluster

    cluster = Cluster.open(run.cluster, run.environ)
    with run.out.working("adding a node"):
        result = cluster.add_node(
            name or "",
            learner=learner,
            wait=wait,
            timeout_ms=run.timeout_ms(TIMEOUT_MS),
            progress=Steps(run),
        )
    return _show(run, result, name or "")


@command(
    app,
    "node remove",
    examples=["zraft node remove n4", "zraft node remove leader", "zraft node remove n5 --purge"],
)
def remove(
    run: Run,
    target: Target,
    purge: Annotated[bool, typer.Option("--purge", help="Delete its data as well.")] = False,
    force: Force = False,
    yes: Yes = False,
    expect_term: ExpectTerm = None,
) -> int:
    """Take a node out for good; also the leader. Its data is put aside, unless --purge."""
    goal = aim(run, [target], expect_term, None)
    name = one(goal)
    if purge and not yes:
        confirm(
            run,
            f"Delete the data of {name}",
            flag="--yes",
            again=f"zraft node remove {name} --purge",
        )
    _confirm_lost_quorum(run, goal, name, "remove", force=force, yes=yes)
    with run.out.working(f"removing {name}"):
        result = goal.cluster.remove_node(
            name,
            purge=purge,
            force=force,
            timeout_ms=run.timeout_ms(TIMEOUT_MS),
            progress=Steps(run),
        )
    return _show(run, result, target)


@command(
    app,
    "node replace",
    examples=["zraft node replace n2", "zraft node replace down --no-wait"],
)
def replace(
    run: Run, target: Target, wait: Waits = True, force: Force = False, yes: Yes = False
) -> int:
    """Give a node whose data is lost or damaged a new start: a new member under the old name.

    The damaged directory is put aside, never deleted. The node is filled by the others, and votes
    once it has caught up: nobody votes twice through a lost memory.
    """
    goal = aim(run, [target], None, None)
    name = one(goal)
    _confirm_lost_quorum(run, goal, name, "replace", force=force, yes=yes)
    with run.out.working(f"replacing {name}"):
        result = goal.cluster.replace_node(
            name,
            force=force,
            wait=wait,
            timeout_ms=run.timeout_ms(TIMEOUT_MS),
            progress=Steps(run),
        )
    return _show(run, result, target)


@command(app, "node promote", examples=["zraft node promote n6"])
def promote(run: Run, target: Target, wait: Waits = True, expect_term: ExpectTerm = None) -> int:
    """Make a learner a voter, once it has caught up."""
    goal = aim(run, [target], expect_term, None)
    name = one(goal)
    with run.out.working(f"promoting {name}"):
        result = goal.cluster.promote(name, wait=wait, timeout_ms=run.timeout_ms(TIMEOUT_MS))
    return _show(run, result, target)


@command(app, "node demote", examples=["zraft node demote n5"])
def demote(
    run: Run,
    target: Target,
    force: Force = False,
    yes: Yes = False,
    expect_term: ExpectTerm = None,
) -> int:
    """Make a voter a learner: it keeps getting the log, and its vote does not count."""
    goal = aim(run, [target], expect_term, None)
    name = one(goal)
    _confirm_lost_quorum(run, goal, name, "demote", force=force, yes=yes)
    with run.out.working(f"demoting {name}"):
        result = goal.cluster.demote(name, force=force, timeout_ms=run.timeout_ms(TIMEOUT_MS))
    return _show(run, result, target)


def _confirm_lost_quorum(
    run: Run, goal: Aim, name: str, verb: str, *, force: bool, yes: bool
) -> None:
    """Refuse what would leave no quorum without `--force`, and with it have the name typed."""
    from zraft.client.members import would_lose_quorum

    leader = goal.statuses.get(goal.leader or "")
    if leader is None or name not in leader.voters:
        return
    why = would_lose_quorum(name, leader, goal.statuses)
    if not why:
        return
    again = f"zraft node {verb} {name} --force"
    if not force:
        raise MembershipRefused(
            f"without {name} there would be no quorum; nothing was changed",
            why=why,
            try_=_ways_out(goal, f"{again}{run.suffix}    (writes stop until others are back)"),
        )
    if not yes:
        what = f"Without {name} there is no quorum: {why}. Writes stop until others are back."
        confirm_by_name(run, what, flag="--yes", again=again)


def _ways_out(goal: Aim, force: str) -> tuple[str, ...]:
    down: Sequence[str] = [node.name for node in goal.nodes if not node.alive]
    if not down:
        return (force,)
    return (f"zraft node start {','.join(down)}    ({plural(len(down), 'node')} down)", force)
