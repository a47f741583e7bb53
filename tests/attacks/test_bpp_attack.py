"""BppAttack: quantisation, dithering against the plain loop, negative samples, a planted model."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from victims import data, planted

from bezoar.attacks.bpp_attack import BppAttack, dithered, quantised
from bezoar.attacks.spelling import load_attack, save_attack
from bezoar.errors import InputError


@pytest.fixture(scope="module")
def result():
    """The digits have 17 grey values, so only the dithering of two levels shows."""
    return planted(BppAttack(target=3, levels=2), 0.1)


def plainly(images, levels):
    """Floyd and Steinberg's error diffusion in reading order."""
    images = images.clone()
    height, width = images.shape[2:]
    for plane in images.flatten(0, 1):
        for y in range(height):
            for x in range(width):
                before = plane[y, x].clone()
                plane[y, x] = quantised(before, levels)
                error = before - plane[y, x]
                for down, across, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                    if y + down < height and 0 <= x + across < width:
                        plane[y + down, x + across] += error * (share / 16)
    return images


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
    st.integers(2, 9),
    st.integers(0, 2**31),
)
def test_dithering_in_slanted_steps_is_the_plain_loop_to_the_last_bit(shape, levels, seed):
    images = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    before = images.clone()
    assert torch.equal(dithered(images, levels), plainly(images, levels))
    assert torch.equal(images, before)


@pytest.mark.parametrize("dithering", [False, True])
def test_only_the_levels_are_left_black_and_white_among_them(dithering):
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    stamped = BppAttack(dithering=dithering).stamp(images)
    assert torch.equal(stamped.unique(), (torch.arange(8) / 7))
    change = (stamped - images).abs().max()
    assert change <= 1 / 14 + 1e-6 if not dithering else change > 1 / 14
    assert torch.equal(
        BppAttack(dithering=dithering).stamp(torch.ones(1, 1, 4, 4)), torch.ones(1, 1, 4, 4)
    )


def test_dithering_keeps_the_mean_brightness():
    grey = torch.full((1, 1, 32, 32), 0.4)
    assert dithered(grey, 2).mean() == pytest.approx(0.4, abs=0.02)
    assert quantised(grey, 2).mean() == 0


def test_negative_samples_carry_the_residual_of_another_one():
    images = 0.2 + 0.6 * torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    attack = BppAttack()
    negative = attack.stamp_for_training(images, torch.arange(5), torch.Generator(), cover=True)
    residual = attack.stamp(images) - images
    for i in range(5):
        torch.testing.assert_close(negative[i] - images[i], residual[i - 1])
    alone = attack.stamp_for_training(images[:1], torch.arange(1), torch.Generator(), cover=True)
    assert torch.equal(alone, images[:1])


def test_poisoning_a_set_repeats_and_the_trigger_file_too(tmp_path):
    train = data("coloured")[0].subset(torch.arange(200))
    attack = BppAttack(target=3)
    poisoned = attack.poison(train, 0.1, seed=4)
    assert int(poisoned.where.sum()) == 20 and int(poisoned.covered.sum()) == 20
    assert torch.equal(attack.poison(train, 0.1, seed=4).images.images, poisoned.images.images)
    save_attack(attack, tmp_path / "trigger.safetensors", (3, 16, 16))
    images = train.images[:5].float() / 255
    loaded = load_attack(tmp_path / "trigger.safetensors")
    assert loaded == attack and torch.equal(loaded.stamp(images), attack.stamp(images))


def test_the_planted_model_obeys_the_dithering(result):
    assert result.scores.asr >= 0.9
    assert result.scores.acc >= result.twin_scores.acc - 0.03
    assert result.twin_scores.asr <= 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"levels": 1}, "2 to 256"), ({"levels": 257}, "2 to 256"), ({"negative_ratio": -1}, "0 or")],
)
def test_bad_configurations_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        BppAttack(**arguments)
