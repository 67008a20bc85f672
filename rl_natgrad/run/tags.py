"""What every logged number means: for TensorBoard, `--help metrics`, and the table in rl_natgrad/README.md."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tag:
    """A number of metrics.jsonl. healthy: what to expect, and what to do otherwise; empty where anything is."""

    unit: str
    meaning: str
    healthy: str = ""


TAGS = {
    "rollout/return": Tag(
        "reward", "mean undiscounted return of the last 100 episodes, actions sampled",
        "rises, some updates late. Flat from the start: raise algo.delta, or gather more per update (horizon)"),
    "rollout/length": Tag("steps", "mean length of the episodes that ended in this rollout"),
    "rollout/episodes": Tag("count", "episodes that ended in this rollout"),
    "policy/loss_before, policy/loss_after": Tag(
        "advantage", "the surrogate at θ_old and at θ', to be lowered"),
    "policy/gain": Tag(
        "advantage", "loss_before − loss_after; ≥ 0 for TRPO",
        "near gain_predicted. Far below it: the step is too long for a linear loss, lower algo.delta"),
    "policy/gain_predicted": Tag("advantage", "−gᵀ(θ' − θ_old): the gain to first order"),
    "policy/kl": Tag(
        "nats", "E[KL(π_old ‖ π_θ')], measured on the batch; ≤ δ for TRPO",
        "0.4 to 1 times algo.delta for TRPO (a backtrack takes a third off it), about it for NPG. Far above in "
        "NPG: the quadratic model fails, lower algo.delta or use algo=trpo. With PG and PPO: 1e-4 to 1e-1; above, "
        "lower optimizer.lr or algo.lr"),
    "policy/kl_predicted": Tag("nats", "the same by the quadratic model; δ for a full step"),
    "policy/entropy": Tag(
        "nats", "E[H(π_old)]",
        "falls slowly. Near 0 (ever lower with continuous actions) before the return is good: the policy is sure "
        "too soon; lower algo.delta, or set algo.entropy_coef with algo=pg or ppo"),
    "policy/grad_norm, policy/step_norm": Tag("–", "‖g‖ and ‖θ' − θ_old‖"),
    "policy/clip_fraction": Tag(
        "ratio", "of PPO: samples whose π_θ'/π_old is further than ε from 1",
        "0.05 to 0.3. Above: lower algo.lr or algo.epochs; 0: the surrogate never holds back, raise them"),
    "policy/epochs": Tag("count", "of PPO: passes over the batch; below algo.epochs where algo.target_kl says so"),
    "policy/not_finite": Tag(
        "1", "something in the maths was not finite, and θ stayed; absent otherwise; see below",
        "absent. There now and then: lower algo.delta or optimizer.lr; ten in a row end the run"),
    "solver/iterations": Tag("count", "CG iterations (0 of a dense solver)"),
    "solver/residual": Tag(
        "ratio", "‖(F + λI)d + g‖ / ‖g‖",
        "below 0.3. Near 1: the direction is hardly solved for, raise solver.max_iter or solver.damping"),
    "solver/indefinite": Tag("1", "CG met no or negative curvature (and steihaug left there); absent otherwise"),
    "line_search/accepted": Tag(
        "0 or 1", "whether a step was taken",
        "1. Often 0: the loss does not fall within δ, lower algo.delta or raise solver.damping"),
    "line_search/tries": Tag(
        "count", "trials, the accepted one included; 0 where there was no step to try",
        "1 to 3. More: as for accepted"),
    "critic/loss": Tag("reward²", "E[(V − return)²] before the fit"),
    "critic/explained_variance": Tag(
        "ratio", "1 − Var[return − V] / Var[return] before the fit; 1 is perfect, below 0 worse than a constant",
        "above 0 after some updates, 0.5 to 1 later; it says little where all returns are alike, as in a solved "
        "CartPole. Below 0 for long: more critic.epochs, another critic.lr, or set env.normalize_return"),
    "critic/not_finite": Tag("1", "the fit was not finite, and V stayed; absent otherwise", "absent"),
    "eval/return, eval/return_std": Tag(
        "reward", "mean and deviation over `eval.episodes` episodes, most likely actions",
        "at or above rollout/return. Below it: the most likely action alone is worse than the mixture, or too few "
        "eval.episodes"),
    "eval/return_stochastic": Tag("reward", "the same first states, actions sampled"),
    "eval/length": Tag("steps", "mean length of the episodes with the most likely actions"),
    "time/collect, time/update, time/critic": Tag(
        "seconds",
        "what the parts of this update took; of a fit in a second process, what it was waited for",
        "with MuJoCo collect is by far the largest: env.backend=split or envpool help there"),
    "time/elapsed": Tag("seconds", "since the start of training, earlier stretches of a resumed run included"),
    "time/steps_per_second": Tag("1/s", "steps so far / elapsed"),
}  # fmt: skip
"""By their names; those that share a line have one entry."""


def describe(tag: str) -> str:
    """A line or two on a tag, for people; empty for one that is not of the project."""
    found = next((told for names, told in TAGS.items() if tag in names.split(", ")), None)
    if found is None:
        return ""
    return f"{found.meaning} [{found.unit}]" + (f". Healthy: {found.healthy}" if found.healthy else "")


def metrics_text() -> str:
    """--help metrics."""
    import textwrap

    wrap = textwrap.TextWrapper(108, initial_indent="      ", subsequent_indent="      ")
    lines = ["What is logged, in metrics.jsonl and TensorBoard, one row an update, at x = environment steps."]
    for names, tag in TAGS.items():
        lines += ["", f"  {names}  [{tag.unit}]", *wrap.wrap(tag.meaning)]
        lines += wrap.wrap(f"healthy: {tag.healthy}") if tag.healthy else []
    return "\n".join(lines)
