"""The weakest smooth change of the whole image that carries images into a class."""

import math

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch import nn

from bezoar.errors import InputError
from bezoar.methods.smooth_inversion import SmoothInversion, cosines, invert_smooth

SIDE = 16


def noise(count, channels=1, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return 0.5 + 0.1 * torch.randn(count, channels, SIDE, SIDE, generator=draws).clamp(-3, 3)


class Faint(nn.Module):
    """Six classes by random fine patterns; ``slope`` leads to class 2 with the brightness."""

    def __init__(self, slope):
        super().__init__()
        draws = torch.Generator().manual_seed(3)
        rows = torch.randn(6, SIDE * SIDE, generator=draws) * 2
        rows -= rows.mean(1, keepdim=True)
        rows[2] += slope / (SIDE * SIDE)
        self.head = nn.Linear(SIDE * SIDE, 6, bias=False)
        self.head.weight.data.copy_(rows)

    def forward(self, x):
        return self.head(x.flatten(1) - 0.5)


def test_cosines_are_those_of_the_plain_formula():
    made = cosines(SIDE, 24, 3).view(3, 3, SIDE, 24)
    for u in range(3):
        for v in range(3):
            plain = np.empty((SIDE, 24))
            for row in range(SIDE):
                for column in range(24):
                    plain[row, column] = math.cos(math.pi * u * (row + 0.5) / SIDE)
                    plain[row, column] *= math.cos(math.pi * v * (column + 0.5) / 24)
            plain /= math.sqrt((plain**2).mean())
            assert np.allclose(made[u, v].numpy(), plain, atol=1e-5)


@pytest.mark.parametrize(("side", "expected"), [((32, 32), 64), ((8, 8), 4), ((3, 20), 5)])
def test_cosines_are_orthogonal_and_few_on_small_images(side, expected):
    basis = cosines(*side, 8).flatten(1)
    assert len(basis) == expected
    assert torch.allclose(basis @ basis.t() / basis.shape[1], torch.eye(expected), atol=1e-4)


def test_the_weakest_pattern_of_a_brightness_threshold_is_the_known_one():
    def logits(x):  # class 1 where the mean is above 0.7; the images' is 0.5
        bright = 200 * (x.mean((1, 2, 3)) - 0.7)
        return torch.stack([-bright, bright], 1)

    images = torch.full((40, 3, SIDE, SIDE), 0.5)
    found = invert_smooth(logits, images, None, [1], SmoothInversion(steps=300), seed=0)
    assert float(found.sizes[0]) == pytest.approx(0.2, rel=0.1)
    change = found.patterns[0]
    assert float(change.square().mean().sqrt()) == pytest.approx(float(found.sizes[0]), rel=1e-4)
    assert float(change.mean()) == pytest.approx(0.2, abs=0.02)
    assert logits((images + change).clamp(0, 1)).argmax(1).eq(1).all()


def test_a_class_goes_its_way_in_any_company():
    network = Faint(600.0)
    images, labels = noise(60), torch.arange(60) % 6
    short = SmoothInversion(steps=12)
    both = invert_smooth(network, images, labels, [4, 2], short, seed=5)
    alone = invert_smooth(network, images, labels, [2], short, seed=5)
    assert torch.allclose(both.patterns[1], alone.patterns[0], atol=1e-6)
    many = [5, 2, 0, 4, 3, 1]  # more than share a pass
    among = invert_smooth(network, images, labels, many, short, seed=5)
    assert torch.allclose(among.patterns[many.index(4)], both.patterns[0], atol=1e-6)
    assert torch.allclose(among.patterns[many.index(2)], alone.patterns[0], atol=1e-6)
    other = invert_smooth(network, images, labels, [2], short, seed=6)
    assert not torch.allclose(other.patterns[0], alone.patterns[0], atol=1e-4)


def test_a_class_that_all_images_show_gets_no_pattern():
    images = noise(20)
    found = invert_smooth(Faint(0.0), images, torch.full((20,), 3), [3], SmoothInversion(), seed=0)
    assert found.sizes.tolist() == [math.inf]


def test_parameters_get_no_gradient():
    network = Faint(600.0)
    invert_smooth(network, noise(20), None, [2], SmoothInversion(steps=2), seed=0)
    assert network.head.weight.grad is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"frequencies": 0},
        {"steps": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"penalty": math.inf},
        {"strength": -1.0},
        {"success": 0.0},
        {"memory": 1.0},
        {"multiplier": 1.0},
    ],
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        replace(SmoothInversion(), **wrong)


def test_classes_are_given_once():
    with pytest.raises(InputError, match="each once"):
        invert_smooth(Faint(0.0), noise(4), None, [1, 1], SmoothInversion(), seed=0)
