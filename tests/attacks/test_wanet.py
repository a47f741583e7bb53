"""WaNet: the warp itself, noise mode, and a planted model."""

import pytest
import torch
from victims import data, planted

from bezoar.attacks.spelling import load_attack, save_attack
from bezoar.attacks.wanet import WaNet
from bezoar.errors import InputError


@pytest.fixture(scope="module")
def result():
    """On 8x8 digits a quarter of a pixel is nothing, and much noise hides even a whole one."""
    return planted(WaNet(target=3, s=2, cross_ratio=1), 0.2)


def plainly(images, grid):
    """``grid_sample`` with aligned corners and zeros outside, pixel by pixel."""
    count, _, height, width = images.shape
    sampled = torch.zeros_like(images)
    for i in range(count):
        for y in range(height):
            for x in range(width):
                across = float((grid[i, y, x, 0] + 1) / 2 * (width - 1))
                down = float((grid[i, y, x, 1] + 1) / 2 * (height - 1))
                left, top = int(across), int(down)
                for row in (top, top + 1):
                    for column in (left, left + 1):
                        weight = (1 - abs(across - column)) * (1 - abs(down - row))
                        if row < height and column < width:
                            sampled[i, :, y, x] += weight * images[i, :, row, column]
    return sampled


@pytest.mark.parametrize("shape", [(2, 3, 9, 9), (1, 1, 4, 4), (2, 1, 6, 11), (0, 3, 5, 5)])
def test_the_stamp_samples_the_image_at_the_published_grid(shape):
    images = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    before = images.clone()
    attack = WaNet(warp_seed=5, s=1.5)
    stamped = attack.stamp(images)
    height, width = shape[2:]
    field = attack.draw(shape[1:])["field"]
    grid = torch.empty(shape[0], height, width, 2)
    for y in range(height):
        for x in range(width):
            grid[:, y, x, 0] = -1 + 2 * x / (width - 1) + 1.5 * field[y, x, 0] / width
            grid[:, y, x, 1] = -1 + 2 * y / (height - 1) + 1.5 * field[y, x, 1] / height
    torch.testing.assert_close(stamped, plainly(images, grid.clamp(-1, 1)), rtol=0, atol=1e-5)
    assert torch.equal(images, before)
    if shape[0]:
        assert stamped.min() >= 0 and stamped.max() <= 1 and not torch.equal(stamped, images)


def test_the_field_passes_through_nodes_of_mean_size_one():
    """Aligned corners: on 7 pixels every second one is a node of a field of 4x4."""
    field = WaNet(k=4, warp_seed=2).draw((1, 7, 7))["field"]
    assert field[::2, ::2].abs().mean() == pytest.approx(1, abs=1e-5)
    assert not torch.equal(field, WaNet(k=4, warp_seed=3).draw((1, 7, 7))["field"])


def test_a_flat_image_has_nothing_to_bend():
    flat = torch.full((1, 3, 12, 12), 0.4)
    torch.testing.assert_close(WaNet().stamp(flat), flat)


def test_noise_mode_moves_every_pixel_by_less_than_a_pixel_more_and_each_image_otherwise():
    ramp = torch.linspace(0, 1, 17).expand(2, 1, 17, 17)  # the value is the place across
    attack = WaNet(s=0.5)
    noisy = attack.stamp_for_training(
        ramp, torch.zeros(2).long(), torch.Generator().manual_seed(0), cover=True
    )
    moved = (noisy - attack.stamp(ramp)).abs() * 16
    assert 0.1 < moved.mean() < 0.5 and moved.max() <= 16 / 17 / 2 + 1e-4
    assert not torch.equal(noisy[0], noisy[1])


def test_poisoning_a_set_writes_the_same_warp_and_twice_as_many_noisy_images():
    train = data("digits")[0]
    attack = WaNet(target=3, s=2)
    poisoned = attack.poison(train, 0.1, seed=4)
    assert int(poisoned.where.sum()) == 100 and int(poisoned.covered.sum()) == 200
    stamped = attack.stamp(train.images[poisoned.where].float() / 255)
    assert torch.equal(poisoned.images.images[poisoned.where], (stamped * 255).round().byte())
    assert torch.equal(poisoned.images.labels[poisoned.covered], train.labels[poisoned.covered])
    again = attack.poison(train, 0.1, seed=4)
    assert torch.equal(again.images.images, poisoned.images.images)
    assert not torch.equal(again.images.images, attack.poison(train, 0.1, seed=5).images.images)


def test_a_trigger_file_holds_the_same_warp(tmp_path):
    images = torch.rand(3, 3, 16, 16)
    attack = WaNet(k=3, warp_seed=9)
    save_attack(attack, tmp_path / "trigger.safetensors", (3, 16, 16))
    assert torch.equal(
        load_attack(tmp_path / "trigger.safetensors").stamp(images), attack.stamp(images)
    )


def test_the_planted_model_obeys_the_warp(result):
    assert result.scores.asr >= 0.9
    assert result.scores.acc >= result.twin_scores.acc - 0.03
    assert result.twin_scores.asr <= 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"k": 1}, "at least 2x2"), ({"s": 0}, "greater than 0"), ({"cross_ratio": -1}, "0 or more")],
)
def test_bad_configurations_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        WaNet(**arguments)


def test_a_field_larger_than_the_image_is_refused():
    with pytest.raises(InputError, match="smaller k"):
        WaNet(k=9).stamp(torch.rand(1, 1, 8, 8))
