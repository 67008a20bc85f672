"""What a policy sees of an environment's spaces, and what its actions become."""

import numpy as np
import pytest
from gymnasium import spaces

from rl_natgrad.envs.errors import EnvError, EnvSetupError
from rl_natgrad.envs.spaces import ObservationMap, action_map

INF = np.inf


def box(low, high, dtype=np.float32):
    return spaces.Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype)


# Actions: space, what the policy acts in, some of its actions, the environment's.
ACTIONS = {
    "discrete": (spaces.Discrete(3), spaces.Discrete(3), [0, 2], [0, 2]),
    "discrete from 5": (spaces.Discrete(3, start=5), spaces.Discrete(3), [0, 2], [5, 7]),
    "multidiscrete": (spaces.MultiDiscrete([2, 3]), spaces.MultiDiscrete([2, 3]), [[1, 2]], [[1, 2]]),
    "multidiscrete from 1, -1": (
        spaces.MultiDiscrete([2, 3], start=[1, -1]),
        spaces.MultiDiscrete([2, 3]),
        [[0, 2], [1, 0]],
        [[1, 1], [2, -1]],
    ),
    "multidiscrete table": (
        spaces.MultiDiscrete([[2, 3], [4, 5]]),
        spaces.MultiDiscrete([2, 3, 4, 5]),
        [[1, 2, 3, 4]],
        [[[1, 2], [3, 4]]],
    ),
    "multibinary": (spaces.MultiBinary(2), spaces.MultiBinary(2), [[0, 1]], [[0, 1]]),
    "multibinary table": (spaces.MultiBinary((1, 2)), spaces.MultiBinary(2), [[0, 1]], [[[0, 1]]]),
    "box": (box([-2], [2]), box([-1], [1]), [[-9], [-0.5], [0], [1], [3]], [[-2], [-1], [0], [2], [2]]),
    "box off centre": (
        box([0, 10], [1, 30]),
        box([-1, -1], [1, 1]),
        [[0, 0], [-1, 0.5]],
        [[0.5, 20], [0, 25]],
    ),
    "box table": (
        box([[0, 0], [0, 0]], [[1, 2], [3, 4]]),
        box([-1] * 4, [1] * 4),
        [[1, 1, 1, -1]],
        [[[1, 2], [3, 0]]],
    ),
    "half-infinite box": (
        box([0, -INF], [INF, 1]),
        box([0, -INF], [INF, 1]),
        [[-3, -7], [5, 9]],
        [[0, -7], [5, 1]],
    ),
    "partly infinite box": (box([-2, -INF], [2, INF]), box([-2, -INF], [2, INF]), [[-3, 8]], [[-2, 8]]),
    "whole box": (box([0], [10], np.int64), box([-1], [1]), [[-1], [0.09], [1]], [[0], [5], [10]]),
}


@pytest.mark.parametrize("space, seen, acted, sent", ACTIONS.values(), ids=ACTIONS)
def test_actions_are_mapped(space, seen, acted, sent):
    policy_space, to_env = action_map(space)
    acted = np.array(acted, seen.dtype)
    before = acted.copy()
    got = to_env(acted)
    assert policy_space == seen
    assert got.dtype == space.dtype and np.array_equal(got, np.array(sent, space.dtype))
    assert all(space.contains(one) for one in got)
    assert (acted == before).all() and not np.shares_memory(got, acted)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "low, high", [(-1.7, 0.3), (0.1, 0.7), (-3.3e38, 3.3e38), (1 / 3, 2 / 3), (-1e-9, 1e9)]
)
def test_no_action_overshoots_its_bounds(low, high, dtype):
    space = box([low], [high], dtype)
    _, to_env = action_map(space)
    edges = np.nextafter(np.float32([-1, 1]), np.float32([0, 0]))
    acted = np.concatenate([np.random.default_rng(0).normal(0, 2, 2000), [-INF, -1, 1, INF], edges])
    got = to_env(acted.astype(np.float32)[:, None])
    assert (got >= space.low).all() and (got <= space.high).all() and np.isfinite(got).all()
    assert space.low in got and space.high in got


# Observations: space, one of its members, what the policy sees.
OBSERVATIONS = {
    "vector": (box([-1, -INF], [1, INF]), np.float32([0.5, 7]), [0.5, 7]),
    "float64": (box([-1], [1], np.float64), np.array([0.1]), [np.float32(0.1)]),
    "table": (box([[0, 1]], [[9, 9]]), np.float32([[3, 4]]), [3, 4]),
    "scalar": (box(0, 9), np.array(3, np.float32), [3]),
    "discrete": (spaces.Discrete(3, start=4), 5, [0, 1, 0]),
    "multidiscrete": (spaces.MultiDiscrete([2, 3]), np.array([1, 2]), [0, 1, 0, 0, 1]),
    "multibinary": (spaces.MultiBinary(3), np.array([1, 0, 1], np.int8), [1, 0, 1]),
    "tuple": (spaces.Tuple((spaces.Discrete(2), box([0], [9]))), (1, np.float32([4])), [0, 1, 4]),
    "dict": (
        spaces.Dict(b=spaces.Discrete(2), a=spaces.Dict(c=box([[0], [0]], [[9], [9]]))),
        {"b": 0, "a": {"c": np.float32([[4], [5]])}},
        None,  # in the space's own order, below
    ),
}


@pytest.mark.parametrize("space, member, seen", OBSERVATIONS.values(), ids=OBSERVATIONS)
def test_observations_are_flattened(space, member, seen):
    observation = ObservationMap(space)
    out = np.full(observation.space.shape, np.nan, np.float32)
    observation.write(member, out)
    assert observation.space.dtype == np.float32 and out in observation.space
    assert np.array_equal(out, spaces.flatten(space, member).astype(np.float32))
    assert seen is None or out.tolist() == seen
    plain = isinstance(space, spaces.Box) and len(space.shape) == 1
    assert (observation.note is None) == plain


@pytest.mark.parametrize("shape, seen", [((96, 80, 3), (3, 96, 80)), ((4, 84, 84), (4, 84, 84))])
def test_images_stay_bytes_with_channels_first(shape, seen):
    observation = ObservationMap(spaces.Box(0, 255, shape, np.uint8))
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    out = np.zeros(observation.space.shape, observation.space.dtype)
    observation.write(image, out)
    assert out.shape == seen and out.dtype == np.uint8
    assert (out == (image if shape == seen else np.moveaxis(image, -1, 0))).all()


@pytest.mark.parametrize(
    "space, value, told",
    [
        (spaces.Discrete(3), 3, "observation is int 3, not in Discrete(3)"),
        (spaces.Discrete(3), -1, "observation is int -1, not in Discrete(3)"),
        (spaces.Tuple((spaces.Discrete(2), box([0], [9]))), (1,), "observation[1] is missing"),
        (spaces.Dict(a=box([0], [9])), {"b": 0}, "observation['a'] is missing"),
        (spaces.Dict(a=box([0], [9])), {"a": np.zeros(2, np.float32)}, "observation['a'] has shape (2,)"),
        (spaces.MultiBinary(2), np.array([0, 2], np.int8), "not in MultiBinary(2)"),
    ],
)
def test_a_part_that_is_not_in_its_space_is_named(space, value, told):
    observation = ObservationMap(space)
    with pytest.raises(EnvError) as error:
        observation.write(value, np.zeros(observation.space.shape, np.float32))
    assert told in str(error.value)


def test_what_is_not_supported_says_what_is():
    with pytest.raises(
        EnvSetupError, match=r"action space Dict\(.*\) is not supported; supported: Discrete, Multi"
    ):
        action_map(spaces.Dict(a=spaces.Discrete(2)))
    with pytest.raises(EnvSetupError, match=r"observation\['a'\] space Text\(.*supported: Box, Discrete"):
        ObservationMap(spaces.Dict(a=spaces.Text(3)))
