"""Model = network + head + one flat θ: a likelihood p_θ(y|x), and what a policy is without an environment."""

from dataclasses import dataclass

from torch import Tensor

from rl_natgrad.optim.linearization import Linearization
from rl_natgrad.policy.heads import Head
from rl_natgrad.policy.networks import Network


@dataclass
class Model:
    """p_θ(y|x), a distribution over the head's actions y whose parameters are the network's outputs.

    Args: theta (P,).
    """

    net: Network
    head: Head
    theta: Tensor

    def become(self, theta: Tensor) -> None:
        """Makes θ (P,) the model's own."""
        self.theta = theta

    def forward(self, theta: Tensor, x: Tensor) -> Tensor:
        """Distribution parameters z (N, K) of p_θ on inputs (N, *X)."""
        return self.net.forward(theta, x)

    def linearize(self, theta: Tensor, x: Tensor) -> Linearization:
        """z + J dθ around θ."""
        return self.net.linearize(theta, x)
