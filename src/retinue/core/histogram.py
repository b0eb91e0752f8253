"""How long things took: counted by bounds, as Prometheus has it."""

from collections.abc import Sequence
from itertools import accumulate

QUICK = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Bounds in seconds for what a packet waits for."""
LONG = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)
"""For what a person waits for."""


class Histogram:
    """So many took up to each of `bounds` seconds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        """Of each bound those above the one before, up to it; last those above all."""
        self.seconds = 0.0
        """Of all together."""

    def observe(self, seconds: float) -> None:
        seconds = max(0.0, seconds)  # Two servers' clocks may differ.
        place = next((n for n, bound in enumerate(self.bounds) if seconds <= bound), len(self.bounds))
        self.counts[place] += 1
        self.seconds += seconds


def buckets(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Those up to each bound, the lower ones' among them, and all ("+Inf")."""
    names = [*map(str, bounds), "+Inf"]
    return [(name, float(total)) for name, total in zip(names, accumulate(counts), strict=True)]


__all__ = ["LONG", "QUICK", "Histogram", "buckets"]
