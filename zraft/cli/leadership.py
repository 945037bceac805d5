"""`zraft node transfer-leadership | step-down | campaign`: who leads, by request, and what it cost.

A node answers such a request when it has begun. `--wait` watches what becomes of it: the leader of
a later term, how long it took by that leader's own clock, and when the next write was accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zraft.api import Campaign, StepDown
from zraft.cli.errors import EXIT_OK
from zraft.cli.membership import one
from zraft.cli.node import Aim, ExpectTerm, Seed, Targets, aim, app
from zraft.cli.options import Run, command
from zraft.cli.output import printable

if TYPE_CHECKING:
    from zraft.client.control import LeadershipChange

TIMEOUT_MS = 10_000

WaitHere = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Wait for the leader of a later term; measure it.")
]


@command(
    app,
    "node transfer-leadership",
    examples=["zraft node transfer-leadership", "zraft node transfer-leadership --to n2"],
)
def transfer_leadership(
    run: Run,
    to: Annotated[
        str | None, typer.Option("--to", metavar="TARGET", help="Default: who holds most.")
    ] = None,
    wait: WaitHere = True,
    expect_term: ExpectTerm = None,
    seed: Seed = None,
) -> int:
    """Hand leadership over without an election timeout: TimeoutNow once the target holds all."""
    goal = aim(run, [to or "leader"], expect_term, seed)
    name = one(goal) if to else ""

    def act() -> LeadershipChange:
        return goal.cluster.transfer_leadership(
            name, wait=wait, timeout_ms=run.timeout_ms(TIMEOUT_MS)
        )

    with run.out.working("handing leadership over"):
        change, document = measured_change(run, goal, act, wait=wait)
    document |= {"action": "transfer-leadership", "target": to or ""}
    run.out.result(document, lambda: run.out.line(change_text(change, document, wait=wait)))
    return EXIT_OK


@command(app, "node step-down", examples=["zraft node step-down leader --wait"])
def step_down(
    run: Run,
    targets: Targets,
    wait: WaitHere = False,
    expect_term: ExpectTerm = None,
    seed: Seed = None,
) -> int:
    """Make a leader give up its leadership now; somebody else is elected, or it again."""
    return _stir(run, "step-down", StepDown(), aim(run, targets, expect_term, seed), wait=wait)


@command(app, "node campaign", examples=["zraft node campaign n2 --wait"])
def campaign(
    run: Run,
    targets: Targets,
    wait: WaitHere = False,
    expect_term: ExpectTerm = None,
    seed: Seed = None,
) -> int:
    """Make nodes stand for election now, without a pre-vote: the term rises.

    It need not win: who hears a leader refuses its vote (thesis §4.2.3).
    """
    return _stir(run, "campaign", Campaign(), aim(run, targets, expect_term, seed), wait=wait)


def _stir(run: Run, action: str, request: StepDown | Campaign, goal: Aim, *, wait: bool) -> int:
    """Send one control request to each node that is meant; with `wait`, watch the last one's."""
    messages: dict[str, str] = {}
    changes: list[LeadershipChange] = []
    measures: Mapping[str, Any] = {}
    for place, name in enumerate(goal.names):
        last = wait and place == len(goal.names) - 1

        def act(name: str = name, last: bool = last) -> LeadershipChange:
            verb = goal.cluster.step_down if action == "step-down" else goal.cluster.campaign
            return verb(name, wait=last, timeout_ms=run.timeout_ms(TIMEOUT_MS))

        with run.out.working(f"{action} {name}"):
            change, measures = measured_change(run, goal, act, wait=last)
        messages[name] = change.message
        changes.append(change)
    document: dict[str, Any] = {
        **base_document(goal),
        **measures,
        "action": action,
        "target": goal.target,
        "resolved": goal.names,
        "results": [{"name": name, "message": text} for name, text in messages.items()],
    }

    def human() -> None:
        if not messages:
            run.out.line(f"{goal.target} means no node now")
        for name, text in messages.items():
            run.out.line(f"{name} ({goal.described(name)}): {printable(text) or 'done'}")
        if wait and changes:
            run.out.line(change_text(changes[-1], document, wait=True))
        elif changes:
            run.out.hint(f"who leads now: zraft cluster status{run.suffix}")

    run.out.result(document, human)
    return EXIT_OK


def base_document(goal: Aim) -> dict[str, Any]:
    """Return what every such document has, before anything is measured."""
    return {
        "schema": "zraft.node.action/1",
        "ok": True,
        "action": "",
        "target": goal.target,
        "resolved": goal.names,
        "signal": None,
        "old": {"leader": goal.leader, "term": goal.term},
        "results": [],
    }


def measured_change(
    run: Run, goal: Aim, act: Callable[[], LeadershipChange], *, wait: bool
) -> tuple[LeadershipChange, dict[str, Any]]:
    """Do it, and with `wait` measure until a write is accepted in a later term."""
    from zraft.cli.probe import WriteProbe

    if not wait:
        change = act()
        return change, base_document(goal)
    up = [node.name for node in goal.nodes if node.up]
    with WriteProbe(goal.cluster.file, up) as probe:
        change = act()
        accepted = probe.first_accepted(run.timeout_ms(TIMEOUT_MS)) if change.changed else None
    unavailable_ms = None
    if accepted is not None:
        unavailable_ms = max(0, round((accepted.mono_ns - change.started_mono_ns) / 1e6))
    return change, {
        **base_document(goal),
        "resolved": [change.leader] if change.leader else [],
        "old": {"leader": change.old_leader, "term": change.old_term},
        "new": {"leader": change.leader, "term": change.term},
        "failover_ms": change.handover_ms,
        "unavailable_ms": unavailable_ms,
        "unavailable_at_most": True,  # asked only once the new leader was seen
    }


def change_text(change: LeadershipChange, document: Mapping[str, Any], *, wait: bool) -> str:
    """Return what became of leadership, in one sentence."""
    if not wait:
        return f"{change.old_leader or 'nobody'} leads term {change.old_term}: {change.message}"
    if not change.changed:
        return f"{change.leader or 'nobody'} leads term {change.term} as before: {change.message}"
    took = "" if change.handover_ms is None else f" after {change.handover_ms}ms"
    cost = document["unavailable_ms"]
    unavailable = "" if cost is None else f" (writes unavailable at most {cost}ms)"
    old = change.old_leader or "nobody"
    return f"{old} → {change.leader} leader in term {change.term}{took}{unavailable}"
