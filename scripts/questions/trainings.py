"""Trainings of the questions, in this process: an update at a time, measured in between.

A sweep would start a process of some 4 s for each training of 2 s, and keep only what every run logs. The words are
those of `python -m rl_natgrad.train`, so any training here can be repeated there, to the bit.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np

from rl_natgrad import Training
from rl_natgrad.training.iteration import NotFinite

SEEDS = range(100, 110)  # nothing is ever chosen on these


def updates(*words: str) -> Iterator[tuple[float | None, dict[str, float]]]:
    """(mean return of the episodes that ended in the batch, None where none did; the row that is logged), an update
    each. Ends early where `train` would fail, after ten updates in a row that were not finite."""
    with Training(*words) as run, suppress(NotFinite):
        while run.step < run.cfg.total_steps:
            gathered = run.gather()
            returns = gathered.rollout.returns
            log = run.learn_from(gathered)
            yield (float(np.mean(returns)) if returns else None), log | {"step": run.step, "update": run.update}


def smooth(returns: Sequence[float | None], window: int = 3) -> np.ndarray:
    """Means of so many batches in a row, of those in which episodes ended; none where these are fewer."""
    found = np.array([r for r in returns if r is not None])
    return np.convolve(found, np.full(window, 1 / window), "valid") if len(found) >= window else found[:0]
