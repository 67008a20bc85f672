"""Environments that do what nobody expects: the run ends soon and says why, or goes on as if they had not."""

import json
import re
from pathlib import Path

import pytest
import whole_runs
from whole_runs import Fork, only_run, outcome, spawn

from rl_natgrad import evaluate
from rl_natgrad.envs import errors

BACKENDS = ["sync", "async", "split"]
TINY = ["num_envs=2", "horizon=8", "total_steps=16", "eval.episodes=2", "policy.hidden=[4]", "critic.hidden=[4]"]
WHERE = r"error: (environments:)?Misbehaving-v0, environment \d, (episode 0, )?step "
ODD = {  # and what is said of it
    "reward-huge": "reward is 1e+308, beyond",
    "reward-minus": "reward is -1e+308, beyond",
    "reward-int": "reward is an int beyond a float",
    "reward-ragged": "reward is list [[1], [1, 2]], expected a real number",
    "reward-shy": "reward is Shy (its repr raises), expected a real number",
    "mute": "raised Mute: (its str raises)",
    "surrogate": r"raised ValueError: \udc80",
    "interrupts": "raised KeyboardInterrupt",
    "generator": "raised GeneratorExit",
    "cancelled": "raised CancelledError",
}
CASES = [f"{where} {how}" for how in ODD for where in ("step", "reset") if where == "step" or "reward" not in how]
OTHERS = [pytest.param(how, b, marks=pytest.mark.slow) for b in ("async", "split") for how in CASES]


@pytest.fixture(autouse=True)
def nothing_said_before(monkeypatch):
    monkeypatch.setattr(errors, "_noted", set())


def words(id: str, backend: str, runs_dir: Path, *more: str) -> list[str]:
    return [
        f"env.id=environments:{id}-v0", "env.allow_import=true", f"env.backend={backend}",
        "env.timeout=30", *TINY, f"runs_dir={runs_dir}", *more,
    ]  # fmt: skip


def train(monkeypatch, id: str, backend: str, runs_dir: Path, *more: str) -> int:
    return whole_runs.run(monkeypatch, *words(id, backend, runs_dir, *more))


def kwargs(how: str) -> str:
    return f"env.kwargs={{max_episode_steps: 8, how: {how}}}"


@pytest.mark.parametrize(
    "how, backend",
    [*((how, "sync") for how in CASES), ("step reward-int", "async"), ("step mute", "split"), *OTHERS],
)
def test_odd_misbehaviour_is_named(how, backend, tmp_path, monkeypatch, capfd):
    code = train(monkeypatch, "Misbehaving", backend, tmp_path, kwargs(how))
    (line,) = capfd.readouterr().err.splitlines()
    assert code == 1 and re.match(WHERE + ("3: " if how.startswith("step") else "0: "), line), line
    assert ODD[how.split()[1]] in line, line
    path = only_run(tmp_path)
    record = json.loads((path / "run.json").read_text())
    assert record["outcome"] == "failed" and "Misbehaving-v0, environment" in record["error"]
    assert "EnvError" in (path / "traceback.txt").read_text()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("which", ["observation", "action"])
def test_a_space_with_nothing_in_it_is_refused(which, backend, tmp_path, monkeypatch, capfd):
    code = train(monkeypatch, "Empty", backend, tmp_path, f"env.kwargs={{which: {which}}}")
    (line,) = capfd.readouterr().err.splitlines()
    assert code == 2 and f"{which} space Box" in line and "nothing in it" in line, line
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("where", ["step", "reset"])
@pytest.mark.parametrize("how", ["no-grad", "float64", "numpy-raises", "threads"])
def test_what_an_environment_changes_of_torch_and_numpy_changes_no_run(how, where, tmp_path, monkeypatch, capfd):
    found = []
    for what in (how, "nothing-at-all"):
        given = [kwargs(f"{where} {what}"), "eval.every=1"]
        assert train(monkeypatch, "Misbehaving", "sync", tmp_path / what, *given) == 0
        assert capfd.readouterr().err == ""
        found.append(whole_runs.facts(only_run(tmp_path / what)))
    assert found[0] == found[1]


slow = pytest.mark.slow
TIME = 0.5  # seconds that a close may take here


@pytest.mark.parametrize(
    "how, says, backend",
    [
        ("raises", "close raised ValueError: the pole fell over", "sync"),
        ("exits", "close raised SystemExit: 3", "sync"),
        ("mute", "close raised Mute: (its str raises)", "sync"),
        ("sleeps", "close did not return within 0.5 s (env.timeout)", "sync"),
        ("raises", "close raised ValueError: the pole fell over", "async"),
        pytest.param("raises", "close raised ValueError: the pole fell over", "split", marks=slow),
        pytest.param("sleeps", "close did not return within 0.5 s (env.timeout)", "async", marks=slow),
        pytest.param("sleeps", "close did not return within 0.5 s (env.timeout)", "split", marks=slow),
        pytest.param("dies", "close ended its process (exit code 3)", "async", marks=slow),
        pytest.param("killed", "close ended its process (signal 9)", "async", marks=slow),
    ],
)
def test_a_close_that_goes_wrong_is_noted_once_and_changes_no_result(
    how, says, backend, tmp_path, monkeypatch, capfd
):
    more = [kwargs(f"close {how}"), "eval.every=1", f"env.timeout={TIME if how == 'sleeps' else 30}"]
    assert train(monkeypatch, "Misbehaving", backend, tmp_path, *more) == 0
    path, note = only_run(tmp_path), f"note    environments:Misbehaving-v0: {says}\n"
    assert capfd.readouterr().err == note and outcome(path) == "finished"
    errors._noted.clear()
    assert evaluate.main([f"run={path}", "episodes=2", "allow_import=true"]) == 0
    assert capfd.readouterr().err == note


def test_a_close_that_nothing_ends_ends_the_process_but_not_the_result(tmp_path):
    more = [kwargs("close stubborn"), f"env.timeout={TIME}"]
    process = Fork(*words("Misbehaving", "sync", tmp_path, *more), output=tmp_path / "output")
    _, err = process.communicate(60)
    assert (process.returncode, outcome(only_run(tmp_path))) == (0, "finished"), err
    assert err == "note    environments:Misbehaving-v0: close did not return within 0.5 s (env.timeout)\n"


def test_a_hang_that_nothing_ends_is_in_the_record(tmp_path):
    more = [kwargs("step stubborn"), f"env.timeout={TIME}"]
    process = Fork(*words("Misbehaving", "sync", tmp_path, *more), output=tmp_path / "output")
    _, err = process.communicate(60)
    record = json.loads((only_run(tmp_path) / "run.json").read_text())
    assert process.returncode == 1 and re.match(WHERE + "3: step did not return within 0.5 s", err), err
    assert record["outcome"] == "failed" and "step did not return" in record["error"]


@pytest.mark.parametrize(
    "how, says, backend",
    [
        ("exits", ": SystemExit: 3", "sync"),
        ("interrupts", ": KeyboardInterrupt", "sync"),
        ("sleeps", ", environment 0: constructor did not return within 0.7 s (env.timeout)", "sync"),
        ("exits", ": SystemExit: 3", "async"),
        ("killed", ", environment 0: its process died in constructor (signal 9)", "async"),
        ("sleeps", ", environment 0: constructor did not return within 0.7 s (env.timeout)", "split"),
        ("dies", ", environment 0: its process died in constructor (exit code 3)", "split"),
    ],
)
def test_a_constructor_that_hangs_or_exits_is_refused(how, says, backend, tmp_path, monkeypatch, capfd):
    for module in ("watchdog", "workers"):
        monkeypatch.setattr(f"rl_natgrad.envs.{module}.START", 0.7)
    more = [kwargs(f"constructor {how}"), f"env.timeout={TIME if how == 'sleeps' else 30}"]
    assert train(monkeypatch, "Misbehaving", backend, tmp_path, *more) == 2
    (line,) = capfd.readouterr().err.splitlines()
    line = line.replace("environment 1", "environment 0")  # the first of split's worker
    assert line == f"error: environments:Misbehaving-v0{says}" and not [*tmp_path.iterdir()]


@pytest.mark.parametrize("how", ["closes-stdout", "replaces-stdout", "closes-1"])
@pytest.mark.parametrize("where", ["constructor", "step", "close"])
def test_an_environment_that_takes_standard_output_away_is_not_noticed(how, where, tmp_path):
    """File 1 was the next file that was opened, and it got what was printed."""
    more = [kwargs(f"{where} {how}"), "checkpoint.every=1", "eval.every=1"]
    process = Fork(*words("Misbehaving", "sync", tmp_path, *more), output=tmp_path / "output")
    out, err = process.communicate(60)
    path = only_run(tmp_path)
    assert (process.returncode, err, outcome(path)) == (0, "", "finished")
    said = [line.split()[0] for line in out.splitlines()]
    assert said[:3] == ["run", "watch", "trpo"] and said[-3:] == ["done", "watch", "play"], out
    whole_runs.facts(path)  # which reads all of it


@pytest.mark.parametrize(
    "how, left, backend",
    [
        pytest.param(
            "leaves-a-thread", "ended without waiting for what an environment left running: thread left",
            "sync", marks=slow,
        ),
        ("leaves-a-process", "ended what an environment left running: process sleep", "sync"),
        pytest.param(
            "leaves-a-thread", "ended without waiting for what an environment left running: thread left",
            "async", marks=slow,
        ),
        pytest.param(
            "leaves-a-process", "ended what an environment left running: process sleep", "async", marks=slow
        ),
    ],
)  # fmt: skip
def test_what_an_environment_leaves_running_is_named_and_ended(how, left, backend, tmp_path):
    process = spawn(
        *words("Misbehaving", backend, tmp_path, kwargs(f"step {how}")),
        PYTHONPATH=f"{whole_runs.ROOT}:{whole_runs.ROOT / 'tests'}",
    )
    _, err = process.communicate(timeout=60)  # which waits for all that have its standard error
    assert (process.returncode, err, outcome(only_run(tmp_path))) == (0, f"note    {left}\n", "finished")
