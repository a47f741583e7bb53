"""Pattern generators: counts of the specification, range, diversity, the published order."""

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch.utils.flop_counter import FlopCounterMode

from bezoar.errors import InputError
from bezoar.networks.generators import drawn
from bezoar.networks.pattern_generators import PatternGenerator


def latents(count, length, seed=0):
    return torch.randn(count, length, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("size", "count"), [(3, 149_891), (5, 413_059), (10, 898_307), (32, 2_329_091)]
)
def test_counts_are_those_of_the_published_generator(size, count):
    generator = PatternGenerator(3, size)
    assert sum(parameter.numel() for parameter in generator.parameters()) == count


def test_multiply_adds_are_those_of_the_published_generator():
    generator = PatternGenerator(3, 5).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        generator(latents(1, 256))
    assert round(counter.get_total_flops() / 2e6, 2) == 0.45


@pytest.mark.parametrize(
    ("size", "base", "doublings"),
    [
        *((k, (k, k), 0) for k in range(3, 10)),
        *((10, (5, 5), 1), (18, (9, 9), 1), (32, (8, 8), 2), (36, (9, 9), 2)),
        *((1, (3, 3), 0), (2, (3, 3), 0), (11, (6, 6), 1), (15, (8, 8), 1)),
        *(((2, 5), (3, 5), 0), ((5, 24), (5, 24), 0), ((12, 20), (6, 10), 1)),
    ],
)
def test_the_forward_is_the_recipe(size, base, doublings):
    generator = drawn(lambda: PatternGenerator(2, size, latent=7, width=6), 0).double()
    z, decoder = latents(5, 7).double(), generator.decoder
    assert decoder.base == base and len(decoder.blocks) == doublings
    assert decoder.linear.out_features == (12 if doublings else 6) * base[0] * base[1]
    x = decoder.norm(decoder.linear(z).reshape(5, -1, *base))
    for convolution, norm, _ in decoder.blocks:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = norm(F.conv2d(x, convolution.weight, convolution.bias, padding=1))
        x = torch.where(x > 0, x, 0.2 * x)
    height, width = (size, size) if isinstance(size, int) else size
    top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
    x = generator.last(x[:, :, top : top + height, left : left + width])
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    made = generator(z)
    assert generator.shape == (2, height, width) == made.shape[1:]
    torch.testing.assert_close(made, ((x - mean) / (var + 1e-5).sqrt()).tanh(), rtol=0, atol=1e-10)


@settings(derandomize=True, deadline=None, max_examples=10)
@given(st.integers(1, 3), st.integers(1, 24), st.integers(1, 24))
def test_patterns_of_any_size_lie_between_minus_one_and_one(channels, height, width):
    generator = drawn(lambda: PatternGenerator(channels, (height, width), latent=4, width=4), 0)
    made = generator(latents(6, 4))
    assert made.shape == (6, channels, height, width)
    assert 0.3 < made.abs().max() <= 1


@pytest.mark.parametrize("scale", [0.1, 100])
def test_patterns_neither_vanish_nor_saturate_whatever_was_learned(scale):
    generator = drawn(lambda: PatternGenerator(3, 5), 0)
    with torch.no_grad():
        generator.last.weight.mul_(scale)
        generator.last.bias.add_(scale)
        made = generator(latents(256, 256))
    assert 0.52 < made.abs().mean() < 0.58
    assert 0.60 < made.std() < 0.66
    assert made.std(0).min() > 0.1  # the patterns differ, at every pixel


def test_groups_are_calls_one_after_the_other():
    generator, again = (
        drawn(lambda: PatternGenerator(2, 6, latent=4, width=4), 0).double() for _ in range(2)
    )
    z = latents(8, 4).double()
    made = generator(z, groups=2)
    torch.testing.assert_close(
        made, torch.cat([again(part) for part in z.chunk(2)]), rtol=0, atol=1e-12
    )
    for name, value in again.named_buffers():
        torch.testing.assert_close(generator.get_buffer(name), value)
    assert (made - generator(z)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 5), "channels .* from 1 to 64"),
        ((3, 0), "size .* 0"),
        ((3, 5.0), "size .* 5.0"),
        ((3, (5, 5, 5)), "height, width"),
        ((3, (5, True)), "size .* True"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        PatternGenerator(*arguments)


def test_latent_vectors_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"\(n, 4\) and got"):
        PatternGenerator(1, 5, latent=4, width=4)(torch.zeros(2, 5))
