"""The processes of the load, as the run sees them: started, counted, stopped, never left behind."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from zraft import clock
from zraft.errors import SupervisorError
from zraft.testing.checkrun.load import Counts, LoadSpec
from zraft.testing.history import Operation, read_history

START_MS = 20_000
STOP_MS = 20_000
MODULE = "zraft.testing.checkrun.load"

_counts = msgspec.json.Decoder(Counts)


class Driver:
    """One load process. Its standard output is read without waiting."""

    def __init__(self, spec: LoadSpec, environ: Mapping[str, str]) -> None:
        """Start it."""
        self.counts = Counts()
        self._path = Path(spec.path)
        self._buffer = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE, msgspec.json.encode(spec).decode()],
            env=dict(environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the run, which stops it in order
        )
        assert self._process.stdout is not None
        self.descriptor = self._process.stdout.fileno()
        os.set_blocking(self.descriptor, False)

    def read(self) -> bool:
        """Take in what it said; return False when it has closed its output: it ends."""
        while True:
            try:
                data = os.read(self.descriptor, 65536)
            except BlockingIOError:
                return True
            if not data:
                return False
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            if lines:
                self.counts = _counts.decode(lines[-1])

    def ask_to_stop(self) -> None:
        """Tell it to begin nothing more."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def finish(self, timeout_ms: int) -> None:
        """Wait until it has ended; SupervisorError when it does not, or failed."""
        try:
            code = self._process.wait(timeout_ms / 1000)
        except subprocess.TimeoutExpired:
            raise SupervisorError(f"a load process did not end in {timeout_ms} ms") from None
        if code != 0:
            raise SupervisorError(
                f"a load process ended with exit code {code}", why="its traceback is above"
            )

    def history(self) -> list[Operation]:
        """Return what its clients were told; it has ended."""
        return read_history(self._path)

    def close(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()


class Drivers:
    """All load processes of a run."""

    def __init__(self, specs: Sequence[LoadSpec], environ: Mapping[str, str]) -> None:
        """Start them."""
        self._all: list[Driver] = []
        self._poll = select.poll()
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.close)
            for spec in specs:
                driver = Driver(spec, environ)
                self._all.append(driver)
                self._poll.register(driver.descriptor, select.POLLIN)
            on_failure.pop_all()

    def wait_for_traffic(self) -> None:
        """Return when every process had a success; SupervisorError if that takes too long."""
        end_ms = clock.now_ms() + START_MS
        while not all(driver.counts.ok for driver in self._all):
            if clock.now_ms() >= end_ms:
                raise SupervisorError(
                    f"no operation succeeded in {START_MS // 1000} s", why="before any fault"
                )
            self.watch(100)

    def watch(self, duration_ms: int) -> None:
        """Let time pass and keep counting; SupervisorError when a process ends meanwhile."""
        end_ms = clock.now_ms() + duration_ms
        by_descriptor = {driver.descriptor: driver for driver in self._all}
        while (left_ms := end_ms - clock.now_ms()) > 0:
            for descriptor, _ in self._poll.poll(left_ms):
                driver = by_descriptor[descriptor]
                if not driver.read():
                    driver.finish(START_MS)
                    raise SupervisorError("a load process ended too early")

    @property
    def counts(self) -> Counts:
        """How many operations ended so far, in all processes."""
        return Counts(
            ok=sum(driver.counts.ok for driver in self._all),
            fail=sum(driver.counts.fail for driver in self._all),
            unknown=sum(driver.counts.unknown for driver in self._all),
        )

    def stop(self) -> list[Operation]:
        """Let every operation end, and return the history."""
        for driver in self._all:
            driver.ask_to_stop()
        for driver in self._all:
            driver.finish(STOP_MS)
            driver.read()
        return [op for driver in self._all for op in driver.history()]

    def close(self) -> None:
        """End all processes."""
        for driver in self._all:
            driver.close()
