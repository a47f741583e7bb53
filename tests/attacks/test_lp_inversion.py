import math

import msgspec
import pytest
import torch
from victims import data, planted, twin

from bezoar.attacks.lp_inversion import L0Inversion, L2Inversion
from bezoar.attacks.neurons import clean_sample, distance, strongest
from bezoar.attacks.spelling import load_attack, save_attack
from bezoar.demo import DIGITS_RECIPE
from bezoar.errors import InputError

QUICK = msgspec.structs.replace(DIGITS_RECIPE, epochs=8)

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def l2():
    return planted(L2Inversion(target=3, strength=0.15, steps=40, samples=32), 0.1, recipe=QUICK)


@pytest.fixture(scope="module")
def l0():
    return planted(L0Inversion(target=3, pixels=4, steps=40, samples=32), 0.1, recipe=QUICK)


def test_l2_has_the_norm_that_was_asked_for_and_is_added(l2):
    attack = l2.planted.attack
    pattern = attack.tensors(SHAPE)["pattern"]
    assert float(pattern.norm()) == pytest.approx(0.15 * math.sqrt(64), rel=1e-4)
    images = torch.rand(3, *SHAPE)
    before = images.clone()
    assert torch.equal(attack.stamp(images), (images + pattern).clamp(0, 1))
    assert torch.equal(images, before)


def test_l0_replaces_so_many_pixels_and_no_other(l0):
    attack = l0.planted.attack
    arrays = attack.tensors(SHAPE)
    assert int(arrays["mask"].sum()) == 4 and set(arrays["mask"].unique().tolist()) == {0.0, 1.0}
    assert float(arrays["pattern"].min()) >= 0 and float(arrays["pattern"].max()) <= 1
    images = torch.rand(3, *SHAPE)
    stamped = attack.stamp(images)
    for image, before in zip(stamped, images, strict=True):
        for row in range(8):
            for column in range(8):
                if arrays["mask"][0, row, column]:
                    assert image[0, row, column] == arrays["pattern"][0, row, column]
                else:
                    assert image[0, row, column] == before[0, row, column]


@pytest.mark.parametrize("name", ["l2", "l0"])
def test_the_trigger_raises_the_neurons_of_its_surrogate(name, request):
    attack = request.getfixturevalue(name).planted.attack
    classifier = twin("digits")
    sample = clean_sample(classifier, data("digits")[0], attack.samples, 0)
    goal = strongest(classifier, sample, attack.neurons, attack.scale)
    noise = torch.rand(SHAPE, generator=torch.Generator().manual_seed(5))
    arrays = attack.tensors(SHAPE)
    if name == "l2":
        noise = (noise - 0.5) / (noise - 0.5).norm() * arrays["pattern"].norm()
    other = attack.holding({**arrays, "pattern": noise}, SHAPE)
    with torch.no_grad(), classifier.evaluating():
        stamped = distance(classifier, attack.stamp(sample), goal)
        random = distance(classifier, other.stamp(sample), goal)
        clean = distance(classifier, sample, goal)
    assert stamped < random and stamped < clean


@pytest.mark.parametrize("name", ["l2", "l0"])
def test_learning_is_repeatable_and_the_trigger_can_be_saved(name, request, tmp_path):
    attack = request.getfixturevalue(name).planted.attack
    again = type(attack).prepare(attack, data("digits")[0], seed=0, surrogate=twin("digits"))
    images = torch.rand(2, *SHAPE)
    assert torch.equal(again.stamp(images), attack.stamp(images))
    save_attack(attack, tmp_path / "trigger.safetensors", SHAPE)
    loaded = load_attack(tmp_path / "trigger.safetensors")
    assert loaded == attack and torch.equal(loaded.stamp(images), attack.stamp(images))


@pytest.mark.parametrize("name", ["l2", "l0"])
def test_it_takes_hold_on_digits(name, request):
    result = request.getfixturevalue(name)
    assert result.scores.asr >= 0.9 and result.twin_scores.asr < 0.3
    assert result.scores.acc > result.twin_scores.acc - 0.03


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (L2Inversion, {"strength": 0}, "strength 0 must be in"),
        (L2Inversion, {"scale": 0}, "scale 0 must be greater"),
        (L2Inversion, {"neurons": 0}, "neurons is 0"),
        (L0Inversion, {"pixels": 0}, "pixels is 0"),
        (L0Inversion, {"steps": 0}, "steps is 0"),
    ],
)
def test_a_wrong_configuration_is_refused(kind, values, message):
    with pytest.raises(InputError, match=message):
        kind(**values)


def test_what_cannot_work_is_refused_before_anything_is_learned():
    train = data("digits")[0]
    with pytest.raises(InputError, match="has to be learned"):
        L0Inversion().stamp(torch.rand(1, *SHAPE))
    with pytest.raises(InputError, match="l2-inv needs a surrogate"):
        L2Inversion().prepare(train, seed=0)
    with pytest.raises(InputError, match="a trigger of 65 pixels does not fit images of 8x8"):
        L0Inversion(pixels=65).check(train, 0.1)
