"""Environments that do what nobody expects: the run ends soon and says why, or goes on as if they had not."""

import json
import re
from pathlib import Path

import pytest
import whole_runs
from whole_runs import only_run

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


def train(monkeypatch, id: str, backend: str, runs_dir: Path, *more: str) -> int:
    return whole_runs.run(
        monkeypatch, f"env.id=environments:{id}-v0", "env.allow_import=true", f"env.backend={backend}",
        "env.timeout=30", *TINY, f"runs_dir={runs_dir}", *more,
    )  # fmt: skip


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
