"""results/classic-control/README.md says what the runs say, whatever they say."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from fake_runs import learning_curve, write_run
from whole_runs import ROOT

from rl_natgrad.config import command as cli
from rl_natgrad.run.records import find_runs, read_rows

SEEDS = 6
ENDS = {"pg": 200.0, "npg": 300.0, "trpo": 450.0}


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import classic_control

    return classic_control


@pytest.fixture
def page(script, tmp_path, monkeypatch):
    """README.md of made-up runs: environment → algorithm → where its curves end."""

    def write(ends, drawn=False):
        if not drawn:  # which takes most of the time
            monkeypatch.setattr(script.plot, "curves", lambda *_: None)
        rng = np.random.default_rng(0)
        for env, algos in ends.items():
            for algo, end in algos.items():
                for seed in range(SEEDS):
                    curve = learning_curve(40, end + rng.normal(0, 3), rng)
                    write_run(tmp_path / "runs", algo, seed, env=env, returns=curve)
        script.write([tmp_path / "runs"], tmp_path / "out", ["python", "scripts/classic_control.py"])
        return (tmp_path / "out" / "README.md").read_text()

    return write


def sentence(text, axis):
    (found,) = re.findall(rf"^- (\*\*Over {axis}\*\*.*\.)$", text, re.MULTILINE)
    return found


def table(text, title):
    lines = next(part for part in text[text.index(title) :].split("\n\n") if part[0] == "|").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def test_the_verdict_follows_the_numbers(page):
    swapped = {"pg": 450.0, "npg": 300.0, "trpo": 200.0}
    text = page({"CartPole-v1": ENDS, "Acrobot-v1": swapped})
    for axis in ("environment steps", "policy updates", "seconds of training"):
        said = sentence(text, axis)
        assert re.search(r"TRPO ends highest on CartPole-v1 \(4\d\d\.\d \[4\d\d\.\d, 4\d\d\.\d\]\)", said)
        assert re.search(r"PG ends highest on Acrobot-v1 \(4\d\d\.\d \[", said)


def test_what_cannot_be_told_apart_is_said_so(page):
    text = page({"CartPole-v1": ENDS | {"npg": 450.0}, "Acrobot-v1": dict.fromkeys(ENDS, 300.0)})
    said = sentence(text, "environment steps")
    assert re.search(r"NPG and TRPO end highest on CartPole-v1 \(.*?\), where they cannot be told apart", said)
    assert re.search(r"PG, NPG and TRPO cannot be told apart on Acrobot-v1 \(\d", said)


def test_the_tables_are_the_runs(page, tmp_path):
    text = page({"CartPole-v1": ENDS})
    (row,) = table(text, "### At equal environment steps")
    assert (row["environment"], row["seeds"], row["steps"]) == ("CartPole-v1", "6", "3,610 to 4,000")
    for algo, name in (("pg", "PG"), ("npg", "NPG"), ("trpo", "TRPO")):
        finals = []
        for path in find_runs([tmp_path / "runs" / "CartPole-v1" / algo]):
            y = [row["rollout/return"] for row in read_rows(path)]
            grid = np.linspace(3610, 4000, 100_001)
            finals.append(np.interp(grid, np.arange(100, 4001, 100), y).mean())
        kept = sorted(finals)[1:-1]  # a quarter of 6, rounded down, from either end
        assert row[name].startswith(f"{np.mean(kept):.1f} [")
    assert row["P(TRPO > PG)"] == "1.00 [1.00, 1.00]"
    costs = table(text, "## What an update costs")
    assert costs == [{"environment": "CartPole-v1", "PG": "0.500", "NPG": "0.500", "TRPO": "0.500"}]


def test_chances_are_turned_the_right_way_round(page):
    text = page({"CartPole-v1": {"pg": 450.0, "npg": 300.0, "trpo": 200.0}})
    (row,) = table(text, "### At equal policy updates")
    said = [row[f"P({pair})"] for pair in ("TRPO > PG", "NPG > PG", "TRPO > NPG")]
    assert said == ["0.00 [0.00, 0.00]"] * 3


def test_a_threshold_that_is_not_reached_is_not_a_number(page):
    rows = table(page({"CartPole-v1": ENDS}), "## How soon")
    reached = {row["algorithm"]: (row["steps"], row["seeds that reach it"]) for row in rows}
    assert reached["PG"] == ("not reached", "0 of 6")
    assert rows[0]["threshold"] == "475"


def test_updates_of_different_size_are_not_called_equal(page, tmp_path):
    text = page({"CartPole-v1": ENDS})
    assert "an update takes 100 of them" in sentence(text, "policy updates")
    for seed in range(SEEDS):
        write_run(tmp_path / "runs", "pg", seed, env="Pendulum-v1", returns=[1.0, 2.0], steps_per_update=150)
    assert "an update takes" not in sentence(page({"Pendulum-v1": {"npg": 3.0}}), "policy updates")


def test_runs_that_are_left_out_and_few_seeds_are_said(page, script, tmp_path):
    write_run(tmp_path / "runs", "trpo", 99, env="CartPole-v1", outcome="failed")
    text = page({"CartPole-v1": ENDS})
    assert "failed after 300 of 300 steps, left out" in text
    assert "hints" not in text
    for path in find_runs([tmp_path / "runs" / "CartPole-v1" / "pg"])[:2]:
        (path / "run.json").unlink()
    script.write([tmp_path / "runs"], tmp_path / "out", ["again"])
    assert "Under 5 seeds: hints" in (tmp_path / "out" / "README.md").read_text()


def test_the_same_runs_give_the_same_page(page, script, tmp_path):
    text = page({"CartPole-v1": ENDS}, drawn=True)
    picture = (tmp_path / "out" / "curves.png").read_bytes()
    script.write([tmp_path / "runs"], tmp_path / "out", ["python", "scripts/classic_control.py"])
    assert (tmp_path / "out" / "README.md").read_text() == text
    assert (tmp_path / "out" / "curves.png").read_bytes() == picture
    assert str(tmp_path) not in text and "![curves](curves.png)" in text


def test_its_sweeps_are_120_runs_that_training_accepts(script):
    jobs = [job for words in script.sweeps(script.DEFAULTS) for job in cli.parse(words[3:]).jobs]
    cells = {(job.config.env.id, job.config.algo.name, job.config.seed) for job in jobs}
    assert len(jobs) == len(cells) == 4 * 3 * 10
    assert {job.config.env.id: job.config.total_steps for job in jobs} == script.BUDGET
    assert all(job.config.sweep.skip_finished for job in jobs)


def test_only_finished_runs_of_this_very_command_count(script, tmp_path):
    options = script.DEFAULTS | {"runs": str(tmp_path), "seeds": "3"}
    command = script.sweeps(options)[0]
    jobs = [job.config.model_dump(mode="json") for job in cli.parse(command[3:]).jobs]  # pg's come first
    expected = []
    for seed, outcome in ((0, "finished"), (1, "stopped"), (2, "finished")):
        for lr in (0.123, jobs[seed]["optimizer"]["lr"]):  # as it was under another default, and as it is
            path = write_run(tmp_path, "pg", seed, outcome=outcome, name=f"{seed}-{lr}")
            config = jobs[seed] | {"optimizer": jobs[seed]["optimizer"] | {"lr": lr}}
            (path / "run.json").write_text(json.dumps({"config": config, "outcome": outcome}))
        expected += [path] * (outcome == "finished")
    found, missing = script.trained(options)
    assert found == expected
    assert len(missing) == 4 * 3 * 3 - 2 and "pg on CartPole-v1, seed 1" in missing


@pytest.mark.parametrize(("codes", "expected", "written"), [
    ([0, 0, 0, 0], 0, True), ([0, 1, 0, 0], 1, True), ([0, 130], 130, False), ([2], 2, False),
])  # fmt: skip
def test_a_failed_run_is_told_and_a_stopped_sweep_ends_it(script, monkeypatch, tmp_path, codes, expected, written):
    run = write_run(tmp_path / "runs", "pg", 0)
    monkeypatch.setattr(script, "trained", lambda options: ([run], []))
    left = iter(codes)
    monkeypatch.setattr(script, "call", lambda command: next(left))
    assert script.main([f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'out'}"]) == expected
    assert not list(left)
    assert (tmp_path / "out" / "README.md").exists() == written


@pytest.mark.parametrize("words", [["step=3"], ["fast"], ["--seeds=2"]])
def test_a_wrong_option_is_one_line(script, capsys, words):
    assert script.main(words) == 2
    assert re.fullmatch(r"error: expected steps=….*\n", capsys.readouterr().err)


def test_a_signal_is_passed_on_once_and_waited_for(tmp_path):
    child = """import signal, sys, time
heard = []
signal.signal(signal.SIGINT, lambda *_: heard.append(1))
print("ready", flush=True)
while not heard: time.sleep(0.01)
time.sleep(0.2)
sys.exit(129 + len(heard))"""
    parent = "import sys, classic_control; sys.exit(classic_control.call([sys.executable, '-c', sys.argv[1]]))"
    process = subprocess.Popen(
        [sys.executable, "-c", parent, child], cwd=ROOT / "scripts", text=True, stdout=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(timeout=30) == 130


@pytest.mark.slow
def test_the_command_makes_the_page_and_again_from_the_same_runs(tmp_path):
    command = [sys.executable, ROOT / "scripts" / "classic_control.py", "steps=20_000", "seeds=2",
               f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'out'}"]  # fmt: skip
    assert subprocess.call(command, cwd=tmp_path) == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert len(find_runs([tmp_path / "runs"])) == 24
    assert "trains 24 runs" in text and "Pendulum-v1" in text
    assert subprocess.call(command, cwd=tmp_path) == 0
    assert len(find_runs([tmp_path / "runs"])) == 24  # nothing was trained twice
    assert (tmp_path / "out" / "README.md").read_text() == text

