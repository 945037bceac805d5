"""One node process as a state machine: what is wanted, what is, and what to do about it.

It owns no process, clock, file or socket. Facts come in (`on_ready`, `on_exit`, `on_timer` …),
wishes come in (`start`, `stop`, `kill`, `pause`, `resume`), effects come out, and the supervisor
carries them out after it wrote `record()` to disk: *desired state is durable before anything acts
on it*. So a supervisor that dies between the two is continued by the next one.

                 start                ready                 SIGSTOP seen
        down ───────────▶ starting ──────────▶ running ◀──────────────▶ paused
          ▲  ▲               │  ▲ due             │                        │
     exit │  └── stop ── backoff ◀── crash ───────┤       stop, kill       │
          └───────────────────────────── stopping ◀────────────────────────┘
                          fatal ◀── hopeless exit code, or too many crashes

    foreign: the directory's lock is held by a process that is not our node; it is never touched.

Times are `now_ms` of `zraft.clock`, randomness is injected.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import msgspec

from zraft.control_api import Desired, LastExit, NodeRecord, ProcessState
from zraft.errors import EXIT_DATA, HOPELESS_EXITS

ALIVE: frozenset[ProcessState] = frozenset({"starting", "running", "stopping", "paused"})
SETTLED: frozenset[ProcessState] = frozenset({"down", "fatal", "foreign"})
_EXPONENT_LIMIT = 30  # 2**30 times the shortest delay is beyond every longest one
_JITTER = 0.2
CLOSED_EARLY_MS = 1_000  # a node that closed its readiness pipe without a line is about to end
FOREIGN_LOOK_MS = 1_000


class RandomSource(Protocol):
    """The part of `random.Random` that is used."""

    def random(self) -> float:
        """Return a float in [0, 1)."""
        ...


class Policy(NamedTuple):
    """How patient the supervisor is: the section `supervisor` of the configuration, in ms."""

    backoff_min_ms: int = 100
    backoff_max_ms: int = 10_000
    crash_limit: int = 5
    crash_window_ms: int = 60_000
    healthy_after_ms: int = 30_000
    start_timeout_ms: int = 10_000
    stop_timeout_ms: int = 3_000


# ---------------------------------------------------------------------------------------- effects


class Spawn(NamedTuple):
    """Start a process, unless the lock of its directory is held."""


class AskToStop(NamedTuple):
    """Send `stop` to the node's control socket."""


class Send(NamedTuple):
    """Send a signal through the process's descriptor."""

    number: int


class LookAgain(NamedTuple):
    """See who holds the lock of a directory that a foreign process held."""


class BackedOff(NamedTuple):
    """For the log: it crashed and is started again after `delay_ms`."""

    crashes: int
    delay_ms: int


class GivenUp(NamedTuple):
    """For the log: it is not started again."""

    reason: str
    exit_code: int | None


Effect = Spawn | AskToStop | Send | LookAgain | BackedOff | GivenUp


@dataclass(slots=True)
class Process:
    """One node's process. See the module for the states; all methods return what to do now."""

    name: str
    policy: Policy
    random: RandomSource
    desired: Desired = "down"
    until_ms: int | None = None
    restart: bool = True
    state: ProcessState = "down"
    pid: int | None = None
    incarnation: int | None = None
    restarts: int = 0
    attempts: int = 0
    crashes_ms: list[int] = field(default_factory=list)
    fatal: str = ""
    last_exit: LastExit | None = None
    stopping_since_ms: int = 0
    _deadline_ms: int | None = None  # what it means depends on the state
    _ladder: int = 0  # stopping: 0 asked, 1 SIGTERM sent, 2 SIGKILL sent
    _pausing: bool = False  # SIGSTOP sent, not yet seen to have worked
    _timed_out: bool = False

    @classmethod
    def from_record(
        cls, name: str, policy: Policy, random: RandomSource, record: NodeRecord
    ) -> Process:
        """Return the process as an earlier supervisor left it; whether it lives comes as a fact."""
        return cls(
            name=name,
            policy=policy,
            random=random,
            desired=record.desired,
            until_ms=record.until_ms,
            restart=record.restart,
            restarts=record.restarts,
            attempts=record.attempts,
            crashes_ms=list(record.crashes_ms),
            fatal=record.fatal,
            last_exit=record.last_exit,
        )

    def record(self) -> NodeRecord:
        """Return what must be on disk before the effects of the last call are carried out."""
        return NodeRecord(
            desired=self.desired,
            until_ms=self.until_ms,
            restart=self.restart,
            restarts=self.restarts,
            attempts=self.attempts,
            crashes_ms=list(self.crashes_ms),
            fatal=self.fatal,
            last_exit=self.last_exit,
        )

    @property
    def pausing(self) -> bool:
        """Whether SIGSTOP was sent and nobody has seen yet that the process stands."""
        return self._pausing

    def next_deadline_ms(self) -> int | None:
        """Return when `on_timer` has something to do, None when never."""
        times = [time for time in (self._deadline_ms, self.until_ms) if time is not None]
        return min(times, default=None)

    # ---------------------------------------------------------------------------------- wishes

    def start(self) -> list[Effect]:
        """It shall run. Crash history, giving up and a timed kill or stop are forgotten.

        A paused process stays paused: `resume` is another wish.
        """
        if self.desired == "paused":
            return []
        self.desired, self.until_ms = "up", None
        self.fatal, self.attempts, self.restarts, self.crashes_ms = "", 0, 0, []
        return self._spawn() if self.state in {"down", "backoff", "fatal"} else []

    def stop(self, now_ms: int, *, until_ms: int | None = None) -> list[Effect]:
        """It shall end in order, and stay down (until `until_ms`)."""
        self._want_down(until_ms)
        return self._begin_stop(now_ms)

    def kill(
        self, now_ms: int, *, number: int = signal.SIGKILL, until_ms: int | None = None
    ) -> list[Effect]:
        """It shall end by a signal, and stay down (until `until_ms`)."""
        self._want_down(until_ms)
        if self.state not in ALIVE:
            return self._settle_down()
        effects: list[Effect] = [Send(number)]
        if number != signal.SIGKILL and self.state == "paused":
            effects.append(Send(signal.SIGCONT))  # no other signal reaches a stopped process
        self._enter_stopping(now_ms, ladder=2 if number == signal.SIGKILL else 1)
        return effects

    def cycle(self, now_ms: int) -> list[Effect]:
        """It shall end in order and run again; what does not run is just started."""
        if self.state not in ALIVE:
            return self.start()
        self.desired, self.until_ms = "up", None
        self.fatal, self.attempts, self.restarts, self.crashes_ms = "", 0, 0, []
        return self._begin_stop(now_ms)

    def pause(self, *, until_ms: int | None = None) -> list[Effect]:
        """It shall stand still (until `until_ms`). Only for what runs or is paused."""
        assert self.state in {"running", "paused"}, f"pause of a process that is {self.state}"
        self.desired, self.until_ms = "paused", until_ms
        if self.state == "paused":
            return []
        self._pausing = True
        return [Send(signal.SIGSTOP)]

    def resume(self, now_ms: int) -> list[Effect]:
        """It shall go on."""
        if self.desired != "paused":
            return []
        self.desired, self.until_ms = "up", None
        self._pausing = False
        if self.state not in {"paused", "running"}:
            return []
        self._become_running(now_ms)
        return [Send(signal.SIGCONT)]

    # ----------------------------------------------------------------------------------- facts

    def on_spawned(self, pid: int, now_ms: int) -> list[Effect]:
        """A process was started; it has `start_timeout_ms` to say that it is ready."""
        self.pid, self.incarnation, self._timed_out = pid, None, False
        if self.state != "stopping":  # unwanted again in the same turn
            self.state = "starting"
            self._deadline_ms = now_ms + self.policy.start_timeout_ms
        return []

    def on_progress(self, now_ms: int) -> list[Effect]:
        """It still reads its log: the deadline is armed anew."""
        if self.state == "starting":
            self._deadline_ms = now_ms + self.policy.start_timeout_ms
        return []

    def on_ready(self, incarnation: int | None, now_ms: int) -> list[Effect]:
        """It serves."""
        self.incarnation = incarnation
        if self.state == "starting":
            self._become_running(now_ms)
        return []

    def on_closed_early(self, now_ms: int) -> list[Effect]:
        """It closed its readiness pipe without a line: it is ending, or is made to end."""
        if self.state == "starting":
            self._deadline_ms = now_ms + CLOSED_EARLY_MS
        return []

    def on_stopped(self) -> list[Effect]:
        """SIGSTOP has worked."""
        if self._pausing and self.state == "running":
            self._pausing = False
            self.state, self._deadline_ms = "paused", None
        return []

    def on_exit(self, last: LastExit, now_ms: int) -> list[Effect]:
        """Its process has ended."""
        wanted = self.state == "stopping"
        reason = last.reason
        if self._timed_out:
            reason = f"not ready within {self.policy.start_timeout_ms} ms"
        elif not reason:
            reason = "stopped" if wanted else "crashed"
        self.last_exit = msgspec.structs.replace(last, expected=wanted, reason=reason)
        self.pid, self._pausing, self._timed_out = None, False, False
        if wanted:
            return self._spawn() if self.desired == "up" else self._settle_down()
        if self.desired == "paused":  # it ended while it stood: the pause is over
            self.desired, self.until_ms = "up", None
        return self._after_crash(last.code, now_ms)

    def on_spawn_failed(self, reason: str, now_ms: int) -> list[Effect]:
        """The operating system refused to start a process."""
        self.last_exit = LastExit(pid=0, reason=reason)
        return self._after_crash(None, now_ms)

    def on_adopted(
        self, pid: int, incarnation: int | None, now_ms: int, *, stopped: bool
    ) -> list[Effect]:
        """An earlier supervisor's process lives. What is, is made to be what is wanted."""
        self.pid, self.incarnation, self.fatal = pid, incarnation, ""
        self._become_running(now_ms)
        if stopped:
            self.state, self._deadline_ms = "paused", None
        if self.desired == "down":
            return self._begin_stop(now_ms)
        if self.desired == "up" or (self.until_ms is not None and self.until_ms <= now_ms):
            self.desired, self.until_ms = "up", None
            if stopped:
                self._become_running(now_ms)
                return [Send(signal.SIGCONT)]
            return []
        return [] if stopped else self.pause(until_ms=self.until_ms)

    def on_absent(self) -> list[Effect]:
        """Nothing holds the lock of its directory: what an earlier supervisor started has ended."""
        was_foreign = self.state == "foreign"
        self.state, self.pid, self._deadline_ms = "down", None, None
        if self.desired == "down":
            return []
        if self.fatal:
            self.state = "fatal"
            return []
        if not self.restart and not was_foreign:
            self._want_down(None)
            return []
        self.desired, self.until_ms = "up", None
        self.restarts += 0 if was_foreign else 1
        return self._spawn()

    def on_foreign(self, pid: int, now_ms: int) -> list[Effect]:
        """A process that is not our node holds the lock of its directory."""
        self.state, self.pid, self.incarnation = "foreign", pid, None
        self._deadline_ms = now_ms + FOREIGN_LOOK_MS
        return []

    def on_timer(self, now_ms: int) -> list[Effect]:
        """Do what is due: undo a timed wish, start again, climb the ladder of a stop, give up."""
        effects: list[Effect] = []
        if self.until_ms is not None and self.until_ms <= now_ms:
            effects += self._undo(now_ms)
        if self._deadline_ms is None or self._deadline_ms > now_ms:
            return effects
        match self.state:
            case "starting":
                self._timed_out = True
                self._deadline_ms = None
                effects.append(Send(signal.SIGKILL))
            case "running":  # long enough to call the trouble over
                self._deadline_ms = None
                self.attempts, self.crashes_ms = 0, []
            case "stopping":
                effects += self._climb(now_ms)
            case "backoff":
                self.restarts += 1
                effects += self._spawn()
            case "foreign":
                self._deadline_ms = now_ms + FOREIGN_LOOK_MS
                effects.append(LookAgain())
            case _:
                self._deadline_ms = None
        return effects

    # --------------------------------------------------------------------------------- inside

    def _want_down(self, until_ms: int | None) -> None:
        self.desired, self.until_ms = "down", until_ms
        self.fatal, self.attempts, self.crashes_ms = "", 0, []

    def _undo(self, now_ms: int) -> list[Effect]:
        if self.desired == "paused":
            return self.resume(now_ms)
        return self.start()

    def _spawn(self) -> list[Effect]:
        # "starting" from here on: the supervisor reports on_spawned, on_spawn_failed, on_adopted
        # or on_foreign in the same turn.
        self.state, self._deadline_ms = "starting", None
        return [Spawn()]

    def _settle_down(self) -> list[Effect]:
        if self.state != "foreign":
            self.state, self._deadline_ms = "down", None
        return []

    def _become_running(self, now_ms: int) -> None:
        self.state = "running"
        troubled = bool(self.attempts or self.crashes_ms)
        self._deadline_ms = now_ms + self.policy.healthy_after_ms if troubled else None

    def _begin_stop(self, now_ms: int) -> list[Effect]:
        match self.state:
            case "running":
                standing = self._pausing
            case "paused":
                standing = True
            case "starting":  # its control socket may not be there yet
                self._enter_stopping(now_ms, ladder=1)
                return [Send(signal.SIGTERM)]
            case "stopping":
                return []
            case _:
                return self._settle_down()
        if standing:  # it wakes up with the wish to end already pending, and does nothing else
            self._enter_stopping(now_ms, ladder=1)
            return [Send(signal.SIGTERM), Send(signal.SIGCONT)]
        self._enter_stopping(now_ms, ladder=0)
        return [AskToStop()]

    def _enter_stopping(self, now_ms: int, *, ladder: int) -> None:
        self.state, self._ladder, self._pausing = "stopping", ladder, False
        self.stopping_since_ms = now_ms
        self._deadline_ms = now_ms + self.policy.stop_timeout_ms if ladder < 2 else None

    def _climb(self, now_ms: int) -> list[Effect]:
        self._ladder += 1
        if self._ladder == 1:
            self._deadline_ms = now_ms + self.policy.stop_timeout_ms
            return [Send(signal.SIGTERM)]
        self._deadline_ms = None
        return [Send(signal.SIGCONT), Send(signal.SIGKILL)]

    def _after_crash(self, code: int | None, now_ms: int) -> list[Effect]:
        if self.desired == "down":
            return self._settle_down()
        if code in HOPELESS_EXITS:
            hint = "its data" if code == EXIT_DATA else "a restart"
            return self._give_up(f"exit code {code}: {hint} cannot be healed by trying again", code)
        if not self.restart:
            self._want_down(None)
            return self._settle_down()
        window_start_ms = now_ms - self.policy.crash_window_ms
        self.crashes_ms = [time for time in self.crashes_ms if time > window_start_ms]
        self.crashes_ms.append(now_ms)
        self.attempts += 1
        if len(self.crashes_ms) >= self.policy.crash_limit:
            seconds = self.policy.crash_window_ms // 1000
            return self._give_up(f"{len(self.crashes_ms)} crashes within {seconds} s", code)
        delay_ms = self._delay_ms()
        self.state, self._deadline_ms = "backoff", now_ms + delay_ms
        return [BackedOff(len(self.crashes_ms), delay_ms)]

    def _give_up(self, reason: str, code: int | None) -> list[Effect]:
        self.state, self._deadline_ms, self.fatal = "fatal", None, reason
        return [GivenUp(reason, code)]

    def _delay_ms(self) -> int:
        exponent = min(self.attempts - 1, _EXPONENT_LIMIT)
        base_ms = min(self.policy.backoff_max_ms, self.policy.backoff_min_ms * 2**exponent)
        return int(base_ms * (1 + _JITTER * (2 * self.random.random() - 1)))
