"""An evaluation episode as mp4."""

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rl_natgrad.config.schema import Config
from rl_natgrad.envs.checks import Checks
from rl_natgrad.envs.errors import EnvSetupError, one_line
from rl_natgrad.envs.make import make
from rl_natgrad.envs.sync import SyncEnvs
from rl_natgrad.rollout.play import play
from rl_natgrad.training.evaluation import streams


def record(cfg: Config, act: Callable[[NDArray], NDArray], file: Path) -> float:
    """Writes the first evaluation episode to `file`, whole or not at all. Returns its return.
    Raises: EnvSetupError where nothing can be drawn, EnvError, OSError."""
    try:
        from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter
    except ImportError as error:
        raise EnvSetupError('video=true needs an extra: pip install "rl-natgrad[video]"') from error
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        os.environ.setdefault("MUJOCO_GL", "egl")  # the defaults of MuJoCo and pygame need a display
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    kwargs = cfg.env.kwargs | {"render_mode": "rgb_array"}
    envs = make(cfg.env.model_copy(update={"backend": "sync", "kwargs": kwargs}), 1, streams(cfg)[1])
    assert isinstance(envs, SyncEnvs)  # whose environments are here, where they can draw
    one = envs.episodes.all[0]
    if envs.observation_space.dtype != np.uint8:  # a policy that sees pictures is shown those of its training
        light(one.env)
    draft = file.with_name(f".{file.stem}.{os.getpid()}.tmp.mp4")
    writer: Any = None

    def draw() -> None:
        """Writes a picture of now."""
        nonlocal writer
        frame = _frame(one.env, cfg.env.id)
        if writer is None:
            size, fps = frame.shape[1::-1], one.env.metadata.get("render_fps") or 30
            writer = FFMPEG_VideoWriter(str(draft), size, fps)
        writer.write_frame(frame)

    def act_and_draw(obs: NDArray) -> NDArray:
        """`act`, and a picture of what it sees."""
        draw()
        return act(obs)

    try:
        returns, _ = play(envs, act_and_draw, Checks(cfg.env.id, envs.observation_space))
        draw()
        process = writer.proc
        writer.close()
        if process.returncode:
            raise OSError(f"{file}: ffmpeg could not write it (exit code {process.returncode})")
        os.replace(draft, file)
    finally:
        if writer is not None:
            writer.close()
        draft.unlink(missing_ok=True)
        envs.close()
    return float(returns[0])


def light(env: gym.Env) -> None:
    """Lights the bodies of a MuJoCo environment from the camera too: from above alone, as Gymnasium's models do,
    their sides are nearly black. Only pictures change."""
    with contextlib.suppress(ImportError):
        from gymnasium.envs.mujoco import MujocoEnv

        if isinstance(env.unwrapped, MujocoEnv):
            model = env.unwrapped.model
            model.vis.headlight.ambient[:], model.vis.headlight.diffuse[:] = 0.4, 0.5  # MuJoCo's: 0.1, 0.4
            np.minimum(model.light_diffuse, 0.8, out=model.light_diffuse)  # or what faces up is white


def _frame(env: gym.Env, id: str) -> NDArray:
    """A picture of the environment now (H, W, 3), its sides made even, which the usual players need."""
    try:
        frame = env.render()
    except Exception as error:
        raise EnvSetupError(f"{id} cannot be drawn: {one_line(error)}") from error
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise EnvSetupError(f"{id} cannot be drawn: it has no render_mode=rgb_array")
    height, width = (side // 2 * 2 for side in frame.shape[:2])
    return np.ascontiguousarray(frame[:height, :width])
