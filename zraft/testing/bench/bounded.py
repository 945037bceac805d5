"""`bench bounded`: many writes over few keys leave a bounded log and a flat memory behind.

Two million writes over a thousand keys are half a gibibyte of log for a state of some 100 KB. The
nodes take snapshots and cut their logs meanwhile. Looked at a hundred times: how large the log's
directory is, how many entries are kept, and how much memory the process has. Memory is flat when
the second half of the run has no more of it than the first half, with a margin for the allocator.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
import psutil

from zraft.client.control import Cluster
from zraft.errors import SupervisorError
from zraft.testing.bench.command import EXIT_CHECK_FAILED, tell, write
from zraft.testing.bench.load import KEYS, ClusterLoad
from zraft.testing.bench.place import NAME, Place, open_cluster, open_place

SCHEMA = "zraft.bench.bounded/1"
MIB = 1 << 20
SEGMENTS = (
    4  # one being filled, one prepared, one that is cut next, one that a snapshot is late for
)
MEMORY_MARGIN = 1.1

Settings = dict[str, dict[str, int | bool | str]]


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What to do. The log is cut when it has grown by `min_log_bytes`."""

    nodes: int = 3
    writes: int = 2_000_000
    size_bytes: int = 128
    outstanding: int = 1_000
    min_log_bytes: int = 16 * MIB
    segment_bytes: int = 4 * MIB
    trailing_entries: int = 10_000
    trailing_bytes: int = 4 * MIB
    looks: int = 100

    @property
    def settings(self) -> Settings:
        """What the cluster is started with."""
        return {
            "storage": {
                "segment_bytes": self.segment_bytes,
                "prealloc_bytes": min(self.segment_bytes, 256 << 10),
            },
            "snapshot": {
                "min_log_bytes": self.min_log_bytes,
                "trailing_entries": self.trailing_entries,
                "trailing_bytes": self.trailing_bytes,
                "held_bytes": self.trailing_bytes,
            },
        }

    @property
    def max_log_bytes(self) -> int:
        """How large the log's directory may become: in it are whole segments."""
        kept_bytes = self.min_log_bytes + self.trailing_bytes
        return 2 * kept_bytes + SEGMENTS * self.segment_bytes


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What one node held at one moment."""

    node: str
    writes: int
    log_bytes: int
    kept_entries: int
    snapshot_index: int
    memory_bytes: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All looks, and what is to be said of them."""

    schema: str
    spec: Spec
    max_log_bytes: int
    looks: list[Look]
    problems: list[str]


def measure(spec: Spec, cluster: Cluster, load: ClusterLoad, place: Place) -> list[Look]:
    """Write, and look at all nodes from time to time."""
    piece = max(1, spec.writes // spec.looks)
    looks: list[Look] = []
    for done in range(0, spec.writes, piece):
        load.put(
            count=min(piece, spec.writes - done),
            outstanding=spec.outstanding,
            size_bytes=spec.size_bytes,
        )
        looks += look(cluster, place, min(done + piece, spec.writes))
        if len(looks) % (10 * spec.nodes) == 0:
            for one in looks[-spec.nodes :]:
                tell(line(one))
    return looks


def look(cluster: Cluster, place: Place, writes: int) -> list[Look]:
    """Return what each node holds now."""
    found = []
    for name, status in cluster.statuses(timeout_ms=10_000).items():
        if status is None:
            raise SupervisorError(f"{name} gave no status within 10 s")
        found.append(
            Look(
                node=name,
                writes=writes,
                log_bytes=directory_bytes(place.data / "h" / NAME / name / "wal"),
                kept_entries=status.last_index + 1 - status.first_index,
                snapshot_index=status.snapshot_index,
                memory_bytes=psutil.Process(status.pid).memory_info().rss,
            )
        )
    return found


def directory_bytes(directory: Path) -> int:
    """Return the size of all files in a directory; those that are deleted meanwhile count as 0."""
    total = 0
    for path in directory.iterdir():
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def problems(spec: Spec, looks: list[Look], *, judge_memory: bool = True) -> list[str]:
    """Return what was not bounded; a short run says nothing about memory."""
    found = [
        f"{one.node} had a log of {one.log_bytes:,} bytes after {one.writes:,} writes, over "
        f"{spec.max_log_bytes:,}"
        for one in looks
        if one.log_bytes > spec.max_log_bytes
    ]
    for name in sorted({one.node for one in looks}):
        own = [one for one in looks if one.node == name]
        if own[-1].snapshot_index == 0:
            found.append(f"{name} took no snapshot")
        before, after = memory_of_halves(own)
        if judge_memory and after > MEMORY_MARGIN * before:
            found.append(f"{name} grew from {before:,} to {after:,} bytes of memory")
    return found


def memory_of_halves(own: list[Look]) -> tuple[int, int]:
    """Return the most memory that a node had in each half of the run."""
    half = (len(own) + 1) // 2
    first, second = own[:half], own[half:] or own
    return max(one.memory_bytes for one in first), max(one.memory_bytes for one in second)


# ------------------------------------------------------------------------------------- as command


def parser(words: argparse.ArgumentParser) -> None:
    """Add the words of `bench bounded`."""
    words.add_argument("--writes", type=int, default=Spec().writes, help="writes (2000000)")
    words.add_argument("--dir", help="where the data goes: a disk (default $TMPDIR, else build/)")
    words.add_argument("--json", action="store_true", help="print one JSON document")


def main(options: argparse.Namespace) -> int:
    """Write, judge and print; 8 when something grew without bound."""
    spec = Spec(writes=options.writes)
    with (
        open_place(options.dir) as place,
        open_cluster(place, spec.nodes, settings=spec.settings) as cluster,
        ClusterLoad(cluster, place) as load,
    ):
        looks = measure(spec, cluster, load, place)
    found = problems(spec, looks)
    report = Report(
        schema=SCHEMA, spec=spec, max_log_bytes=spec.max_log_bytes, looks=looks, problems=found
    )
    if options.json:
        write(msgspec.json.format(msgspec.json.encode(report)).decode())
    else:
        for text in lines(report):
            write(text)
    return EXIT_CHECK_FAILED if found else 0


def line(one: Look) -> str:
    """Return one look for people."""
    return (
        f"{one.writes:>9,} writes  {one.node}  log {one.log_bytes / MIB:6.1f} MiB  "
        f"{one.kept_entries:>7,} entries  snapshot at {one.snapshot_index:>9,}  "
        f"memory {one.memory_bytes / MIB:6.1f} MiB"
    )


def lines(report: Report) -> list[str]:
    """Return the report for people."""
    spec = report.spec
    head = f"{spec.writes:,} writes of {spec.size_bytes} B over {KEYS:,} keys, {spec.nodes} nodes"
    out = [f"{head}; the log may take {report.max_log_bytes / MIB:.1f} MiB"]
    for name in sorted({one.node for one in report.looks}):
        own = [one for one in report.looks if one.node == name]
        before, after = memory_of_halves(own)
        out.append(
            f"{name}: log at most {max(one.log_bytes for one in own) / MIB:.1f} MiB, "
            f"{max(one.kept_entries for one in own):,} entries; memory at most "
            f"{before / MIB:.1f} MiB in the first half, {after / MIB:.1f} MiB in the second"
        )
    return out + [f"PROBLEM: {text}" for text in report.problems]
