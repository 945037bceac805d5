"""What a seed decides before anything happens (swarm testing).

Each kind of fault is on or off for a whole seed, and those that are on have their own rates: a run
that suffers from everything at once hides what a run with two faults shows. Settings are drawn,
too: small windows, batches and segments make rare paths common.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from zraft.core.model import Settings
from zraft.node.ports import Limits, SnapshotLimits
from zraft.testing.sim.draws import Draws

FAULTS = (
    "kill",
    "power",
    "crash-at-step",
    "outage",
    "pause",
    "stall",
    "isolate",
    "partition",
    "one-way",
    "bridge",
    "cut-link",
    "bad-links",
    "clock-jump",
    "wrong-hint",
    "campaign",
    "step-down",
    "disk-error",
    "stop",
    "transfer",
)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that stays the same during one run. Probabilities are per message or per sync."""

    seed: int
    nodes: int
    settings: Settings
    limits: Limits
    stall_grace: bool
    pauses_io: bool  # a pause stops the thread that reads the sockets, too
    codec: bool  # every frame goes through the production codec and header filter
    segment_bytes: int
    short_write_bytes: int | None
    prepares: bool
    inbox_frames: int  # taken in one turn

    latency_us: int
    jitter_us: int
    drop: float
    duplicate: float
    reorder: float  # overtaken by up to twenty times the latency
    fifo: bool

    sync_us: int
    slow_sync: float
    slow_sync_us: int
    apply_us: int  # per look at the clock while applying

    drifts_ppm: tuple[int, ...]
    hint: float  # that a survivor hears of a death at once
    late_hint: float

    faults: tuple[tuple[str, float], ...]  # kind and weight
    fault_gap_us: int  # mean
    aims_at_leader: float
    down_us: int  # mean time until a dead node is started again
    fault_us: int  # mean length of a pause or a cut

    clients: int
    processes: int
    think_us: int  # mean
    timeout_ms: int
    scatter: float  # that an operation goes to one node drawn at random, and to no other
    keys: int
    padding_bytes: int  # of values, at most
    heals_all: bool

    sessions: float = 0.0  # of the clients: their writes have names and are repeated
    resolves: float = 0.0  # of their unknown outcomes: they ask
    closes: float = 0.0  # that a client ends its session after an operation
    lease_reads: float = 0.0  # of the reads; with leases on
    stale_reads: float = 0.0
    bounded: float = 0.0  # of the stale ones
    bound_ms: int = 1

    spares: int = 0  # nodes that are no members at first
    change_gap_us: int = 0  # mean, between changes of membership; 0: none

    turn_us: int = 50  # what a turn of a node takes, besides its disk


def draw_plan(seed: int, *, nodes: int | None = None) -> Plan:
    """Return what `seed` decides; `nodes` overrides the number of members."""
    draws = Draws(seed, "plan")
    drawn_nodes = draws.weighted(((3, 46.0), (5, 38.0), (1, 4.0), (2, 4.0), (4, 4.0), (7, 4.0)))
    count = drawn_nodes if nodes is None else nodes
    settings = _draw_settings(draws)
    clean_links = draws.chance(0.4)
    drifts = draws.chance(0.5)
    jitter = draws.pick((50, 200, 1000, 4000))
    limit_ms = settings.election_max_ms
    plan = Plan(
        seed=seed,
        nodes=count,
        settings=settings,
        limits=Limits(
            max_waiting_requests=draws.pick((10_000, 10_000, 200, 5)),
            max_parked_requests=draws.pick((1000, 10)),
        ),
        stall_grace=draws.chance(0.85),
        pauses_io=draws.chance(0.7),
        codec=draws.chance(0.35),
        segment_bytes=draws.pick((4096, 16384, 65536, 65536)),
        short_write_bytes=draws.pick((512, 1500)) if draws.chance(0.15) else None,
        prepares=draws.chance(0.5),
        inbox_frames=draws.pick((512, 512, 512, 4, 1)),
        latency_us=draws.pick((50, 150, 500, 2000)),
        jitter_us=jitter,
        drop=0.0 if clean_links else draws.pick((0.0, 0.005, 0.02, 0.1)),
        duplicate=0.0 if clean_links else draws.pick((0.0, 0.05, 0.3)),
        reorder=0.0 if clean_links else draws.pick((0.0, 0.01, 0.1)),
        fifo=draws.chance(0.6),
        sync_us=draws.pick((100, 300, 1000, 4000)),
        slow_sync=draws.pick((0.0, 0.0, 0.002, 0.01)),
        slow_sync_us=draws.pick((30_000, 150_000, 600_000)),
        apply_us=draws.pick((0, 0, 50, 1500)),
        drifts_ppm=tuple(draws.between(-50_000, 50_000) if drifts else 0 for _ in range(count)),
        hint=draws.pick((0.0, 0.9, 1.0)),
        late_hint=draws.pick((0.0, 0.1, 0.5)),
        faults=_draw_faults(draws),
        fault_gap_us=draws.between(150_000, 400_000),
        aims_at_leader=draws.pick((0.2, 0.5, 0.8)),
        down_us=draws.pick((20_000, 200_000, 800_000)),
        fault_us=draws.pick((limit_ms, 2 * limit_ms, 5 * limit_ms)) * 1000,
        clients=draws.between(2, 4),
        processes=draws.between(12, 18),
        think_us=draws.pick((35_000, 50_000)),
        timeout_ms=draws.pick((500, 1000, 3000)),
        scatter=draws.pick((0.0, 0.3, 0.8)),
        keys=draws.between(2, 6),
        padding_bytes=draws.pick((0, 0, 300, 3000)),
        heals_all=draws.chance(0.5),
    )
    plan = _draw_sessions(_draw_members(_draw_reads(plan, draws), draws), draws)
    plan = _draw_snapshots(plan, draws)
    every = draws.pick((1024, 64, 16))
    plan = replace(plan, limits=plan.limits._replace(digest_interval=every))
    plan = _draw_wipes(plan, Draws(seed, "plan of wipes"))
    plan = _draw_endings(plan, Draws(seed, "plan of endings"))
    return replace(plan, turn_us=Draws(seed, "plan of turns").pick((100, 300, 1000, 2000)))


def _draw_sessions(plan: Plan, draws: Draws) -> Plan:
    """Draw who uses sessions; some live so short that they end between two attempts."""
    terms = plan.limits.session_terms._replace(ttl_ms=draws.pick((400, 2000, 1_800_000)))
    return replace(
        plan,
        sessions=draws.pick((0.0, 0.5, 1.0)),
        limits=plan.limits._replace(session_terms=terms),
    )


def _draw_endings(plan: Plan, draws: Draws) -> Plan:
    """Draw who asks about unknown outcomes, and who closes sessions; see `_draw_wipes`."""
    resolves, closes = draws.pick((0.0, 0.5, 1.0, 1.0)), draws.pick((0.0, 0.0, 0.01, 0.1))
    if not plan.sessions:
        return plan
    return replace(plan, resolves=resolves, closes=closes)


def _draw_reads(plan: Plan, draws: Draws) -> Plan:
    """Draw the levels of reads. Leases trust clocks, and, if told so, hints of a death.

    In a world with leases no clock jumps (`Nemesis`), and where hints are wrong or late they end no
    promise.
    """
    lease = draws.chance(0.5) and plan.settings.check_quorum
    trusts_hints = draws.chance(0.5)
    kinds = {kind for kind, _ in plan.faults}
    hints_prove = trusts_hints and not plan.late_hint and "wrong-hint" not in kinds
    return replace(
        plan,
        settings=plan.settings._replace(lease=lease, hint_ends_promise=hints_prove),
        limits=plan.limits._replace(lease_reads=lease),
        lease_reads=draws.pick((0.3, 0.7)) if lease else 0.0,
        stale_reads=draws.pick((0.0, 0.1, 0.3)),
        bounded=draws.pick((0.3, 0.8)),
        bound_ms=draws.pick((20, 100, 500)),
    )


def _draw_members(plan: Plan, draws: Draws) -> Plan:
    """Draw who may join, and how often somebody changes the membership."""
    spares, gap_us = draws.between(1, 2), draws.pick((200_000, 500_000, 1_500_000))
    if not draws.chance(0.4) or not 3 <= plan.nodes <= 5:
        return plan
    drifts = any(plan.drifts_ppm)
    more = tuple(draws.between(-50_000, 50_000) if drifts else 0 for _ in range(spares))
    return replace(plan, spares=spares, change_gap_us=gap_us, drifts_ppm=(*plan.drifts_ppm, *more))


def _draw_wipes(plan: Plan, draws: Draws) -> Plan:
    """Draw whether members lose their disks, where operators can replace them.

    From a stream of its own, and last: a world without wipes is the one that it was before.
    """
    wipes, weight = draws.chance(0.6), 1.0 + draws.random()
    if not wipes or not plan.spares:
        return plan
    return replace(plan, faults=(*plan.faults, ("wipe", weight)))


def _draw_snapshots(plan: Plan, draws: Draws) -> Plan:
    """Draw when snapshots are taken, what stays behind them, and how they are sent.

    Mostly a few dozen entries make one, little stays, and the pieces are small.
    """
    takes = draws.chance(0.8)
    min_log_bytes = draws.pick((300, 1000, 3000, 20_000))
    trailing, trailing_bytes, held_bytes = draws.pick(
        ((0, 0, 0), (0, 0, 0), (3, 1 << 20, 1 << 20), (40, 1 << 20, 1 << 20), (0, 0, 2000))
    )
    limits = SnapshotLimits(
        min_log_bytes=min_log_bytes if takes else 64 << 20,
        size_percent=draws.pick((1, 100)),
        slice_ms=draws.pick((0, 5)),
        chunk_bytes=draws.pick((200, 1_000, 64 << 10, 64 << 10)),
        window_chunks=draws.pick((1, 4)),
        max_bytes_per_s=draws.pick((64 << 20, 64 << 20, 20_000)),
    )
    return replace(
        plan,
        settings=plan.settings._replace(
            trailing_entries=trailing, trailing_bytes=trailing_bytes, held_bytes=held_bytes
        ),
        limits=plan.limits._replace(snapshots=limits),
    )


def _draw_settings(draws: Draws) -> Settings:
    low_ms, high_ms, beat_ms = draws.weighted(
        (
            ((150, 300, 50), 70.0),
            ((50, 100, 15), 10.0),
            ((100, 400, 20), 10.0),
            ((150, 165, 50), 10.0),
        )
    )
    safe = draws.chance(0.8)
    return Settings(
        election_min_ms=low_ms,
        election_max_ms=high_ms,
        heartbeat_ms=beat_ms,
        pre_vote=safe or draws.chance(0.5),
        check_quorum=safe or draws.chance(0.5),
        disconnect_hint=draws.chance(0.8),
        max_inflight_messages=draws.pick((64, 64, 4, 1)),
        max_inflight_bytes=draws.pick((1 << 20, 400)),
        max_batch_bytes=draws.pick((256 << 10, 256 << 10, 300, 1)),
        apply_batch_entries=draws.pick((1000, 1000, 7)),
    )


def _draw_faults(draws: Draws) -> tuple[tuple[str, float], ...]:
    chosen = [(kind, 0.2 + draws.random()) for kind in FAULTS if draws.chance(0.5)]
    while len(chosen) < 3:
        chosen = [(kind, 0.2 + draws.random()) for kind in FAULTS if draws.chance(0.5)]
    return tuple(chosen)
