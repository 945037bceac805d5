"""`zraft cluster`: start, look at, wait for and stop whole clusters.

Everything is done through `zraft.client.control`; this module reads flags, asks before it deletes,
and says what happened and what to do next.
"""

from __future__ import annotations

import select
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zraft import clock
from zraft.cli.confirm import confirm
from zraft.cli.durations import format_ms
from zraft.cli.errors import EXIT_DEGRADED, EXIT_NO_QUORUM, EXIT_OK
from zraft.cli.options import Run, command, noun
from zraft.cli.output import Cell, Output, plural
from zraft.errors import ControlError, NotRunning

if TYPE_CHECKING:
    from zraft.client.control import Cluster, UpEvent, UpResult

app = noun(
    "cluster",
    "Start, look at and stop clusters: one process per node, a supervisor beside them.",
    [
        "zraft cluster up -n 5",
        "zraft cluster status",
        "zraft cluster wait --for leader --timeout 5s && echo ok",
    ],
    later=("info",),
)

UP_TIMEOUT_MS = 30_000
WATCH_S = 1.0


def observe(cluster: Cluster, timeout_ms: int = 1_000) -> dict[str, Any]:
    """Ask every node of a cluster and return the status document."""
    from zraft.cli.status import status_document
    from zraft.client.control import leadership

    statuses = cluster.statuses(timeout_ms=timeout_ms)
    found = leadership(statuses)
    return status_document(
        cluster.name,
        statuses,
        cluster.table(),
        followed=(found.leader, found.term) if found else None,
        mono_ns=clock.monotonic_ns(),
        wall_ms=clock.wall_time_ns() // 1_000_000,
    )


def short_status(name: str, environ: Mapping[str, str]) -> str:
    """Return a few lines about a cluster for `zraft` alone; never fails, starts nothing."""
    from zraft.cli.status import headline
    from zraft.client.control import Cluster
    from zraft.errors import ZraftError

    out = Output(stdout=sys.stdout, stderr=sys.stderr, environ=environ)
    try:
        document = observe(Cluster.open(name, environ), timeout_ms=300)
    except ZraftError as error:
        return f"cluster {name}: {error.what}\n\n"
    if document["status"] == "stopped":
        return f"{headline(document, out)} (start it: zraft cluster up)\n\n"
    nodes = "  ".join(
        f"{node['name']} {node['role'] or node['state']}" for node in document["nodes"]
    )
    return f"{headline(document, out)}\n{nodes}\n\n"


# ------------------------------------------------------------------------------------------ up


@command(
    app,
    "cluster up",
    examples=[
        "zraft cluster up -n 5",
        "zraft cluster up -C exp1 -n 3 --ephemeral",
        "zraft cluster up --config configs/classroom.toml",
        "zraft cluster up -C bank -n 3 --state-machine examples.bank:Bank",
    ],
    later=(
        "--tempo",
        "--election",
        "--heartbeat",
        "--prevote",
        "--no-prevote",
        "--base-port",
        "--wait",
        "--fsync",
        "--snapshot-every",
        "--dashboard",
        "--seed",
        "--env",
        "--replace",
        "--new",
    ),
)
def up(
    run: Run,
    nodes: Annotated[
        int | None, typer.Option("--nodes", "-n", metavar="N", help="How many nodes (5).")
    ] = None,
    directory: Annotated[
        str | None, typer.Option("--dir", metavar="DIR", help="Where the data lives.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Settings: a TOML file.")
    ] = None,
    machine: Annotated[
        str | None,
        typer.Option("--state-machine", metavar="MODULE:CLASS", help="What is replicated."),
    ] = None,
    transport: Annotated[
        str | None, typer.Option("--transport", metavar="KIND", help="ipc (default) or tcp.")
    ] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", "-F", help="The nodes end with this command.")
    ] = False,
    no_restart: Annotated[
        bool, typer.Option("--no-restart", help="Leave crashed nodes down.")
    ] = False,
    ephemeral: Annotated[
        bool, typer.Option("--ephemeral", help="A temporary directory, deleted at down.")
    ] = False,
    faults: Annotated[
        bool | None,
        typer.Option("--faults/--no-faults", help="May zraft fault break it? Default: yes."),
    ] = None,
) -> int:
    """Create a cluster or start it again; returns when it has a leader. Repeating it is fine."""
    from zraft.cli.config import cluster_settings
    from zraft.client.control import Cluster, UpSpec

    if transport not in {None, "ipc", "tcp"}:
        raise ControlError(f'--transport: no transport "{transport}"', why="there are ipc and tcp")
    spec = UpSpec(
        name=run.cluster,
        nodes=nodes,
        directory=directory,
        transport=None if transport is None else "tcp" if transport == "tcp" else "ipc",
        settings=cluster_settings(run, file, faults, machine),
        ephemeral=ephemeral,
        foreground=foreground,
        restart=False if no_restart else None,
        timeout_ms=run.timeout_ms(UP_TIMEOUT_MS),
    )
    try:
        with run.out.working("starting"):
            result = Cluster.up(spec, run.environ, lambda event: _up_progress(run.out, event))
    except KeyboardInterrupt:
        run.out.message(
            f"\nwhat was started goes on; again: zraft cluster up{run.suffix}"
            f"   stop: zraft cluster down{run.suffix}"
        )
        raise
    run.out.result(_up_document(result), lambda: _print_up(run, result))
    run.out.stdout.flush()
    if result.foreground is None:
        return EXIT_OK
    run.out.message(f"Running in the foreground as pid {result.foreground.pid}; Ctrl-C stops it")
    code = result.foreground.wait()
    run.out.message(f"Stopped; start it again: zraft cluster up{run.suffix}")
    return code


def _up_progress(out: Output, event: UpEvent) -> None:
    match event.kind:
        case "failed":
            out.message(out.paint_err(f"  ✗ {event.name} {event.message}", "red"))
        case "recovering":
            out.progress(f"{event.name} reads its log {event.message}")
        case "ready":
            out.progress("waiting for a leader")
        case "warning":
            pass  # in the result, with all others
        case _:
            out.progress("starting")


def _up_document(result: UpResult) -> dict[str, Any]:
    return {
        "schema": "zraft.cluster.up/1",
        "ok": True,
        "cluster": result.name,
        "dir": result.directory,
        "transport": result.transport,
        "created": result.created,
        "already_running": result.already_running,
        "started": result.started,
        "left_paused": result.left_paused,
        "leader": result.leader,
        "term": result.term,
        "elected_ms": result.elected_ms,
        "elapsed_ms": result.elapsed_ms,
        "nodes": [{"name": name, "pid": pid} for name, pid in result.pids.items()],
        "warnings": result.warnings,
    }


def _print_up(run: Run, result: UpResult) -> None:
    from zraft.config import BUILT_IN_MACHINE

    out = run.out
    count = plural(len(result.pids), "node")
    tick = out.paint("✓", "green")
    if result.already_running:
        out.line(
            f'Cluster "{result.name}" is already running: {count}, leader {result.leader}'
            f" (term {result.term})"
        )
    else:
        settings = run.cluster_file().settings.get("timing", {})
        timing = ""
        if {"election_min_ms", "election_max_ms", "heartbeat_ms"} <= settings.keys():
            election = f"{settings['election_min_ms']}–{settings['election_max_ms']}ms"
            timing = f", election {election}, heartbeat {settings['heartbeat_ms']}ms"
        verb = "Created" if result.created else "Started"
        out.line(f'{verb} cluster "{result.name}" ({count}, {result.transport}{timing})')
        started = [f"{tick} {name} pid {result.pids.get(name)}" for name in result.started]
        for place in range(0, len(started), 5):
            out.line("  " + "  ".join(started[place : place + 5]))
        elected = "" if result.elected_ms is None else f" ({result.elected_ms}ms)"
        leader = f"leader {result.leader} elected in term {result.term}{elected}"
        out.line(f"  {tick} {leader}   {result.elapsed_ms / 1000:.1f}s")
    if result.left_paused:
        paused = " ".join(result.left_paused)
        out.line(f"  {paused} still paused: zraft node resume {paused}{run.suffix}")
    for warning in result.warnings:
        out.message(out.paint_err(f"warning: {warning}", "yellow"))
    s = run.suffix
    out.line(f"Data   {_home_short(result.directory)}      Logs   zraft logs tail -f{s}")
    machine = run.cluster_file().settings.get("machine", {}).get("name", BUILT_IN_MACHINE)
    first = f"zraft kv put hello world{s}   ·   " if machine == BUILT_IN_MACHINE else ""
    out.line(f"Next   {first}zraft node kill leader --wait{s}   ·   zraft cluster status{s}")


def _home_short(path: str) -> str:
    home = str(Path.home())
    return "~" + path[len(home) :] if path.startswith(home + "/") else path


# -------------------------------------------------------------------------------------- status


@command(
    app,
    "cluster status",
    examples=[
        "zraft cluster status",
        "zraft cluster status --field leader",
        "zraft cluster status --json | jq '.nodes[] | select(.up|not).name'",
        "zraft cluster status --exit-code -q || echo degraded",
    ],
)
def status(
    run: Run,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit 10 when degraded, 11 without a quorum.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again every second.")] = False,
) -> int:
    """Ask every node and show what each says, who is down and why, and where they disagree."""
    from zraft.cli.status import print_status
    from zraft.client.control import Cluster

    cluster = Cluster.open(run.cluster, run.environ)
    while True:
        document = observe(cluster, run.timeout_ms(1_000))
        if watch and not run.out.machine and run.out.color:
            run.out.stdout.write("\x1b[H\x1b[2J")
        run.out.result(document, lambda: print_status(document, run.out))  # noqa: B023
        if not watch:
            break
        run.out.stdout.flush()
        select.select([], [], [], WATCH_S)
        cluster.reload()
    if document["status"] == "stopped":
        raise NotRunning(
            f'cluster "{run.cluster}" is stopped; its data is kept',
            why="no process of it runs",
            try_=f"zraft cluster up{run.suffix}",
        )
    if exit_code:
        return {"degraded": EXIT_DEGRADED, "no_quorum": EXIT_NO_QUORUM}.get(document["status"], 0)
    return EXIT_OK


# ---------------------------------------------------------------------------------------- list


@command(app, "cluster list", examples=["zraft cluster list", "zraft cluster list --json"])
def list_(run: Run) -> int:
    """List all clusters of this user. Starts nothing."""
    from zraft.client.control import Cluster, leadership, list_clusters

    clusters: list[dict[str, Any]] = []
    for summary in list_clusters(run.environ):
        found = None
        if summary.up:
            statuses = Cluster.open(summary.name, run.environ).statuses(timeout_ms=500)
            found = leadership(statuses)
        clusters.append(
            {
                "name": summary.name,
                "nodes": summary.nodes,
                "leader": found.leader if found else None,
                "term": found.term if found else None,
                "up": summary.up,
                "state": summary.state,
                "dir": summary.directory,
                "error": summary.error,
            }
        )

    def human() -> None:
        if not clusters:
            run.out.message("there is no cluster yet: zraft cluster up -n 5")
            return
        rows: list[list[Cell]] = [
            [
                entry["name"],
                str(entry["nodes"]),
                entry["leader"] or "–",
                str(entry["term"] or "–"),
                f"{entry['up']}/{entry['nodes']}",
                entry["state"] + (f": {entry['error']}" if entry["error"] else ""),
                _home_short(entry["dir"]),
            ]
            for entry in clusters
        ]
        run.out.table(("CLUSTER", "NODES", "LEADER", "TERM", "UP", "STATE", "DIR"), rows)

    run.out.result({"schema": "zraft.cluster.list/1", "ok": True, "clusters": clusters}, human)
    return EXIT_OK


# ---------------------------------------------------------------------------------------- wait


@command(
    app,
    "cluster wait",
    examples=[
        "zraft cluster wait --for leader --for converged --timeout 5s && echo ok",
        "zraft cluster wait --for up=5 --for voters=5",
        "zraft cluster wait --for learner-caught-up=n6",
    ],
)
def wait(
    run: Run,
    conditions: Annotated[
        list[str] | None,
        typer.Option(
            "--for", metavar="CONDITION", help="leader, converged, voters=5 …; all must hold."
        ),
    ] = None,
) -> int:
    """Wait until all conditions hold at the same time; exit 6 says which one does not."""
    from zraft.client.control import Cluster, check_conditions

    wanted = conditions or ["leader"]
    cluster = Cluster.open(run.cluster, run.environ)
    check_conditions(wanted, len(cluster.file.names))
    with run.out.working(f"waiting for {', '.join(wanted)}"):
        result = cluster.wait_for(wanted, timeout_ms=run.timeout_ms(UP_TIMEOUT_MS))
    document = {
        "schema": "zraft.cluster.wait/1",
        "ok": True,
        "conditions": wanted,
        "leader": result.leader,
        "term": result.term,
        "elapsed_ms": result.elapsed_ms,
    }
    leader = f"leader {result.leader} (term {result.term})" if result.leader else "no leader"
    told = f"{', '.join(wanted)} after {format_ms(result.elapsed_ms)}: {leader}"
    run.out.result(document, lambda: run.out.message(told))
    return EXIT_OK


# --------------------------------------------------------------------------------------- down


@command(
    app,
    "cluster down",
    examples=["zraft cluster down", "zraft cluster down --purge --yes"],
)
def down(
    run: Run,
    now: Annotated[bool, typer.Option("--now", help="SIGKILL at once.")] = False,
    purge: Annotated[bool, typer.Option("--purge", help="Delete all data as well.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before deleting.")] = False,
) -> int:
    """Stop every node and the supervisor. Data is kept, unless --purge."""
    from zraft.client.control import Cluster

    cluster = Cluster.open(run.cluster, run.environ)
    if purge and not yes:
        what = f'Delete all data of cluster "{cluster.name}" in {cluster.directory}'
        confirm(run, what, flag="--yes", again="zraft cluster down --purge")
    with run.out.working("stopping"):
        result = cluster.down(now=now, purge=purge, timeout_ms=run.timeout_ms(UP_TIMEOUT_MS))
    document = {
        "schema": "zraft.cluster.down/1",
        "ok": not result.foreign,
        "cluster": result.name,
        "dir": result.directory,
        "was_running": result.was_running,
        "stopped": result.stopped,
        "killed": result.killed,
        "foreign": result.foreign,
        "purged": result.purged,
        "elapsed_ms": result.elapsed_ms,
    }

    def human() -> None:
        if result.was_running:
            killed = f" (killed: {' '.join(result.killed)})" if result.killed else ""
            names = " ".join([*result.stopped, *result.killed]) or "the supervisor"
            run.out.line(f"Stopped {names}{killed} in {format_ms(result.elapsed_ms)}")
        else:
            run.out.line(f'Cluster "{result.name}" was not running')
        for name in result.foreign:
            run.out.message(f"warning: {name} is used by a process that is not ours: left alone")
        if result.purged:
            run.out.line(f"Data   deleted: {_home_short(result.directory)}")
        else:
            s = run.suffix
            run.out.line(
                f"Data   kept in {_home_short(result.directory)}"
                f"      come back: zraft cluster up{s}   delete: zraft cluster down --purge{s}"
            )

    run.out.result(document, human)
    return EXIT_OK
