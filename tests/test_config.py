"""What configs/ say, what the schema lets through, and the one line that each refusal is."""

import json
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rl_natgrad.config import compose, schema
from rl_natgrad.config.refusals import ConfigError, nearest
from rl_natgrad.config.schema import Config
from rl_natgrad.training.iteration import Training

GROUPS = {  # written down again, so that a file or a name that goes missing is noticed
    "algo": ["npg", "pg", "ppo", "reinforce", "trpo"],
    "optimizer": ["adadelta", "adagrad", "adam", "adamp", "momentum", "nag", "radam", "rmsprop", "sgd"],
    "solver": ["cg", "cholesky", "diagonal", "identity", "pinv", "steihaug", "svd", "woodbury"],
    "fisher": ["empirical", "gauss_newton", "hessian", "kl_hessian"],
    "policy": ["cnn", "mlp"],
    "critic": ["adam", "lbfgs", "none", "trust_region"],
}
TAKES = {
    "reinforce": ["optimizer"],
    "pg": ["optimizer", "critic"],
    "npg": ["solver", "fisher", "critic"],
    "trpo": ["solver", "fisher", "critic"],
    "ppo": ["critic"],
}
FILES = sorted(file for file in compose.config_dir().rglob("*.yaml") if file.parent.name != "experiment")


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose.load(overrides)
    text = str(caught.value)
    assert text and "\n" not in text
    return text


def test_files_and_schema_agree_on_the_choices():
    for group, names in GROUPS.items():
        assert compose.choices()[group] == names == sorted(schema.MODELS[group])


@pytest.mark.parametrize("algo", TAKES)
@pytest.mark.parametrize("group", ["optimizer", "solver", "fisher", "critic"])
def test_each_algorithm_takes_every_choice_of_its_groups_and_no_other_group(algo, group):
    for name in GROUPS[group]:
        words = [f"algo={algo}", f"{group}={name}"]
        if group in TAKES[algo]:
            words += ["solver=steihaug"] if name == "hessian" else []
            assert getattr(compose.load(words), group).name == name
        else:
            assert getattr(compose.load(words[:1]), group) is None
            owners = [other for other in TAKES if group in TAKES[other]]
            line = refusal(*words)
            assert line.startswith(f"{group} belongs to ") and all(owner in line for owner in owners)


@pytest.mark.parametrize("name", compose.choices()["env"])
def test_each_environment_file_composes(name):
    extra = ["env.id=CartPole-v1"] if name == "default" else []
    assert compose.load([f"env={name}", *extra]).env.id.split("-v")[1].isdigit()


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_each_file_says_what_it_is_and_what_each_key_means(file: Path):
    lines = file.read_text().splitlines()
    assert lines[0].startswith("# ") and len(lines[0]) > 12
    body = [line for line in lines if line.strip() and not line.startswith(("#", "defaults:", "  - "))]
    own = [line for line in body if not line.startswith(("name:", "id:")) and not line.endswith(":")]
    assert [line for line in own if " # " not in line] == []
    assert max(map(len, lines)) <= 115


def test_files_hold_every_key_that_the_schema_reads():
    for group, models in schema.MODELS.items():
        for name, model in models.items():
            tree = yaml.safe_load((compose.config_dir() / group / f"{name}.yaml").read_text())
            assert set(tree) - {"defaults"} == set(model.model_fields)


def test_defaults_are_those_of_the_design():
    cfg = compose.load([])
    assert (cfg.algo.name, cfg.solver.name, cfg.fisher.name) == ("trpo", "cg", "gauss_newton")
    assert (cfg.env.id, cfg.env.backend) == ("CartPole-v1", "auto")
    assert (cfg.seed, cfg.total_steps, cfg.num_envs, cfg.horizon, cfg.device) == (0, 100_000, 8, 256, "cpu")
    assert (cfg.algo.delta, cfg.algo.gamma, cfg.algo.lam, cfg.solver.max_iter) == (0.01, 0.99, 0.95, 10)
    assert (cfg.policy.hidden, cfg.policy.activation, cfg.torch_threads) == ([64, 64], "tanh", 1)


@pytest.mark.parametrize("word", ["total_steps=1e6", "total_steps=1_000_000", "total_steps=1000000"])
def test_steps_may_be_written_as_people_write_them(word):
    steps = compose.load([word]).total_steps
    assert steps == 1_000_000 and type(steps) is int


def test_both_networks_start_as_the_policy_says(closed):
    words = ("policy.init=orthogonal", "policy.init=uniform")
    orthogonal, uniform = (closed(Training(compose.load([word]))) for word in words)
    for part in ("policy", "critic"):
        of = lambda run, part=part: getattr(run, part).net.layers(getattr(run, part).theta)[0][1]  # noqa: E731
        assert not of(orthogonal).any() and 0.3 < of(uniform).abs().max() < 0.5  # ±1/√4


def test_values_arrive():
    words = ["eval={episodes: 5, every: 2}", "env.kwargs={gravity: 9.8}", "env.kwargs.deep.er=1", "algo.lr=0.1",
             "policy.hidden=[32]", "sweep.job_timeout=60", "runs_dir='a b'", "algo=npg"]
    cfg = compose.load(words)
    assert (cfg.eval.episodes, cfg.eval.every, cfg.policy.hidden) == (5, 2, [32])
    assert cfg.env.kwargs == {"gravity": 9.8, "deep": {"er": 1}}
    assert (cfg.sweep.job_timeout, cfg.runs_dir, cfg.algo.lr) == (60, "a b", 0.1)


def test_one_load_does_not_change_the_next():
    compose.load(["env.kwargs.x=1", "policy.hidden=[1]"])
    assert compose.load([]) == compose.load([]) and compose.load([]).env.kwargs == {}


@pytest.mark.parametrize("words", [[f"algo={algo}"] for algo in TAKES] + [["policy=cnn", "env.kwargs={a: [1]}"]])
def test_a_stored_configuration_reads_back_equal(words):
    cfg = compose.load(words)
    assert compose.validate(json.loads(json.dumps(cfg.model_dump(mode="json")))) == cfg


# env=<name>


def test_an_id_that_has_a_file_is_that_file():
    assert compose.load(["env=CartPole-v1"]) == compose.load(["env=CartPole"])
    assert compose.load(["env=Pendulum-v1"]) == compose.load(["env=Pendulum"])


def test_other_ids_use_the_default_file():
    assert compose.load(["env=Taxi-v4"]) == compose.load(["env=default", "env.id=Taxi-v4"])
    cfg = compose.load(["env=some.module:My-v0", "env.allow_import=true"])
    assert cfg.env.id == "some.module:My-v0" and cfg.env.allow_import
    assert compose.load(["env=ALE/Pong-v5"]).env.id == "ALE/Pong-v5"
    assert compose.load(["env=Pong-v5", "env.backend=envpool"]).env.id == "Pong-v5"


@pytest.mark.parametrize("words, parts", [
    (["env=CartPol"], ["env", "'CartPol'", "Pendulum", "did you mean 'CartPole'"]),
    (["env=Pusher"], ["did you mean 'Pusher-v5'"]),
    (["env.id=Hoper-v5"], ["env.id", "did you mean 'Hopper-v5'"]),
    (["env=some.module:My-v0"], ["env.allow_import=true", "some.module"]),
    (["env=default"], ["env.id", "null"]),
    (["env=Taxi-v4", "env.id=Taxi-v4"], ["env.id is given twice"]),
    (["env.id=.."], ["env.id", "'..'"]),
    (["env.id=../../x"], ["env.id"]),
    (["env=[a]"], ["env must be"]),
    (["env=null"], ["env must be", "null"]),
    (["algo=ppo", "distributed.mode=sharded"], ["sharded is not for algo=ppo", "take gather"]),
])  # fmt: skip
def test_a_wrong_environment_is_answered(words, parts):
    line = refusal(*words)
    assert all(part in line for part in parts), line


# resume


ALLOWED = {"total_steps", "eval.every", "checkpoint.keep"}


def test_allowed_keys_of_a_stored_run_change():
    stored = compose.load(["algo=pg", "seed=3"])
    cfg = compose.override(stored, ["total_steps=2e5", "eval.every=4"], ALLOWED)
    assert (cfg.total_steps, cfg.eval.every, cfg.seed, cfg.algo) == (200_000, 4, 3, stored.algo)
    assert stored.total_steps == 100_000


@pytest.mark.parametrize("word, parts", [
    ("algo=npg", ["algo is fixed", "total_steps"]),
    ("seed=4", ["seed is fixed", "checkpoint.keep, eval.every and total_steps"]),
    ("totl_steps=4", ["unknown key 'totl_steps'", "total_steps"]),
    ("algo.delta=1", ["algo.delta belongs to npg and trpo"]),
    ("total_steps=-1", ["total_steps must be", "-1"]),
    ("solver.damping=1", ["solver.damping belongs to npg and trpo; algo=pg has optimizer and critic"]),
])  # fmt: skip
def test_other_keys_of_a_stored_run_are_refused_by_name(word, parts):
    with pytest.raises(ConfigError) as caught:
        compose.override(compose.load(["algo=pg"]), [word], ALLOWED)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


# the nearest name


@pytest.mark.parametrize("name, key", [
    ("delta", "algo.delta"), ("algo.delt", "algo.delta"), ("gama", "algo.gamma"), ("damping", "solver.damping"),
    ("max_iter", "solver.max_iter"), ("critic.lrr", "critic.lr"), ("n_envs", "num_envs"), ("envs", "num_envs"),
    ("totl_steps", "total_steps"), ("env_id", "env.id"), ("eval.every.x", "eval.every"), ("sed", "seed"),
    ("critik.hidden", "critic.hidden"), ("Seed", "seed"), ("runs-dir", "runs_dir"),
])  # fmt: skip
def test_a_misspelt_key_is_answered_with_the_nearest(name, key):
    assert refusal(f"{name}=1") == f"unknown key {name!r}; did you mean {key!r}?"


def test_the_nearest_key_depends_on_the_algorithm():
    assert "'optimizer.lr'" in refusal("algo=pg", "lr=1")
    assert "did you mean 'critic.lr' or 'algo.lr'?" in refusal("algo=npg", "lr=1")
    assert "'algo.entropy_coef'" in refusal("algo=pg", "entropy_coeff=1")
    assert "algo.delta belongs to npg and trpo" in refusal("algo=pg", "delta=1")
    assert "algo.delta belongs to npg and trpo" in refusal("algo=pg", "algo.delt=1")
    assert "max_iter belongs to cg and steihaug; solver=cholesky has" in refusal("solver=cholesky", "max_iter=1")
    assert "algo.entropy_coef belongs to reinforce, pg and ppo" in refusal("entropy_coeff=1")


def test_nearest_prefers_the_last_part_of_a_name():
    assert nearest("delta", ["seed", "algo.delta", "delt"]) == ["algo.delta"]
    assert nearest("TRPO", ["pg", "trpo"]) == ["trpo"]
    assert nearest("lr", ["critic.lr", "algo.lr", "critic.delta"]) == ["critic.lr", "algo.lr"]
    assert nearest("xyzzy", ["pg", "trpo"]) == nearest("x", []) == []


# files from elsewhere

WOODBURY = {"name": "woodbury", "damping": 0.1, "max_gib": 2.0}


@pytest.mark.parametrize("change, part", [
    ({"_target_": "os.system"}, "unknown key '_target_'"),
    ({"algo": {"name": "trpo", "_target_": "os.system"}}, "algo."),
    ({"algo": {"name": "sac"}}, "algo.name must be reinforce, pg, npg, trpo or ppo, got 'sac'"),
    ({"algo": {}}, "algo.name must be"),
    ({"algo": 3}, "algo"),
    ({"solver": None}, "algo=trpo needs solver"),
    ({"optimizer": {"name": "sgd", "lr": 0.1, "warmup": 0}}, "algo=trpo has no optimizer"),
    ({"fisher": {"name": "exact", "fraction": 1.0}}, "fisher.name must be"),
    ({"fisher": {"name": "kl_hessian", "fraction": 1.0}, "solver": WOODBURY}, "needs a Fisher with rows"),
    ({"fisher": {"name": "hessian", "fraction": 1.0}}, "solver must be steihaug, pinv or identity, got cg"),
    ({"fisher": {"name": "hessian", "fraction": 1.0}, "solver": WOODBURY}, "fisher=hessian may be indefinite"),
    ({"fisher": {"name": "empirical", "fraction": 1.0, "empirical": 1}}, "unknown key 'fisher.empirical'"),
    ({"distributed": {"mode": "sharded"}, "solver": WOODBURY}, "must be identity, cg or steihaug, got woodbury"),
    ({"seed": "0"}, "seed must be a whole number"),
    ({"seed": True}, "seed must be"),
    ({"eval": 3}, "eval must be"),
    ({"eval": {"episodes": 3}}, "eval.every is missing"),
    ({"runs_dir": None}, "runs_dir must be"),
    ({"policy": {"name": "mlp", "hidden": [10**9], "activation": "tanh", "std": "free", "log_std": 0.0}},
     "policy.hidden"),
    ({"num_envs": 60_000, "horizon": 10**9}, "horizon × num_envs"),
])  # fmt: skip
def test_a_hostile_file_is_refused(change, part):
    tree = compose.load([]).model_dump(mode="json") | change
    with pytest.raises(ConfigError) as caught:
        compose.validate(tree)
    assert part in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("tree", [None, [], 3, "x", {}])
def test_what_is_no_configuration_is_refused(tree):
    with pytest.raises(ConfigError):
        compose.validate(tree)


words = st.one_of(
    st.text(max_size=30),
    st.builds("{}={}".format, st.sampled_from(["seed", "algo", "algo.delta", "env.kwargs", "eval", "resume"]),
              st.text(alphabet="0123456789.,:-+~'\"[]{}()$eatnbx_ \\\n=é\udcff", max_size=20)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(words, max_size=2))
@example(["seed=" + "1" * 5000])
@example(["policy.hidden=" + "[" * 1000])
@example(["k" * 20_000 + "=1"])
def test_any_words_give_a_configuration_or_one_line(overrides):
    try:
        cfg = compose.load(overrides)
    except ConfigError as e:
        assert str(e) and len(str(e).splitlines()) == 1 and len(str(e)) <= 600
    else:
        assert isinstance(cfg, Config) and math.isfinite(cfg.algo.gamma)
