"""The deterministic simulator: production `Server`, `Wal` and `KV` in a world made of one seed.

Everything around them is simulated: network, disks, processes, clocks, clients, and the bad luck.
One seed decides all of it, so that a failing run can be run again, step by step.

    agenda      the heap of what happens when             draws       randomness, by stream
    plan        what a seed decides before it starts      clock       a node's drifting clock
    network     links that lose, delay, double, cut       storage     the log and its true shadow
    node        one simulated process around a `Server`   clients     `ClientCore`s that never rest
    nemesis     who breaks what, and when                 invariants  what must hold after each step
    marks       which rare situations were reached        trace       the hash, and the last steps
    world       joins all these                           runner      one seed from start to verdict
    campaign    many seeds, on all cores, resumable

Rules that keep it deterministic: draw with `random()` and `getrandbits()` only; never iterate a
set; no real clock, no `id()`, no `hash()` decides anything.
"""
