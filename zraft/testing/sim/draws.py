"""Randomness of the simulator: one independent stream per purpose, all made from the seed.

Streams keep a change in one place from shifting the luck of all others. Only `random()` and
`getrandbits()` of the generator are used: what Python promises to keep from version to version.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


class Draws:
    """One stream; satisfies every `Random` protocol of the production code."""

    __slots__ = ("getrandbits", "random")

    def __init__(self, seed: int, stream: str) -> None:
        """Start the stream `stream` of a seed."""
        generator = Random(f"zraft {seed} {stream}")
        self.random = generator.random
        self.getrandbits = generator.getrandbits

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.random() < probability

    def below(self, limit: int) -> int:
        """Return a whole number in [0, limit)."""
        return int(self.random() * limit)

    def between(self, low: int, high: int) -> int:
        """Return a whole number in [low, high]."""
        return low + int(self.random() * (high - low + 1))

    def exponential(self, mean: float) -> int:
        """Return a whole number with this mean, as the gaps between independent events have."""
        return int(-math.log(1.0 - self.random()) * mean)

    def pick(self, choices: Sequence[T]) -> T:
        """Return one of them."""
        return choices[int(self.random() * len(choices))]

    def weighted(self, choices: Sequence[tuple[T, float]]) -> T:
        """Return one of them, by weight."""
        left = self.random() * sum(weight for _, weight in choices)
        for choice, weight in choices:
            left -= weight
            if left < 0:
                return choice
        return choices[-1][0]

    def shuffled(self, values: Sequence[T]) -> list[T]:
        """Return them in a random order."""
        result = list(values)
        for last in range(len(result) - 1, 0, -1):
            other = self.below(last + 1)
            result[last], result[other] = result[other], result[last]
        return result
