"""Do all replicas have the same state? Digests are compared at every 1,024th index.

Each node keeps the digest after each of its last few thousand entries. When it has applied a
multiple of the interval it tells its leader the digest there; it tells a new leader the last one.
The leader adds its own, and as soon as they are not all equal:

    a majority of voters agrees        whoever differs from them is wrong, the leader included
    all have answered, or one second   the largest group is right; of equal ones, the leader's
    has passed, and there is none

Who is wrong gets a page of digests from who is right, finds the first index at which its own
differ, and stops (exit 70): it has answered with a state that nobody else has. A leader that is
wrong itself asks for that page, and stops without it if it does not come.

    follower                                leader
       │── StateDigest REPORT 2048, 7f… ──────▶│   equal: nothing more
       │◀── StateDigest PAGE (1, …, 2048) ─────│   different, and the majority is the leader's
       stops, and says since which index
       │◀── StateDigest ASK 2048 ──────────────│   different, and the majority is not the leader's
       │── StateDigest PAGE (1, …, 2048) ─────▶│
                                            stops, and says since which index

Messages may be lost, doubled and late: a report that is lost is followed by the next multiple's,
and results stay in the running digest for ever. Whoever gets a page compares it before believing
it. Nothing here is on the way of a write; a healthy cluster sends one message of 60 bytes a node
for 1,024 entries.

The watch is pure: no clock, no socket. The replica writes the history; `compare_states` sends what
`flush` returns.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from zraft.core.messages import DigestPurpose, StateDigest
from zraft.core.model import NOBODY, Configuration, MemberId, quorum_size
from zraft.core.raft import Raft
from zraft.core.state import FAR_MS
from zraft.errors import DivergedError
from zraft.machine.history import DigestHistory
from zraft.node.ports import Report
from zraft.transport.base import Peers

INTERVAL = 1024
WAIT_MS = 1_000  # for reports, when no majority agrees
PAGE_WAIT_MS = 500  # for the page that a wrong leader asks for
MAX_OPEN = 8  # multiples that a leader compares at a time; older ones are forgotten


class View(NamedTuple):
    """What the core knows at the end of a turn."""

    term: int
    leader: MemberId
    configuration: Configuration


class _Asked(NamedTuple):
    """This node leads and is wrong: what it waits for, and until when."""

    index: int  # type: ignore[assignment]  # a field, not tuple.index
    digest: int
    agree: tuple[MemberId, ...]
    until_ms: int


class DigestWatch:
    """The digests of one node, and, while it leads, those that the others report."""

    def __init__(
        self, me: MemberId, history: DigestHistory, report: Report, *, interval: int = INTERVAL
    ) -> None:
        """Watch the history of this node's replica."""
        self.interval = interval
        self._me = me
        self._report = report
        self._history = history
        self._latest = 0  # the last multiple that was applied
        self._told = (NOBODY, 0, 0)  # to whom, in which term, which multiple
        self._reports: dict[int, dict[MemberId, int]] = {}
        self._since_ms: dict[int, int] = {}  # when it was first seen that a multiple differs
        self._changed = False
        self.next_index = interval
        """The multiple that is applied next."""
        self.quiet_for: tuple[MemberId, int] | None = None
        """While this leader leads in this term and nobody says anything, `flush` has no work."""
        self._asked: _Asked | None = None
        self._outgoing: list[StateDigest] = []
        self.compared = 0
        """Multiples at which everybody was found to agree."""

    # What the others say

    def on_message(self, message: StateDigest, *, term: int) -> None:
        """Take a message of a peer.

        Raises:
            DivergedError: it shows that this node's state is another one than its sender's.
        """
        self.quiet_for = None
        match message.purpose:
            case DigestPurpose.REPORT:
                if message.index % self.interval == 0 and message.index > 0:
                    self._reports.setdefault(message.index, {})[message.src] = message.digest
                    self._changed = True
                    while len(self._reports) > MAX_OPEN:
                        self._forget(min(self._reports))
            case DigestPurpose.ASK:
                digest = self._history.at(message.index)
                if digest is not None:
                    self._outgoing.append(self._page(message.src, message.index, digest, term))
            case DigestPurpose.PAGE:
                self._on_page(message)

    def _on_page(self, message: StateDigest) -> None:
        mine = self._history.at(message.index)
        if mine is None or mine == message.digest:
            return
        first, others = message.first_index, message.digests
        overlap = range(max(first, self._history.first_index), message.index + 1)
        at = next(i for i in overlap if self._history.at(i) != others[i - first])
        exact = at > overlap[0] or at == 1  # all begin with the same empty state
        raise self._diverged(at, message.index, exact=exact, peer=message.src)

    # The end of a turn

    @property
    def is_wrong(self) -> bool:
        """Whether this node found, as a leader, that its own state is wrong: it stops soon."""
        return self._asked is not None

    def next_deadline_ms(self) -> int:
        """Return when `flush` has something to decide although nothing comes in."""
        if self._asked is not None:
            return self._asked.until_ms
        return min(self._since_ms.values()) + WAIT_MS if self._since_ms else FAR_MS

    def flush(self, view: View, *, now_ms: int) -> list[StateDigest]:
        """Return what to send; compare, if this node leads.

        Raises:
            DivergedError: this node leads and its state is wrong, and nobody said since when.
        """
        last_index = self._history.last_index
        if last_index >= self.next_index:
            self._latest = last_index // self.interval * self.interval
            self.next_index = self._latest + self.interval
            self._changed = True
            self._history.trim()
        if view.leader != self._me:
            if self._reports:
                self._reports.clear()
                self._since_ms.clear()
            told = (view.leader, view.term, self._latest)
            if self._latest and view.leader != NOBODY and self._told != told:
                self._told = told
                self._tell(view)
        elif self._reports and (self._changed or now_ms >= self.next_deadline_ms()):
            self._changed = False
            for index in sorted(self._reports):
                self._compare(index, view, now_ms)
        if self._asked is not None and now_ms >= self._asked.until_ms:
            asked = self._asked
            since = asked.index - self.interval + 1
            raise self._diverged(since, asked.index, exact=False, peer=asked.agree[0])
        if not self._reports and self._asked is None:
            self.quiet_for = (view.leader, view.term)
        if not self._outgoing:
            return []
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def _tell(self, view: View) -> None:
        digest = self._history.at(self._latest)
        if digest is not None:
            self._outgoing.append(
                StateDigest(
                    self._me, view.leader, view.term, DigestPurpose.REPORT, self._latest, digest
                )
            )

    def _compare(self, index: int, view: View, now_ms: int) -> None:
        """Compare what is known of a multiple; it stays open until it is decided."""
        mine = self._history.at(index)
        if mine is None:
            if index <= self._latest:
                self._forget(index)  # too long ago
            return
        configuration = view.configuration
        everybody = configuration.everybody
        said = self._reports[index]
        reports = {self._me: mine, **{m: said[m] for m in everybody if m in said}}
        complete = all(member in reports for member in everybody)
        if len(set(reports.values())) == 1:
            if complete:
                self.compared += 1
                self._forget(index)
            return
        groups = _groups(reports)
        right = next((g for g in groups.values() if _is_majority(g, configuration)), None)
        since_ms = self._since_ms.setdefault(index, now_ms)
        if right is None and (complete or now_ms >= since_ms + WAIT_MS):
            right = max(groups.values(), key=lambda group: (len(group), self._me in group))
        if right is None:
            return
        self._decide(index, right, groups, view, now_ms)
        self._forget(index)

    def _decide(
        self,
        index: int,
        right: Sequence[MemberId],
        groups: dict[int, list[MemberId]],
        view: View,
        now_ms: int,
    ) -> None:
        digest = next(value for value, group in groups.items() if group is right)
        wrong = [member for group in groups.values() if group is not right for member in group]
        for member in sorted(wrong):
            self._report("digest.differed", peer=member, index=index, agree=len(right))
        if self._me not in right:
            if self._asked is None:
                self._asked = _Asked(index, digest, tuple(sorted(right)), now_ms + PAGE_WAIT_MS)
            ask = DigestPurpose.ASK
            self._outgoing += [
                StateDigest(self._me, member, view.term, ask, index, digest)
                for member in self._asked.agree
            ]
            return
        self._outgoing += [self._page(member, index, digest, view.term) for member in sorted(wrong)]

    def _page(self, dst: MemberId, index: int, digest: int, term: int) -> StateDigest:
        first, page = self._history.page(index)
        return StateDigest(self._me, dst, term, DigestPurpose.PAGE, index, digest, first, page)

    def _forget(self, index: int) -> None:
        self._reports.pop(index, None)
        self._since_ms.pop(index, None)

    def _diverged(self, at: int, compared: int, *, exact: bool, peer: MemberId) -> DivergedError:
        self._report("digest.diverged", peer=peer, index=at, exact=exact, compared=compared)
        return DivergedError(at, compared, exact=exact)


def _groups(reports: dict[MemberId, int]) -> dict[int, list[MemberId]]:
    groups: dict[int, list[MemberId]] = {}
    for member, digest in sorted(reports.items()):
        groups.setdefault(digest, []).append(member)
    return groups


def _is_majority(members: Collection[MemberId], configuration: Configuration) -> bool:
    voters = configuration.voters
    return len(set(members).intersection(voters)) >= quorum_size(voters)


def compare_states(
    watch: DigestWatch, raft: Raft, peers: Peers, applied_index: int, now_ms: int
) -> None:
    """At the end of a turn: compare with the others; a leader that is wrong leads no longer.

    Raises:
        DivergedError: this node's state is not the others'.
    """
    st = raft.state
    if applied_index < watch.next_index and watch.quiet_for == (st.leader_id, st.term):
        return  # as in most turns
    view = View(st.term, st.leader_id, st.configurations.newest)
    messages = watch.flush(view, now_ms=now_ms)
    if messages:
        peers.send(messages)
    if st.leadership is not None and watch.is_wrong:
        raft.step_down(now_ms=now_ms, reason="diverged")
