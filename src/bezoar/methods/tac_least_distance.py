"""One class of the TAC programme by itself: robust, proves infeasibility, and softens.

The point of least norm with V s >= r is read off the residual of a non-negative least-squares
problem (Lawson and Hanson, "Solving Least Squares Problems", chapter 23):

    minimise ||e - A u|| over u >= 0,   A = [V^T; r^T],   e = (0, ..., 0, 1)
    residual (a, b) = e - A u:          s = -a / b,       multipliers l = u / b

By Farkas' lemma there is no such point exactly when the residual is zero. Before that, any u >= 0
with r.u > 0 proves that every s with V s >= r has ||s|| >= r.u / ||V^T u||, which is what is
reported: a float64 residual is never exactly zero, but such a bound is a proof at any size.

It adds and drops one constraint at a time on an orthogonal factorisation, so dependent, duplicated
and nearly parallel constraints are harmless. It needs about one step for each active constraint.

A class without a solution gets the softened one. Without the slack variables that is

    minimise 1/2 ||s||^2 + rho/2 sum_j max(0, r_j - v_j.s)^2

which is convex and piecewise quadratic: Newton's method with an exact line search ends after a few
steps. Its multipliers are l_j = rho max(0, r_j - v_j.s).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Violation of a constraint, relative to the length of the shift, that counts as rounding.
_ZERO = 1e-12
# Error of the residual for each unit of weight in it.
_ROUNDING = 1e-15
_NEWTON_STEPS = 200


@dataclass(frozen=True, eq=False)
class LeastDistance:
    """Outcome for one class.

    Attributes:
        multipliers: l >= 0 with s = V^T l, shape (constraints,); zero where infeasible.
        certificate: l >= 0 with r.l = 1, for which 1 / ||V^T l|| bounds the length of every shift
            from below, shape (constraints,); zero where a shift was found.
        converged: False when the step limit ended the search.
    """

    multipliers: Tensor
    certificate: Tensor
    converged: bool


def least_distance(rows: Tensor, levels: Tensor, limit: float) -> LeastDistance:
    """Finds the shortest s with ``rows @ s >= levels``, or proves it longer than ``limit``.

    Args:
        rows: unit rows of V, shape (constraints, features), ``float64`` on the CPU.
        levels: r, shape (constraints,), scaled so that the largest is about 1.
        limit: length from which on a shift counts as impossible.
    """
    target = torch.zeros(rows.shape[1] + 1, dtype=rows.dtype)
    target[-1] = 1
    columns = torch.cat([rows, levels[:, None]], dim=1)  # A^T
    nothing = torch.zeros_like(levels)
    weights = torch.zeros(len(rows), dtype=rows.dtype)
    passive = torch.zeros(len(rows), dtype=torch.bool)
    refused = torch.zeros(len(rows), dtype=torch.bool)
    residual = target
    for _ in range(10 * max(rows.shape) + 100):
        size = float(residual.norm())
        if size * limit <= 1:
            return LeastDistance(nothing, weights / (weights @ levels), True)
        gain = (columns @ residual).masked_fill(passive | refused, -torch.inf)
        entering = int(gain.argmax())
        if not float(gain[entering]) > _ZERO * size + _ROUNDING * (1 + float(weights.sum())):
            return LeastDistance(_polish(rows, levels, weights, residual), nothing, True)
        passive[entering] = True
        trial, kept = _non_negative(columns, target, weights, passive)
        remaining = target - trial @ columns
        if bool(kept[entering]) and float(remaining.norm()) < size:
            weights, passive, residual = trial, kept, remaining
            refused[:] = False
        else:
            # Rounding made it look useful; the next best constraint is tried instead.
            passive[entering] = False
            refused[entering] = True
    return LeastDistance(nothing, nothing, False)


def _non_negative(
    columns: Tensor, target: Tensor, weights: Tensor, passive: Tensor
) -> tuple[Tensor, Tensor]:
    """Least squares on the passive set, walking there no further than the weights stay >= 0."""
    weights, passive = weights.clone(), passive.clone()
    while bool(passive.any()):
        index = torch.nonzero(passive).flatten()
        wanted = torch.linalg.lstsq(columns[index].T, target[:, None]).solution[:, 0]
        current = weights[index]
        if float(wanted.min()) > 0:
            weights[index] = wanted
            return weights, passive
        blocking = wanted <= 0
        steps = current[blocking] / (current[blocking] - wanted[blocking]).clamp(min=1e-300)
        step = float(steps.min())
        moved = (current + step * (wanted - current)).clamp(min=0)
        stopped = blocking.clone()
        stopped[blocking] = steps <= step
        weights[index] = moved.masked_fill(stopped, 0)
        passive[index[stopped]] = False
    return weights, passive


def _polish(rows: Tensor, levels: Tensor, weights: Tensor, residual: Tensor) -> Tensor:
    """Multipliers from the active constraints alone, free of the cancellation in 1 - r.u."""
    plain = weights / residual[-1]
    index = torch.nonzero(weights > 0).flatten()
    if not 0 < len(index) <= rows.shape[1]:
        return plain
    basis, triangle = torch.linalg.qr(rows[index].T)
    heights = torch.linalg.solve_triangular(triangle.T, levels[index, None], upper=False)
    exact = torch.linalg.solve_triangular(triangle, heights, upper=True)[:, 0]
    agrees = torch.isfinite(exact).all() and bool((exact >= 0).all())
    if not agrees or bool((basis @ heights).norm() > 2 * (plain @ rows).norm()):
        return plain
    return torch.zeros_like(plain).index_copy_(0, index, exact)


def softened(rows: Tensor, levels: Tensor, rho: float) -> Tensor:
    """Returns the multipliers of the softened problem, shape (constraints,).

    Args:
        rows: unit rows of V, shape (constraints, features), ``float64`` on the CPU.
        levels: r, shape (constraints,), scaled so that the largest is about 1.
        rho: weight of the squared violations.
    """
    position = rows[int(levels.argmax())] * levels.amax()
    missing = levels - rows @ position
    multipliers = torch.zeros_like(levels)
    for _ in range(_NEWTON_STEPS):
        active = missing > 0
        some = rows[active]
        if len(some) <= some.shape[1]:
            gram = some @ some.T
            gram.diagonal().add_(1 / rho)
            forces = torch.linalg.solve(gram, levels[active])
            aim = some.T @ forces
        else:
            gram = some.T @ some
            gram.diagonal().add_(1 / rho)
            aim = torch.linalg.solve(gram, some.T @ levels[active])
            forces = rho * (levels[active] - some @ aim)
        step = aim - position
        there = levels - rows @ aim
        same = bool(((there > 0) == active).all())
        multipliers = torch.zeros_like(levels).masked_scatter_(active, forces.clamp(min=0))
        # With the same constraints violated there, the minimum of this piece is the minimum.
        if same or float(step.norm()) <= _ZERO * float(aim.norm()):
            break
        gains = rows @ step
        length = _line_minimum(position, step, missing, gains, rho)
        position = position + length * step
        missing = levels - rows @ position
    return multipliers


def _line_minimum(
    position: Tensor, step: Tensor, missing: Tensor, gains: Tensor, rho: float
) -> float:
    """The t > 0 that minimises the softened objective at ``position + t * step``."""
    # The derivative is piecewise linear in t, with a kink where a constraint changes sides.
    kinks = missing / gains
    kinks = kinks[torch.isfinite(kinks) & (kinks > 0)].sort().values
    low, high = 0.0, torch.inf
    first, last = 0, len(kinks)
    while first < last:
        middle = (first + last) // 2
        at = float(kinks[middle])
        if _slope(position, step, missing, gains, rho, at)[0] < 0:
            low, first = at, middle + 1
        else:
            high, last = at, middle
    inside = low + 1.0 if high == torch.inf else (low + high) / 2
    slope, curvature = _slope(position, step, missing, gains, rho, inside)
    return inside - slope / curvature if curvature > 0 else inside


def _slope(
    position: Tensor, step: Tensor, missing: Tensor, gains: Tensor, rho: float, at: float
) -> tuple[float, float]:
    left = missing - at * gains
    active = left > 0
    slope = step @ (position + at * step) - rho * (left[active] @ gains[active])
    curvature = step @ step + rho * gains[active].square().sum()
    return float(slope), float(curvature)
