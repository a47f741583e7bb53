"""Sample generators: sizes, counts of the specification, statistics, the published order."""

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch.utils.flop_counter import FlopCounterMode

from bezoar.errors import InputError
from bezoar.networks.generators import drawn
from bezoar.networks.sample_generators import SampleGenerator, plan


def latents(count, length, seed=0):
    return torch.randn(count, length, generator=torch.Generator().manual_seed(seed))


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def slow(generator, z, doublings):
    """The generator by its recipe, in train mode, the plain way."""
    decoder = generator.decoder
    x = decoder.norm(decoder.linear(z).reshape(len(z), -1, *decoder.base))
    for convolution, norm, activation in decoder.blocks:
        x = F.interpolate(x, scale_factor=2, mode="nearest") if doublings else x
        x = norm(F.conv2d(x, convolution.weight, convolution.bias, padding=1))
        x = torch.where(x > 0, x, 0.2 * x)
        assert type(activation).__name__ == "LeakyReLU"
    height, width = generator.shape[1:]
    top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
    x = generator.last(x[:, :, top : top + height, left : left + width]).tanh()
    mean = x.mean((0, 2, 3), keepdim=True)
    return (x - mean) / (x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize(
    ("size", "planned"),
    [
        *((32, (8, 2)), (64, (8, 3)), (28, (7, 2)), (48, (6, 3)), (96, (6, 4)), (224, (7, 5))),
        *((16, (8, 1)), (8, (8, 0)), (40, (5, 3)), (36, (9, 2)), (9, (9, 0)), (5, (5, 0))),
        *((33, (9, 2)), (50, (7, 3)), (30, (8, 2)), (11, (6, 1)), (4, (5, 0)), (1, (5, 0))),
    ],
)
def test_planned_sizes(size, planned):
    assert plan(size) == planned


def test_the_plan_is_the_smallest_size_that_suffices():
    possible = sorted(base << doublings for base in range(5, 10) for doublings in range(10))
    for side in range(1, 2305):
        base, doublings = plan(side)
        assert 5 <= base <= 9
        assert base << doublings == next(size for size in possible if size >= side)


@pytest.mark.parametrize(("size", "count"), [(32, 2_329_091), (64, 2_476_931)])
def test_counts_are_those_of_the_published_generator(size, count):
    assert parameters(SampleGenerator((3, size, size))) == count


def test_multiply_adds_are_those_of_the_published_generator_and_less_than_half_in_fact():
    generator = drawn(lambda: SampleGenerator((3, 32, 32)), 0).eval()
    z, counted = latents(1, 256), []
    for forward in (lambda: slow(generator, z, 2), lambda: generator(z)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            forward()
        counted.append(counter.get_total_flops() / 2e6)  # a multiply-add is two operations
    assert round(counted[0]) == 117
    assert counted[1] < 55


@pytest.mark.parametrize(
    ("shape", "base", "doublings"),
    [
        ((3, 32, 32), (8, 8), 2),
        ((1, 8, 8), (8, 8), 0),
        ((1, 28, 28), (7, 7), 2),
        ((3, 24, 48), (6, 12), 2),
        ((2, 33, 21), (9, 6), 2),
        ((1, 3, 6), (5, 6), 0),
        ((3, 11, 12), (6, 6), 1),
    ],
)
def test_the_forward_is_the_recipe(shape, base, doublings):
    generator = drawn(lambda: SampleGenerator(shape, latent=7, width=6), 0).double()
    z = latents(5, 7).double()
    made = generator(z)
    assert generator.decoder.base == base
    assert made.shape == (5, *shape)
    assert len(generator.decoder.blocks) == max(1, doublings)
    torch.testing.assert_close(made, slow(generator, z, doublings), rtol=0, atol=1e-10)


@settings(derandomize=True, deadline=None, max_examples=15)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(4, 8))
def test_images_of_any_size_are_standardised_over_their_batch(channels, height, width, count):
    generator = drawn(lambda: SampleGenerator((channels, height, width), latent=4, width=4), 0)
    made = generator.double()(latents(count, 4).double())
    assert made.shape == (count, channels, height, width)
    torch.testing.assert_close(
        made.mean((0, 2, 3)), torch.zeros(channels).double(), rtol=0, atol=1e-9
    )
    # The norm divides by sqrt(variance + 1e-5), so a batch that hardly varies stays below 1.
    assert 0.9 < made.var((0, 2, 3), correction=0).max() <= 1


def test_without_doublings_it_is_not_linear():
    decoder = drawn(lambda: SampleGenerator((1, 8, 8), latent=4, width=4), 0).eval().decoder
    z = latents(3, 4)
    with torch.no_grad():
        zero, one, other, both = (decoder(x) for x in (0 * z, z, z.flip(0), z + z.flip(0)))
    assert (both - one - other + zero).abs().max() > 1e-3


def test_groups_are_calls_one_after_the_other():
    generator, again = (
        drawn(lambda: SampleGenerator((2, 9, 9), latent=4, width=4), 0).double() for _ in range(2)
    )
    z = latents(9, 4).double()
    made = generator(z, groups=3)
    wanted = torch.cat([again(part) for part in z.chunk(3)])
    torch.testing.assert_close(made, wanted, rtol=0, atol=1e-12)
    for name, value in again.named_buffers():
        torch.testing.assert_close(generator.get_buffer(name), value)
    assert (made - generator(z)).abs().max() > 1e-3
    with pytest.raises(InputError, match=r"batch of 9 .* 2 equal groups"):
        generator(z, groups=2)


def test_weights_are_drawn_by_the_callers_seed():
    first, second, third = (
        drawn(lambda: SampleGenerator((1, 8, 8), latent=4, width=4), seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first.last.weight, second.last.weight)
    assert not torch.equal(first.last.weight, third.last.weight)


@pytest.mark.parametrize(
    ("shape", "arguments", "message"),
    [
        ((3, 32), {}, "channels, height, width"),
        (32, {}, "channels, height, width"),
        ((0, 32, 32), {}, "channels .* from 1 to 64"),
        ((3, 32, 32.0), {}, "size .* 32.0"),
        ((3, 0, 32), {}, "size .* 0"),
        ((3, 5000, 32), {}, "size .* 5000"),
        ((3, 32, 32), {"latent": 0}, "latent"),
        ((3, 32, 32), {"width": True}, "width"),
    ],
)
def test_bad_arguments_are_refused(shape, arguments, message):
    with pytest.raises(InputError, match=message):
        SampleGenerator(shape, **arguments)


@pytest.mark.parametrize("shape", [(4,), (2, 5), (2, 4, 1, 1)])
def test_latent_vectors_of_another_shape_are_refused(shape):
    generator = SampleGenerator((1, 8, 8), latent=4, width=4)
    with pytest.raises(InputError, match=r"\(n, 4\) and got"):
        generator(torch.zeros(shape))
