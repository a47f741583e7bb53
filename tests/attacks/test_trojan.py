import msgspec
import pytest
import torch
from victims import data, planted, twin

from bezoar.attacks.neurons import clean_sample, strongest
from bezoar.attacks.spelling import load_attack, save_attack
from bezoar.attacks.trojan import TrojanSquare, TrojanWatermark
from bezoar.demo import DIGITS_RECIPE
from bezoar.errors import InputError

QUICK = msgspec.structs.replace(DIGITS_RECIPE, epochs=8)

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def square():
    return planted(TrojanSquare(target=3, steps=40, samples=32), 0.1, recipe=QUICK)


@pytest.fixture(scope="module")
def watermark():
    return planted(TrojanWatermark(target=3, opacity=0.5, steps=40, samples=32), 0.1, recipe=QUICK)


def test_the_square_covers_its_share_one_pixel_from_the_corner():
    outline = TrojanSquare(share=0.07).outline(32, 32)
    where = torch.nonzero(outline[0])
    assert where.min(0).values.tolist() == [23, 23] and where.max(0).values.tolist() == [30, 30]
    assert int(outline.sum()) == 64


def test_the_mark_is_a_ring_with_a_bar():
    outline = TrojanWatermark().outline(32, 32)[0]
    for row in range(32):
        for column in range(32):
            down, across = (row + 0.5 - 16) / 32, (column + 0.5 - 16) / 32
            distance = (down**2 + across**2) ** 0.5
            ring = abs(distance - 0.4) <= 0.06
            bar = abs(down + across) <= 0.09 and distance <= 0.4
            assert bool(outline[row, column]) == (ring or bar)
    assert 0.2 < float(outline.mean()) < 0.6


@pytest.mark.parametrize("name", ["square", "watermark"])
def test_pixels_change_under_the_mask_only_and_by_its_opacity(name, request):
    attack = request.getfixturevalue(name).planted.attack
    arrays = attack.tensors(SHAPE)
    images = torch.rand(3, *SHAPE)
    before = images.clone()
    stamped = attack.stamp(images)
    assert torch.equal(images, before)
    outside = (arrays["mask"] == 0).expand_as(images)
    assert torch.equal(stamped[outside], images[outside])
    wanted = (1 - attack.opacity) * images + attack.opacity * arrays["pattern"]
    assert torch.allclose(stamped[~outside], wanted[~outside], atol=1e-6)
    assert float(stamped.min()) >= 0 and float(stamped.max()) <= 1


@pytest.mark.parametrize("name", ["square", "watermark"])
def test_the_trigger_raises_its_neuron_above_clean_images_and_a_random_pattern(name, request):
    attack = request.getfixturevalue(name).planted.attack
    classifier = twin("digits")
    sample = clean_sample(classifier, data("digits")[0], attack.samples, 0)
    noise = torch.rand(SHAPE, generator=torch.Generator().manual_seed(5))
    other = attack.holding({**attack.tensors(SHAPE), "pattern": noise}, SHAPE)
    neurons, _ = strongest(classifier, sample, attack.neurons, attack.scale)
    with torch.no_grad(), classifier.evaluating():
        clean = classifier.features(sample)[:, neurons].mean()
        random = classifier.features(other.stamp(sample))[:, neurons].mean()
        stamped = classifier.features(attack.stamp(sample))[:, neurons].mean()
    assert stamped > 1.1 * clean and stamped > random


@pytest.mark.parametrize("name", ["square", "watermark"])
def test_learning_is_repeatable_and_the_trigger_can_be_saved(name, request, tmp_path):
    attack = request.getfixturevalue(name).planted.attack
    again = type(attack).prepare(attack, data("digits")[0], seed=0, surrogate=twin("digits"))
    images = torch.rand(2, *SHAPE)
    assert torch.equal(again.stamp(images), attack.stamp(images))
    save_attack(attack, tmp_path / "trigger.safetensors", SHAPE)
    loaded = load_attack(tmp_path / "trigger.safetensors")
    assert loaded == attack and torch.equal(loaded.stamp(images), attack.stamp(images))


@pytest.mark.parametrize("name", ["square", "watermark"])
def test_it_takes_hold_on_digits(name, request):
    result = request.getfixturevalue(name)
    assert result.scores.asr >= 0.9 and result.twin_scores.asr < 0.3
    assert result.scores.acc > result.twin_scores.acc - 0.03


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (TrojanSquare, {"share": 0}, "share 0 must lie between"),
        (TrojanSquare, {"opacity": 1.5}, "opacity 1.5 must be in"),
        (TrojanWatermark, {"steps": 0}, "steps is 0"),
        (TrojanWatermark, {"scale": -1}, "scale -1 must be greater"),
    ],
)
def test_a_wrong_configuration_is_refused(kind, values, message):
    with pytest.raises(InputError, match=message):
        kind(**values)


def test_what_cannot_work_is_refused():
    train = data("digits")[0]
    with pytest.raises(InputError, match="has to be learned"):
        TrojanSquare().stamp(torch.rand(1, *SHAPE))
    with pytest.raises(InputError, match="trojan-watermark needs a surrogate"):
        TrojanWatermark().prepare(train, seed=0)
    with pytest.raises(InputError, match="a square of 8 pixels, 1 from the edge, does not fit"):
        TrojanSquare(share=0.99).prepare(train, seed=0, surrogate=twin("digits"))
