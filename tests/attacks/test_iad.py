"""Input-aware: the picture it paints, the losses, what is stored, and a planted model."""

import pytest
import torch
from victims import data, planted, twin

from bezoar.attacks.iad import IAD, diversity_loss, painted, sharpened
from bezoar.attacks.spelling import load_attack, save_attack
from bezoar.demo import DIGITS_RECIPE
from bezoar.errors import InputError
from bezoar.evaluation import evaluate
from bezoar.training import Recipe

pytestmark = pytest.mark.xdist_group("iad")  # one process makes its fixtures

SMALL = {"target": 3, "width": 8, "depth": 1, "mask_epochs": 5}
LONGER = Recipe(
    epochs=25,
    batch_size=DIGITS_RECIPE.batch_size,
    learning_rate=DIGITS_RECIPE.learning_rate,
    schedule=DIGITS_RECIPE.schedule,
    clip_norm=DIGITS_RECIPE.clip_norm,
)


@pytest.fixture(scope="module")
def result():
    """3 % of 64 pixels are two: the digits need larger masks, more of them, and more time."""
    attack = IAD(**SMALL, density=0.3, diversity=0.3)
    return planted(attack, 0.3, recipe=LONGER)


@pytest.fixture(scope="module")
def prepared():
    """Without a victim: the mask is trained, the pattern is as it was drawn."""
    return IAD(**SMALL).prepare(data("digits")[0].subset(torch.arange(300)), seed=0)


def test_the_stamp_replaces_pixels_by_the_pattern_where_the_mask_says(prepared):
    images = data("digits")[1].images[:6].float() / 255
    before = images.clone()
    pattern, mask = prepared._pattern_and_mask(images, prepared.tensors((1, 8, 8)))
    stamped = prepared.stamp(images)
    for i in range(6):
        for y in range(8):
            for x in range(8):
                share, paint, old = mask[i, 0, y, x], pattern[i, 0, y, x], images[i, 0, y, x]
                assert stamped[i, 0, y, x] == pytest.approx(float(old + (paint - old) * share))
    assert stamped.min() >= 0 and stamped.max() <= 1
    assert torch.equal(images, before)
    assert prepared.stamp(images[:0]).shape == (0, 1, 8, 8)


def test_a_stamp_depends_on_its_own_image_only(prepared):
    images = data("digits")[1].images[:6].float() / 255
    torch.testing.assert_close(prepared.stamp(images)[2:3], prepared.stamp(images[2:3]))


def test_the_formulas():
    assert sharpened(torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([0, 0.5, 1], abs=1e-6)
    assert painted(torch.tensor(0.2), torch.tensor(1.0), torch.tensor(0.25)) == pytest.approx(0.4)
    generator = torch.Generator().manual_seed(0)
    images, made = torch.rand(3, 1, 4, 4, generator=generator), torch.rand(3, 1, 4, 4)
    ratios = []
    for i in range(3):
        apart = (images[i] - images[i - 1]).square().mean().sqrt()
        ratios.append(apart / ((made[i] - made[i - 1]).square().mean().sqrt() + 1e-7))
    assert float(diversity_loss(images, made)) == pytest.approx(float(sum(ratios) / 3), rel=1e-4)


def test_equal_images_leave_the_gradient_finite():
    made = torch.zeros(4, 1, 2, 2, requires_grad=True)
    diversity_loss(torch.ones(4, 1, 2, 2), made).backward()
    assert torch.isfinite(made.grad).all()


def test_the_masks_become_sparse_and_stay_different():
    train, test = data("digits")
    attack = IAD(**SMALL, density=0.1).prepare(train, seed=0)
    images = test.images[:100].float() / 255
    _, masks = attack._pattern_and_mask(images, attack.tensors((1, 8, 8)))
    assert masks.mean() < 0.15
    assert masks.std(0).max() > 0.1


def test_the_same_seed_prepares_the_same_trigger(prepared):
    again = IAD(**SMALL).prepare(data("digits")[0].subset(torch.arange(300)), seed=0)
    other = IAD(**SMALL).prepare(data("digits")[0].subset(torch.arange(300)), seed=1)
    for name, tensor in prepared.tensors((1, 8, 8)).items():
        assert torch.equal(tensor, again.tensors((1, 8, 8))[name])
    images = data("digits")[1].images[:6].float() / 255
    assert not torch.equal(prepared.stamp(images), other.stamp(images))


def test_the_planted_model_obeys_each_image_s_own_trigger(result):
    assert result.scores.asr >= 0.9
    assert result.scores.acc >= result.twin_scores.acc - 0.03
    assert result.twin_scores.asr <= 0.1


def test_the_trigger_of_another_image_does_little(result):
    images, labels = result.test.images.float() / 255, result.test.labels
    crossed = result.planted.attack.stamp_for_training(
        images, labels, torch.Generator(), cover=True
    )
    with torch.no_grad():
        answers = result.classifier(crossed).argmax(1)
    assert (answers == labels).float().mean() >= 0.85


def test_the_trigger_file_stamps_the_same_also_in_half_precision(result, tmp_path):
    attack, file = result.planted.attack, tmp_path / "trigger.safetensors"
    images = result.test.images[:50].float() / 255
    save_attack(attack, file, (1, 8, 8))
    assert torch.equal(load_attack(file).stamp(images), attack.stamp(images))
    halves = {name: tensor.half() for name, tensor in attack.tensors((1, 8, 8)).items()}
    save_attack(attack.holding(halves, (1, 8, 8)), file, (1, 8, 8))
    rough = evaluate(result.classifier, result.test, load_attack(file))
    assert rough.asr == pytest.approx(result.scores.asr, abs=0.02)


def test_both_default_generators_take_less_than_200_kilobytes_in_half_precision():
    train = data("coloured")[0].subset(torch.arange(20))
    tensors = IAD(mask_epochs=1).prepare(train, seed=0).tensors((3, 16, 16))
    assert 2 * sum(tensor.numel() for tensor in tensors.values()) < 200_000


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_the_mask_generator_begins_with_the_rate_that_was_asked_for(epochs, monkeypatch):
    rates = []

    class Watched(torch.optim.lr_scheduler.MultiStepLR):
        def __init__(self, optimizer, milestones):
            super().__init__(optimizer, milestones)
            rates.append(optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(torch.optim.lr_scheduler, "MultiStepLR", Watched)
    IAD(**SMALL | {"mask_epochs": epochs}).prepare(
        data("coloured")[0].subset(torch.arange(20)), seed=0
    )
    assert rates == [IAD().learning_rate]


def test_an_attack_that_has_learned_nothing_is_refused():
    with pytest.raises(InputError, match="has to be learned"):
        IAD().stamp(torch.rand(1, 3, 8, 8))
    with pytest.raises(InputError, match="has to be learned"):
        evaluate(twin("digits"), data("digits")[1], IAD())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"density": 0}, "density 0 must"),
        ({"diversity": -1}, "diversity is -1"),
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"mask_epochs": 0}, "mask_epochs is 0"),
        ({"width": 0}, "width is 0"),
    ],
)
def test_bad_configurations_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        IAD(**arguments)
