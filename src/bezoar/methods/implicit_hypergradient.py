"""The gradient of a loss through the solution of another problem, without unrolling it.

A pattern δ solves an inner problem that depends on parameters θ; it is the fixed point of a step

    δ(θ) = Φ(δ(θ), θ),      for gradient steps of size alpha on g:  Φ(δ, θ) = δ − alpha ∇_δ g(δ, θ)

An outer loss F(δ(θ), θ) then has the total derivative

    dF/dθ = ∇_θ F + (∂_θ Φ)ᵀ v,      (I − ∂_δ Φ)ᵀ v = ∇_δ F

in which no Hessian is formed: the products (∂_δ Φ)ᵀ u and (∂_θ Φ)ᵀ u are reverse-mode derivatives
of one graph of Φ. Two ways to the K-th approximation of v:

    fixed point:          v_{k+1} = (∂_δ Φ)ᵀ v_k + ∇_δ F,   v_0 = 0     (K = 1: one unrolled step)
    conjugate gradient:   K steps on (I − ∂_δ Φ) v = ∇_δ F, from v = 0

Source: Grazzi, Franceschi, Pontil, Salzo, "On the Iteration Complexity of Hypergradient
Computation", ICML 2020, arXiv 2006.16218; the fixed point is what I-BAU (Zeng et al. 2022, arXiv
2110.03735) uses, with K = 5. Ours: the conjugate gradient runs on the system itself, not on its
normal equations, which takes that Φ is a gradient step, so that I − ∂_δ Φ = alpha ∇²_δδ g is
symmetric; it stops where the curvature is not positive, since δ is no strict minimum of g there.

Known limits: the fixed point converges only if ∂_δ Φ has no eigenvalue beyond the unit circle,
which is not checked; away from a solution v_K is close to K ∇_δ F, and K is a weight rather than a
precision. ``growth`` tells: it is near K then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import torch
from torch import Tensor, nn

from bezoar.errors import InputError


class Implicit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How v is found.

    Attributes:
        solver: ``fixed-point`` (published) or ``conjugate-gradient``.
        terms: K; with 0 the implicit term is left out, and only ∇_θ F remains.
        tolerance: ends earlier, where v (fixed point) or the residual (conjugate gradient) changes
            or is less than this, as a Euclidean norm.
    """

    solver: Literal["fixed-point", "conjugate-gradient"] = "fixed-point"
    terms: int = 5
    tolerance: float = 1e-10

    def __post_init__(self) -> None:
        if self.terms < 0 or not 0 <= self.tolerance < math.inf:
            raise InputError(
                f"terms is {self.terms} and tolerance {self.tolerance}; expected both to be 0 or "
                "more"
            )


@dataclass(frozen=True)
class Hypergradient:
    """dF/dθ and how it came about; the numbers are tensors, so that nothing waits for a device.

    Attributes:
        value: F.
        gradients: dF/dθ, one tensor for each parameter.
        growth: ‖v‖ / ‖∇_δ F‖; 0 where F does not depend on the pattern.
        ratio: ‖(∂_θ Φ)ᵀ v‖ / ‖∇_θ F‖.
        terms: how many were taken.
        negative: whether the conjugate gradient met curvature that is not positive.
    """

    value: Tensor
    gradients: tuple[Tensor, ...]
    growth: Tensor
    ratio: Tensor
    terms: int
    negative: bool


def hypergradient(
    outer: Callable[[Tensor], Tensor],
    inner_map: Callable[[Tensor], Tensor],
    pattern: Tensor,
    parameters: Sequence[nn.Parameter | Tensor],
    settings: Implicit,
) -> Hypergradient:
    """dF/dθ at δ = ``pattern``, which is taken for a fixed point of ``inner_map``.

    Args:
        outer: δ → F, a scalar; it may depend on the parameters, and need not on δ.
        inner_map: δ → Φ(δ), of the same shape, with its graph; not called where K is 0 or F does
            not depend on δ.
        pattern: δ, of any shape; its own graph plays no part.
        parameters: θ; each needs a gradient. Their ``grad`` is not touched.
        settings: how v is found.
    """
    pattern = pattern.detach().requires_grad_(True)
    with torch.enable_grad():
        value = outer(pattern)
        slope, *found = torch.autograd.grad(value, (pattern, *parameters), allow_unused=True)
        direct = _filled(found, parameters)
        zero = value.new_zeros(())
        if slope is None or not settings.terms:
            return Hypergradient(value.detach(), direct, zero, zero, 0, negative=False)
        mapped = inner_map(pattern)

    def transposed(vector: Tensor) -> Tensor:  # (∂_δ Φ)ᵀ u
        return torch.autograd.grad(mapped, pattern, vector, retain_graph=True)[0]

    if settings.solver == "fixed-point":
        v, taken = _fixed_point(transposed, slope, settings)
        negative = False
    else:
        v, taken, negative = _conjugate_gradient(lambda u: u - transposed(u), slope, settings)
    found = list(torch.autograd.grad(mapped, parameters, v, allow_unused=True))
    implicit = _filled(found, parameters)
    return Hypergradient(
        value.detach(),
        tuple(a + b for a, b in zip(direct, implicit, strict=True)),
        growth=_quotient(v.norm(), slope.norm()),
        ratio=_quotient(_norm(implicit), _norm(direct)),
        terms=taken,
        negative=negative,
    )


def _fixed_point(
    transposed: Callable[[Tensor], Tensor], slope: Tensor, settings: Implicit
) -> tuple[Tensor, int]:
    v, taken = slope, 1  # v_1, as v_0 = 0
    change = slope
    while taken < settings.terms and float(change.norm()) >= settings.tolerance:
        following = transposed(v) + slope
        change, v = following - v, following
        taken += 1
    return v, taken


def _conjugate_gradient(
    system: Callable[[Tensor], Tensor], slope: Tensor, settings: Implicit
) -> tuple[Tensor, int, bool]:
    """Hestenes and Stiefel 1952; v, the steps taken, whether the curvature stopped them."""
    v = torch.zeros_like(slope)
    residual = direction = slope
    square = residual.square().sum()
    taken = 0
    while taken < settings.terms and math.sqrt(float(square)) > settings.tolerance:
        image = system(direction)
        curvature = (direction * image).sum()
        if not float(curvature) > 0:  # nor not-a-number
            # Without a step there is no v yet: that of one unrolled step stands in.
            return (v if taken else slope), max(taken, 1), True
        length = square / curvature
        v = v + length * direction
        residual = residual - length * image
        previous, square = square, residual.square().sum()
        direction = residual + square / previous * direction
        taken += 1
    return v, taken, False


def _filled(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Zeros where a parameter plays no part."""
    return tuple(
        torch.zeros_like(parameter) if gradient is None else gradient
        for gradient, parameter in zip(gradients, parameters, strict=True)
    )


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.square().sum() for tensor in tensors]).sum().sqrt()


def _quotient(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below > 0, above / below, torch.zeros_like(above))
