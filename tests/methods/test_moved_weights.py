"""The loss at moved weights: its gradient against two passes by hand, and what stays as it was."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bezoar.classifier import Classifier
from bezoar.methods.moved_weights import TINY, loss_at_moved_weights, norm_of
from bezoar.training import gradients_only_for

LABELS = torch.tensor([0, 1, 2, 1, 0, 2, 2, 1])


def built(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        network = nn.Sequential(*layers, nn.Linear(64, 3)).double()
    return Classifier(network, mean=0.5, std=0.25).trace((1, 6, 6))


@pytest.fixture(autouse=True)
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def images():
    return torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def third(weights, gradients):
    """A way that depends on both, and differs from tensor to tensor."""
    return {name: 0.3 * weights[name].abs() * g for name, g in gradients.items()}


def gradients_of(classifier, images, **options):
    network = classifier.network
    loss = loss_at_moved_weights(third, **options)(classifier, images, LABELS, None)
    found = torch.autograd.grad(loss, list(network.parameters()))
    return loss.detach(), found


def by_hand(classifier, images, share, smoothing=0.0):
    """Two passes over two networks, the second with its weights moved in place."""
    here, there = copy.deepcopy(classifier), copy.deepcopy(classifier)
    first = F.cross_entropy(here(images), LABELS, label_smoothing=smoothing)
    slopes = torch.autograd.grad(first, list(here.network.parameters()))
    with torch.no_grad():
        for parameter, slope in zip(there.network.parameters(), slopes, strict=True):
            parameter += 0.3 * parameter.abs() * slope
    second = F.cross_entropy(there(images), LABELS, label_smoothing=smoothing)
    moved = torch.autograd.grad(second, list(there.network.parameters()))
    mixed = [(1 - share) * a + share * b for a, b in zip(slopes, moved, strict=True)]
    return ((1 - share) * first + share * second).detach(), mixed


@pytest.mark.parametrize("share", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_value_and_gradient_are_those_of_two_passes(share, smoothing, images):
    classifier = built()
    classifier.network.train()
    wanted, slopes = by_hand(classifier, images, share, smoothing)
    value, found = gradients_of(classifier, images, share=share, label_smoothing=smoothing)
    assert float(value) == pytest.approx(float(wanted))
    for ours, theirs in zip(found, slopes, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_running_statistics_move_in_the_first_pass_only(images):
    classifier, once = built(), built()
    for model in (classifier, once):
        model.network.train()
    once(images)
    loss_at_moved_weights(third)(classifier, images, LABELS, None)
    assert int(classifier.network[1].num_batches_tracked) == 1
    for name, value in once.network.named_buffers():
        torch.testing.assert_close(classifier.network.get_buffer(name), value, rtol=0, atol=0)


def test_the_weights_themselves_stay_where_they_were(images):
    classifier = built()
    before = [(id(p), p.detach().clone()) for p in classifier.network.parameters()]
    gradients_of(classifier, images)
    for (identity, value), parameter in zip(before, classifier.network.parameters(), strict=True):
        assert id(parameter) == identity and torch.equal(parameter, value)
        assert parameter.grad is None


def test_what_does_not_train_does_not_move(images):
    classifier, seen = built(), []

    def way(weights, gradients):
        seen.extend(weights)
        return gradients

    head = list(classifier.network[4].parameters())
    with gradients_only_for(classifier.network, head):
        loss_at_moved_weights(way)(classifier, images, LABELS, None).backward()
    assert seen == ["4.weight", "4.bias"]


def test_a_weight_that_two_places_share_moves_in_both():
    """A copy that moves in one place only would be another network than the one that is trained."""
    layer = nn.Linear(4, 4)
    network = nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(4, 3))
    classifier = Classifier(network, mean=0.0, std=1.0).trace((1, 2, 2))
    pixels = torch.rand(8, 1, 2, 2, generator=torch.Generator().manual_seed(2))
    wanted, slopes = by_hand(classifier, pixels, 1.0)
    value, found = gradients_of(classifier, pixels)
    assert float(value) == pytest.approx(float(wanted))
    for ours, theirs in zip(found, slopes, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert network[1] is network[3] is layer and isinstance(layer.weight, nn.Parameter)


def test_the_norm_is_that_of_one_long_vector_and_never_zero():
    assert float(norm_of([torch.tensor([3.0]), torch.tensor([[4.0], [12.0]])])) == pytest.approx(13)
    assert float(norm_of([torch.zeros(5)])) == TINY


def test_a_group_norm_can_be_the_first_layer():
    """It once ended the process: nothing had asked for the gradient of its input, the image."""
    torch.manual_seed(0)
    layers = (nn.GroupNorm(1, 3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    classifier = Classifier(nn.Sequential(*layers), mean=0.5, std=0.25).trace((3, 6, 6))
    shown = torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    shown = shown.contiguous(memory_format=torch.channels_last).requires_grad_()  # as ``fit`` does
    loss_at_moved_weights(third)(classifier, shown, LABELS, None).backward()
    assert all(bool(parameter.grad.any()) for parameter in classifier.network.parameters())
