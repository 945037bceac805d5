"""One node's process as a state machine: tables of wishes and facts, a made-up clock."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable

import pytest

from zraft.control_api import Desired, LastExit, NodeRecord, ProcessState
from zraft_supervisor.process import (
    CLOSED_EARLY_MS,
    FOREIGN_LOOK_MS,
    AskToStop,
    BackedOff,
    Effect,
    GivenUp,
    LookAgain,
    Policy,
    Process,
    Send,
    Spawn,
)

POLICY = Policy()
NOW = 1_000_000
KILL = Send(signal.SIGKILL)
TERM = Send(signal.SIGTERM)
STOP = Send(signal.SIGSTOP)
CONT = Send(signal.SIGCONT)


class Middle:
    """A generator that always draws the middle: back-off without jitter."""

    def random(self) -> float:
        """Return one half."""
        return 0.5


def make(state: ProcessState = "down", *, restart: bool = True) -> Process:
    """Return a process that came to `state` in the ordinary way at `NOW`."""
    process = Process("n1", POLICY, Middle(), restart=restart)
    if state == "down":
        return process
    if state == "foreign":
        process.on_foreign(77, NOW)
        return process
    process.start()
    process.on_spawned(100, NOW)
    if state == "starting":
        return process
    if state == "fatal":
        process.on_exit(LastExit(pid=100, code=65), NOW)
        return process
    process.on_ready(1, NOW)
    if state == "paused":
        process.pause()
        process.on_stopped()
    elif state == "stopping":
        process.stop(NOW)
    elif state == "backoff":
        process.on_exit(crash(), NOW)
    assert process.state == state
    return process


def crash(pid: int = 100) -> LastExit:
    """Return the end of a process that somebody killed."""
    return LastExit(pid=pid, signal="SIGKILL")


Wish = Callable[[Process], list[Effect]]
WISHES: dict[str, Wish] = {
    "start": lambda p: p.start(),
    "stop": lambda p: p.stop(NOW),
    "kill": lambda p: p.kill(NOW),
    "cycle": lambda p: p.cycle(NOW),
    "resume": lambda p: p.resume(NOW),
}

TABLE: list[tuple[ProcessState, str, list[Effect], ProcessState, Desired]] = [
    ("down", "start", [Spawn()], "starting", "up"),
    ("down", "stop", [], "down", "down"),
    ("down", "kill", [], "down", "down"),
    ("down", "cycle", [Spawn()], "starting", "up"),
    ("down", "resume", [], "down", "down"),
    ("starting", "start", [], "starting", "up"),
    ("starting", "stop", [TERM], "stopping", "down"),
    ("starting", "kill", [KILL], "stopping", "down"),
    ("starting", "cycle", [TERM], "stopping", "up"),
    ("starting", "resume", [], "starting", "up"),
    ("running", "start", [], "running", "up"),
    ("running", "stop", [AskToStop()], "stopping", "down"),
    ("running", "kill", [KILL], "stopping", "down"),
    ("running", "cycle", [AskToStop()], "stopping", "up"),
    ("running", "resume", [], "running", "up"),
    ("paused", "start", [], "paused", "paused"),
    ("paused", "stop", [TERM, CONT], "stopping", "down"),
    ("paused", "kill", [KILL], "stopping", "down"),
    ("paused", "cycle", [TERM, CONT], "stopping", "up"),
    ("paused", "resume", [CONT], "running", "up"),
    ("stopping", "start", [], "stopping", "up"),
    ("stopping", "stop", [], "stopping", "down"),
    ("stopping", "kill", [KILL], "stopping", "down"),
    ("stopping", "cycle", [], "stopping", "up"),
    ("stopping", "resume", [], "stopping", "down"),
    ("backoff", "start", [Spawn()], "starting", "up"),
    ("backoff", "stop", [], "down", "down"),
    ("backoff", "kill", [], "down", "down"),
    ("backoff", "cycle", [Spawn()], "starting", "up"),
    ("fatal", "start", [Spawn()], "starting", "up"),
    ("fatal", "stop", [], "down", "down"),
    ("fatal", "kill", [], "down", "down"),
    ("fatal", "cycle", [Spawn()], "starting", "up"),
    ("foreign", "start", [], "foreign", "up"),
    ("foreign", "stop", [], "foreign", "down"),
    ("foreign", "kill", [], "foreign", "down"),
    ("foreign", "cycle", [], "foreign", "up"),
]


@pytest.mark.parametrize(("state", "wish", "effects", "then", "desired"), TABLE)
def test_each_wish_in_each_state_does_exactly_this(
    state: ProcessState, wish: str, effects: list[Effect], then: ProcessState, desired: Desired
) -> None:
    """Every wish has one answer in every state; a foreign process is never signalled."""
    process = make(state)
    assert WISHES[wish](process) == effects
    assert (process.state, process.desired) == (then, desired)


def test_a_polite_stop_climbs_to_sigterm_and_then_to_sigcont_and_sigkill() -> None:
    """Control `stop`, 3 s, SIGTERM, 3 s, SIGCONT and SIGKILL; then the end is awaited."""
    process = make("running")
    process.stop(NOW)
    assert process.next_deadline_ms() == NOW + 3000
    assert process.on_timer(NOW + 2999) == []
    assert process.on_timer(NOW + 3000) == [TERM]
    assert process.on_timer(NOW + 6000) == [CONT, KILL]
    assert process.next_deadline_ms() is None


def test_a_kill_by_another_signal_is_followed_by_sigkill() -> None:
    """A signal that the process survives does not leave it half-dead; a paused one is woken."""
    process = make("paused")
    assert process.kill(NOW, number=signal.SIGTERM) == [TERM, CONT]
    assert process.on_timer(NOW + 3000) == [CONT, KILL]


def test_a_stopped_process_stays_down_when_it_has_ended() -> None:
    """Deliberately stopped: its end is expected and nothing starts it again."""
    process = make("stopping")
    assert process.on_exit(LastExit(pid=100, code=0), NOW) == []
    assert (process.state, process.next_deadline_ms()) == ("down", None)
    assert process.last_exit is not None
    assert (process.last_exit.expected, process.last_exit.reason) == (True, "stopped")


def test_a_stop_in_the_turn_of_a_start_still_stops() -> None:
    """The process appears after it was unwanted: it is on its way down from the first moment."""
    process = make("down")
    assert process.start() == [Spawn()]
    assert process.stop(NOW) == [TERM]
    process.on_spawned(100, NOW)
    assert process.state == "stopping"
    assert process.on_timer(NOW + 3000) == [CONT, KILL]


def test_a_start_during_a_stop_is_a_restart() -> None:
    """The wish counts that was stated last: it is started as soon as it has ended."""
    process = make("stopping")
    process.start()
    assert process.on_exit(LastExit(pid=100, code=0), NOW) == [Spawn()]


def test_crashes_in_a_row_are_started_again_later_each_time_until_given_up() -> None:
    """0.1, 0.2, 0.4, 0.8 s, and the fifth crash within 60 s is the last."""
    process = make("running")
    now_ms, delays = NOW, []
    for _ in range(4):
        (effect,) = process.on_exit(crash(), now_ms)
        assert isinstance(effect, BackedOff)
        delays.append(effect.delay_ms)
        now_ms += effect.delay_ms
        assert process.on_timer(now_ms - 1) == []
        assert process.on_timer(now_ms) == [Spawn()]
        process.on_spawned(100, now_ms)
        process.on_ready(1, now_ms)
    assert delays == [100, 200, 400, 800]
    (last,) = process.on_exit(crash(), now_ms)
    assert last == GivenUp("5 crashes within 60 s", None)
    assert (process.state, process.desired) == ("fatal", "up")
    assert process.next_deadline_ms() is None


def test_crashes_that_are_far_apart_never_add_up_to_giving_up() -> None:
    """The limit counts crashes of the last 60 s; delays end at 10 s."""
    process = make("running")
    now_ms = NOW
    for number in range(30):
        now_ms += 20_000
        (effect,) = process.on_exit(crash(), now_ms)
        assert isinstance(effect, BackedOff)
        assert effect.delay_ms == min(10_000, 100 * 2**number)
        process.on_timer(now_ms + effect.delay_ms)
        process.on_spawned(100, now_ms)
        process.on_ready(1, now_ms)


def test_thirty_seconds_of_health_end_the_trouble() -> None:
    """After 30 s of running the next crash waits as short as the first one."""
    process = make("backoff")
    process.on_timer(NOW + 100)
    process.on_spawned(101, NOW + 100)
    process.on_ready(1, NOW + 200)
    assert process.next_deadline_ms() == NOW + 30_200
    assert process.on_timer(NOW + 30_200) == []
    assert process.on_exit(crash(), NOW + 31_000) == [BackedOff(1, 100)]


@pytest.mark.parametrize("seed", range(20))
def test_jitter_stays_within_a_fifth(seed: int) -> None:
    """Nodes that crash together are not started together: ±20 %."""
    process = make("running")
    process.random = random.Random(seed)
    (effect,) = process.on_exit(crash(), NOW)
    assert isinstance(effect, BackedOff)
    assert 80 <= effect.delay_ms <= 120, f"seed {seed}"


@pytest.mark.parametrize("code", [65, 70, 75, 78])
def test_an_exit_code_that_a_restart_cannot_heal_is_final_at_once(code: int) -> None:
    """Corrupt data, a broken invariant, a held lock, configuration: the first time is the last."""
    process = make("starting")
    (effect,) = process.on_exit(LastExit(pid=100, code=code), NOW)
    assert isinstance(effect, GivenUp)
    assert effect.exit_code == code
    assert process.state == "fatal"


@pytest.mark.parametrize("code", [0, 1, 74, None])
def test_other_ends_are_tried_again(code: int | None) -> None:
    """A disk error (74) may pass; an end that nobody saw or nobody asked for is a crash."""
    process = make("running")
    assert process.on_exit(LastExit(pid=100, code=code), NOW) == [BackedOff(1, 100)]


def test_without_restart_a_crash_is_final_and_the_next_supervisor_knows() -> None:
    """`--no-restart`: it stays down, desired state included, until it is started."""
    process = make("running", restart=False)
    assert process.on_exit(crash(), NOW) == []
    assert (process.state, process.record().desired) == ("down", "down")


def test_a_start_forgets_crashes_and_giving_up() -> None:
    """Whoever says start gives it all its chances again."""
    process = make("fatal")
    process.start()
    assert (process.fatal, process.crashes_ms, process.restarts) == ("", [], 0)


def test_a_node_that_is_not_ready_in_time_is_killed_and_progress_gives_it_more() -> None:
    """10 s for the readiness line; a line of progress arms the deadline anew."""
    process = make("starting")
    process.on_progress(NOW + 9_000)
    assert process.on_timer(NOW + 18_999) == []
    assert process.on_timer(NOW + 19_000) == [KILL]
    assert process.on_exit(crash(), NOW + 19_010) == [BackedOff(1, 100)]
    assert process.last_exit is not None
    assert process.last_exit.reason == "not ready within 10000 ms"


def test_a_node_that_closes_its_pipe_without_a_line_has_a_second_to_end() -> None:
    """EOF without a line is a failed start, whether the process ends by itself or not."""
    process = make("starting")
    process.on_closed_early(NOW)
    assert process.on_timer(NOW + CLOSED_EARLY_MS) == [KILL]


def test_a_pause_is_over_when_its_time_is_up() -> None:
    """`pause --for` is undone by the clock: SIGCONT, and wanted up again."""
    process = make("running")
    assert process.pause(until_ms=NOW + 500) == [STOP]
    assert process.pausing  # until somebody has seen it stand
    process.on_stopped()
    assert (process.state, process.pausing) == ("paused", False)
    assert process.on_timer(NOW + 499) == []
    assert process.on_timer(NOW + 500) == [CONT]
    assert (process.state, process.desired) == ("running", "up")


def test_a_timed_kill_is_undone_by_a_start() -> None:
    """`kill --for` starts it again when the time is up."""
    process = make("running")
    process.kill(NOW, until_ms=NOW + 500)
    process.on_exit(crash(), NOW + 5)
    assert process.next_deadline_ms() == NOW + 500
    assert process.on_timer(NOW + 500) == [Spawn()]
    assert process.desired == "up"


def test_a_process_that_is_killed_while_it_is_paused_was_not_paused_for_ever() -> None:
    """Somebody else's kill -9 ends the pause: it is a crash like any other."""
    process = make("paused")
    assert process.on_exit(crash(), NOW) == [BackedOff(1, 100)]
    assert process.desired == "up"


def test_a_foreign_process_is_looked_at_again_each_second_and_never_touched() -> None:
    """When the lock is free the node is started, if it is wanted."""
    process = make("foreign")
    process.start()
    assert process.on_timer(NOW + FOREIGN_LOOK_MS) == [LookAgain()]
    assert process.on_timer(NOW + 2 * FOREIGN_LOOK_MS) == [LookAgain()]
    assert process.on_absent() == [Spawn()]


ADOPTED: list[tuple[Desired, int | None, bool, list[Effect], ProcessState, Desired]] = [
    ("up", None, False, [], "running", "up"),
    ("up", None, True, [CONT], "running", "up"),  # the old one died before its SIGCONT
    ("paused", None, True, [], "paused", "paused"),
    ("paused", None, False, [STOP], "running", "paused"),  # … before its SIGSTOP
    ("paused", NOW + 500, True, [], "paused", "paused"),
    ("paused", NOW - 500, True, [CONT], "running", "up"),  # past its time
    ("paused", NOW - 500, False, [], "running", "up"),
    ("down", None, False, [AskToStop()], "stopping", "down"),  # … before its stop
    ("down", None, True, [TERM, CONT], "stopping", "down"),
]


@pytest.mark.parametrize(("desired", "until", "stopped", "effects", "then", "now"), ADOPTED)
def test_an_adopted_process_is_made_to_be_what_is_wanted(
    desired: Desired,
    until: int | None,
    stopped: bool,
    effects: list[Effect],
    then: ProcessState,
    now: Desired,
) -> None:
    """The record was written before anything was done: what is missing is done now, once."""
    record = NodeRecord(desired=desired, until_ms=until)
    process = Process.from_record("n1", POLICY, Middle(), record)
    assert process.on_adopted(100, 3, NOW, stopped=stopped) == effects
    assert (process.state, process.desired, process.incarnation) == (then, now, 3)


ABSENT: list[tuple[NodeRecord, list[Effect], ProcessState, Desired]] = [
    (NodeRecord(desired="up"), [Spawn()], "starting", "up"),
    (NodeRecord(desired="down"), [], "down", "down"),
    (NodeRecord(desired="paused"), [Spawn()], "starting", "up"),
    (NodeRecord(desired="up", fatal="exit code 65"), [], "fatal", "up"),
    (NodeRecord(desired="up", restart=False), [], "down", "down"),
]


@pytest.mark.parametrize(("record", "effects", "then", "desired"), ABSENT)
def test_what_is_wanted_and_ended_unwatched_is_started_again(
    record: NodeRecord, effects: list[Effect], then: ProcessState, desired: Desired
) -> None:
    """A node killed while no supervisor ran is restarted by the next one, if that is wanted."""
    process = Process.from_record("n1", POLICY, Middle(), record)
    assert process.on_absent() == effects
    assert (process.state, process.desired) == (then, desired)


def test_a_record_holds_everything_that_the_next_supervisor_needs() -> None:
    """From a record and back is the same record."""
    process = make("backoff")
    record = process.record()
    assert Process.from_record("n1", POLICY, Middle(), record).record() == record
    assert (record.attempts, record.crashes_ms) == (1, [NOW])


def test_random_wishes_and_facts_never_leave_a_node_without_a_way_on() -> None:
    """A wanted node is alive, or has a deadline, or was given up with a reason."""
    for seed in range(300):
        rng = random.Random(seed)
        process = Process("n1", POLICY, rng)
        now_ms = NOW
        for _ in range(60):
            now_ms += rng.choice([1, 50, 1000, 5000, 40_000])
            _random_step(process, rng, now_ms)
            alive = process.pid is not None
            waits = process.next_deadline_ms() is not None
            ended = process.fatal or process.desired == "down"
            assert alive or waits or ended, f"seed {seed}: {process}"


def _random_step(process: Process, rng: random.Random, now_ms: int) -> None:
    effects: list[Effect] = []
    steps: list[Callable[[], list[Effect]]] = [
        process.start,
        lambda: process.stop(now_ms),
        lambda: process.kill(now_ms, until_ms=rng.choice([None, now_ms + 700])),
        lambda: process.cycle(now_ms),
        lambda: process.resume(now_ms),
        lambda: process.on_timer(now_ms),
        lambda: process.on_timer(now_ms),
    ]
    if process.state in {"running", "paused"}:
        steps.append(lambda: process.pause(until_ms=rng.choice([None, now_ms + 700])))
    if process.state in {"starting", "running", "paused", "stopping"}:
        code = rng.choice([0, 1, 65, None])
        steps.append(lambda: process.on_exit(LastExit(pid=1, code=code), now_ms))
    if process.state == "starting":
        steps.append(lambda: process.on_ready(1, now_ms))
    if process.pausing:
        steps.append(process.on_stopped)
    effects = rng.choice(steps)()
    while Spawn() in effects:
        spawned = rng.random() < 0.9
        effects = (
            process.on_spawned(1, now_ms)
            if spawned
            else process.on_spawn_failed("no memory", now_ms)
        )
