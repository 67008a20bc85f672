"""A seeded bug in the maths is caught: each mutant of the source makes a test of its part fail."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rl_natgrad

TESTS = Path(__file__).parent
PACKAGE = Path(rl_natgrad.__file__).parent

# name: (file, and the function where the file says it more than once; what it says; what the mutant says; the
# tests that must notice).  A short text outlives a rewriting of what is around it.
MUTANTS = {
    # the step
    "kl direction swapped": ("algos/problem.py", "kl(self.lin.z, z)", "kl(z, self.lin.z)", "steps"),
    "surrogate without a mean": ("algos/problem.py", "batch.adv).mean()", "batch.adv).sum()", "problem"),
    "search accepts 1.5 δ": ("optim/steps.py", "kl <= delta", "kl <= 1.5 * delta", "steps"),
    "search ignores the surrogate": ("optim/steps.py", "loss < problem.loss_old", "True", "steps"),
    "failed search keeps its last trial": (
        "optim/steps.py", "return stay(problem, max_backtracks + 1, finite)",
        "return Step(trial, loss, kl, 0.0, max_backtracks + 1, False, finite)", "steps"),
    "npg has trpo's accept test": (
        "optim/steps.py arrive", "if is_finite(", "if loss < problem.loss_old and is_finite(", "steps"),
    "radius off by √2": ("optim/steps.py", "2 * delta / dFd", "delta / dFd", "steps"),
    "radius of the damped fisher": ("optim/steps.py", "float(d.x @", "float(0.1 * d.x @ d.x + d.x @", "steps"),
    "ppo clips the side that it should not": ("algos/ppo.py", "adv.sign() > clip", "-adv.sign() > clip", "ppo"),
    "ppo's ratio is left out": ("algos/ppo.py", "adv, clip) * ratio)", "adv, clip))", "ppo"),
    # Fisher and solvers
    "fisher without 1/N": ("optim/fisher.py", "(Jv) / len(Jv)", "(Jv)", "fisher"),
    "fisher without its metric": ("optim/fisher.py", "self.metric(Jv)", "Jv", "fisher"),
    "newton's radius is of its hessian": (
        "algos/problem.py", "self._mean_of(gauss_newton(self._sample)) if self.curvature is hessian else", "",
        "likelihood"),
    "negative curvature is followed": ("optim/solvers.py _conjugate_gradients", "pAp <= 0", "False", "solvers"),
    "cg buffers aliased": (
        "optim/solvers.py _conjugate_gradients", "b.clone(), b.clone()", "*[b.clone()] * 2", "solvers"),
    "cg damping is absolute": ("optim/solvers.py", "damping * float(p @ Ap) / bb", "damping", "solvers"),
    # heads and networks
    "gaussian kl averaged over dimensions": ("policy/heads.py DiagGaussian.kl", ".sum(-1)", ".mean(-1)", "heads"),
    "categorical metric without p pᵀ": ("policy/heads.py", " - p * pv.sum(-1, keepdim=True)", "", "heads"),
    "log σ has no gradient": ("policy/networks.py", "u[:, -self.n :].sum(0)", "0 * u[0, -self.n :]", "steps"),
    "forbidden actions are in the fisher": (
        "policy/masked.py", "lin.z.masked_fill(~allowed, FORBIDDEN)", "lin.z", "masked"),
    # advantages
    "time limit is termination": ("rollout/returns.py", "where(terminated,", "where(done,", "returns"),
    "bootstrap with the V before": ("rollout/returns.py", "0.0, value[1:]", "0.0, value[:-1]", "returns"),
    "terminal state bootstrapped": ("rollout/returns.py", "where(terminated, 0.0", "where(False, 0.0", "returns"),
    "advantages leak across a truncation": ("rollout/returns.py", "lam * ~done", "lam * ~terminated", "returns"),
    # the collector
    "reset rows are learned from": ("rollout/collector.py", "valid = ~resets", "valid = ~resets | 1", "collector"),
    "done is forgotten between rollouts": (
        "rollout/collector.py", "self.prev_done[None]", "self.prev_done[None] & False", "collector"),
    "clipped action stored": ("rollout/collector.py", "action[t] = a", "action[t] = a.clip(-1, 1)", "collector"),
}  # fmt: skip


def mutated(place: str, old: str, new: str) -> str:
    """The file with `new` for `old`, which it says exactly once: in the function, where the place names one."""
    file, _, function = place.partition(" ")
    source = (PACKAGE / file).read_text()
    lines, node = source.splitlines(keepends=True), ast.parse(source)
    first, last = 0, len(lines)
    for name in filter(None, function.split(".")):
        (node,) = [each for each in node.body if getattr(each, "name", None) == name]
        first, last = node.lineno - 1, node.end_lineno
    before, text, after = ("".join(part) for part in (lines[:first], lines[first:last], lines[last:]))
    assert text.count(old) == 1, f"{place} says {old!r} {text.count(old)} times"
    return before + text.replace(old, new) + after


def copy_package(folder: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, folder / "rl_natgrad", ignore=ignore)
    shutil.copytree(TESTS, folder / "tests", ignore=ignore)
    for name in ("configs", "pyproject.toml", "README.md"):
        source = TESTS.parent / name
        if source.exists():
            (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)


def run(folder: Path, tests: str) -> tuple[int, str]:
    """pytest's exit code on some of the copied package's tests, and what failed first."""
    files = [f"tests/test_{name}.py" for name in tests.split()]
    env = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-n", "0", "-p", "no:cacheprovider", *files],
        cwd=folder, env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "NameError" not in done.stdout, "the mutant speaks of what is not there"
    failed = re.findall(r"^FAILED (\S+)", done.stdout, re.M)
    return done.returncode, failed[0] if failed else done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_without_a_mutation_all_of_it_passes(tmp_path):
    copy_package(tmp_path)
    tests = sorted({name for *_, names in MUTANTS.values() for name in names.split()})
    code, said = run(tmp_path, " ".join(tests))
    assert code == 0, said


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_has_its_place(name):
    place, old, new, _ = MUTANTS[name]
    mutated(place, old, new)


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name, tmp_path):
    place, old, new, tests = MUTANTS[name]
    copy_package(tmp_path)
    (tmp_path / "rl_natgrad" / place.split()[0]).write_text(mutated(place, old, new))
    code, said = run(tmp_path, tests)
    assert code == 1, f"survived: {name}" if code == 0 else said  # 1: a test failed; 2 and more: pytest did
    print(f"{name}: {said}")
