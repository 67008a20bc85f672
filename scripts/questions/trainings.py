"""Trainings of the questions, in this process: an update at a time, measured in between.

A sweep would start a process of some 4 s for each training of 2 s, and keep only what every run logs. The words are
those of `python -m rl_natgrad.train`, so any training here can be repeated there, to the bit.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from rl_natgrad import Training
from rl_natgrad.compare.runs import Run
from rl_natgrad.training.iteration import NotFinite

SEEDS = range(100, 110)  # nothing is ever chosen on these
NAMES = {"trpo": "TRPO", "npg": "NPG", "ppo": "PPO", "pg-steps": "PG (several steps)", "pg": "PG"}
WORDS = {"pg-steps": ["algo=ppo", "algo.surrogate=none"]}  # of what is no algo= itself


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


def curve(words: Sequence[str], steps: int, points: int) -> dict[str, Any]:
    """A whole training, small: mean return of the episodes that ended in each of so many equal shares of the steps,
    and the CPU seconds spent by the end of each, as numbers with spaces between (nan where none ended); and the mean
    return of 20 episodes with the most likely actions at the end. Raises: NotFinite, where training fails."""
    ended, spent, began = [], [], time.process_time()
    with Training(*words, f"total_steps={steps}") as run:
        while run.step < steps:
            gathered = run.gather()
            run.learn_from(gathered)
            ended += [(run.step, found) for found in gathered.rollout.returns]
            spent.append((run.step, time.process_time() - began))
        greedy = run.evaluate()["eval/return"]
    return shares(ended, spent, steps, points) | {"greedy": greedy}


def shares(
    ended: Sequence[tuple[int, float]], spent: Sequence[tuple[int, float]], steps: int, points: int
) -> dict[str, str]:
    """The cells of a `curve`.

    Args:  ended: (steps so far, return) of each episode.  spent: (steps so far, CPU seconds) after each update.
    """
    share = lambda step: min(int((step - 1) * points / steps), points - 1)  # noqa: E731
    returns = [[found for step, found in ended if share(step) == k] for k in range(points)]
    clock = np.interp(np.arange(1, points + 1) * steps / points, *np.array([(0, 0.0), *spent]).T)
    return {"curve": text([np.mean(each) if each else np.nan for each in returns]), "clock": text(clock)}


def text(numbers: Sequence[float]) -> str:
    """Numbers as a cell: 5 digits each, spaces between. `numbers` reads them."""
    return " ".join(f"{n:.5g}" for n in numbers)


def numbers(text: str) -> np.ndarray:
    """What `text` wrote."""
    return np.array(text.split(), float)


def as_run(row: Mapping[str, Any]) -> Run:
    """A `curve` with its env, algo, seed and steps as a run that `rl_natgrad.compare` takes."""
    y, seconds = numbers(row["curve"]), numbers(row["clock"])
    share = np.arange(1, len(y) + 1) / len(y)
    x = {"steps": row["steps"] * share, "seconds": seconds}
    if row.get("updates"):
        x["updates"] = row["updates"] * share
    config = {"env.id": row["env"], "seed": row["seed"]}
    there = np.isfinite(y)
    return Run(Path(row["env"], row["algo"], str(row["seed"])), config, {k: v[there] for k, v in x.items()}, y[there])
