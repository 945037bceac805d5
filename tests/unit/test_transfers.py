"""Sending snapshots: a small rate is no reason to give up, and followers take turns."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from zraft.core.messages import InstallSnapshot, InstallSnapshotResponse
from zraft.core.model import Configuration, MemberId, SnapshotMeta
from zraft.core.raft import Raft
from zraft.node.ports import SnapshotLimits
from zraft.node.transfers import Sending
from zraft.storage.snapshots import SnapshotStore

ELECTION_MS = 300
META = SnapshotMeta(9, 2, Configuration((1, 2, 3)), size_bytes=1000, crc=7)


class Follower:
    """Takes chunks in order and says where it is; `answers` may be turned off."""

    def __init__(self) -> None:
        self.held = 0
        self.answers = True
        self.opened = 0
        self.taken = 0
        self.loses = 0  # every so manieth chunk; 0: none


class World:
    """A leader's surroundings: the file, the lane, and followers that answer at once."""

    def __init__(self, limits: SnapshotLimits, followers: tuple[MemberId, ...] = (2, 3)) -> None:
        self.now_ms = 0
        self.followers = {peer: Follower() for peer in followers}
        self.failed: list[MemberId] = []
        self.events: list[str] = []
        self.lane: deque[InstallSnapshot] | None = None  # what waits for a slow follower
        self._answers: list[Callable[[], None]] = []
        around: Any = self
        self.sending = Sending(
            cast("Raft", around),
            cast("SnapshotStore", around),
            around,
            lambda event, /, **fields: self.events.append(event),
            limits,
        )

    # Raft

    @property
    def state(self) -> Any:
        settings = SimpleNamespace(election_max_ms=ELECTION_MS)
        return SimpleNamespace(me=1, settings=settings, leadership=None)

    @property
    def term(self) -> int:
        return 2

    def wants_snapshot(self, peer: MemberId) -> bool:
        return self.followers[peer].held < META.size_bytes and peer not in self.failed

    def on_snapshot_sending(self, peer: MemberId, index: int, *, now_ms: int) -> None:
        assert index == META.index

    def on_snapshot_failed(self, peer: MemberId, *, now_ms: int) -> None:
        self.failed.append(peer)

    # The store and its reader

    @property
    def newest(self) -> SnapshotMeta:
        return META

    def reader(self, meta: SnapshotMeta) -> Any:
        return SimpleNamespace(
            read_at=lambda at, n: bytes(META.size_bytes)[at : at + n], close=lambda: None
        )

    # The lane

    def open(self, peer: MemberId) -> None:
        self.followers[peer].opened += 1

    def shut(self, peer: MemberId) -> None:
        self.followers[peer].opened -= 1

    def renew(self, peer: MemberId) -> None:
        assert self.followers[peer].opened

    def send(self, chunk: InstallSnapshot) -> bool:
        if self.lane is None:
            self.deliver(chunk)
        else:
            self.lane.append(chunk)
        return True

    def deliver(self, chunk: InstallSnapshot) -> None:
        """A chunk arrives, or is lost on its last steps."""
        follower = self.followers[chunk.dst]
        follower.taken += 1
        if follower.loses and follower.taken % follower.loses == 0:
            return
        if follower.answers:
            if chunk.offset == follower.held:
                follower.held += len(chunk.data)
            place = META.index, META.term, follower.held
            answer = InstallSnapshotResponse(chunk.dst, 1, 2, *place, installed=False)
            self._answers.append(lambda: self.sending.on_answer(answer, self.now_ms))

    def take_answers(self) -> None:
        """All answers that were given so far arrive."""
        answers, self._answers = self._answers, []
        for answer in answers:
            answer()

    def run(self, for_ms: int) -> None:
        """Let time go on in steps of a few milliseconds."""
        for peer in self.followers:
            self.sending.begin(peer, self.now_ms)
        end_ms = self.now_ms + for_ms
        while self.now_ms < end_ms:
            self.sending.work(self.now_ms)
            self.take_answers()
            self.now_ms += 5
        self.sending.work(self.now_ms)


def test_a_rate_that_makes_a_chunk_take_seconds_ends_no_transfer() -> None:
    """The wait for the rate is nobody's silence (simulator, seed 134)."""
    world = World(SnapshotLimits(chunk_bytes=400, window_chunks=1, max_bytes_per_s=100))
    world.run(60_000)
    assert world.failed == []
    assert [follower.held for follower in world.followers.values()] == [1000, 1000]
    assert all(follower.opened == 0 for follower in world.followers.values()), "lanes are shut"


def test_followers_take_turns_at_the_rate() -> None:
    """One that is first in the list does not keep the others waiting until it has everything."""
    world = World(SnapshotLimits(chunk_bytes=100, window_chunks=1, max_bytes_per_s=100))
    world.run(7_000)
    first, second = (follower.held for follower in world.followers.values())
    assert abs(first - second) <= 200, (first, second)
    assert 300 <= first < 1000


def test_a_follower_that_says_nothing_is_left_alone_after_a_while() -> None:
    """The core probes it then; the other one gets its snapshot."""
    world = World(SnapshotLimits(chunk_bytes=400, window_chunks=1, max_bytes_per_s=1 << 20))
    world.followers[2].answers = False
    world.run(5_000)
    assert world.failed == [2]
    assert world.followers[3].held == 1000
    assert world.events.count("snapshot.send_ended") == 2, "neither is known to be installed"


def test_a_lost_chunk_is_sent_again_when_the_answers_tell() -> None:
    """Not after the patience with a silent follower: ten losses would cost 3 s, the last one does.

    Simulator, seed 137: chunks that overtook each other, 110 ms each.
    """
    world = World(SnapshotLimits(chunk_bytes=10, window_chunks=4), followers=(2,))
    follower = world.followers[2]
    follower.loses = 10
    world.run(3 * ELECTION_MS)
    assert follower.held == META.size_bytes
    assert 110 <= follower.taken <= 170, "each loss costs a window at most"


def test_a_follower_that_stood_still_gets_a_window_twice_and_not_all() -> None:
    """What was under way when the leader went back comes twice; its answers tell of no loss."""
    world = World(SnapshotLimits(chunk_bytes=10, window_chunks=4), followers=(2,))
    follower = world.followers[2]
    lane = world.lane = deque()
    world.sending.begin(2, 0)
    stands_until_ms = 0
    for now_ms in range(10 * ELECTION_MS):
        world.now_ms = now_ms
        world.sending.work(now_ms)
        if follower.held == 100 and not stands_until_ms:
            stands_until_ms = now_ms + 4 * ELECTION_MS // 3
        if lane and now_ms % 3 == 0 and now_ms >= stands_until_ms:  # it takes 3 ms for a chunk
            world.take_answers()  # of the chunk before: an answer takes its time as well
            world.deliver(lane.popleft())
    assert stands_until_ms
    assert follower.held == META.size_bytes
    assert follower.taken <= 100 + 2 * 4 + 2, "a window came twice, and what asked where it is"


def test_a_follower_that_lost_what_it_held_is_still_heard() -> None:
    """It was silent, came back with nothing, and answers twice from one place: that is a loss."""
    world = World(SnapshotLimits(chunk_bytes=10, window_chunks=4), followers=(2,))
    world.followers[2].answers = False
    world.sending.begin(2, 0)
    transfer = world.sending.find(2)
    assert transfer is not None

    def answer(place: int) -> None:
        said = InstallSnapshotResponse(2, 1, 2, META.index, META.term, place, installed=False)
        world.sending.on_answer(said, world.now_ms)

    answer(500)
    world.now_ms = transfer.retry_ms
    world.sending.work(world.now_ms)
    assert (transfer.sent, transfer.met) == (510, False), "one chunk asks where it is"
    answer(0)
    world.sending.work(world.now_ms)
    assert transfer.sent == 40
    answer(0)
    answer(0)
    assert transfer.sent == 0, "sent again at once"


def test_a_chunk_that_came_twice_is_no_loss() -> None:
    """One answer more says nothing; the second does, and those of what was under way do not."""
    world = World(SnapshotLimits(chunk_bytes=10, window_chunks=4), followers=(2,))
    world.sending.begin(2, 0)
    transfer = world.sending.find(2)
    assert transfer is not None
    sent: list[int] = []
    for place in (30, 30, 30) + (30,) * 6 + (60, 60, 60):
        transfer.sent = max(transfer.sent, 90)
        answer = InstallSnapshotResponse(2, 1, 2, META.index, META.term, place, installed=False)
        world.sending.on_answer(answer, 0)
        sent.append(transfer.sent)
    assert sent == [30, 90, 30] + [90] * 6 + [90, 90, 60]
