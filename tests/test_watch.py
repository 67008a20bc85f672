"""watch: the names under which TensorBoard shows runs, also of those that come later, and what it refuses."""

from __future__ import annotations

import pytest
from fake_runs import write_run

from rl_natgrad.watch import link, main

ACROBOT, DELTA = {"env": "Acrobot-v1"}, "algo.delta"


@pytest.mark.parametrize(
    ("runs", "named"),
    [
        ([("trpo", 3, {})], ["trpo s3"]),
        ([("trpo", 3, {"config": {DELTA: 0.02}}), ("trpo", 3, {"config": {DELTA: 0.1}})],
         ["trpo delta=0.02 s3", "trpo delta=0.1 s3"]),
        ([("trpo", 3, {"config": {DELTA: 0.02}}), ("pg", 0, {})], ["pg s0", "trpo s3"]),
        ([("trpo", 0, ACROBOT), ("trpo", 0, {})], ["Acrobot-v1 trpo s0", "CartPole-v1 trpo s0"]),
        ([("trpo", 3, {"name": "20261120-201530-s3-3f9c"}), ("trpo", 3, {"name": "20261121-201530-s3-0a1b"})],
         ["trpo s3 20261120-201530-s3-3f9c", "trpo s3 20261121-201530-s3-0a1b"]),
        ([("trpo", 0, {"config": {"policy.init": "a/b"}}), ("trpo", 0, {"config": {"policy.init": "c"}})],
         ["trpo init=a-b s0", "trpo init=c s0"]),
    ],
    ids=["alone", "a key", "algorithms", "environments", "the same twice", "a slash"],
)  # fmt: skip
def test_a_run_is_called_by_what_differs_and_the_clock_is_last(tmp_path, runs, named):
    written = [
        write_run(tmp_path / "runs", algo, seed, **{"name": f"run{n}"} | told)
        for n, (algo, seed, told) in enumerate(runs)
    ]
    (tmp_path / "view").mkdir()
    link([tmp_path / "runs"], tmp_path / "view")
    links = sorted((tmp_path / "view").iterdir())
    assert [path.name for path in links] == named
    assert {path.resolve() for path in links} == set(written)


def test_a_name_changes_when_a_run_comes_that_differs(tmp_path):
    runs, view = tmp_path / "runs", tmp_path / "view"
    view.mkdir()
    first = write_run(runs, config={DELTA: 0.02})
    known = link([runs], view)
    (runs / "CartPole-v1" / "trpo" / "begun").mkdir()  # its record is yet to be written
    assert link([runs], view, known).keys() == {first}
    second = write_run(runs, seed=1, config={DELTA: 0.1}, name="later")
    assert link([runs], view, known).keys() == {first, second}
    assert {path.name: path.resolve() for path in view.iterdir()} == {
        "trpo delta=0.02 s0": first, "trpo delta=0.1 s1": second,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "name at least one folder of runs, for example: python -m rl_natgrad.watch runs"),
        (["nowhere"], "no such folder: nowhere"),
        (["--port", "6007"], "name at least one folder of runs, for example: python -m rl_natgrad.watch runs"),
    ],
)
def test_wrong_commands_are_refused_in_one_line(capsys, words, line):
    assert main(words) == 2 and capsys.readouterr().err == f"error: {line}\n"
