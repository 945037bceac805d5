"""One seed from start to verdict: a safety phase, then a healed quorum that must make progress.

    safety     faults and load; every invariant after every step
    progress   a quorum, or everything, is healed; a leader within ten election timeouts, then a
               write through every healed node, and all logs equal
    rest       nobody asks anything: for twenty timeouts no term rises

What is not healed in the second phase stays as it is: cut, paused, down.
"""

from __future__ import annotations

import gc
import platform
from dataclasses import dataclass, field

from zraft import clock
from zraft._version import __version__
from zraft.api import Code, Consistency, Flag, Reply, Request
from zraft.core.model import MemberId, Role
from zraft.errors import ZraftError
from zraft.machine.kv_codec import encode_put
from zraft.testing.sim.draws import Draws
from zraft.testing.sim.judge import judge
from zraft.testing.sim.members import is_settled
from zraft.testing.sim.nemesis import Nemesis
from zraft.testing.sim.node import SimNode
from zraft.testing.sim.plan import Plan, draw_plan
from zraft.testing.sim.trace import STEPS_KEPT, Violation
from zraft.testing.sim.world import World

BREAKS = (AssertionError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError)
"""What production code raises when it is wrong; `Violation` is an AssertionError."""

LEADER_TIMEOUTS = 10
REST_TIMEOUTS = 20
PROBE_DEADLINE_MS = 5000
SLACK = 1.15  # clocks drift

RESENT = 6
"""How often a piece of a snapshot may be sent until it arrives in its turn."""


@dataclass(slots=True)
class Outcome:
    """What became of a seed."""

    seed: int
    time_s: float
    trace_hash: str = ""
    events: int = 0
    simulated_ms: int = 0
    elapsed_ms: int = 0
    operations: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    marks: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    phase: str = "safety"
    undecided_keys: int = 0  # on which the judge gave up
    trace: list[str] = field(default_factory=list)  # the last steps, as text
    flags: str = ""  # what else `replay` needs

    @property
    def replay(self) -> str:
        """Return the line that runs this seed again."""
        python = ".".join(platform.python_version_tuple()[:2])
        return (
            f"zraft sim replay {self.seed} --time {self.time_s:g}s{self.flags}"
            f"  # zraft {__version__}, Python {python}"
        )


class Simulation:
    """One run of one seed."""

    def __init__(
        self, plan: Plan, *, time_s: float, steps: int = STEPS_KEPT, trace: bool = False
    ) -> None:
        """Make the world; nothing happens yet. `trace`: show the last steps of good runs, too."""
        self._wants_trace = trace
        self.plan = plan
        self.outcome = Outcome(plan.seed, time_s)
        self.world = World(plan, steps=steps)
        self.nemesis = Nemesis(self.world)
        self._answers: dict[MemberId, Reply] = {}

    def run(self) -> Outcome:
        """Run all phases; what is found is in the outcome."""
        outcome, world = self.outcome, self.world
        started_ms = clock.monotonic_ms()
        collected = gc.isenabled()
        places: list[str] = []
        gc.disable()  # nothing of a world is garbage before its end
        try:
            self._phases()
        except (*BREAKS, ZraftError) as error:
            outcome.violations.append(f"{outcome.phase}: {type(error).__name__}: {error}")
            if not isinstance(error, Violation):
                places = _places(error)
        finally:
            if collected:
                gc.enable()
        outcome.elapsed_ms = clock.monotonic_ms() - started_ms
        outcome.trace_hash = world.trace.hexdigest()
        if outcome.violations or self._wants_trace:
            outcome.trace = world.trace.lines() + places
        outcome.events = world.agenda.events
        outcome.simulated_ms = world.agenda.now_us // 1000
        outcome.operations = len(world.history.operations)
        for operation in world.history.operations:
            outcome.statuses[operation.status] = outcome.statuses.get(operation.status, 0) + 1
        outcome.faults = dict(self.nemesis.hits)
        if world.operators.begun:
            outcome.faults["change"] = world.operators.begun
        outcome.marks = dict(world.marks.counts)
        return outcome

    def _phases(self) -> None:
        world, outcome = self.world, self.outcome
        world.start()
        self.nemesis.start()
        world.operators.start()
        world.agenda.run_until(int(outcome.time_s * 1_000_000))
        outcome.phase = "progress"
        healed = self._await_members(self._heal())
        self._await_leader(healed)
        self._await_writes(healed)
        self._await_equal(healed)
        outcome.phase = "rest"
        self._rest(healed)
        outcome.phase = "history"
        world.history.finish()
        outcome.undecided_keys = len(judge(world.history.operations))

    # The second phase

    def _heal(self) -> list[SimNode]:
        """End all faults among a quorum, or among all; return who is healed."""
        world, plan = self.world, self.plan
        self.nemesis.active = False
        world.operators.end()
        draws = world.draws("heal")
        ids = draws.shuffled(world.ids)
        # Where the membership changes, who is a quorum depends on what the logs hold.
        everybody = plan.heals_all or plan.change_gap_us > 0
        count = len(ids) if everybody else plan.nodes // 2 + 1
        chosen = tuple(sorted(ids[:count]))
        world.trace.step(world.agenda.now_us, f"heal {' '.join(map(str, chosen))}")
        world.network.heal(chosen)
        world.network.settle = lambda: None  # type: ignore[method-assign]  # no fault ends later
        world.restarts = False
        lost = world.wipes.held
        healed = [world.nodes[member_id] for member_id in chosen if member_id not in lost]
        for member_id in ids[count:]:
            self._leave_broken(world.nodes[member_id], draws)
        for node in healed:
            node.next_sync_us = 0
            node.fuse.put_out()
            if node.stopping is not None:
                node.crash(power=False, how="stopped")  # it was about to end anyway
            if node.server is None:
                node.start()
            node.resume()
        return healed

    def _leave_broken(self, node: SimNode, draws: Draws) -> None:
        """A member that is not healed: down, hung, cut off, or, the meanest, cut off one way."""
        settings = self.plan.settings
        choices = ["down", "hung", "cut off", "mute"]
        if settings.pre_vote and settings.check_quorum:
            choices.append("deaf")  # without both, a leader that hears nobody stays for ever
        how = draws.pick(choices)
        self.world.trace.step(self.world.agenda.now_us, f"left {node.member_id} {how}")
        if how == "down":
            node.crash(power=False)
        elif how == "hung":
            node.pause()
        else:
            node.resume()
        for link in self.world.network.all_links():
            speaks, hears = link.src == node.member_id, link.dst == node.member_id
            if (speaks and how != "deaf") or (hears and how != "mute"):
                link.cuts += 1 << 20

    def _timeouts_us(self, count: int) -> int:
        return int(count * self.plan.settings.election_max_ms * 1000 * SLACK)

    def _wait(self, what: str, limit_us: int, done: object) -> None:
        """Let the world go on until `done()`; Violation if that takes longer than the limit."""
        assert callable(done)
        agenda = self.world.agenda
        end_us = agenda.now_us + limit_us
        while not done():
            if agenda.now_us >= end_us:
                raise Violation(f"no progress: {what} within {limit_us // 1000} ms")
            agenda.run_until(min(agenda.now_us + 5_000, end_us))

    def _await_members(self, healed: list[SimNode]) -> list[SimNode]:
        """Wait until no change of membership is under way; return the members that are healed.

        Until then the operators go on to replace a member that lost its disk: no lost one is left.
        """
        world = self.world
        if self.plan.change_gap_us:
            for client in world.clients:
                client.hush()  # with a window of one entry, a learner never catches up
            limit_us = 2 * self._timeouts_us(LEADER_TIMEOUTS) + self._busy_us(healed)
            limit_us += self._missing_us(healed)
            if world.operators.active:  # a replacement may have to wait for a change under way
                limit_us += self._timeouts_us(LEADER_TIMEOUTS)

            def is_done() -> bool:
                leader = world.leader()
                return leader is not None and is_settled(leader)

            self._wait("an end of all changes", limit_us, is_done)
            world.operators.active = False
        members = world.members.newest.everybody
        return [node for node in healed if node.member_id in members]

    def _await_leader(self, healed: list[SimNode]) -> None:
        limit_us = self._timeouts_us(LEADER_TIMEOUTS) + self._busy_us(healed)
        self._wait("a leader", limit_us, lambda: self._leader(healed) is not None)

    def _busy_us(self, healed: list[SimNode]) -> int:
        """Return how long a sync that began before the healing still runs."""
        return max(0, *(node.busy_us - self.world.agenda.now_us for node in healed))

    def _leader(self, healed: list[SimNode]) -> SimNode | None:
        """Return the leader that every healed node follows; it may have much to catch up with."""
        for node in healed:
            leads = node.server is not None and node.raft.role is Role.LEADER
            if leads and all(
                other.server is not None and other.raft.leader_id == node.member_id
                for other in healed
            ):
                return node
        return None

    def _await_writes(self, healed: list[SimNode]) -> None:
        """All clients come to an end; then every healed node takes a write and sees it done."""
        world = self.world
        for client in world.clients:
            client.hush()
        limit_us = self.plan.timeout_ms * 2000
        self._wait(
            "all clients done",
            limit_us,
            lambda: not any(client.outstanding for client in world.clients),
        )
        world.on_probe_reply = self._on_answer
        for node in healed:
            answer = self._write_through(node)
            end_us = world.agenda.now_us + PROBE_DEADLINE_MS * 1000
            while answer.code != Code.OK and world.agenda.now_us < end_us:
                # Busy with requests whose clients are gone; or a slow disk cost a leader its place.
                world.agenda.run_until(world.agenda.now_us + 100_000)
                answer = self._write_through(node)
            if answer.code != Code.OK:
                raise Violation(f"no progress: a write was answered {answer.code} {answer.body!r}")

    def _write_through(self, node: SimNode) -> Reply:
        """Let a node take a write; return its answer."""
        body = encode_put(b"probe", b"%d" % node.member_id)
        request = Request(
            node.member_id, 0, 0, 0, PROBE_DEADLINE_MS, Consistency.WRITE, Flag.NONE, body
        )
        self._answers.clear()
        node.on_requests(b"p%d.%d" % (node.member_id, node.incarnation), [request])
        self._wait("a write", PROBE_DEADLINE_MS * 2000, self._is_answered)
        return self._answers[node.member_id]

    def _is_answered(self) -> bool:
        return bool(self._answers)

    def _on_answer(self, member_id: MemberId, replies: list[Reply]) -> None:
        self._answers[member_id] = replies[0]

    def _await_equal(self, healed: list[SimNode]) -> None:
        limit_us = self._timeouts_us(LEADER_TIMEOUTS) + self._busy_us(healed)
        limit_us += self._missing_us(healed)
        self._wait("equal logs", limit_us, lambda: _are_equal(healed))

    def _missing_us(self, healed: list[SimNode]) -> int:
        """Return how long it may take until the shortest log is as long as the longest.

        Who misses what is compacted away gets a snapshot first, at the rate and in the pieces of
        the plan, and another one if the log was cut again meanwhile; an answer that is overtaken
        has a piece sent again.
        """
        plan = self.plan
        lengths = [len(node.shadow.terms) for node in healed]
        # With a window of one entry, each that is missing costs a round trip and a sync.
        entry_us = 2 * (plan.latency_us + plan.jitter_us + plan.sync_us) + plan.apply_us
        missing_us = (max(lengths) - min(lengths)) * entry_us
        limits = plan.limits.snapshots
        snapshots = [node.raft.snapshot for node in healed if node.server is not None]
        size_bytes = max((meta.size_bytes for meta in snapshots if meta is not None), default=0)
        behind = sum(length < max(lengths) for length in lengths)
        at_rate_us = size_bytes * 1_000_000 // limits.max_bytes_per_s
        in_pieces_us = (1 + size_bytes // limits.chunk_bytes) * RESENT * entry_us
        return missing_us + 2 * behind * (at_rate_us + in_pieces_us)

    def _rest(self, healed: list[SimNode]) -> None:
        """Nobody asks anything and nothing breaks: the leader and the term stay."""
        if not (self.plan.settings.pre_vote and self.plan.settings.check_quorum):
            return  # without them, a node that is cut off raises the term when it likes
        before = [(node.raft.term, node.raft.leader_id) for node in healed]
        world = self.world
        world.agenda.run_until(world.agenda.now_us + self._timeouts_us(REST_TIMEOUTS))
        after = [(node.raft.term, node.raft.leader_id) for node in healed]
        if after != before and not self._may_stir():
            raise Violation(f"terms do not rest: (term, leader) {before}, then {after}")

    def _may_stir(self) -> bool:
        """Whether something that is left over may rightly depose a leader."""
        plan = self.plan
        return plan.slow_sync > 0


def _are_equal(healed: list[SimNode]) -> bool:
    states = [node.raft.state for node in healed]
    first = states[0]
    return all(
        state.log.last_id == first.log.last_id
        and state.commit_index == first.log.last_index
        and state.applied_index == first.log.last_index
        for state in states
    ) and any(state.role is Role.LEADER for state in states)


def _places(error: BaseException) -> list[str]:
    """Return where an exception of production code came from, innermost last."""
    lines: list[str] = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append(f"# {code.co_filename}:{trace.tb_lineno} {code.co_qualname}")
        trace = trace.tb_next
    return lines[-6:]


def run_seed(
    seed: int,
    *,
    time_s: float = 15.0,
    nodes: int | None = None,
    steps: int = STEPS_KEPT,
    trace: bool = False,
) -> Outcome:
    """Run one seed; see `Simulation`."""
    plan = draw_plan(seed, nodes=nodes)
    return Simulation(plan, time_s=time_s, steps=steps, trace=trace).run()
