"""compare: what it finds, groups, refuses, says and writes, on runs whose numbers are known."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from fake_runs import write_run
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from rl_natgrad.compare import main, plot
from rl_natgrad.compare.options import Options, parse
from rl_natgrad.compare.report import markdown_table
from rl_natgrad.compare.runs import comparisons, read_runs
from rl_natgrad.compare.summary import compare, leaders, normalised, ranking


def labels(root: Path, *by: str) -> dict[str, list[int]]:
    """Label → seeds, over all environments."""
    groups, _ = comparisons(read_runs(Options([root]))[0], list(by))
    return {
        label: sorted(run.config["seed"] for run in runs)
        for members in groups.values()
        for label, runs in members.items()
    }


def summary(root: Path, **options):
    """The comparison of the only environment below `root`."""
    chosen = Options([root], **options)
    ((env, members),) = comparisons(read_runs(chosen)[0], chosen.by)[0].items()
    return compare(env, members, chosen)


def said(capsys, *argv: object) -> tuple[int, str, str]:
    code = main([str(word) for word in argv])
    return code, *capsys.readouterr()


@pytest.fixture
def undrawn(monkeypatch):
    """No curves.png, which takes most of the time."""
    monkeypatch.setattr(plot, "curves", lambda *_: None)


@pytest.fixture
def two_algos(tmp_path):
    for seed in range(3):
        write_run(tmp_path, "trpo", seed, returns=[100 + seed, 300, 480 + seed])
        write_run(tmp_path, "pg", seed, returns=[50, 100 + seed, 150])
    return tmp_path


# ---- grouping ------------------------------------------------------------------------------------------------


def test_groups_are_what_differs_but_the_seed(two_algos):
    assert labels(two_algos) == {"pg": [0, 1, 2], "trpo": [0, 1, 2]}


def test_a_differing_key_joins_the_label_of_its_algorithm_only(tmp_path):
    write_run(tmp_path, "trpo", 0, name="a", config={"algo.delta": 0.01})
    write_run(tmp_path, "trpo", 0, name="b", config={"algo.delta": 0.03})
    write_run(tmp_path, "pg", 0, config={"optimizer.lr": 0.001})
    assert set(labels(tmp_path)) == {"trpo delta=0.01", "trpo delta=0.03", "pg"}


def test_bookkeeping_does_not_tell_groups_apart(tmp_path):
    for seed, (key, value) in enumerate(
        [("runs_dir", "a"), ("total_steps", 9), ("eval.every", 5), ("sweep.jobs", 2), ("critic.overlap", False)]
    ):
        write_run(tmp_path, seed=seed, config={key: value})
    assert labels(tmp_path) == {"trpo": [0, 1, 2, 3, 4]}


def test_keys_that_end_alike_are_written_out(tmp_path):
    for index in range(4):
        config = {"optimizer.lr": index // 2 + 1, "critic.lr": index % 2 + 1}
        write_run(tmp_path, "pg", 0, name=f"r{index}", config=config)
    assert "pg optimizer.lr=1 critic.lr=2" in labels(tmp_path)


@pytest.fixture
def optimizers(tmp_path):
    for name, extra in (("adam", {"betas": [0.9, 0.999]}), ("sgd", {}), ("momentum", {"momentum": 0.9})):
        config = {"optimizer.name": name, "optimizer.lr": len(name) / 100}
        write_run(tmp_path, "pg", name=name, config=config | {f"optimizer.{k}": v for k, v in extra.items()})
    write_run(tmp_path, "npg", config={"solver.name": "cg", "solver.damping": 0.1})
    return tmp_path


@pytest.mark.parametrize("by", [[], ["algo", "optimizer"]])
def test_a_choice_is_the_label_and_not_all_that_follows_from_it(optimizers, by):
    chosen = {f"pg optimizer={name}" for name in ("adam", "sgd", "momentum")}
    assert set(labels(optimizers, *by)) == chosen | {"npg"}


def test_a_key_that_was_changed_within_a_choice_is_in_the_label(optimizers):
    config = {"optimizer.name": "adam", "optimizer.lr": 1, "optimizer.betas": [0.9, 0.999]}
    write_run(optimizers, "pg", name="other", config=config)
    assert {"pg optimizer=adam lr=0.04", "pg optimizer=adam lr=1", "pg optimizer=sgd"} < set(labels(optimizers))


def test_by_a_section_that_some_lack_names_these_by_their_algorithm(optimizers):
    write_run(optimizers, "trpo", config={"solver.name": "cg"})
    expected = {"optimizer=adam", "optimizer=sgd", "optimizer=momentum", "npg", "trpo"}
    assert set(labels(optimizers, "optimizer")) == expected
    assert set(labels(optimizers, "solver")) == {"solver=cg", "pg"}


def test_groups_come_in_the_order_and_under_the_names_that_are_given(two_algos, capsys):
    code, _out, _ = said(capsys, two_algos, "groups=trpo,pg", "labels=TRPO,Adam", "out=" + str(two_algos / "out"))
    assert code == 0
    rows = (two_algos / "out" / "summary.csv").read_text().splitlines()[1:]
    assert [row.split(",")[1] for row in rows] == ["TRPO", "Adam"]
    said(capsys, two_algos, "groups=pg", "out=" + str(two_algos / "one"))
    assert "trpo" not in (two_algos / "one" / "summary.md").read_text()


@pytest.mark.parametrize("by", ["algo", "algo.name"])
def test_by_a_key_pools_the_rest_and_says_so(tmp_path, by):
    write_run(tmp_path, "trpo", 0, config={"algo.delta": 0.01})
    write_run(tmp_path, "trpo", 1, config={"algo.delta": 0.03})
    groups, notes = comparisons(read_runs(Options([tmp_path]))[0], [by])
    assert list(groups["CartPole-v1"]) == ["trpo"] and "differ in algo.delta" in notes[0]
    assert set(labels(tmp_path, "delta")) == {"delta=0.01", "delta=0.03"}


def test_a_seed_that_was_run_twice_counts_once(tmp_path):
    write_run(tmp_path, seed=0, returns=[1, 2], name="first")
    write_run(tmp_path, seed=0, returns=[1, 2, 3], name="second")
    write_run(tmp_path, seed=1, returns=[1, 2, 3], name="third")
    runs = read_runs(Options([tmp_path]))[0]
    groups, notes = comparisons(runs, [])
    assert [run.path.name for run in groups["CartPole-v1"]["trpo"]] == ["second", "third"]
    assert len(notes) == 1 and "first" in notes[0]


def test_by_env_compares_within_each_environment(tmp_path):
    for env in ("CartPole-v1", "Acrobot-v1"):
        for algo in ("pg", "trpo"):
            write_run(tmp_path, algo, env=env)
    groups, _ = comparisons(read_runs(Options([tmp_path]))[0], ["env"])
    assert {env: list(members) for env, members in groups.items()} == {
        "Acrobot-v1": ["pg", "trpo"],
        "CartPole-v1": ["pg", "trpo"],
    }


def test_by_versions_tells_versions_apart(tmp_path):
    write_run(tmp_path, seed=0, versions={"gymnasium": "1.4.0"})
    write_run(tmp_path, seed=1, versions={"gymnasium": "1.4.1"})
    assert set(labels(tmp_path, "versions")) == {"trpo gymnasium=1.4.0", "trpo gymnasium=1.4.1"}


# ---- refusals ------------------------------------------------------------------------------------------------


def refuse(capsys, *argv: object) -> str:
    code, out, err = said(capsys, *argv)
    *notes, error = err.splitlines()
    assert code == 2 and out == "" and error.startswith("error: ")
    assert all(line.startswith("note: ") for line in notes)
    return err


def test_mixed_environments_are_refused(tmp_path, capsys):
    write_run(tmp_path, env="CartPole-v1")
    write_run(tmp_path, env="CartPole-v0")
    assert "CartPole-v0 (1), CartPole-v1 (1); name fewer folders, or write by=env" in refuse(capsys, tmp_path)
    assert not (tmp_path / "compare").exists()


def test_mixed_versions_are_refused(tmp_path, capsys):
    write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=1, versions={"gymnasium": "1.5.0"})
    assert "mix versions of gymnasium: 1.4.0, 1.5.0" in refuse(capsys, tmp_path)


def test_other_libraries_may_differ(tmp_path):
    write_run(tmp_path, seed=0, versions={"mujoco": "4.0"})
    write_run(tmp_path, seed=1, versions={"torch": "2.13.1"})
    assert labels(tmp_path) == {"trpo": [0, 1]}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["byy=algo"], "unknown option 'byy'; did you mean 'by'?"),
        (["--metrics=seed", "by=algo"], "unknown option '--metrics=seed'; write metric=seed"),
        (["--xyzzy"], "unknown option '--xyzzy'; see --help"),
        (["qqq=3"], "unknown option 'qqq'; there are by, x, metric, threshold, out, failed, unfinished, groups, "),
        (["by=algo", "by=seed"], "by is given twice"),
        (["x=steps,time"], "x must be steps, updates or seconds, got 'time'"),
        (["out="], "out must be a folder, or a file that ends in .png, .pdf or .svg, got ''"),
        (["format=gif"], "format must be png, pdf or svg, got 'gif'"),
        (["size=3"], "size must be width × height in inches, 0.5 to 100 each, such as 3.2x2.4, got '3'"),
        (["size=0x4"], "size must be width × height"),
        (["out=a.pdf", "format=svg"], "format is told by the file's name, a.pdf"),
        (["groups=trpo", "labels=a,b"], "labels names 2 groups and groups=trpo 1"),
        (["labels=a"], "labels names 1 groups and groups=… 0; labels= needs groups="),
        (["groups=trop"], "unknown group 'trop'; did you mean 'trpo'?"),
        (["x=time"], "x must be steps, updates or seconds, got 'time'"),
        (["threshold=nan"], "threshold must be a finite number, got 'nan'"),
        (["failed=1"], "failed must be true or false"),
        (["by="], "by must be text of at least one character, got ''"),
        (["by=alg"], "did you mean 'algo'?"),
        (["metric=rollout/retrun"], "did you mean metric=rollout/return?"),
    ],
)
def test_a_wrong_option_is_one_line(tmp_path, capsys, argv, expected):
    write_run(tmp_path)
    assert expected in refuse(capsys, tmp_path, *argv)


def test_wrong_folders_are_one_line(tmp_path, capsys):
    assert "no such folder" in refuse(capsys, tmp_path / "none")
    assert "no runs" in refuse(capsys, tmp_path)
    assert "name at least one folder" in refuse(capsys)


def test_runs_that_share_no_range_are_refused(tmp_path, capsys):
    write_run(tmp_path, seed=0, returns=[1.0])
    write_run(tmp_path, seed=1, returns=[None, None, 3.0])
    assert "share no range of steps" in refuse(capsys, tmp_path)


def test_a_folder_with_an_equals_sign_is_a_folder(tmp_path):
    (tmp_path / "by=x").mkdir()
    assert parse([str(tmp_path / "by=x"), "by=algo"]).by == ["algo"]


# ---- unfinished, failed, half-written ------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_unfinished_and_failed_runs_are_named(two_algos, capsys):
    running = write_run(two_algos, "trpo", 3, outcome="running", returns=[1.0, 2.0, 3.0])
    failed = write_run(two_algos, "trpo", 4, outcome="failed")
    code, out, err = said(capsys, two_algos)
    assert code == 0
    assert f"unfinished (running, 300 of 300 steps): {running}" in err
    assert f"failed after 300 of 300 steps, left out (failed=true keeps it): {failed}: ValueError: broke" in err
    row = next(line for line in out.splitlines() if line.startswith("trpo"))
    assert row.split()[1] == "4"
    _, out, _ = said(capsys, two_algos, "failed=true", "unfinished=false")
    row = next(line for line in out.splitlines() if line.startswith("trpo"))
    assert row.split()[1] == "4"


@pytest.mark.usefixtures("undrawn")
def test_half_written_and_unreadable_files_do_no_harm(two_algos, capsys):
    half = next(two_algos.glob("*/trpo/*s0*")) / "metrics.jsonl"
    half.write_bytes(half.read_bytes()[:-30])
    (next(two_algos.glob("*/trpo/*s1*")) / "run.json").write_text('{"con')
    (next(two_algos.glob("*/trpo/*s2*")) / "metrics.jsonl").unlink()
    code, out, err = said(capsys, two_algos)
    assert code == 0 and "unreadable, left out" in err and "no rollout/return yet, left out" in err
    assert "environment steps 100 to 200" in out  # the half-written run covers no more


@pytest.mark.parametrize("metric", ["line_search/tries", "search/tries"])
def test_an_older_tag_and_todays_are_one_metric(tmp_path, capsys, metric):
    for seed, tag in enumerate(("search/tries", "line_search/tries")):
        file = write_run(tmp_path, seed=seed, returns=[1.0, 2.0, 3.0]) / "metrics.jsonl"
        file.write_text(file.read_text().replace("rollout/return", tag))
    code, out, err = said(capsys, tmp_path, f"metric={metric}")
    assert code == 0 and err == ""
    assert next(line for line in out.splitlines() if line.startswith("trpo")).split()[1] == "2"
    capsys.readouterr()
    assert "did you mean metric=line_search/tries?" in refuse(capsys, tmp_path, "metric=search/trie")


def test_a_run_far_short_of_the_others_is_left_out_and_named(tmp_path, capsys):
    for seed in range(3):
        write_run(tmp_path, seed=seed, returns=[100.0] * 100)
    short = write_run(tmp_path, seed=3, returns=[1.0] * 10, outcome="stopped")
    near = write_run(tmp_path, seed=4, returns=[1.0] * 95, outcome="running")
    runs, notes = read_runs(Options([tmp_path]))
    assert short not in [run.path for run in runs] and near in [run.path for run in runs]
    assert f"unfinished (stopped, 1,000 of 1,000 steps), left out (unfinished=true keeps it): {short}" in notes
    assert summary(tmp_path).range[1] == 9_500
    runs, notes = read_runs(Options([tmp_path], unfinished=True))
    assert len(runs) == 5
    assert any("nothing after these 1,000 steps is compared" in note and str(short) in note for note in notes)
    assert summary(tmp_path, unfinished=True).range[1] == 1_000
    assert len(read_runs(Options([tmp_path], unfinished=False))[0]) == 3


def test_while_none_has_finished_all_are_compared(tmp_path):
    for seed, n in enumerate((3, 30)):
        write_run(tmp_path, seed=seed, returns=[1.0] * n, outcome="running")
    assert len(read_runs(Options([tmp_path]))[0]) == 2


def test_a_finished_run_that_shortens_the_range_is_named(tmp_path):
    write_run(tmp_path, seed=0, returns=[1.0] * 10)
    short = write_run(tmp_path, seed=1, returns=[1.0] * 2)
    assert read_runs(Options([tmp_path]))[1] == [f"nothing after 200 steps is compared, as {short} ends there"]


# ---- numbers -------------------------------------------------------------------------------------------------


def test_numbers_by_hand(tmp_path):
    """Two runs, at 0 … 100 %: 0, 100, 100 and 0, 50, 100; final over the last tenth of steps 100 to 300."""
    write_run(tmp_path, seed=0, returns=[0, 100, 100])
    write_run(tmp_path, seed=1, returns=[0, 50, 100])
    told = summary(tmp_path, threshold=60.0)
    (group,) = told.groups
    assert told.range == (100.0, 300.0)
    np.testing.assert_allclose(group.finals, [100.0, 95.0])  # the second rises from 90 to 100 over the last tenth
    np.testing.assert_allclose(group.areas, [75.0, 50.0])
    assert group.iqm == 97.5 and group.interval == (95.0, 100.0)
    assert group.reached == 2
    assert group.to_reach == {"steps": 250.0, "updates": 2.5, "seconds": 1.25}


def test_runs_that_never_reach_the_threshold_are_not_dropped(tmp_path):
    for seed, end in enumerate([500, 500, 20]):
        write_run(tmp_path, seed=seed, returns=[10, 15, end])
    (group,) = summary(tmp_path, threshold=475.0).groups
    assert group.reached == 2 and group.to_reach["steps"] == 300.0
    write_run(tmp_path, seed=3, returns=[10, 15, 20])
    (group,) = summary(tmp_path, threshold=475.0).groups
    assert group.reached == 2 and group.to_reach["steps"] == np.inf


@pytest.mark.parametrize("threshold, shown", [(400.0, True), (6000.0, False), (-900.0, False)])
def test_a_threshold_far_from_the_curves_does_not_press_them_flat(two_algos, threshold, shown):
    figure = Figure()
    plot.draw(figure, [summary(two_algos, threshold=threshold)], ["steps"], "return")
    (panel,) = figure.axes
    low, high = panel.get_ylim()
    assert 0 < low < 50 and 482 < high < 550
    assert ("threshold" in [text.get_text() for text in panel.get_legend().get_texts()]) == shown


def test_threshold_is_gymnasiums_where_it_has_one(two_algos):
    assert summary(two_algos).threshold == 475
    assert summary(two_algos, metric="policy/tag_3").threshold is None


def test_no_interval_for_one_seed(tmp_path):
    for algo in ("pg", "trpo"):
        write_run(tmp_path, algo)
    told = summary(tmp_path)
    assert [group.interval for group in told.groups] == [None, None]
    assert [pair.interval for pair in told.pairs] == [None]


def test_each_axis_has_its_own_range(two_algos):
    for path in two_algos.glob("*/pg/*"):
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            row["time/elapsed"] /= 10
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="share no range of seconds"):
        summary(two_algos, x=["seconds"])  # pg ended before trpo's first update
    assert summary(two_algos, x=["updates"]).range == (1.0, 3.0)


def test_an_evaluation_row_without_a_clock_has_the_last_ones_time(tmp_path):
    path = write_run(tmp_path)
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"step": 300, "update": 3, "eval/return": 500.0}\n')
    (run,) = read_runs(Options([tmp_path], metric="eval/return"))[0]
    assert {axis: list(x) for axis, x in run.x.items()} == {"steps": [300], "updates": [3], "seconds": [1.5]}


# ---- what is written -----------------------------------------------------------------------------------------


def points(path: Path) -> dict[str, list[tuple[int, float]]]:
    told = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in told.Scalars(tag)] for tag in told.Tags()["scalars"]}


def test_files_and_aggregates(two_algos, capsys):
    code, out, _ = said(capsys, two_algos, "x=steps,updates,seconds")
    assert code == 0 and "caution: under 5 seeds in pg (n = 3), trpo (n = 3)" in out
    written = two_algos / "CartPole-v1" / "compare"
    assert (written / "curves.png").read_bytes().startswith(b"\x89PNG")
    with open(written / "summary.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["group"], row["n"], row["seeds"]) for row in rows] == [
        ("pg", "3", "0 1 2"),
        ("trpo", "3", "0 1 2"),
    ]
    assert "| trpo | 3 |" in (written / "summary.md").read_text()
    assert "pg > trpo" in (written / "summary.md").read_text()
    assert [path.parent.name for path in sorted(written.rglob("events.*"))] == ["pg", "trpo"]  # one run per group
    assert out.endswith(f"watch   tensorboard --logdir {written}\n")
    lines = points(written / "trpo")
    middle, low, high = (dict(lines[f"rollout/return{end}"]) for end in ("", "/low", "/high"))
    assert min(middle) == 100 and max(middle) == 300 and middle[300] == 481
    assert middle[100] == 101 and (low[100], high[100]) == (100, 102)


def evaluated(root, ends):
    """Runs whose final evaluation is at slightly different steps."""
    for algo, values in ends.items():
        for seed, value in enumerate(values):
            path = write_run(root, algo, seed, returns=[1.0] * (3 + seed))
            with open(path / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"step": 300 + 101 * seed, "update": 3 + seed, "eval/return": value}) + "\n")


def test_what_is_known_once_is_compared_and_drawn_as_bars(tmp_path, capsys):
    evaluated(tmp_path, {"pg": [1.0, 2.0, 9.0, 3.0, 4.0], "trpo": [11.0, 12.0, 19.0, 13.0, 14.0]})
    code, out, _ = said(capsys, tmp_path, "metric=eval/return")
    assert code == 0 and "known once, at environment steps 300 to 704" in out and "area" not in out
    trpo = next(line for line in out.splitlines() if line.startswith("trpo"))
    assert trpo.split()[1:4] == ["5", "13.8", "13.0"]  # of 11 12 13 14 19: the mean; the mean of the middle three
    assert "0.00 [0.00, 0.00]" in out  # pg > trpo
    assert list((tmp_path / "CartPole-v1" / "compare").glob("curves.png"))


def test_columns_with_numbers_are_to_the_right_and_others_are_not():
    rows = [["64", "TRPO", "−85.3 [−87.6, −84.3]", "–", "whole"], ["128", "PG 2", "not reached", "0.5", "64 of 9"]]
    marks = markdown_table(["n", "of", "IQM", "P", "batch"], rows).splitlines()[1]
    assert marks == "| :-- | :-- | --: | --: | --: |"


def test_several_environments_have_a_profile(tmp_path, capsys):
    for env, scale in (("CartPole-v1", 1), ("Acrobot-v1", 100)):
        for algo, end in (("pg", 1.0), ("trpo", 2.0)):
            for seed in range(2):
                write_run(tmp_path, algo, seed, env=env, returns=[0.0, end * scale, end * scale])
    code, _out, _ = said(capsys, tmp_path, "by=env", "format=svg,pdf", "size=3x2", "title=Two tasks")
    names = {path.name for path in (tmp_path / "compare").iterdir() if path.is_file()}
    assert code == 0
    assert names >= {"curves.svg", "curves.pdf", "profile.svg", "profile.pdf", "summary.csv", "summary.md"}
    assert "Two tasks" in (tmp_path / "compare" / "profile.svg").read_text() or "<svg" in (
        tmp_path / "compare" / "profile.svg").read_text()
    text = (tmp_path / "compare" / "summary.md").read_text()
    assert "| Acrobot-v1 | 280 to 300 | 2 | 100.0 [100.0, 100.0] | 200.0 [200.0, 200.0] |" in text
    assert "| pg > trpo | 0.00 [0.00, 0.00] | 0.00 [0.00, 0.00] |" in text
    assert "not ranked, with under 5 seeds: pg and trpo on Acrobot-v1; pg and trpo on CartPole-v1." in text
    groups, _ = comparisons(read_runs(Options([tmp_path]))[0], ["env"])
    told = [compare(env, members, Options([tmp_path])) for env, members in groups.items()]
    shares = {label: [list(s) for s in strata] for label, strata in normalised(told).items()}
    assert shares == {"pg": [[0, 0], [0, 0]], "trpo": [[1, 1], [1, 1]]}


def test_groups_of_few_seeds_are_not_ranked(tmp_path):
    for algo, end, seeds in (("pg", 1.0, 5), ("npg", 1.0, 5), ("trpo", 2.0, 4)):
        for seed in range(seeds):
            write_run(tmp_path, algo, seed, returns=[0.0, end, end])
    groups, _ = comparisons(read_runs(Options([tmp_path]))[0], [])
    told = [compare(env, members, Options([tmp_path])) for env, members in groups.items()]
    word, sentence = ranking(told)
    assert word == "npg and pg" and leaders(told[0]) == ["trpo"]
    assert sentence.startswith("npg and pg cannot be told apart on CartPole-v1 (1 [1, 1]); not ranked")
    assert sentence.endswith(": trpo on CartPole-v1.")


def test_all_may_be_level_with_the_highest_and_yet_not_with_each_other(tmp_path):
    for algo, ends in (("npg", [9, 9, 9, 0, 0]), ("pg", [1] * 5), ("trpo", [4] * 5)):
        for seed, end in enumerate(ends):
            write_run(tmp_path, algo, seed, returns=[0.0, end, end])
    _, sentence = ranking([summary(tmp_path)])
    assert sentence.startswith("npg ends highest on CartPole-v1")
    assert sentence.endswith(", not told apart from pg and trpo.")


def test_out_may_be_the_figure_alone(two_algos, capsys):
    file = two_algos / "fig.pdf"
    code, out, _ = said(capsys, two_algos, f"out={file}")
    assert code == 0 and file.read_bytes().startswith(b"%PDF") and f"wrote   {file}" in out
    assert not (two_algos / "CartPole-v1" / "compare").exists()
    before = file.read_bytes()
    code, out, _ = said(capsys, two_algos, f"out={file}")
    assert f"rewrote {file}" in out and file.read_bytes() == before


def test_the_runs_of_a_sweep_are_found_by_its_folder(two_algos, capsys):
    folder = two_algos / "sweeps" / "s1"
    folder.mkdir(parents=True)
    runs = [str(path) for path in sorted(two_algos.glob("CartPole-v1/trpo/*"))]
    jobs = [{"run": run} for run in runs[:2]] + [{"run": None}, {"run": "elsewhere/" + runs[2].split("/", 3)[3]}]
    (folder / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    found = [run.path for run in read_runs(Options([folder]))[0]]
    assert [str(path) for path in found] == runs  # the last one by its place below the sweeps' folder
    code, _out, _ = said(capsys, folder)
    assert code == 0 and (folder / "compare" / "curves.png").exists()


@pytest.mark.usefixtures("undrawn")
def test_the_band_is_a_custom_chart(two_algos, capsys):
    said(capsys, two_algos)
    told = EventAccumulator(str(two_algos / "CartPole-v1" / "compare" / "pg")).Reload()
    page = Layout.FromString(told.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    (series,) = page.category[0].chart[0].margin.series
    assert all(told.SummaryMetadata(tag).summary_description for tag in told.Tags()["scalars"])
    assert (series.value, series.lower, series.upper) == (
        "rollout/return",
        "rollout/return/low",
        "rollout/return/high",
    )


@pytest.mark.usefixtures("undrawn")
def test_a_second_call_neither_counts_nor_keeps_the_first(two_algos, capsys):
    out = two_algos / "compare"
    for line in ("iqm", "low", "high"):  # as versions before 0.2 left them
        (out / "trpo" / line).mkdir(parents=True)
        (out / "trpo" / line / "events.out.tfevents.0").touch()
    (out / "compare.json").write_text(json.dumps({"aggregates": ["trpo"]}))
    first, second = (said(capsys, two_algos, f"out={out}")[1] for _ in range(2))
    assert second.split("wrote")[0] == first.split("wrote")[0]
    assert f"rewrote {out}/summary.csv, summary.md" in second
    assert len(points(out / "trpo")["rollout/return"]) == 200 == len(points(out / "pg")["rollout/return"])
    assert len(list((out / "trpo").rglob("events.*"))) == 1
    said(capsys, two_algos / "CartPole-v1" / "pg", f"out={out}")
    assert not list((out / "trpo").rglob("events.*")) and list((out / "pg").rglob("events.*"))


@pytest.mark.usefixtures("undrawn")
def test_no_band_for_one_seed(tmp_path, capsys):
    write_run(tmp_path)
    said(capsys, tmp_path, f"out={tmp_path / 'out'}")
    assert list(points(tmp_path / "out" / "trpo")) == ["rollout/return"]


def test_a_write_that_fails_is_one_line_with_path_and_errno(two_algos, capsys):
    (two_algos / "file").write_text("")
    code, _, err = said(capsys, two_algos, f"out={two_algos / 'file'}")
    assert code == 1 and err == f"error: {two_algos / 'file'}: File exists [errno 17]\n"


def test_help_names_every_option(capsys):
    code, out, _ = said(capsys, "--help")
    assert code == 0
    assert all(f"\n  {key}" in out for key in ("by", "x", "metric", "threshold", "out", "failed", "unfinished"))
