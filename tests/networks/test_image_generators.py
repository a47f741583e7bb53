"""Generator, critic and encoder: the published shapes, every size, and what a critic ends as."""

import pytest
import torch
from torch import nn

from bezoar.errors import InputError
from bezoar.networks.generators import drawn
from bezoar.networks.image_generators import ImageCritic, ImageEncoder, ImageGenerator, plan

SIZES = [(1, 8, 8), (3, 16, 16), (1, 28, 28), (3, 32, 32), (3, 48, 48), (3, 64, 64), (3, 96, 96)]
SIZES += [(3, 33, 50), (1, 4, 9), (3, 8, 64)]


def images(shape, count=3):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_every_size_is_made_judged_and_encoded(shape):
    z = torch.randn(3, 12, requires_grad=True)
    made = drawn(lambda: ImageGenerator(shape, latent=12, width=4), 0)(z)
    assert made.shape == (3, *shape) and bool(((made > 0) & (made < 1)).all())
    made.sum().backward()
    assert bool((z.grad.abs().sum(1) > 0).all())
    for norm in ("instance", "spectral", "none"):
        assert ImageCritic(shape, width=4, norm=norm)(images(shape)).shape == (3,)
    mean, log_variance = ImageEncoder(shape, latent=12, width=4)(images(shape))
    assert mean.shape == log_variance.shape == (3, 12)


def widths(network, kind):
    return [
        (module.in_channels, module.out_channels)
        for module in network.modules()
        if isinstance(module, kind)
    ]


def test_the_layers_are_the_published_ones():
    at_32, at_64 = ImageGenerator((3, 32, 32)), ImageGenerator((3, 64, 64))
    assert at_32.linear.weight.shape == (256 * 16, 100)
    assert at_64.linear.weight.shape == (512 * 16, 100)
    assert widths(at_32, nn.ConvTranspose2d) == [(256, 128), (128, 64), (64, 3)]
    assert widths(at_64, nn.ConvTranspose2d) == [(512, 256), (256, 128), (128, 64), (64, 3)]
    critic = ImageCritic((3, 32, 32))
    assert widths(critic, nn.Conv2d) == [(3, 64), (64, 128), (128, 256), (256, 1)]
    kinds = [type(module).__name__ for module in critic.stages]
    assert kinds == ["Conv2d", "LeakyReLU"] + 2 * ["Conv2d", "InstanceNorm2d", "LeakyReLU"]
    assert critic.last.kernel_size == (4, 4)


@pytest.mark.parametrize("side", range(4, 130))
def test_bases_have_4_to_7_pixels_and_little_is_cropped(side):
    base, doublings = plan(side)
    assert 4 <= base << doublings >= side > (base - 1) << doublings
    assert (4 <= base <= 8 or side < 8) and doublings >= 1


def test_images_of_a_sample_do_not_depend_on_its_batch_in_eval_mode():
    network = drawn(lambda: ImageGenerator((1, 8, 8), latent=6, width=4), 1).eval()
    z = torch.randn(5, 6)
    torch.testing.assert_close(network(z)[2:3], network(z[2:3]))


def test_a_settled_critic_scores_as_before_and_the_trained_one_stays():
    shape = (3, 16, 16)
    critic = drawn(lambda: ImageCritic(shape, width=4, norm="spectral"), 2)
    for _ in range(20):
        critic(images(shape))  # power iterations
    state = {name: value.clone() for name, value in critic.state_dict().items()}
    settled = critic.settled()
    assert critic.training and not settled.training
    assert all(torch.equal(value, state[name]) for name, value in critic.state_dict().items())
    torch.testing.assert_close(settled(images(shape)), critic.eval()(images(shape)))
    weight = settled.stages[0].weight
    assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)
    assert (settled.norm, critic.norm) == ("none", "spectral")
    assert set(settled.state_dict()) == set(ImageCritic(shape, width=4, norm="none").state_dict())


def test_a_critic_with_instance_norms_settles_as_it_is():
    critic = ImageCritic((3, 16, 16), width=4)
    settled = critic.settled()
    assert settled.norm == "instance"
    assert torch.equal(settled(images((3, 16, 16))), critic(images((3, 16, 16))))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: ImageGenerator((3, 2, 32)), "size of the generator is 2"),
        (lambda: ImageGenerator((0, 32, 32)), "channels of the generator is 0"),
        (lambda: ImageGenerator((3, 32)), "expected \\(channels, height, width\\)"),
        (lambda: ImageGenerator((3, 32, 32), latent=0), "latent"),
        (lambda: ImageGenerator((3, 32, 32), width=0), "width"),
        (lambda: ImageCritic((3, 32, 32), norm="batch"), "norm is 'batch'"),
        (lambda: ImageEncoder((3, 32, 32), latent=0), "latent"),
    ],
)
def test_bad_arguments_are_told(made, said):
    with pytest.raises(InputError, match=said):
        made()
