"""What the texts point to is there, what they tell one to type is accepted, and indexes are complete."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from texts import program
from whole_runs import ROOT

import rl_natgrad
from rl_natgrad.config import command
from rl_natgrad.run.tags import TAGS, describe

FOLDERS = (".", "configs", "results", "rl_natgrad", "scripts")
PAGES = sorted(page for folder in FOLDERS for page in (ROOT / folder).glob("*.md" if folder == "." else "**/*.md"))
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page: Path) -> set[str]:
    """The names that its headings have in links, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def index(folder: str) -> str:
    return (ROOT / folder / "README.md").read_text()


def test_the_maps_loop_stops_at_475(capsys):
    exec(program("rl_natgrad.Training"), {})
    *rows, last = capsys.readouterr().out.splitlines()
    assert float(rows[-1].split()[1]) > 475 >= float(rows[-2].split()[1])
    assert int(rows[-1].split()[0]) < 100_000 and float(last) > 475


@each_page
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@each_page
def test_commands_are_accepted(page):
    text = page.read_text()
    for line in re.findall(r"^(?: {4})?python -m rl_natgrad\.train (.*)$", text, re.MULTILINE):
        if "…" not in line:
            command.parse(shlex.split(line, comments=True))
    for script in re.findall(r"python (scripts/[\w/]+\.py)", text):
        assert (ROOT / script).is_file(), script


def test_the_maps_program_fits_its_classifier():
    said: dict = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(program("likelihood"), said)
    model, x, y = said["model"], said["x"], said["y"]
    right = model.net.forward(model.theta, x).argmax(1) == y
    assert right.double().mean() > 0.95 and said["update"].info["policy/loss_after"] < 0.1


def test_indexes_name_every_page_and_script():
    assert {path.parent.name for path in (ROOT / "results").glob("*/README.md")} == set(
        re.findall(r"\]\(([\w-]+)/README\.md\)", index("results")))  # fmt: skip
    assert {path.name for path in (ROOT / "scripts").glob("*.py")} == set(
        re.findall(r"^\| \[(\w+\.py)\]\((?!questions)", index("scripts"), re.MULTILINE))  # fmt: skip
    assert {path.name for path in (ROOT / "scripts" / "questions").glob("*.py")} == set(
        re.findall(r"\[(\w+\.py)\]\(questions", index("scripts")))  # fmt: skip


def test_the_newest_version_of_the_changelog_is_the_packages():
    newest = re.findall(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert rl_natgrad.__version__ == newest


def test_the_table_of_tags_is_the_one_that_help_and_tensorboard_show():
    table = index("rl_natgrad").partition("## What is logged")[2].partition("\nA value that")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")][2:]
    assert [tuple(row) for row in rows] == [(names, tag.unit, tag.meaning) for names, tag in TAGS.items()]


def test_a_tag_that_shares_its_line_is_described_and_an_unknown_one_is_not():
    assert describe("policy/loss_after") == describe("policy/loss_before") != ""
    assert "Healthy: 0.4 to 1 times algo.delta" in describe("policy/kl")
    assert describe("mine/own") == ""
