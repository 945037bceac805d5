"""`zraft sim`: a cluster in a simulated world that one number decides, faults and all.

The same servers, logs and machines as in `zraft cluster up`, with a simulated network, disk, clock
and process around them. The same seed with the same version and Python is the same run, so what was
found once can be looked at as often as one likes.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zraft.cli.durations import parse_duration_ms
from zraft.cli.errors import EXIT_CHECK_FAILED, EXIT_OK
from zraft.cli.options import Run, command, noun
from zraft.errors import ControlError

if TYPE_CHECKING:
    from zraft.testing.sim.runner import Outcome

app = noun(
    "sim",
    "Run a cluster in a simulated world that one seed decides, and check every step.",
    ["zraft sim run 42", "zraft sim replay 42 --time 15s", "zraft sim run 42 --json"],
    later=("hunt", "shrink"),
)

DEFAULT_TIME = "15s"
RUN_STEPS = 40
REPLAY_STEPS = 2000

Seed = Annotated[int, typer.Argument(metavar="SEED", help="Any whole number.", min=0)]
Time = Annotated[
    str, typer.Option("--time", metavar="TIME", help="Simulated time under faults: 15s.")
]
Nodes = Annotated[
    int | None,
    typer.Option("--nodes", "-n", metavar="N", help="Members, if not the seed's.", min=1, max=9),
]
Break = Annotated[
    str | None,
    typer.Option("--break", metavar="BUG", help="Plant a known bug, to see it found."),
]


@command(
    app,
    "sim run",
    examples=["zraft sim run 42", "zraft sim run 42 --break quorum-off-by-one"],
    later=("--until", "--seed"),
)
def run_(
    run: Run,
    seed: Seed,
    time: Time = DEFAULT_TIME,
    nodes: Nodes = None,
    broken: Break = None,
) -> int:
    """Run one seed: faults and load, then a healed quorum that must make progress.

    Exit 0: every invariant held and the history is linearizable. Exit 8: not; a line to replay it
    and the last steps are printed.
    """
    outcome = _simulate(run, seed, time, nodes, broken, steps=RUN_STEPS * 10)
    return _report(run, outcome, RUN_STEPS if outcome.violations else 0, None)


@command(
    app,
    "sim replay",
    examples=["zraft sim replay 42 --time 15s", "zraft sim replay 42 --trace 42.txt"],
    later=("--dashboard",),
)
def replay(
    run: Run,
    seed: Seed,
    time: Time = DEFAULT_TIME,
    nodes: Nodes = None,
    broken: Break = None,
    steps: Annotated[
        int, typer.Option("--steps", metavar="N", help="How many of the last steps to show.", min=1)
    ] = REPLAY_STEPS,
    trace: Annotated[
        Path | None, typer.Option("--trace", metavar="FILE", help="Write the steps there.")
    ] = None,
) -> int:
    """Run one seed again and show its last steps, in the language of the interaction files."""
    outcome = _simulate(run, seed, time, nodes, broken, steps=steps, trace=True)
    return _report(run, outcome, steps, trace)


def _simulate(
    run: Run,
    seed: int,
    time: str,
    nodes: int | None,
    broken: str | None,
    *,
    steps: int,
    trace: bool = False,
) -> Outcome:
    from zraft.testing.sim.runner import run_seed
    from zraft.testing.zoo import ZOO, planted

    if broken is not None and broken not in ZOO:
        raise ControlError(f'there is no bug "{broken}"', why=f"known are {', '.join(ZOO)}")
    time_ms = parse_duration_ms(time, "--time")
    with (
        run.out.working(f"simulating seed {seed}"),
        contextlib.nullcontext() if broken is None else planted(broken),
    ):
        outcome = run_seed(seed, time_s=time_ms / 1000, nodes=nodes, steps=steps, trace=trace)
    if nodes is not None:
        outcome.flags += f" --nodes {nodes}"
    if broken is not None:
        outcome.flags += f" --break {broken}"
    return outcome


def _report(run: Run, outcome: Outcome, steps: int, trace: Path | None) -> int:
    from zraft.testing.sim.report import summary, to_document

    document = to_document(outcome)
    document["trace"] = outcome.trace[-steps:] if steps else []
    if trace is not None:
        trace.write_text("\n".join(outcome.trace) + "\n", encoding="utf-8")

    def human() -> None:
        if trace is None:
            for line in outcome.trace[-steps:] if steps else ():
                run.out.line(line)
        for line in summary(outcome):
            run.out.line(line)

    run.out.result(document, human)
    return EXIT_CHECK_FAILED if outcome.violations else EXIT_OK
