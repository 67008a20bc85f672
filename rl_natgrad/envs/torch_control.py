"""Gymnasium's classic control as tensors: B copies of a task in one batch, on any device.

The equations, and the order in which they are worked out, are those of gymnasium/envs/classic_control: from the
same state a step gives the same numbers to rounding (tests/test_torch_control.py).
"""

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

PI = math.pi


class Control(VectorEnv):
    """A task's state (S, B), how long its episodes have been, and where they begin again.

    What a task adds: its spaces, `first`, `move` and `see`.  dtype: of the state, as Gymnasium keeps it.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 - as in VectorEnv
    dtype = torch.float64
    state: Tensor  # (S, B)
    steps: Tensor  # (B,) int64, since the reset
    done: Tensor  # (B,) bool: the next row is a reset

    def __init__(self, num_envs: int, limit: int, device: str, observation: spaces.Box, action: spaces.Space):
        self.num_envs, self.limit, self.generator = num_envs, limit, torch.Generator(device)
        self.single_observation_space, self.single_action_space = observation, action
        self.observation_space = batch_space(observation, num_envs)
        self.action_space = batch_space(action, num_envs)

    def first(self) -> Tensor:
        """The states (S, B) of as many episodes that begin."""
        raise NotImplementedError

    def move(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What comes of actions (B, *A): the states (S, B), rewards (B,), and who terminated (B,)."""
        raise NotImplementedError

    def see(self, state: Tensor) -> Tensor:
        """Observations (B, O) float32."""
        return state.T.float().contiguous()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """The first observations (B, O); from `seed` on, if one is given."""
        if seed is not None:
            self.generator.manual_seed(seed)
        self.state = self.first()
        self.steps = torch.zeros(self.num_envs, dtype=torch.int64, device=self.state.device)
        self.done = torch.zeros_like(self.steps, dtype=torch.bool)
        return self.see(self.state), {}

    def stagger(self) -> None:
        """Gives each episode an age, 0 to the limit, so that it ends early: batches then hold all phases,
        also of tasks that only the limit ends. rsl_rl's init_at_random_ep_len does the same."""
        shape, device = (self.num_envs,), self.generator.device
        self.steps = torch.randint(self.limit, shape, generator=self.generator, device=device)

    def step(self, action: Tensor):
        """Observations (B, O), rewards (B,) float64, terminated (B,), truncated (B,), {}."""
        begins = self.done  # chance is drawn for all, so that no device waits to hear for how many
        state, reward, terminated = self.move(self.state, action)
        self.state = torch.where(begins, self.first(), state)
        self.steps = torch.where(begins, 0, self.steps + 1)
        reward, terminated = torch.where(begins, 0.0, reward.double()), terminated & ~begins
        truncated = self.steps >= self.limit
        self.done = terminated | truncated
        return self.see(self.state), reward, terminated, truncated, {}

    def save(self) -> dict[str, Tensor]:
        """Where they stand, and their generator."""
        arrays = {"state": self.state, "steps": self.steps, "done": self.done}
        return arrays | {"generator": self.generator.get_state()}

    def load(self, saved: dict[str, Tensor]) -> Tensor:
        """Goes on from what `save` gave, on a device of the same kind. Returns the observations (B, O)."""
        for name in ("state", "steps", "done"):
            setattr(self, name, saved[name].to(self.generator.device))
        self.generator.set_state(saved["generator"])
        return self.see(self.state)

    def uniform(self, low: float, high: float, rows: int) -> Tensor:
        """Numbers from [low, high), (rows, B) float64."""
        shape, device = (rows, self.num_envs), self.generator.device
        unit = torch.rand(shape, generator=self.generator, dtype=torch.float64, device=device)
        return low + (high - low) * unit


class CartPole(Control):
    """A pole on a cart that is pushed to either side (Barto, Sutton & Anderson 1983), by Euler steps of 0.02 s.

    State and observation: x, ẋ, θ, θ̇.
    """

    def __init__(
        self, num_envs: int, max_episode_steps: int, device: str = "cpu", *, sutton_barto_reward: bool = False
    ):
        self.sutton_barto_reward = sutton_barto_reward
        self.x_most, self.theta_most = 2.4, 12 * 2 * PI / 360
        high = np.array([2 * self.x_most, np.inf, 2 * self.theta_most, np.inf], np.float32)
        super().__init__(num_envs, max_episode_steps, device, spaces.Box(-high, high), spaces.Discrete(2))

    def first(self) -> Tensor:
        """All four within ±0.05."""
        return self.uniform(-0.05, 0.05, 4)

    def move(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Newton's law of the two bodies, pushed by ±10 N."""
        gravity, pole, half, tau = 9.8, 0.1, 0.5, 0.02  # m/s², kg, half the pole's length in m, s
        total, moment = pole + 1.0, pole * half  # with a cart of 1 kg
        x, v, theta, omega = state.unbind()
        force = torch.where(action == 1, 10.0, torch.full_like(x, -10.0))
        cos, sin = theta.cos(), theta.sin()
        push = (force + moment * omega.square() * sin) / total
        alpha = (gravity * sin - cos * push) / (half * (4.0 / 3.0 - pole * cos.square() / total))
        a = push - moment * alpha * cos / total
        x, theta = x + tau * v, theta + tau * omega
        v, omega = v + tau * a, omega + tau * alpha
        fell = (x.abs() > self.x_most) | (theta.abs() > self.theta_most)
        reward = -fell.double() if self.sutton_barto_reward else torch.ones_like(x)
        return torch.stack((x, v, theta, omega)), reward, fell


class Pendulum(Control):
    """A pendulum to be swung up and held by a torque too weak to lift it at once. State: θ (0 is up), θ̇."""

    def __init__(self, num_envs: int, max_episode_steps: int, device: str = "cpu", *, g: float = 10.0):
        self.g, self.omega_most, self.torque_most = g, 8.0, 2.0
        high = np.array([1.0, 1.0, self.omega_most], np.float32)
        torque = spaces.Box(-self.torque_most, self.torque_most, (1,), np.float32)
        super().__init__(num_envs, max_episode_steps, device, spaces.Box(-high, high), torque)

    def first(self) -> Tensor:
        """Any angle, and at most 1 rad/s."""
        theta, omega = self.uniform(-1.0, 1.0, 2)
        return torch.stack((PI * theta, omega))

    def move(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """θ̈ = 3g/2l sin θ + 3/ml² u, with m = l = 1; reward −(θ² + 0.1 θ̇² + 0.001 u²), θ within ±π."""
        dt, m, l = 0.05, 1.0, 1.0  # noqa: E741
        theta, omega = state.unbind()
        u = action.squeeze(-1).clamp(-self.torque_most, self.torque_most)  # float32, and so its own two terms
        upright = torch.remainder(theta + PI, 2 * PI) - PI
        cost = upright**2 + 0.1 * omega**2 + 0.001 * (u**2)
        omega = omega + (3 * self.g / (2 * l) * theta.sin() + 3.0 / (m * l**2) * u) * dt
        omega = omega.clamp(-self.omega_most, self.omega_most)
        return torch.stack((theta + omega * dt, omega)), -cost, torch.zeros_like(theta, dtype=torch.bool)

    def see(self, state: Tensor) -> Tensor:
        """cos θ, sin θ, θ̇."""
        theta, omega = state
        return torch.stack((theta.cos(), theta.sin(), omega), 1).float()


class Acrobot(Control):
    """Two links that hang, with a torque at the joint between them: to be swung above a line.

    Sutton & Barto 1998.  State: θ₁ (0 hangs), θ₂ against the first link, and their speeds.
    """

    def __init__(self, num_envs: int, max_episode_steps: int, device: str = "cpu"):
        high = np.array([1.0, 1.0, 1.0, 1.0, 4 * PI, 9 * PI], np.float32)
        super().__init__(num_envs, max_episode_steps, device, spaces.Box(-high, high), spaces.Discrete(3))

    def first(self) -> Tensor:
        """All four within ±0.1, in single precision."""
        return self.uniform(-0.1, 0.1, 4).float().double()

    def move(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One Runge–Kutta step of 0.2 s under a torque of −1, 0 or 1 Nm."""
        torque, dt = (action - 1).double(), 0.2
        k1 = self.slope(state, torque)
        k2 = self.slope(state + dt / 2 * k1, torque)
        k3 = self.slope(state + dt / 2 * k2, torque)
        k4 = self.slope(state + dt * k3, torque)
        theta1, theta2, omega1, omega2 = state + dt / 6.0 * (k1 + 2 * k2 + 2 * k3 + k4)
        theta1, theta2 = _turned_back(theta1), _turned_back(theta2)
        omega1, omega2 = omega1.clamp(-4 * PI, 4 * PI), omega2.clamp(-9 * PI, 9 * PI)
        above = -theta1.cos() - (theta2 + theta1).cos() > 1.0
        return torch.stack((theta1, theta2, omega1, omega2)), above.double() - 1, above

    @staticmethod
    def slope(state: Tensor, torque: Tensor) -> Tensor:
        """d(state)/dt (4, B): links of 1 kg and 1 m, centred, with moments of inertia of 1 kg m²."""
        m = length = inertia = 1.0
        c, g = 0.5, 9.8  # from a joint to the centre of its link, m; m/s²
        theta1, theta2, omega1, omega2 = state
        cos2, sin2 = theta2.cos(), theta2.sin()
        d1 = m * c**2 + m * (length**2 + c**2 + 2 * length * c * cos2) + inertia + inertia
        d2 = m * (c**2 + length * c * cos2) + inertia
        phi2 = m * c * g * (theta1 + theta2 - PI / 2.0).cos()
        phi1 = (
            -m * length * c * omega2**2 * sin2
            - 2 * m * length * c * omega2 * omega1 * sin2
            + (m * c + m * length) * g * (theta1 - PI / 2).cos()
            + phi2
        )
        pull = m * length * c * omega1**2 * sin2
        alpha2 = (torque + d2 / d1 * phi1 - pull - phi2) / (m * c**2 + inertia - d2**2 / d1)
        alpha1 = -(d2 * alpha2 + phi1) / d1
        return torch.stack((omega1, omega2, alpha1, alpha2))

    def see(self, state: Tensor) -> Tensor:
        """cos θ₁, sin θ₁, cos θ₂, sin θ₂, and the speeds."""
        theta1, theta2, omega1, omega2 = state
        seen = (theta1.cos(), theta1.sin(), theta2.cos(), theta2.sin(), omega1, omega2)
        return torch.stack(seen, 1).float()


def _turned_back(theta: Tensor) -> Tensor:
    """An angle in [−π, π], by whole turns."""
    return theta - 2 * PI * torch.ceil((theta - PI) / (2 * PI))


class MountainCar(Control):
    """A car that must swing in a valley to leave it (Moore 1990). State and observation: position, velocity."""

    LOW, HIGH, MOST, GOAL = -1.2, 0.6, 0.07, 0.5

    def __init__(self, num_envs: int, max_episode_steps: int, device: str = "cpu", *, goal_velocity: float = 0):
        self.goal_velocity = goal_velocity
        low, high = np.array([[self.LOW, -self.MOST], [self.HIGH, self.MOST]], np.float32)
        super().__init__(num_envs, max_episode_steps, device, spaces.Box(low, high), self.ACTIONS)

    ACTIONS: spaces.Space = spaces.Discrete(3)

    def first(self) -> Tensor:
        """At rest, near the bottom."""
        x = self.uniform(-0.6, -0.4, 1)
        return torch.cat((x, torch.zeros_like(x))).to(self.dtype)

    def move(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """v += 0.001 (a − 1) − 0.0025 cos 3x;  −1 a step."""
        x, v = state.unbind()
        state, there = self.drive(x, v, (action - 1).double() * 0.001 + (3 * x).cos() * (-0.0025))
        return state, torch.full_like(x, -1.0), there

    def drive(self, x: Tensor, v: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """The state after a step of acceleration a (B,), and who reached the goal; the left wall stops the car."""
        v = (v + a).clamp(-self.MOST, self.MOST)
        x = (x + v).clamp(self.LOW, self.HIGH)
        v = torch.where((x == self.LOW) & (v < 0), 0.0, v)
        return torch.stack((x, v)), (x >= self.GOAL) & (v >= self.goal_velocity)


class MountainCarContinuous(MountainCar):
    """The same with a force in [−1, 1], which costs, and a prize. Gymnasium keeps this state in float32."""

    dtype, GOAL = torch.float32, 0.45
    ACTIONS = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def move(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """v += 0.0015 a − 0.0025 cos 3x;  −0.1 a² a step, and 100 at the goal."""
        (x, v), force = state.unbind(), action.squeeze(-1)
        slope = (0.0025 * (3 * x).double().cos()).to(self.dtype)
        state, there = self.drive(x, v, force.clamp(-1.0, 1.0) * 0.0015 - slope)
        return state, there.double() * 100.0 - force.double() ** 2 * 0.1, there


TASKS: dict[str, type[Control]] = {
    "CartPole-v0": CartPole, "CartPole-v1": CartPole, "Pendulum-v1": Pendulum, "Acrobot-v1": Acrobot,
    "MountainCar-v0": MountainCar, "MountainCarContinuous-v0": MountainCarContinuous,
}  # fmt: skip
"""Gymnasium's ids that are here; each takes num_envs, max_episode_steps, device, and Gymnasium's own arguments."""
