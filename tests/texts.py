"""What README and the map show: programs and files."""

import re

from whole_runs import ROOT


def program(word: str) -> str:
    """The one block of Python in rl_natgrad/README.md that has this word."""
    return block("rl_natgrad/README.md", "python", word)


def block(page: str, language: str, word: str) -> str:
    """The one block of that language on a page that has this word."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    (found,) = [text for text in blocks if word in text]
    return found
