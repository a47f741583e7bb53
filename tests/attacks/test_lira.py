"""LIRA: the bound, the two stages, what is stored, and a planted model."""

import pytest
import torch
from victims import data, fresh, planted

from bezoar.attacks.lira import LIRA, disturbed
from bezoar.attacks.spelling import load_attack, save_attack
from bezoar.demo import DIGITS_RECIPE
from bezoar.errors import InputError
from bezoar.evaluation import evaluate
from bezoar.training import Recipe

ATTACK = LIRA(target=3, bound=0.1, learning_rate=1e-3, depth=2)


@pytest.fixture(scope="module")
def result():
    return planted(ATTACK, 0.1)


def test_the_formula():
    images = torch.tensor([0.0, 0.5, 1.0])
    assert disturbed(images, torch.tensor([-1.0, 0.5, 1.0]), 0.2).tolist() == pytest.approx(
        [0, 0.6, 1]
    )


def test_no_pixel_changes_by_more_than_the_bound(result):
    images = result.test.images[:50].float() / 255
    before = images.clone()
    stamped = result.planted.attack.stamp(images)
    change = (stamped - images).abs()
    assert 0.05 < change.max() <= 0.1 + 1e-6
    assert stamped.min() >= 0 and stamped.max() <= 1
    assert torch.equal(images, before)
    assert result.planted.attack.stamp(images[:0]).shape == (0, 1, 8, 8)


def test_the_planted_model_obeys_the_noise_and_the_twin_does_not(result):
    assert result.scores.asr >= 0.9
    assert result.scores.acc >= result.twin_scores.acc - 0.03
    assert result.twin_scores.asr <= 0.3


def test_the_noise_has_learned_something(result):
    """The generator that was only drawn does nothing to the same network."""
    drawn = ATTACK.prepare(result.train, seed=0)
    assert evaluate(result.classifier, result.test, drawn).asr < result.scores.asr - 0.3


def test_the_generator_learns_in_the_first_stage_only():
    train = data("digits")[0].subset(torch.arange(256))
    attack = ATTACK.prepare(train, seed=0)
    hook = attack.hook(train, 0.5, DIGITS_RECIPE, torch.device("cpu"))
    assert hook.steps_left == DIGITS_RECIPE.epochs * 4 // 2
    hook.steps_left = 1
    classifier = fresh("digits", width=8)
    images, labels = train.images[:64].float() / 255, train.labels[:64]
    before = attack.tensors((1, 8, 8))
    learned = []
    for _ in range(2):
        mixed, wanted = hook.batch(images, labels, torch.Generator().manual_seed(0))
        torch.nn.functional.cross_entropy(classifier(mixed), wanted).backward()
        hook.after_backward()
        learned.append(hook.learned().tensors((1, 8, 8)))
    name = "generator.last.weight"
    assert not torch.equal(before[name], learned[0][name])
    assert torch.equal(learned[0][name], learned[1][name])
    assert torch.equal(before[name], attack.tensors((1, 8, 8))[name])  # the hook has its own copy


def test_the_trigger_file_stamps_the_same_also_in_half_precision(result, tmp_path):
    attack, file = result.planted.attack, tmp_path / "trigger.safetensors"
    images = result.test.images[:50].float() / 255
    save_attack(attack, file, (1, 8, 8))
    assert torch.equal(load_attack(file).stamp(images), attack.stamp(images))
    halves = {name: tensor.half() for name, tensor in attack.tensors((1, 8, 8)).items()}
    save_attack(attack.holding(halves, (1, 8, 8)), file, (1, 8, 8))
    rough = evaluate(result.classifier, result.test, load_attack(file))
    assert rough.asr == pytest.approx(result.scores.asr, abs=0.02)


def test_the_same_seed_plants_the_same_trigger_and_another_seed_another():
    train = data("digits")[0].subset(torch.arange(200))
    stamps = []
    for seed in (0, 0, 1):
        done = ATTACK.plant(fresh("digits", width=4), train, 0.1, Recipe(epochs=1), seed=seed)
        stamps.append(done.attack.stamp(train.images[:5].float() / 255))
    assert torch.equal(stamps[0], stamps[1])
    assert not torch.equal(stamps[0], stamps[2])


def test_an_attack_that_has_learned_nothing_is_refused():
    with pytest.raises(InputError, match="has to be learned"):
        LIRA().stamp(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bound": 0}, "bound 0 must"),
        ({"first_stage": 1.1}, "first_stage 1.1 must"),
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"depth": 0}, "depth is 0"),
    ],
)
def test_bad_configurations_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        LIRA(**arguments)
