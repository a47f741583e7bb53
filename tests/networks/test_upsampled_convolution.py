"""Upsampling and convolution in one: equal to one after the other, with fewer multiply-adds."""

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bezoar.networks.generators import drawn
from bezoar.networks.upsampled_convolution import UpsampledConvolution

CHANNELS_LAST = torch.channels_last


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(layer, x):
    enlarged = F.interpolate(x, scale_factor=2, mode="nearest")
    return F.conv2d(enlarged, layer.weight, layer.bias, padding=1)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)
)
def test_outputs_and_gradients_are_those_of_upsampling_and_convolving(n, inputs, outputs, h, w):
    layer = drawn(lambda: UpsampledConvolution(inputs, outputs), 0).double()
    x = numbers(n, inputs, h, w).requires_grad_()
    factors = numbers(n, outputs, 2 * h, 2 * w, seed=1)
    found, wanted = layer(x), plain(layer, x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11)
    leaves = (x, layer.weight, layer.bias)
    for ours, theirs in zip(
        torch.autograd.grad((factors * found).sum(), leaves),
        torch.autograd.grad((factors * wanted).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("layout", [torch.contiguous_format, CHANNELS_LAST])
def test_the_memory_format_of_the_input_stays(layout):
    layer = drawn(lambda: UpsampledConvolution(3, 4), 0)
    x = numbers(2, 3, 5, 6).float().contiguous(memory_format=layout)
    assert layer(x).is_contiguous(memory_format=layout)
    assert not layer(x).is_contiguous(memory_format=CHANNELS_LAST) or layout is CHANNELS_LAST
    layer.to(memory_format=layout)
    assert layer(x).is_contiguous(memory_format=layout)


def test_weights_are_drawn_and_named_as_those_of_a_convolution():
    ours = drawn(lambda: UpsampledConvolution(3, 4), 5).state_dict()
    theirs = drawn(lambda: nn.Conv2d(3, 4, 3, padding=1), 5).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_it_takes_four_ninths_of_the_multiply_adds():
    layer = drawn(lambda: UpsampledConvolution(8, 4), 0).double()
    counted = []
    for forward in (layer, lambda x: plain(layer, x)):
        with FlopCounterMode(display=False) as counter:
            forward(numbers(2, 8, 6, 5))
        counted.append(counter.get_total_flops())
    assert 9 * counted[0] == 4 * counted[1]
