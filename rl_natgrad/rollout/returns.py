"""From a rollout to advantages and returns."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rl_natgrad.rollout.collector import Rollout


class Estimate(NamedTuple):
    """What a rollout says of each of its rows, (T, B); float64."""

    adv: NDArray  # the advantage of its action
    ret: NDArray  # what V is regressed on
    known: NDArray  # bool: a step of an episode, of which the two can be told; other rows hold nothing of use


def estimate_gae(rollout: Rollout, value: NDArray, *, gamma: float, lam: float) -> Estimate:
    """Generalised advantages A, and V + A; value (T+1, B): V(obs). Every step is known."""
    adv = gae(rollout.reward, value, rollout.terminated, rollout.done, gamma=gamma, lam=lam)
    return Estimate(adv, adv + value[:-1], rollout.valid)


def estimate_monte_carlo(rollout: Rollout, value: NDArray, *, gamma: float) -> Estimate:
    """The return to the episode's end, which is its own advantage (V has no part). Known where that end is."""
    G, known = monte_carlo(rollout.reward, rollout.done, gamma=gamma)
    return Estimate(G, G, rollout.valid & known)


def gae(
    reward: NDArray, value: NDArray, terminated: NDArray, done: NDArray, *, gamma: float, lam: float
) -> NDArray:
    """Generalised advantages A_t = Σₖ (γλ)ᵏ δ_{t+k} up to the episode's end, with

        δ_t = r_t + γ V(s_{t+1}) − V(s_t),      V(s_{t+1}) = 0 where the episode terminated at t.

    Schulman et al. 2016 (GAE), equation 16.  A truncated episode, and one that the rollout cuts, is
    bootstrapped with V of its true last observation.

    Args:    reward, terminated, done (T, B).  value (T+1, B): V(obs).  gamma, lam: in [0, 1].
    Returns: (T, B) float64; rows that are resets hold nothing of use.
    """
    T = len(reward)
    delta = reward + gamma * np.where(terminated, 0.0, value[1:]) - value[:-1]
    decay = gamma * lam * ~done
    adv, running = np.empty_like(delta), np.zeros(delta.shape[1])
    for t in reversed(range(T)):
        running = delta[t] + decay[t] * running
        adv[t] = running
    return adv


def monte_carlo(reward: NDArray, done: NDArray, *, gamma: float) -> tuple[NDArray, NDArray]:
    """Discounted return to the episode's end, G_t = Σₖ γᵏ r_{t+k}, and where it is known.

    Williams 1992 (REINFORCE).  Nothing is bootstrapped: a time limit counts as the end, and a step whose
    episode goes on past the rollout has no return yet.

    Returns: G (T, B) float64;  known (T, B) bool: the episode ends within the rollout.
    """
    zeros = np.zeros((len(reward) + 1, reward.shape[1]))
    G = gae(reward, zeros, done, done, gamma=gamma, lam=1.0)
    known = np.logical_or.accumulate(done[::-1], 0)[::-1]
    return G, known
