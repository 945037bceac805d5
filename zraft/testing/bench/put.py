"""`bench put`: durable writes per second and their latency, zraft beside the bare loop.

Both run at the same time, one loads while the other idles, in turn: bare, zraft, bare, zraft. So a
pair of numbers is seconds apart and shares what else the machine is busy with. What counts is the
ratio of each pair, and the median of the ratios; single numbers come and go with the machine. The
idle zraft nodes cost the bare loop a little: that is measured and printed, too.

Both are driven by one process that keeps a number of writes outstanding over one socket: the bare
loop by its own few lines, zraft by `zraft.Client`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import msgspec

from zraft import clock
from zraft.client.control import Cluster
from zraft.testing.bench.command import numbers, tell, write
from zraft.testing.bench.latency import Rates, median
from zraft.testing.bench.load import ClusterLoad
from zraft.testing.bench.machine import Machine, MachineFigures
from zraft.testing.bench.place import (
    Host,
    Place,
    cpu_seconds,
    describe_host,
    open_cluster,
    open_place,
)
from zraft.testing.bench.yardstick import BareLoop

SCHEMA = "zraft.bench.put/1"
ONE_BY_ONE_COUNT = 1_000  # with few outstanding: each takes a whole round trip and sync
FEW = 8
WARM_UP = 500


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """The same load on both, one right after the other."""

    bare: Rates
    zraft: Rates
    ratio: float  # of writes per second
    wakeup_delay_ms: float
    idle_cores: float  # what the idle zraft nodes used while the bare loop ran


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """All pairs of one cluster size and one number of outstanding writes; medians."""

    nodes: int
    outstanding: int
    bare: Rates
    zraft: Rates
    ratio: float
    pairs: list[Pair]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was measured."""

    schema: str
    size_bytes: int
    count: int
    host: Host
    machine: MachineFigures
    cells: list[Cell]


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure."""

    nodes: list[int]
    outstanding: list[int]
    size_bytes: int = 128
    count: int = 30_000
    rounds: int = 3


def measure(
    spec: Spec, place: Place, machine: Machine, on_pair: Callable[[int, int, Pair], None]
) -> list[Cell]:
    """Run every load in pairs and return the cells."""
    cells = []
    for nodes in spec.nodes:
        with (
            BareLoop(nodes, place.sockets, place.make("bare")) as bare,
            open_cluster(place, nodes) as cluster,
            ClusterLoad(cluster, place) as load,
        ):
            bare.load(count=WARM_UP, outstanding=FEW, size_bytes=spec.size_bytes)
            load.put(count=WARM_UP, outstanding=FEW, size_bytes=spec.size_bytes)
            for outstanding in spec.outstanding:
                pairs = []
                for pair in _pairs(spec, outstanding, bare, cluster, load, machine):
                    on_pair(nodes, outstanding, pair)
                    pairs.append(pair)
                cells.append(_cell(nodes, outstanding, pairs))
    return cells


def _pairs(
    spec: Spec,
    outstanding: int,
    bare: BareLoop,
    cluster: Cluster,
    load: ClusterLoad,
    machine: Machine,
) -> Iterator[Pair]:
    count = min(spec.count, ONE_BY_ONE_COUNT) if outstanding < FEW else spec.count
    pids = [row.pid for row in cluster.table().values() if row.pid is not None]
    for _ in range(spec.rounds):
        machine.sample()
        machine.take_delay_ms()
        used_s, start_ns = cpu_seconds(pids), clock.monotonic_ns()
        bare_rates = bare.load(
            count=count, outstanding=outstanding, size_bytes=spec.size_bytes
        ).rates()
        idle_cores = (cpu_seconds(pids) - used_s) / ((clock.monotonic_ns() - start_ns) / 1e9)
        rates = load.put(count=count, outstanding=outstanding, size_bytes=spec.size_bytes).rates()
        yield Pair(
            bare=bare_rates,
            zraft=rates,
            ratio=rates.writes_per_s / bare_rates.writes_per_s,
            wakeup_delay_ms=machine.take_delay_ms(),
            idle_cores=idle_cores,
        )


def _cell(nodes: int, outstanding: int, pairs: list[Pair]) -> Cell:
    return Cell(
        nodes=nodes,
        outstanding=outstanding,
        bare=_middle([pair.bare for pair in pairs]),
        zraft=_middle([pair.zraft for pair in pairs]),
        ratio=median([pair.ratio for pair in pairs]),
        pairs=pairs,
    )


def _middle(rates: list[Rates]) -> Rates:
    return Rates(
        writes_per_s=median([rate.writes_per_s for rate in rates]),
        p50_ms=median([rate.p50_ms for rate in rates]),
        p99_ms=median([rate.p99_ms for rate in rates]),
        max_ms=max(rate.max_ms for rate in rates),
    )


# ------------------------------------------------------------------------------------- as command


def parser(words: argparse.ArgumentParser) -> None:
    """Add the words of `bench put`."""
    words.add_argument("--nodes", type=numbers, default=[3, 5], help="cluster sizes (3,5)")
    words.add_argument(
        "--outstanding", type=numbers, default=[1, 64, 1000], help="writes in flight (1,64,1000)"
    )
    words.add_argument("--size", type=int, default=128, help="bytes of a value (128)")
    words.add_argument("--count", type=int, default=30_000, help="writes of one load (30000)")
    words.add_argument("--rounds", type=int, default=3, help="pairs of loads (3)")
    words.add_argument("--dir", help="where the data goes: a disk (default $TMPDIR, else build/)")
    words.add_argument("--json", action="store_true", help="print one JSON document")


def main(options: argparse.Namespace) -> int:
    """Measure, and print."""
    spec = Spec(
        nodes=options.nodes,
        outstanding=options.outstanding,
        size_bytes=options.size,
        count=options.count,
        rounds=options.rounds,
    )
    with open_place(options.dir) as place, Machine(place.sockets, place.data) as machine:
        cells = measure(spec, place, machine, tell_pair)
        report = Report(
            schema=SCHEMA,
            size_bytes=spec.size_bytes,
            count=spec.count,
            host=describe_host(place),
            machine=machine.figures(),
            cells=cells,
        )
    if options.json:
        write(msgspec.json.format(msgspec.json.encode(report)).decode())
    else:
        for line in lines(report):
            write(line)
    return 0


def tell_pair(nodes: int, outstanding: int, pair: Pair) -> None:
    """Show that something goes on."""
    tell(
        f"{nodes} nodes, {outstanding:>4} outstanding:"
        f" bare {pair.bare.writes_per_s:>7.0f}/s, zraft {pair.zraft.writes_per_s:>6.0f}/s,"
        f" ratio {pair.ratio:.3f}"
    )


def host_lines(host: Host, machine: MachineFigures) -> list[str]:
    """Return what every result is printed under."""
    return [
        (
            f"zraft {host.zraft}, Python {host.python}, Linux {host.kernel}, {host.cpus} cores; "
            f"data in {host.directory} ({host.file_system})"
        ),
        (
            f"ipc round trip {machine.round_trip_ms:.3f} ms (p99 {machine.round_trip_p99_ms:.3f}), "
            f"fdatasync {machine.fdatasync_ms:.3f} ms (p99 {machine.fdatasync_p99_ms:.3f}), "
            f"largest wake-up delay {machine.wakeup_delay_ms:.1f} ms"
        ),
    ]


def lines(report: Report) -> list[str]:
    """Return the report for people."""
    pairs = [pair for cell in report.cells for pair in cell.pairs]
    out = host_lines(report.host, report.machine)
    out += [
        (
            f"values of {report.size_bytes} B; medians of {len(report.cells[0].pairs)} pairs; each "
            "write on the disks of a majority before it is acknowledged"
        ),
        "",
        (
            "nodes  outstanding          bare loop: writes/s   p50 ms   p99 ms"
            "          zraft: writes/s   p50 ms   p99 ms   ratio"
        ),
    ]
    for cell in report.cells:
        out.append(
            f"{cell.nodes:>5}  {cell.outstanding:>11}"
            f"  {cell.bare.writes_per_s:>27,.0f} {cell.bare.p50_ms:>8.2f} {cell.bare.p99_ms:>8.2f}"
            f"  {cell.zraft.writes_per_s:>23,.0f} {cell.zraft.p50_ms:>8.2f}"
            f" {cell.zraft.p99_ms:>8.2f}   {cell.ratio:.3f}"
        )
    worst = max(pair.idle_cores for pair in pairs)
    out.append(f"the idle zraft nodes used up to {worst:.1%} of a core beside the bare loop")
    return out
