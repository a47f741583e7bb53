"""Generators: sizes, ranges, weights that come back, no draw that was not asked for."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from bezoar.networks.generators import UNet, drawn, rebuilt, weights


@settings(derandomize=True, deadline=None, max_examples=15)
@given(
    st.integers(0, 3),
    st.integers(1, 17),
    st.integers(1, 17),
    st.integers(1, 3),
    st.integers(2, 18),
    st.booleans(),
)
def test_any_size_depth_and_width_work(count, height, width, depth, channels, skips):
    network = UNet(2, 3, width=channels, depth=depth, skips=skips)
    assert network(torch.rand(count, 2, height, width)).shape == (count, 3, height, width)


@pytest.mark.parametrize(("output", "low"), [("tanh", -1), ("unit", 0)])
def test_the_output_keeps_its_range(output, low):
    network = drawn(lambda: UNet(1, 1, width=4, depth=1, output=output), 0)
    plain = drawn(lambda: UNet(1, 1, width=4, depth=1), 0)
    images = 100 * torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.last.weight.mul_(100)
        plain.last.weight.mul_(100)
        made = network(images)
        assert made.min() >= low and made.max() <= 1 and made.max() - made.min() > 0.9 * (1 - low)
        assert plain(images).abs().max() > 1


def test_what_is_made_of_an_image_does_not_depend_on_its_batch():
    network = drawn(lambda: UNet(3, 3, width=8, depth=3), 0)
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network.train()(images)[1:2], network.eval()(images[1:2]))


def test_skips_let_details_through_that_the_way_down_loses():
    """A checkerboard and its negative are the same grey once they are averaged."""
    images = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    images = images.float().view(1, 1, 8, 8)
    for skips in (False, True):
        network = drawn(lambda: UNet(1, 1, width=4, depth=1, skips=skips), 0)  # noqa: B023
        with torch.no_grad():
            network.down[0] = torch.nn.Conv2d(1, 4, 1)
            gap = (network(images) - network(1 - images)).abs().max()
        assert bool(gap > 1e-3) == skips


def test_weights_come_back_without_a_draw_and_under_inference_mode():
    def build():
        return UNet(3, 1, width=8, depth=2)

    network = drawn(build, 3)
    stored = {**weights(network, "one"), **weights(drawn(build, 4), "other")}
    state = torch.get_rng_state()
    images = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        again = rebuilt(build, stored, "one")
        assert torch.equal(again(images), network(images))
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        network.last.weight.add_(1)
    assert torch.equal(again.last.weight, stored["one.last.weight"])  # copies, not views


def test_a_seed_draws_the_same_weights_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first, second, third = (drawn(lambda: UNet(1, 1, width=4), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.last.weight, second.last.weight)
    assert not torch.equal(first.last.weight, third.last.weight)
