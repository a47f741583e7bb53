import msgspec
import pytest
import torch
from victims import data, fresh, planted, twin

from bezoar.attacks.feature_collision import FeatureCollision, nearest_pairs
from bezoar.attacks.spelling import load_attack, save_attack
from bezoar.demo import DIGITS_RECIPE
from bezoar.errors import InputError

# Far more than the paper's: on 8x8 digits a network that never saw the patch has to feel it.
LOUD = FeatureCollision(size=6, margin=0, epsilon=0.5, steps=20, learning_rate=0.1, epochs=6)
RATE = 0.08


@pytest.fixture(scope="module")
def result():
    return planted(LOUD, RATE)


def test_the_patch_lies_near_the_lower_right_corner_and_nowhere_else():
    images = torch.rand(2, 3, 9, 10, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    attack = FeatureCollision(size=4, margin=1)
    stamped = attack.stamp(images)
    colours = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))[0]
    expected = images.clone()
    expected[:, :, 4:8, 5:9] = colours
    assert torch.allclose(stamped, expected, atol=1e-6)
    assert torch.equal(images, before)
    assert attack.stamp(images[:0]).shape == (0, 3, 9, 10)


def test_pairs_are_the_closest_first_and_none_twice():
    features = torch.tensor([[0.0], [1.0], [10.0]])
    goals = torch.tensor([[0.9], [9.0], [-5.0], [50.0]])
    # 1 and 0.9 are the closest pair; then 10 and 9; what is left for 0 is -5.
    assert nearest_pairs(features, goals).tolist() == [2, 0, 1]
    few = nearest_pairs(features, goals[:2])
    assert few.tolist() == [0, 0, 1]
    assert nearest_pairs(features[:0], goals).tolist() == []


def test_collided_images_stay_near_and_take_on_the_features_of_stamped_ones():
    train, _ = data("digits")
    targets = train.subset(torch.nonzero(train.labels == 0).flatten()[:12])
    images = targets.images.float() / 255
    others = train.subset(torch.nonzero(train.labels == 3).flatten()[:20])
    attack = FeatureCollision(epsilon=0.2, steps=40)
    with twin("digits").evaluating(), torch.no_grad():
        goals = twin("digits").features(attack.stamp(others.images.float() / 255))
        before = torch.cdist(twin("digits").features(images), goals).amin(1)
    collided = attack.collide(images, goals, twin("digits"))
    with twin("digits").evaluating(), torch.no_grad():
        after = torch.cdist(twin("digits").features(collided), goals).amin(1)
    assert float((collided - images).abs().max()) <= 0.2 + 1e-6
    assert float(after.mean()) < 0.5 * float(before.mean())


def test_poisoned_images_keep_their_label_and_carry_no_trigger(result):
    attack = LOUD.prepare(result.train, seed=0, surrogate=twin("digits"))
    poisoned = attack.poison(result.train, RATE, seed=3)
    assert torch.equal(poisoned.images.labels, result.train.labels)
    assert int(poisoned.where.sum()) == 80 and not bool(poisoned.covered.any())
    assert bool((result.train.labels[poisoned.where] == 0).all())
    pixels = poisoned.images.images[poisoned.where].float() / 255
    patched = (pixels - attack.stamp(pixels)).abs().flatten(1).amax(1)
    assert float(patched.min()) > 0.1
    again = attack.poison(result.train, RATE, seed=3)
    assert again.images.sha256() == poisoned.images.sha256()


def test_with_a_large_patch_and_bound_the_planted_backdoor_works(result):
    assert result.scores.asr >= 0.9 and result.twin_scores.asr <= 0.1
    assert result.scores.acc >= result.twin_scores.acc - 0.03
    assert "fine-tuned head" in result.planted.notes[0]


def test_at_the_papers_patch_and_bound_the_backdoor_hardly_works_on_digits():
    weak = planted(FeatureCollision(steps=20, learning_rate=0.1, epochs=6), RATE)
    assert weak.scores.asr < 0.5


def test_tuning_the_head_leaves_the_rest_of_the_surrogate(result):
    ours = result.classifier.network.state_dict()
    for name, tensor in twin("digits").network.state_dict().items():
        assert torch.equal(ours[name], tensor) == (not name.startswith("fc."))


def test_sources_restrict_the_goals_and_cover_nothing():
    attack = FeatureCollision(target=8, mode="source-specific", sources=(3,))
    train, _ = data("digits")
    prepared = attack.prepare(train, seed=0, surrogate=twin("digits"))
    assert len(prepared.__dict__["goals"]) == int((train.labels == 3).sum())
    assert attack.cover_rate_for(0.1) == 0
    assert bool((train.labels[attack.candidates(train.labels)] == 8).all())


def test_a_trigger_file_stamps_the_same(tmp_path, result):
    save_attack(result.planted.attack, tmp_path / "t.safetensors", (1, 8, 8))
    images = result.test.images[:9].float() / 255
    assert torch.equal(load_attack(tmp_path / "t.safetensors").stamp(images), LOUD.stamp(images))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 0}, "size 0"),
        ({"margin": -1}, "margin -1"),
        ({"epsilon": 0}, "epsilon 0"),
        ({"steps": 0}, "steps 0"),
        ({"epochs": 0}, "epochs 0"),
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"mode": "all-to-all", "num_classes": 10}, "no mode 'all-to-all'"),
    ],
)
def test_bad_values_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        FeatureCollision(**values)


def test_what_cannot_work_is_refused_before_the_training():
    train, _ = data("digits")
    with pytest.raises(InputError, match="does not fit images of 8x8"):
        FeatureCollision(size=8).plant(fresh("digits"), train, RATE, DIGITS_RECIPE, seed=0)
    with pytest.raises(InputError, match="call prepare with a surrogate"):
        FeatureCollision().poison(train, RATE, seed=0)
    with pytest.raises(InputError, match="surrogate of the same architecture"):
        FeatureCollision().plant(
            fresh("digits", width=16), train, RATE, DIGITS_RECIPE, seed=0, surrogate=twin("digits")
        )


def test_without_a_surrogate_the_network_is_trained_first():
    short = msgspec.structs.replace(DIGITS_RECIPE, epochs=1)
    victim = fresh("digits")
    before = {name: tensor.clone() for name, tensor in victim.network.state_dict().items()}
    quick = FeatureCollision(steps=1, epochs=1)
    done = quick.plant(victim, data("digits")[0], RATE, short, seed=0)
    assert done.poisoned == 80
    assert not torch.equal(victim.network.state_dict()["convs.0.weight"], before["convs.0.weight"])
