"""Pixel inversion: step for step against a slow version, the norms by hand, what is told."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from bezoar import networks
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.methods.pixel_inversion import (
    PixelInversion,
    balanced_batches,
    invert_pixels,
)
from bezoar.methods.statistics_norms import StatisticsNorms
from bezoar.methods.statistics_prior import StatisticsPrior, running_norms

QUICK = PixelInversion(iterations=30)


def built(seed=0, **arguments):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = networks.build("small-cnn", width=8, **arguments).eval()
        for norm in running_norms(network):
            torch.nn.init.uniform_(norm.running_var, 0.3, 3)
    return Classifier(network, mean=0.3, std=0.35, input_size=(8, 8))


def slow_norms(network, x):
    """Layer by layer and channel by channel."""
    total = 0.0
    for conv, norm in zip(network.convs, network.norms, strict=True):
        x = conv(x)
        means, variances = 0.0, 0.0
        for c in range(x.shape[1]):
            numbers = x[:, c].flatten()
            mean = numbers.sum() / len(numbers)
            variance = ((numbers - mean) ** 2).sum() / len(numbers)
            means = means + (mean - norm.running_mean[c]) ** 2
            variances = variances + (variance - norm.running_var[c]) ** 2
        total = total + means.sqrt() + variances.sqrt()
        x = norm(x).relu()
    return total


def test_the_norms_are_those_of_a_slow_version_with_its_gradient():
    network = built().network
    values = []
    for how in ("slow", "quick"):
        x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        if how == "slow":
            value = slow_norms(network, x)
        else:
            with StatisticsNorms(network) as prior:
                network(x)
                value = prior.distance()
        value.backward()
        values.append((value.item(), x.grad))
    assert values[0][0] == pytest.approx(values[1][0], rel=1e-5)
    assert torch.allclose(values[0][1], values[1][1], atol=1e-6) and values[0][1].abs().max() > 1e-3
    assert not any(module._forward_pre_hooks for module in network.modules())


def slow_roughness(x, scaled):
    pairs = [
        (x[..., :, :-1], x[..., :, 1:]),
        (x[..., :-1, :], x[..., 1:, :]),
        (x[..., 1:, :-1], x[..., :-1, 1:]),
        (x[..., :-1, :-1], x[..., 1:, 1:]),
    ]
    scale = math.sqrt(256 * 32 * 32 / (len(x) * 8 * 8)) if scaled else 1.0
    return scale * sum((a - b).square().sum().sqrt() for a, b in pairs)


@pytest.mark.parametrize(
    "chosen",
    [
        replace(PixelInversion.published(), iterations=4, magnitude=0.01, jitter=0.25),
        PixelInversion(iterations=4, jitter=0.25),
    ],
    ids=["published", "ours"],
)
def test_the_descent_is_that_of_a_slow_version(chosen):
    classifier, labels = built(), torch.tensor([3, 1, 4, 1])
    found = invert_pixels(classifier, labels, chosen, seed=7).images

    draws = torch.Generator().manual_seed(7)
    (order,) = balanced_batches(labels, 256, draws)
    x = torch.randn(4, 1, 8, 8, generator=draws)
    low, high = (0 - 0.3) / 0.35, (1 - 0.3) / 0.35
    x = x.clamp(low, high) if chosen.bounded else x
    mean_square, mean = torch.zeros_like(x), torch.zeros_like(x)
    network = classifier.network
    for step in range(4):
        offsets = [int(torch.randint(-2, 3, (), generator=draws)) for _ in range(2)]
        x.requires_grad_()
        rolled = torch.roll(torch.roll(x, offsets[0], 2), offsets[1], 3)
        loss = F.cross_entropy(network(rolled), labels[order])
        if chosen.distance == "norms":
            loss = loss + chosen.statistics * slow_norms(network, rolled)
        else:
            with StatisticsPrior(network) as prior:
                network(rolled)
                loss = loss + chosen.statistics * prior.distance()
        loss = loss + chosen.roughness * slow_roughness(rolled, not chosen.as_published)
        loss = loss + chosen.magnitude * rolled.square().sum().sqrt()
        (gradient,) = torch.autograd.grad(loss, x)
        rate = 0.1
        if chosen.schedule == "cosine":
            rate *= (1 + math.cos(math.pi * step / 4)) / 2
        mean = 0.9 * mean + 0.1 * gradient
        mean_square = 0.999 * mean_square + 0.001 * gradient**2
        move = (mean / (1 - 0.9 ** (step + 1))) / (
            (mean_square / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
        )
        x = (x - rate * move).detach()
        x = x.clamp(low, high) if chosen.bounded else x
    expected = torch.empty_like(x)
    expected[order] = (x * 0.35 + 0.3).clamp(0, 1)
    assert torch.allclose(found, expected, atol=1e-4)


def test_the_published_settings_are_those_of_the_script():
    found = PixelInversion.published()
    assert (found.iterations, found.batch_size, found.learning_rate) == (2000, 256, 0.1)
    assert (found.statistics, found.roughness, found.magnitude) == (100, 2.5e-5, 0)
    assert (found.distance, found.schedule, found.bounded) == ("norms", "constant", False)
    assert found.as_published and round(found.jitter * 32) == 2


def test_images_are_answered_as_asked_and_near_the_statistics(digits):
    classifier = digits.twin.copy()
    classifier.input_size = (8, 8)
    classifier.network.train()
    before = copy.deepcopy(classifier.network.state_dict())
    labels = torch.arange(10).repeat(5)
    state, seen = torch.random.get_rng_state(), []
    found = invert_pixels(
        classifier, labels, QUICK, seed=0, progress=lambda what, share: seen.append(share)
    )
    assert found.images.shape == (50, 1, 8, 8) and found.images.dtype == torch.float32
    assert found.images.min() >= 0 and found.images.max() <= 1
    with torch.no_grad(), classifier.evaluating():
        answers = classifier(found.images).argmax(1)
    assert found.record["answered"] == (answers == labels).float().mean() >= 0.9
    assert found.record["losses"]["statistics"] < 0.1 and found.record["clipped"] == 0
    assert found.record["notices"] == [] and found.record["batches"] == [50]
    assert seen == sorted(seen) and seen[-1] == 1 and len(seen) == 30
    json.dumps(found.record, allow_nan=False)
    after = classifier.network.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert classifier.network.training and torch.equal(torch.random.get_rng_state(), state)


def test_a_seed_repeats_and_order_is_that_of_the_labels():
    classifier, labels = built(), torch.tensor([5, 5, 0, 9, 2, 2, 2])
    chosen = replace(QUICK, batch_size=3, iterations=3)
    runs = [invert_pixels(classifier, labels, chosen, seed=s) for s in (0, 0, 1)]
    assert torch.equal(runs[0].images, runs[1].images)
    assert not torch.equal(runs[0].images, runs[2].images)
    assert runs[0].record["batches"] == [3, 2, 2]


def test_free_pixels_are_clipped_and_counted():
    chosen = replace(QUICK, bounded=False, iterations=3)
    found = invert_pixels(built(), torch.arange(10), chosen, seed=0)
    assert found.record["clipped"] > 0.05 and found.images.max() == 1 and found.images.min() == 0


def test_without_batch_norm_the_record_says_so():
    for distance in ("divergence", "norms"):
        chosen = replace(QUICK, distance=distance)
        record = invert_pixels(built(norm=False), torch.arange(10), chosen, seed=0).record
        assert "no BatchNorm" in record["notices"][0] and record["losses"]["statistics"] == 0


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=80), st.integers(2, 30))
def test_batches_hold_every_image_once_and_their_share_of_each_class(labels, size):
    labels = torch.tensor(labels)
    parts = balanced_batches(labels, size, torch.Generator().manual_seed(0))
    assert torch.cat(parts).sort().values.tolist() == list(range(len(labels)))
    sizes = [len(part) for part in parts]
    assert max(sizes) <= size and max(sizes) - min(sizes) <= 1
    for k in labels.unique():
        counts = torch.tensor([int((labels[part] == k).sum()) for part in parts])
        share = int((labels == k).sum()) / len(labels)
        # Cuts lie between images of other classes, each of which may be off by one.
        assert (counts - share * torch.tensor(sizes)).abs().max() <= 1 + len(
            labels.unique()
        ) * share


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"iterations": 0}, "iterations is 0"),
        ({"batch_size": 1}, "batch_size 1"),
        ({"statistics": -1.0}, "statistics is -1"),
        ({"learning_rate": float("inf")}, "learning_rate is inf"),
        ({"jitter": 1.0}, "below 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(chosen, words):
    with pytest.raises(InputError, match=words):
        PixelInversion(**chosen)


@pytest.mark.parametrize("labels", [torch.tensor([1]), torch.tensor([0, 10]), torch.zeros(2, 2)])
def test_labels_that_are_no_classes_are_refused(labels):
    with pytest.raises(InputError, match="labels"):
        invert_pixels(built(), labels, QUICK, seed=0)
