"""Whole episodes: every environment's first, whatever its length."""

import numpy as np
import pytest
from vector_envs import Script

from rl_natgrad.rollout.play import play


@pytest.mark.parametrize("lengths", [((3,), (1, 7), (20,), (1,)), ((1,),), ((5,), (5,))])
def test_each_environment_counts_its_first_episode_only(lengths):
    returns, got = play(Script(*lengths), lambda obs: obs)
    first = [n[0] for n in lengths]
    assert got.tolist() == first
    assert returns.tolist() == [sum(100 * i + s for s in range(1, n + 1)) for i, n in enumerate(first)]
    assert returns.dtype == np.float64 and got.dtype == np.int64


def test_it_stops_with_the_longest_episode():
    script = Script((3,), (11,), (2,))
    play(script, lambda obs: obs)
    assert script.calls == 11


def test_each_action_is_chosen_on_the_newest_observation():
    seen = []

    def act(obs):
        seen.append(obs[0].tolist())
        return obs

    play(Script((4,)), act)
    assert seen == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 0, 3]]
