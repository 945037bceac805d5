"""The verb that changes the membership: names become members, refusals become words."""

from __future__ import annotations

from typing import Protocol, assert_never

from zraft.api import Accepted, ChangeMembers, ChangeSpec
from zraft.core.changes import ChangeRefused, Refusal
from zraft.core.model import NOBODY, ChangeKind, MemberChange, MemberId, MemberInfo
from zraft.core.raft import Raft
from zraft.errors import ControlError, MembershipRefused, NotLeader
from zraft.node.members import MemberBook

KINDS = {
    "add": ChangeKind.ADD,
    "add-learner": ChangeKind.ADD_LEARNER,
    "promote": ChangeKind.PROMOTE,
    "demote": ChangeKind.DEMOTE,
    "remove": ChangeKind.REMOVE,
}
_ADDING = (ChangeKind.ADD, ChangeKind.ADD_LEARNER)
_STATUS = "zraft cluster status"


class Changed(Protocol):
    """What the verb needs of the server."""

    @property
    def raft(self) -> Raft: ...


class MemberVerbs:
    """See the module. Entered between two turns, when no Ready is outstanding."""

    def __init__(self, server: Changed, book: MemberBook) -> None:
        """Ask nobody anything yet."""
        self._server = server
        self._book = book

    def change(self, request: ChangeMembers, now_ms: int) -> Accepted:
        """Begin a change; it is done when it is committed, which the status tells.

        Raises:
            ControlError: a name that nobody has, or an id that is none.
            NotLeader: another node leads.
            MembershipRefused: not now, or not at all; nothing changed.
        """
        self._book.look_again(now_ms)
        raft = self._server.raft
        changes = [self._to_change(spec) for spec in request.changes]
        begun = raft.change_members(changes, now_ms=now_ms)
        if isinstance(begun, ChangeRefused):
            raise self._to_error(begun)
        done = ", ".join(f"{spec.kind} {spec.name}" for spec in request.changes)
        return Accepted(index=begun.index, term=begun.term, message=f"{done}: begun")

    def _to_change(self, spec: ChangeSpec) -> MemberChange:
        kind = KINDS[spec.kind]
        member = _id_in(spec.member_id) if spec.member_id else self._book.id_of(spec.name)
        if member is None:
            raise ControlError(f'no node "{spec.name}"', try_="zraft node list")
        return MemberChange(kind, MemberInfo(member, spec.name if kind in _ADDING else ""))

    def _to_error(self, refused: ChangeRefused) -> ControlError | MembershipRefused:
        who = "" if refused.member == NOBODY else self._book.name_of(refused.member)
        what, why, try_ = _words(refused.reason, who)
        if refused.reason is Refusal.NOT_LEADER:
            return NotLeader(what, why=why, try_=try_)
        return MembershipRefused(what, why=why, try_=try_)


def _id_in(text: str) -> MemberId:
    try:
        member = int(text, 16)
    except ValueError:
        member = NOBODY
    if not 0 < member < 1 << 64:
        raise ControlError(f'"{text}" is no member id', why="an id is 16 hex digits")
    return member


def _words(reason: Refusal, who: str) -> tuple[str, str, str]:
    """Return what, why and what to try, for people."""
    later = "wait until it is committed, then ask again"
    match reason:
        case Refusal.NOT_LEADER:
            return "this node does not lead", "only a leader changes the membership", _STATUS
        case Refusal.TRANSFER:
            return "leadership is being handed over", "the next leader will take it", "ask again"
        case Refusal.NO_OWN_COMMIT:
            why = "this leader has committed no entry of its own term yet (Raft §6)"
            return "too early for a change of membership", why, "ask again in a moment"
        case Refusal.IN_FLIGHT:
            why = "there is one change of membership at a time (Raft §6)"
            return "another change is under way", why, later
        case Refusal.NOTHING:
            return "an empty change", "it has no steps", "name a node"
        case Refusal.TWICE:
            return f"{who} stands in two steps of one change", "a change is one step", "ask twice"
        case Refusal.UNKNOWN_MEMBER:
            return f"{who} is no member", "the newest configuration is without it", _STATUS
        case Refusal.ALREADY_SO:
            return f"{who} is that already", "the change would change nothing", _STATUS
        case Refusal.NAME_TAKEN:
            return f"another member has the name of {who}", "names are unique", "another name"
        case Refusal.NO_VOTER_LEFT:
            return "no voter would be left", "a cluster needs one", "zraft cluster down"
        case Refusal.NOT_CAUGHT_UP:
            why = "it does not hold the newest entries, and a slow voter costs availability"
            return (
                f"{who} has not caught up",
                why,
                "wait, or add it so that it is promoted by itself",
            )
        case Refusal.TOO_MANY:
            return "too many members", "a configuration has a limit", "remove some first"
        case _:
            assert_never(reason)
