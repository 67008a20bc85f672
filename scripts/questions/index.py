"""python scripts/questions/index.py: writes the table of claims into results/README.md, from every page's data.csv."""

import importlib
from collections.abc import Iterator
from types import ModuleType

from page import Claim
from runner import ROOT, from_csv, title

from rl_natgrad.compare.report import markdown_table
from rl_natgrad.run.files import write_atomically

PAGES = (
    "collapse", "invariance", "clock", "curvature", "which_fisher", "boosting", "batch_size", "optimizers",
    "denominator", "outlier",
)  # fmt: skip
BEGIN, END = "<!-- claims -->\n", "<!-- /claims -->\n"


def pages() -> Iterator[tuple[ModuleType, str]]:
    """Each question that has been answered, with its data.csv."""
    for name in PAGES:
        data = ROOT / "results" / name.replace("_", "-") / "data.csv"
        if data.exists():
            yield importlib.import_module(name), data.read_text()


def table() -> str:
    """A line per claim: whether it is true, and the number that says so."""
    rows = [
        [f"“{claim.claim}”", claim.verdict, claim.number, f"[{title(question)}]({title(question)}/README.md)"]
        for question, data in pages() for claim in claims(question, data)
    ]  # fmt: skip
    return markdown_table(["claim", "verdict", "measured", "page"], rows) + "\n"


def claims(question: ModuleType, data: str) -> list[Claim]:
    return list(question.answer(from_csv(data)[0]).claims)


def main() -> None:
    """Replaces what stands between the two marks."""
    file = ROOT / "results/README.md"
    before, rest = file.read_text().split(BEGIN)
    after = rest.split(END)[1]
    write_atomically(file, f"{before}{BEGIN}{table()}{END}{after}".encode())


if __name__ == "__main__":
    main()
