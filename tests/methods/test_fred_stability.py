"""Input and parameter instability: values and gradients against plain loops, and what stays."""

import copy

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from latent_models import LATENT, SHAPE, smooth_classifier, smooth_generator
from torch import nn

from bezoar import networks
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.methods.fred_input_stability import (
    InputStability,
    adversarial_shift,
    divergences,
    gaussian_shift,
    gradient_penalty,
    input_instability,
)
from bezoar.methods.fred_parameter_stability import (
    ParameterStability,
    parameter_instability,
    sharpest_step,
    virtual_step,
)

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
SUPPORT, QUERY = torch.tensor([0, 2, 4]), torch.tensor([1, 3, 5])


@pytest.fixture(autouse=True)
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def latents(seed=0):
    return torch.randn(len(LABELS), LATENT, generator=torch.Generator().manual_seed(seed))


def by_finite_differences(function, z, step=1e-5):
    slopes = torch.zeros_like(z)
    for place in range(z.numel()):
        ends = []
        for sign in (1, -1):
            moved = z.detach().clone()
            moved.view(-1)[place] += sign * step
            ends.append(float(function(moved).detach()))
        slopes.view(-1)[place] = (ends[0] - ends[1]) / (2 * step)
    return slopes


def by_autograd(function, z):
    z = z.clone().requires_grad_()
    return torch.autograd.grad(function(z), z)[0]


@settings(derandomize=True, max_examples=25, deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=6, max_size=6))
def test_divergences_are_those_of_the_definition(numbers):
    one, other = torch.tensor(numbers).view(2, 1, 3)
    p, q = one.double().softmax(1), other.double().softmax(1)
    expected = sum(p[0, k] * (p[0, k] / q[0, k]).log() for k in range(3))
    found = divergences(one, other)
    assert found.shape == (1,)
    assert float(found) == pytest.approx(float(expected), abs=1e-9, rel=1e-9)


@pytest.mark.parametrize("form", ["adversarial", "gaussian", "gradient"])
def test_gradients_of_input_instability_are_those_of_finite_differences(form):
    classifier, generator = smooth_classifier(), smooth_generator()
    how = InputStability(form=form, bound=0.05, deviation=0.02)

    def loss(z):
        # The same draws each time. Signed steps do not change with a point that hardly moves.
        draws = torch.Generator().manual_seed(3)
        images = generator(z)
        if not images.requires_grad:
            images.requires_grad_()
        logits = classifier(images)
        return input_instability(classifier, images, LABELS, logits, how, draws).sum()

    exact = by_finite_differences(loss, latents())
    away = (by_autograd(loss, latents()) - exact).abs().max()
    assert away < 1e-5 * exact.abs().max() and exact.abs().max() > 1e-4


def test_noise_is_bounded_keeps_images_images_and_the_adversarial_one_moves_answers_further():
    classifier = smooth_classifier()
    images = torch.rand(64, *SHAPE, generator=torch.Generator().manual_seed(0))
    images[:8], images[8:16] = 0.0, 1.0
    logits = classifier(images).detach()
    bound = 0.05

    def moved(steps):
        how = InputStability(bound=bound, steps=steps)
        shift = adversarial_shift(classifier, images, logits, how, torch.Generator().manual_seed(1))
        assert not shift.requires_grad
        assert float(shift.abs().max()) <= bound + 1e-12
        assert float((images + shift).min()) >= 0 and float((images + shift).max()) <= 1
        return float(divergences(logits, classifier(images + shift)).mean().detach())

    signs = (torch.rand(images.shape, generator=torch.Generator().manual_seed(2)) - 0.5).sign()
    at_random = classifier((images + bound * signs).clamp(0, 1))
    assert moved(1) > 3 * float(divergences(logits, at_random).mean().detach())
    assert moved(2) > 0.95 * moved(1)
    drawn = gaussian_shift(images, InputStability(deviation=0.03), torch.Generator().manual_seed(1))
    assert float(drawn[16:].std()) == pytest.approx(0.03, rel=0.05)
    assert float((images + drawn).min()) >= 0 and float((images + drawn).max()) <= 1


def test_the_gradient_penalty_is_the_squared_norm_of_each_images_own_gradient():
    classifier = smooth_classifier()
    images = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = gradient_penalty(classifier, images, LABELS)
    for row in range(6):
        image = images[row : row + 1].detach().requires_grad_()
        loss = F.cross_entropy(classifier(image), LABELS[row : row + 1])
        (slope,) = torch.autograd.grad(loss, image)
        assert float(found[row].detach()) == pytest.approx(float(slope.square().sum()))


def plain_moved(classifier, images, labels, etas):
    """Theta' by gradient descent on a copy, with given step sizes, as a copy of the classifier."""
    twin = Classifier(copy.deepcopy(classifier.network), mean=classifier.mean, std=classifier.std)
    for eta in etas:
        twin.network.zero_grad()
        F.cross_entropy(twin(images), labels).backward()
        with torch.no_grad():
            for parameter in twin.network.parameters():
                parameter -= eta * parameter.grad
    return twin


def rates(classifier, images, labels, how):
    """What eta is, step by step, of the spec's relative length."""
    size = sum(float(p.detach().square().sum()) for p in classifier.network.parameters()) ** 0.5
    found = []
    for _ in range(how.steps):
        twin = plain_moved(classifier, images, labels, found)
        twin.network.zero_grad()
        F.cross_entropy(twin(images), labels).backward()
        slope = sum(float(p.grad.square().sum()) for p in twin.network.parameters()) ** 0.5
        found.append(how.length / how.steps * size / slope)
    return found


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("stamped", [False, True])
def test_second_order_gradients_are_those_of_finite_differences(steps, stamped):
    classifier, generator = smooth_classifier(), smooth_generator()
    how = ParameterStability(form="second order", steps=steps, length=0.1)
    pattern = 0.2 * torch.rand(SHAPE, generator=torch.Generator().manual_seed(5)) - 0.1
    pattern = pattern if stamped else None

    def shown(z):
        images = generator(z).detach()
        support = images[SUPPORT] if pattern is None else images[SUPPORT] + pattern
        return images, support.clamp(0, 1)

    _, support = shown(latents())
    etas = rates(classifier, support, LABELS[SUPPORT], how)

    def plain(z):
        images, support = shown(z)
        twin = plain_moved(classifier, support, LABELS[SUPPORT], etas)
        return F.cross_entropy(twin(images[QUERY]), LABELS[QUERY], reduction="sum")

    def ours(z):
        return parameter_instability(
            classifier, generator(z), LABELS, SUPPORT, QUERY, how, pattern=pattern
        ).sum()

    assert float(ours(latents()).detach()) == pytest.approx(float(plain(latents()).detach()))
    found = by_autograd(ours, latents())
    assert found[SUPPORT].abs().max() > 1e-3  # through the step
    assert torch.allclose(found, by_finite_differences(plain, latents()), rtol=1e-5, atol=1e-8)


def test_first_order_is_the_limit_of_second_order_for_short_steps():
    classifier, generator = smooth_classifier(), smooth_generator()

    def gradient(form, length):
        how = ParameterStability(form=form, length=length)
        return by_autograd(
            lambda z: parameter_instability(
                classifier, generator(z), LABELS, SUPPORT, QUERY, how
            ).sum(),
            latents(),
        )

    apart = []
    for length in (0.1, 0.01, 0.001):
        first, second = gradient("first order", length), gradient("second order", length)
        assert not first[SUPPORT].any()
        assert torch.allclose(first[QUERY], second[QUERY])
        cosine = F.cosine_similarity(first.flatten(), second.flatten(), dim=0)
        apart.append(1 - float(cosine))
    assert apart[0] > 1e-3
    assert apart[1] < apart[0] / 50 and apart[2] < apart[1] / 50  # an angle that falls with r


@pytest.mark.parametrize("form", ["first order", "second order"])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_step_is_as_long_as_asked_and_lowers_the_loss_of_the_half_it_is_made_on(form, steps):
    classifier = smooth_classifier()
    images = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))
    how = ParameterStability(form=form, steps=steps, length=0.02)
    moved = virtual_step(classifier, images, LABELS, how)
    before = dict(classifier.network.named_parameters())
    size = sum(value.square().sum() for value in before.values()).sqrt()
    way = sum((moved[name] - value).square().sum() for name, value in before.items()).sqrt()
    assert float((way / size).detach()) == pytest.approx(0.02, rel=1e-9 if steps == 1 else 0.1)
    assert float((way / size).detach()) <= 0.02 * (1 + 1e-9)
    loss = F.cross_entropy(classifier(images), LABELS)
    after = parameter_instability(
        classifier, images, LABELS, torch.arange(6), torch.arange(6), how
    ).mean()
    assert float(after.detach()) < float(loss.detach())


def test_sharpness_goes_uphill_by_a_share_of_each_filters_norm():
    classifier = smooth_classifier()
    images = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))
    how = ParameterStability(form="sharpness", radius=0.05)
    moved = sharpest_step(classifier, images, LABELS, how)
    for name, value in classifier.network.named_parameters():
        if value.ndim == 1:
            assert torch.equal(moved[name], value)
        else:
            way = (moved[name] - value).flatten(1).norm(dim=1)
            assert torch.allclose(way, 0.05 * value.flatten(1).norm(dim=1))
    everything = torch.arange(6)
    after = parameter_instability(classifier, images, LABELS, everything, everything, how)
    loss = F.cross_entropy(classifier(images), LABELS, reduction="none")
    assert float(after.mean()) > float(loss.mean().detach())


@pytest.mark.parametrize("form", ["first order", "second order", "sharpness"])
def test_weights_buffers_flags_and_gradients_stay(form):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = networks.build("resnet-8", num_classes=3, channels=2, width=4).eval()
    classifier = Classifier(network, mean=0.5, std=0.25)
    network.fc.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.rand(6, 2, 8, 8, requires_grad=True)
    how = ParameterStability(form=form, steps=2)
    losses = parameter_instability(classifier, images, LABELS, SUPPORT, QUERY, how)
    assert losses.shape == (3,)
    losses.sum().backward()
    assert images.grad[QUERY].abs().max() > 0
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    flags = {name for name, value in network.named_parameters() if not value.requires_grad}
    assert flags == {"fc.bias"}


@pytest.mark.parametrize("form", ["first order", "second order", "sharpness"])
def test_a_group_norm_can_be_the_first_layer(form):
    """Images whose channels come last in memory once ended the process."""
    torch.manual_seed(0)
    layers = (nn.GroupNorm(1, 3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    classifier = Classifier(nn.Sequential(*layers).eval(), mean=0.5, std=0.25)
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    how = ParameterStability(form=form)
    parameter_instability(classifier, images, LABELS, SUPPORT, QUERY, how).sum().backward()
    assert images.grad[QUERY].abs().max() > 0


class Gated(nn.Module):
    """A gate as in MobileNetV3, or the same in operations that have a second derivative."""

    def __init__(self, plain):
        super().__init__()
        self.plain, self.gate, self.head = plain, nn.Linear(192, 192), nn.Linear(192, 3)

    def forward(self, x):
        flat = x.flatten(1)
        gate = self.gate(flat)
        open_ = F.relu6(gate + 3) / 6 if self.plain else F.hardsigmoid(gate)
        return self.head(flat * open_)


@pytest.mark.parametrize("form", ["gradient", "second order"])
def test_a_gate_without_a_second_derivative_gets_one(form):
    slopes = []
    for plain in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = Gated(plain).eval()
        classifier = Classifier(network, mean=0.5, std=0.25)
        images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
        if form == "gradient":
            losses = gradient_penalty(classifier, images, LABELS)
        else:
            how = ParameterStability(form=form, length=0.1)
            losses = parameter_instability(classifier, images, LABELS, SUPPORT, QUERY, how)
        slopes.append(torch.autograd.grad(losses.sum(), images)[0])
    assert slopes[1][SUPPORT].abs().max() > 0
    torch.testing.assert_close(*slopes)


def test_a_network_that_leaves_parameters_unused_can_be_moved():
    classifier = smooth_classifier()
    classifier.network.spare = torch.nn.Linear(2, 2)
    images = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))
    moved = virtual_step(classifier, images, LABELS, ParameterStability())
    assert torch.equal(moved["spare.weight"], classifier.network.spare.weight)
    assert not torch.equal(moved["fc.weight"], classifier.network.fc.weight)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (InputStability, {"steps": 0}, "steps is 0"),
        (InputStability, {"bound": 0.0}, "bound is 0.0.*pixel range"),
        (InputStability, {"deviation": 2.0}, "deviation is 2.0"),
        (ParameterStability, {"steps": 4}, "1 to 3"),
        (ParameterStability, {"length": 0.0}, "length is 0.0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(kind, settings, message):
    with pytest.raises(InputError, match=message):
        kind(**settings)
