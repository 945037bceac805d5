"""`zraft check`: does what clients saw have an explanation? Exit 0 yes, 8 no, 9 not decided.

`file` judges a recorded history; `run` makes one, with real processes, load and faults.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zraft.cli.durations import parse_duration_ms
from zraft.cli.errors import refuse_not_built
from zraft.cli.options import Run, command, noun
from zraft.cli.output import Output, plural, printable
from zraft.errors import ControlError

if TYPE_CHECKING:
    from zraft.testing.checkrun.load import Counts
    from zraft.testing.checkrun.runner import Progress, RunResult, RunSpec

app = noun(
    "check",
    "Judge what clients saw: is there an order of all operations that explains every answer?",
    [
        "zraft check run --nemesis kill,pause,partition --time 30s --seed 7",
        "zraft check file history.jsonl",
    ],
    later=("invariants", "show", "replay"),
)

DEFAULT_TIMEOUT_MS = 60_000


@command(
    app,
    "check file",
    examples=["zraft check file history.jsonl", "zraft check file history.jsonl --timeout 5m"],
)
def file(
    run: Run,
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="A history: one JSON object a line.")
    ],
) -> int:
    """Judge a recorded history of get, put, delete, cas, append and incr.

    Exit 0: linearizable. Exit 8: it is not, and what cannot be explained is printed. Exit 9: the
    time (--timeout, default 60s) or the memory ran out first.
    """
    from zraft.cli.verdict import EXIT_OF, verdict_document, write_verdict
    from zraft.testing.history import HistoryError, read_history
    from zraft.testing.linearizability import check_history

    with run.out.working(f"judging {path}"):
        try:
            operations = read_history(path)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise ControlError(f"{path}: no such file", why=str(error.strerror)) from None
        if not operations:
            raise HistoryError(f"{path} has no operations", why="an empty history proves nothing")
        result = check_history(operations, timeout_ms=run.timeout_ms(DEFAULT_TIMEOUT_MS))
    document = {
        "schema": "zraft.check/1",
        "ok": result.verdict == "linearizable",
        "file": str(path),
        **verdict_document(result),
    }
    run.out.result(document, lambda: write_verdict(run.out, result))
    return EXIT_OF[result.verdict]


@command(
    app,
    "check run",
    examples=[
        "zraft check run --nemesis kill,pause --time 20s --clients 8 --seed 7",
        "zraft check run --nemesis none --time 5s",
    ],
    later=("--break",),
)
def run(
    run: Run,
    nemesis: Annotated[
        str,
        typer.Option(
            "--nemesis",
            metavar="KINDS",
            help="kill, pause, partition, one-way, drop, delay, duplicate, reorder, corrupt, "
            "membership, transfer, snapshot; none.",
        ),
    ] = "kill,pause,partition",
    time: Annotated[
        str, typer.Option("--time", metavar="TIME", help="How long to break things.")
    ] = "20s",
    clients: Annotated[
        int, typer.Option("--clients", min=1, max=100, help="Clients, one operation each.")
    ] = 8,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Decides faults and operations; default random.")
    ] = None,
    keys: Annotated[int, typer.Option("--keys", min=1, max=1000, help="Registers.")] = 12,
    nodes: Annotated[int, typer.Option("--nodes", "-n", min=1, max=9, help="Nodes.")] = 5,
    workload: Annotated[
        str, typer.Option("--workload", metavar="KIND", help="register: get, put, cas, delete.")
    ] = "register",
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where runs are saved.")] = Path(
        "runs"
    ),
) -> int:
    """Start a cluster of its own, load it, break it, and judge what the clients saw.

    Your clusters are left alone, and nothing keeps running. Exit 0: linearizable, and enough
    happened to say so. Exit 8: it is not, or a node crashed by itself. Exit 9: undecided, or too
    little happened to prove anything. History, faults and logs are kept in the run directory.
    """
    import secrets

    from zraft.testing.checkrun.nemesis import parse_nemeses
    from zraft.testing.checkrun.runner import RunSpec, make_directory, run_check

    if workload != "register":
        raise refuse_not_built(f'the workload "{workload}"', instead=("--workload register",))
    spec = RunSpec(
        nemeses=parse_nemeses(nemesis),
        time_ms=parse_duration_ms(time, "--time"),
        clients=clients,
        seed=secrets.randbits(32) if seed is None else seed,
        nodes=nodes,
        keys=keys,
    )
    directory = make_directory(out, spec.seed, _stamp())
    run.out.message(f"{_told(spec)}, saved in {directory}")
    result = run_check(spec, directory, run.environ, lambda step: _tell(run.out, step))
    run.out.result(_run_document(result, directory), lambda: _write_run(run.out, result, directory))
    return _exit_code(result)


def _stamp() -> str:
    from datetime import datetime

    from zraft import clock

    local = datetime.fromtimestamp(clock.wall_time_ns() / 1e9).astimezone()
    return f"{local:%Y-%m-%dT%H-%M-%S}"


def _told(spec: RunSpec) -> str:
    faults = ", ".join(spec.nemeses) or "no faults"
    return (
        f"check run: {plural(spec.nodes, 'node')}, {plural(spec.clients, 'client')}, {faults}, "
        f"{spec.time_ms / 1000:g}s, seed {spec.seed}"
    )


def _tell(out: Output, step: Progress) -> None:
    seconds = step.at_ms // 1000
    at = f"t={seconds // 60:02d}:{seconds % 60:02d}"
    out.message(f"{at}  {printable(step.what or ''):<42}  ops {_say_counts(step.counts)}".rstrip())


def _say_counts(counts: Counts) -> str:
    return f"{counts.ok} ok {counts.fail} fail {counts.unknown} unknown"


def _exit_code(result: RunResult) -> int:
    from zraft.cli.errors import EXIT_CHECK_FAILED, EXIT_INCONCLUSIVE
    from zraft.cli.verdict import EXIT_OF

    code = EXIT_OF[result.check.verdict]
    if result.crashes:
        return EXIT_CHECK_FAILED
    return EXIT_INCONCLUSIVE if result.shortfalls and not code else code


def _run_document(result: RunResult, directory: Path) -> dict[str, Any]:
    import msgspec

    from zraft.cli.verdict import verdict_document

    return {
        "schema": "zraft.check.run/1",
        "ok": _exit_code(result) == 0,
        "directory": str(directory),
        "spec": msgspec.to_builtins(result.spec),
        "counts": msgspec.to_builtins(result.counts),
        "faults": {kind: result.faults[kind] for kind in result.spec.nemeses},
        "leader_changes": result.leader_changes,
        "crashes": result.crashes,
        "shortfalls": result.shortfalls,
        "check": verdict_document(result.check),
    }


def _write_run(out: Output, result: RunResult, directory: Path) -> None:
    from zraft.cli.verdict import write_verdict

    faults = ", ".join(f"{result.faults[kind]} {kind}" for kind in result.spec.nemeses)
    out.line(
        f"ops {_say_counts(result.counts)}; faults {faults or 'none'}; "
        f"{plural(result.leader_changes, 'leader change')}"
    )
    for crash in result.crashes:
        out.line(f"crash {out.paint('✗', 'bold red')}  {printable(crash)}")
    write_verdict(out, result.check)
    for shortfall in result.shortfalls:
        out.line(f"proves too little {out.paint('?', 'yellow')}  {shortfall}")
    out.line(f"run saved  {directory}")
