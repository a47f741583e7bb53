"""Patterns in images: the exact window, uniform places, gradients of the window alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import nn

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.methods.dhbe_placement import placed, placed_at, positions


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def slow(patterns, image, corners):
    result = patterns.new_zeros(*patterns.shape[:2], *image)
    for i in range(len(patterns)):
        top, left = corners[i % len(corners)].tolist()
        for row in range(patterns.shape[2]):
            for column in range(patterns.shape[3]):
                result[i, :, top + row, left + column] = patterns[i, :, row, column]
    return result


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 4),
    channels=st.integers(1, 3),
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    rest=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    each=st.booleans(),
)
def test_the_window_and_its_gradient_are_those_of_a_slow_loop(
    seed, count, channels, window, rest, each
):
    generator = seeded(seed)
    image = (window[0] + rest[0], window[1] + rest[1])
    corners = positions(count, window, image, generator, each=each)
    assert corners.shape == ((count if each else 1), 2)
    patterns = torch.randn(count, channels, *window, generator=generator).requires_grad_()
    result = placed_at(patterns, image, corners)
    assert torch.equal(result, slow(patterns, image, corners))
    weights = torch.randn(result.shape, generator=generator)
    (gradient,) = torch.autograd.grad((weights * result).sum(), patterns)
    (by_loop,) = torch.autograd.grad((weights * slow(patterns, image, corners)).sum(), patterns)
    assert torch.equal(gradient, by_loop)


@pytest.mark.parametrize("each", [True, False])
def test_a_seed_draws_what_is_placed(each):
    patterns = torch.rand(6, 2, 3, 2, generator=seeded(0))
    corners = positions(6, (3, 2), (9, 8), seeded(5), each=each)
    result = placed(patterns, (9, 8), seeded(5), each=each)
    assert torch.equal(result, slow(patterns, (9, 8), corners))
    assert not torch.equal(result, placed(patterns, (9, 8), seeded(6), each=each))
    if each:
        assert len(set(map(tuple, corners.tolist()))) > 1


def test_every_place_is_equally_likely():
    corners = positions(30_000, (3, 2), (6, 6), seeded(1), each=True)
    flat = corners[:, 0] * 5 + corners[:, 1]
    assert corners[:, 0].max() == 3 and corners[:, 1].max() == 4
    counts = torch.bincount(flat, minlength=20)
    assert len(counts) == 20 and chisquare(counts.numpy()).pvalue > 0.001
    generator = seeded(2)
    shared = torch.cat([positions(8, (3, 2), (6, 6), generator, each=False) for _ in range(2000)])
    counts = torch.bincount(shared[:, 0] * 5 + shared[:, 1], minlength=20)
    assert len(counts) == 20 and chisquare(counts.numpy()).pvalue > 0.001


def test_a_pattern_that_covers_all_is_not_moved_and_nothing_is_drawn():
    patterns = torch.rand(2, 3, 4, 5)
    generator = seeded(3)
    before = generator.get_state()
    assert placed(patterns, (4, 5), generator, each=True) is patterns
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(placed_at(patterns, (4, 5), torch.zeros(1, 2, dtype=torch.int64)), patterns)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_adding_in_normalised_space_is_adding_in_pixel_space(layout):
    classifier = Classifier(nn.Identity(), mean=(0.49, 0.48, 0.45), std=(0.20, 0.25, 0.30))
    generator = seeded(4)
    mean = torch.tensor(classifier.mean).view(1, -1, 1, 1)
    std = torch.tensor(classifier.std).view(1, -1, 1, 1)
    x = torch.randn(16, 3, 12, 10, generator=generator).contiguous(memory_format=layout)
    patterns = torch.rand(16, 3, 5, 5, generator=generator).contiguous(memory_format=layout)
    pad = placed(2 * patterns - 1, (12, 10), generator, each=True)
    by_pixels = classifier.normalise(x * std + mean + pad)
    assert (x + pad / std - by_pixels).abs().max() < 1e-5
    assert (x + pad).is_contiguous(memory_format=layout)


def test_half_the_bits_stay_half():
    patterns = torch.rand(2, 1, 3, 3).bfloat16()
    assert placed(patterns, (8, 8), seeded(0)).dtype == torch.bfloat16


@pytest.mark.parametrize("size", [(5, 3), (3, 9)])
def test_a_pattern_larger_than_the_image_is_refused(size):
    words = rf"a pattern of {size[0]}x{size[1]} pixels does not fit into images of 4x8"
    patterns = torch.zeros(1, 1, *size)
    with pytest.raises(InputError, match=words):
        placed(patterns, (4, 8), seeded(0))
    with pytest.raises(InputError, match=words):
        placed_at(patterns, (4, 8), torch.zeros(1, 2, dtype=torch.int64))


def test_patterns_have_four_axes():
    with pytest.raises(InputError, match=r"shape \(3, 2, 2\); expected \(images, channels"):
        placed(torch.zeros(3, 2, 2), (4, 4), seeded(0))
