import pytest
import torch
from victims import data, planted

from bezoar.attacks.adap_blend import AdapBlend
from bezoar.attacks.spelling import load_attack, save_attack
from bezoar.errors import InputError

STRONG = AdapBlend(ratio=0.4, training_ratio=0.3)
RATE = 0.1


@pytest.fixture(scope="module")
def result():
    return planted(STRONG, RATE)


def test_test_images_get_the_whole_picture():
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    attack = AdapBlend(pattern_seed=5)
    picture = attack.tensors((3, 8, 8))["picture"]
    assert torch.allclose(attack.stamp(images), 0.8 * images + 0.2 * picture, atol=1e-6)
    assert torch.equal(images, before)
    assert attack.stamp(images[:0]).shape == (0, 3, 8, 8)


def test_the_picture_spans_the_range_and_depends_on_the_seed():
    picture = AdapBlend().tensors((3, 32, 32))["picture"]
    assert torch.equal(picture.amin((1, 2)), torch.zeros(3))
    assert torch.equal(picture.amax((1, 2)), torch.ones(3))
    steps = (picture[:, :, 1:] - picture[:, :, :-1]).abs()
    assert float(steps.max()) < 0.35  # smooth: noise would jump by up to 1
    assert not torch.equal(picture, AdapBlend(pattern_seed=1).tensors((3, 32, 32))["picture"])


@pytest.mark.parametrize("side", [8, 10])
def test_training_images_get_half_of_the_pieces_each_its_own(side):
    attack = AdapBlend(training_ratio=0.5)
    images = torch.zeros(40, 1, side, side)
    generator = torch.Generator().manual_seed(0)
    stamped = attack.stamp_for_training(
        images, torch.zeros(40, dtype=torch.long), generator, cover=False
    )
    masks = attack.masks(40, side, side, torch.Generator().manual_seed(0))
    picture = attack.tensors((1, side, side))["picture"]
    assert torch.allclose(stamped, 0.5 * masks * picture, atol=1e-6)
    shown = torch.zeros(40, 4, 4)
    for row in range(side):
        for column in range(side):
            shown[:, row * 4 // side, column * 4 // side] += masks[:, 0, row, column]
    assert bool(((shown > 0).sum((1, 2)) == 8).all())  # 8 of 16 pieces
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) > 30
    assert bool((shown > 0).any(0).all())


def test_as_many_images_are_covered_as_poisoned(result):
    poisoned = STRONG.poison(result.train, RATE, seed=1)
    assert int(poisoned.where.sum()) == int(poisoned.covered.sum()) == 100
    assert not bool((poisoned.where & poisoned.covered).any())
    assert bool((poisoned.images.labels[poisoned.where] == 0).all())
    kept = poisoned.images.labels == result.train.labels
    assert torch.equal(~kept, poisoned.where)
    touched = (poisoned.images.images != result.train.images).flatten(1).any(1)
    assert torch.equal(touched, poisoned.where | poisoned.covered)
    again = STRONG.poison(result.train, RATE, seed=1)
    assert again.images.sha256() == poisoned.images.sha256()
    assert int(AdapBlend(cover=0.5).poison(result.train, RATE, seed=1).covered.sum()) == 50


def test_the_planted_backdoor_works(result):
    assert result.scores.asr >= 0.9 and result.twin_scores.asr <= 0.2
    assert result.scores.acc >= result.twin_scores.acc - 0.04
    assert (result.planted.poisoned, result.planted.covered) == (100, 100)


def test_a_trigger_file_stamps_the_same(tmp_path):
    save_attack(STRONG, tmp_path / "t.safetensors", (1, 8, 8))
    images = data("digits")[1].images[:9].float() / 255
    assert torch.equal(load_attack(tmp_path / "t.safetensors").stamp(images), STRONG.stamp(images))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ratio": 0}, "ratio 0"),
        ({"training_ratio": 2}, "training_ratio 2"),
        ({"pieces": 0}, "pieces 0"),
        ({"mask_rate": 1}, "mask_rate 1"),
        ({"cover": -1}, "cover -1"),
    ],
)
def test_bad_values_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        AdapBlend(**values)


def test_images_smaller_than_the_pieces_are_refused():
    with pytest.raises(InputError, match="3x3 cannot be cut into 4x4"):
        AdapBlend().stamp(torch.zeros(1, 1, 3, 3))
