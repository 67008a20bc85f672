"""results/batch_size: its experiment against what is known, and its page against data that says the opposite."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from whole_runs import ROOT

from rl_natgrad.algos.problem import Batch, likelihood
from rl_natgrad.policy.activations import Relu
from rl_natgrad.policy.heads import Categorical
from rl_natgrad.policy.mlp import MLP
from rl_natgrad.policy.model import Model


@pytest.fixture
def question(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "questions")
    import batch_size

    return batch_size


def some_fit(seed=0):
    """A small ReLU classifier in float64, and the same function with its layers rescaled."""
    rng = torch.Generator().manual_seed(seed)
    net = MLP((3, 4, 3), Relu, 1.0)
    theta = net.init(rng).double()
    x = torch.randn(40, 3, dtype=torch.float64, generator=rng)
    y = torch.randint(3, (40,), generator=rng)
    scaled = theta.clone()
    (W1, b1), (W2, _) = net.layers(scaled)
    for tensor, factor in ((W1, 7), (b1, 7), (W2, 1 / 7)):
        tensor.mul_(factor)
    return [likelihood(Model(net, Categorical(3), at), x, y) for at in (theta, scaled)]


def test_sharpness_is_the_hessians_and_the_rise_does_not_depend_on_the_parameters(question):
    p, scaled = some_fit()
    H = torch.autograd.functional.hessian(p.loss, p.theta)
    assert question.top_eigenvalue(p) == pytest.approx(float(torch.linalg.eigvalsh(H)[-1]), rel=1e-3)
    assert question.top_eigenvalue(scaled) > 2 * question.top_eigenvalue(p)
    rise = question.steepest_rise(p, 1e-3)
    assert question.steepest_rise(scaled, 1e-3) == pytest.approx(rise, rel=1e-8)
    rng = torch.Generator().manual_seed(1)
    for direction in torch.randn(10, p.theta.numel(), dtype=torch.float64, generator=rng):
        d = question.longest(p, direction * 1e-3, 1e-3)
        loss, kl = p.evaluate(p.theta + d)
        assert kl == pytest.approx(1e-3, rel=1e-6) and loss - p.loss_old < rise


def test_a_doubled_batch_has_the_same_direction_and_shuffled_advantages_none(question):
    with question.Training("algo=trpo", "env=CartPole", "num_envs=8", "horizon=64") as run:
        rollout = run.collector.collect(run.policy)
        found = question.halves(run, rollout, question.problem(run, run.batch(rollout)))
        assert [row["n"] for row in found] == [8, 32, 64, 256]
        assert all(row["same"] == pytest.approx(1, abs=1e-4) for row in found)
        batch = run.batch(rollout)
        twice = Batch(*(torch.cat([t, t]) for t in vars(batch).values()))
        g = question.problem(run, batch).grad()
        assert torch.allclose(question.problem(run, twice).grad(), g, atol=1e-6)
        rng, cosines = np.random.default_rng(0), []
        for _ in range(200):
            mixed = replace(batch, adv=batch.adv[torch.from_numpy(rng.permutation(len(batch.adv)))])
            other = question.problem(run, mixed).grad()
            cosines.append(question.cosine(g, other))
        assert abs(np.mean(cosines)) < 0.2


def test_the_parts_of_a_rollout_are_its_samples(question):
    with question.Training("algo=trpo", "env=CartPole", "num_envs=4", "horizon=60") as run:
        rollout = run.collector.collect(run.policy)
        parts = [question.part(rollout, t, 20, slice(e, e + 2)) for t in (0, 20, 40) for e in (0, 2)]
        assert sum(part.steps for part in parts) == rollout.steps
        assert (parts[1].obs[-1] == rollout.obs[20, 2:]).all()
        assert (parts[1].reward == rollout.reward[:20, 2:]).all()


def test_a_grid_goes_on_where_its_best_is_at_its_end(question):
    tried = lambda size: [{"mean": -((np.log10(size) - 0.5) ** 2)}]  # noqa: E731  the best is √10
    assert question.tuned((0.01, 0.03, 0.1), tried, "mean") == 3
    assert question.tuned((1, 3, 10), tried, "mean") == 3


def test_returns_of_all_batch_sizes_are_of_the_same_blocks(question):
    log = {"rollout/episodes": 1.0, "policy/kl": 0.1, "policy/step_norm": 1.0}
    rise = lambda batch: [(float(k * batch), log) for k in range(8192 // batch)]  # noqa: E731
    small, large = (question.curve(rise(batch), batch, 8192) for batch in (128, 2048))
    assert small["mean"] == pytest.approx(np.mean([2048 * k + 960 for k in range(4)]), rel=0.05)
    assert large["updates"] == 4 and large["start"] == 0 and small["start"] == 960


def invented(small_is_better, sharper, flat=1.0):
    """Rows in which batches of 128 return more or less, and a full batch is sharper or not."""
    rng, rows = np.random.default_rng(0), []
    for env in ("CartPole", "Pendulum"):
        for algo, size in (("trpo", 0.03), ("pg", 0.01)):
            for batch in (128, 2048):
                mean = 300 if (batch == 128) == small_is_better else 200
                common = {"part": "train", "env": env, "algo": algo, "batch": batch, "steps": 60_000, "size": size,
                          "start": 20.0, "updates": 60_000 // batch, "kl": 0.01}  # fmt: skip
                for stage, seeds in (("tune", (1000, 1001)), ("report", range(100, 110))):
                    common |= {"stage": stage, "end": mean + 9.0}
                    rows += [common | {"seed": seed, "mean": mean + rng.normal()} for seed in seeds]
        rows += [
            {"part": "direction", "env": env, "seed": seed, "update": update, "n": n, "plain": n / 1e4,
             "cosine": n / 1e4 + rng.normal() / 99, "same": 1.0, "shuffled": rng.normal() / 99}
            for seed in range(100, 110) for update in (2, 10) for n in (256, 8192)
        ]  # fmt: skip
    for split in range(10):
        for optimizer in ("sgd", "adam"):
            for size in (16, 64, 1078):
                e = sharper if size == 1078 else 1.0
                rise = 0.02 * (e if flat == 1 else flat) + rng.normal() / 1e5
                rows.append({
                    "part": "digits", "split": split, "optimizer": optimizer, "minibatch": size, "rate": 0.1,
                    "reached": True, "updates": 500, "validation": 0.1, "test": 0.1 + rng.normal() / 1e3,
                    "eigenvalue": 2 * e * (1 + rng.normal() / 99), "rise": rise,
                    "eigenvalue_rescaled": 26.0, "rise_rescaled": 0.02,
                })  # fmt: skip
    names = dict.fromkeys(name for row in rows for name in row)
    return [dict.fromkeys(names) | row for row in rows]


def said(question, *given):
    answer = question.answer(invented(*given))
    return answer, [claim.verdict for claim in answer.claims]


def test_other_data_gives_another_verdict(question):
    answer, verdicts = said(question, True, 3.0)
    assert verdicts == ["true", "true"]
    assert "TRPO on CartPole 300 with 128 and 200 with 2,048 (P = 0.00" in answer.claims[0].number
    assert "top eigenvalue × 3.0" in answer.claims[1].number
    answer, verdicts = said(question, False, 0.3)
    assert verdicts == ["false", "false"]
    assert "in 4 of 6 cases" in answer.claims[0].number and "flatter with 2" in answer.claims[1].number
    assert "TRPO returns most over training with a batch of 2,048" in answer.sentence


def test_sharper_by_the_eigenvalue_alone_is_half_true(question):
    fits = [row for row in invented(True, 3.0, 0.5) if row["part"] == "digits"]
    cells = [cell for name in ("sgd", "adam") for cell in question.fitted(fits, name)]
    assert question.sharp(cells)[0] == "half true"
