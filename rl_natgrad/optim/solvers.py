"""Solvers of (F + λI) x = b, the natural-gradient system.

λ = damping · bᵀFb / bᵀb, a multiple of the curvature that the model has along b. So `damping` has no
unit, means the same for a policy whose Fisher is 1e-4 and one whose Fisher is 10, and costs nothing
(Fb is the first product of CG anyway).  An absolute λ swamps the small Fisher of a discrete policy.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rl_natgrad.optim.fisher import Fisher


@dataclass(frozen=True)
class Solution:
    """x (P,), and what happened: iterations, relative residual ‖(F + λI)x − b‖ / ‖b‖, ok."""

    x: Tensor
    iterations: int
    residual: float
    ok: bool
    indefinite: bool = False
    """Whether CG met a direction p of no or negative curvature, pᵀAp ≤ 0."""


Solver = Callable[[Fisher, Tensor], Solution]
"""(F, b (P,)) ↦ x with (F + λI) x = b."""


BLOCK = 256
"""Rows of a triangle that are made at a time: the fewer, the less of the other triangle, and the slower each."""


class TooLarge(ValueError):
    """A dense solver was asked for a matrix that would not fit."""


def refuse_too_large(solver: str, M: int, P: int, max_gib: float) -> None:
    """Raises TooLarge where the matrix of a dense solver takes more than max_gib GiB in float64.

    Args: solver: cholesky, pinv (P × P), woodbury (M × M, and M × P for R), svd or diagonal (M × P for R).
          M: Fisher rows, 0 where there are none.  P: parameters.
    """
    sizes = {"woodbury": (M, max(M, P)), "svd": (M, P), "diagonal": (M or P, P)}
    rows, columns = sizes.get(solver, (P, P))
    gib = rows * columns * 8 / 2**30
    if gib > max_gib:
        what = {"woodbury": "its sample-space matrix", "svd": "its matrix of Fisher rows"}.get(
            solver, "the Fisher matrix")  # fmt: skip
        raise TooLarge(
            f"solver={solver}: {what} would be {rows:,} × {columns:,}, {gib:.1f} GiB in float64, and "
            f"solver.max_gib is {max_gib:g}; use solver=cg, a smaller network or a smaller batch"
        )


def operations(solver: str, N: int, M: int, P: int) -> float:
    """Roughly what a solve costs beside CG's few products: as many operations as matrix products do in its time.

    A product does 2 per multiplication; a factorisation is slower, by the factors here (one thread, 1,200 to 4,600
    rows).  Without rows the matrix is P products with vectors, of some 12 N P each for a small MLP.

    Args: N: samples.  M: Fisher rows, 0 where there are none.  P: parameters.
    """
    form = M * P**2 if M else 12 * N * P**2
    few, many = sorted((M, P))
    costs = {
        "cholesky": M**2 * P + M**3 if 0 < M < P else form + P**3,
        "woodbury": 2 * M**2 * P + M**3,
        "pinv": form + 12 * P**3,
        "svd": 25 * few**2 * many,
        "diagonal": 0 if M else form,
    }
    return float(costs.get(solver, 0))


def identity(F: Fisher, b: Tensor) -> Solution:
    """x = b: the plain gradient as direction."""
    return Solution(b, 0, 0.0, _finite(b))


def cg(F: Fisher, b: Tensor, *, damping: float, max_iter: int, tol: float, float64: bool = False) -> Solution:
    """Conjugate gradient from x = 0, until ‖r‖ ≤ tol·‖b‖ or max_iter.

    Hestenes & Stiefel 1952; Nocedal & Wright, algorithm 5.2.  Stops, with ok=False, at a direction of
    no or negative curvature, where F is not PSD.

    Args:    damping: see the module, ≥ 0.  max_iter: ≥ 1; each costs one product.  tol: relative, ≥ 0.
             float64: in double precision, for a Fisher that is.
    Returns: ok is False where a product or an inner product was not finite, or pᵀAp ≤ 0.
    """
    s = _conjugate_gradients(F, b, damping, max_iter, tol, float64)
    return replace(s, ok=s.ok and not s.indefinite)


def steihaug(F: Fisher, b: Tensor, *, damping: float, max_iter: int, tol: float) -> Solution:
    """CG for an F that may be indefinite: at a p with pᵀAp ≤ 0 it leaves with the x so far, or b if there is none.

    So x is always a direction of descent, xᵀb > 0 (b = −g).  Steihaug 1983; Nocedal & Wright, algorithm 7.2.
    Differs: there is no radius here, and no way along p to its edge: to_radius and backtrack set the length.

    Args:    of `cg`.
    Returns: ok is False where a product or an inner product was not finite alone; `indefinite` says that it left.
             The residual is CG's: 1 where x is b.
    """
    s = _conjugate_gradients(F, b, damping, max_iter, tol)
    return replace(s, x=b.clone()) if s.indefinite and s.iterations == 0 else s


def _conjugate_gradients(
    F: Fisher, b: Tensor, damping: float, max_iter: int, tol: float, float64: bool = False
) -> Solution:
    """CG until it is done or meets pᵀAp ≤ 0, with the x so far."""
    given = b.dtype
    b = b.double() if float64 else b
    if b.device.type != "cpu":
        there = conjugate_gradients_there(F, b, damping, max_iter, tol)
        return replace(there, x=there.x.to(given))
    x, r, p = torch.zeros_like(b), b.clone(), b.clone()
    rr = bb = float(r @ r)
    lam, ok, indefinite, k = None, _finite(b), False, 0
    while ok and k < max_iter and rr > tol * tol * bb:
        Ap = F.mv(p)
        if lam is None:  # p is b: its product also gives the damping's unit
            lam = damping * float(p @ Ap) / bb
        Ap = Ap.add(p, alpha=lam)
        pAp = float(p @ Ap)
        ok, indefinite = math.isfinite(pAp), pAp <= 0
        if indefinite or not ok:
            break
        alpha = rr / pAp
        x.add_(p, alpha=alpha)
        r.sub_(Ap, alpha=alpha)
        rr, rr_old = float(r @ r), rr
        p.mul_(rr / rr_old).add_(r)
        k += 1
    residual = (rr / bb) ** 0.5 if bb > 0 else 0.0
    return Solution(x.to(given), k, residual, ok and _finite(x), ok and indefinite)


def conjugate_gradients_there(F: Fisher, b: Tensor, damping: float, max_iter: int, tol: float) -> Solution:
    """The same for a device that should not wait for this program: its numbers come here once, at the end.

    So there are always max_iter products; those after the one that CG stops at change nothing.
    """
    x, r, p = torch.zeros_like(b), b.clone(), b.clone()
    rr = bb = (r @ r).double()
    ok, k = b.isfinite().all(), torch.zeros_like(bb)
    indefinite, lam = ~ok & ok, torch.zeros_like(bb)
    for i in range(max_iter):
        Ap = F.mv(p)
        if i == 0:
            lam = damping * (p @ Ap).double() / bb
        Ap = Ap + lam * p
        pAp = (p @ Ap).double()
        going = ok & ~indefinite & (rr > tol * tol * bb)
        ok, indefinite = ok & (~going | pAp.isfinite()), indefinite | (going & (pAp <= 0))
        going = going & ok & ~indefinite
        alpha = rr / pAp
        x, r = torch.where(going, x + alpha * p, x), torch.where(going, r - alpha * Ap, r)
        new = torch.where(going, (r @ r).double(), rr)
        p, rr, k = torch.where(going, new / rr * p + r, p), new, k + going
    said = torch.stack([k, rr, bb, ok & x.isfinite().all(), ok & indefinite]).tolist()
    residual = (said[1] / said[2]) ** 0.5 if said[2] > 0 else 0.0
    return Solution(x, int(said[0]), residual, bool(said[3]), bool(said[4]))


def cholesky(F: Fisher, b: Tensor, *, damping: float, max_gib: float) -> Solution:
    """x by factoring F + λI (P, P), or where F has fewer rows and λ > 0, what `woodbury` does; in float64.

    Raises: TooLarge where F takes over max_gib GiB.
    """
    M, P = F.shape()
    refuse_too_large("cholesky", 0, P, max_gib)
    if not bool(b.any()):  # then λ is 0 too, and a singular F has no factor
        return Solution(b.clone(), 0, 0.0, True)
    lam = _lam(F, b, damping)
    if M is not None and M < P and lam > 0:
        rows = F.rows()
        assert rows is not None  # M says so
        R = rows.double()
        return _among_samples(R, _lower(R), b, lam)
    A = F.dense().double()
    A.diagonal().add_(lam)
    L, info = torch.linalg.cholesky_ex(A)
    x = torch.cholesky_solve(b.double().unsqueeze(-1), L).squeeze(-1)
    return _solution(x, A.mv(x), b, ok=int(info) == 0)


def woodbury(F: Fisher, b: Tensor, *, damping: float, max_gib: float) -> Solution:
    """x by a factorisation in the space of samples, (M, M), in float64; needs damping > 0.

        (RᵀR + λI)⁻¹ b = (b − Rᵀ (R Rᵀ + λI)⁻¹ R b) / λ        (Woodbury identity; R (M, P), F = RᵀR)

    Cheaper than `cholesky` where there are fewer Fisher rows than parameters (see `fisher.fraction`).

    Raises: TooLarge where R or RRᵀ would take more than max_gib GiB;  ValueError for a Fisher without rows.
    """
    M, P = F.shape()
    if M is None:
        raise ValueError("solver=woodbury needs a Fisher with rows: use fisher=gauss_newton or empirical")
    refuse_too_large("woodbury", M, P, max_gib)
    if not bool(b.any()):
        return Solution(b.clone(), 0, 0.0, True)
    rows = F.rows()
    assert rows is not None  # M says so
    R = rows.double()
    return _among_samples(R, R @ R.T, b, _lam(F, b, damping))


def _lower(R: Tensor) -> Tensor:
    """R Rᵀ (M, M), of which all that Cholesky reads is right, the lower triangle: half of the operations."""
    G = R.new_zeros(len(R), len(R))
    for start in range(0, len(R), BLOCK):
        end = start + BLOCK
        torch.mm(R[start:end], R[:end].T, out=G[start:end, :end])
    return G


def _among_samples(R: Tensor, G: Tensor, b: Tensor, lam: float) -> Solution:
    """The Woodbury identity, see `woodbury`. G: RRᵀ (M, M), its lower triangle at least, written over."""
    c = b.double()
    G.diagonal().add_(lam)
    L, info = torch.linalg.cholesky_ex(G)
    y = torch.cholesky_solve((R @ c).unsqueeze(-1), L).squeeze(-1)
    x = (c - R.T @ y) / lam if lam > 0 else torch.zeros_like(c)  # λ is 0 where Fb is
    return _solution(x, R.T @ (R @ x) + lam * x, b, ok=int(info) == 0 and lam > 0)


def pinv(F: Fisher, b: Tensor, *, rtol: float, max_gib: float) -> Solution:
    """x = F⁺ b, undamped: eigenvalues under rtol · λ_max count as 0.  In float64; for small problems.

    Only the undamped natural gradient is invariant under reparametrisation.
    Raises: TooLarge where F takes over max_gib GiB.
    """
    refuse_too_large("pinv", 0, b.numel(), max_gib)
    A = F.dense().double()
    if not _finite(A):
        return Solution(torch.zeros_like(b), 0, float("nan"), False)
    w, V = torch.linalg.eigh(A)
    keep = w > rtol * w[-1].clamp(min=0)
    c = V.T @ b.double()
    x = V @ torch.where(keep, c / torch.where(keep, w, 1), 0)
    return _solution(x, A.mv(x), b, ok=True)


def svd(F: Fisher, b: Tensor, *, rtol: float, max_gib: float) -> Solution:
    """x = F⁺ b = V S⁻² Vᵀ b with R = U S Vᵀ and F = RᵀR: singular values under rtol · s_max count as 0.

    What `pinv` finds, without squaring: the eigenvalues of F are s², so that an s under √ε · s_max (1e-8 in
    float64) is lost in RᵀR, while R itself holds it down to ε · s_max (Golub & Van Loan, section 5.3).  Hence
    rtol is of singular values here, and of their squares in `pinv`.  In float64; M and P in any order.

    Raises: TooLarge where R takes over max_gib GiB;  ValueError for a Fisher without rows.
    """
    M, P = F.shape()
    if M is None:
        raise ValueError("solver=svd needs a Fisher with rows: use fisher=gauss_newton or empirical")
    refuse_too_large("svd", M, P, max_gib)
    rows = F.rows()
    assert rows is not None  # M says so
    R = rows.double()
    if not _finite(R):
        return Solution(torch.zeros_like(b), 0, float("nan"), False)
    _, s, Vt = torch.linalg.svd(R, full_matrices=False)
    keep = s > rtol * s[0]
    c = Vt @ b.double()
    x = Vt.T @ torch.where(keep, c / torch.where(keep, s, 1) ** 2, 0)
    return _solution(x, R.T @ (R @ x), b, ok=True)


def diagonal(F: Fisher, b: Tensor, *, damping: float, max_gib: float) -> Solution:
    """x = (diag F + λI)⁻¹ b, one number per parameter; 0 where b is.  diag F = Σ R² over rows where F = RᵀR.

    Raises: TooLarge where R, or F where it has no rows, takes over max_gib GiB.
    """
    M, P = F.shape()
    refuse_too_large("diagonal", M or 0, P, max_gib)
    rows, lam = F.rows(), _lam(F, b, damping)
    diag = F.dense().diagonal() if rows is None else rows.square().sum(0)
    x = torch.where(b == 0, 0, b / (diag + lam))  # a parameter without effect has 0 / 0
    return _solution(x, F.mv(x) + lam * x, b, ok=True)


def _lam(F: Fisher, b: Tensor, damping: float) -> float:
    """λ = damping · bᵀFb / bᵀb, or 0 where b is 0."""
    bb = float(b @ b)
    return damping * float(b @ F.mv(b)) / bb if damping > 0 and bb > 0 else 0.0


def _solution(x: Tensor, Ax: Tensor, b: Tensor, *, ok: bool) -> Solution:
    norm = float(b.norm())
    residual = float((Ax - b).norm()) / norm if norm > 0 else 0.0
    return Solution(x.to(b.dtype), 0, residual, ok and _finite(x) and math.isfinite(residual))


def _finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x).all())
