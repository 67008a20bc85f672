"""Policy gradients with a real trust region: PG, NPG and TRPO around one KL-constrained step."""

from rl_natgrad.version import __version__ as __version__


def load(run, *, checkpoint="last", allow_import=False):
    """A trained policy to act with: `agent = load("runs/CartPole-v1/trpo/…"); action = agent.act(obs)`.

    Args:   run: a run folder.  checkpoint: "last", "best" (by evaluation) or the number of an update.
            allow_import: may an environment id such as module:Name-v0 import the module, which runs its code?
    Returns: playback.agent.Agent, with act(obs, deterministic=True), config, spaces, update and step.
    Raises:  ValueError, in one line, where the folder is no run, or its checkpoint missing or damaged;
             envs.errors.EnvSetupError where its environment cannot be made here.
    """
    from rl_natgrad.playback import agent  # torch and gymnasium, which `import rl_natgrad` should not wait for

    return agent.load(run, checkpoint=checkpoint, allow_import=allow_import)
