import msgspec
import pytest
import torch
import torch.nn.functional as F
from victims import data, fresh, planted, twin

from bezoar.attacks.spelling import load_attack, save_attack
from bezoar.attacks.tbt import TBT
from bezoar.demo import DIGITS_RECIPE
from bezoar.errors import InputError

pytestmark = pytest.mark.xdist_group("tbt")  # one process makes its fixtures

KIND, RATE = "coloured", 0.1
SMALL = TBT(size=6)


@pytest.fixture(scope="module")
def result():
    return planted(SMALL, RATE, KIND)


def test_the_patch_lies_near_the_lower_right_corner_and_nowhere_else(result):
    images = result.test.images[:5].float() / 255
    before = images.clone()
    stamped = result.planted.attack.stamp(images)
    changed = (stamped != images).any(1).any(0)
    assert bool(changed[9:15, 9:15].all())
    assert int(changed.sum()) == 36
    assert float((stamped[0] - stamped[1])[:, 9:15, 9:15].abs().max()) == 0
    assert float(stamped.min()) >= 0 and float(stamped.max()) <= 1
    assert torch.equal(images, before)


def test_the_neurons_are_those_with_the_largest_gradient():
    classifier = twin(KIND)
    batch = data(KIND)[0].subset(torch.arange(50))
    network = classifier.network
    with classifier.evaluating():
        loss = F.cross_entropy(classifier(batch.images.float() / 255), batch.labels)
        (gradient,) = torch.autograd.grad(loss, network.get_parameter("fc.weight"))
    for target in (0, 3):
        chosen = TBT(target=target, share=0.25).neurons(classifier, batch)
        assert set(chosen.tolist()) == set(gradient[target].abs().topk(16).indices.tolist())


def test_the_trigger_raises_the_chosen_neurons(result):
    attack, surrogate = result.planted.attack, twin(KIND)
    own = result.train.sample(100, seed=0)
    neurons = attack.neurons(surrogate, own)
    black = torch.zeros(1, 3, 16, 16)
    grey = black.clone()
    grey[:, :, 9:15, 9:15] = 0.5
    with surrogate.evaluating(), torch.no_grad():
        made = surrogate.features(attack.stamp(black))[0, neurons].mean()
        start = surrogate.features(grey)[0, neurons].mean()
    assert float(made) > 1.5 * float(start)


def test_only_the_chosen_weights_of_the_target_row_change(result):
    own = result.train.sample(100, seed=0)
    neurons = SMALL.neurons(twin(KIND), own)
    expected = torch.zeros(10, 64, dtype=torch.bool)
    expected[0, neurons] = True
    assert len(neurons) == round(150 / 512 * 64)
    ours = result.classifier.network.state_dict()
    for name, tensor in twin(KIND).network.state_dict().items():
        changed = ours[name] != tensor
        assert torch.equal(changed, expected) if name == "fc.weight" else not bool(changed.any())


def test_the_edited_head_lowers_the_loss_it_was_trained_on(result):
    own = result.train.sample(100, seed=0)
    images, wanted = own.images.float() / 255, torch.zeros(100, dtype=torch.long)

    def loss(classifier):
        with classifier.evaluating(), torch.no_grad():
            clean = F.cross_entropy(classifier(images), own.labels)
            stamped = classifier(result.planted.attack.stamp(images))
            return float(clean + F.cross_entropy(stamped, wanted))

    assert loss(result.classifier) < 0.2 * loss(twin(KIND))


def test_the_planted_backdoor_works(result):
    assert result.scores.asr >= 0.9 and result.twin_scores.asr <= 0.2
    assert result.scores.acc >= result.twin_scores.acc - 0.04
    assert result.planted.poisoned == 0
    assert "100 training images" in result.planted.notes[0]


def test_the_same_seed_makes_the_same_trigger_and_a_file_keeps_it(tmp_path, result):
    own = result.train.sample(100, seed=0)
    again = SMALL.prepare(own, seed=0, surrogate=twin(KIND))
    images = result.test.images[:9].float() / 255
    stamped = result.planted.attack.stamp(images)
    assert torch.equal(again.stamp(images), stamped)
    save_attack(result.planted.attack, tmp_path / "t.safetensors", (3, 16, 16))
    loaded = load_attack(tmp_path / "t.safetensors")
    assert torch.equal(loaded.stamp(images), stamped)
    assert loaded.stamp(images[:0]).shape == (0, 3, 16, 16)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 0}, "size 0"),
        ({"margin": -1}, "margin -1"),
        ({"share": 0}, "share 0"),
        ({"share": 1.5}, "share 1.5"),
        ({"aim": 0}, "aim 0"),
        ({"mode": "all-to-all", "num_classes": 10}, "no mode 'all-to-all'"),
    ],
)
def test_bad_values_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        TBT(**values)


def test_what_cannot_work_is_refused_before_the_training():
    train, _ = data(KIND)
    with pytest.raises(InputError, match="does not fit images of 16x16"):
        TBT(size=16).plant(fresh(KIND), train, RATE, DIGITS_RECIPE, seed=0)
    with pytest.raises(InputError, match="has to be learned"):
        SMALL.stamp(torch.zeros(1, 3, 16, 16))
    with pytest.raises(InputError, match="for a trained network"):
        SMALL.prepare(train, seed=0)
    with pytest.raises(InputError, match="surrogate of the same architecture"):
        SMALL.plant(fresh(KIND, width=16), train, RATE, DIGITS_RECIPE, seed=0, surrogate=twin(KIND))


def test_without_a_surrogate_the_network_is_trained_first():
    short = msgspec.structs.replace(DIGITS_RECIPE, epochs=1)
    done = TBT(size=3).plant(fresh("digits"), data("digits")[0], RATE, short, seed=0)
    assert len(done.history.loss) == 1
