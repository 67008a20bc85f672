from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from oracles import DenseFisher, Reads, each_head, krylov_minimiser, make_problem, randn, spectrum

from rl_natgrad.optim.solvers import (
    TooLarge,
    cg,
    cholesky,
    conjugate_gradients_there,
    diagonal,
    identity,
    pinv,
    steihaug,
    svd,
    woodbury,
)
from rl_natgrad.training.build import FISHERS, SOLVERS

pytestmark = pytest.mark.usefixtures("float64")

P = 12
SPECTRA = {
    "well conditioned": [1 + k / P for k in range(P)],
    "ill conditioned": [10.0 ** (-k / 2) for k in range(P)],  # condition number 3e5
    "rank deficient": [3.0, 2.0, 1.0, 0.5] + [0.0] * (P - 4),
    "tiny": [1e-9 * (1 + k) for k in range(P)],  # a nearly deterministic policy
}
DAMPED = {
    "cg": partial(cg, max_iter=400, tol=1e-13),
    "steihaug": partial(steihaug, max_iter=400, tol=1e-13),
    "cholesky": partial(cholesky, max_gib=1),
    "woodbury": partial(woodbury, max_gib=1),
    "cg there": partial(conjugate_gradients_there, max_iter=400, tol=1e-13),
}
ALL = {
    "identity": identity,
    "pinv": partial(pinv, rtol=1e-9, max_gib=1),
    "svd": partial(svd, rtol=1e-5, max_gib=1),
    "diagonal": partial(diagonal, damping=0.01, max_gib=1),
    **{name: partial(f, damping=0.01) for name, f in DAMPED.items()},
}
each_spectrum = pytest.mark.parametrize("name", SPECTRA)


def damped_oracle(A, b, damping):
    """(A + λI)⁻¹ b by numpy's dense solver, λ = damping · bᵀAb / bᵀb."""
    A, b = A.numpy(), b.numpy()
    lam = damping * (b @ A @ b) / (b @ b)
    return torch.from_numpy(np.linalg.solve(A + lam * np.eye(len(b)), b)), lam


@each_spectrum
@pytest.mark.parametrize("solver", DAMPED)
@pytest.mark.parametrize("damping", [1e-3, 0.1, 10.0])
def test_damped_solvers_equal_a_dense_solve(solver, name, damping):
    F, b = spectrum(SPECTRA[name]), randn(1, P)
    before = b.clone()
    s = DAMPED[solver](F, b, damping=damping)
    x, lam = damped_oracle(F.A, b, damping)
    assert s.ok
    assert (s.x - x).norm() < 1e-7 * x.norm()
    true = float((F.A @ s.x + lam * s.x - b).norm() / b.norm())
    assert true < 1e-7 and abs(s.residual - true) < 1e-7
    assert torch.equal(b, before)


@pytest.mark.parametrize("name", ["well conditioned", "ill conditioned", "tiny"])
@pytest.mark.parametrize("solver", ["cg", "cholesky"])
def test_undamped_solvers_equal_a_dense_solve(solver, name):
    F, b = spectrum(SPECTRA[name]), randn(1, P)
    s, x = DAMPED[solver](F, b, damping=0.0), torch.linalg.solve(F.A, b)
    assert s.ok
    assert (s.x - x).norm() < 1e-6 * x.norm()


@each_spectrum
@pytest.mark.parametrize("solver", [partial(pinv, rtol=1e-9), partial(svd, rtol=1e-9**0.5)], ids=["pinv", "svd"])
def test_pinv_and_svd_equal_the_pseudoinverse(solver, name):
    F, b = spectrum(SPECTRA[name]), randn(1, P)
    s, x = solver(F, b, max_gib=1), torch.linalg.pinv(F.A, rtol=1e-9, hermitian=True) @ b
    assert s.ok
    assert (s.x - x).norm() < 1e-6 * x.norm()


def test_pinv_drops_eigenvalues_under_rtol():
    F = DenseFisher(torch.diag(torch.tensor([1.0, 1e-3, 1e-5])))
    s = pinv(F, torch.ones(3), rtol=1e-4, max_gib=1)
    torch.testing.assert_close(s.x, torch.tensor([1.0, 1e3, 0.0]))
    assert s.residual == pytest.approx(1 / 3**0.5)


@pytest.mark.parametrize("rtol, x", [(1e-3, [1.0, 1e4, 0.0]), (1e-1, [1.0, 0.0, 0.0])])
def test_svd_drops_singular_values_under_rtol(rtol, x):
    R = torch.diag(torch.tensor([1.0, 1e-2, 1e-4]))
    s = svd(DenseFisher(R.T @ R, R), torch.ones(3), rtol=rtol, max_gib=1)
    torch.testing.assert_close(s.x, torch.tensor(x))
    assert s.residual == pytest.approx((x.count(0.0) / 3) ** 0.5)


@pytest.mark.parametrize("M", [5, 12, 40])
def test_svd_takes_rows_fewer_or_more_than_parameters(M):
    R, b = randn(0, M, P), randn(1, P)
    s = svd(DenseFisher(R.T @ R, R), b, rtol=1e-9, max_gib=1)
    half = torch.from_numpy(np.linalg.pinv(R.numpy()))
    torch.testing.assert_close(s.x, half @ (half.T @ b), rtol=1e-9, atol=1e-9)


def test_svd_keeps_the_digits_that_a_matrix_of_squares_has_lost():
    w = [10.0 ** (-14 * k / (P - 1)) for k in range(P)]  # of R: 1 to 1e-7
    F, b = spectrum(w), randn(1, P)
    Q = F.R.T / torch.tensor(w).sqrt()  # R = √w Qᵀ
    x = Q @ (Q.T @ b / torch.tensor(w))
    errors = [float((solver(F, b, rtol=1e-15, max_gib=1).x - x).norm() / x.norm()) for solver in (svd, pinv)]
    assert errors[0] < 1e-7 and errors[1] > 1e-4, errors


def test_diagonal_by_hand():
    # bᵀFb / bᵀb = (1 + 3 + 2 · 1) / 2 = 3 with b = (1, 1, 0); damping 1/2 is λ = 3/2.
    R = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0**0.5, 0.0]])
    F = R.T @ R  # [[1, 1, 0], [1, 3, 0], [0, 0, 0]]
    for operator in (DenseFisher(F, R), DenseFisher(F)):
        x = diagonal(operator, torch.tensor([1.0, 1.0, 0.0]), damping=0.5, max_gib=1).x
        torch.testing.assert_close(x, torch.tensor([1 / 2.5, 1 / 4.5, 0.0]))
        assert diagonal(operator, torch.tensor([1.0, 1.0, 0.0]), damping=0.0, max_gib=1).ok  # 0 / 0 is 0
        assert not diagonal(operator, torch.ones(3), damping=0.0, max_gib=1).ok


def test_cg_on_a_consistent_rank_deficient_system_finds_the_least_norm_solution():
    F = spectrum(SPECTRA["rank deficient"])
    b = F.A @ randn(2, P)
    s = cg(F, b, damping=0.0, max_iter=4, tol=1e-12)
    x = torch.linalg.pinv(F.A, rtol=1e-9, hermitian=True) @ b
    assert s.ok
    assert (s.x - x).norm() < 1e-8 * x.norm()


@each_spectrum
@pytest.mark.parametrize("solver", SOLVERS)
def test_zero_right_side_gives_zero(solver, name):
    s = ALL[solver](spectrum(SPECTRA[name]), torch.zeros(P))
    assert s.ok
    assert not s.x.any()
    assert s.residual == 0 and s.iterations == 0


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "identity"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_operator_that_is_not_finite_is_reported(solver, bad):
    F = spectrum(SPECTRA["well conditioned"])
    A, R = F.A.clone(), F.R.clone()
    A[3, 3] = bad
    R[3, 3] = bad
    assert not ALL[solver](DenseFisher(A, R), randn(1, P)).ok


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_right_side_that_is_not_finite_is_reported(solver, bad):
    b = randn(1, P)
    b[2] = bad
    assert not ALL[solver](spectrum(SPECTRA["well conditioned"]), b).ok


@pytest.mark.parametrize("solver", ["cg", "cholesky"])
def test_an_indefinite_operator_is_reported(solver):
    F = spectrum([-1.0] + [1.0] * (P - 1))
    assert not ALL[solver](F, randn(1, P)).ok


def test_identity_is_the_plain_gradient():
    b = randn(1, P)
    assert torch.equal(identity(spectrum(SPECTRA["well conditioned"]), b).x, b)


# --- damping ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", DAMPED)
@pytest.mark.parametrize("factor", [1e-6, 1e3])
def test_damping_has_no_unit(solver, factor):
    # F a million times smaller, the same direction: an absolute damping would swamp it.
    F, b = spectrum(SPECTRA["well conditioned"]), randn(1, P)
    small = DenseFisher(factor * F.A, factor**0.5 * F.R)
    x, y = (DAMPED[solver](G, b, damping=0.1).x for G in (F, small))
    assert (factor * y - x).norm() < 1e-8 * x.norm()


@pytest.mark.parametrize("solver", DAMPED)
def test_damping_by_hand(solver):
    # bᵀFb / bᵀb = (1 + 3)/2 = 2, so damping 1/2 is λ = 1 and x = (1/2, 1/4).
    F = DenseFisher(torch.diag(torch.tensor([1.0, 3.0])), torch.diag(torch.tensor([1.0, 3.0**0.5])))
    torch.testing.assert_close(DAMPED[solver](F, torch.ones(2), damping=0.5).x, torch.tensor([0.5, 0.25]))


# --- conjugate gradient -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["well conditioned", "ill conditioned", "tiny"])
def test_cg_error_falls_in_the_A_norm(name):
    F, b = spectrum(SPECTRA[name]), randn(1, P)
    exact = torch.linalg.solve(F.A, b)
    steps = [cg(F, b, damping=0.0, max_iter=k, tol=0.0) for k in range(1, P + 1)]
    errors = [float(e @ F.A @ e) for e in (-exact, *(s.x - exact for s in steps))]
    assert [s.iterations for s in steps] == list(range(1, P + 1))
    assert all(new < old or new < 1e-14 * errors[0] for old, new in pairwise(errors))


@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_cg_iterates_are_the_minimisers_over_their_krylov_spaces(k):
    # Aliased buffers (p = r) still converge after a fashion; they are not these points.
    F, b = spectrum([10.0 ** (-i / 20) for i in range(60)]), randn(1, 60)
    mine, theirs = cg(F, b, damping=0.0, max_iter=k, tol=0.0), krylov_minimiser(F.A.numpy(), b.numpy(), k)
    residual, expected = (float((F.A @ x - b).norm() / b.norm()) for x in (mine.x, torch.from_numpy(theirs)))
    assert abs(residual - expected) < 1e-10
    assert abs(mine.residual - expected) < 1e-10
    assert (mine.x - torch.from_numpy(theirs)).norm() < 1e-9 * np.linalg.norm(theirs)


def test_cg_stops_at_its_tolerance_and_not_before():
    F, b = spectrum([10.0 ** (-i / 20) for i in range(60)]), randn(1, 60)
    s = cg(F, b, damping=0.0, max_iter=60, tol=1e-3)
    before = cg(F, b, damping=0.0, max_iter=s.iterations - 1, tol=1e-3)
    assert s.residual <= 1e-3 < before.residual
    assert 1 < s.iterations < 60


def test_cg_uses_one_product_per_iteration_and_no_random_numbers():
    calls = []

    class Counting(DenseFisher):
        def mv(self, v):
            calls.append(1)
            return super().mv(v)

    state = torch.get_rng_state()
    cg(Counting(spectrum(SPECTRA["ill conditioned"]).A), randn(1, P), damping=0.1, max_iter=7, tol=0.0)
    assert len(calls) == 7
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("max_iter, tol", [(1, 0.0), (7, 0.0), (60, 1e-3)])
@pytest.mark.parametrize("w", [
    *SPECTRA.values(), [-1.0] + [1.0] * (P - 1), [-0.01] + [1 + k / P for k in range(P - 1)], [float("nan")] * P,
], ids=str)  # fmt: skip
def test_cg_without_waiting_for_a_device_stops_where_cg_stops(w, max_iter, tol):
    F, b = spectrum(w), randn(1, P)
    b = b if w[0] > 0 else F.A @ b  # of a negative eigenvalue not the first product, but a later one, tells
    settings = {"damping": 0.1, "max_iter": max_iter, "tol": tol}
    with Reads() as while_waiting:
        a = cg(F, b, **settings)
    with Reads() as reads:
        c = conjugate_gradients_there(F, b, **settings)
    assert reads.count == 0 < while_waiting.count  # but for what it says in the end, in one piece
    assert (c.iterations, c.ok and not c.indefinite, c.indefinite) == (a.iterations, a.ok, a.indefinite)
    assert c.residual == pytest.approx(a.residual, rel=1e-4, nan_ok=True)
    assert (c.x - a.x).norm() <= 1e-8 * a.x.norm()


# --- negative curvature -----------------------------------------------------------------------------


@each_spectrum
@pytest.mark.parametrize("damping, max_iter", [(0.0, 3), (0.1, 10), (0.1, 100)])
def test_steihaug_is_cg_where_there_is_no_negative_curvature(name, damping, max_iter):
    F, b = spectrum(SPECTRA[name]), randn(1, P)
    a, c = (solve(F, b, damping=damping, max_iter=max_iter, tol=1e-6) for solve in (steihaug, cg))
    assert torch.equal(a.x, c.x) and a.ok and not a.indefinite
    assert (a.iterations, a.residual) == (c.iterations, c.residual)


def positive_until(A, b) -> int:
    """The largest k for which A is positive definite on span{b, Ab, …, Aᵏ⁻¹b}: so many iterations CG can make."""
    Q = np.linalg.qr(np.stack([np.linalg.matrix_power(A, i) @ b for i in range(len(b))], 1))[0]
    return next(k for k in range(len(b)) if np.linalg.eigvalsh(Q[:, : k + 1].T @ A @ Q[:, : k + 1])[0] <= 0)


@pytest.mark.parametrize("lowest, damping", [(-0.01, 0.0), (-0.3, 0.0), (-1.0, 0.0), (-1.0, 0.1), (-30.0, 0.1)])
def test_steihaug_leaves_at_negative_curvature_downhill(lowest, damping):
    F, b = spectrum([lowest] + [1 + k / 4 for k in range(7)]), randn(1, 8)
    lam = damping * float(b @ F.A @ b) / float(b @ b)
    A, s = (F.A + lam * torch.eye(8)).numpy(), steihaug(F, b, damping=damping, max_iter=100, tol=1e-13)
    k = positive_until(A, b.numpy())
    x = torch.from_numpy(krylov_minimiser(A, b.numpy(), k)) if k else b
    assert s.ok and s.indefinite and s.iterations == k
    assert (s.x - x).norm() < 1e-8 * x.norm()
    assert s.x @ b > 0
    refused = cg(F, b, damping=damping, max_iter=100, tol=1e-13)
    assert refused.indefinite and not refused.ok


def test_steihaug_is_steepest_descent_where_the_gradient_itself_curves_down():
    b = randn(1, 3)
    s = steihaug(DenseFisher(-torch.eye(3)), b, damping=0.1, max_iter=10, tol=0.0)
    assert torch.equal(s.x, b) and s.x is not b
    assert s.ok and s.indefinite and s.iterations == 0


# --- dense solvers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cholesky", "pinv", "woodbury", "svd", "diagonal"])
def test_dense_solvers_refuse_a_matrix_that_would_not_fit(name):
    F, b = spectrum(SPECTRA["well conditioned"]), randn(1, P)
    gib, solver = P * P * 8 / 2**30, ALL[name].func
    options = {"rtol": 1e-6} if name in ("pinv", "svd") else {"damping": 0.1}
    assert solver(F, b, max_gib=gib * 1.01, **options).ok
    with pytest.raises(TooLarge, match=r"12 × 12.*GiB.*max_gib.*solver=cg"):
        solver(F, b, max_gib=gib * 0.99, **options)


def test_the_refusal_says_how_large_the_matrix_would_be():
    class Huge(DenseFisher):
        def shape(self):
            return 200_000, 50_000

    with pytest.raises(TooLarge, match=r"50,000 × 50,000, 18\.6 GiB"):
        cholesky(Huge(torch.eye(1)), torch.empty(50_000), damping=0.1, max_gib=2)
    with pytest.raises(TooLarge, match=r"200,000 × 200,000, 298\.0 GiB"):
        woodbury(Huge(torch.eye(1)), torch.empty(50_000), damping=0.1, max_gib=2)
    for solver in (partial(svd, rtol=0.1), partial(diagonal, damping=0.1)):
        with pytest.raises(TooLarge, match=r"200,000 × 50,000, 74\.5 GiB"):
            solver(Huge(torch.eye(1)), torch.empty(50_000), max_gib=2)


@pytest.mark.parametrize("damping", [1e-3, 10.0])
@pytest.mark.parametrize("M, P", [(1, 12), (5, 12), (12, 12), (40, 12), (600, 620)])
def test_cholesky_is_a_dense_solve_with_fewer_and_with_more_rows_than_parameters(M, P, damping):
    R, b = randn(0, M, P), randn(1, P)
    s = cholesky(DenseFisher(R.T @ R, R), b, damping=damping, max_gib=1)
    x, _ = damped_oracle(R.T @ R, b, damping)
    assert s.ok and s.residual < 1e-10
    assert (s.x - x).norm() < 1e-9 * x.norm()


def test_woodbury_without_rows_or_damping_does_not_pretend():
    F, b = spectrum(SPECTRA["rank deficient"]), randn(1, P)
    with pytest.raises(ValueError, match="gauss_newton or empirical"):
        woodbury(DenseFisher(F.A), b, damping=0.1, max_gib=1)
    assert not woodbury(F, b, damping=0.0, max_gib=1).ok
    with pytest.raises(ValueError, match="gauss_newton or empirical"):
        svd(DenseFisher(F.A), b, rtol=0.1, max_gib=1)


# --- on a real Fisher -------------------------------------------------------------------------------


@pytest.mark.parametrize("fisher_name", ["gauss_newton", "kl_hessian", "empirical"])
@each_head
@pytest.mark.parametrize("solver", DAMPED)
def test_every_solver_works_on_every_fisher_of_every_head(solver, head, fisher_name):
    if solver == "woodbury" and fisher_name == "kl_hessian":
        return
    problem = make_problem(head, curvature=FISHERS[fisher_name])
    F, b = problem.fisher(), -problem.grad()
    x, _ = damped_oracle(torch.stack([F.mv(e) for e in torch.eye(len(b))]), b, 0.1)
    s = DAMPED[solver](F, b, damping=0.1)
    assert s.ok
    assert (s.x - x).norm() < 1e-7 * x.norm()


@pytest.mark.parametrize("fisher_name", ["gauss_newton", "kl_hessian", "empirical"])
@each_head
def test_svd_and_diagonal_on_every_fisher_of_every_head(head, fisher_name):
    problem = make_problem(head, curvature=FISHERS[fisher_name])
    F, b = problem.fisher(), -problem.grad()
    A = torch.stack([F.mv(e) for e in torch.eye(len(b))])
    x = b / (A.diagonal() + 0.1 * (b @ A @ b) / (b @ b))
    torch.testing.assert_close(diagonal(F, b, damping=0.1, max_gib=1).x, x, rtol=1e-7, atol=1e-7)
    if fisher_name != "kl_hessian":
        x = torch.linalg.pinv(A, rtol=1e-8, hermitian=True) @ b
        assert (svd(F, b, rtol=1e-4, max_gib=1).x - x).norm() < 1e-6 * x.norm()


@pytest.mark.parametrize("solver", DAMPED)
def test_a_float32_problem_gets_a_float32_answer(solver):
    F, b = spectrum(SPECTRA["well conditioned"]), randn(1, P)
    s = DAMPED[solver](DenseFisher(F.A.float(), F.R.float()), b.float(), damping=0.1)
    assert s.x.dtype == torch.float32
    x, _ = damped_oracle(F.A, b, 0.1)
    assert (s.x - x).norm() < 1e-5 * x.norm()


@each_head
@pytest.mark.parametrize("fisher_name", ["gauss_newton", "kl_hessian", "empirical"])
def test_cg_in_double_precision_solves_a_float32_problem_to_float32s_last_digits(head, fisher_name):
    double = make_problem(head, N=200, curvature=FISHERS[fisher_name])
    x = cg(double.fisher(), -double.grad(), damping=1e-3, max_iter=500, tol=1e-12).x
    torch.set_default_dtype(torch.float32)
    policy, batch = double.model, double.batch
    single = replace(
        double, model=replace(policy, theta=policy.theta.float()),
        batch=replace(batch, obs=batch.obs.float(), adv=batch.adv.float()),
    )  # fmt: skip
    errors = []
    for float64 in (True, False):
        problem = replace(single, float64=float64)
        options = {"damping": 1e-3, "max_iter": 500, "tol": 1e-12 if float64 else 1e-6, "float64": float64}
        solution = cg(problem.fisher(), -double.grad().float(), **options)
        assert solution.ok and solution.x.dtype == torch.float32
        errors.append(float((solution.x - x).norm() / x.norm()))
    assert errors[0] < 1e-4 and errors[0] < errors[1] / 3, errors
