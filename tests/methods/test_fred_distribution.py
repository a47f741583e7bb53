"""Distributional inversion: mu and sigma move, and samples are drawn from them."""

import math

import msgspec
import pytest
import torch
import torch.nn.functional as F
from latent_models import LATENT, SHAPE, digits_generator, smooth_classifier, smooth_generator

from bezoar.errors import InputError
from bezoar.methods.fred_distribution import invert_distributions
from bezoar.methods.fred_settings import Inversion

LABELS = torch.tensor([2, 0, 0, 2, 2])
HOW = Inversion(iterations=10, batch_size=8)


def found(how=HOW, labels=LABELS, seed=0, **named):
    return invert_distributions(
        smooth_classifier(), smooth_generator(), labels, how, seed=seed, **named
    )


def test_it_starts_where_the_released_code_starts_and_both_numbers_move():
    start = found(msgspec.structs.replace(HOW, iterations=0)).record
    assert start["classes"] == [0, 2]
    assert start["mean size of mu"] == [0.0, 0.0]
    assert start["mean sigma"] == pytest.approx([math.exp(0.5)] * 2)
    end = found().record
    assert min(end["mean size of mu"]) > 0.02
    assert all(abs(sigma - math.exp(0.5)) > 1e-3 for sigma in end["mean sigma"])


def test_it_is_a_plain_loop_that_draws_anew_in_each_step():
    how = msgspec.structs.replace(
        HOW,
        input_weight=0.0,
        parameter_weight=0.0,
        normalise_prior=False,
        clip=math.inf,
        learning_rate=0.05,
    )
    classifier, generator = smooth_classifier(), smooth_generator()
    noise = torch.Generator().manual_seed(0)
    mean, log_variance = torch.zeros(2, LATENT), torch.ones(2, LATENT)
    both = [mean.requires_grad_(), log_variance.requires_grad_()]
    adam = torch.optim.Adam(both, 0.05)
    wanted = torch.tensor([0, 0, 0, 2, 2, 2])
    for _ in range(10):
        wide = [each.repeat_interleave(3, 0) for each in both]
        z = wide[0] + (0.5 * wide[1]).exp() * torch.randn(6, LATENT, generator=noise)
        images = generator(z)
        loss = 100 * F.cross_entropy(classifier(images), wanted) - generator.critic(images).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    record = found(how, draws=3).record
    assert record["mean size of mu"] == pytest.approx(
        mean.detach().abs().mean(1).tolist(), rel=1e-3
    )
    sigma = (0.5 * log_variance.detach()).exp().mean(1).tolist()
    assert record["mean sigma"] == pytest.approx(sigma, rel=1e-3)


def test_samples_come_in_the_order_of_the_labels_and_differ(digits):
    generator = digits_generator(digits.clean.images)
    labels = torch.tensor([3, 7, 1, 3, 7, 1, 3])
    how = Inversion(iterations=40, learning_rate=0.1, input_weight=0.0, parameter_weight=0.0)
    search = [
        invert_distributions(
            digits.planted,
            generator,
            labels,
            msgspec.structs.replace(how, iterations=iterations),
            seed=0,
        )
        for iterations in (0, 40)
    ]
    before, after = (result.diagnostics["confidence"].mean() for result in search)
    assert after > before + 0.5
    assert torch.equal(search[1].labels, labels)
    assert len(search[1].latents.unique(dim=0)) == len(labels)
    assert float(search[1].latents.abs().max()) <= how.clip


@pytest.mark.parametrize("form", ["first order", "second order"])
def test_it_takes_both_stabilities_and_is_repeatable(form):
    parameter = msgspec.structs.replace(HOW.parameter, form=form)
    how = msgspec.structs.replace(HOW, parameter=parameter)
    first, again, other = found(how), found(how), found(how, seed=1)
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (5, *SHAPE)
    assert first.record["shares"]["parameter stability"] > 0
    plain = found(msgspec.structs.replace(how, parameter_weight=0.0))
    assert first.record["mean size of mu"] != plain.record["mean size of mu"]


@pytest.mark.parametrize(
    ("how", "draws", "message"),
    [
        (HOW, 0, "draws is 0"),
        (HOW, 1, "two halves.*draws 2 or more"),
        (Inversion.published(), 4, "'nesterov'.*'adam'"),
    ],
)
def test_what_cannot_be_searched_is_refused(how, draws, message):
    with pytest.raises(InputError, match=message):
        found(how, draws=draws)
