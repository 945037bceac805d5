"""Run a state machine so that no command can stop the node.

A command that makes `apply` raise has a result like any other: an error, the same on every node,
and applied_index moves on. So the result is made only of what is the same on every node: the text
of a CommandError, and of any other exception nothing but its type's name; its message may hold an
address or a file name, and goes to this node's own diagnostics instead.

MemoryError and RecursionError are no results: they depend on this process's condition, another node
would have answered differently, so they pass through and stop the node.

What raises while a snapshot is taken ends that snapshot, and nothing else: all of the log is still
there. A state that can not be restored is none, so that stops the node. Both are a MachineError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from zraft.errors import MachineError, ZraftError
from zraft.machine.base import CommandError, Ctx, StateMachine
from zraft.wire import MAX_RESULT_BYTES

OnError = Callable[[Ctx, Exception], None]
"""Takes an exception that is a defect of the machine: telemetry's `apply.failed`."""

DEFECT = "the state machine"
"""How a result starts that tells of a defect of the machine, not of a command that it refused."""


def apply_safely(
    machine: StateMachine, ctx: Ctx, command: bytes, on_error: OnError | None = None
) -> tuple[bool, bytes]:
    """Apply a command and return (True, its result) or (False, UTF-8 text of why not)."""
    return _run(machine.apply, ctx, command, on_error)


def query_safely(
    machine: StateMachine, ctx: Ctx, request: bytes, on_error: OnError | None = None
) -> tuple[bool, bytes]:
    """Answer a read-only request: (True, the answer) or (False, UTF-8 text of why not)."""
    return _run(machine.query, ctx, request, on_error)


def _run(
    method: Callable[[Ctx, bytes], bytes], ctx: Ctx, data: bytes, on_error: OnError | None
) -> tuple[bool, bytes]:
    try:
        result = method(ctx, data)
        if type(result) is not bytes:
            raise TypeError(f"the state machine returned {type(result).__name__}, not bytes")
        if len(result) > MAX_RESULT_BYTES:
            why = f"{DEFECT} returned {len(result)} bytes, at most {MAX_RESULT_BYTES} fit"
            return False, why.encode()
        return True, result
    except CommandError as refusal:
        return False, str(refusal).encode(errors="backslashreplace")
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # noqa: BLE001  # a machine's defect is a replicated result
        if on_error is not None:
            on_error(ctx, error)
        name = type(error).__name__
        return False, f"{DEFECT} raised {name}".encode(errors="backslashreplace")


def snapshot_safely(machine: StateMachine) -> Iterator[bytes]:
    """Freeze the machine's state and return its chunks.

    Raises:
        MachineError: now, or from the iterator, which then has ended.
    """
    with _blaming("snapshot"):
        chunks = iter(machine.snapshot())
    return _checked(chunks)


def _checked(chunks: Iterator[bytes]) -> Iterator[bytes]:
    while True:
        with _blaming("snapshot"):
            try:
                chunk = next(chunks)
            except StopIteration:
                return
            if type(chunk) is not bytes:
                raise TypeError(f"a chunk is {type(chunk).__name__}, not bytes")
        yield chunk


def restore_safely(machine: StateMachine, chunks: Iterable[bytes]) -> None:
    """Replace the machine's state by a snapshot's.

    Raises:
        MachineError: it refused; its state is not defined any more.
        ZraftError: what the chunks raised, or the machine itself, of their bytes.
    """
    with _blaming("restore"):
        machine.restore(chunks)


@contextmanager
def _blaming(method: str) -> Iterator[None]:
    try:
        yield
    except (ZraftError, MemoryError, RecursionError):
        raise
    except Exception as error:
        raise MachineError(
            f"the state machine's {method}() failed",
            why=f"{type(error).__name__}: {error}",
            try_="zraft.StateMachine says what it has to do, examples/bank.py is an example",
        ) from error
