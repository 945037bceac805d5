"""Helper processes of a measurement: started by module name, spoken to by lines, never left over.

A helper ends when its standard input is closed, so it ends with the process that started it,
however that ended. It is in a session of its own: Ctrl-C reaches only the measuring process, which
then cleans up in order.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType

from zraft import clock
from zraft.errors import SupervisorError

START_MS = 15_000
END_MS = 3_000
_CHUNK_BYTES = 65_536


class Helper:
    """A running `python -m <module> <words…>`; use it as a context manager."""

    def __init__(self, module: str, words: Sequence[str] = ()) -> None:
        """Start it; it says "ready" when it is."""
        self._module = module
        self._buffer = b""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def __enter__(self) -> Helper:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def wait_ready(self) -> None:
        """Return when it has said that it is ready."""
        line = self.read_line(START_MS)
        assert line == "ready", (self._module, line)

    def ask(self, line: str, *, timeout_ms: int = 5_000) -> str:
        """Write a line and return the answer."""
        self.tell(line)
        return self.read_line(timeout_ms)

    def tell(self, line: str) -> None:
        """Write a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def read_line(self, timeout_ms: int) -> str:
        """Return its next line.

        Raises:
            SupervisorError: it said nothing in time, or ended.
        """
        assert self._process.stdout is not None
        out = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(out, select.POLLIN)
        deadline_ms = clock.now_ms() + timeout_ms
        while b"\n" not in self._buffer:
            if not poll.poll(max(0, deadline_ms - clock.now_ms())):
                raise SupervisorError(f"{self._module} said nothing for {timeout_ms} ms")
            data = os.read(out, _CHUNK_BYTES)
            if not data:
                raise SupervisorError(f"{self._module} ended", why=f"code {self._process.wait()}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def end(self) -> None:
        """Close its input and wait for its end; kill it when it does not listen."""
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(END_MS / 1000)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def say_ready() -> None:
    """As a helper: tell that everything is bound and opened."""
    say("ready")


def say(line: str) -> None:
    """As a helper: write a line."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
