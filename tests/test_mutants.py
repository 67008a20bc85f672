"""A seeded bug in the maths is caught: each mutant of the source makes a test of its part fail."""

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

SEARCH = "if finite and trial_loss < loss and kl <= delta:"
FAILED = "return Step(theta, loss, 0.0, max_backtracks + 1, False, 0.0, finite)"
DELTA = "delta = reward + gamma * np.where(terminated, 0.0, value[1:]) - value[:-1]"

MUTANTS = {  # name: (file, what it says, what the mutant says, tests that must notice)
    "kl direction swapped": (
        "algos/problem.py", "head.kl(self.lin.z, z)", "head.kl(z, self.lin.z)", "steps"),
    "ratio against the new log-prob": (
        "algos/problem.py", "- self.log_prob)", "- self.policy.head.log_prob(z, self.batch.action).detach())",
        "problem"),
    "surrogate raised, not lowered": ("algos/problem.py", "loss = -(ratio", "loss = (ratio", "problem"),
    "surrogate without a mean": (
        "algos/problem.py", "-(ratio * self.batch.adv).mean()", "-(ratio * self.batch.adv).sum()", "problem"),
    "fisher subset shrinks the gradient": (
        "algos/problem.py", "return loss.item(), self.lin.vjp(torch.autograd.grad(loss, z)[0])",
        "u = torch.autograd.grad(loss, z)[0]\n        if self.rows is not None:\n"
        "            u[[n for n in range(len(u)) if n not in self.rows]] = 0\n"
        "        return loss.item(), self.lin.vjp(u)",
        "fisher"),
    "entropy bonus with the wrong sign": (
        "algos/problem.py", "loss = loss - self.entropy_coef", "loss = loss + self.entropy_coef", "problem"),
    "search keeps its last trial": ("optim/steps.py", FAILED, FAILED.replace("(theta,", "(trial,"), "steps"),
    "search logs the rejected trial's kl": (
        "optim/steps.py", FAILED, FAILED.replace("0.0, max", "kl, max"), "steps"),
    "search accepts 1.5 δ": ("optim/steps.py", SEARCH, SEARCH.replace("<= delta", "<= 1.5 * delta"), "steps"),
    "search ignores the surrogate": ("optim/steps.py", SEARCH, "if finite and kl <= delta:", "steps"),
    "search ignores kl": ("optim/steps.py", SEARCH, "if finite and trial_loss < loss:", "steps"),
    "search takes infinities": ("optim/steps.py", SEARCH, SEARCH.replace("finite and ", ""), "steps"),
    "search moves theta in place": (
        "optim/steps.py", "theta.add(step, alpha=fraction)", "theta.add_(step, alpha=fraction)", "steps"),
    "search shrinks twice": ("optim/steps.py", "fraction = shrink**j", "fraction = shrink ** (2 * j)", "steps"),
    "npg has trpo's accept test": (
        "optim/steps.py", "    if is_finite(trial, trial_loss, kl):",
        "    if is_finite(trial, trial_loss, kl) and trial_loss < loss:", "steps"),
    "npg takes infinities": (
        "optim/steps.py", "    if is_finite(trial, trial_loss, kl):", "    if True:", "steps"),
    "radius off by √2": ("optim/steps.py", "math.sqrt(2 * delta / dFd)", "math.sqrt(delta / dFd)", "steps"),
    "radius of the damped fisher": (
        "optim/steps.py", "dFd = float(d @ fisher.mv(d))", "dFd = float(d @ fisher.mv(d) + 0.1 * d @ d)",
        "steps"),
    "nan radius becomes 1": ("optim/steps.py", "< math.inf else math.nan", "< math.inf else 1.0", "steps"),
    "step goes uphill": ("optim/steps.py", "solve(fisher, -grad)", "solve(fisher, grad)", "steps"),
    "failed solve is used": (
        "optim/steps.py", "if solution.ok else math.nan", "if True else math.nan", "steps"),
    "predicted kl of the full step": (
        "optim/steps.py", "delta * (step.fraction * length / beta) ** 2", "delta", "steps"),
    "cg buffers aliased": ("optim/solvers.py", "b.clone(), b.clone()", "*[b.clone()] * 2", "solvers"),
    "cg overwrites its right side": ("optim/solvers.py", "b.clone(), b.clone()", "b, b.clone()", "solvers"),
    "cg restarts each iteration": ("optim/solvers.py", "p.mul_(rr / rr_old).add_(r)", "p.copy_(r)", "solvers"),
    "cg damping is absolute": (
        "optim/solvers.py", "lam = damping * float(p @ Ap) / bb", "lam = damping", "solvers"),
    "cg follows negative curvature": (
        "optim/solvers.py", "ok = 0 < pAp < float", "ok = pAp < float", "solvers"),
    "woodbury forgets a factor": ("optim/solvers.py", "(c - R.T @ y) / lam if", "(c - R.T @ y) if", "solvers"),
    "pinv inverts noise": ("optim/solvers.py", "w > rtol * w[-1].clamp(min=0)", "w > 0", "solvers"),
    "fisher without 1/N": ("optim/fisher.py", "self.metric(Jv) / len(Jv)", "self.metric(Jv)", "fisher"),
    "fisher rows without 1/√N": ("optim/fisher.py", " / len(J) ** 0.5", "", "fisher"),
    "fisher without its metric": ("optim/fisher.py", "self.metric(Jv) / len(Jv)", "Jv / len(Jv)", "fisher"),
    "outer product of summed scores": (
        "optim/fisher.py", "GaussNewton(lin.along(b), lambda v: v,",
        "GaussNewton(lin.along(b), lambda v: v.mean(0).expand_as(v),", "fisher"),
    "signals of a product not those of its weights": (
        "policy/mlp.py", "self._signals = lin.signals(_raw(b))",
        "self._signals = lin.signals(_raw(torch.ones_like(b)))", "networks"),
    "gaussian kl averaged over dimensions": (
        "policy/heads.py", "(variance_ratio + quadratic - 1)).sum(-1)",
        "(variance_ratio + quadratic - 1)).mean(-1)",
        "heads"),
    "multidiscrete kl averaged over dimensions": (
        "policy/heads.py", "self._parts(z, z_new))", "self._parts(z, z_new)) / len(self.nvec)", "heads"),
    "bernoulli log-prob averaged over dimensions": (
        "policy/heads.py", "logsigmoid(z), logsigmoid(-z)).sum(-1)", "logsigmoid(z), logsigmoid(-z)).mean(-1)",
        "heads"),
    "categorical metric without p pᵀ": (
        "policy/heads.py", "return pv - p * pv.sum(-1, keepdim=True)", "return pv", "heads"),
    "gaussian metric of σ, not log σ": (
        "policy/heads.py", "torch.full_like(z[..., self.n :], 2)]", "2 * torch.exp(-2 * z[..., self.n :])]",
        "heads"),
    "gumbel noise forgotten": ("policy/heads.py", "(z + noise).argmax(-1)", "z.argmax(-1)", "heads"),
    "log σ has no gradient": (
        "policy/networks.py", "u[:, -self.n :].sum(0)", "0 * u[:, -self.n :].sum(0)", "steps"),
    "log σ is not in the step": (
        "policy/networks.py", "_append(self.net.forward(theta[: -self.n], x), theta[-self.n :])",
        "_append(self.net.forward(theta[: -self.n], x), theta[-self.n :] * 0)", "steps networks"),
    "backward pass forgets φ′": ("policy/mlp.py", "            s *= slope\n", "", "networks"),
    "forward mode forgets earlier layers": (
        "policy/mlp.py", "ds += dh @ W.T", "pass", "networks"),
    "pg learns from what is not finite": ("algos/pg.py", "if is_finite(theta, loss, kl):", "if True:", "algos"),
    "pg's optimizer remembers nan": ("algos/pg.py", "self.load(before)", "pass", "algos"),
    "pg steps from its own old theta": ("algos/pg.py", "self.param.copy_(problem.theta)", "pass", "algos"),
    "nag without nesterov": ("optim/first_order.py", "nesterov=True, ", "", "algos"),
    "critic forgets its return scale": (
        "algos/critic.py", 'self.moments = state["moments"].copy()', "pass", "critic"),
    "critic forgets as its units change": ("algos/critic.py", "if self.moments[0] > 0:", "if False:", "critic"),
    "critic's bias stays in old units": (
        "algos/critic.py", ".add_((old_mean - mean) / std)", "", "critic"),
    "critic keeps a random start's offset": ("algos/critic.py", "if self.moments[0] > 0:", "if True:", "critic"),
    "critic's rate does not fall": ("algos/critic.py", "(1 - k / steps)", "1", "critic"),
    "critic forgets its optimizer": ("algos/critic.py", 'self.regress.load(state["fit"])', "pass", "critic"),
    "critic keeps nan": (
        "algos/critic.py", 'if bool(theta.isfinite().all()) and math.isfinite(info["critic/loss"]):',
        "if True:",
        "critic"),
    "time limit is termination": ("rollout/returns.py", DELTA, DELTA.replace("terminated", "done"), "returns"),
    "bootstrap with V(s) of the step before": (
        "rollout/returns.py", DELTA, DELTA.replace("value[1:]", "value[:-1]"), "returns"),
    "terminal state bootstrapped": (
        "rollout/returns.py", DELTA, DELTA.replace("np.where(terminated, 0.0, value[1:])", "value[1:]"),
        "returns"),
    "advantages leak across a truncation": (
        "rollout/returns.py", "lam * ~done", "lam * ~terminated", "returns"),
    "cut episode counts as ended": (
        "rollout/returns.py", "known = np.logical_or.accumulate(done[::-1], 0)[::-1]",
        "known = np.ones_like(done)",
        "returns"),
    "reset rows are learned from": (
        "rollout/collector.py", "valid = ~np.concatenate([self.prev_done[None], done[:-1]])",
        "valid = np.ones_like(done)", "collector"),
    "done is forgotten between rollouts": (
        "rollout/collector.py", "[self.prev_done[None], done[:-1]]", "[done[:1] & False, done[:-1]]",
        "collector"),
    "returns run on into the next episode": (
        "rollout/collector.py", "float(sums[t, i] - s)", "float(sums[t, i])", "collector"),
    "clipped action stored": (
        "rollout/collector.py", "action[t] = a\n", "action[t] = a.clip(-1, 1)\n", "collector"),
    "advantage normalised without epsilon": (
        "training/iteration.py", "(adv.std() + 1e-8)", "adv.std()", "training probes"),
    "advantage divided by its variance": (
        "training/iteration.py", "(adv.std() + 1e-8)", "(adv.var() + 1e-8)", "training"),
    "observations normalised before they are scored": (
        "training/iteration.py", "flat = rollout.obs",
        "getattr(self.policy.observe, 'update', len)(rollout.obs[0])\n        flat = rollout.obs", "training"),
}  # fmt: skip


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
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *files],
        cwd=folder, env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    failed = re.findall(r"^FAILED (\S+)", done.stdout, re.M)
    return done.returncode, failed[0] if failed else done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_without_a_mutation_all_of_it_passes(tmp_path):
    copy_package(tmp_path)
    tests = sorted({name for *_, names in MUTANTS.values() for name in names.split()})
    code, said = run(tmp_path, " ".join(tests))
    assert code == 0, said


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name, tmp_path):
    file, old, new, tests = MUTANTS[name]
    copy_package(tmp_path)
    path = tmp_path / "rl_natgrad" / file
    source = path.read_text()
    assert source.count(old) == 1, f"{file} says {old!r} {source.count(old)} times"
    path.write_text(source.replace(old, new))
    code, said = run(tmp_path, tests)
    assert code == 1, f"survived: {name}" if code == 0 else said  # 1: a test failed; 2 and more: pytest did
    print(f"{name}: {said}")
