"""A trained policy as an ONNX graph: the environment's own observation in, its own greedy action out."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from gymnasium import spaces
from numpy.typing import DTypeLike, NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn

from rl_natgrad.envs.spaces import Leaf
from rl_natgrad.envs.view import View
from rl_natgrad.playback.agent import Agent
from rl_natgrad.policy.activations import Activation, Relu, Sigmoid, Tanh
from rl_natgrad.policy.heads import Bernoulli, Categorical, DiagGaussian, Head, MultiDiscrete
from rl_natgrad.policy.masked import FORBIDDEN, Masked
from rl_natgrad.policy.mlp import MLP
from rl_natgrad.policy.networks import Biased, ModuleNetwork, Network, Scale, WithFree
from rl_natgrad.policy.policy import Observer
from rl_natgrad.rollout.normalize import ObservationNormalizer
from rl_natgrad.version import __version__

OPSET, IR = 17, 8  # of 2022: runtimes since then run it
OPERATORS: dict[Activation, str] = {Tanh: "Tanh", Relu: "Relu", Sigmoid: "Sigmoid"}


class Graph:
    """Operators in the order in which they are applied; what one takes are names of others' outputs, or arrays."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, dtype: DTypeLike | None, shape: tuple[int, ...]) -> str:
        """One observation or part of it, of a batch of any size."""
        self.inputs.append(_value(name, dtype, shape))
        return name

    def __call__(self, operator: str, *inputs: str | NDArray, **attributes: Any) -> str:
        """The name of what this operator makes of the inputs."""
        name = f"{operator.lower()}_{len(self.nodes)}"
        names = [x if isinstance(x, str) else self._constant(x) for x in inputs]
        self.nodes.append(helper.make_node(operator, names, [name], **attributes))
        return name

    def cast(self, x: str, dtype: DTypeLike | None) -> str:
        """x in another dtype."""
        return self("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def reshape(self, x: str, shape: tuple[int, ...]) -> str:
        """x (B, …) as (B, *shape)."""
        return self("Reshape", x, np.array([-1, *shape], np.int64))

    def _constant(self, value: NDArray) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name


def model(agent: Agent, run: Path) -> onnx.ModelProto:
    """What `agent.act` does to a batch: inputs (B, *O) as the environment has them, output `action` (B, *A).

    A Tuple or Dict has an input for each of its parts, named as observation['key'][0]; env.action_mask one more,
    `action_mask`.  Numbers that are not finite and masks that allow nothing, which `act` refuses, are not
    looked for.
    """
    graph, policy, raw = Graph(), agent.policy, agent.spaces
    theta = policy.theta.detach().cpu()
    x = graph.cast(_seen(graph, agent.view, raw.observation), theta.numpy().dtype)
    z = _network(graph, policy.net, theta, _observed(graph, policy.observe, x))
    if agent.view.masked:
        allowed = graph.cast(graph.input("action_mask", np.int8, (agent.view.width,)), np.bool_)
        z = graph("Where", allowed, graph.cast(z, np.float64), np.array(FORBIDDEN))
    action = _to_env(graph, raw.action, _mode(graph, policy.head, z))
    graph.nodes.append(helper.make_node("Identity", [action], ["action"]))
    output = _value("action", raw.action.dtype, raw.action.shape or ())
    whole = helper.make_graph(graph.nodes, "policy", graph.inputs, [output], graph.constants)
    made = helper.make_model(
        whole, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR, producer_name="rl_natgrad",
        producer_version=__version__,
    )  # fmt: skip
    cfg = agent.config
    facts = {"env": cfg.env.id, "algo": cfg.algo.name, "run": run.resolve().name, "seed": cfg.seed,
             "update": agent.update, "step": agent.step, "rl_natgrad": __version__}  # fmt: skip
    helper.set_model_props(made, {key: str(value) for key, value in facts.items()})
    onnx.checker.check_model(made, full_check=True)
    return made


def _value(name: str, dtype: DTypeLike | None, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), ["batch", *shape])


def _seen(graph: Graph, view: View, raw: spaces.Space) -> str:
    """The observations as the policy sees them: `View.first` and `next`."""
    stack = (view.stack,) if view.stack > 1 else ()
    if view.map.axes is not None:
        image = graph.input("observation", np.uint8, raw.shape or ())
        first = 1 + len(stack)
        x = graph("Transpose", image, perm=[*range(first), *(axis + first for axis in view.map.axes)])
    else:
        parts = [_flat(graph, leaf, stack) for leaf in view.map.leaves]
        x = parts[0] if len(parts) == 1 else graph("Concat", *parts, axis=1)
    return graph.reshape(x, view.seen.shape) if stack else x


def _flat(graph: Graph, leaf: Leaf, stack: tuple[int, ...]) -> str:
    """One part of an observation as numbers (B, width), those of a stack (B·stack, width); one-hot if discrete."""
    space, width = leaf.space, leaf.place.stop - leaf.place.start
    x = graph.input(leaf.field, space.dtype, (*stack, *(space.shape or ())))
    match space:
        case spaces.Discrete():
            n, start = np.array([space.n]), np.array([space.start])
        case spaces.MultiDiscrete():
            n, start = space.nvec.ravel(), space.start.ravel()
        case _:
            return graph.cast(graph.reshape(x, (width,)), np.float32)
    which = np.repeat(np.arange(len(n)), n)  # of its numbers does a place of the vector speak, and of what value?
    value = np.concatenate([first + np.arange(count) for first, count in zip(start, n, strict=True)])
    numbers = graph.cast(graph.reshape(x, (len(n),)), np.int64)
    chosen = graph("Equal", graph("Gather", numbers, which, axis=1), value.astype(np.int64))
    return graph.cast(chosen, np.float32)


def _observed(graph: Graph, observe: Observer, x: str) -> str:
    """The network's input: (x − mean) / std, clipped to ±10, or x itself."""
    if not isinstance(observe, ObservationNormalizer):
        return x
    dtype = np.dtype(observe.dtype)
    x = graph("Sub", x, observe.moments.mean.astype(dtype))
    x = graph("Mul", x, (1 / observe.moments.std).astype(dtype))
    return graph("Clip", x, np.array(-10, dtype), np.array(10, dtype))


def _network(graph: Graph, net: Network, theta: Tensor, x: str) -> str:
    """z, without the log σ that are parameters, which no mode needs; masks come behind it."""
    match net:
        case Masked():
            return _network(graph, net.net, theta, x)
        case WithFree():
            return _network(graph, net.net, theta[: -net.n], x)
        case Biased():
            return _network(graph, net.net, theta, x)
        case MLP():
            *hidden, (W_last, b_last) = net.layers(theta.numpy())
            for W, b in hidden:
                x = graph(OPERATORS[net.activation], graph("Gemm", x, W, b, transB=1))
            return graph("Gemm", x, W_last, b_last, transB=1)
        case ModuleNetwork():
            return _module(graph, net, theta, x)
    raise ValueError(f"a policy network {type(net).__name__} cannot be exported; those of policy=mlp and cnn can")


def _module(graph: Graph, net: ModuleNetwork, theta: Tensor, x: str) -> str:
    """The layers of `networks.cnn`, one operator each; in float32, as few runtimes convolve in another."""
    weights = iter([theta[place].reshape(shape).float().numpy() for place, shape in net.tensors])
    x = graph.cast(x, np.float32)
    for layer in net.module.modules():
        match layer:
            case nn.Sequential():
                continue  # its layers follow
            case Scale():
                x = graph("Div", x, np.array(255, np.float32))
            case nn.Conv2d():
                x = graph("Conv", x, next(weights), next(weights), strides=list(layer.stride))
            case nn.ReLU():
                x = graph("Relu", x)
            case nn.Flatten():
                x = graph("Flatten", x)
            case nn.Linear():
                x = graph("Gemm", x, next(weights), next(weights), transB=1)
            case _:
                raise ValueError(f"a layer {type(layer).__name__} cannot be exported")
    return x


def _mode(graph: Graph, head: Head, z: str) -> str:
    """The most likely action of the policy: `head.mode`."""
    match head:
        case Categorical():
            return graph("ArgMax", z, axis=1, keepdims=0)
        case MultiDiscrete():
            ends = np.cumsum([0, *head.nvec])
            parts = [_columns(graph, z, start, stop) for start, stop in pairwise(ends)]
            return graph("Concat", *(graph("ArgMax", part, axis=1, keepdims=1) for part in parts), axis=1)
        case Bernoulli():
            return graph.cast(graph("Greater", graph.cast(z, np.float64), np.zeros(())), np.int64)
        case DiagGaussian():
            return _columns(graph, z, 0, head.n)
    raise ValueError(f"a {type(head).__name__} policy cannot be exported")


def _columns(graph: Graph, z: str, start: int, stop: int) -> str:
    return graph("Slice", z, np.array([start]), np.array([stop]), np.array([1]))


def _to_env(graph: Graph, space: spaces.Space, action: str) -> str:
    """The environment's own action: `envs.spaces.action_map`."""
    match space:
        case spaces.Discrete():
            action = graph("Add", action, np.array(space.start, np.int64))
        case spaces.MultiDiscrete():
            action = graph("Add", graph.reshape(action, space.shape), space.start.astype(np.int64))
        case spaces.MultiBinary():
            action = graph.reshape(action, space.shape)
        case spaces.Box():
            action = _to_box(graph, space, action)
    return graph.cast(action, space.dtype)


def _to_box(graph: Graph, space: spaces.Box, action: str) -> str:
    """clip(low (1 − c)/2 + high (1 + c)/2, low, high), c = clip(a, −1, 1); with bounds that are not finite
    clip(a, low, high)."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    action = graph.cast(graph.reshape(action, space.shape), np.float64)
    if np.isfinite(low).all() and np.isfinite(high).all():
        c = graph("Clip", action, np.array(-1.0), np.array(1.0))
        half = graph("Mul", c, np.array(0.5))
        down, up = graph("Sub", np.array(0.5), half), graph("Add", half, np.array(0.5))
        action = graph("Add", graph("Mul", down, low), graph("Mul", up, high))
    action = graph("Min", graph("Max", action, low), high)
    return graph("Round", action) if np.issubdtype(space.dtype, np.integer) else action


def ports(model: onnx.ModelProto) -> list[str]:
    """A line for each input and for the output: its name, its shape and its type."""
    lines = []
    for word, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            tensor = value.type.tensor_type
            shape = ", ".join(dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim)
            dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            lines.append(f"{word:<8}{value.name} ({shape}) {dtype}")
    return lines
