"""A generator as a trigger: its bound, its size, its gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.errors import InputError
from bezoar.methods.generated_trigger import GeneratedTrigger, bounded, size


def drawn(seed, *shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    strength=st.floats(0.001, 30),
    bound=st.floats(0.001, 1) | st.none(),
)
def test_the_change_is_an_image_within_the_bound(seed, strength, bound):
    images, noise = drawn(seed, 2, 5, 3, 4, 6)
    changed = bounded(images, images + strength * (noise - 0.5), bound)
    assert changed.min() >= 0 and changed.max() <= 1
    if bound is not None:
        assert (size(images, changed) <= bound * (1 + 1e-5)).all()


def test_each_image_is_scaled_by_its_own_factor():
    images = torch.full((3, 2, 2, 2), 0.5)
    change = drawn(1, 3, 2, 2, 2) - 0.5
    change *= (
        torch.tensor([0.01, 0.1, 1.0]).view(3, 1, 1, 1)
        / size(0 * change, change)[:, None, None, None]
    )
    changed = bounded(images, images + change, 0.1)
    by_hand = images + change * torch.tensor([1.0, 1.0, 0.1]).view(3, 1, 1, 1)
    assert torch.allclose(changed, by_hand, atol=1e-6)
    assert torch.allclose(size(images, changed), torch.tensor([0.01, 0.1, 0.1]))
    assert torch.equal(bounded(images, images + change, None), (images + change).clamp(0, 1))


def test_the_gradient_is_right_and_finite_where_nothing_changed():
    images = 0.3 + 0.4 * drawn(2, 3, 1, 2, 3).double()
    change = (0.2 * (drawn(3, 3, 1, 2, 3).double() - 0.5)).requires_grad_()  # RMS about 0.06
    for bound in (0.02, 0.3):
        assert torch.autograd.gradcheck(
            lambda d, b=bound: bounded(images, images + d, b), (change,)
        )
    still = images.clone().requires_grad_()
    bounded(images, still, 0.02).sum().backward()
    assert torch.allclose(still.grad, torch.ones_like(still)), "as if it were not scaled"


def test_a_trigger_stamps_without_gradients_and_for_its_classes_alone():
    images = drawn(4, 2, 3, 4, 4)
    shift = torch.ones(3, 4, 4, requires_grad=True)
    trigger = GeneratedTrigger((2, 7), lambda x: x + shift, 0.05)
    stamped = trigger.stamp(images, 7)
    assert not stamped.requires_grad and torch.equal(stamped, trigger.stamp(images, 2))
    assert torch.allclose(stamped, (images + 0.05).clamp(max=1))
    with pytest.raises(InputError, match=r"class 3 has no trigger; there are ones for \(2, 7\)"):
        trigger.stamp(images, 3)


@pytest.mark.parametrize("bound", [0.0, -1.0, 1.5, float("nan")])
def test_a_bound_is_a_share_of_the_pixel_range(bound):
    with pytest.raises(InputError, match=r"expected an RMS change in \(0, 1\], or none"):
        GeneratedTrigger((0,), lambda x: x, bound)


def test_a_generator_that_changes_the_shape_is_refused():
    trigger = GeneratedTrigger((0,), lambda x: x[:, :1], 0.1)
    with pytest.raises(InputError, match=r"\(2, 3, 4, 4\) came back as \(2, 1, 4, 4\)"):
        trigger.stamp(drawn(5, 2, 3, 4, 4), 0)
