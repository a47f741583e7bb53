"""The shortest shift of the features that carries every reference sample into a class, per class.

For each class k, with the rows v_kj = w_k - w_j of the last layer and the right-hand sides r_kj of
``right_hand_sides``:

    s_k = argmin ||s||   subject to   v_kj.s >= r_kj   for all j != k

All classes are solved together, in float64, by block pivoting on the dual (``tac_pivoting``); a
class whose constraints are too dependent for that is solved alone (``tac_least_distance``). Every
result is checked against the optimality conditions before it is returned.

Some classes cannot be reached: their w_k lies in the convex hull of the other rows, or equals one
of them. By Farkas' lemma that is proven by a combination l >= 0 with r_k.l = 1 and V_k^T l = 0. As
any such l proves that no shift is shorter than 1 / ||V_k^T l||, a class counts as infeasible here
once that bound is 10,000 times the longest shift that a single one of its constraints asks for.
Infeasible classes have the norm infinity, and get the softened shift

    argmin  1/2 ||s||^2 + rho/2 sum_j x_j^2   subject to   v_kj.s + ||v_kj|| x_j >= r_kj

with one rho for all of them; x is a distance, so rho has no unit. Feasible classes are never
softened: their norms stay exact and comparable, and an infeasible class is not a candidate for the
shortest shift.

Equations (1) and (2) of Iwahana et al., "Robust Backdoor Removal by Reconstructing
Trigger-Activated Changes in Latent Representation", https://arxiv.org/abs/2511.08944. Their solver
is not public; the dual, the certificate and the softening are derived here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bezoar.errors import InputError
from bezoar.methods.tac_least_distance import least_distance, softened
from bezoar.methods.tac_pivoting import ScaledProblem, pivot
from bezoar.methods.tac_right_hand_sides import as_float64, prefers_conditional, right_hand_sides

__all__ = ["MinimalShifts", "prefers_conditional", "right_hand_sides", "solve_minimal_shifts"]

# A shift this many times longer than any single constraint asks for counts as impossible.
_LONGEST = 1e4
# Rows closer than this, relative to the longest centred row, are the same row in float32.
_SAME_ROW = 1e-7
# A gap between equal rows below this, relative to the largest gap, is rounding of float32 logits.
_SAME_LOGIT = 1e-6


@dataclass(frozen=True, eq=False)
class MinimalShifts:
    """The shortest shift into each of C classes, with the evidence that it is the shortest.

    Attributes:
        shifts: s_k in the rows, in units of the features, shape (C, d); softened where infeasible.
        norms: ||s_k||, shape (C,); infinite where infeasible.
        multipliers: l_kj >= 0 with s_k = sum_j l_kj (w_k - w_j), shape (C, C).
        feasible: False where the certificate proves that no shift of sensible length satisfies all
            constraints of the class, shape (C,).
        kkt_residual: how far from optimal each shift is, shape (C,): the largest of primal
            violation and negative multipliers (as distances, divided by ||s_k||), complementarity
            (divided by ||s_k||^2) and stationarity (divided by ||s_k||). For infeasible classes, of
            the softened problem, whose length counts the x_j, too.
        violations: largest r_kj - v_kj.s_k > 0, in logits, shape (C,).
        certificates: rows l_k >= 0 with r_k.l_k = 1, shape (C, C), zero for feasible classes. Any
            shift that satisfied all constraints would be at least 1 / ||sum_j l_kj (w_k - w_j)||
            long.
        passes: how often the pivoting exchanged constraints.
        alone: how many classes had to be solved one by one.
        softening: rho of the softened classes.
    """

    shifts: Tensor
    norms: Tensor
    multipliers: Tensor
    feasible: Tensor
    kkt_residual: Tensor
    violations: Tensor
    certificates: Tensor
    passes: int
    alone: int
    softening: float

    @property
    def softened(self) -> bool:
        """Whether any class is infeasible and was softened."""
        return not bool(self.feasible.all())

    @property
    def softened_classes(self) -> tuple[int, ...]:
        """The classes that were softened, in ascending order."""
        return tuple(torch.nonzero(~self.feasible).flatten().tolist())


def solve_minimal_shifts(
    weight: Tensor, rhs: Tensor, *, softening: float = 1e4, tolerance: float = 1e-8
) -> MinimalShifts:
    """Solves the programme of every class.

    Args:
        weight: rows w_k of the last linear layer, shape (classes, features). No bias is needed.
        rhs: r_kj of ``right_hand_sides``, shape (classes, classes); the diagonal is not read.
        softening: rho > 0 of the classes that cannot be reached; the larger, the smaller are their
            violations.
        tolerance: largest optimality residual (``kkt_residual``) that is accepted.

    Returns:
        ``float64`` results on the device of the weight (on the CPU where it has no float64).

    Raises:
        InputError: shapes do not fit, a number is NaN or infinite, or a class could not be solved
            to the tolerance because its row is too nearly dependent on the others.

    >>> import torch
    >>> head = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> solution = solve_minimal_shifts(head, torch.tensor([[0.0, 4.0], [-1.0, 0.0]]))
    >>> solution.shifts.round(decimals=9).tolist(), solution.feasible.tolist()
    ([[2.0, -2.0], [0.0, 0.0]], [True, True])
    """
    _check(weight, rhs, softening, tolerance)
    weight = as_float64(weight.detach())
    rhs = as_float64(rhs.detach()).to(weight.device)
    # Without the mean row the differences are the same and the numbers smaller; the common factor
    # drops out of the shifts.
    weight = weight - weight.mean(dim=0)
    factor = float(weight.abs().amax()) or 1.0
    weight, rhs = weight / factor, rhs / factor
    problem, unreachable = _scale(weight, rhs)

    multipliers = torch.zeros_like(rhs)
    certificates = torch.zeros_like(rhs)
    feasible = ~unreachable.any(dim=1)
    equal_row = unreachable.int().argmax(dim=1)
    for k in torch.nonzero(~feasible).flatten().tolist():
        certificates[k, equal_row[k]] = 1 / rhs[k, equal_row[k]]

    asked = (problem.levels > 0).any(dim=1)
    ridge = torch.zeros_like(problem.units)
    together = torch.nonzero(asked & feasible).flatten()
    found = pivot(problem, together)
    multipliers[together] = (
        found.multipliers * problem.units[together, None] / problem.lengths[together]
    )
    shifts = _shifts(weight, multipliers)
    residual = _kkt_residual(weight, rhs, problem, shifts, multipliers, ridge)
    too_long = (shifts / problem.units[:, None]).norm(dim=1) > _LONGEST
    doubtful = ~found.converged | ~(residual[together] <= tolerance) | too_long[together]
    alone = together[doubtful].tolist()
    for k in alone:
        index, rows, levels = problem.constraints(k)
        answer = least_distance(rows, levels, _LONGEST)
        multipliers[k] = _row(problem, k, index, answer.multipliers)
        certificates[k] = _row(problem, k, index, answer.certificate) / problem.units[k] ** 2
        feasible[k] = not bool(answer.certificate.any())
    soft = torch.nonzero(asked & ~feasible).flatten().tolist()
    for k in soft:
        index, rows, levels = problem.constraints(k)
        multipliers[k] = _row(problem, k, index, softened(rows, levels, softening))
        ridge[k] = 1 / softening
    if alone or soft:
        shifts = _shifts(weight, multipliers)
        residual = _kkt_residual(weight, rhs, problem, shifts, multipliers, ridge)
    failed = torch.nonzero(~(residual <= tolerance)).flatten().tolist()
    if failed:
        raise InputError(
            f"the shift into class {failed[0]} ({len(failed)} of {len(weight)} classes) could be "
            f"solved to a residual of {float(residual[failed[0]]):.1e} only, expected "
            f"{tolerance:.0e}, because its row of the last layer is nearly a mixture of the "
            "others; raise the tolerance to accept it"
        )
    norms = (shifts / problem.units[:, None]).norm(dim=1) * problem.units
    missing = (rhs - _reached(weight, shifts)).fill_diagonal_(0).amax(dim=1).clamp(min=0)
    return MinimalShifts(
        shifts=shifts,
        norms=norms.masked_fill(~feasible, torch.inf),
        multipliers=multipliers / factor,
        feasible=feasible,
        kkt_residual=residual,
        violations=missing * factor,
        certificates=certificates / factor,
        passes=found.passes,
        alone=len(alone),
        softening=softening,
    )


def _check(weight: Tensor, rhs: Tensor, softening: float, tolerance: float) -> None:
    if weight.ndim != 2 or weight.shape[0] < 2 or weight.shape[1] < 1:
        raise InputError(
            f"the last layer's weight has shape {tuple(weight.shape)}; expected (classes, "
            "features) with at least two classes and one feature"
        )
    if rhs.shape != (len(weight), len(weight)):
        raise InputError(
            f"the right-hand sides have shape {tuple(rhs.shape)}; expected one row and one column "
            f"for each of the {len(weight)} classes of the last layer"
        )
    for name, tensor in (("the last layer's weight", weight), ("the right-hand sides", rhs)):
        if not torch.isfinite(tensor).all():
            raise InputError(
                f"{name} contains {int((~torch.isfinite(tensor)).sum())} NaN or infinite numbers; "
                "expected finite ones, so check the weights file"
            )
    if not softening > 0 or not tolerance > 0:
        raise InputError(
            f"softening {softening} and tolerance {tolerance} were given; both must be positive"
        )


def _scale(weight: Tensor, rhs: Tensor) -> tuple[ScaledProblem, Tensor]:
    """The problem in scaled units, and the constraints 0 >= r_kj that nothing can satisfy."""
    gram = weight @ weight.T
    lengths = _distances(weight, gram)
    longest = gram.diagonal().amax().clamp(min=0).sqrt()
    used = lengths > _SAME_ROW * longest
    used.fill_diagonal_(False)
    noise = _SAME_LOGIT * rhs.clone().fill_diagonal_(0).abs().amax()
    unreachable = ~used & (rhs > noise)
    unreachable.fill_diagonal_(False)
    used = _without_repeats(used, rhs)
    lengths = lengths.masked_fill(~used, 1)
    levels = (rhs / lengths).masked_fill(~used, -torch.inf)
    units = levels.amax(dim=1)
    units = torch.where(units > 0, units, 1.0)
    problem = ScaledProblem(weight, gram, lengths, levels / units[:, None], units, used)
    return problem, unreachable


def _without_repeats(used: Tensor, rhs: Tensor) -> Tensor:
    """Leaves, of rivals with equal rows, only the one with the largest right-hand side."""
    equal = ~used
    equal.fill_diagonal_(True)
    first = equal.int().argmax(dim=1)
    used = used.clone()
    repeated = torch.nonzero(torch.bincount(first, minlength=len(first)) > 1).flatten()
    for group in (torch.nonzero(first == leader).flatten() for leader in repeated.tolist()):
        hardest = group[rhs[:, group].argmax(dim=1)]
        kept = used.gather(1, hardest[:, None])
        used[:, group] = False
        used.scatter_(1, hardest[:, None], kept)
    return used


def _distances(weight: Tensor, gram: Tensor) -> Tensor:
    """||w_k - w_j|| for all pairs, exact also for rows that nearly coincide."""
    squares = gram.diagonal()
    total = squares[:, None] + squares
    distances = total - 2 * gram
    # There the subtraction has cancelled; one in 10,000 keeps twelve digits everywhere else.
    close = torch.nonzero(distances <= 1e-4 * total)
    step = max(1, (1 << 22) // weight.shape[1])
    for start in range(0, len(close), step):
        first, second = close[start : start + step].T
        distances[first, second] = (weight[first] - weight[second]).square().sum(dim=1)
    return distances.sqrt()


def _shifts(weight: Tensor, multipliers: Tensor) -> Tensor:
    """s_k = sum_j l_kj (w_k - w_j), shape (classes, features)."""
    return torch.addmm(multipliers.sum(dim=1, keepdim=True) * weight, multipliers, weight, alpha=-1)


def _reached(weight: Tensor, shifts: Tensor) -> Tensor:
    """(w_k - w_j).s_k, shape (classes, classes)."""
    products = shifts @ weight.T
    return products.diagonal()[:, None] - products


def _kkt_residual(
    weight: Tensor,
    rhs: Tensor,
    problem: ScaledProblem,
    shifts: Tensor,
    multipliers: Tensor,
    ridge: Tensor,
) -> Tensor:
    """The optimality residual of ``MinimalShifts`` from the features' side, shape (classes,)."""
    # In each class's own unit, so that squares of tiny shifts do not vanish.
    units, ridge = problem.units[:, None], ridge[:, None]
    shifts, multipliers, rhs = shifts / units, multipliers / units, rhs / units
    forces = multipliers * problem.lengths
    slack = (_reached(weight, shifts) - rhs) / problem.lengths + ridge * forces
    slack = slack.masked_fill(~problem.used, 0)
    # Softening is the same programme in a space with one more coordinate for each constraint.
    size = (shifts.square().sum(dim=1) + (ridge * forces.square()).sum(dim=1)).sqrt()
    primal = (-slack).amax(dim=1) / size
    dual = (-forces).amax(dim=1) / size
    complementary = (forces * slack).abs().amax(dim=1) / size.square()
    stationary = (shifts - _shifts(weight, multipliers)).norm(dim=1) / size
    residual = torch.stack([primal, dual, complementary, stationary]).amax(dim=0).clamp(min=0).abs()
    idle = (size == 0) & (slack >= 0).all(dim=1) & (forces == 0).all(dim=1)
    return residual.masked_fill(idle, 0)


def _row(problem: ScaledProblem, k: int, index: Tensor, scaled: Tensor) -> Tensor:
    """Scaled multipliers of the constraints ``index`` of class k, as those of all w_k - w_j."""
    row = torch.zeros_like(problem.lengths[k])
    row[index] = scaled.to(row.device) * problem.units[k] / problem.lengths[k, index]
    return row
