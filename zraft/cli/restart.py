"""`zraft cluster restart`: one node after the other without losing the quorum, or all at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from zraft.cli.cluster import app
from zraft.cli.durations import format_ms
from zraft.cli.errors import EXIT_OK
from zraft.cli.node import raise_failures
from zraft.cli.options import Run, command
from zraft.errors import ControlError

if TYPE_CHECKING:
    from zraft.client.control import RestartEvent, RestartResult

TIMEOUT_MS = 300_000


@command(
    app,
    "cluster restart",
    examples=["zraft cluster restart", "zraft cluster restart --all-at-once"],
)
def restart(
    run: Run,
    rolling: Annotated[
        bool, typer.Option("--rolling", help="One after the other, the leader last (default).")
    ] = False,
    at_once: Annotated[
        bool, typer.Option("--all-at-once", help="kill -9 all, then start: a test of durability.")
    ] = False,
) -> int:
    """Restart all nodes. Rolling: nobody who uses the cluster needs to notice.

    Each node has to be ready and to have caught up before the next one is stopped; the leader hands
    leadership over first. Nodes that were stopped on purpose stay down.
    """
    if rolling and at_once:
        raise ControlError(
            "--rolling and --all-at-once contradict each other", try_="zraft cluster restart"
        )
    return _all_at_once(run) if at_once else _rolling(run)


def _rolling(run: Run) -> int:
    from zraft.client.control import Cluster
    from zraft.client.restarts import Rolling

    cluster = Cluster.open(run.cluster, run.environ)
    rolling = Rolling(cluster, run.timeout_ms(TIMEOUT_MS), lambda event: _tell(run, event))
    try:
        with run.out.working("restarting"):
            result = rolling.run()
    except KeyboardInterrupt:
        done = [one.name for one in rolling.results]
        run.out.message(
            f"\nrestarted: {' '.join(done) or 'none'}; "
            f"not yet: {' '.join(rolling.left) or 'none'}. "
            f"Every node runs or is being started; the rest: zraft node restart NAME{run.suffix}"
        )
        raise
    run.out.result(restart_document(result, rolling=True), lambda: _print(run, result))
    raise_failures(result.results)
    return EXIT_OK


def _all_at_once(run: Run) -> int:
    from zraft.client.control import Cluster

    cluster = Cluster.open(run.cluster, run.environ)
    with run.out.working("restarting all nodes at once"):
        result = cluster.restart(rolling=False, timeout_ms=run.timeout_ms(TIMEOUT_MS))
    run.out.result(restart_document(result, rolling=False), lambda: _print(run, result))
    raise_failures(result.results)
    return EXIT_OK


def _tell(run: Run, event: RestartEvent) -> None:
    match event.kind:
        case "waiting":
            run.out.progress(f"waiting: {event.message}")
            return
        case "stopping":
            run.out.progress(f"restarting {event.name}")
            return
        case "transferred":
            took = "" if event.handover_ms is None else f" in {event.handover_ms}ms"
            text = f"  {event.name} handed over to {event.leader} (term {event.term}){took}"
        case "not-transferred":
            text = f"  {event.name} could not hand over: {event.message}"
        case "caught-up":
            took = "" if event.elapsed_ms is None else f" in {format_ms(event.elapsed_ms)}"
            text = f"  ✓ {event.name} restarted, caught up{took}"
    if not run.out.machine:
        run.out.message(text)


def restart_document(result: RestartResult, *, rolling: bool) -> dict[str, Any]:
    """Return the document of a restart."""
    done = [one for one in result.results if one.failure is None]
    return {
        "schema": "zraft.cluster.restart/1",
        "ok": len(done) == len(result.results) and not result.left,
        "rolling": rolling,
        "restarted": [one.name for one in done],
        "left": result.left,
        "leader": result.leader,
        "term": result.term,
        "handovers_ms": result.handovers_ms,
        "elapsed_ms": result.elapsed_ms,
        "nodes": [
            {"name": one.name, "pid": one.pid, "incarnation": one.incarnation} for one in done
        ],
    }


def _print(run: Run, result: RestartResult) -> None:
    names = " ".join(one.name for one in result.results if one.failure is None)
    handed = "".join(f", handed over in {took}ms" for took in result.handovers_ms)
    run.out.line(
        f"restarted {names or 'no node'} in {format_ms(result.elapsed_ms)}{handed}; "
        f"leader {result.leader or 'none'} in term {result.term or '–'}"
    )
