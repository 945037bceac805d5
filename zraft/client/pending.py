"""A request of a client from its submission to its end, and the ids that people are shown.

8f3c01aa-19     without a session: the client's nonce (8 hex digits, the first at least 8) and a
                number; it names an attempt, and nothing can be done with it but to report it
1f-3            in a session: the session in hex and the sequence; whoever has it can repeat the
                write, or ask what became of it
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from zraft.api import Consistency, Flag, Reply
from zraft.errors import ControlError, ZraftError

if TYPE_CHECKING:
    from zraft.client.nodes import Node
    from zraft.client.sessions import ClientSession

WITHOUT_SESSION = 1 << 31
"""The bit that is set in every nonce, so that it is not taken for a session."""
_DIGITS = frozenset("0123456789abcdef")

_WRITE, _SESSION = int(Consistency.WRITE), int(Flag.SESSION)  # operations on a flag make objects

Name = tuple[int, int]
"""Session and sequence of a write."""


@dataclass(slots=True, eq=False)
class Pending:
    """One request until it ends. `node` is where it is in flight; `wire_id` is that attempt's."""

    request_id: int
    body: bytes
    consistency: int
    flags: int
    submitted_ms: int
    deadline_ms: int
    target: Node | None
    wire_id: int
    max_staleness_ms: int = 0
    session: ClientSession | None = None  # that it is named in, and tells its end
    name: Name = (0, 0)
    opens: ClientSession | None = None
    node: Node | None = None
    sent_ms: int = 0
    attempts: int = 0
    hints: int = 0  # followed in a row
    refusals: int = 0
    refusal: tuple[str, Reply] | None = None  # the last one, and the node that said so
    unsure: bool = False  # an attempt of this write may have been applied
    done: bool = False

    @property
    def is_write(self) -> bool:
        """Whether it is a command, or a barrier: what is about a session changes nothing else."""
        return self.consistency == _WRITE and not self.flags & _SESSION

    @property
    def repeatable(self) -> bool:
        """Whether it may be sent again although it may have been applied."""
        return self.name != (0, 0) or not self.is_write

    @property
    def shown_id(self) -> str:
        """The request id for people."""
        return format_name(self.name) if self.name[0] else format_request_id(self.wire_id)


class Finished(NamedTuple):
    """How a request ended. `via` is the node that it was sent to, "" when to none."""

    request_id: int
    outcome: Reply | ZraftError
    via: str


def format_request_id(request_id: int) -> str:
    """Return an id without a session as people read it: the nonce and a number, `8f3c01aa-19`."""
    return f"{request_id >> 32:08x}-{request_id & 0xFFFFFFFF}"


def parse_request_id(text: str) -> int:
    """Return the request id that `format_request_id` wrote; ControlError for anything else."""
    nonce, dash, number = text.partition("-")
    if (
        dash
        and len(nonce) == 8
        and set(nonce) <= _DIGITS
        and _is_number(number)
        and int(number) < 1 << 32
    ):
        return int(nonce, 16) << 32 | int(number)
    raise ControlError(
        f'"{text}" is not a request id',
        why="a request id is 8 hex digits, a dash and a number",
        try_="copy it from the message or the log: 8f3c01aa-19",
    )


def format_name(name: Name) -> str:
    """Return the request id of a write in a session as people read it: `1f-3`."""
    return f"{name[0]:x}-{name[1]}"


def parse_name(text: str) -> Name:
    """Return the session and the sequence of a request id; ControlError for anything else."""
    session, dash, number = text.partition("-")
    is_name = dash and 0 < len(session) <= 15 and set(session) <= _DIGITS and _is_number(number)
    if is_name and len(session) == 8 and int(session, 16) & WITHOUT_SESSION:
        raise ControlError(
            f"the request {text} was sent without a session",
            why="nobody remembers such a request: it can be neither repeated nor asked about",
            try_="write within a session: with client.session() as session: …",
        )
    if not is_name or not (int(session, 16) and int(number)):
        raise ControlError(
            f'"{text}" is not the request id of a write in a session',
            why="it is the session in hex, a dash and a number from 1 on",
            try_="copy it from the message of the unknown outcome: 1f-3",
        )
    return int(session, 16), int(number)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10
