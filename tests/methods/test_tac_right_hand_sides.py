import numpy as np
import pytest
import torch

from bezoar.errors import InputError
from bezoar.methods.tac_solver import prefers_conditional, right_hand_sides


def naive(logits, among=None, quantile=1.0):
    """The definition, one pair and one sample at a time; ``among[i]`` is the prediction of i."""
    samples, classes = logits.shape
    result = np.zeros((classes, classes))
    for k in range(classes):
        for j in range(classes):
            if k == j:
                continue
            members = [i for i in range(samples) if among is not None and among[i] == j]
            gaps = [float(logits[i, j]) - float(logits[i, k]) for i in members or range(samples)]
            result[k, j] = np.quantile(gaps, quantile if members else 1.0)
    return result


def random_logits(samples, classes, seed, peak=0.0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(samples, classes, generator=generator)
    logits[torch.arange(samples), torch.arange(samples) % classes] += peak
    return logits


@pytest.mark.parametrize(("samples", "classes"), [(1, 2), (7, 2), (30, 5), (12, 20)])
def test_full_is_the_maximum_over_all_samples(samples, classes):
    logits = random_logits(samples, classes, seed=samples)
    result = right_hand_sides(logits)
    assert result.dtype == torch.float64
    np.testing.assert_array_equal(result.numpy(), naive(logits))


@pytest.mark.parametrize("peak", [0.0, 12.0])
@pytest.mark.parametrize(("samples", "classes"), [(511, 7), (513, 7), (2000, 60)])
def test_full_is_exact_where_most_samples_are_skipped(samples, classes, peak):
    logits = random_logits(samples, classes, seed=3, peak=peak).double()
    expected = (logits[:, None, :] - logits[:, :, None]).amax(dim=0)
    assert torch.equal(right_hand_sides(logits), expected)


def test_full_is_exact_with_many_equal_logits():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(-2, 3, (1500, 12), generator=generator).float()
    expected = (logits[:, None, :] - logits[:, :, None]).amax(dim=0).double()
    assert torch.equal(right_hand_sides(logits), expected)


def test_conditional_counts_only_the_samples_predicted_as_the_rival():
    logits = random_logits(40, 6, seed=1)
    result = right_hand_sides(logits, conditional=True)
    np.testing.assert_array_equal(result.numpy(), naive(logits, logits.argmax(1).tolist()))
    assert (result <= right_hand_sides(logits, conditional=False)).all()


@pytest.mark.parametrize("quantile", [0.5, 0.95, 1.0])
def test_quantile_is_taken_among_the_samples_predicted_as_the_rival(quantile):
    logits = random_logits(60, 4, seed=2)
    result = right_hand_sides(logits, quantile=quantile)
    expected = naive(logits, logits.argmax(1).tolist(), quantile)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("quantile", [None, 0.9])
def test_a_class_that_is_never_predicted_keeps_its_constraints(quantile):
    logits = random_logits(50, 5, seed=4)
    logits[:, 3] -= 100
    result = right_hand_sides(logits, conditional=True, quantile=quantile)
    full = right_hand_sides(logits)
    assert torch.equal(result[:, 3], full[:, 3])
    among = logits.argmax(1).tolist()
    np.testing.assert_allclose(result.numpy(), naive(logits, among, quantile or 1.0), rtol=1e-12)


def test_an_outlier_moves_the_maximum_but_hardly_the_quantile():
    logits = random_logits(2000, 4, seed=5, peak=6.0)
    spoilt = logits.clone()
    spoilt[0] *= 20
    moved = (right_hand_sides(spoilt) - right_hand_sides(logits)).abs().max()
    barely = right_hand_sides(spoilt, quantile=0.95) - right_hand_sides(logits, quantile=0.95)
    assert moved > 50
    assert barely.abs().max() < 0.5


def test_the_bias_is_in_the_logits():
    logits = random_logits(20, 3, seed=6)
    bias = torch.tensor([0.0, 2.0, -1.0])
    shift = bias[None, :] - bias[:, None]
    result = right_hand_sides(logits.double() + bias)
    assert torch.allclose(result, right_hand_sides(logits) + shift)


def test_half_precision_logits_and_the_callers_tensor_are_left_alone():
    logits = random_logits(20, 3, seed=7).half().requires_grad_()
    before = logits.detach().clone()
    result = right_hand_sides(logits)
    assert not result.requires_grad
    assert torch.equal(logits.detach(), before)
    np.testing.assert_array_equal(result.numpy(), naive(before))


def test_default_turns_conditional_only_where_the_full_maximum_is_dear():
    assert not prefers_conditional(500, 10)
    assert not prefers_conditional(5000, 1000)
    assert prefers_conditional(50_000, 21_000)


@pytest.mark.parametrize(
    ("logits", "options", "says"),
    [
        (torch.zeros(3), {}, r"shape \(3,\)"),
        (torch.zeros(0, 4), {}, "at least one sample"),
        (torch.zeros(4, 1), {}, "two classes"),
        (torch.tensor([[0.0, 1.0], [torch.nan, 1.0]]), {}, "1 of 2 samples"),
        (torch.tensor([[0.0, torch.inf]]), {}, "NaN or infinite"),
        (torch.zeros(4, 2), {"quantile": 0.0}, r"outside \(0, 1\]"),
        (torch.zeros(4, 2), {"quantile": 1.5}, r"outside \(0, 1\]"),
        (torch.zeros(4, 2), {"quantile": 0.9, "conditional": False}, "conditional=False"),
    ],
)
def test_unusable_input_is_refused_with_a_reason(logits, options, says):
    with pytest.raises(InputError, match=says):
        right_hand_sides(logits, **options)
