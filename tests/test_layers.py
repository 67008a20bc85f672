"""Who imports whom: the table in rl_natgrad/README.md, held against the source, and no circles."""

import ast
import re
import sys
from pathlib import Path

import pytest

import rl_natgrad

PACKAGE, TESTS = Path(rl_natgrad.__file__).parent, Path(__file__).parent
MODULES = {  # file → its dotted name below the package; a room's own __init__ is the room, the package's is ""
    path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")
    for path in PACKAGE.rglob("*.py")
}


def table() -> dict[str, set[str]]:
    """Room → what it may import besides itself and the standard library."""
    text = (PACKAGE / "README.md").read_text().partition("## Who may import whom")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([a-z]+) \| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE)[1:]  # not its head
    return {room: set(re.findall(r"\w+", f"{ours} {others}")) for room, ours, others in rows}


def room(module: str) -> str:
    """The room of a module; the doors and what else lies beside the rooms are one of their own."""
    return module.split(".")[0] if (PACKAGE / module.split(".")[0]).is_dir() and module else "doors"


def imports(path: Path) -> set[str]:
    """Every module that `path` imports, anywhere in it; those of this package without its name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name} has a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full.removeprefix("rl_natgrad.") in MODULES.values() else node.module)
    return {"" if name == "rl_natgrad" else name.removeprefix("rl_natgrad.") for name in found}


def circle(graph: dict[str, set[str]]) -> set[str]:
    """What is left when all that import nothing else of the graph have been taken away, again and again."""
    graph = {node: needs - {node} for node, needs in graph.items()}
    while leaves := [node for node, needs in graph.items() if not needs & graph.keys()]:
        for node in leaves:
            del graph[node]
    return set(graph)


def test_the_map_has_every_room():
    assert set(table()) == {room(module) for module in MODULES.values()} - {"version"}


@pytest.mark.parametrize("name", table())
def test_a_room_imports_only_what_it_may(name):
    allowed = table()[name] | {name} | set(sys.stdlib_module_names)
    inside = {module for module in MODULES.values() if room(module) == name}
    found = {what for path, module in MODULES.items() if module in inside for what in imports(path)}
    assert not {what for what in found if what.split(".")[0] not in allowed and what not in inside}


def test_policies_see_nothing_of_gymnasium_but_spaces():
    source = (PACKAGE / "policy" / "policy.py").read_text()
    names = {n for n in imports(PACKAGE / "policy" / "policy.py") if n.startswith("gymnasium")}
    assert names == {"gymnasium"} and "from gymnasium import spaces" in source


def test_neither_files_nor_rooms_import_in_a_circle():
    files = {module: imports(path) & set(MODULES.values()) for path, module in MODULES.items()}
    assert not circle(files)
    rooms: dict[str, set[str]] = {}
    for module, needs in files.items():
        rooms.setdefault(room(module), set()).update(map(room, needs - {"version"}))
    assert not circle(rooms)


def test_nobody_asks_what_a_part_can_do():
    asked = re.compile(r"\b(hasattr|getattr)\(")
    lines = [(path.name, line) for path in MODULES for line in path.read_text().splitlines() if asked.search(line)]
    assert not lines


def test_no_test_module_is_imported():
    """Nor by the programs that tests write out for a process of their own."""
    pattern = r"^\s*(?:from|import)\b.*\btest_\w+"
    found = {path.name: re.findall(pattern, path.read_text(), re.MULTILINE) for path in TESTS.glob("*.py")}
    assert not {name: lines for name, lines in found.items() if lines}
