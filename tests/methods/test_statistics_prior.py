"""The distance of remembered statistics: closed forms, gradients, and no hook that stays."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Normal, kl_divergence

from bezoar import networks
from bezoar.errors import InputError
from bezoar.methods.recalibration import recalibrate
from bezoar.methods.statistics_prior import StatisticsPrior, divergence, moments, running_norms


def drawn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def built(seed, name="small-cnn", **arguments):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = networks.build(name, **arguments)
        for norm in running_norms(network):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.3, 3)
    return network.eval()


def hooks(network):
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in network.modules())


def distance(network, images):
    with StatisticsPrior(network) as prior:
        network(images)
        return prior.distance()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(mean=st.floats(-5, 5), sd=st.floats(0.1, 9), old=st.floats(-5, 5), old_sd=st.floats(0.1, 9))
def test_the_divergence_is_that_of_normal_distributions(mean, sd, old, old_sd):
    mean, sd, old, old_sd = (torch.tensor(v, dtype=torch.float64) for v in (mean, sd, old, old_sd))
    found = divergence(mean, sd**2, old, old_sd**2)
    exact = kl_divergence(Normal(mean, sd), Normal(old, old_sd))
    assert found.item() == pytest.approx(exact.item(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 6), (4, 3, 5, 6), (1, 3, 1, 2), (2, 3, 2, 2, 2)])
def test_moments_and_their_gradient_are_those_of_var_mean(shape):
    axes = [0, *range(2, len(shape))]
    values = (2 + drawn(1, *shape)).double().requires_grad_()
    mean, variance = moments(values)
    expected = torch.var_mean(values, axes)
    assert torch.allclose(mean, expected[1]) and torch.allclose(variance, expected[0])
    assert torch.autograd.gradcheck(moments, values)
    for chosen in (0, 1):  # also where only one of the two is used
        assert torch.autograd.gradcheck(lambda x, c=chosen: moments(x)[c], values)


def test_moments_far_from_zero_lose_no_digits():
    values = 1000 + drawn(2, 64, 2, 8, 8)
    exact = torch.var_mean(values.double(), (0, 2, 3))
    mean, variance = moments(values.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(mean.double(), exact[1], rtol=1e-6)
    assert torch.allclose(variance.double(), exact[0], rtol=1e-4)


def test_the_distance_is_the_mean_over_layers_of_the_mean_over_channels():
    network = built(3)
    images = drawn(4, 6, 1, 8, 8)
    x, expected = images, []
    for conv, norm in zip(network.convs, network.norms, strict=True):
        x = conv(x)
        layer = 0.0
        for channel in range(x.shape[1]):
            numbers = x[:, channel].flatten()
            new = Normal(numbers.mean(), (numbers.var() + norm.eps).sqrt())
            old = Normal(norm.running_mean[channel], (norm.running_var[channel] + norm.eps).sqrt())
            layer += kl_divergence(new, old).item() / x.shape[1]
        expected.append(layer)
        x = norm(x).relu()
    assert len(expected) == 3 and x.shape[1] != images.shape[1]
    assert distance(network, images).item() == pytest.approx(sum(expected) / 3, rel=1e-4)


def test_the_batch_that_the_statistics_come_from_is_at_no_distance():
    network = built(5)
    norm = network.norms[0]
    images = drawn(6, 64, 1, 8, 8)
    with torch.no_grad():
        norm.running_var, norm.running_mean = torch.var_mean(network.convs[0](images), (0, 2, 3))
    alone = nn.Sequential(network.convs[0], norm)
    assert distance(alone, images).item() == pytest.approx(0, abs=1e-6)
    assert distance(alone, images + 1).item() > 0.01
    assert distance(alone, 2 * images).item() > 0.01


def test_real_images_are_nearer_than_noise_and_a_descent_leads_there(digits):
    network = digits.twin.copy().network
    real = digits.twin.normalise(digits.test.images[:128].float() / 255)
    noise = drawn(7, 128, 1, 8, 8)
    near, far = distance(network, real).item(), distance(network, noise).item()
    assert near < 0.05 * far, "training images are what the statistics are of"
    images = noise.clone().requires_grad_()
    optimizer = torch.optim.Adam([images], 0.05)
    for _ in range(40):
        optimizer.zero_grad()
        distance(network, images).backward()
        optimizer.step()
    assert distance(network, images).item() < 0.2 * far
    assert all(b.grad is None and not b.requires_grad for b in network.buffers())


def test_the_gradient_is_right_through_several_layers():
    network = built(8).double()
    images = drawn(9, 3, 1, 4, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: distance(network, x), images)


def test_a_dead_channel_costs_nothing_while_it_stays_dead():
    norm = nn.BatchNorm2d(2).eval()
    norm.running_var[0] = 0.0
    images = drawn(10, 32, 2, 8, 8)
    images[:, 0] = 0.0
    norm.running_var[1], norm.running_mean[1] = torch.var_mean(images[:, 1])
    images.requires_grad_()
    value = distance(norm, images)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-5) and torch.isfinite(images.grad).all()


class Twice(nn.Module):
    """One norm that sees two things in one pass, by name the second time."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x):
        return self.norm(x) + self.norm(input=3 * x)


def test_a_layer_that_runs_twice_counts_twice_and_passes_do_not_mix():
    network = Twice().eval()
    x = drawn(11, 8, 1, 4, 4)
    both = (distance(network.norm, x) + distance(network.norm, 3 * x)) / 2
    assert distance(network, x).item() == pytest.approx(both.item())
    with StatisticsPrior(network) as prior:
        network(5 * x)
        network(x)
        assert prior.distance().item() == pytest.approx(both.item())
        assert prior.distance().item() == pytest.approx(both.item()), "asking changes nothing"


def test_blocks_nest_and_each_reads_its_own_network():
    first, second = built(12), built(13)
    x, y = drawn(14, 4, 1, 8, 8), drawn(15, 4, 1, 8, 8)
    with StatisticsPrior(first) as outer:
        first(x)
        with StatisticsPrior(first) as inner, StatisticsPrior(second) as other:
            first(y)
            second(x)
            assert inner.distance() == outer.distance() == distance(first, y)
            assert other.distance() == distance(second, x)
        first(x)
        assert outer.distance() == distance(first, x)
    assert hooks(first) == hooks(second) == 0


def test_no_hook_stays_after_an_exception_and_others_are_left_alone():
    network = built(16)
    network.fc.register_forward_pre_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match="channels"), StatisticsPrior(network):
        network(torch.zeros(2, 7, 8, 8))
    assert hooks(network) == 1
    with StatisticsPrior(network) as prior:
        assert hooks(network) == 1 + 1 + 3
        network(drawn(17, 2, 1, 8, 8))
    with pytest.raises(RuntimeError, match="inside the block"):
        prior.distance()


def test_the_network_answers_as_before():
    network = built(18)
    before = copy.deepcopy(network.state_dict())
    x = drawn(19, 4, 1, 8, 8)
    plain = network(x)
    with StatisticsPrior(network) as prior:
        assert torch.equal(network(x), plain) and prior.distance().requires_grad
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_without_batch_norm_there_is_nothing_to_compare():
    for network in (built(20, norm=False), nn.BatchNorm2d(1, track_running_stats=False)):
        with StatisticsPrior(network) as prior:
            assert prior.empty and prior.distance().item() == 0
            network(drawn(21, 4, 1, 8, 8))
            assert prior.distance().item() == 0
    assert not StatisticsPrior(built(20)).empty


def test_the_distance_needs_a_pass_in_the_block():
    network = built(22)
    with StatisticsPrior(network) as prior, pytest.raises(RuntimeError, match="make one"):
        prior.distance()


def test_bfloat16_is_read_in_float32():
    network = built(23)
    x = drawn(24, 64, 1, 8, 8)
    plain = distance(network, x)
    with torch.autocast("cpu", torch.bfloat16):
        lower = distance(network, x)
    assert lower.dtype == torch.float32
    assert lower.item() == pytest.approx(plain.item(), rel=0.02)


def test_a_single_number_has_no_variance():
    norm = nn.BatchNorm1d(3).eval()
    with StatisticsPrior(norm), pytest.raises(InputError, match="batches of two images or more"):
        norm(torch.zeros(1, 3))


def test_after_recalibration_the_same_images_are_nearer():
    network = built(25, "resnet-8", width=8)
    x = drawn(26, 64, 3, 16, 16)
    before = distance(network, x).item()
    assert recalibrate(network, [x]) == len(running_norms(network))
    assert 0 <= distance(network, x).item() < 0.01 * before and math.isfinite(before)
