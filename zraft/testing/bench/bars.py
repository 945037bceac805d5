"""`bars`: what zraft promises in milliseconds and per second, measured and judged.

    1  a stopped cluster of five has a leader again less than 3 s after `cluster up` was typed
    3  twenty times `node kill leader --wait`: median below 150 ms from the kill to the next
       accepted write, none above 1 s
    4  twenty times the leader is stopped politely while a client writes: median at most 100 ms
       without an acknowledgement, none above 1 s, and no write failed
    5  ten times `cluster restart --rolling` while a client writes in a session: the same, and no
       outcome is a failure or unknown
    9  at least 0.25 of the bare loop's durable writes per second at 64 outstanding, three nodes
   10  the simulator handles at least 15,000 events a second of one core, all invariants on
   11  while 1,000,000 keys of 100 B are snapshotted under 1,000 writes/s: slices of at most 10 ms,
       99.9 % of turns at most 20 ms, none over 75 ms, no silence of the leader over 125 ms

Times depend on what else the machine does. Beside each bar stands the largest wake-up delay of an
idle loop while it was measured; above 20 ms the bar is *not judged*, which is neither a pass nor a
failure, and is said so. A slice of 10 ms is not missed by a machine that takes the processor away
from a process that is ready for longer than that, so 11 is not judged then either, unless it held.
Nor is 10, unless it held, when the plain loops of its rounds show that the core itself ran at
different speeds.
Start and failover are measured as a user measures them: by the command line's own processes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from zraft import clock
from zraft.client.sync import Client
from zraft.errors import SupervisorError
from zraft.testing.bench import cpu, put, snapshots
from zraft.testing.bench.command import EXIT_CHECK_FAILED, numbers, tell, write
from zraft.testing.bench.handover import (
    TIMEOUT_S,
    HandOver,
    PlainWriter,
    SessionWriter,
    measure_hand_over,
)
from zraft.testing.bench.latency import median
from zraft.testing.bench.load import ClusterLoad
from zraft.testing.bench.machine import NOT_JUDGED_MS, Machine, MachineFigures
from zraft.testing.bench.place import NAME, Host, Place, describe_host, open_cluster, open_place

SCHEMA = "zraft.bars/1"
NODES = 5
UP_ROUNDS = 5
UP_BAR_MS = 3_000.0
KILL_ROUNDS = 20
KILL_MEDIAN_BAR_MS = 150.0
KILL_WORST_BAR_MS = 1_000.0
HANDOVER_ROUNDS = 20
ROLLING_ROUNDS = 10
HANDOVER_MEDIAN_BAR_MS = 100.0
HANDOVER_WORST_BAR_MS = 1_000.0
PUT_NODES = 3
PUT_OUTSTANDING = 64
PUT_ROUNDS = 5
PUT_BAR = 0.25
SIM_ROUNDS = 5
SIM_EVENTS_BAR = 15_000.0
BARS = (1, 3, 4, 5, 9, 10, 11)
STEP_MS = 60_000

Verdict = Literal["held", "missed", "not judged"]


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """One promise and what was measured."""

    number: int
    promise: str
    unit: str
    rounds: list[float]
    median: float
    worst: float
    verdict: Verdict
    wakeup_delay_ms: float
    unjudged: str = ""  # why it is not judged
    facts: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was measured."""

    schema: str
    ok: bool  # no bar was missed
    host: Host
    machine: MachineFigures
    bars: list[Bar]


def verdict(held: bool, wakeup_delay_ms: float) -> Verdict:
    """Return what is to be said of a bar."""
    if wakeup_delay_ms > NOT_JUDGED_MS:
        return "not judged"
    return "held" if held else "missed"


def _program() -> str:
    return str(Path(sys.executable).with_name("zraft"))


def type_command(place: Place, words: Sequence[str]) -> dict[str, Any]:
    """Run `zraft …` as a user does, in a process of its own, and return its document.

    Raises:
        SupervisorError: it failed, or took too long.
    """
    command = [_program(), *words, "-C", NAME, "--json"]
    try:
        done = subprocess.run(
            command,
            env=place.environ(),
            capture_output=True,
            timeout=STEP_MS / 1000,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise SupervisorError(f"zraft {' '.join(words)} took over {STEP_MS} ms") from error
    if done.returncode != 0:
        raise SupervisorError(
            f"zraft {' '.join(words)} ended with code {done.returncode}",
            why=done.stderr.decode(errors="replace").strip()[-2000:],
            exit_code=done.returncode,
        )
    document = msgspec.json.decode(done.stdout)
    assert isinstance(document, dict), document
    return document


def measure_up(place: Place, machine: Machine) -> Bar:
    """Bar 1: from typing `cluster up` to its return with a leader, the interpreter included."""
    rounds = []
    with open_cluster(place, NODES) as cluster:
        cluster.down()
        machine.take_delay_ms()
        for number in range(1, UP_ROUNDS + 1):
            machine.sample()
            start_ns = clock.monotonic_ns()
            document = type_command(place, ["cluster", "up"])
            rounds.append((clock.monotonic_ns() - start_ns) / 1e6)
            assert document["leader"], document
            tell(f"up {number} of {UP_ROUNDS}: leader {document['leader']}, {rounds[-1]:.0f} ms")
            cluster.down()
        delay_ms = machine.take_delay_ms()
    held = max(rounds) < UP_BAR_MS
    return _bar(
        1, f"`cluster up` of {NODES} stopped nodes, each < 3 s", "ms", rounds, held, delay_ms
    )


def measure_kill(place: Place, machine: Machine) -> Bar:
    """Bar 3: what `node kill leader --wait` says, the killed node back before the next round."""
    rounds: list[float] = []
    with open_cluster(place, NODES) as cluster:
        machine.take_delay_ms()
        for number in range(1, KILL_ROUNDS + 1):
            machine.sample()
            cluster.wait_for(["converged", f"up={NODES}"], timeout_ms=STEP_MS)
            document = type_command(place, ["node", "kill", "leader", "--wait"])
            rounds.append(float(document["unavailable_ms"]))
            tell(
                f"kill {number} of {KILL_ROUNDS}: {document['resolved']} unavailable "
                f"{document['unavailable_ms']} ms (detected {document['detected_ms']} ms, "
                f"election {document['election_ms']} ms)"
            )
            for result in cluster.act("start", document["resolved"]):
                assert result.failure is None, result.failure
        delay_ms = machine.take_delay_ms()
    held = median(rounds) < KILL_MEDIAN_BAR_MS and max(rounds) <= KILL_WORST_BAR_MS
    promise = f"{KILL_ROUNDS} × `node kill leader --wait`: median < 150 ms, none > 1 s"
    return _bar(3, promise, "ms", rounds, held, delay_ms)


def measure_hand_over_bar(place: Place, machine: Machine) -> Bar:
    """Bar 4: what a client that writes sees of a leader that stops; it is back before the next."""
    rounds: list[HandOver] = []
    environ = place.environ()
    with open_cluster(place, NODES) as cluster:
        machine.take_delay_ms()
        for number in range(1, HANDOVER_ROUNDS + 1):
            machine.sample()
            old = cluster.wait_for(["converged", f"up={NODES}"], timeout_ms=STEP_MS).leader
            command = [_program(), "node", "stop", old or "leader", "-C", NAME, "--json"]
            with Client(cluster.name, environ=environ, timeout_s=TIMEOUT_S) as client:
                rounds.append(measure_hand_over(PlainWriter(client), command, environ))
            _tell_hand_over(f"stop {number} of {HANDOVER_ROUNDS}: {old}", rounds[-1])
            for result in cluster.act("start", [old or "leader"]):
                assert result.failure is None, result.failure
        delay_ms = machine.take_delay_ms()
    what = f"{HANDOVER_ROUNDS} × a leader stops under load"
    return _hand_over_bar(4, what, rounds, delay_ms)


def measure_rolling(place: Place, machine: Machine) -> Bar:
    """Bar 5: what a client with a session sees while every node is restarted in turn."""
    rounds: list[HandOver] = []
    environ = place.environ()
    command = [_program(), "cluster", "restart", "--rolling", "-C", NAME, "--json"]
    with open_cluster(place, NODES) as cluster:
        machine.take_delay_ms()
        for number in range(1, ROLLING_ROUNDS + 1):
            machine.sample()
            cluster.wait_for(["converged", f"up={NODES}"], timeout_ms=STEP_MS)
            client = Client(cluster.name, environ=environ, timeout_s=TIMEOUT_S)
            with client, client.session() as session:
                rounds.append(measure_hand_over(SessionWriter(session), command, environ))
            _tell_hand_over(f"rolling restart {number} of {ROLLING_ROUNDS}", rounds[-1])
        delay_ms = machine.take_delay_ms()
    what = f"{ROLLING_ROUNDS} × a rolling restart under load, in a session"
    return _hand_over_bar(5, what, rounds, delay_ms)


def _tell_hand_over(what: str, found: HandOver) -> None:
    tell(
        f"{what}, unavailable {found.unavailable_ms:.0f} ms (usual {found.usual_ms:.0f} ms), "
        f"{found.writes:,} writes, {len(found.failures)} failed"
    )
    for text in found.failures[:3]:
        tell(f"  {text}")


def _hand_over_bar(number: int, what: str, found: Sequence[HandOver], delay_ms: float) -> Bar:
    """Judge hand-overs. A write that failed is a miss, whatever the machine did meanwhile."""
    rounds = [one.unavailable_ms for one in found]
    in_time = median(rounds) <= HANDOVER_MEDIAN_BAR_MS and max(rounds) <= HANDOVER_WORST_BAR_MS
    promise = f"{what}: median ≤ 100 ms, none > 1 s, 0 failed"
    bar = _bar(number, promise, "ms", rounds, in_time, delay_ms)
    failed = any(one.failures for one in found)
    return bar if not failed else msgspec.structs.replace(bar, verdict="missed")


def measure_put(place: Place, machine: Machine) -> Bar:
    """Bar 9: the ratio to the bare loop, pair by pair."""
    spec = put.Spec(nodes=[PUT_NODES], outstanding=[PUT_OUTSTANDING], rounds=PUT_ROUNDS)
    machine.take_delay_ms()
    (cell,) = put.measure(spec, place, machine, put.tell_pair)
    delay_ms = max(pair.wakeup_delay_ms for pair in cell.pairs)
    promise = f"≥ {PUT_BAR} of the bare loop, {PUT_NODES} nodes, {PUT_OUTSTANDING} outstanding"
    ratios = [pair.ratio for pair in cell.pairs]
    bar = _bar(9, promise, "of the bare loop", ratios, cell.ratio >= PUT_BAR, delay_ms)
    return msgspec.structs.replace(bar, median=cell.ratio, worst=min(ratios))


def measure_sim(place: Place, machine: Machine) -> Bar:
    """Bar 10: events of the simulator per second of processor time, a plain loop beside them."""
    del place  # nothing is written
    cpu.measure_round()
    machine.take_delay_ms()
    rounds: list[cpu.CpuRound] = []
    for number in range(1, SIM_ROUNDS + 1):
        machine.sample()
        rounds.append(found := cpu.measure_round())
        tell(
            f"simulator {number} of {SIM_ROUNDS}: {found.events_per_s:,.0f} events/s; a plain "
            f"loop {found.additions_per_s / 1e6:.1f} M additions/s"
        )
    return judge_sim(rounds, machine.take_delay_ms())


def judge_sim(rounds: Sequence[cpu.CpuRound], delay_ms: float) -> Bar:
    """Return bar 10 of its rounds."""
    events = [found.events_per_s for found in rounds]
    plain = [found.additions_per_s / 1e6 for found in rounds]
    promise = f"≥ {SIM_EVENTS_BAR:,.0f} simulated events a second of one core"
    bar = _bar(10, promise, "events/s", events, median(events) >= SIM_EVENTS_BAR, delay_ms)
    facts = f"plain loops beside them: {min(plain):.1f} to {max(plain):.1f} M additions/s"
    bar = msgspec.structs.replace(bar, worst=min(events), facts=facts)
    if bar.verdict == "missed" and not cpu.is_steady(rounds):
        bar = _not_judged(bar, "the core ran at different speeds: others use it as well")
    return bar


def measure_snapshot(place: Place, machine: Machine) -> Bar:
    """Bar 11: the longest slice of each node, and what was counted meanwhile."""
    with (
        open_cluster(place, snapshots.NODES, settings=snapshots.SETTINGS) as cluster,
        ClusterLoad(cluster, place) as load,
    ):
        tell(f"snapshots: writing {snapshots.KEYS:,} keys first")
        snapshots.fill(load)
        machine.sample()
        machine.take_delay_ms()
        found = snapshots.measure(cluster, load)
        delay_ms = machine.take_delay_ms()
    tell(f"snapshots: {found.line()}")
    promise = "1,000,000 keys, 1,000 writes/s: slices ≤ 10 ms, 99.9 % of turns ≤ 20 ms"
    bar = _bar(11, promise, "ms", found.slices_ms, found.held, delay_ms)
    if bar.verdict == "missed" and delay_ms > snapshots.MAX_SLICE_MS:
        bar = _not_judged(bar, _woke_late(delay_ms, snapshots.MAX_SLICE_MS))
    return msgspec.structs.replace(bar, facts=found.line())


def _bar(
    number: int, promise: str, unit: str, rounds: list[float], held: bool, delay_ms: float
) -> Bar:
    return Bar(
        number=number,
        promise=promise,
        unit=unit,
        rounds=rounds,
        median=median(rounds),
        worst=max(rounds),
        verdict=verdict(held, delay_ms),
        wakeup_delay_ms=delay_ms,
        unjudged=_woke_late(delay_ms, NOT_JUDGED_MS) if delay_ms > NOT_JUDGED_MS else "",
    )


def _not_judged(bar: Bar, why: str) -> Bar:
    return msgspec.structs.replace(bar, verdict="not judged", unjudged=why)


def _woke_late(delay_ms: float, limit_ms: float) -> str:
    return f"an idle loop woke up {delay_ms:.0f} ms late meanwhile (limit {limit_ms:.0f})"


MEASURES: dict[int, Callable[[Place, Machine], Bar]] = {
    1: measure_up,
    3: measure_kill,
    4: measure_hand_over_bar,
    5: measure_rolling,
    9: measure_put,
    10: measure_sim,
    11: measure_snapshot,
}


# ------------------------------------------------------------------------------------- as command


def parser(words: argparse.ArgumentParser) -> None:
    """Add the words of `bars`."""
    words.add_argument("--only", type=numbers, default=list(BARS), help=f"which bars {BARS}")
    words.add_argument("--dir", help="where the data goes: a disk (default $TMPDIR, else build/)")
    words.add_argument("--json", action="store_true", help="print one JSON document")


def main(options: argparse.Namespace) -> int:
    """Measure, judge and print; 8 when a bar was missed."""
    unknown = [number for number in options.only if number not in MEASURES]
    if unknown:
        known = ", ".join(map(str, BARS))
        tell(f"error[usage]: there is no bar {unknown[0]}\n  try: --only, with some of {known}")
        return 2
    with open_place(options.dir) as place, Machine(place.sockets, place.data) as machine:
        bars = [MEASURES[number](place, machine) for number in options.only]
        report = Report(
            schema=SCHEMA,
            ok=all(bar.verdict != "missed" for bar in bars),
            host=describe_host(place),
            machine=machine.figures(),
            bars=bars,
        )
    if options.json:
        write(msgspec.json.format(msgspec.json.encode(report)).decode())
    else:
        for line in lines(report):
            write(line)
    return 0 if report.ok else EXIT_CHECK_FAILED


def lines(report: Report) -> list[str]:
    """Return the report for people."""
    out = [*put.host_lines(report.host, report.machine), ""]
    for bar in report.bars:
        places = {9: 3, 11: 1}.get(bar.number, 0)
        rounds = " ".join(f"{value:.{places}f}" for value in bar.rounds)
        out += [
            f"bar {bar.number}  {bar.verdict:<10}  {bar.promise}",
            (
                f"       median {bar.median:.{places}f}, worst {bar.worst:.{places}f} {bar.unit}"
                f" in {len(bar.rounds)} rounds: {rounds}"
            ),
        ]
        if bar.facts:
            out.append(f"       {bar.facts}")
        if bar.verdict == "not judged":
            out.append(f"       NOT JUDGED: {bar.unjudged}; repeat it on a quieter machine")
        else:
            out.append(f"       largest wake-up delay meanwhile: {bar.wakeup_delay_ms:.1f} ms")
    return out
