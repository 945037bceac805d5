"""Every named failure of zraft, in one tree.

    ZraftError
    ├─ ConfigError                          exit 78
    ├─ ProtocolError                        bytes from outside that are not what they should be
    │  ├─ DecodeError   ├─ VersionError   └─ TooLargeError
    ├─ ControlError                         unknown node, fault, argument
    │  └─ NotLeader                         only a leader can do that: exit 6
    ├─ SupervisorError                      start timeout; lock held: exit 75
    │  └─ NotRunning                        no such cluster, nothing runs: exit 3
    ├─ StorageError                         the disk refused: exit 74
    │  ├─ CorruptLogError                   bytes on disk are not what was written: exit 65
    │  ├─ ForeignDataError                  the directory belongs to another member: exit 65
    │  └─ LockedError                       another process uses the directory: exit 75
    ├─ DivergedError                        this replica's state is not the others': exit 70
    ├─ MachineError                         the state machine broke its contract: exit 70
    └─ RequestError                         a client's request was not answered with "ok"
       ├─ Unavailable        not applied, safe to retry
       ├─ Unsupported        not applied: not known, or not allowed, in this cluster
       ├─ OutcomeUnknown     may be applied; retry only with the same request id
       ├─ Busy               not applied; retry later
       ├─ SessionExpired     not repeated; what came before nobody knows any more
       ├─ Withdrawn          not applied, and never will be
       ├─ Conflict  ├─ NotFound  ├─ MembershipRefused  └─ InvalidCommand

A message says what happened, why, and what to try; the three parts are kept apart so that the
command line can print them as such. Broken invariants are not here: they are asserts, and they stop
the node with exit code 70.
"""

from __future__ import annotations

import contextlib
import os
from typing import ClassVar

EXIT_DATA = 65  # corrupt, wiped or foreign data
EXIT_SOFTWARE = 70  # a broken invariant
EXIT_IO = 74  # the disk refused
EXIT_LOCKED = 75  # somebody else holds the lock
EXIT_CONFIG = 78  # configuration

HOPELESS_EXITS = frozenset({EXIT_DATA, EXIT_SOFTWARE, EXIT_LOCKED, EXIT_CONFIG})
"""Exit codes that a restart can't heal (design: the supervisor does not restart on these)."""


class ZraftError(Exception):
    """The root: `what` happened, `why`, what to `try_` next; `exit_code` for a command line.

    `code` is a stable, machine-readable name; it never changes once published.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, why: str = "", try_: tuple[str, ...] | str = ()) -> None:
        self.what = what
        self.why = why
        self.try_: tuple[str, ...] = (try_,) if isinstance(try_, str) else try_
        super().__init__(what)

    def __str__(self) -> str:
        parts = [self.what]
        if self.why:
            parts.append(f"why: {self.why}")
        parts.extend(f"try: {line}" for line in self.try_)
        return "\n".join(parts)


class ConfigError(ZraftError):
    """A configuration key is unknown, or its value breaks a rule."""

    code = "config"
    exit_code = EXIT_CONFIG


class ProtocolError(ZraftError):
    """A frame or a record is not what the protocol allows."""

    code = "protocol"


class DecodeError(ProtocolError):
    """Bytes do not decode to the shape they should have."""

    code = "protocol.decode"


class VersionError(ProtocolError):
    """The lowest version that can read these bytes is newer than this program."""

    code = "protocol.version"


class TooLargeError(ProtocolError):
    """A frame, a key or a request is beyond its limit; nothing was sent."""

    code = "protocol.too_large"
    exit_code = 2


class ControlError(ZraftError):
    """A control request names an unknown node, fault or argument."""

    code = "usage"
    exit_code = 2


class NotLeader(ControlError):
    """Only a leader can do this, and this node does not lead (any more); nothing was done."""

    code = "not_leader"
    exit_code = 6


class SupervisorError(ZraftError):
    """The supervisor or a node could not be started or stopped in time."""

    code = "supervisor"

    def __init__(
        self,
        what: str,
        *,
        why: str = "",
        try_: tuple[str, ...] | str = (),
        exit_code: int | None = None,
    ) -> None:
        super().__init__(what, why=why, try_=try_)
        if exit_code is not None:
            self.exit_code = exit_code  # type: ignore[misc]  # a process's own code, passed on


class NotRunning(SupervisorError):
    """There is no such cluster, or it does not run."""

    code = "not_running"
    exit_code = 3


class StorageError(ZraftError):
    """The disk refused to write, sync or read; the node stops and does not retry."""

    code = "storage"
    exit_code = EXIT_IO


class CorruptLogError(StorageError):
    """Bytes on disk are not what was written. Carries the file and the byte offset."""

    code = "storage.corrupt"
    exit_code = EXIT_DATA

    def __init__(
        self,
        what: str,
        *,
        path: str,
        offset: int,
        why: str = "",
        try_: tuple[str, ...] | str = (),
    ) -> None:
        super().__init__(f"{path}: {what} at byte offset {offset}", why=why, try_=try_)
        self.path = path
        self.offset = offset


class ForeignDataError(StorageError):
    """A data directory is empty, or belongs to another cluster or member."""

    code = "storage.foreign"
    exit_code = EXIT_DATA


class LockedError(StorageError):
    """Another process holds the lock of the data directory."""

    code = "storage.locked"
    exit_code = EXIT_LOCKED


class DivergedError(ZraftError):
    """This replica's state is another one than the others'; it stops, for it answers wrongly.

    `index`: the first entry after which it differs; with `exact` False it may have differed before.
    """

    code = "diverged"
    exit_code = EXIT_SOFTWARE

    def __init__(self, index: int, compared: int, *, exact: bool) -> None:
        since = f"from index {index} on" if exact else f"at index {index} or before"
        super().__init__(
            f"the state of this node differs from the others' {since}",
            why=f"digests were compared at index {compared}: the state machine is not"
            " deterministic, or memory or disk changed a byte",
            try_=(
                f"zraft node inspect NAME wal --index {max(1, index - 2)}..{index + 2}",
                "if the command there looks at a clock, at chance or at the environment, mend it",
                "otherwise start the node again: it builds its state anew from its log",
            ),
        )
        self.index = index
        self.compared = compared
        self.exact = exact


class MachineError(ZraftError):
    """A state machine broke its contract where that is no command's result: snapshot, restore."""

    code = "machine"
    exit_code = EXIT_SOFTWARE


class RequestError(ZraftError):
    """A client's request did not succeed.

    `retryable`: sending the same request again is safe. `maybe_applied`: it may have happened.
    `leader_hint`: the name of the node to ask instead, if known. `request_id`: the id to name in
    a report, as the command line prints it.
    """

    code = "request"
    retryable: ClassVar[bool] = False
    maybe_applied: ClassVar[bool] = False

    def __init__(
        self,
        what: str,
        *,
        why: str = "",
        try_: tuple[str, ...] | str = (),
        leader_hint: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(what, why=why, try_=try_)
        self.leader_hint = leader_hint
        self.request_id = request_id


class Unavailable(RequestError):
    """No leader, no quorum, or no node reached: certainly not applied, safe to retry."""

    code = "unavailable"
    exit_code = 6
    retryable = True


class Unsupported(RequestError):
    """The node does not know how, or is not allowed to; nothing was done."""

    code = "unsupported"
    exit_code = 2


class OutcomeUnknown(RequestError):
    """Sent, but nobody can say whether it was or will be applied."""

    code = "unknown_outcome"
    exit_code = 7
    maybe_applied = True


class Busy(RequestError):
    """The node has as many waiting requests as it may hold: not applied, retry after a while."""

    code = "busy"
    exit_code = 6
    retryable = True


class Conflict(RequestError):
    """A condition of the request was false; nothing changed."""

    code = "conflict"
    exit_code = 5


class NotFound(RequestError):
    """The key does not exist."""

    code = "not_found"
    exit_code = 4


class SessionExpired(RequestError):
    """The session is gone: whether the command ran before that is unknown."""

    code = "session_expired"
    exit_code = 7
    maybe_applied = True


class Withdrawn(RequestError):
    """Not applied, and it never will be: somebody asked what became of it, and closed its name."""

    code = "withdrawn"
    exit_code = 5


class MembershipRefused(RequestError):
    """The membership change is not allowed now; nothing changed."""

    code = "membership_refused"
    exit_code = 5


class InvalidCommand(RequestError):
    """The state machine refused the command: it is malformed, or applying it raised."""

    code = "invalid_command"
    exit_code = 2


def say_last_words(text: str) -> None:
    """Write why this process ends to its stderr, which may be a file on a full disk.

    Unbuffered, and a failure is ignored: the exit code must say the reason, not that the reason
    could not be written (Python ends with 120 when stderr can't be flushed).
    """
    with contextlib.suppress(OSError):
        os.write(2, text.encode(errors="backslashreplace"))
