"""The source of synthetic images: its steps against a plain loop, its bounds, what it leaves."""

import copy

import pytest
import torch
from msgspec.structs import replace

from bezoar import networks
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.methods.dhbe_losses import (
    class_imbalance,
    indecision,
    total_variation,
    total_variation_norm,
)
from bezoar.methods.statistics_prior import divergence, running_norms
from bezoar.methods.synthesis import SampleSource, Synthesis, as_image_set, pixels, source_for

SMALL = Synthesis(batch_size=8, latent=6, width=4)


def classifier(name="small-cnn", shape=(1, 8, 8), seed=0, **arguments):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = networks.build(name, channels=shape[0], **arguments)
        for norm in running_norms(network):
            torch.nn.init.normal_(norm.running_mean, std=0.3)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    mean, std = [0.3, 0.5, 0.4][: shape[0]], [0.35, 0.25, 0.2][: shape[0]]
    return Classifier(network, mean=mean, std=std, input_size=shape[1:])


def plain_distance(network, images):
    """Layer by layer, with torch's own mean and variance."""
    seen = []
    handles = [
        norm.register_forward_pre_hook(lambda n, args: seen.append((n, args[0])))
        for norm in running_norms(network)
    ]
    network(images)
    for handle in handles:
        handle.remove()
    layers = [
        divergence(
            x.mean((0, 2, 3)), x.var((0, 2, 3)) + n.eps, n.running_mean, n.running_var + n.eps
        )
        for n, x in seen
    ]
    return sum(layer.mean() for layer in layers) / len(layers)


def test_a_step_is_one_step_of_adam_on_the_weighted_sum():
    settings = Synthesis(
        batch_size=8, latent=6, width=4, learning_rate=0.01, statistics=2.0, balance=3.0,
        decision=0.5, roughness=0.7, roughness_norm=0.01, bounded=False,
    )  # fmt: skip
    given, student = classifier(), classifier(seed=1).network.eval().requires_grad_(False)
    source = source_for(given, settings, 3)
    twin = copy.deepcopy(source.generator)
    z = torch.randn(8, 6, generator=torch.Generator().manual_seed(3))
    logits = source.step(student, weight=0.2)
    images, network = twin(z), given.network.eval()
    answers = network(images)
    loss = (
        2 * plain_distance(network, images)
        + 3 * class_imbalance(answers)
        + 0.5 * indecision(answers)
        + 0.7 * total_variation(images)
        + 0.01 * total_variation_norm(images)
        - 0.2 * (student(images) - answers).abs().mean()
    )
    adam = torch.optim.Adam(twin.parameters(), 0.01)
    loss.backward()
    adam.step()
    torch.testing.assert_close(logits, answers.detach())
    assert not logits.requires_grad
    moved = 0
    for ours, theirs in zip(source.generator.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)
        plain = theirs.grad.abs() > 1e-3  # below, rounding decides the sign and Adam's whole step
        torch.testing.assert_close(ours[plain], theirs[plain], rtol=1e-3, atol=1e-4)
        moved += int(plain.sum())
    assert moved > 100


def test_without_any_weight_nothing_is_learned():
    nothing = Synthesis(batch_size=4, latent=6, width=4, statistics=0.0, balance=0.0, decision=0.0)
    source = source_for(classifier(), nothing, 0)
    before = copy.deepcopy(source.generator.state_dict())
    assert source.step().shape == (4, 10)
    for name, tensor in source.generator.named_parameters():
        assert torch.equal(tensor, before[name]), name


def test_the_network_is_a_frozen_copy():
    given = classifier().trace((1, 8, 8))
    given.network.train()
    before = copy.deepcopy(given.network.state_dict())
    source = source_for(given, SMALL, 0)
    shares = []
    source.learn(3, lambda _, share: shares.append(share))
    assert shares == [1 / 3, 2 / 3, 1.0]
    assert source.network is not given.network and not source.network.training
    assert given.network.training and all(p.requires_grad for p in given.network.parameters())
    for name, tensor in source.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
        assert torch.equal(given.network.state_dict()[name], before[name]), name


def test_the_seed_decides_and_the_global_generator_stays():
    def made(seed):
        source = source_for(classifier(), SMALL, seed)
        source.learn(2)
        return source.images()

    state = torch.get_rng_state()
    first = made(5)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, made(5)) and not torch.equal(first, made(6))


@pytest.mark.parametrize("bounded", [False, True])
def test_batches_in_one_call_are_those_one_after_the_other(bounded):
    settings = replace(SMALL, bounded=bounded)
    apart, together = (source_for(classifier(), settings, 2) for _ in range(2))
    images = apart.images(3)
    torch.testing.assert_close(together.images(3, together=True), images)
    assert images.shape == (24, 1, 8, 8) and not images.requires_grad
    assert torch.equal(apart.latents(2), together.latents(2))


def test_free_images_are_standardised_and_bounded_ones_are_pixels():
    given = classifier(shape=(3, 12, 10))
    free, held = (
        source_for(given, replace(SMALL, bounded=bounded), 1) for bounded in (False, True)
    )
    images, inside = free.images(), held.images()
    assert images.mean((0, 2, 3)).abs().max() < 1e-5
    assert (images.std((0, 2, 3)) - 1).abs().max() < 1e-2
    values = pixels(given, inside)
    assert pixels(given, images).amax() > 1.1 and values.min() > -1e-6 and values.max() < 1 + 1e-6
    torch.testing.assert_close(pixels(given, images).clamp(0, 1), values, atol=1e-6, rtol=0)
    torch.testing.assert_close(given.normalise(values), inside, atol=1e-5, rtol=0)


def test_a_bounded_source_learns_from_what_it_shows():
    given = classifier()
    source = source_for(given, SMALL, 4)
    seen = []
    source.network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    source.step()
    values = pixels(given, seen[0])
    assert values.min() > -1e-6 and values.max() < 1 + 1e-6


def test_an_image_set_has_the_answers_to_its_own_pixels():
    given = classifier()
    images = as_image_set(given, source_for(given, SMALL, 0).images(2))
    assert images.shape == (1, 8, 8) and len(images) == 16
    assert torch.equal(images.labels, given.logits(images).argmax(1))
    assert images.classes == given.classes


def test_a_source_takes_a_network_of_its_own():
    network = classifier().network.eval().requires_grad_(False)
    source = SampleSource(network, (1, 8, 8), SMALL, torch.Generator().manual_seed(0))
    assert source.network is network and source.images().shape == (8, 1, 8, 8)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("steps", -1), ("batch_size", 1), ("latent", 0), ("width", 0), ("learning_rate", -1.0),
     ("statistics", -0.1), ("balance", float("inf")), ("decision", float("nan"))],
)  # fmt: skip
def test_a_setting_out_of_range_is_named(setting, value):
    with pytest.raises(InputError, match=rf"^{setting} is {value}; expected [012] or more"):
        Synthesis(**{setting: value})
