"""Ctrl-C at a moment when ZeroMQ can be left."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def interrupt_later() -> Iterator[None]:
    """Put Ctrl-C off while sockets are made.

    The first socket of a context starts ZeroMQ's threads, which takes a while. Interrupted before
    the context knows it, it would never be closed, and ending the context would wait for ever (4 of
    12 tries).
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
