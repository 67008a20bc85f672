"""Who imports whom (DESIGN.md): a directed acyclic graph, read from the source."""

import ast
import re
import sys
from pathlib import Path

import pytest

import rl_natgrad

PACKAGE, TESTS = Path(rl_natgrad.__file__).parent, Path(__file__).parent
# What each layer may import besides itself and the standard library.
LAYERS = {
    "optim": {"torch"},
    "policy": {"torch", "numpy", "gymnasium", "optim.fisher"},  # fisher: only the type of a linearisation
    "envs": {"numpy", "gymnasium", "envpool", "ale_py", "mujoco"},
    "rollout": {"torch", "numpy"},
    "algos": {"torch", "numpy", "optim"},
    "run": {"torch", "numpy", "rich", "safetensors", "tensorboard"},
}
MODULES = {path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}


def imports(path: Path) -> set[str]:
    """Every module that `path` imports, anywhere in it; those of this package without its name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name} has a relative import"
            known = MODULES.values()
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full.removeprefix("rl_natgrad.") in known else node.module)
    return {name.removeprefix("rl_natgrad.") for name in found}


def within(name: str, allowed: set[str]) -> bool:
    return any(name == top or name.startswith(f"{top}.") for top in allowed)


def test_all_layers_are_there():
    assert {module.split(".")[0] for module in MODULES.values()} >= set(LAYERS)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_what_it_may(layer):
    allowed = LAYERS[layer] | {layer, "rl_natgrad"} | set(sys.stdlib_module_names)
    outside = {
        (module, name)
        for path, module in MODULES.items()
        if module.split(".")[0] == layer
        for name in imports(path)
        if not within(name, allowed)
    }
    assert not outside


def test_policies_see_nothing_of_gymnasium_but_spaces():
    source = (PACKAGE / "policy" / "policy.py").read_text()
    names = {n for n in imports(PACKAGE / "policy" / "policy.py") if n.startswith("gymnasium")}
    assert names == {"gymnasium"} and "from gymnasium import spaces" in source


def test_imports_have_no_cycle():
    graph = {
        module: {name for name in imports(path) if name in MODULES.values() and name != module}
        for path, module in MODULES.items()
    }
    while leaves := [module for module, needs in graph.items() if not needs & set(graph)]:
        for module in leaves:
            del graph[module]
    assert not graph


def test_no_test_module_is_imported():
    """Nor by the programs that tests write out for a process of their own."""
    pattern = r"^\s*(?:from|import)\b.*\btest_\w+"
    found = {path.name: re.findall(pattern, path.read_text(), re.MULTILINE) for path in TESTS.glob("*.py")}
    assert not {name: lines for name, lines in found.items() if lines}
