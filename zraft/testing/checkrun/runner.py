"""A check run: a cluster of its own, clients, faults, and the verdict.

    up ──▶ load ──▶ faults for the given time ──▶ heal, everything runs, traffic flows again
       ──▶ last reads of every key ──▶ down ──▶ the judge

The run owns everything it starts: the cluster lives in a temporary directory and is gone at the
end, also after an interrupt. What is kept is the run directory: `history.jsonl`, `faults.jsonl`,
`run.json` with the verdict, and the logs of the processes.

**A quiet run proves nothing.** A run whose clients got little done, or in which a kind of fault
hardly ever happened, or that saw no traffic after the healing, is inconclusive, whatever the judge
says of its history; a violation stays a violation.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from zraft import clock
from zraft.client.conditions import leadership, members
from zraft.client.control import Cluster, UpSpec
from zraft.client.sync import Client
from zraft.errors import RequestError, Unavailable
from zraft.testing.checkrun.drivers import Drivers
from zraft.testing.checkrun.field import Field, Strike
from zraft.testing.checkrun.load import Counts, LoadSpec
from zraft.testing.checkrun.nemesis import NEMESES, PILING, Nemesis
from zraft.testing.checkrun.resources import Resources, grown
from zraft.testing.history import Operation, write_history
from zraft.testing.linearizability import CheckResult, check_history

NAME = "check"
PROCESSES = 2
MAX_KEYS = 1_000
OPERATION_MS = 800
SETTLE_MS = 1_000  # of traffic after everything was healed
WHOLE_MS = 30_000
TELL_EVERY_MS = 2_000
STEP_MS = (100, 900)  # between two faults
ENOUGH_PER_S = 20  # operations that succeed
ENOUGH_EVERY_MS = 6_000  # a fault of each kind, at least
JUDGE_MS = 300_000


class RunSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for."""

    nemeses: list[str]
    time_ms: int
    clients: int
    seed: int
    nodes: int = 5
    keys: int = 12
    interval_ms: int = 5


@dataclass(slots=True)
class Progress:
    """Something to tell while it runs: `what` happened, None for a mere count."""

    at_ms: int
    what: str | None
    counts: Counts


@dataclass(slots=True)
class RunResult:
    """What a run found. `shortfalls` say why it proves too little; none means that it counts."""

    spec: RunSpec
    check: CheckResult
    counts: Counts
    faults: Counter[str]
    leader_changes: int
    shortfalls: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)


def run_check(
    spec: RunSpec,
    directory: Path,
    environ: Mapping[str, str],
    tell: Callable[[Progress], None],
) -> RunResult:
    """Do a whole run and save it in `directory`, which exists and is empty.

    Raises:
        SupervisorError: the cluster did not come up, or the load did not run.
        ControlError: numbers that make no sense.
    """
    with _own_cluster(spec, directory, environ) as (cluster, variables):
        run = _Run(spec, directory, cluster, variables, tell)
        history = run.work()
    history.sort(key=lambda op: op.invoke_ns)
    write_history(directory / "history.jsonl", history)
    for path in directory.glob("clients-*.jsonl"):
        path.unlink()
    tell(run.progress(f"judging {len(history)} operations"))
    check = check_history(history, timeout_ms=JUDGE_MS)
    result = RunResult(
        spec, check, run.counts, run.faults, len(run.terms) - 1, run.shortfalls(), run.crashes
    )
    (directory / "run.json").write_bytes(msgspec.json.encode(_summary(result)))
    return result


def _summary(result: RunResult) -> dict[str, Any]:
    return {
        "spec": msgspec.to_builtins(result.spec),
        "verdict": result.check.verdict,
        "not_linearizable": result.check.not_linearizable,
        "counts": msgspec.to_builtins(result.counts),
        "faults": dict(result.faults),
        "leader_changes": result.leader_changes,
        "shortfalls": result.shortfalls,
        "crashes": result.crashes,
    }


@contextlib.contextmanager
def _own_cluster(
    spec: RunSpec, directory: Path, environ: Mapping[str, str]
) -> Iterator[tuple[Cluster, dict[str, str]]]:
    """Bring a cluster up that nobody else sees; afterwards only its logs are left."""
    base = Path(tempfile.mkdtemp(prefix="zc"))  # short: sockets are below it
    home, sockets = base / "h", base / "r"
    for path in (home, sockets):
        path.mkdir(mode=0o700)
    variables = {key: value for key, value in environ.items() if not key.startswith("ZRAFT_")}
    variables |= {"ZRAFT_HOME": str(home), "XDG_RUNTIME_DIR": str(sockets)}
    try:
        Cluster.up(UpSpec(name=NAME, nodes=spec.nodes), variables)
        yield Cluster.open(NAME, variables), variables
    finally:
        try:
            if (home / NAME / "cluster.toml").exists():
                Cluster.open(NAME, variables).down()
        finally:
            _keep_logs(home / NAME, directory / "logs")
            shutil.rmtree(base, ignore_errors=True)


def _keep_logs(source: Path, target: Path) -> None:
    for path in sorted(source.glob("*/*")):
        if path.name.startswith("log.jsonl") or (path.name == "err" and path.stat().st_size):
            place = target / path.parent.name
            place.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place / path.name)


class _Run:
    """The run while the cluster lives."""

    def __init__(
        self,
        spec: RunSpec,
        directory: Path,
        cluster: Cluster,
        variables: dict[str, str],
        tell: Callable[[Progress], None],
    ) -> None:
        self.counts = Counts()
        self.faults: Counter[str] = Counter()
        self.terms: set[int] = set()
        self.crashes: list[str] = []
        self._spec = spec
        self._directory = directory
        self._cluster = cluster
        self._variables = variables
        self._tell = tell
        self._field = Field(cluster, random.Random(spec.seed))
        self._nemeses: dict[str, Nemesis] = {kind: NEMESES[kind]() for kind in spec.nemeses}
        self._active: list[Strike] = []
        self._began_ms = clock.now_ms()
        self._told_ms = 0
        self._ok_after_heal = 0
        self._resources: dict[str, Resources] = {}

    def progress(self, what: str | None) -> Progress:
        """Return what to tell now."""
        return Progress(clock.now_ms() - self._began_ms, what, self.counts)

    def work(self) -> list[Operation]:
        """Load, break, heal, read everything once more; return the history."""
        drivers = Drivers(self._load_specs(), self._variables)
        try:
            drivers.wait_for_traffic()
            self._resources = self._measure()
            self._began_ms = clock.now_ms()
            self._rage(drivers)
            self._heal(drivers)
            before = drivers.counts.ok
            drivers.watch(SETTLE_MS)
            self._ok_after_heal = drivers.counts.ok - before
            self.crashes += grown(self._resources, self._measure())
            history = drivers.stop()
            self.counts = drivers.counts
        finally:
            drivers.close()
        history += self._last_reads()
        self._note_crashes()
        return history

    def _measure(self) -> dict[str, Resources]:
        """Return what the processes of the nodes hold now."""
        rows = self._cluster.table()
        pids = {name: row.pid for name, row in rows.items() if row.pid is not None}
        return {name: found for name, pid in pids.items() if (found := Resources.of(pid))}

    def _load_specs(self) -> list[LoadSpec]:
        spec = self._spec
        shares = [list(range(spec.clients))[start::PROCESSES] for start in range(PROCESSES)]
        return [
            LoadSpec(
                cluster=NAME,
                nodes=self._field.names,
                clients=share,
                keys=spec.keys,
                seed=spec.seed,
                interval_ms=spec.interval_ms,
                timeout_ms=OPERATION_MS,
                path=str(self._directory / f"clients-{number}.jsonl"),
            )
            for number, share in enumerate(shares)
            if share
        ]

    def _rage(self, drivers: Drivers) -> None:
        """Break things until the time is up."""
        rng = self._field.rng
        end_ms = self._began_ms + self._spec.time_ms
        while (now_ms := clock.now_ms()) < end_ms:
            self._undo_due(now_ms)
            self.counts = drivers.counts
            kinds = [kind for kind in self._nemeses if not self._is_active(kind)]
            if kinds:
                self._strike(rng.choice(kinds))
            elif now_ms >= self._told_ms + TELL_EVERY_MS:
                self._told_ms = now_ms
                self._tell(self.progress(None))
            self._note_term()
            drivers.watch(max(1, min(rng.randint(*STEP_MS), end_ms - clock.now_ms())))

    def _is_active(self, kind: str) -> bool:
        """Tell whether a kind has to wait: links break once at a time, kills and pauses pile up."""
        return kind not in PILING and any(strike.kind == kind for strike in self._active)

    def _strike(self, kind: str) -> None:
        strike = self._nemeses[kind].strike(self._field)
        if strike is not None:
            self._active.append(strike)
            self._told_ms = clock.now_ms()
            self._tell(self.progress(strike.what))

    def _undo_due(self, now_ms: int) -> None:
        for strike in [strike for strike in self._active if strike.until_ms <= now_ms]:
            self._active.remove(strike)
            self._nemeses[strike.kind].undo(self._field, strike)
            if strike.hits != 0:
                self.faults[strike.kind] += 1
            with open(self._directory / "faults.jsonl", "ab") as file:
                file.write(msgspec.json.encode(strike) + b"\n")

    def _note_term(self) -> None:
        statuses = self._cluster.statuses(timeout_ms=200)
        self.terms |= {s.term for s in statuses.values() if s is not None and s.role == "leader"}

    def _heal(self, drivers: Drivers) -> None:
        """End all faults; return when every node runs and there is a leader."""
        end_ms = clock.now_ms() + WHOLE_MS
        while self._active:
            self._undo_due(clock.now_ms())
            drivers.watch(50)
        while broken := [n for n, row in self._cluster.table().items() if row.state != "running"]:
            if clock.now_ms() >= end_ms:
                raise Unavailable(
                    f"{', '.join(broken)} did not come back in {WHOLE_MS // 1000} s",
                    try_=f"look into {self._directory / 'logs'}",
                )
            drivers.watch(100)
        self._cluster.wait_for(["leader"], timeout_ms=WHOLE_MS)
        self._note_term()
        self.counts = drivers.counts
        self._tell(self.progress("everything healed"))

    def _last_reads(self) -> list[Operation]:
        """Read every key once more: an acknowledged write that is lost shows here at the latest."""
        found = []
        with Client(NAME, environ=self._variables, timeout_s=10) as client:
            for number in range(self._spec.keys):
                key = f"k{number}"
                invoke_ns = clock.monotonic_ns()
                value = client.kv.get(key)
                info = client.info
                assert info is not None
                found.append(
                    Operation(
                        process="last",
                        op="get",
                        key=key,
                        output=None if value is None else value.decode(),
                        invoke_ns=invoke_ns,
                        return_ns=clock.monotonic_ns(),
                        status="ok",
                        note={"node": info.node, "index": info.index, "term": info.term},
                    )
                )
        return found

    def _note_crashes(self) -> None:
        """Note every process that ended without being told to, and machines that differ."""
        for name, row in self._cluster.table().items():
            if row.last_exit is not None and not row.last_exit.expected:
                self.crashes.append(f"{name} ended by itself: {row.last_exit}")
        with contextlib.suppress(RequestError):
            statuses = self._cluster.wait_for(["converged"], timeout_ms=10_000).statuses
            found = leadership(statuses)
            leader = None if found is None else statuses[found.leader]
            taking_part = {*statuses} if leader is None else members(leader, statuses)
            hashes = {n: s.state_hash for n, s in statuses.items() if s and n in taking_part}
            if len(set(hashes.values())) > 1:
                self.crashes.append(f"the nodes' states differ: {hashes}")

    def shortfalls(self) -> list[str]:
        """Say why this run proves too little."""
        spec = self._spec
        found = []
        enough = ENOUGH_PER_S * spec.time_ms // 1000
        if self.counts.ok < enough:
            found.append(f"only {self.counts.ok} operations succeeded, {enough} are the least")
        least = max(1, spec.time_ms // ENOUGH_EVERY_MS // max(1, len(spec.nemeses)))
        for kind in spec.nemeses:
            if self.faults[kind] < least:
                found.append(f"only {self.faults[kind]} of {kind}, {least} are the least")
        if not self._ok_after_heal:
            found.append("no operation succeeded after everything was healed")
        return found


def make_directory(root: Path, seed: int, stamp: str) -> Path:
    """Make and return a new run directory, `runs/<stamp>-register-<seed>`."""
    root.mkdir(parents=True, exist_ok=True)
    for number in range(1000):
        path = root / f"{stamp}-register-{seed}{f'-{number}' if number else ''}"
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path.resolve()
    raise AssertionError("a thousand runs of one minute")
