import pytest
import torch
from victims import data, planted

from bezoar.attacks.adap_patch import AdapPatch
from bezoar.attacks.spelling import load_attack, parse_attack, save_attack
from bezoar.errors import InputError

SMALL = AdapPatch(size=3)
RATE = 0.1


@pytest.fixture(scope="module")
def result():
    return planted(SMALL, RATE)


CORNERS = [
    (slice(0, 4), slice(0, 4)),
    (slice(0, 4), slice(6, 10)),
    (slice(6, 10), slice(0, 4)),
    (slice(6, 10), slice(6, 10)),
]


def test_test_images_get_the_first_and_third_patch_and_nothing_else():
    images = torch.rand(2, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    attack = AdapPatch(size=4)
    stamped = attack.stamp(images)
    expected = images.clone()
    for index in (0, 2):
        rows, columns = CORNERS[index]
        patch = attack.tensors((3, 10, 10))["patches"][index, :, rows, columns]
        expected[:, :, rows, columns] = patch
        assert torch.equal(patch[:, ::2, ::2], patch[:, 1::2, 1::2])  # cells of 2x2
    assert torch.allclose(stamped, expected, atol=1e-6)
    assert int((stamped != images).any(1).any(0).sum()) == 32
    assert torch.equal(images, before)
    assert attack.stamp(images[:0]).shape == (0, 3, 10, 10)


def test_training_images_get_one_faint_patch_each_in_equal_shares():
    attack = AdapPatch(size=4)
    images = torch.full((8, 1, 10, 10), 0.5)
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(8, dtype=torch.long)
    stamped = attack.stamp_for_training(images, labels, generator, cover=False)
    for number in range(8):
        index = number % 4
        rows, columns = CORNERS[index]
        patch = attack.tensors((1, 10, 10))["patches"][index, :, rows, columns]
        expected = images[number].clone()
        opacity = (0.5, 0.2, 0.5, 0.3)[index]
        expected[:, rows, columns] = (1 - opacity) * 0.5 + opacity * patch
        assert torch.allclose(stamped[number], expected, atol=1e-6)


def test_twice_as_many_images_are_covered_as_poisoned(result):
    poisoned = SMALL.poison(result.train, RATE, seed=1)
    assert (int(poisoned.where.sum()), int(poisoned.covered.sum())) == (100, 200)
    assert torch.equal(poisoned.images.labels != result.train.labels, poisoned.where)
    again = SMALL.poison(result.train, RATE, seed=1)
    assert again.images.sha256() == poisoned.images.sha256()


def test_the_planted_backdoor_works(result):
    assert result.scores.asr >= 0.9 and result.twin_scores.asr <= 0.1
    assert result.scores.acc >= result.twin_scores.acc - 0.04


def test_a_trigger_file_stamps_the_same(tmp_path):
    save_attack(SMALL, tmp_path / "t.safetensors", (1, 8, 8))
    images = data("digits")[1].images[:9].float() / 255
    assert torch.equal(load_attack(tmp_path / "t.safetensors").stamp(images), SMALL.stamp(images))
    spelled = parse_attack("adap-patch:size=3,opacities=0.5+0.2,shown=1")
    assert spelled == AdapPatch(size=3, opacities=(0.5, 0.2), shown=(1,))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"opacities": ()}, "0 opacities"),
        ({"opacities": (0.1,) * 5, "shown": (0,)}, "5 opacities"),
        ({"opacities": (0.0,), "shown": (0,)}, r"opacities \(0.0,\)"),
        ({"opacity": 2.0}, "and 2.0 must"),
        ({"shown": (4,)}, r"shown is \(4,\)"),
        ({"shown": ()}, r"shown is \(\)"),
        ({"size": 0}, "size 0"),
        ({"cover": -1}, "cover -1"),
    ],
)
def test_bad_values_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        AdapPatch(**values)


def test_patches_that_overlap_are_refused():
    with pytest.raises(InputError, match="give size 3 or less"):
        AdapPatch(size=4).stamp(torch.zeros(1, 1, 7, 7))
