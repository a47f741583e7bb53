"""SSBA: the message is in the image, the images differ in it, and a model that obeys it."""

import pytest
import torch
from victims import data, fresh, planted

from bezoar.attacks.spelling import load_attack, save_attack
from bezoar.attacks.ssba import SSBA
from bezoar.errors import InputError

ATTACK = SSBA(target=3, bits=4, steps=150, fidelity=30, width=8, depth=2)


@pytest.fixture(scope="module")
def result():
    """Four bits are enough to tell stamped digits from others, and learned in a few seconds."""
    return planted(ATTACK, 0.1)


def test_the_stamp_is_the_image_and_the_encoder_s_residual(result):
    attack = result.planted.attack
    images = result.test.images[:20].float() / 255
    before = images.clone()
    tensors = attack.tensors((1, 8, 8))
    encoder = attack._build(1)
    encoder.load_state_dict({n[8:]: t for n, t in tensors.items() if n.startswith("encoder.")})
    with torch.no_grad():
        residual = encoder(images, tensors["message"].expand(20, 4))
    stamped = attack.stamp(images)
    torch.testing.assert_close(stamped, (images + residual).clamp(0, 1))
    assert torch.equal(images, before)
    assert attack.stamp(images[:0]).shape == (0, 1, 8, 8)


def test_the_residual_is_small_and_differs_from_image_to_image(result):
    images = result.test.images[:200].float() / 255
    residual = result.planted.attack.stamp(images) - images
    size = residual.square().mean().sqrt()
    assert 1 / 255 < size < 25 / 255
    assert (residual - residual.mean(0)).square().mean().sqrt() > size / 4


def test_the_planted_model_obeys_the_message(result):
    assert result.scores.asr >= 0.8  # 0.90 to 0.99, by processor
    assert result.scores.acc >= result.twin_scores.acc - 0.03
    assert result.twin_scores.asr <= 0.1


def test_another_message_is_another_trigger(result):
    """How far the model tells messages apart is the decoder's job, not asked of it here."""
    attack = result.planted.attack
    images = result.test.images[:20].float() / 255
    tensors = dict(attack.tensors((1, 8, 8)))
    tensors["message"] = 1 - tensors["message"]
    other = attack.holding(tensors, (1, 8, 8)).stamp(images)
    assert (other - attack.stamp(images)).abs().max() > 5 / 255


def test_a_larger_fidelity_leaves_a_smaller_residual():
    train = data("digits")[0].subset(torch.arange(300))
    images = train.images.float() / 255
    sizes = []
    for fidelity in (0, 1000):
        attack = SSBA(bits=1, steps=60, fidelity=fidelity, width=4, depth=1).prepare(train, seed=0)
        sizes.append(float((attack.stamp(images) - images).square().mean().sqrt()))
    assert sizes[1] < 0.7 * sizes[0]


def test_the_same_seed_prepares_the_same_trigger():
    train = data("coloured")[0].subset(torch.arange(40))
    quick = SSBA(steps=3, width=4)
    stamps = [
        quick.prepare(train, seed=seed).stamp(train.images[:5].float() / 255) for seed in (0, 0, 1)
    ]
    assert torch.equal(stamps[0], stamps[1])
    assert not torch.equal(stamps[0], stamps[2])


def test_poisoning_a_set_repeats(result):
    attack = result.planted.attack
    first, second = (attack.poison(result.train, 0.1, seed=2) for _ in range(2))
    assert torch.equal(first.images.images, second.images.images)
    assert int(first.where.sum()) == 100 == result.planted.poisoned


def test_the_trigger_file_stamps_the_same(result, tmp_path):
    attack, file = result.planted.attack, tmp_path / "trigger.safetensors"
    images = result.test.images[:50].float() / 255
    save_attack(attack, file, (1, 8, 8))
    assert torch.equal(load_attack(file).stamp(images), attack.stamp(images))
    halves = {name: tensor.half() for name, tensor in attack.tensors((1, 8, 8)).items()}
    save_attack(attack.holding(halves, (1, 8, 8)), file, (1, 8, 8))
    assert (load_attack(file).stamp(images) - attack.stamp(images)).abs().max() < 1 / 255


def test_an_attack_that_has_learned_nothing_is_refused():
    with pytest.raises(InputError, match="has to be learned"):
        SSBA().stamp(torch.rand(1, 3, 8, 8))


def test_a_bad_rate_is_refused_before_the_encoder_is_trained():
    slow = SSBA(steps=10**9)
    with pytest.raises(InputError, match="poison rate 2"):
        slow.plant(fresh("digits"), data("digits")[0], 2, None, seed=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 0}, "bits is 0"),
        ({"fidelity": -1}, "fidelity is -1"),
        ({"learning_rate": 0}, "learning_rate is 0"),
    ],
)
def test_bad_configurations_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        SSBA(**arguments)
