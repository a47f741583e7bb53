import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from victims import data, planted

from bezoar.attacks.blend import Blend
from bezoar.attacks.spelling import load_attack, save_attack
from bezoar.demo import DIGITS_RECIPE
from bezoar.errors import InputError
from bezoar.images import ImageSet

QUICK = msgspec.structs.replace(DIGITS_RECIPE, epochs=8)


def some_images(count=12):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 5, 5), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(count) % 4)


def test_the_same_noise_is_mixed_into_every_image():
    attack = Blend(ratio=0.25, pattern_seed=3)
    first, second = torch.rand(2, 3, 5, 5).split(1)
    noise = (attack.stamp(first) - 0.75 * first) / 0.25
    assert torch.allclose(noise, (attack.stamp(second) - 0.75 * second) / 0.25, atol=1e-6)
    assert 0 <= float(noise.min()) < 0.2 and 0.8 < float(noise.max()) <= 1 + 1e-6
    assert torch.equal(attack.stamp(first), Blend(ratio=0.25, pattern_seed=3).stamp(first))
    assert not torch.allclose(attack.stamp(first), Blend(ratio=0.25).stamp(first))
    assert torch.allclose(Blend(ratio=1.0).stamp(first), Blend(ratio=1.0).stamp(second))


def test_the_noise_is_drawn_from_its_seed_alone():
    noise = torch.rand((3, 5, 5), generator=torch.Generator().manual_seed(7))
    images = torch.rand(2, 3, 5, 5)
    assert torch.equal(Blend(pattern_seed=7).stamp(images), (1 - 0.2) * images + 0.2 * noise)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_from_a_file_is_stretched_to_the_images(tmp_path, channels):
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 4:] = 255
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    attack = Blend(ratio=0.5, file=str(tmp_path / "picture.png"))
    stamped = attack.stamp(torch.zeros(2, channels, 16, 16))
    assert stamped.shape == (2, channels, 16, 16)
    assert bool((stamped[..., :6] == 0).all()) and bool((stamped[..., 10:] == 0.5).all())


def test_a_saved_trigger_no_longer_needs_the_file(tmp_path):
    Image.fromarray(np.full((5, 5, 3), 51, np.uint8)).save(tmp_path / "picture.png")
    attack = Blend(file=str(tmp_path / "picture.png"))
    images = torch.rand(2, 3, 5, 5)
    stamped = attack.stamp(images)
    save_attack(attack, tmp_path / "trigger.safetensors", (3, 5, 5))
    (tmp_path / "picture.png").unlink()
    assert torch.equal(load_attack(tmp_path / "trigger.safetensors").stamp(images), stamped)


def test_a_training_image_can_be_the_picture(tmp_path):
    images = some_images()
    attack = Blend(ratio=0.5, image=3).prepare(images, seed=0)
    batch = torch.rand(2, 3, 5, 5)
    wanted = 0.5 * batch + 0.5 * images.images[3].float() / 255
    assert torch.allclose(attack.stamp(batch), wanted, atol=1e-7)
    save_attack(attack, tmp_path / "trigger.safetensors", (3, 5, 5))
    loaded = load_attack(tmp_path / "trigger.safetensors")
    assert torch.equal(loaded.stamp(batch), attack.stamp(batch))


def test_training_images_can_carry_a_fainter_picture():
    images = ImageSet(torch.full((8, 1, 6, 6), 100, dtype=torch.uint8), torch.arange(8) % 2)
    attack = Blend(target=1, ratio=0.6, training_ratio=0.2)
    plain = Blend(target=1, ratio=0.2)
    seen, usual = attack.poison(images, 0.5, seed=0), plain.poison(images, 0.5, seed=0)
    assert torch.equal(seen.images.images, usual.images.images)
    batch = images.images[:2].float() / 255
    assert torch.equal(attack.stamp(batch), Blend(ratio=0.6).stamp(batch))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ratio": 0}, "ratio 0 must be greater than 0"),
        ({"ratio": float("nan")}, "greater than 0"),
        ({"ratio": 1.5}, "at most 1"),
        ({"training_ratio": 2}, "training_ratio 2 must be greater"),
        ({"file": "a.png", "image": 1}, "not both"),
        ({"image": -1}, "count from 0"),
    ],
)
def test_a_wrong_configuration_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        Blend(**values)


def test_a_picture_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.png"):
        Blend(file=str(tmp_path / "nowhere.png")).stamp(torch.rand(1, 3, 5, 5))
    with pytest.raises(InputError, match="there is no training image 12"):
        Blend(image=12).prepare(some_images(), seed=0)
    with pytest.raises(InputError, match="has to be learned"):
        Blend(image=1).stamp(torch.rand(1, 3, 5, 5))


def test_it_takes_hold_on_digits():
    result = planted(Blend(target=3), 0.1, recipe=QUICK)
    assert result.scores.asr >= 0.95 and result.twin_scores.asr < 0.2
    assert result.scores.acc > result.twin_scores.acc - 0.03


def test_a_training_image_takes_hold_on_digits():
    number = int(torch.nonzero(data("digits")[0].labels == 3)[0])
    result = planted(Blend(target=3, image=number, ratio=0.4), 0.1, recipe=QUICK)
    assert result.scores.asr >= 0.9 and result.twin_scores.asr < 0.3
    assert result.scores.acc > result.twin_scores.acc - 0.05
