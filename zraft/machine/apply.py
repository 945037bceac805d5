"""Run a state machine so that no command can stop the node.

A command that makes `apply` raise has a result like any other: an error, the same on every node,
and applied_index moves on. So the result is made only of what is the same on every node: the text
of a CommandError, and of any other exception nothing but its type's name; its message may hold an
address or a file name, and goes to this node's own diagnostics instead.

MemoryError and RecursionError are no results: they depend on this process's condition, another node
would have answered differently, so they pass through and stop the node.
"""

from __future__ import annotations

from collections.abc import Callable

from zraft.machine.base import CommandError, Ctx, StateMachine

OnError = Callable[[Ctx, Exception], None]
"""Takes an exception that is a defect of the machine: telemetry's `apply.failed`."""


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
        return True, result
    except CommandError as refusal:
        return False, str(refusal).encode(errors="backslashreplace")
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # noqa: BLE001  # a machine's defect is a replicated result
        if on_error is not None:
            on_error(ctx, error)
        name = type(error).__name__
        return False, f"the state machine raised {name}".encode(errors="backslashreplace")
