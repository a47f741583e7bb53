"""The implicit hypergradient against closed forms, unrolling and finite differences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.errors import InputError
from bezoar.methods.implicit_hypergradient import Implicit, hypergradient

SIZE, PARAMETERS, STEP = 6, 4, 0.1


def game(seed=0, *, curvature=1.0):
    """g = δᵀAδ/2 + δᵀBθ and F = |δ − c|²/2 + θᵀDδ + |θ|²/2, in float64.

    A has eigenvalues in [1, 4], times ``curvature``; so Φ = δ − STEP ∇g contracts.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    basis, _ = torch.linalg.qr(draw(SIZE, SIZE))
    a = curvature * basis @ torch.diag(torch.linspace(1, 4, SIZE, dtype=torch.float64)) @ basis.T
    b, c, d = draw(SIZE, PARAMETERS), draw(SIZE), draw(PARAMETERS, SIZE)
    theta = draw(PARAMETERS).requires_grad_(True)
    solution = torch.linalg.solve(a, -b @ theta).detach()

    def outer(delta):
        return (delta - c).square().sum() / 2 + theta @ d @ delta + theta.square().sum() / 2

    def inner_map(delta):
        return delta - STEP * (a @ delta + b @ theta)

    direct = (d @ solution + theta).detach()
    slope = (solution - c + d.T @ theta).detach()
    implicit = -b.T @ torch.linalg.solve(a, slope)
    return outer, inner_map, solution, theta, direct, implicit, slope, a, b


def close(found, wanted, relative=1e-9):
    assert float((found - wanted).norm() / wanted.norm()) < relative


@settings(derandomize=True, max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_many_terms_are_the_closed_form(seed):
    outer, inner_map, solution, theta, direct, implicit, slope, a, _ = game(seed)
    found = hypergradient(outer, inner_map, solution, [theta], Implicit(terms=200))
    close(found.gradients[0], direct + implicit, 1e-4)
    assert float(found.value) == pytest.approx(float(outer(solution).detach()))
    v = torch.linalg.solve(STEP * a, slope)
    assert float(found.growth) == pytest.approx(float(v.norm() / slope.norm()), rel=1e-4)
    assert float(found.ratio) == pytest.approx(float(implicit.norm() / direct.norm()), rel=1e-4)


@settings(derandomize=True, max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_one_term_is_one_unrolled_step(seed):
    outer, inner_map, solution, theta, *_ = game(seed)
    found = hypergradient(outer, inner_map, solution, [theta], Implicit(terms=1))
    # d F(Φ(δ, θ), θ) / dθ at a fixed point, by plain differentiation
    (unrolled,) = torch.autograd.grad(outer(inner_map(solution)), theta)
    close(found.gradients[0], unrolled)
    assert found.terms == 1
    assert float(found.growth) == pytest.approx(1)


@pytest.mark.parametrize("terms", [1, 2, 3, 5, 9])
def test_the_fixed_point_is_the_truncated_series(terms):
    outer, inner_map, solution, theta, direct, _, slope, a, b = game()
    jacobian = torch.eye(SIZE, dtype=torch.float64) - STEP * a
    v = sum(torch.linalg.matrix_power(jacobian, j) @ slope for j in range(terms))
    found = hypergradient(outer, inner_map, solution, [theta], Implicit(terms=terms))
    close(found.gradients[0], direct - STEP * b.T @ v)
    assert found.terms == terms


@settings(derandomize=True, max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_conjugate_gradient_is_exact_after_as_many_terms_as_there_are_dimensions(seed):
    outer, inner_map, solution, theta, direct, implicit, *_ = game(seed)
    how = Implicit(solver="conjugate-gradient", terms=SIZE)
    found = hypergradient(outer, inner_map, solution, [theta], how)
    close(found.gradients[0], direct + implicit, 1e-8)
    assert not found.negative
    fewer = Implicit(solver="conjugate-gradient", terms=SIZE - 2)
    found = hypergradient(outer, inner_map, solution, [theta], fewer)
    assert float((found.gradients[0] - direct - implicit).norm()) > 1e-6, "it has nothing to do"


def test_conjugate_gradient_stops_at_curvature_that_is_not_positive():
    outer, inner_map, solution, theta, direct, _, slope, _, b = game(curvature=-1.0)
    how = Implicit(solver="conjugate-gradient", terms=SIZE)
    found = hypergradient(outer, inner_map, solution, [theta], how)
    assert found.negative
    close(found.gradients[0], direct - STEP * b.T @ slope)  # one unrolled step


def test_it_ends_when_nothing_changes_any_more():
    outer, inner_map, solution, theta, direct, implicit, *_ = game()
    for solver, most in (("fixed-point", 400), ("conjugate-gradient", SIZE)):
        how = Implicit(solver=solver, terms=10_000, tolerance=1e-10)
        found = hypergradient(outer, inner_map, solution, [theta], how)
        assert found.terms <= most
        close(found.gradients[0], direct + implicit, 1e-8)


@pytest.mark.parametrize("solver", ["fixed-point", "conjugate-gradient"])
def test_without_terms_or_a_pattern_only_the_direct_part_is_left(solver):
    outer, _, solution, theta, direct, *_ = game()

    def never(delta):
        raise AssertionError("there is no need of the inner problem")

    found = hypergradient(outer, never, solution, [theta], Implicit(solver=solver, terms=0))
    close(found.gradients[0], direct)
    assert found.terms == 0 and float(found.growth) == 0

    found = hypergradient(
        lambda delta: theta.square().sum(), never, solution, [theta], Implicit(solver=solver)
    )
    torch.testing.assert_close(found.gradients[0], 2 * theta.detach(), rtol=0, atol=0)


def test_it_leaves_what_it_is_given_alone_and_knows_idle_parameters():
    outer, inner_map, solution, theta, *_ = game()
    idle = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    found = hypergradient(outer, inner_map, solution, [theta, idle], Implicit())
    assert theta.grad is None and not solution.requires_grad
    assert torch.equal(found.gradients[1], torch.zeros(3, dtype=torch.float64))
    with torch.no_grad():  # as within a method that differentiates nothing itself
        again = hypergradient(outer, inner_map, solution, [theta, idle], Implicit())
    assert torch.equal(found.gradients[0], again.gradients[0])


@pytest.mark.parametrize("wrong", [{"terms": -1}, {"tolerance": -1.0}, {"tolerance": float("nan")}])
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(InputError, match="expected both to be 0 or more"):
        Implicit(**wrong)


# -- a network -------------------------------------------------------------------------------------


def toy():
    """A net of two layers, a strongly convex inner problem in δ, and an outer one."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = [0.5 * draw(8, 5), 0.5 * draw(3, 8)]
    x, y, other = draw(12, 5), torch.arange(12) % 3, draw(12, 5)

    def logits(images, w):
        return torch.tanh(images @ w[0].T) @ w[1].T

    def inner(delta, w):  # as I-BAU's g; its penalty is large enough for one solution
        loss = torch.nn.functional.cross_entropy(logits(x + delta, w), y)
        return -loss + 0.5 * delta.square().sum()

    def outer(delta, w):
        return torch.nn.functional.cross_entropy(logits(other + delta, w), y)

    return weights, inner, outer


def solved(inner, w):
    """δ(θ), by Newton's method to convergence."""
    delta = torch.zeros(5, dtype=torch.float64)
    for _ in range(10):
        delta.requires_grad_(True)
        (slope,) = torch.autograd.grad(inner(delta, w), delta, create_graph=True)
        rows = [torch.autograd.grad(one, delta, retain_graph=True)[0] for one in slope]
        delta = (delta - torch.linalg.solve(torch.stack(rows), slope)).detach()
    assert float(slope.detach().norm()) < 1e-12
    return delta


@pytest.mark.parametrize(
    "how", [Implicit(terms=300), Implicit(solver="conjugate-gradient", terms=5)]
)
def test_finite_differences_of_a_network_of_two_layers(how):
    weights, inner, outer = toy()
    w = [weight.clone().requires_grad_(True) for weight in weights]
    delta = solved(inner, weights)

    def inner_map(pattern):
        (slope,) = torch.autograd.grad(inner(pattern, w), pattern, create_graph=True)
        return pattern - STEP * slope

    found = hypergradient(lambda pattern: outer(pattern, w), inner_map, delta, w, how)
    direct = hypergradient(
        lambda pattern: outer(pattern, w), inner_map, delta, w, Implicit(terms=0)
    )
    for layer, place in ((0, (2, 3)), (1, (1, 5))):
        values = []
        for change in (1e-5, -1e-5):
            moved = [weight.clone() for weight in weights]
            moved[layer][place] += change
            values.append(float(outer(solved(inner, moved), moved)))
        wanted = (values[0] - values[1]) / 2e-5
        assert float(found.gradients[layer][place]) == pytest.approx(wanted, rel=1e-5)
        assert float(direct.gradients[layer][place]) != pytest.approx(wanted, rel=1e-3)
