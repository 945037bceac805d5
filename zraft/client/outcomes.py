"""How a request that got no "ok" is reported: what happened, why, and what to try.

Three outcomes, never two. `Unavailable` and `Busy`: certainly not applied. `OutcomeUnknown`: sent,
and nobody can say. The texts are printed by the command line as they stand.
"""

from __future__ import annotations

from typing import NamedTuple

from zraft.api import Code, Reply
from zraft.errors import (
    Busy,
    InvalidCommand,
    OutcomeUnknown,
    RequestError,
    SessionExpired,
    TooLargeError,
    Unavailable,
    Unsupported,
    Withdrawn,
    ZraftError,
)
from zraft.machine.apply import DEFECT

_NOTHING_CHANGED = "the write was not accepted; nothing changed"
_NOT_READ = "the read was not answered"
_MAYBE = "The write may or may not have been applied"
_STATUS = "zraft cluster status"
_VERSION = "zraft version  (of client and nodes)"
_READ_BACK = "read it back before you write again: zraft kv get KEY"
_READ_STALE = "read what one node has, perhaps stale: zraft kv get KEY --consistency stale"


class Case(NamedTuple):
    """What every report says of a request."""

    is_write: bool
    request_id: str
    leader_hint: str | None
    named: bool = False  # in a session
    unsure: bool = False  # an earlier attempt of the write may have been applied


def _text(reply: Reply) -> str:
    return reply.body.decode(errors="replace")[:500] or f"code {reply.code}"


def _tries(case: Case) -> tuple[str, ...]:
    return (_STATUS,) if case.is_write else (_STATUS, _READ_STALE)


def refused(case: Case, node: str, reply: Reply) -> ZraftError:
    """Return the error for a reply that says "not applied" and was the last word."""
    what = _NOTHING_CHANGED if case.is_write else _NOT_READ
    why = f"{node} says: {_text(reply)}"
    rest = {"leader_hint": case.leader_hint, "request_id": case.request_id}
    match reply.code:
        case Code.SESSION_EXPIRED:
            what = "the session is over, and the write was not repeated"
            tries: tuple[str, ...] = ("the next write opens a new session", _READ_BACK)
            return SessionExpired(what, why=f"{why}. {_MAYBE} before", try_=tries, **rest)
        case Code.WITHDRAWN:
            tries = ("send it again under a new id, if it is still wanted",)
            return Withdrawn(_NOTHING_CHANGED, why=why, try_=tries, **rest)
        case Code.INVALID:
            kind = "command" if case.is_write else "query"
            if _text(reply).startswith(DEFECT):  # it raised amid its work, or after it
                until = "; what it changed before is the state machine's to say"
                what = f"the {kind} failed{until if case.is_write else ''}"
                return InvalidCommand(what, why=why, try_="mend the state machine", **rest)
            what = f"the {kind} was refused; nothing changed"
            return InvalidCommand(what, why=why, try_="correct it and send it again", **rest)
        case _ if case.unsure:
            return _unknown(case, "sent, maybe more than once, and never answered for certain", why)
        case Code.BUSY:
            tries = ("send it again after a while", "keep fewer requests outstanding")
            return Busy(what, why=why, try_=tries, **rest)
        case Code.TOO_LARGE:
            return TooLargeError(what, why=why, try_="split it into smaller requests")
        case Code.UNSUPPORTED:
            other = () if case.is_write else ("zraft kv get KEY --consistency linearizable",)
            return Unsupported(what, why=why, try_=(*other, _VERSION), **rest)
        case _:
            return Unavailable(what, why=why, try_=_tries(case), **rest)


def unknown_by_reply(case: Case, node: str, reply: Reply) -> OutcomeUnknown:
    """Return the error for a node that passed the write on and can't say what became of it."""
    what = f"sent to {node} (term {reply.term}), which can not tell what became of it"
    return _unknown(case, what, f"{node} says: {_text(reply)}")


def unknown_by_loss(case: Case, node: str, sent_ms_ago: int) -> OutcomeUnknown:
    """Return the error for a write whose connection ended before the answer."""
    why = f"the connection to {node} was lost {sent_ms_ago} ms after it was sent"
    return _unknown(case, f"sent to {node}, and no answer came", why)


def unknown_by_time(case: Case, node: str, sent_ms_ago: int) -> OutcomeUnknown:
    """Return the error for a write that was sent and not answered in time."""
    why = f"{node} is paused, cut off, or waits for a majority"
    return _unknown(case, f"sent to {node}, no reply in {sent_ms_ago / 1000:.1f}s", why)


def no_session(case: Case, why: str) -> Unavailable:
    """Return the error for a write whose session could not be opened: it was never sent."""
    what = "no session could be opened; the write was not sent, nothing changed"
    return _unavailable(case, what, why)


def _unknown(case: Case, what: str, why: str) -> OutcomeUnknown:
    resolve = f"ask what became of it: zraft kv resolve {case.request_id}"
    return OutcomeUnknown(
        f"{what}. {_MAYBE}",
        why=f"{why} (request {case.request_id})",
        try_=(resolve if case.named else _READ_BACK, _STATUS),
        leader_hint=case.leader_hint,
        request_id=case.request_id,
    )


def not_read(case: Case, node: str, sent_ms_ago: int) -> RequestError:
    """Return the error for a request that was sent and not answered in time."""
    if case.unsure:
        lost = f"no node that it was sent to answered within {sent_ms_ago / 1000:.1f}s"
        return _unknown(case, "sent more than once, and never answered for certain", lost)
    why = f"{node} answered within {sent_ms_ago / 1000:.1f}s"
    if node != "nobody":
        why = f"no answer from {node} in {sent_ms_ago / 1000:.1f}s"
    return _unavailable(case, _NOT_READ, why)


def not_reached(case: Case, waited_ms: int, states: str) -> Unavailable:
    """Return the error for a request that no node could be given."""
    what = f"no node was reached in {waited_ms / 1000:.1f}s; nothing was sent"
    return _unavailable(case, what, states)


def target_lost(case: Case, node: str, state: str) -> RequestError:
    """Return the error for a request to one node only, which can't be reached."""
    if case.unsure:
        return _unknown(case, "sent, and no answer came", f"{node} {state}")
    what = _NOTHING_CHANGED if case.is_write else _NOT_READ
    return _unavailable(case, what, f"{node} {state}, and only {node} was to be asked")


def _unavailable(case: Case, what: str, why: str) -> Unavailable:
    return Unavailable(
        what,
        why=why,
        try_=_tries(case),
        leader_hint=case.leader_hint,
        request_id=case.request_id,
    )
