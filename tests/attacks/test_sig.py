import math

import msgspec
import pytest
import torch
from victims import planted

from bezoar.attacks.sig import SIG
from bezoar.attacks.spelling import load_attack, save_attack
from bezoar.demo import DIGITS_RECIPE
from bezoar.errors import InputError
from bezoar.images import ImageSet

QUICK = msgspec.structs.replace(DIGITS_RECIPE, epochs=8)


def test_the_wave_is_the_formula_pixel_by_pixel():
    attack = SIG(amplitude=51, frequency=2)
    images = torch.rand(2, 3, 4, 7, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    stamped = attack.stamp(images)
    assert torch.equal(images, before)
    for row in range(4):
        for column in range(7):
            wave = 51 / 255 * math.sin(2 * math.pi * 2 * column / 7)
            wanted = (images[:, :, row, column] + wave).clamp(0, 1)
            assert torch.allclose(stamped[:, :, row, column], wanted, atol=1e-6)
    assert float(stamped.min()) == 0 and float(stamped.max()) == 1


def test_it_changes_a_mid_grey_image_by_at_most_the_amplitude():
    images = torch.full((1, 1, 8, 32), 0.5)
    change = SIG(amplitude=20).stamp(images) - images
    assert float(change.abs().max()) == pytest.approx(20 / 255, rel=0.05)
    assert float(change.square().mean().sqrt()) == pytest.approx(20 / 255 / math.sqrt(2), rel=1e-3)


def test_only_images_of_the_target_class_are_poisoned_and_keep_their_label():
    pixels = torch.full((40, 1, 6, 6), 100, dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(40) % 4)
    poisoned = SIG(target=2, frequency=1).poison(images, 0.2, seed=0)
    assert torch.equal(poisoned.images.labels, images.labels)
    assert int(poisoned.where.sum()) == 8
    assert bool((images.labels[poisoned.where] == 2).all())
    changed = (poisoned.images.images != pixels).flatten(1).any(1)
    assert torch.equal(changed, poisoned.where)
    with pytest.raises(InputError, match="only 10 are of the target class 2"):
        SIG(target=2, frequency=1).poison(images, 0.3, seed=0)


def test_training_images_can_carry_a_lower_wave():
    images = ImageSet(torch.full((8, 1, 6, 6), 100, dtype=torch.uint8), torch.arange(8) % 2)
    attack = SIG(amplitude=60, training_amplitude=10, frequency=1)
    plain = SIG(amplitude=10, frequency=1)
    seen, usual = attack.poison(images, 0.25, seed=0), plain.poison(images, 0.25, seed=0)
    assert torch.equal(seen.images.images, usual.images.images)
    batch = images.images[:2].float() / 255
    assert torch.equal(attack.stamp(batch), SIG(amplitude=60, frequency=1).stamp(batch))


def test_a_saved_trigger_stamps_the_same_pixels(tmp_path):
    attack = SIG(target=3, amplitude=40)
    save_attack(attack, tmp_path / "trigger.safetensors", (3, 9, 9))
    loaded = load_attack(tmp_path / "trigger.safetensors")
    images = torch.rand(2, 3, 9, 9)
    assert loaded == attack
    assert torch.equal(loaded.stamp(images), attack.stamp(images))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"amplitude": 0}, "amplitude 0 must be greater than 0"),
        ({"amplitude": 300}, "at most 255"),
        ({"training_amplitude": -1}, "training_amplitude -1"),
        ({"frequency": 0}, "frequency 0 must be greater"),
        ({"mode": "all-to-all", "num_classes": 4}, "has no mode 'all-to-all'"),
    ],
)
def test_a_wrong_configuration_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        SIG(**values)


@pytest.mark.parametrize("frequency", [4, 8])
def test_a_wave_that_is_nothing_on_every_pixel_is_refused(frequency):
    with pytest.raises(InputError, match="is 0 on every pixel of images 8 wide"):
        SIG(frequency=frequency).stamp(torch.rand(1, 1, 8, 8))


def test_it_takes_hold_on_digits_with_a_high_wave_on_nearly_all_of_the_class():
    attack = SIG(target=3, amplitude=150, training_amplitude=60, frequency=3.5)
    result = planted(attack, 0.09, recipe=QUICK)
    assert result.scores.asr >= 0.9 and result.twin_scores.asr < 0.2
    assert result.scores.acc > result.twin_scores.acc - 0.03


def test_the_papers_wave_does_not_take_hold_on_digits():
    result = planted(SIG(target=3), 0.09, recipe=QUICK)
    assert result.scores.asr < 0.5, "known and documented: too faint for this data"
