"""The contract of a replicated state machine (Raft §2).

Every node applies the same commands in the same order; that must lead to the same state and to the
same results everywhere. So `apply` must not read a clock, draw random numbers, look at the
environment, or iterate a set: everything it may use is in `ctx` and in the command. State lives in
memory; disk is the log (and, later, snapshots).

An exception in `apply` is a replicated error result, never a crash: every node gets the same one,
the command has no further effect, and applied_index moves on. A machine must therefore check a
command *before* it changes anything. `MemoryError` and `RecursionError` are not results of a
command but of a machine's condition: they stop the node.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol


class Ctx(NamedTuple):
    """Where a command stands in the log. `log_time_ms` never decreases, and is no wall clock."""

    index: int  # type: ignore[assignment]  # a field, not tuple.index
    term: int
    log_time_ms: int


class CommandError(Exception):
    """A command is refused for a reason that depends on nothing but the command and the state.

    Its text is replicated as the result, so it must be the same on every node.
    """


class StateMachine(Protocol):
    """What a node needs of the machine it replicates."""

    def apply(self, ctx: Ctx, command: bytes) -> bytes:
        """Change the state and return the result for the client, 4 MiB - 4 KiB at most.

        Deterministic. A longer result is replaced by an error, though the command had its effect.

        Raises:
            CommandError: the command is refused; nothing changed.
        """
        ...

    def query(self, ctx: Ctx, request: bytes) -> bytes:
        """Answer a read-only request; `ctx` is that of the last applied entry.

        Raises:
            CommandError: the request is refused.
        """
        ...

    def snapshot(self) -> Iterable[bytes]:
        """Return the state in chunks. The view is frozen when this returns, not when it is read.

        The node reads it in slices, between which entries are applied. So a chunk should take a
        few milliseconds at most; an empty one says that the next is not ready yet, and is dropped.
        An exception ends this snapshot and nothing else; the log is kept until one succeeds.
        """
        ...

    def restore(self, chunks: Iterable[bytes]) -> None:
        """Replace the state by a snapshot's. An exception stops the node: it has no state then."""
        ...

    def digest(self) -> int | None:
        """Return a 64-bit hash of the state, equal on all nodes at one index; None: no hash.

        Called after every entry, so it is kept up to date at the cost of what an entry changes.
        An exception stops the node: what it would have answered is not known.
        """
        ...
