"""Trigger generators: their start, what they learn, the published shape, configurations."""

import json

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bezoar.errors import InputError
from bezoar.networks.generators import drawn, rebuilt, weights
from bezoar.networks.trigger_generators import (
    PublishedGenerator,
    ResidualGenerator,
    built,
    configuration,
)


def images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def published(channels=3):
    return drawn(
        lambda: PublishedGenerator(channels, mean=[0.5] * channels, std=[0.2] * channels), 0
    )


@settings(derandomize=True, deadline=None, max_examples=15)
@given(
    st.integers(1, 4),
    st.integers(1, 17),
    st.integers(1, 17),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_the_residual_generator_starts_as_the_identity(c, h, w, features, depth, planes):
    generator = ResidualGenerator(c, h, w, features=features, depth=depth, planes=planes)
    x = images(2, c, h, w)
    assert torch.equal(generator(x), x)


def test_every_part_of_the_residual_generator_changes_the_image():
    x = images(2, 3, 8, 8)
    for name in ("pattern", "planes", "unet.down.0.0.0.weight"):
        generator = drawn(lambda: ResidualGenerator(3, 8, 8), 0)
        with torch.no_grad():
            generator.unet.last.weight.fill_(0.1)
            before = generator(x)
            generator.get_parameter(name).add_(0.1 * images(*generator.get_parameter(name).shape))
            assert (generator(x) - before).abs().max() > 1e-3, name


def test_a_fixed_pattern_is_learned_by_the_residual_generator():
    x, wanted = images(16, 1, 8, 8), torch.zeros(1, 8, 8)
    wanted[:, 5:7, 5:7] = 0.7
    generator = drawn(lambda: ResidualGenerator(1, 8, 8), 0)
    optimizer = torch.optim.Adam(generator.parameters(), lr=0.1)
    for _ in range(30):
        loss = (generator(x) - x - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1e-3 < wanted.square().mean()


def test_the_published_generator_has_the_size_of_the_released_one_without_its_unused_path():
    """The specification counts 14.12 M parameters, 3.13 M of them unused, and 256 M products."""
    generator = published()
    used = sum(parameter.numel() for parameter in generator.parameters())
    unused = sum(parameter.numel() for parameter in generator.enlarge.parameters())  # its twin
    assert used == 10_987_011
    assert round(unused / 1e6, 2) == 3.13 and round((used + unused) / 1e6, 2) == 14.12
    with FlopCounterMode(display=False) as counter:
        generator(images(1, 3, 32, 32))
    assert round(counter.get_total_flops() / 2e6) == 256


def test_the_published_generator_is_built_of_the_layers_of_the_specification():
    counts: dict[type, int] = {}
    for module in published().modules():
        counts[type(module)] = counts.get(type(module), 0) + 1
        if isinstance(module, nn.InstanceNorm2d):
            assert module.affine and not module.track_running_stats
        if isinstance(module, nn.LeakyReLU):
            assert module.negative_slope == 0.01
    assert counts[nn.InstanceNorm2d] == counts[nn.LeakyReLU] == 18
    assert counts[nn.Conv2d] == 19 and counts[nn.ConvTranspose2d] == 4


def test_the_published_generator_normalises_inside():
    """In other units of the pixels the same weights make the same image."""
    x = images(2, 3, 32, 32)
    one = published()
    other = PublishedGenerator(3, mean=[0.0] * 3, std=[1.0] * 3)
    own = {"mean": other.mean, "std": other.std}
    other.load_state_dict({**one.state_dict(), **own})
    inside = other((x - 0.5) / 0.2) * 0.2 + 0.5
    torch.testing.assert_close(one(x), inside, rtol=0, atol=1e-5)


def test_the_published_generator_hardly_sees_brightness():
    """Why it needs pre-training: half the contrast, and nearly the same image comes out."""
    x, generator = images(1, 3, 64, 64), published()
    with torch.no_grad():
        bright, dim = generator(0.25 + x / 2), generator(0.1 + x / 4)
    assert (bright - dim).mean().abs() < 0.3 * 0.25 and x.mean() > 0.4


@pytest.mark.parametrize("size", [(28, 28), (16, 32), (32, 40), (8, 8)])
def test_sizes_that_the_published_generator_cannot_take_are_refused(size):
    with pytest.raises(InputError, match=r"multiples of 16; pad or resize"):
        PublishedGenerator.check_size(*size)
    with pytest.raises(InputError, match=f"{size[0]}x{size[1]}"):
        published()(images(1, 3, *size))


def test_sizes_that_the_published_generator_can_take_work():
    for size in ((32, 32), (48, 64)):
        PublishedGenerator.check_size(*size)
        assert published(1)(images(1, 1, *size)).shape == (1, 1, *size)


def test_images_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"\(3, 8, 8\).*\(3, 8, 9\)"):
        ResidualGenerator(3, 8, 8)(images(1, 3, 8, 9))
    with pytest.raises(InputError, match="3 channels"):
        published()(images(1, 1, 32, 32))


@pytest.mark.parametrize(
    "build",
    [
        lambda: ResidualGenerator(2, 9, 7, features=5, depth=2, planes=3),
        lambda: ResidualGenerator(1, 4, 4, planes=0),
        lambda: PublishedGenerator(2, mean=(0.4, 0.5), std=(0.2, 0.3)),
    ],
)
def test_a_generator_comes_back_from_its_configuration_and_weights(build):
    generator = drawn(build, 0).eval()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.1 * images(*parameter.shape))
    described = json.loads(json.dumps(configuration(generator)))
    again = rebuilt(lambda: built(described), weights(generator, "g"), "g")
    x = images(2, *(generator.pattern.shape if "height" in described else (2, 32, 32)))
    assert type(again) is type(generator)
    assert configuration(again) == described
    assert torch.equal(again(x), generator(x))


RESIDUAL = {"kind": "residual", "channels": 3, "height": 8, "width": 8}
PUBLISHED = {"kind": "published", "channels": 1, "mean": [0.5], "std": [0.5]}


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({}, "kind None"),
        ({"kind": ["residual"]}, "kind"),
        ({**RESIDUAL, "kind": "os.system"}, "expected one of residual, published"),
        ({"kind": "residual", "channels": 3}, "not those it takes"),
        ({**RESIDUAL, "command": "rm"}, "not those it takes"),
        ({**RESIDUAL, "height": 10**9}, "height .* from 1 to 4096"),
        ({**RESIDUAL, "channels": True}, "channels"),
        ({**RESIDUAL, "width": 8.0}, "width"),
        ({**RESIDUAL, "depth": 40}, "depth"),
        ({**RESIDUAL, "features": -1}, "features"),
        ({**RESIDUAL, "planes": -1}, "planes"),
        ({**RESIDUAL, "planes": "4"}, "planes"),
        ({**PUBLISHED, "mean": [0.5, 0.5]}, "mean .* 1 finite"),
        ({**PUBLISHED, "mean": "5"}, "mean"),
        ({**PUBLISHED, "mean": 0.5}, "mean"),
        ({**PUBLISHED, "std": [0.0]}, "above 0"),
        ({**PUBLISHED, "std": [float("nan")]}, "std"),
        ({**PUBLISHED, "std": None}, "std"),
        ({**PUBLISHED, "std": [10**400]}, "std"),
    ],
)
def test_a_configuration_that_makes_no_generator_is_refused(described, message):
    with pytest.raises(InputError, match=message):
        built(described)


def test_a_module_of_another_kind_has_no_configuration():
    with pytest.raises(InputError, match="Linear"):
        configuration(nn.Linear(1, 1))
