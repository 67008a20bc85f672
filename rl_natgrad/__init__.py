"""Policy gradients with a real trust region: PG, NPG and TRPO around one KL-constrained step, and PPO."""

from rl_natgrad.version import __version__ as __version__


def load(run, *, checkpoint="last", allow_import=False):
    """A trained policy to act with: `agent = load("runs/CartPole-v1/trpo/…"); action = agent.act(obs)`.

    Args:   run: a run folder.  checkpoint: "last", "best" (by evaluation) or the number of an update.
            allow_import: may an environment id such as module:Name-v0 import the module, which runs its code?
    Returns: playback.agent.Agent, with act(obs, mask=None, deterministic=True), config, spaces, update and step.
    Raises:  ValueError, in one line, where the folder is no run, or its checkpoint missing or damaged;
             envs.errors.EnvSetupError where its environment cannot be made here.
    """
    from rl_natgrad.playback import agent  # torch and gymnasium, which `import rl_natgrad` should not wait for

    return agent.load(run, checkpoint=checkpoint, allow_import=allow_import)


def Training(*words):
    """A run that one's own loop steps: `for row in Training("algo=trpo", "env=CartPole"): …`.

    It leaves nothing on disk. Use it in a `with`, or call `close()`: environments may be processes.

    Args:    words: as of `python -m rl_natgrad.train`, which would make the same run, to the bit.
    Returns: training.iteration.Training: iterating yields a row of numbers per update; policy, critic,
             step, evaluate().
    Raises:  config.refusals.ConfigError, in one line, where a word is wrong;
             envs.errors.EnvSetupError where the environment cannot be made here.
    """
    from rl_natgrad.config import compose
    from rl_natgrad.training.iteration import Training

    return Training(compose.load(words))
