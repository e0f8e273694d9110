"""Samples of the gate on time, for its tests."""

import math

from benchmarks.gates.lanes import Samples, Timed


def samples(pairs: int = 10, **slowdowns: float) -> Samples:
    """Paths whose change takes so many times as long, give or take a per cent."""
    noise = [math.exp(0.01 * (-1) ** pair) for pair in range(pairs)]
    timed = {
        name: Timed(
            calls=1,
            blocks=1,
            base=[[0.002] for _ in noise],
            change=[[0.002 * times * wobble] for wobble in noise],
        )
        for name, times in slowdowns.items()
    }
    return Samples(timed=timed, pairs=pairs, seconds=60.0)
