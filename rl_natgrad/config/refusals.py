"""What a refused configuration is told: one line with the key, the value, what is allowed, the nearest."""

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from rl_natgrad.config.schema import MODELS, Config

# What users of sb3, tianshou, Spinning Up, garage or cleanrl type, under our keys (the first that applies).
_ELSEWHERE = {
    "algo": "algorithm agent alg",
    "algo.delta": "max_kl target_kl kl_target trust_region_size max_kl_step desired_kl step_size",
    "algo.lam": "gae_lambda gae_lam lambda lambd tau",
    "algo.gamma": "discount discount_factor",
    "algo.entropy_coef": "ent_coef ent_weight entropy_coeff entropy_weight policy_ent_coeff",
    "algo.normalize_adv": "normalize_advantage normalize_advantages norm_adv advantage_normalization",
    "algo.max_backtracks": "line_search_max_iter backtrack_iters ls_steps max_backtrack backtracks",
    "algo.shrink": "line_search_shrinking_factor backtrack_coeff backtrack_ratio",
    "optimizer": "optim opt optimizer_class",
    "optimizer.lr algo.lr critic.lr": "lr learning_rate pi_lr actor_lr policy_lr step_lr",
    "critic.lr": "vf_lr v_lr value_lr critic_lr vf_coef value_loss_coef value_coef",
    "critic.epochs": "n_critic_updates train_v_iters vf_iters optim_critic_iters n_epochs",
    "critic.minibatch": "minibatch_size mini_batch_size vf_batch_size num_minibatches",
    "solver.damping": "cg_damping damping_coeff hvp_reg_coeff reg_coeff cg_reg",
    "solver.max_iter": "cg_max_steps cg_iters cg_iterations cg_max_iterations cg_steps",
    "solver.tol": "cg_residual_tol residual_tol cg_tol",
    "fisher": "hvp_approach hvp",
    "fisher.fraction": "sub_sampling_factor subsampling_factor hvp_subsample",
    "policy.hidden": "hidden_sizes net_arch hidden_layers hidden_size hidden_dim layers",
    "policy.activation": "activation_fn nonlinearity hidden_nonlinearity",
    "policy.log_std": "log_std_init init_std init_log_std",
    "env.id": "env_id env_name gym_id task environment",
    "env.kwargs": "env_kwargs env_args",
    "env.normalize_obs": "norm_obs obs_norm normalize_observations",
    "env.normalize_return": "norm_reward reward_normalization rew_norm normalize_reward",
    "seed": "random_seed",
    "total_steps": "total_timesteps max_timesteps num_timesteps total_env_steps max_steps timesteps",
    "num_envs": "n_envs nenvs num_env training_num n_workers num_workers num_cpu",
    "horizon": "n_steps num_steps nsteps rollout_length steps_per_epoch step_per_collect batch_size",
    "device": "gpu cuda",
    "torch_threads": "threads num_threads n_threads",
    "runs_dir": "logdir log_dir tensorboard_log output_dir save_path",
    "resume": "load load_path checkpoint_path",
    "eval.episodes": "n_eval_episodes test_num eval_episodes",
    "eval.every": "eval_freq eval_interval",
    "checkpoint.every": "save_freq save_interval checkpoint_freq",
}
ELSEWHERE = {name: ours.split() for ours, names in _ELSEWHERE.items() for name in names.split()}


class ConfigError(ValueError):
    """A command line or configuration that is refused; its text is the one line to print."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.split())[:600])


def listing(names: Iterable[str], word: str = "and") -> str:
    """The names as prose: `a, b and c`."""
    *head, last = list(names) or ["none"]
    return f"{', '.join(head)} {word} {last}" if head else last


def show(value: Any) -> str:
    """A value as the command line writes it, cut to a readable length."""
    words = {None: "null", True: "true", False: "false"}
    plain = value is None or isinstance(value, bool)
    text = words[value] if plain else repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name most like the word, by its last part first (`delta` is `algo.delta`), or None."""
    names, word = list(names), word.lower().replace("-", "_")
    last = word.rsplit(".", 1)[-1]
    same = [name for name in names if name.lower().rsplit(".", 1)[-1] == last]
    whole = {name.lower().replace("-", "_"): name for name in names}
    parts = {name.rsplit(".", 1)[-1]: name for name in reversed(whole)}
    close = difflib.get_close_matches(word, same or whole, n=1, cutoff=0.0 if same else 0.6)
    if close:
        return whole.get(close[0], close[0])
    close = difflib.get_close_matches(last, parts, n=1, cutoff=0.7)
    return whole[parts[close[0]]] if close else None


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """The end of a message that points to the nearest name; empty where none is near."""
    name = nearest(word, names)
    return f"; did you mean {name!r}?" if name else ""


def belongs(key: str, tree: dict[str, Any]) -> str:
    """That a group or key is of other choices than the present one, and what the present one has instead."""
    group, _, field = key.partition(".")
    algo = tree["algo"]["name"]
    if group in tree:
        owners = [name for name, model in MODELS[group].items() if field in model.model_fields]
        present, has = f"{group}={tree[group]['name']}", [name for name in tree[group] if name != "name"]
    else:
        owners = [name for name, model in MODELS["algo"].items() if group in model.groups]
        present, has = f"algo={algo}", MODELS["algo"][algo].groups
    return f"{key} belongs to {listing(owners)}; {present} has {listing(has) if has else 'no keys'}"


def unknown(key: str, tree: dict[str, Any]) -> str:
    """The answer to a key that the composed configuration does not have."""
    present = [name for name in leaves(tree) if name.removesuffix(".name") not in MODELS] + [*MODELS]
    known = [f"{group}.{field}" for group, models in MODELS.items()
             for model in models.values() for field in model.model_fields if field != "name"]
    if key in known:
        return belongs(key, tree)
    last = key.rsplit(".", 1)[-1].lower().replace("-", "_")
    ours = [*ELSEWHERE.get(last, []), *(name for name in present + known if name.endswith(f".{last}"))]
    hint = next((name for name in ours if name in present), None)
    if ours and not hint:
        return f"unknown key {key!r}; {belongs(ours[0], tree)}"
    near = f"; did you mean {hint!r}?" if hint else did_you_mean(key, present)
    return f"unknown key {key!r}{near or '; --help lists them'}"


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of a nested mapping."""
    for name, value in tree.items():
        yield from leaves(value, f"{prefix}{name}.") if isinstance(value, dict) and value else [prefix + name]


def explain(error: Any) -> str:
    """One of pydantic's errors as our one line."""
    path, kind, value = list(error["loc"]), error["type"], error["input"]
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if not path:
        return f"a configuration must be a mapping, got {show(value)}"
    if kind.startswith("union_tag"):
        name = value.get("name") if isinstance(value, dict) else value
        return f"{path[0]}.name must be {listing(MODELS[path[0]], 'or')}, got {show(name)}"
    prefix, model = "", Config
    if len(path) > 1:
        section, inner, *_ = path
        models = MODELS.get(section, {"": Config.model_fields[section].annotation})
        prefix, model = f"{section}.", models.get(inner) or next(iter(models.values()))
        path = path[2:] if inner in models else path[1:]
    key, field = f"{prefix}{path[0]}", path[0]
    if kind == "missing":
        return f"{key} is missing"
    if kind == "extra_forbidden":
        return f"unknown key {key!r}" + did_you_mean(str(field), model.model_fields)
    schema = model.model_json_schema()["properties"][field]
    near = did_you_mean(str(value), schema["enum"]) if "enum" in schema else ""
    return f"{key} must be {allowed(schema)}, got {show(value)}{near}"


def allowed(schema: dict[str, Any]) -> str:
    """What a key takes, in words, from its JSON schema."""
    if "anyOf" in schema:
        return listing((allowed(option) for option in schema["anyOf"]), "or")
    if "enum" in schema or "const" in schema:
        return listing(schema.get("enum") or [schema["const"]], "or")
    if "description" in schema:
        return schema["description"]
    if schema.get("type") == "array":
        size = f" of {schema['minItems']}" if "minItems" in schema else ""
        return f"a list{size}, each {allowed(schema['items'])}"
    words = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "null": "null"}
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    bounds = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    return f"{words.get(schema.get('type', ''), 'a section of keys')} {' and '.join(bounds)}".rstrip()
