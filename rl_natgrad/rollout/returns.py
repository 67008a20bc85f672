"""From a rollout to advantages and returns."""

from typing import NamedTuple

from rl_natgrad.rollout.arrays import Array, lib
from rl_natgrad.rollout.collector import Rollout


class Estimate(NamedTuple):
    """What a rollout says of each of its rows, (T, B); float64."""

    adv: Array  # the advantage of its action
    ret: Array  # what V is regressed on
    known: Array  # bool: a step of an episode, of which the two can be told; other rows hold nothing of use


def estimate_gae(
    rollout: Rollout, value: Array, after: Array | None = None, *, gamma: float, lam: float
) -> Estimate:
    """Generalised advantages A, and V + A. Every step is known.

    Args: value (T+1, B): V(obs).  after (T, B): V of what each row led to, unless it is value[1:].
    """
    adv = gae(rollout.reward, value, rollout.terminated, rollout.done, after, gamma=gamma, lam=lam)
    return Estimate(adv, adv + value[:-1], rollout.valid)


def estimate_monte_carlo(
    rollout: Rollout, value: Array, after: Array | None = None, *, gamma: float
) -> Estimate:
    """The return to the episode's end, which is its own advantage (V has no part). Known where that end is."""
    G, known = monte_carlo(rollout.reward, rollout.done, gamma=gamma)
    return Estimate(G, G, rollout.valid & known)


def gae(
    reward: Array, value: Array, terminated: Array, done: Array, after: Array | None = None,
    *, gamma: float, lam: float,
) -> Array:  # fmt: skip
    """Generalised advantages A_t = Σₖ (γλ)ᵏ δ_{t+k} up to the episode's end, with

        δ_t = r_t + γ V(s_{t+1}) − V(s_t),      V(s_{t+1}) = 0 where the episode terminated at t.

    Schulman et al. 2016 (GAE), equation 16.  A truncated episode, and one that the rollout cuts, is
    bootstrapped with V of its true last observation.

    Args:    reward, terminated, done (T, B).  value (T+1, B): V(obs).  after (T, B): V(s_{t+1}), unless it is
             value[1:].  gamma, lam: in [0, 1].
    Returns: (T, B) float64; rows that are resets hold nothing of use.
    """
    T, xp = len(reward), lib(reward)
    delta = reward + gamma * xp.where(terminated, 0.0, value[1:] if after is None else after) - value[:-1]
    decay = xp.full_like(delta, gamma) * lam * ~done
    adv, running = xp.empty_like(delta), xp.zeros_like(delta[0])
    for t in reversed(range(T)):
        running = delta[t] + decay[t] * running
        adv[t] = running
    return adv


def monte_carlo(reward: Array, done: Array, *, gamma: float) -> tuple[Array, Array]:
    """Discounted return to the episode's end, G_t = Σₖ γᵏ r_{t+k}, and where it is known.

    Williams 1992 (REINFORCE).  Nothing is bootstrapped: a time limit counts as the end, and a step whose
    episode goes on past the rollout has no return yet.

    Returns: G (T, B) float64;  known (T, B) bool: the episode ends within the rollout.
    """
    xp = lib(reward)
    zeros = xp.zeros((len(reward) + 1, reward.shape[1]), dtype=xp.float64, device=reward.device)
    G = gae(reward, zeros, done, done, gamma=gamma, lam=1.0)
    ends = xp.cumsum(done, 0)
    return G, done | (ends < ends[-1])
