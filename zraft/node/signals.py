"""Signals as bytes in a pipe that the loop polls like any socket.

A handler only notes; the loop acts, in its own place in the turn. The wake-up descriptor makes the
poll return: without it a signal interrupts the poll, and a poll that is taken up again after an
interruption waits in whole seconds (pyzmq truncates its clock), which would stretch every timer of
a process that gets signals often.

The mask of blocked signals and ignored dispositions are inherited through exec, so a process that
was started with SIGTERM blocked could never be stopped politely: `reset_inherited` is a node's
first act.
"""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType

STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})
REOPEN_SIGNAL = signal.SIGHUP
NOTED_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,  # means nothing here, and must not end the process
    signal.SIGUSR2,
)
_READ_BYTES = 4096


def reset_inherited() -> None:
    """Unblock every signal and give the ones that end a process their default meaning.

    Until `Signals` exists a node has nothing to lose: SIGTERM and SIGINT just end it.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Signals:
    """The signals that arrived, for the loop to take. One per process, main thread only."""

    def __init__(self) -> None:
        """Install the handlers and the pipe; `fd` is readable after a signal."""
        self.fd, self._write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._noted: set[int] = set()
        self._wakeup_before = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        self._handlers_before = {
            number: signal.signal(number, self._note) for number in NOTED_SIGNALS
        }

    def take(self) -> set[int]:
        """Return the numbers of the signals that arrived since the last call.

        The pipe is emptied first: a signal in between leaves a byte that wakes the loop once more
        for nothing, never a signal without a byte. A full pipe loses bytes, not signals.
        """
        taken: set[int] = set()
        with contextlib.suppress(BlockingIOError):  # empty
            while data := os.read(self.fd, _READ_BYTES):
                taken.update(data)
        noted, self._noted = self._noted, set()
        return taken | noted

    def close(self) -> None:
        """Put back the handlers and the wake-up descriptor, and close the pipe."""
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self.fd)
        os.close(self._write_fd)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._noted.add(number)
