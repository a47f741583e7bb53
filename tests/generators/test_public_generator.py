"""What stands for natural images: frozen, tried out, and honest on what is known of it."""

import pytest
import torch
from torch import nn

from bezoar.errors import InputError
from bezoar.generators import PublicGenerator

SHAPE = (1, 4, 4)


def network(*, output=nn.Sigmoid, norm=True):
    torch.manual_seed(0)
    layers = [nn.Linear(5, 16), *([nn.BatchNorm1d(16)] if norm else []), output()]
    return nn.Sequential(*layers, nn.Unflatten(1, SHAPE))


def critic():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 1), nn.Flatten(0))


@pytest.fixture
def generator():
    return PublicGenerator(network(), 5, SHAPE, critic())


def test_networks_are_frozen_copies_in_eval_mode():
    own, judge = network().train(), critic().train()
    before = {name: value.clone() for name, value in own.state_dict().items()}
    generator = PublicGenerator(own, 5, SHAPE, judge)
    for module, given in ((generator.network, own), (generator.critic, judge)):
        assert module is not given and not module.training and given.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert all(parameter.requires_grad for parameter in given.parameters())
    generator(generator.latents(9, torch.Generator().manual_seed(0)))
    for module in (own, generator.network):
        assert all(torch.equal(value, before[n]) for n, value in module.state_dict().items())


def test_global_random_numbers_stay(generator):
    state = torch.get_rng_state()
    PublicGenerator(network_ := generator.network, 5, SHAPE)
    assert torch.equal(torch.get_rng_state(), state) and network_ is generator.network


def test_latents_are_standard_normal_and_repeatable(generator):
    drawn = [generator.latents(4000, torch.Generator().manual_seed(s)) for s in (3, 3, 4)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert drawn[0].shape == (4000, 5)
    assert float(drawn[0].mean().abs()) < 0.03 and float(drawn[0].std()) == pytest.approx(1, 0.03)


def test_gradients_reach_the_latents(generator):
    z = generator.latents(3, torch.Generator().manual_seed(0)).requires_grad_()
    generator.unnaturalness(z, generator(z)).sum().backward()
    assert bool((z.grad.abs().sum(1) > 0).all())


def test_unnaturalness_with_and_without_a_critic(generator):
    z = torch.tensor([[0.0] * 5, [2.0] * 5])
    images = generator(z)
    assert torch.equal(generator.unnaturalness(z, images), -generator.critic(images))
    alone = PublicGenerator(generator.network, 5, SHAPE)
    assert alone.unnaturalness(z, images).tolist() == [0.0, 4.0]


def test_to_makes_another_and_says_where_it_is(generator):
    moved = generator.to(torch.device("cpu"))
    assert moved is not generator and moved.network is not generator.network
    z = generator.latents(2, torch.Generator().manual_seed(0))
    assert torch.equal(moved(z), generator(z)) and moved.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("apart", "said"),
    [(True, "without the suspect"), (None, "not known"), (False, "nothing keeps the trigger out")],
)
def test_independence_is_told_as_far_as_it_is_known(apart, said):
    sentence = PublicGenerator(network(), 5, SHAPE, apart=apart).independence
    assert said in sentence and sentence.endswith(".")


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, z):
        return (self.inner(z) + 0.1 * torch.randn(len(z), *SHAPE)).clamp(0, 1)


class Coupled(nn.Module):
    def forward(self, z):
        return (z - z.mean(0)).sigmoid()[:, :1, None, None].expand(-1, *SHAPE)


class WithoutGradients(nn.Module):
    def forward(self, z):
        return z.detach().sigmoid()[:, :1, None, None].expand(-1, *SHAPE)


class Pair(nn.Module):
    def forward(self, z):
        return z, z


class Infinite(nn.Module):
    def forward(self, z):
        return z[:, :1, None, None].expand(-1, *SHAPE) * float("nan")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: PublicGenerator(network(output=nn.Tanh), 5, SHAPE), 'output = "-1..1"'),
        (lambda: PublicGenerator(network(), 6, SHAPE), "is this the latent size"),
        (lambda: PublicGenerator(network(), 5, (1, 2, 8)), r"expected images of shape \(4, 1, 2"),
        (lambda: PublicGenerator(network(), 0, SHAPE), "latent size is 0"),
        (lambda: PublicGenerator(network(), 5, (4, 4)), "channels, height, width"),
        (lambda: PublicGenerator(Noisy(), 5, SHAPE), "noise of its own"),
        (lambda: PublicGenerator(Coupled(), 5, SHAPE), "takes from a batch"),
        (lambda: PublicGenerator(WithoutGradients(), 5, SHAPE), "no gradients"),
        (lambda: PublicGenerator(Pair(), 5, SHAPE), "returned a tuple"),
        (lambda: PublicGenerator(Infinite(), 5, SHAPE), "NaN or infinite"),
        (lambda: PublicGenerator(network(), 5, SHAPE, nn.Flatten()), "one finite score for each"),
    ],
)
def test_what_is_no_generator_is_refused(made, said):
    with pytest.raises(InputError, match=said):
        made()


def test_latents_of_another_length_are_refused(generator):
    with pytest.raises(InputError, match=r"takes \(n, 5\)"):
        generator(torch.zeros(2, 4))
