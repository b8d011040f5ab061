"""How long it will take to solve experts, told before any text has run."""

import time

import numpy as np

from ggufreap.narrowing.surgeon import damped, refitted, remove

PROBE = 512  # neurons of the expert that is tried: large enough for the matrices to decide
TRIES = 3  # of which the shortest counts: the first one wakes threads


def solving_seconds(source_width: int, width: int, n_embd: int) -> float:
    """Seconds to solve an expert that keeps `width` of `source_width` neurons, on this machine as it is now.

    One of at most PROBE neurons and random weights is solved; the rest follows, since it all grows with the cube.
    """
    times = max(1.0, source_width / PROBE)
    neurons, kept, rows = (max(1, round(length / times)) for length in (source_width, width, n_embd))
    random = np.random.default_rng(0)
    down, hidden = random.normal(size=(rows, neurons)), random.normal(size=(neurons, neurons))
    taken = []
    for _ in range(TRIES):
        started = time.perf_counter()
        hessian = damped(hidden @ hidden.T)
        removal = remove(hessian, down.T @ down, neurons - kept)
        refitted(down, hessian, removal.kept(kept, neurons))
        taken.append(time.perf_counter() - started)
    return min(taken) * times**3
