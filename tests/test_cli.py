"""The command line: what each malformed one is told, and that being told leaves nothing behind."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from whole_runs import only_run, outcome, run

from rl_natgrad import __main__ as package
from rl_natgrad.config import command as cli
from rl_natgrad.config import compose
from rl_natgrad.config.help import EXAMPLES, PROGRAM
from rl_natgrad.config.refusals import ConfigError

# words, and what the one line must say
REFUSED = [
    # the key is wrong
    ("algo.max_kl=0.1", "unknown key 'algo.max_kl'; algo=trpo has delta, max_backtracks, shrink, gamma, lam and"),
    ("solver=identity solver.xyzzy=1", "unknown key 'solver.xyzzy'; solver=identity has no keys"),
    ("eval.xyzzy=1", "unknown key 'eval.xyzzy'; eval has episodes and every"),
    ("max_kl=0.1", "unknown key 'max_kl'; --help lists them"),
    ("totalsteps=5", "unknown key 'totalsteps'; did you mean 'total_steps'?"),
    ("n_envs=4", "unknown key 'n_envs'; did you mean 'num_envs'?"),
    ("xyzzy=1", "unknown key 'xyzzy'; --help lists them"),
    ("eval.episode=5", "unknown key 'eval.episode'; did you mean 'eval.episodes'?"),
    ("eval={episode: 5}", "unknown key 'eval.episode'; did you mean 'eval.episodes'?"),
    ("seed.x=1", "unknown key 'seed.x'; did you mean 'seed'?"),
    ("ALGO=trpo", "unknown key 'ALGO'; did you mean 'algo'?"),
    ("algo.name=pg", "write algo=pg"),
    ("eval=3", "eval is a section of keys, got 3"),
    # of another choice
    ("algo=pg algo.delta=0.1", "algo.delta belongs to npg and trpo; algo=pg has gamma, lam, normalize_adv"),
    ("algo=pg solver=cg", "solver belongs to npg and trpo; algo=pg has optimizer and critic"),
    ("algo=pg solver.damping=1", "solver.damping belongs to npg and trpo"),
    ("algo=trpo optimizer=adam", "optimizer belongs to reinforce and pg; algo=trpo has solver, fisher and"),
    ("algo=reinforce critic=adam", "critic belongs to pg, npg, trpo and ppo; algo=reinforce has optimizer"),
    ("algo=reinforce algo.lam=0.9", "algo.lam belongs to pg, npg, trpo and ppo"),
    ("solver=identity solver.damping=1", "belongs to cg, steihaug, cholesky, woodbury and diagonal; solver="),
    ("algo=pg optimizer=sgd optimizer.betas=[0,0]", "belongs to adam, radam and adamp; optimizer=sgd has lr"),
    # the choice is wrong
    ("algo=tpro", "algo must be npg, pg, ppo, reinforce or trpo, got 'tpro'; did you mean 'trpo'?"),
    ("algo=TRPO", "did you mean 'trpo'?"),
    ("algo=sac", "algo must be npg, pg, ppo, reinforce or trpo, got 'sac'"),
    ("algo=", "algo must be npg, pg, ppo, reinforce or trpo, got ''"),
    ("algo=null", "algo must be npg, pg, ppo, reinforce or trpo, got null"),
    ("algo={delta: 1}", "algo must be npg, pg, ppo, reinforce or trpo, got {'delta': 1}"),
    ("solver=choleski", "did you mean 'cholesky'?"),
    ("env=CartPol", "did you mean 'CartPole'?"),
    ("env=Hopper-v55", "did you mean 'Hopper-v5'?"),
    ("env.id=CartPol-v1", "did you mean 'CartPole-v1'?"),
    ("env=mod:Name-v0", "write env.allow_import=true"),
    ("env.backend=asinc", "env.backend must be auto, sync, async, split, native, envpool or device, got 'asinc'"),
    ("policy.activation=gelu", "policy.activation must be tanh, relu or sigmoid, got 'gelu'"),
    ("device=gpu", "device must be cpu, cuda or cuda:N, got 'gpu'"),
    # the value is wrong
    ("algo.delta=-0.01", "algo.delta must be a number > 0, got -0.01"),
    ("algo.delta=0", "algo.delta must be a number > 0, got 0"),
    ("algo.delta=nan", "algo.delta must be a number > 0, got nan"),
    ("algo.delta=inf", "algo.delta must be a number > 0, got inf"),
    ("algo.delta=1e999", "algo.delta must be a number > 0, got inf"),
    ("algo.delta=null", "algo.delta must be a number > 0, got null"),
    ("algo.delta=small", "algo.delta must be a number > 0, got 'small'"),
    ("algo.delta=", "algo.delta must be a number > 0, got ''"),
    ("algo.delta=true", "algo.delta must be a number > 0, got true"),
    ("algo.delta='0.1'", "algo.delta must be a number > 0, got '0.1'"),
    ("algo.gamma=1.5", "algo.gamma must be a number >= 0 and <= 1, got 1.5"),
    ("algo.shrink=1", "algo.shrink must be a number > 0 and < 1, got 1"),
    ("algo.max_backtracks=-1", "algo.max_backtracks must be a whole number >= 0"),
    ("algo.normalize_adv=1", "algo.normalize_adv must be true or false, got 1"),
    ("seed=-1", "seed must be a whole number >= 0"),
    ("seed=1.5", "seed must be a whole number >= 0"),
    ("num_envs=0", "num_envs must be a whole number >= 1 and <= 65536, got 0"),
    ("total_steps=0", "total_steps must be a whole number >= 1"),
    ("total_steps=1e-6", "total_steps must be a whole number >= 1"),
    ("horizon=1 num_envs=1", "horizon × num_envs must be 2 to 10,000,000 samples per update, got 1 × 1"),
    ("horizon=1e6 num_envs=1e4", "horizon × num_envs must be"),
    ("policy.hidden=64", "policy.hidden must be a list, each a whole number >= 1 and <= 65536, got 64"),
    ("policy.hidden=[64,-1]", "policy.hidden must be a list, each a whole number >= 1"),
    ("algo=pg optimizer.betas=[0.9]", "optimizer.betas must be a list of 2"),
    ("solver=woodbury solver.damping=0", "solver.damping must be a number > 0, got 0"),
    ("fisher=hessian", "fisher=hessian may be indefinite: solver must be steihaug, pinv or identity, got cg"),
    ("solver=woodbury fisher=kl_hessian", "needs a Fisher with rows: fisher must be gauss_newton or"),
    ("solver=svd fisher=kl_hessian", "solver=svd needs a Fisher with rows: fisher must be gauss_newton or"),
    ("env.kwargs=3", "env.kwargs must be a mapping"),
    ("runs_dir=", "runs_dir must be text"),
    ("fisher.fraction=0", "fisher.fraction must be a number > 0 and <= 1, got 0"),
    ("sweep.jobs=0", "sweep.jobs must be a whole number >= 1 and <= 65536 or null, got 0"),
    ("resume=3", "resume must be a run folder or null, got 3"),
    ("resume=", "resume must be a run folder or null, got ''"),
    # the syntax is wrong
    ("seed=1 seed=2", "seed is given twice: seed=1 and seed=2"),
    ("algo=pg algo=npg", "algo is given twice: algo=pg and algo=npg"),
    ("resume=x seed=[1", "can't read 'seed=[1'"),
    ("seed=[1", "can't read 'seed=[1'"),
    ("seed='1", "can't read"),
    ("seed==1", "can't read 'seed==1'"),
    ("=1", "expected key=value, got '=1'"),
    ("algo@solver=cg", "packages are fixed; write algo=…"),
    ("seed=1,2", "seed=1,2 is several values: write -m to sweep"),
    ("seed=range(3)", "write -m to sweep"),
    ("algo=trpo,npg", "write -m to sweep"),
    ("policy.hidden=64,64", "policy.hidden=[…] for a list"),
    ("seed=${num_envs}", "not an interpolation"),
    ("runs_dir=${oc.env:HOME}", "not an interpolation"),
    ("+seed=1", "'+seed=1': keys can't be added or removed; write seed=… to set one"),
    ("++algo.delta=1", "write algo.delta=… to set one"),
    ("~algo", "'~algo': keys can't be added or removed"),
    ("~algo.delta=0.01", "write algo.delta=… to set one"),
    ("algo trpo", "expected key=value, got 'algo'; write algo=trpo"),
    ("seed 3", "expected key=value, got 'seed'; write seed=3"),
    ("seed", "expected key=value, got 'seed'; write seed=…"),
    ("CartPole", "expected key=value, got 'CartPole'; write env=CartPole"),
    ("adam seed=3", "expected key=value, got 'adam'; write critic=adam or optimizer=adam"),
    ("--algo trpo", "unknown option '--algo'; write algo=trpo"),
    ("--algo=trpo", "unknown option '--algo=trpo'; write algo=trpo"),
    ("--algo env=CartPole", "unknown option '--algo'; write algo=…"),
    ("--delta 0.1", "unknown option '--delta'; write algo.delta=0.1"),
    ("--num_envs=4", "unknown option '--num_envs=4'; write num_envs=4"),
    ("--env-id Pendulum-v1", "unknown option '--env-id'; write env.id=Pendulum-v1"),
    ("--xyzzy", "unknown option '--xyzzy'; there are --multirun, --cfg, --package, --help, --config-dir and "),
    ("-x", "unknown option '-x'; there are --multirun"),
    ("-r", "unknown option '-r'; there are --multirun"),
    ("-cn other", "unknown option '-cn'; there are --multirun, --cfg, --package, --help, --config-dir and "),
    ("--config-dir /dev", "--config-dir takes a folder with files such as algo/mine.yaml, got '/dev'"),
    ("--info", "unknown option '--info'; there are --multirun, --cfg"),
    ("--experimental-rerun x", "unknown option '--experimental-rerun'; there are --multirun, --cfg"),
    ("--resolve", "unknown option '--resolve'; there are --multirun, --cfg"),
    ("-sc install=bash", "unknown option '-sc'; there are --multirun"),
    ("--multi seed=1,2", "unknown option '--multi'; did you mean '--multirun'?"),
    ("--version=3", "unknown option '--version=3'; did you mean '--version'?"),
    ("--run", "unknown option '--run'; there are --multirun, --cfg"),
    ("--lr 0.1 algo=pg", "unknown option '--lr'; write critic.lr=0.1"),
    ("--jobs 4", "unknown option '--jobs'; write sweep.jobs=4"),
    ("--cfg", "--cfg takes job, got ''"),
    ("--cfg hydra", "--cfg takes job, got 'hydra'"),
    ("--cfg job -p nothing", "-p takes one of seed,"),
    ("--cfg job -m seed=1,2", "leave out -m"),
    ("-p env", "-p goes with --cfg job"),
    # what would run something
    ("_target_=os.system", "_target_ would run code"),
    ("algo._target_=os.system", "_target_ would run code"),
    ("env.kwargs._target_=os.system", "_target_ would run code"),
    ("env.kwargs={_target_: os.system}", "_target_ would run code"),
    ("hydra.callbacks.x._target_=os.system", "_target_ would run code"),
    ("+hydra.callbacks.x={_target_: os.system}", "_target_ would run code"),
    ("-m seed=1,2 hydra.launcher._target_=os.system", "_target_ would run code"),
    ("hydra.run.dir=../..", "'hydra.run.dir=../..' is refused"),
    ("hydra/job_logging=none", "is refused"),
    ("hydra/launcher=joblib", "but for hydra/launcher with -m"),
    ("-m seed=1,2 hydra.sweep.dir=x", "is refused"),
    ("-m seed=1,2 hydra/sweeper=optuna", "is refused"),
    # a sweep
    ("-m algo=pg,tpro", "job 2 of 2: algo must be"),
    ("-m algo=pg,trpo optimizer=adam", "job 2 of 2: optimizer belongs to reinforce and pg"),
    ("-m algo.delta=0.1,0.01,-1 seed=1,2", "job 5 of 6: algo.delta must be a number > 0, got -1"),
    ("-m env=CartPole,Nope-v0", "job 2 of 2: env must be"),
    ("-m seed=interval(0,1)", "an interval can't be listed"),
    ("-m seed=range(3,3)", "the sweep is empty"),
    ("-m seed=range(0,1,0.0)", "seed=range(0,1,0.0)"),
    ("-m seed=range(100000000)", "more than 10,000 jobs"),
    ("-m seed=range(1000) num_envs=range(1,1000)", "more than 10,000 jobs"),
    ("-m seed=glob(*)", "glob is for a choice of files"),
    ("-m sweep.jobs=1,2", "sweep.jobs is of the whole sweep"),
    ("-m resume=x", "leave out -m"),
    ("-m seed=1,2 seed=3", "seed is given twice"),
]  # fmt: skip


def split(words: str) -> list[str]:
    """Words at blanks, except inside braces."""
    parts = words.split(" ")
    return [words] if "{" in words and not words.startswith("-") else parts


ANSWER = "import sys; from rl_natgrad.config.command import parse_or_exit; parse_or_exit(sys.argv[1:])"


def python(code: str, *argv: str, cwd=None, **env: str) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])} | env
    command = [sys.executable, "-c", code, *argv]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, encoding="utf-8", timeout=60)


@pytest.mark.parametrize("words, part", REFUSED, ids=[words for words, _ in REFUSED])
def test_malformed(words, part, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.parse_or_exit(split(words))
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and part in err, err
    assert list(tmp_path.iterdir()) == []


def test_malformed_in_a_process_of_its_own(tmp_path):
    done = python(ANSWER, "-m", "seed=1,-1", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_never_possible_is_not_resumed(tmp_path, monkeypatch, capsys):
    tree = compose.load(["solver=woodbury"]).model_dump(mode="json")
    tree["fisher"]["name"] = "kl_hessian"
    record = json.dumps({"config": tree, "outcome": "failed"})
    (tmp_path / "run.json").write_text(record)
    assert run(monkeypatch, f"resume={tmp_path}") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "run.json: solver=woodbury needs a Fisher with rows: fisher must be gauss_newton or" in err
    assert (tmp_path / "run.json").read_text() == record


def test_train():
    asked = cli.parse(["algo=npg", "total_steps=1e6"])
    words = ["algo=npg", "total_steps=1e6"]
    assert asked == cli.NewRun(words, compose.load(words))
    assert cli.parse([]).config == compose.load([])
    assert isinstance(cli.parse(["resume=null"]), cli.NewRun)


def test_resume_keeps_the_other_words_for_the_run_that_is_resumed():
    asked = cli.parse(["total_steps=2e5", "resume=runs/a b/x", "algo.delta=-1"])
    assert asked == cli.Resume("runs/a b/x", ["total_steps=2e5", "algo.delta=-1"])


def test_cfg_prints_what_load_gives():
    tree = yaml.safe_load(cli.parse(["--cfg", "job", "algo=pg"]))
    assert compose.validate(tree) == compose.load(["algo=pg"])
    assert "solver" not in tree and tree["resume"] is None
    part = yaml.safe_load(cli.parse(["-c", "job", "-p", "env", "env=Pendulum"]))
    assert part == {"env": compose.load(["env=Pendulum"]).env.model_dump()}


# sweeps


def test_a_sweep_is_the_product_in_hydras_order():
    asked = cli.parse(["-m", "algo=pg,npg", "total_steps=10", "seed=range(3)"])
    assert isinstance(asked, cli.Multirun)
    assert [job.overrides for job in asked.jobs] == [
        ["algo=pg", "total_steps=10", "seed=0"],
        ["algo=pg", "total_steps=10", "seed=1"],
        ["algo=pg", "total_steps=10", "seed=2"],
        ["algo=npg", "total_steps=10", "seed=0"],
        ["algo=npg", "total_steps=10", "seed=1"],
        ["algo=npg", "total_steps=10", "seed=2"],
    ]
    assert [(job.config.algo.name, job.config.seed) for job in asked.jobs] == list(
        itertools.product(["pg", "npg"], range(3)))
    assert asked.config == asked.jobs[0].config


@pytest.mark.parametrize("word, expected", [
    ("seed=1,2", ["seed=1", "seed=2"]),
    ("seed=choice(1,2)", ["seed=1", "seed=2"]),
    ("seed=range(1,6,2)", ["seed=1", "seed=3", "seed=5"]),
    ("seed=sort(3,1,2)", ["seed=1", "seed=2", "seed=3"]),
    ("algo.delta=range(0.25,1,0.25)", ["algo.delta=0.25", "algo.delta=0.5", "algo.delta=0.75"]),
    ("policy.hidden=[64,64],[32]", ["policy.hidden=[64,64]", "policy.hidden=[32]"]),
    ("solver=glob(c*)", ["solver=cg", "solver=cholesky"]),
    ("algo=glob(*,exclude=*pg)", ["algo=ppo", "algo=reinforce", "algo=trpo"]),
    ("env=CartPole,Taxi-v4", ["env=CartPole", "env=Taxi-v4"]),
    ("runs_dir='a,b','c d'", ["runs_dir='a,b'", "runs_dir='c d'"]),
    ("seed=3", ["seed=3"]),
])  # fmt: skip
def test_each_kind_of_sweep(word, expected):
    assert [job.overrides for job in cli.parse(["-m", word]).jobs] == [[one] for one in expected]


def test_hydra_would_expand_the_same():
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    sweep = ["algo=pg,npg", "seed=range(2)", "total_steps=1e5", "policy.hidden=[8],[8,8]", "runs_dir='a,b',c"]
    [batch] = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(sweep), None)
    ours = [[line.replace("1e5", "100000.0") for line in job.overrides] for job in cli.parse(["-m", *sweep]).jobs]
    assert ours == batch


def test_multirun_keeps_the_launcher_apart():
    launcher = ("hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1")
    asked = cli.parse(["--multirun", *launcher, "seed=1,2"])
    assert asked.launcher == launcher
    assert asked.overrides == ["seed=1,2"] and len(asked.jobs) == 2


def test_multirun_of_one_job():
    assert [job.overrides for job in cli.parse(["-m"]).jobs] == [[]]
    with pytest.raises(ConfigError, match=r"^algo must be"):
        cli.parse(["-m", "algo=x"])


# help


def test_help_has_a_line_for_every_file_and_every_common_key():
    text = cli.parse(["algo=nonsense", "--help"])
    for group, names in compose.choices().items():
        assert f"\n{group}=…" in text
        for name in names:
            title = next(line for line in (compose.config_dir() / group / f"{name}.yaml").read_text().splitlines()
                         if not line.startswith("# @"))
            assert any(line.split()[0] == name and line.split()[1] == title.split()[1]
                       for line in text.splitlines() if line.startswith("  "))
    for key in ("seed=0", "total_steps=100_000", "eval.episodes=20", "algo.delta=0.01", "sweep.jobs=null"):
        assert f"\n  {key} " in text
    assert text.count(PROGRAM) == 4 and "--cfg job" in text and max(map(len, text.splitlines())) <= 110


def test_help_examples_are_accepted():
    for words in EXAMPLES:
        cli.parse([word.strip("'") for word in words.split()])


@pytest.mark.parametrize("option, part", [
    ("--help", "usage:"), ("-h", "usage:"), ("--version", "rl_natgrad 0."), ("--cfg=job", "seed: 0"),
])  # fmt: skip
def test_help_and_version_exit_0(option, part, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.parse_or_exit([option])
    out, err = capsys.readouterr()
    assert not stopped.value.code and part in out and err == ""
    assert list(tmp_path.iterdir()) == []


def test_the_package_says_what_there_is(capsys):
    assert package.main([]) == 0 and package.main(["--help"]) == 0
    out, err = capsys.readouterr()
    doors = ("train", "evaluate", "export", "compare", "watch")
    assert err == "" and all(f"python -m rl_natgrad.{door}" in out for door in doors)
    assert package.main(["algo=trpo"]) == 2
    assert capsys.readouterr().err.startswith("error: 'algo=trpo' is for one of these; write python -m rl_")


def unread(module, *words):
    """Exit code and standard error of a program whose output goes to a pipe that nobody reads, in ASCII."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-u", "-m", module, *words]
    ascii = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60, env=ascii)
    os.close(write)
    return done.returncode, done.stderr


@pytest.mark.parametrize("door", ["", ".train", ".evaluate", ".export", ".compare"])
def test_a_reader_that_has_left_is_no_error(door):
    assert unread(f"rl_natgrad{door}", "--help") == (0, "")


def test_a_training_nobody_reads_is_finished_and_compared(tmp_path):
    words = ["env=CartPole", "num_envs=4", "horizon=64", "total_steps=700", "eval.episodes=1"]
    assert unread("rl_natgrad.train", *words, f"runs_dir={tmp_path}") == (0, "")
    assert outcome(only_run(tmp_path)) == "finished"
    assert unread("rl_natgrad.compare", str(tmp_path))[0] == 0
    assert list(tmp_path.rglob("summary.md"))


def test_help_is_readable_in_ascii():
    done = python(ANSWER, "--help", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "usage:" in done.stdout and done.stderr == ""


def test_nothing_heavy_is_imported():
    code = """
import sys
from rl_natgrad.config.command import parse_or_exit
for words in (["--help"], ["algo=npg"], ["-m", "seed=1,2"], ["algo.max_kl=1"]):
    try:
        parse_or_exit(words)
    except SystemExit:
        pass
    print(words, sorted({"torch", "gymnasium", "numpy", "matplotlib"} & {*sys.modules}))
"""
    assert python(code).stdout.count("] []\n") == 4


def test_no_optimizer_imports_torchs_compiler():
    code = """
import sys, torch
from rl_natgrad.training.build import OPTIMIZERS
options = {"adamp": {"betas": (0.9, 0.999), "eps": 1e-8, "delta": 0.1, "tensors": []}, "nag": {"momentum": 0.9}}
for name, rule in OPTIMIZERS.items():
    theta = torch.nn.Parameter(torch.zeros(3))
    theta.grad = torch.ones(3)
    rule([theta], lr=0.1, **options.get(name, {})).step()
    print(name, bool(theta.any()), "torch._dynamo" in sys.modules)
"""
    assert python(code).stdout.count(" True False\n") == 9


def test_a_hydra_callback_on_the_command_line_does_not_run(tmp_path):
    words = ["hydra.callbacks.x._target_=os.mkdir", "+hydra.callbacks.x.path=made"]
    done = python(ANSWER, *words, cwd=tmp_path)
    assert done.returncode == 2 and list(tmp_path.iterdir()) == []
