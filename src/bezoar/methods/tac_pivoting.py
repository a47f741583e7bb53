"""Batched block principal pivoting: the dual of the TAC programme for many classes at once.

For class k, with rows v_kj = w_k - w_j of V_k, the shift of least length with V_k s >= r_k has the
dual  max_{l >= 0} r_k.l - 1/2 l.(V_k V_k^T) l  and s_k = V_k^T l. Here every constraint is divided
by ||v_kj||, so that l has the unit of a length and the Gram matrices have a unit diagonal; and

    (V_k V_k^T)[j, l] = G_kk - G_kj - G_kl + G_jl        with G = W W^T,

so that the feature dimension has dropped out. A passive set F guesses the active constraints;
solving the Gram block on F gives l, and each constraint that then has the wrong sign (l < 0 on F,
slack < 0 off F) changes sides. Exchanging all of them at once needs very few passes; the backup
rule of Kim and Park ("Fast nonnegative matrix factorization: an active-set-like method and
comparisons", SIAM J. Sci. Comput. 33, 2011) falls back to exchanging one when that stops helping.

Linearly dependent constraints make Gram blocks singular. Classes that end on such a block, or with
more constraints than there can be independent ones, are returned as not converged, for
``tac_least_distance`` to solve.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

# Relative sizes below which a sign counts as zero; far above rounding, far below what matters.
_ZERO = 1e-11
# Smallest pivot of a Gram block of independent constraints; what its diagonal gets otherwise.
_SINGULAR = 1e-5
_JITTER = 1e-6
# Constraints in the first passive set, and how many full exchanges may fail to help in a row.
_FIRST = 64
_PATIENCE = 3
# Regular classes need fewer than ten.
_MOST_PASSES = 30


@dataclass(frozen=True, eq=False)
class ScaledProblem:
    """The programme of all classes in units that make it independent of the weights' scale.

    Attributes:
        weight: centred head, shape (classes, features).
        gram: ``weight @ weight.T``.
        lengths: ||w_k - w_j||, 1 where the constraint is not in use; shape (classes, classes).
        levels: r_kj / ||w_k - w_j|| divided by its largest value in row k, so that the shortest
            shift has at least length 1; -inf where the constraint is not in use.
        units: that largest value, 1 where no constraint asks for a shift; shape (classes,).
        used: which constraints exist: not the class itself, not rows equal to its own, and of
            rivals with equal rows only the hardest.
    """

    weight: Tensor
    gram: Tensor
    lengths: Tensor
    levels: Tensor
    units: Tensor
    used: Tensor

    @cached_property
    def coordinates(self) -> Tensor:
        """The rows in an orthonormal basis of their span, on the CPU: at most ``classes`` wide."""
        weight = self.weight.cpu()
        if weight.shape[1] <= len(weight):
            return weight
        triangle: Tensor = torch.linalg.qr(weight.T, mode="r").R
        return triangle.T.contiguous()

    def constraints(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """The rivals of class ``k`` that matter; on the CPU, their unit rows and levels."""
        index = torch.nonzero(self.used[k]).flatten()
        rows = self.coordinates[k] - self.coordinates[index.cpu()]
        return index, rows / self.lengths[k, index].cpu()[:, None], self.levels[k, index].cpu()


@dataclass(frozen=True, eq=False)
class Pivoting:
    """Multipliers of the selected classes, shape (selected, classes), and who has converged."""

    multipliers: Tensor
    converged: Tensor
    passes: int


def pivot(problem: ScaledProblem, selected: Tensor) -> Pivoting:
    """Solves the dual of the ``selected`` classes, shape (selected,), all at once."""
    levels, used = problem.levels[selected], problem.used[selected]
    count, classes = levels.shape
    # More constraints than this cannot be independent.
    most = min(classes - 1, problem.weight.shape[1])
    passive = _first_passive_set(levels, most)
    multipliers = torch.zeros_like(levels)
    converged = torch.zeros(count, dtype=torch.bool, device=levels.device)
    best = torch.full((count,), classes + 1, device=levels.device)
    patience = torch.full_like(best, _PATIENCE)
    active = torch.arange(count, device=levels.device)
    passes = 0
    while len(active) and passes < _MOST_PASSES:
        passes += 1
        inside = passive[active]
        found, regular = _solve_on(problem, selected[active], inside)
        multipliers[active] = found
        slack = _slack(problem, selected[active], found) - levels[active]
        magnitude = found.abs().amax(dim=1, keepdim=True).clamp(min=1)
        wrong = (torch.where(inside, found, slack) < -_ZERO * magnitude) & used[active]
        violations = wrong.sum(dim=1)
        converged[active] = regular & (violations == 0)
        # Kim and Park's rule: everything, unless that has not helped for some time; then only the
        # last one, which cannot cycle.
        better = violations < best[active]
        patient = patience[active] > 0
        patience[active] = torch.where(
            better, _PATIENCE, torch.where(patient, patience[active] - 1, 0)
        )
        best[active] = torch.minimum(best[active], violations)
        last = classes - 1 - wrong.flip(1).int().argmax(dim=1)
        only_last = torch.zeros_like(wrong).scatter_(1, last[:, None], True) & wrong
        inside = inside ^ torch.where((better | patient)[:, None], wrong, only_last)
        passive[active] = inside
        active = active[(violations > 0) & (inside.sum(dim=1) <= most)]
    return Pivoting(multipliers, converged, passes)


def _first_passive_set(levels: Tensor, most: int) -> Tensor:
    """The (at most) 64 constraints that alone would ask for the longest shifts."""
    hardest = levels.topk(min(_FIRST, most), dim=1)
    passive = torch.zeros_like(levels, dtype=torch.bool)
    return passive.scatter_(1, hardest.indices, hardest.values > 0)


def _solve_on(problem: ScaledProblem, rows: Tensor, passive: Tensor) -> tuple[Tensor, Tensor]:
    """Multipliers of (rows, classes), zero off the passive set, and where the block was regular."""
    multipliers = torch.zeros(passive.shape, dtype=problem.gram.dtype, device=passive.device)
    regular = torch.ones(len(rows), dtype=torch.bool, device=passive.device)
    sizes = passive.sum(dim=1)
    order = sizes.argsort()
    budget = 1 << 22 if passive.device.type == "cpu" else 1 << 26  # 32 or 512 MB of float64
    start = 0
    while start < len(order):
        # Classes come in order of size, so a block that ends here is padded to its last member.
        squares = sizes[order[start:]].square() * torch.arange(
            1, len(order) - start + 1, device=order.device
        )
        stop = start + max(1, int((squares <= budget).sum()))
        block = order[start:stop]
        start = stop
        width = int(sizes[block[-1]])
        if width:
            part, fine = _solve_block(problem, rows[block], passive[block], width)
            multipliers[block] = part
            regular[block] = fine
    return multipliers, regular


def _solve_block(
    problem: ScaledProblem, rows: Tensor, passive: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    filled, columns = passive.to(torch.int8).topk(width, dim=1)  # (rows, width), padding last
    filled = filled.bool()
    lengths = problem.lengths[rows[:, None], columns]
    own = problem.gram[rows[:, None], columns]
    gram = problem.gram[columns[:, :, None], columns[:, None, :]]
    gram -= own[:, :, None]
    gram -= own[:, None, :]
    gram += problem.gram[rows, rows][:, None, None]
    gram /= lengths[:, :, None]
    gram /= lengths[:, None, :]
    gram.masked_fill_(~(filled[:, :, None] & filled[:, None, :]), 0)
    gram.diagonal(dim1=1, dim2=2).add_((~filled).to(gram.dtype))
    levels = problem.levels[rows[:, None], columns].masked_fill(~filled, 0)
    factor, failed = torch.linalg.cholesky_ex(gram)
    pivots = factor.diagonal(dim1=1, dim2=2).amin(dim=1)
    regular = (failed == 0) & (pivots > _SINGULAR)
    if not regular.all():
        # Moderate multipliers keep the exchange sensible; they are never returned as converged.
        gram.diagonal(dim1=1, dim2=2).add_(torch.where(regular, 0.0, _JITTER)[:, None])
        factor[~regular] = torch.linalg.cholesky_ex(gram[~regular])[0]
    solution = torch.cholesky_solve(levels[:, :, None], factor)[:, :, 0].masked_fill(~filled, 0)
    result = torch.zeros(passive.shape, dtype=gram.dtype, device=gram.device)
    return result.scatter_(1, columns, solution), regular


def _slack(problem: ScaledProblem, rows: Tensor, multipliers: Tensor) -> Tensor:
    """V_k s_k of the scaled constraints, shape (rows, classes); what is not in use comes out 0."""
    parts = multipliers / problem.lengths[rows]
    products = parts.sum(dim=1, keepdim=True) * problem.gram[rows] - parts @ problem.gram
    own = products.gather(1, rows[:, None])
    return ((own - products) / problem.lengths[rows]).masked_fill(~problem.used[rows], 0)
