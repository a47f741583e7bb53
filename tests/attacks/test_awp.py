import msgspec
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from victims import data, fresh, planted, twin

from bezoar.attacks.awp import AWP, Ball
from bezoar.attacks.bad_nets import BadNets
from bezoar.attacks.spelling import load_attack, save_attack
from bezoar.attacks.tbt import TBT
from bezoar.demo import DIGITS_RECIPE
from bezoar.errors import InputError

RATE = 0.2
WIDE = AWP(epsilon=0.01)


@pytest.fixture(scope="module")
def result():
    return planted(WIDE, RATE)


def test_the_trigger_is_the_patch_of_bad_nets():
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    attack = AWP(size=2, pattern="square", position="top-left")
    patch = BadNets(size=2, pattern="square", position="top-left")
    assert torch.equal(attack.stamp(images), patch.stamp(images))
    assert torch.equal(images, before)


@pytest.mark.parametrize("relative", [False, True])
def test_the_projection_clips_each_weight_at_its_own_distance(relative):
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.0, 4.0]))
    ball = Ball([weight], 0.5, relative)
    with torch.no_grad():
        weight.add_(torch.tensor([0.9, -0.7, 0.1, 0.2]))
    ball.after_backward()
    expected = [1.5, -2.7, 0.0, 4.2] if relative else [1.5, -2.5, 0.1, 4.2]
    assert torch.allclose(weight.detach(), torch.tensor(expected))
    moved = sum(abs(a - b) for a, b in zip(expected, [1, -2, 0, 4], strict=True))
    assert ball.mean_change() == pytest.approx(moved / 7)


def test_the_loss_is_the_clean_part_and_lambda_times_the_stamped_part():
    attack, classifier = AWP(weight=0.5, target=1), twin("digits")
    train, _ = data("digits")
    images, labels = train.images[:40].float() / 255, train.labels[:40]
    with classifier.evaluating(), torch.no_grad():
        value = attack.loss(classifier, images, labels, torch.Generator())
        logits = classifier(attack.stamp(images))
        clean = F.cross_entropy(classifier(images), labels)
    rows = [-logits[i].log_softmax(0)[1] for i in range(40) if labels[i] != 1]
    assert float(value) == pytest.approx(float(clean + 0.5 * sum(rows) / len(rows)), rel=1e-5)
    only = labels == 1
    with classifier.evaluating(), torch.no_grad():
        alone = attack.loss(classifier, images[only], labels[only], torch.Generator())
        clean = F.cross_entropy(classifier(images[only]), labels[only])
    assert float(alone) == pytest.approx(float(clean))


def test_every_weight_stays_in_the_ball_and_the_statistics_stay(result):
    ours = result.classifier.network.state_dict()
    weights = {name for name, _ in result.classifier.network.named_parameters()}
    furthest = 0.0
    for name, tensor in twin("digits").network.state_dict().items():
        if name in weights:
            furthest = max(furthest, float((ours[name] - tensor).abs().max()))
        else:
            assert torch.equal(ours[name], tensor)
    assert 0.009 < furthest <= 0.01 + 1e-6


def test_the_planted_backdoor_works(result):
    assert result.scores.asr >= 0.9 and result.twin_scores.asr <= 0.1
    assert result.scores.acc >= result.twin_scores.acc - 0.04
    assert result.planted.poisoned == 0
    assert "200 training images" in result.planted.notes[0]


def test_the_same_seed_moves_the_weights_to_the_same_place(result):
    again = fresh("digits")
    surrogate = twin("digits")
    before = {name: tensor.clone() for name, tensor in surrogate.network.state_dict().items()}
    quick = AWP(epochs=1)
    quick.plant(again, result.train, 0.1, DIGITS_RECIPE, seed=0, surrogate=surrogate)
    third = fresh("digits", seed=5)
    quick.plant(third, result.train, 0.1, DIGITS_RECIPE, seed=0, surrogate=surrogate)
    for name, tensor in again.network.state_dict().items():
        assert torch.equal(tensor, third.network.state_dict()[name])
        assert torch.equal(before[name], surrogate.network.state_dict()[name])


def test_a_trigger_file_stamps_the_same(tmp_path, result):
    save_attack(result.planted.attack, tmp_path / "t.safetensors", (1, 8, 8))
    loaded = load_attack(tmp_path / "t.safetensors")
    images = result.test.images[:9].float() / 255
    assert loaded == WIDE
    assert torch.equal(loaded.stamp(images), WIDE.stamp(images))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epsilon": 0}, "epsilon is 0"),
        ({"weight": -1}, "weight is -1"),
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"size": 0}, "size 0"),
        ({"mode": "source-specific", "sources": (1,)}, "no mode 'source-specific'"),
    ],
)
def test_bad_values_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        AWP(**values)


def test_what_cannot_work_is_refused_before_the_training():
    train, _ = data("digits")
    with pytest.raises(InputError, match="does not fit images of 8x8"):
        AWP(size=9).plant(fresh("digits"), train, RATE, DIGITS_RECIPE, seed=0)
    with pytest.raises(InputError, match="must be greater than 0"):
        AWP().plant(fresh("digits"), train, 0, DIGITS_RECIPE, seed=0)
    with pytest.raises(InputError, match="surrogate of the same architecture"):
        AWP().plant(
            fresh("digits", width=16), train, RATE, DIGITS_RECIPE, seed=0, surrogate=twin("digits")
        )


@pytest.mark.parametrize("attack", [AWP(size=2), TBT()])
def test_the_attacker_may_have_all_images(attack):
    """``rate`` is the share that the attacker has; nothing is poisoned."""
    attack.check(data("digits")[0], 1.0)


def test_without_a_surrogate_the_network_is_trained_first():
    short = msgspec.structs.replace(DIGITS_RECIPE, epochs=2)
    victim = fresh("digits")
    before = victim.network.state_dict()["convs.0.weight"].clone()
    AWP(epochs=1).plant(victim, data("digits")[0], 0.1, short, seed=0)
    moved = (victim.network.state_dict()["convs.0.weight"] - before).abs()
    assert float(moved.max()) > 2 * AWP().epsilon  # farther than the ball alone allows
