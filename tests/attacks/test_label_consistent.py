import pytest
import torch
import torch.nn.functional as F
from victims import data, planted, twin

from bezoar.attacks.label_consistent import LabelConsistent
from bezoar.attacks.spelling import load_attack, save_attack
from bezoar.errors import InputError

EASY = LabelConsistent(epsilon=0.1, steps=10)
RATE = 0.08


@pytest.fixture(scope="module")
def result():
    return planted(EASY, RATE)


def grey(channels=3, side=8):
    return torch.full((2, channels, side, side), 0.5)


def test_the_pattern_lies_in_all_corners_and_is_its_own_mirror_image():
    stamped = LabelConsistent().stamp(grey())
    bottom_right = torch.tensor([[0.0, 0, 1], [0, 1, 0], [1, 0, 1]])
    bottom_left = bottom_right.flip(1)
    for corner, there in (
        (stamped[1, 2, -3:, -3:], bottom_right),
        (stamped[1, 2, :3, -3:], bottom_right),
        (stamped[1, 2, -3:, :3], bottom_left),
        (stamped[1, 2, :3, :3], bottom_left),
    ):
        assert torch.equal(corner, there)
    assert torch.equal(stamped.flip(3), stamped)
    assert int((stamped != 0.5).sum()) == 2 * 3 * 4 * 9


def test_one_corner_and_a_small_amplitude_add_and_clip():
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    stamped = LabelConsistent(corners="bottom-right", amplitude=0.25).stamp(images)
    signs = [[-1, -1, 1], [-1, 1, -1], [1, -1, 1]]
    expected = images.clone()
    for row in range(3):
        for column in range(3):
            for image in range(3):
                value = images[image, 0, 5 + row, 5 + column] + 0.25 * signs[row][column]
                expected[image, 0, 5 + row, 5 + column] = min(1, max(0, value))
    assert torch.allclose(stamped, expected, atol=1e-6)
    assert torch.equal(images, before)
    assert LabelConsistent().stamp(images[:0]).shape == (0, 1, 8, 8)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.1), ("l2", 0.6)])
def test_hard_images_stay_near_and_fool_the_surrogate(norm, epsilon):
    attack = LabelConsistent(norm=norm, epsilon=epsilon, steps=10)
    train, _ = data("digits")
    some = train.subset(torch.nonzero(train.labels == 0).flatten()[:20])
    images = some.images.float() / 255
    hard = attack.harden(images, some.labels, twin("digits"))
    moved = (hard - images).flatten(1)
    sizes = moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)
    assert float(sizes.max()) <= epsilon + 1e-6
    with twin("digits").evaluating(), torch.no_grad():
        before = F.cross_entropy(twin("digits")(images), some.labels)
        after = F.cross_entropy(twin("digits")(hard), some.labels)
    assert float(after) > 5 * float(before)


def test_poisoned_images_are_of_the_target_class_and_keep_their_label(result):
    attack = EASY.prepare(result.train, seed=0, surrogate=twin("digits"))
    poisoned = attack.poison(result.train, RATE, seed=3)
    assert torch.equal(poisoned.images.labels, result.train.labels)
    assert int(poisoned.where.sum()) == 80 and not bool(poisoned.covered.any())
    assert bool((result.train.labels[poisoned.where] == 0).all())
    same = poisoned.images.images[~poisoned.where] == result.train.images[~poisoned.where]
    assert bool(same.all())
    changed = poisoned.images.images[poisoned.where].float() / 255
    clean = result.train.images[poisoned.where].float() / 255
    middle = (changed - clean)[:, :, 3:5]  # no corner reaches there: only the perturbation
    assert 0.05 < float(middle.abs().max()) <= 0.1 + 0.5 / 255 + 1e-6
    again = attack.poison(result.train, RATE, seed=3)
    assert again.images.sha256() == poisoned.images.sha256()
    other = attack.poison(result.train, RATE, seed=4)
    assert other.images.sha256() != poisoned.images.sha256()


def test_the_planted_backdoor_works_on_untouched_images(result):
    assert result.scores.asr >= 0.9 and result.twin_scores.asr <= 0.1
    assert result.scores.acc >= result.twin_scores.acc - 0.03
    assert result.planted.poisoned == 80


def test_a_trigger_file_stamps_the_same(tmp_path, result):
    save_attack(result.planted.attack, tmp_path / "t.safetensors", (1, 8, 8))
    loaded = load_attack(tmp_path / "t.safetensors")
    images = result.test.images[:9].float() / 255
    assert loaded == EASY
    assert torch.equal(loaded.stamp(images), EASY.stamp(images))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"amplitude": 0}, "amplitude 0"),
        ({"amplitude": 1.5}, "amplitude 1.5"),
        ({"epsilon": -1}, "epsilon -1"),
        ({"steps": 0}, "steps 0"),
        ({"mode": "all-to-all", "num_classes": 10}, "no mode 'all-to-all'"),
    ],
)
def test_bad_values_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        LabelConsistent(**values)


def test_small_images_and_a_missing_surrogate_are_refused():
    with pytest.raises(InputError, match="at least 6x6"):
        LabelConsistent().stamp(grey(side=5))
    with pytest.raises(InputError, match="call prepare with a surrogate"):
        LabelConsistent().poison(data("digits")[0], RATE, seed=0)
