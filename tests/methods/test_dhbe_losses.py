"""The losses of DHBE: cases by hand, where gradients flow, what happens at the edges."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.errors import InputError
from bezoar.methods.dhbe_losses import (
    class_imbalance,
    gap,
    indecision,
    sensitivity,
    total_variation,
    total_variation_norm,
)


def drawn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gaps_by_hand():
    first = torch.tensor([[1.0, -2.0], [0.0, 4.0]])
    second = torch.tensor([[0.5, 2.0], [1.0, 4.0]])
    assert gap(first, second).item() == (0.5 + 4 + 1 + 0) / 4
    assert sensitivity(first, second).item() == gap(second, first).item()


def test_the_gap_moves_both_and_the_sensitivity_the_stamped_branch_alone():
    first, second = drawn(0, 3, 4).requires_grad_(), drawn(1, 3, 4).requires_grad_()
    signs = (first - second).sign() / 12
    gap(first, second).backward()
    assert torch.equal(first.grad, signs) and torch.equal(second.grad, -signs)
    first.grad = second.grad = None
    sensitivity(first, second).backward()
    assert first.grad is None and torch.equal(second.grad, -signs)


def test_logits_of_other_shapes_are_refused_and_not_broadcast():
    with pytest.raises(InputError, match=r"shapes \(2, 3\) and \(1, 3\)"):
        gap(torch.zeros(2, 3), torch.zeros(1, 3))


def test_roughness_of_two_by_two_images_by_hand():
    a, b, c, d = 1.0, 3.0, 6.0, 10.0
    one = torch.tensor([[[[a, b], [c, d]]]])
    # right: |a-b|, |c-d|; down: |a-c|, |b-d|; diagonals: |c-b| and |a-d|
    assert total_variation(one).item() == pytest.approx((2 + 4) / 2 + (5 + 7) / 2 + 3 + 9)
    norms = math.sqrt(2**2 + 4**2) + math.sqrt(5**2 + 7**2) + 3 + 9
    assert total_variation_norm(one).item() == pytest.approx(norms)
    invariant = total_variation_norm(one, as_published=False).item()
    assert invariant == pytest.approx(norms * math.sqrt(256 * 1024 / 4))
    # two channels: the means stay, the norms are those of all numbers
    two = torch.cat([one, one], 1)
    assert total_variation(two).item() == pytest.approx(21.0)
    assert total_variation_norm(two).item() == pytest.approx(math.sqrt(2) * norms)


def test_a_batch_of_four_has_twice_the_published_norm_and_the_same_invariant_one():
    one = drawn(2, 1, 3, 6, 5)
    four = one.repeat(4, 1, 1, 1)
    ratio = total_variation_norm(four) / total_variation_norm(one)
    assert ratio.item() == pytest.approx(2.0)
    ratio = total_variation_norm(four, as_published=False) / total_variation_norm(
        one, as_published=False
    )
    assert ratio.item() == pytest.approx(1.0)
    assert torch.allclose(total_variation(four), total_variation(one))


def test_for_the_published_batch_of_noise_the_norm_is_the_figure_of_the_specification():
    noise = torch.randn(256, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    published = total_variation_norm(noise).item()
    assert published == pytest.approx(4.9e3, rel=0.01)
    assert total_variation_norm(noise, as_published=False).item() == published
    # Four times as many pixels (borders are fewer among them): the same to 2 %.
    larger = torch.randn(64, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    invariant = total_variation_norm(larger, as_published=False).item()
    assert invariant == pytest.approx(published, rel=0.02)


def test_roughness_has_the_right_gradient_and_none_on_flat_images():
    images = drawn(5, 2, 2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(total_variation, images)
    assert torch.autograd.gradcheck(total_variation_norm, images)
    flat = torch.full((2, 1, 4, 4), 0.3, requires_grad=True)
    (total_variation(flat) + total_variation_norm(flat)).backward()
    assert torch.equal(flat.grad, torch.zeros_like(flat))


@pytest.mark.parametrize("shape", [(2, 3, 1, 8), (2, 3, 8, 1), (3, 8, 8)])
def test_images_without_neighbours_are_refused(shape):
    for roughness in (total_variation, total_variation_norm):
        with pytest.raises(InputError, match="at least two pixels in height and width"):
            roughness(torch.zeros(shape))


def test_imbalance_is_that_of_the_whole_batch():
    decided = 1e4 * torch.eye(4)
    assert class_imbalance(decided).item() == pytest.approx(0, abs=1e-6)
    assert class_imbalance(torch.zeros(5, 4)).item() == pytest.approx(0, abs=1e-6)
    collapsed = class_imbalance(decided[:1].expand(7, 4))
    assert collapsed.item() == pytest.approx(math.log(4), rel=1e-6)
    half = class_imbalance(decided[:2])  # two of four classes: ln 4 - ln 2
    assert half.item() == pytest.approx(math.log(2), rel=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 6),
    classes=st.integers(2, 7),
    scale=st.floats(0, 30),
)
def test_imbalance_and_indecision_are_their_formulas(seed, count, classes, scale):
    logits = scale * drawn(seed, count, classes)
    probabilities = logits.softmax(1)
    mean = probabilities.mean(0)
    entropy = -sum(p * math.log(p) for p in mean.tolist() if p > 0)
    assert class_imbalance(logits).item() == pytest.approx(math.log(classes) - entropy, abs=1e-9)
    assert class_imbalance(logits).item() >= -1e-9
    surest = [-math.log(row.max()) for row in probabilities.numpy()]
    assert indecision(logits).item() == pytest.approx(sum(surest) / count, abs=1e-9)


def test_priors_on_logits_are_finite_at_any_size():
    logits = (1e4 * drawn(6, 8, 5)).float().requires_grad_()
    for prior in (class_imbalance, indecision):
        (gradient,) = torch.autograd.grad(prior(logits), logits)
        assert torch.isfinite(prior(logits)) and torch.isfinite(gradient).all()
    assert indecision(torch.tensor([[0.0, 1e4], [1e4, 1e4]])).item() == pytest.approx(
        math.log(2) / 2
    )


def test_priors_on_logits_have_the_right_gradient():
    logits = drawn(7, 5, 4).requires_grad_()
    assert torch.autograd.gradcheck(class_imbalance, logits)
    assert torch.autograd.gradcheck(indecision, logits)
    assert torch.autograd.gradcheck(gap, (logits, drawn(8, 5, 4).requires_grad_()))


def test_a_step_down_spreads_a_collapsed_batch_and_decides_it():
    logits = torch.tensor([[3.0, 0.0, 0.0], [2.0, 1.0, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(class_imbalance(logits), logits)
    assert (gradient[:, 0] > 0).all() and class_imbalance(logits - gradient) < class_imbalance(
        logits
    )
    (gradient,) = torch.autograd.grad(indecision(logits), logits)
    assert (gradient[:, 0] < 0).all() and (gradient[:, 1:] > 0).all()


def test_bfloat16_is_computed_in_float32():
    values = drawn(9, 1, 3, 16, 16).bfloat16()
    logits = drawn(10, 64, 10).bfloat16()
    assert total_variation(values) == total_variation(values.float())
    assert total_variation_norm(values) == total_variation_norm(values.float())
    assert gap(logits, -logits) == gap(logits.float(), -logits.float())
    for prior in (class_imbalance, indecision):
        assert prior(logits).dtype == torch.float32 and prior(logits) == prior(logits.float())
