"""--config-dir and ./configs: files of one's own, beside the shipped ones."""

import json
import os
import subprocess
import sys

import pytest
from texts import block
from whole_runs import SMALL, only_run

from rl_natgrad.config import command as cli
from rl_natgrad.config import compose
from rl_natgrad.config.refusals import ConfigError

HILL = block("README.md", "yaml", "hill")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with own/env/Hill.yaml and own/experiment/rates.yaml; what is read of it is forgotten."""
    rates = "# two\nenv: Hill\nalgo: pg\noptimizer.lr: 0.01,0.02\n"
    for name, text in (("env/Hill", HILL), ("experiment/rates", rates)):
        file = tmp_path / "own" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(compose.OWN, "")  # so that it is put back
    monkeypatch.delenv(compose.OWN)
    yield tmp_path
    for cached in (compose.choices, compose._compose, compose._env_files):
        cached.cache_clear()


def test_a_file_of_ones_own_is_a_choice(here):
    job = cli.parse(["--config-dir", "own", "env=Hill", "algo=npg"])
    assert job.config.env.id == "MountainCar-v0" and job.config.env.timeout == 10
    assert "Drive an underpowered car up a hill\n" in cli.parse(["--config-dir=own", "--help"])
    assert os.environ[compose.OWN] == str(here / "own")  # for the processes of a sweep
    jobs = cli.parse(["--config-dir", "own", "-m", "experiment=rates"]).jobs
    assert [job.config.optimizer.lr for job in jobs] == [0.01, 0.02]


FOR = """# @package _global_
# Drive up a hill
defaults: [default@env, _self_]
algo: {gamma: 0.9, delta: 0.5}
for:
  ppo: {horizon: 64, algo: {lr: 0.5, gamma: 0.8}, eval: {episodes: 3}, solver: {damping: 1.0}}
  pg: {optimizer: {name: adam, lr: 0.25}}
env: {id: MountainCar-v0}
"""


def test_an_environments_file_may_have_settings_for_single_algorithms(here):
    (here / "own" / "env" / "Hill.yaml").write_text(FOR)
    load = lambda *words: cli.parse(["--config-dir", "own", "env=Hill", *words]).config  # noqa: E731
    ppo, npg, trpo = (load(f"algo={name}") for name in ("ppo", "npg", "trpo"))
    assert (ppo.horizon, ppo.algo.lr, ppo.algo.gamma, ppo.eval.episodes) == (64, 0.5, 0.8, 3)
    assert (npg.horizon, npg.algo.lr, npg.algo.gamma, npg.eval.episodes) == (256, None, 0.9, 20)
    assert ppo.solver is None and npg.algo.delta == trpo.algo.delta == 0.5
    assert load("algo=ppo", "algo.lr=0.1", "horizon=32").algo.lr == 0.1  # the command line is heard last
    assert load("algo=pg").optimizer.lr == 0.25
    assert load("algo=pg", "optimizer=sgd").optimizer == cli.parse(["algo=pg", "optimizer=sgd"]).config.optimizer
    (here / "own" / "env" / "Hill.yaml").write_text(FOR.replace("ppo:", "pppo:"))
    compose._compose.cache_clear()
    with pytest.raises(ConfigError, match=r"for\.pppo in a file of env/ must be for reinforce, pg, npg"):
        load()


def test_configs_beside_the_working_folder_is_found(here):
    (here / "own").rename(here / "configs")
    assert cli.parse(["env=Hill"]).config.env.id == "MountainCar-v0"


def test_a_folder_called_configs_without_such_files_is_nobodys_business(here):
    (here / "configs").mkdir()
    (here / "configs" / "mine.yaml").write_text("x: 1")
    assert cli.parse([]).config.env.id == "CartPole-v1" and compose.OWN not in os.environ


@pytest.mark.parametrize("words, said", [
    (["--config-dir", "nowhere"], r"--config-dir takes a folder with files such as algo/mine.yaml, got 'nowhere'"),
    (["--config-dir"], r"--config-dir takes a folder with files such as algo/mine.yaml, got ''"),
    (["--config-dir", "own", "env=Hil"], r"did you mean 'Hill'"),
])  # fmt: skip
def test_what_is_wrong_is_one_line(here, words, said):
    with pytest.raises(ConfigError, match=said):
        cli.parse(words)


@pytest.mark.parametrize("name, text, said", [
    ("env/Pendulum", HILL, r"own/env/Pendulum.yaml has the name of a shipped file; call it something else"),
    ("env/Broken", "defaults: [nothing]", r"does not compose: "),
    ("env/Bare", "id: MountainCar-v0", r"env.backend is missing"),
])  # fmt: skip
def test_what_is_wrong_in_a_file_is_one_line(here, name, text, said):
    (here / "own" / f"{name}.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        cli.parse(["--config-dir", "own", f"env={name.split('/')[1]}"])
    assert len(str(caught.value).splitlines()) == 1


def test_a_reader_that_has_seen_enough_is_no_error(here):
    command = f"{sys.executable} -m rl_natgrad.train --cfg job | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.slow
def test_sweep_and_resume_have_it_too(here):
    train = [sys.executable, "-m", "rl_natgrad.train"]
    words = ["--config-dir", "own", "-m", "env=Hill", "seed=5", *SMALL, "total_steps=200", "runs_dir=runs"]
    assert subprocess.run([*train, *words]).returncode == 0
    run = only_run(here / "runs")
    assert json.loads((run / "run.json").read_text())["config"]["env"]["id"] == "MountainCar-v0"
    (here / "own" / "env" / "Hill.yaml").unlink()  # the run has it all
    assert subprocess.run([*train, f"resume={run}", "total_steps=400"]).returncode == 0
