"""Many seeds over several processes, resumable: `scripts/campaign --seeds 0..3000 --time 30`.

The progress file holds a first line that says what is run, and one line per finished seed. A
campaign that is started again with the same file goes on where it stopped; one of another version,
Python or time refuses the file, because its seeds mean other runs. It fails if a seed failed or if
one of the situations that every campaign must reach was not reached.
"""

from __future__ import annotations

import argparse
import os
import platform
import select
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec.json

from zraft import clock
from zraft._version import __version__
from zraft.errors import ConfigError
from zraft.testing.sim.marks import REQUIRED, missing

SEED_TIMEOUT_MS = 600_000
REPORT_MS = 10_000
FORMAT = "zraft.sim.campaign/1"


@dataclass(slots=True)
class Totals:
    """What the seeds of a campaign add up to."""

    seeds: int = 0
    events: int = 0
    simulated_ms: int = 0
    elapsed_ms: int = 0
    operations: int = 0
    undecided_keys: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    marks: Counter[str] = field(default_factory=Counter)
    failed: list[dict[str, Any]] = field(default_factory=list)

    def add(self, document: dict[str, Any]) -> None:
        """Take in one seed."""
        self.seeds += 1
        self.events += document["events"]
        self.simulated_ms += document["simulated_ms"]
        self.elapsed_ms += document["elapsed_ms"]
        self.operations += document["operations"]
        self.undecided_keys += document["undecided_keys"]
        self.faults.update(document["faults"])
        self.marks.update(document["marks"])
        if document["violations"]:
            self.failed.append(document)

    def lines(self) -> list[str]:
        """Return the report."""
        rate = self.events * 1000 // max(1, self.elapsed_ms)
        hours = self.simulated_ms / 3_600_000
        lines = [
            f"{self.seeds} seeds, {len(self.failed)} failed, {hours:.2f} simulated hours",
            f"  {self.events} events, {rate}/s a process; {self.operations} operations",
            f"  {sum(self.faults.values())} faults",
            "  faults: " + ", ".join(f"{kind} {n}" for kind, n in sorted(self.faults.items())),
        ]
        if self.undecided_keys:
            lines.append(f"  the judge gave up on {self.undecided_keys} keys")
        for mark in REQUIRED:
            lines.append(f"  {self.marks.get(mark, 0):8}  {mark}: {REQUIRED[mark]}")
        for document in self.failed:
            lines.append(f"✗ seed {document['seed']}: {'; '.join(document['violations'])[:300]}")
            lines.append(f"  replay: {document['replay']}")
        return lines


class Worker:
    """One process of a campaign, and the seed that it works on."""

    def __init__(self, time_s: float, bug: str | None = None) -> None:
        """Start the process; with `bug`, one of the zoo lives in it."""
        self.seed: int | None = None
        self.since_ms = 0
        self._bytes = b""
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "zraft.testing.sim.worker",
                "--time-s",
                f"{time_s:g}",
                *(() if bug is None else ("--bug", bug)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self.fd = self.process.stdout.fileno()

    def give(self, seed: int) -> None:
        """Let it run a seed."""
        self.seed, self.since_ms = seed, clock.monotonic_ms()
        stdin = self.process.stdin
        assert stdin is not None
        stdin.write(b"%d\n" % seed)
        stdin.flush()

    def read(self) -> dict[str, Any] | None:
        """Return the outcome of its seed, None while that is not whole yet."""
        piece = os.read(self.fd, 1 << 20)
        self._bytes += piece
        if not piece:
            raise ChildProcessError(f"the process that ran seed {self.seed} ended")
        if not self._bytes.endswith(b"\n"):
            return None
        document: dict[str, Any] = msgspec.json.decode(self._bytes)
        self._bytes, self.seed = b"", None
        return document

    def run(self, seed: int) -> dict[str, Any]:
        """Let it run a seed, and wait for the outcome."""
        self.give(seed)
        while (document := self.read()) is None:
            pass
        return document

    def end(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Progress:
    """The file that makes a campaign resumable."""

    def __init__(self, path: Path | None, time_s: float) -> None:
        """Open or make the file. ConfigError: it belongs to another campaign."""
        self.done: set[int] = set()
        self.totals = Totals()
        self._path = path
        python = ".".join(platform.python_version_tuple()[:2])
        head = {"format": FORMAT, "version": __version__, "python": python, "time_s": time_s}
        if path is None:
            return
        if not path.exists():
            path.write_bytes(msgspec.json.encode(head) + b"\n")
            return
        first, *lines = path.read_bytes().splitlines()
        if msgspec.json.decode(first) != head:
            raise ConfigError(
                f"{path} is the progress of another campaign",
                why=f"it says {first.decode()}, this one is {msgspec.json.encode(head).decode()}",
                try_="give another --progress file",
            )
        for line in lines:
            document = msgspec.json.decode(line)
            self.done.add(document["seed"])
            self.totals.add(document)

    def add(self, document: dict[str, Any]) -> None:
        """Take in a finished seed, and remember it."""
        self.totals.add(document)
        self.done.add(document["seed"])
        if self._path is not None:
            kept = {key: value for key, value in document.items() if key != "trace"}
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode(kept if document["ok"] else document) + b"\n")


def run_campaign(
    seeds: Iterable[int],
    *,
    time_s: float,
    jobs: int,
    progress: Progress,
    tell: bool = False,
) -> Totals:
    """Run the seeds that `progress` does not have; return what all add up to.

    Raises:
        ChildProcessError: a process ended, or hangs.
    """
    waiting = deque(seed for seed in seeds if seed not in progress.done)
    workers = [Worker(time_s) for _ in range(min(jobs, len(waiting)))]
    told_ms = clock.monotonic_ms()
    try:
        poll = select.poll()
        for worker in workers:
            poll.register(worker.fd, select.POLLIN)
            worker.give(waiting.popleft())
        while any(worker.seed is not None for worker in workers):
            ready = dict(poll.poll(1000))
            for worker in workers:
                if worker.fd in ready and (document := worker.read()) is not None:
                    progress.add(document)
                    if waiting:
                        worker.give(waiting.popleft())
                late_ms = clock.monotonic_ms() - worker.since_ms
                if worker.seed is not None and late_ms > SEED_TIMEOUT_MS:
                    raise ChildProcessError(f"seed {worker.seed} hangs")
            if tell and clock.monotonic_ms() - told_ms > REPORT_MS:
                told_ms = clock.monotonic_ms()
                totals = progress.totals
                text = (
                    f"{totals.seeds} seeds done, {len(waiting)} to go, {len(totals.failed)} failed"
                )
                sys.stderr.write(text + "\n")
    finally:
        for worker in workers:
            worker.end()
    return progress.totals


def parse_seeds(text: str) -> range:
    """Return the seeds in `A..B`, B not among them; a number alone is one seed."""
    first, dots, end = text.partition("..")
    if not first.isdigit() or (dots and not end.isdigit()):
        raise argparse.ArgumentTypeError("seeds are A..B, like 0..3000")
    return range(int(first), int(end) if dots else int(first) + 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a campaign from the command line; 0 if all held and every situation was reached."""
    parser = argparse.ArgumentParser(prog="scripts/campaign", description=__doc__)
    parser.add_argument("--seeds", type=parse_seeds, default=range(200), help="A..B (0..200)")
    parser.add_argument("--time", type=float, default=15.0, help="simulated seconds per seed (15)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--progress", type=Path, help="file to resume from, made if missing")
    given = parser.parse_args(arguments)
    progress = Progress(given.progress, given.time)
    totals = run_campaign(
        given.seeds, time_s=given.time, jobs=given.jobs, progress=progress, tell=True
    )
    sys.stdout.write("\n".join(totals.lines()) + "\n")
    for document in totals.failed[:3]:
        sys.stdout.write("\n".join(document["trace"][-60:]) + "\n")
    never = missing(totals.marks)
    if never:
        sys.stdout.write(f"✗ never reached: {', '.join(never)}\n")
    return 1 if totals.failed or never else 0


if __name__ == "__main__":
    sys.exit(main())
