"""A trained policy out of a run folder, which may come from anywhere: data is read, nothing in it is run."""

from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, iterate
from numpy.typing import NDArray

from rl_natgrad.config import compose
from rl_natgrad.config.refusals import ConfigError
from rl_natgrad.config.schema import Config
from rl_natgrad.envs.errors import EnvError
from rl_natgrad.envs.make import make
from rl_natgrad.envs.spaces import action_map
from rl_natgrad.envs.view import View
from rl_natgrad.policy.policy import Policy
from rl_natgrad.run.checkpoint import BEST, Checkpoints, fit, read, whole
from rl_natgrad.run.records import RECORD, read_record
from rl_natgrad.training import build
from rl_natgrad.training.evaluation import acting, streams
from rl_natgrad.version import __version__


class Spaces(NamedTuple):
    """The environment's own; of stacked observations where the run has them."""

    observation: spaces.Space
    action: spaces.Space


class Agent:
    """The policy of a run, with its normaliser, as it was at a checkpoint.

    config: the run's.  spaces: the environment's own.  view: how the policy sees them.  update, step: where in
    training the checkpoint stands.
    """

    def __init__(self, cfg: Config, raw: Spaces, view: View, policy: Policy, update: int, step: int):
        stacked = batch_space(raw.observation, view.stack) if view.stack > 1 else raw.observation
        self.config, self.spaces, self.policy = cfg, Spaces(stacked, raw.action), policy
        self.update, self.step = update, step
        self.view, self._to_env = view, action_map(raw.action)[1]
        self._rng = streams(cfg)[0]

    def act(self, obs: Any, mask: Any = None, *, deterministic: bool = True) -> Any:
        """The environment's own action, clipped and rescaled to its bounds, for one observation; or one for each
        of a batch (arrays with one axis more, also inside a Dict or Tuple).

        Args:   obs: with env.frame_stack=k the last k, as Gymnasium's FrameStackObservation(env, k) gives them.
                mask: with env.action_mask=true, and only then: the info["action_mask"] that came with obs.
                deterministic: the most likely action, else one drawn from the policy.
        Raises: ValueError where `obs` is not in the environment's observation space, or `mask` is no mask of it.
        """
        rows, single = self._rows(obs)
        self._allow(mask, rows, single)
        act = acting(self.policy, "deterministic" if deterministic else "stochastic", self._rng)
        action = self._to_env(act(rows))
        return action[0] if single else action

    def described(self, checkpoint: str) -> str:
        """One line on what was loaded, and where `checkpoint`, the word for it, stands in training."""
        cfg, which = self.config, "" if checkpoint.isdigit() else f"{checkpoint} checkpoint, "
        place = f"{which}update {self.update}, {self.step:,} steps"
        return f"{cfg.algo.name} · {cfg.env.id} · {place} · seed {cfg.seed}"

    def _rows(self, obs: Any) -> tuple[NDArray, bool]:
        """Observations as the policy sees them, (B, *O), and whether `obs` was a single one."""
        space, view = self.spaces.observation, self.view
        try:
            if isinstance(space, spaces.Box):
                obs = np.asarray(obs).astype(space.dtype, casting="same_kind")  # lists and float64 are fine
            single = _rank(obs, space) == 0
            batch = [obs] if single else list(iterate(batch_space(space, _length(obs)), obs))
            rows = np.zeros((len(batch), *view.space.shape), view.space.dtype)
            for one, row in zip(batch, rows, strict=True):
                for frame in [one] if view.stack == 1 else iterate(space, one):
                    view.next(frame, row)
        except (EnvError, TypeError, ValueError, LookupError) as error:
            raise ValueError(f"not an observation of {self.config.env.id}, nor a batch of them: {error}") from None
        if not np.isfinite(rows).all():
            raise ValueError("the observation holds numbers that are not finite")
        return rows, single

    def _allow(self, mask: Any, rows: NDArray, single: bool) -> None:
        """Writes the masks behind the observations."""
        if not self.view.masked and mask is not None:
            raise ValueError("the run has env.action_mask=false: write act(obs), without a mask")
        if not self.view.masked:
            return
        if mask is None:
            raise ValueError('the run has env.action_mask=true: write act(obs, info["action_mask"])')
        masks = [mask] if single else list(mask)
        if len(masks) != len(rows):
            raise ValueError(f"{len(masks)} masks for {len(rows)} observations")
        for one, row in zip(masks, rows, strict=True):
            try:
                self.view.allow(one, row, "mask")
            except EnvError as error:
                raise ValueError(str(error)) from None


def load(run: str | Path, *, checkpoint: str | int = "last", allow_import: bool = False) -> Agent:
    """See `rl_natgrad.load`."""
    path = Path(run)
    cfg = _config(path, allow_import)
    file = _file(path, str(checkpoint))
    state = read(file)
    raw, view = _spaces(cfg)
    seen, acts = view.space, action_map(raw.action)[0]
    try:
        fit({key: state.get(key) for key in ("update", "step")}, {"update": whole(), "step": whole()})
        size, dtype = build.policy_size(cfg, seen, acts), build.DTYPES[cfg.dtype]
        fit(state.get("policy"), {"theta": torch.empty(size, dtype=dtype, device="meta")}, "policy")
        policy = build.build_policy(cfg, seen, acts, theta=state["policy"]["theta"].to(cfg.device))
        fit(state.get("observe"), policy.observe.state(), "observe")
        policy.observe.load(state["observe"])
    except (ValueError, RuntimeError) as error:  # the latter: torch, of a network that cannot be
        raise ValueError(f"{file} does not fit {path / RECORD}: {error}") from error
    return Agent(cfg, raw, view, policy, state["update"], state["step"])


def _config(path: Path, allow_import: bool) -> Config:
    """The run's configuration; whether a module may be imported is never the folder's to say."""
    if not (path / RECORD).is_file():
        raise ConfigError(f"{path} is no run folder: it has no {RECORD}")
    tree = read_record(path)["config"]
    if isinstance(env := tree.get("env"), dict) and ":" in str(env.get("id")):
        env["allow_import"] = allow_import
        if not allow_import:
            module = str(env["id"]).partition(":")[0]
            raise ConfigError(f"{path} imports the module {module!r:.80}: write allow_import=true to run its code")
    if not torch.cuda.is_available():
        tree["device"] = "cpu"
    try:
        return compose.validate(tree)
    except ConfigError as error:
        raise ConfigError(f"{path / RECORD}: {error}") from None


def _file(path: Path, which: str) -> Path:
    """The checkpoint file of that name: last, best, or the number of an update."""
    checkpoints = Checkpoints(path, 1, __version__)
    files = {str(int(file.stem)): file for file in checkpoints.all()}
    if (checkpoints.folder / BEST).exists():
        files["best"] = checkpoints.folder / BEST
    if not files:
        raise ValueError(f"{path} has no checkpoint")
    name = next(reversed([name for name in files if name != "best"]), "") if which == "last" else which
    if name not in files:
        raise ValueError(f"{path} has no checkpoint {which!r}; there are {', '.join(files)}")
    if not files[name].is_file():  # reading a pipe never ends
        raise ValueError(f"{files[name]} is not a file")
    return files[name]


def _spaces(cfg: Config) -> tuple[Spaces, View]:
    """The environment's own and how a policy sees them, of one that is made for the purpose."""
    backend = cfg.env.backend if cfg.env.backend in ("envpool", "async", "device") else "sync"
    env = cfg.env.model_copy(update={"backend": backend})
    with build.undisturbed(), closing(make(env, 1, 0, cfg.device)) as envs:
        return Spaces(envs.raw_observation_space, envs.raw_action_space), envs.view


def _rank(obs: Any, space: spaces.Space) -> int:
    """Axes that `obs` has beyond those of the space: 0 for an observation, 1 for a batch."""
    if isinstance(space, spaces.Dict):
        return _rank(*next((obs[key], part) for key, part in space.items()))
    if isinstance(space, spaces.Tuple):
        return _rank(obs[0], space.spaces[0])
    return np.ndim(obs) - len(space.shape or ())


def _length(obs: Any) -> int:
    """Observations in a batch."""
    while isinstance(obs, dict | tuple):
        obs = next(iter(obs.values())) if isinstance(obs, dict) else obs[0]
    return len(obs)
