"""TensorBoard's own pages, in a real headless Chromium: runs, hyperparameters, aggregates and their bands.

Needs the Debian packages chromium and chromium-driver, and selenium.
"""

from __future__ import annotations

import itertools
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from rl_natgrad.compare import main
from rl_natgrad.run import folder, logger

pytestmark = pytest.mark.slow
SEEDS, UPDATES = 5, 30

# Text, and drawn things, also inside the shadow roots that TensorBoard's page is made of.
WALK = """
const found = [];
const walk = (node, visit) => {
  visit(node);
  if (node.shadowRoot) walk(node.shadowRoot, visit);
  for (const child of node.childNodes) walk(child, visit);
};
"""
TEXT = WALK + "walk(document.body, n => { if (n.nodeType === 3) found.push(n.textContent.trim()); });"
SHAPES = (
    WALK + "walk(document.body, n => { if (n.tagName === 'path') found.push(n.getAttribute('class') || ''); });"
)


# Of the page TIME SERIES: each run's name, whether it is ticked, and its colour; the pinned cards' tags.
RUNS = """return [...document.querySelectorAll('runs-data-table tb-data-table-content-row')].map(row => [
  row.innerText.trim(), row.querySelector('input').checked,
  row.querySelector('.run-color-swatch').style.background,
]);"""
PINNED = """return [...document.querySelectorAll('metrics-pinned-view card-view')].map(
  card => card.innerText.split('\\n').slice(0, 2).join(''));"""


def train(root: Path, algo: str, seed: int, end: float, delta: float = 0.01) -> Path:
    """The files of a run, without the run."""
    path = folder.create(root, "CartPole-v1", algo, seed)
    config = {"seed": seed, "algo": {"name": algo, "delta": delta}, "env": {"id": "CartPole-v1"}, "total_steps": 1}
    record = folder.RunRecord.start(
        path, command="", config=config, threads=1, device="cpu", backend="sync", restorable=True
    )
    rng = np.random.default_rng(seed)
    log = logger.Logger(path)
    log.hparams(config, [f"algo={algo}", f"algo.delta={delta}"])
    for update in range(1, UPDATES + 1):
        row = {"rollout/return": (end + 15 * seed) * (1 - math.exp(-update / 8)) + rng.normal(0, 8)}
        row |= {"policy/kl_predicted": 0.01, "policy/kl": 0.01 + rng.normal(0, 1e-3)}
        row |= {"policy/gain_predicted": 0.06, "policy/gain": 0.05 + rng.normal(0, 1e-2)}
        log.write(row | {"time/elapsed": 0.1 * update}, 2048 * update, update)
    log.write({"eval/return": end}, 2048 * UPDATES, UPDATES)
    log.close("finished")
    record.finish("finished")
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for algo, end in (("pg", 300.0), ("trpo", 430.0)):
        for seed in range(SEEDS):
            train(root, algo, seed, end)
    assert main([str(root), f"out={root / 'compare'}"]) == 0
    return root


@contextmanager
def serving(*command: object) -> Iterator[str]:
    """The first address that python -m <command> prints, as long as it runs."""
    words = [sys.executable, "-m", *map(str, command)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            lines = iter(server.stdout.readline, "")
            yield next(found[0] for line in lines if (found := re.search(r"http://\S+", line)))
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def address(runs):
    with serving("tensorboard.main", "--logdir", runs, "--port", 0) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1500,1000"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def show(browser, address, tmp_path) -> Callable[[str, list[str], int], list[str]]:
    """Opens a page, waits until it holds all of `texts` and enough filled `bands`, and leaves a screenshot."""

    def show(page: str, texts: list[str], bands: int = 0) -> list[str]:
        browser.get("about:blank")  # otherwise a changed #page reloads nothing
        browser.get(f"{address}#{page}")
        deadline = time.monotonic() + 60
        while True:
            told = browser.execute_script(TEXT + "return found;")
            shapes = browser.execute_script(SHAPES + "return found;")
            missing = [text for text in texts if not any(text in line for line in told)]
            drawn = sum("area" in shape for shape in shapes)
            if not missing and drawn >= bands:
                break
            assert time.monotonic() < deadline, f"{page}: no {missing}, {drawn} bands"
            time.sleep(0.3)
        time.sleep(1)  # curves are drawn after their frames
        browser.save_screenshot(str(tmp_path / f"{page.split('&')[0]}.png"))
        return told

    return show


def test_scalars_show_every_run_and_the_aggregates_on_one_chart(show, runs):
    names = [path.parent.relative_to(runs).as_posix() for path in runs.rglob("run.json")]
    assert len(names) == 2 * SEEDS
    aggregates = [f"compare/{algo}" for algo in ("pg", "trpo")]
    show("scalars&tagFilter=rollout%2Freturn", [*names, *aggregates, "rollout/return"])


def test_hparams_show_what_differs_first(show):
    told = show("hparams", ["algo", "env", "eval/return", "CartPole-v1", "430.00", "300.00"])
    assert min(told.count("trpo"), told.count("pg")) >= SEEDS  # filters name them too
    assert told.index("seed") < told.index("env")  # the one differs, the other does not


def test_custom_scalars_show_predicted_against_realised_and_the_bands(show):
    titles = ["KL: predicted, realised", "surrogate gain: predicted, realised", "IQM and 95 % interval"]
    show("custom_scalars", titles, bands=2)


@pytest.mark.parametrize(
    ("algos", "deltas", "seeds"),
    [(["trpo"], [0.01], 3), (["pg", "npg", "trpo"], [0.01], 5), (["npg", "trpo"], [0.003, 0.01, 0.03], 10)],
    ids=["3", "15", "60"],
)
def test_watch_shows_all_runs_ticked_by_name_in_the_colour_of_their_group(browser, tmp_path, algos, deltas, seeds):
    said = {}
    for algo, delta, seed in itertools.product(algos, deltas, range(seeds)):
        train(tmp_path / "runs", algo, seed, 400 * delta**0.1, delta)
        group = f"{algo} delta={delta}" if len(deltas) > 1 else algo
        said[f"{group} s{seed}"] = group
    with serving("rl_natgrad.watch", tmp_path / "runs", "--port", 0) as address:
        browser.get(address)
        deadline = time.monotonic() + 60
        while True:
            rows = browser.execute_script(RUNS)
            pinned = browser.execute_script(PINNED)
            if {name for name, *_ in rows} == said.keys() and pinned == ["rollout/return", "eval/return"]:
                break
            assert time.monotonic() < deadline, (rows, pinned)
            time.sleep(0.3)
        time.sleep(2)  # curves are drawn after their frames
        browser.save_screenshot(str(tmp_path / "watch.png"))
    assert all(ticked for _, ticked, _ in rows)
    pairs = {(said[name], colour) for name, _, colour in rows}
    assert len(pairs) == len({colour for _, colour in pairs}) == len(set(said.values()))
