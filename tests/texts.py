"""Programs that README shows."""

import re
import textwrap

from whole_runs import ROOT


def program(word: str) -> str:
    """The one block of Python in README that has this word."""
    blocks = re.findall(r"^ *```python\n(.*?)^ *```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if word in block]
    return textwrap.dedent(found)
