"""MuJoCo's v5 tasks as tensors: Gymnasium's own models, stepped by MuJoCo Warp for all worlds at once, in float32.

Spaces, models, weights and ranges are those of one environment that Gymnasium makes. What MuJoCo derives of a
state (body positions, contact forces, …) is from the last substep's start, as in Gymnasium, and after a reset from
the first state. Two things differ: Humanoid's solver is Newton's (Warp has no PGS), and the pyramids that stand
for friction cones are turned another way, which an Ant feels.
"""

import contextlib
from typing import Any

import torch
from torch import Tensor

from rl_natgrad.envs.errors import EnvError, EnvSetupError
from rl_natgrad.envs.torch_control import Control

DERIVED = "xpos", "xipos", "cinert", "cvel", "qfrc_actuator", "cfrc_ext"


class Mujoco(Control):
    """B worlds of one task. What a task adds: its reward and end, and what is seen beside positions and speeds.

    one: Gymnasium's environment.  note: for the user: on a GPU contacts are solved in no fixed order.
    skip: positions that are not seen: where it is on the floor.  clip: of the speeds seen.
    """

    skip, clip = 1, float("inf")
    normal = True  # speeds at a reset are drawn from a normal distribution

    def __init__(self, one: Any, num_envs: int, max_episode_steps: int, device: str = "cpu"):
        self.one, self.id = one, one.spec.id
        try:
            import mujoco_warp
            import warp
        except ImportError as error:
            raise EnvSetupError(f'{self.id} on a device needs an extra: pip install "rl-natgrad[gpu]"') from error
        warp.config.log_level = warp.LOG_WARNING  # it introduces itself at length
        warp.init()
        self.mjw, self.warp = mujoco_warp, warp
        super().__init__(num_envs, max_episode_steps, device, one.observation_space, one.action_space)
        self.place = torch.empty(0, device=device).device
        if one.model.opt.solver == 0:  # PGS, which Warp has not: Newton's method solves the same problem
            one.model.opt.solver = 2
        with self._here():
            self.model = mujoco_warp.put_model(one.model)
            self.data = mujoco_warp.make_data(one.model, nworld=num_envs)
            names = ("qpos", "qvel", "ctrl", "qacc_warmstart", "overflow", *DERIVED)
            self.at: dict[str, Tensor] = {name: warp.to_torch(vars(self.data)[name]) for name in names}
        self.start = [self._tensor(start) for start in (one.init_qpos, one.init_qvel)]
        self.derived = {name: self.at[name].clone() for name in DERIVED}
        self.note = None if device == "cpu" else f"{self.id} on {device}: state restored, bits not"

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """The first observations (B, O); from `seed` on, if one is given."""
        if seed is not None:
            self.generator.manual_seed(seed)
        self.steps = torch.zeros(self.num_envs, dtype=torch.int64, device=self.place)
        self.done = torch.zeros_like(self.steps, dtype=torch.bool)
        self._begin(~self.done)
        return self._seen(), {}

    def step(self, action: Tensor):
        """Observations (B, O), rewards (B,) float64, terminated (B,), truncated (B,), {}."""
        begins, before = self.done, self.x()
        self.at["ctrl"].copy_(action)
        with self._here():
            for _ in range(self.one.frame_skip):
                self.mjw.step(self.model, self.data)
            self.mjw.rne_postconstraint(self.model, self.data)
        self.derived = {name: self.at[name].clone() for name in DERIVED}
        self._refuse_overflow()
        reward, terminated = self.judge((self.x() - before).double() / self.one.dt, action)
        self.steps = torch.where(begins, 0, self.steps + 1)
        if begins.any():
            self._begin(begins)
        reward, terminated = torch.where(begins, 0.0, reward), terminated & ~begins
        truncated = self.steps >= self.limit
        self.done = terminated | truncated
        return self._seen(), reward, terminated, truncated, {}

    def x(self) -> Tensor:
        """Where each is, along the way forward (B,)."""
        return self.at["qpos"][:, 0].clone()

    def judge(self, speed: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards (B,) float64 for m/s forward and for actions, and who terminated (B,)."""
        raise NotImplementedError

    def more(self) -> list[Tensor]:
        """What is seen beside positions and speeds, (B, …) each."""
        return []

    def effort(self, action: Tensor) -> Tensor:
        """What the actions cost (B,)."""
        return self.one._ctrl_cost_weight * action.double().square().sum(-1)

    def _seen(self) -> Tensor:
        speeds = self.at["qvel"].clamp(-self.clip, self.clip)
        parts = [self.at["qpos"][:, self.skip :], speeds, *(part.flatten(1) for part in self.more())]
        return torch.cat(parts, 1).to(_dtype(self.single_observation_space))

    def _begin(self, begins: Tensor) -> None:
        """New episodes there; the other worlds stay as they are."""
        one, B = self.one, self.num_envs
        scale = one._reset_noise_scale
        qpos = self.start[0] + self.uniform(-scale, scale, one.model.nq).T
        if self.normal:
            noise = torch.randn(B, one.model.nv, generator=self.generator, dtype=torch.float64, device=self.place)
            qvel = self.start[1] + scale * noise
        else:
            qvel = self.start[1] + self.uniform(-scale, scale, one.model.nv).T
        fresh = {"qpos": qpos, "qvel": qvel, "ctrl": self.at["ctrl"] * 0, "qacc_warmstart": qvel * 0}
        self._put({name: _pick(begins, value.float(), self.at[name]) for name, value in fresh.items()})
        warm = self.at["qacc_warmstart"].clone()
        with self._here():
            self.mjw.forward(self.model, self.data)
        self.at["qacc_warmstart"].copy_(_pick(begins, self.at["qacc_warmstart"], warm))
        now = {name: self.at[name] for name in DERIVED} | {"cfrc_ext": torch.zeros_like(self.at["cfrc_ext"])}
        self.derived = {name: _pick(begins, now[name], self.derived[name]) for name in DERIVED}

    def _put(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.at[name].copy_(value)

    def _refuse_overflow(self) -> None:
        """Raises EnvError where a buffer was too small: contacts would be missing, in silence."""
        lost = self.at["overflow"] & ~int(self.mjw.OverflowType.ITERATIONS)  # which is a limit of the model's own
        if lost.any():
            i = int(lost.nonzero()[0])
            what = self.mjw.OverflowType(int(lost[i]))
            step = int(self.steps[i]) + 1
            raise EnvError(f"{self.id}, environment {i}, step {step}: a buffer of contacts overflowed ({what!r})")

    def save(self) -> dict[str, Tensor]:
        """Where they stand, and their generator."""
        state = {name: self.at[name].clone() for name in ("qpos", "qvel", "ctrl", "qacc_warmstart")}
        own = {"steps": self.steps, "done": self.done, "generator": self.generator.get_state()}
        return state | self.derived | own

    def load(self, saved: dict[str, Tensor]) -> Tensor:
        """Goes on from what `save` gave. Returns the observations (B, O)."""
        self._put({name: saved[name] for name in ("qpos", "qvel", "ctrl", "qacc_warmstart")})
        self.derived = {name: saved[name].to(self.place) for name in DERIVED}
        self.steps, self.done = (saved[name].to(self.place) for name in ("steps", "done"))
        self.generator.set_state(saved["generator"])
        return self._seen()

    def close(self, **kwargs: Any) -> None:
        """Ends the environment that the model is of."""
        self.one.close()

    def _tensor(self, array: Any) -> Tensor:
        return torch.as_tensor(array, dtype=torch.float64, device=self.place)

    @contextlib.contextmanager
    def _here(self):
        """Warp works on our device, in torch's stream."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.warp.ScopedDevice(self.warp.device_from_torch(self.place)))
            if self.place.type == "cuda":
                stream = self.warp.stream_from_torch(torch.cuda.current_stream(self.place))
                stack.enter_context(self.warp.ScopedStream(stream))
            yield


class HalfCheetah(Mujoco):
    """Runs; no end."""

    def judge(self, speed: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """w v − cost."""
        reward = self.one._forward_reward_weight * speed - self.effort(action)
        return reward, torch.zeros_like(reward, dtype=torch.bool)


class Walker2d(Mujoco):
    """Walks until it falls or leans too far."""

    clip, normal = 10.0, False

    def judge(self, speed: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """w v + healthy − cost."""
        one, healthy = self.one, self.healthy()
        reward = one._forward_reward_weight * speed + one._healthy_reward * healthy - self.effort(action)
        return reward, ~healthy & one._terminate_when_unhealthy

    def healthy(self) -> Tensor:
        """Who is (B,)."""
        (z0, z1), (angle0, angle1) = self.one._healthy_z_range, self.one._healthy_angle_range
        z, angle = self.at["qpos"][:, 1], self.at["qpos"][:, 2]
        return (z0 < z) & (z < z1) & (angle0 < angle) & (angle < angle1)


class Hopper(Walker2d):
    """Hops, in the same way."""

    def healthy(self) -> Tensor:
        """Who is (B,): also no number of its state may be large."""
        low, high = self.one._healthy_state_range
        state = torch.cat((self.at["qpos"], self.at["qvel"]), 1)[:, 2:]
        return super().healthy() & ((low < state) & (state < high)).all(1)


class InvertedPendulum(Mujoco):
    """Balances within 0.2 rad."""

    skip, normal = 0, False

    def judge(self, speed: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """1, and 0 where it fell."""
        state = torch.cat((self.at["qpos"], self.at["qvel"]), 1)
        fell = ~state.isfinite().all(1) | (state[:, 1].abs() > 0.2)
        return (~fell).double(), fell


class Ant(Mujoco):
    """Walks on four legs; contact forces cost, and are seen."""

    skip = 2

    def x(self) -> Tensor:
        """That of the torso (B,)."""
        return self.derived["xpos"][:, self.one.model.body(self.one._main_body).id, 0]

    def judge(self, speed: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """w v + healthy − costs."""
        one, healthy = self.one, self.healthy()
        reward = one._forward_reward_weight * speed + one._healthy_reward * healthy - self.effort(action)
        return reward - self.force_cost(), ~healthy & one._terminate_when_unhealthy

    def healthy(self) -> Tensor:
        """Who is (B,)."""
        z0, z1 = self.one._healthy_z_range
        state = torch.cat((self.at["qpos"], self.at["qvel"]), 1)
        return state.isfinite().all(1) & (z0 <= state[:, 2]) & (state[:, 2] <= z1)

    def forces(self) -> Tensor:
        """Contact forces on the bodies (B, bodies, 6), clipped."""
        return self.derived["cfrc_ext"].clamp(*self.one._contact_force_range)

    def force_cost(self) -> Tensor:
        """What they cost (B,)."""
        return self.one._contact_cost_weight * self.forces().double().square().sum((1, 2))

    def more(self) -> list[Tensor]:
        """Contact forces."""
        return [self.forces()[:, 1:]]


class Humanoid(Ant):
    """Walks on two; inertias, velocities and forces of its bodies are seen too."""

    normal = False

    def x(self) -> Tensor:
        """That of the centre of mass (B,)."""
        mass = self._tensor(self.one.model.body_mass)
        return self.derived["xipos"][:, :, 0].double() @ mass / mass.sum()

    def healthy(self) -> Tensor:
        """Who is (B,)."""
        z0, z1 = self.one._healthy_z_range
        z = self.at["qpos"][:, 2]
        return (z0 < z) & (z < z1)

    def effort(self, action: Tensor) -> Tensor:
        """What the motors cost (B,)."""
        return self.one._ctrl_cost_weight * self.at["ctrl"].double().square().sum(-1)

    def force_cost(self) -> Tensor:
        """What contacts cost (B,), within a range."""
        cost = self.one._contact_cost_weight * self.derived["cfrc_ext"].double().square().sum((1, 2))
        return cost.clamp(*self.one._contact_cost_range)

    def more(self) -> list[Tensor]:
        """As Gymnasium has it: of all bodies but the world; the free joint has no actuators."""
        derived = self.derived
        return [derived["cinert"][:, 1:], derived["cvel"][:, 1:], derived["qfrc_actuator"][:, 6:],
                derived["cfrc_ext"][:, 1:]]  # fmt: skip


def _pick(who: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` for who is True (B,), else `old`; (B, …)."""
    return torch.where(who.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def _dtype(space: Any) -> torch.dtype:
    return torch.float64 if space.dtype == "float64" else torch.float32


WALKERS: dict[str, type[Mujoco]] = {
    "HalfCheetah-v5": HalfCheetah, "Hopper-v5": Hopper, "Walker2d-v5": Walker2d, "Ant-v5": Ant,
    "Humanoid-v5": Humanoid, "InvertedPendulum-v5": InvertedPendulum,
}  # fmt: skip
"""Gymnasium's ids that are here."""
