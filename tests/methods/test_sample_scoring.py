"""The stability score: a slow plain version, the geometry of the windows, the size of a step."""

import copy

import pytest
import torch
from torch import nn

from bezoar import networks
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.methods.float_samples import check_samples
from bezoar.methods.sample_scoring import Scoring, augment, perturbed, score_samples

STILL = Scoring(shift=0, crop=1, noise=0, perturbations=0)


def built(seed=0, **arguments):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = networks.build("small-cnn", width=8, **arguments)
    return Classifier(network.eval(), mean=0.3, std=0.35)


def pictures(seed, count, channels=1, side=8):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def test_the_score_is_that_of_a_slow_plain_version():
    classifier = built()
    with torch.no_grad():
        classifier.network.fc.weight.mul_(30)  # an untrained network is sure of nothing
    images, labels = pictures(1, 5), torch.tensor([0, 3, 3, 9, 1])
    settings = Scoring(augmentations=4, perturbations=3, radius=0.3)
    found = score_samples(classifier, images, labels, settings, seed=2)

    draws = torch.Generator().manual_seed(2)
    changed = augment(images, settings, draws)
    others = [copy.deepcopy(twin) for twin in perturbed(classifier, 3, 0.3, draws)]
    for i, y in enumerate(labels.tolist()):

        def p(model, image, y=y):
            return model(image[None]).softmax(1)[0, y].item()

        survived = sum(p(classifier, changed[4 * i + a]) for a in range(4)) / 4
        drop = p(classifier, images[i]) - sum(p(twin, images[i]) for twin in others) / 3
        assert found.confidence[i].item() == pytest.approx(p(classifier, images[i]), abs=1e-6)
        assert found.augmented[i].item() == pytest.approx(survived, abs=1e-6)
        assert found.drop[i].item() == pytest.approx(max(0, drop), abs=1e-6)
        assert found.score[i].item() == pytest.approx(survived - max(0, drop), abs=1e-6)
    assert found.drop.max() > 0.01, "the perturbations do something"
    assert torch.equal(found.answers, classifier(images).argmax(1))


def test_augmentations_that_change_nothing_leave_the_confidence():
    classifier, images = built(), pictures(3, 40)
    labels = torch.arange(40) % 10
    found = score_samples(classifier, images, labels, STILL, seed=0)
    assert torch.allclose(found.score, found.confidence, atol=1e-6)
    assert torch.allclose(
        augment(images, STILL, torch.Generator()), images.repeat_interleave(20, 0)
    )


def ramps(side):
    """One image whose channels are the coordinates, from -1 to 1 over the pixels' centres."""
    line = (2 * torch.arange(side) + 1) / side - 1
    across, down = line.expand(side, side), line[:, None].expand(side, side)
    return (torch.stack([across, down])[None] + 3) / 6  # far from where values are clipped


@pytest.mark.parametrize("flip", [False, True])
def test_windows_have_the_promised_size_and_place(flip):
    side, count = 64, 400
    settings = Scoring(augmentations=count, shift=0.05, crop=0.8, noise=0, flip=flip)
    seen = augment(ramps(side), settings, torch.Generator().manual_seed(4)) * 6 - 3
    middle = seen[:, :, side // 4 : -side // 4, side // 4 : -side // 4]  # no mirrored edge
    step = 2 / side
    across = (middle[:, 0, :, -1] - middle[:, 0, :, 0]).mean(1) / (middle.shape[3] - 1) / step
    down = (middle[:, 1, -1] - middle[:, 1, 0]).mean(1) / (middle.shape[2] - 1) / step
    assert torch.allclose(across.abs(), down, atol=1e-3), "windows are squares"
    assert down.min() >= 0.8 - 1e-3 and down.max() <= 1 + 1e-3
    assert down.min() < 0.82 and down.max() > 0.98
    assert ((across < 0).float().mean() - 0.5 * flip).abs() < 0.1
    for centre in (middle[:, 0].mean((1, 2)), middle[:, 1].mean((1, 2))):
        room = (1 - down) + 2 * 0.05
        assert (centre.abs() <= room + 1e-3).all() and centre.abs().max() > 0.15
        assert centre.mean().abs() < 0.03


def test_noise_has_the_promised_size_and_pixels_stay_in_range():
    grey = torch.full((2, 1, 32, 32), 0.5)
    settings = Scoring(augmentations=10, noise=0.05)
    seen = augment(grey, settings, torch.Generator().manual_seed(5))
    assert seen.std().item() == pytest.approx(0.05, rel=0.03)
    white = augment(torch.ones_like(grey), settings, torch.Generator().manual_seed(5))
    assert white.max() == 1 and white.min() >= 0 and white.mean() < 0.99


def test_each_filter_moves_by_the_radius_and_the_rest_stays():
    classifier = built()
    with torch.no_grad():
        classifier.network.convs[1].weight[3] = 0
    own = copy.deepcopy(classifier.network.state_dict())
    seen = []
    for twin in perturbed(classifier, 2, 0.25, torch.Generator().manual_seed(6)):
        seen.append(copy.deepcopy(twin.network.state_dict()))
        for name, weight in twin.network.state_dict().items():
            if weight.ndim < 2:
                assert torch.equal(weight, own[name]), name
                continue
            moved = (weight - own[name]).flatten(1).norm(dim=1)
            assert torch.allclose(moved, 0.25 * own[name].flatten(1).norm(dim=1), rtol=1e-4), name
    assert not torch.equal(seen[0]["fc.weight"], seen[1]["fc.weight"])
    assert all(torch.equal(value, own[k]) for k, value in classifier.network.state_dict().items())


def test_the_classifier_stays_as_it_is_and_a_seed_repeats():
    classifier = built()
    classifier.network.train()
    before = copy.deepcopy(classifier.network.state_dict())
    images, labels = pictures(7, 30), torch.arange(30) % 10
    state = torch.random.get_rng_state()
    runs = [score_samples(classifier, images, labels, Scoring(), seed=s) for s in (0, 0, 1)]
    assert torch.equal(runs[0].score, runs[1].score)
    assert not torch.equal(runs[0].augmented, runs[2].augmented)
    assert not torch.equal(runs[0].drop, runs[2].drop)
    assert classifier.network.training and torch.equal(torch.random.get_rng_state(), state)
    after = classifier.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_samples_at_a_boundary_score_below_real_ones(digits):
    real, labels = digits.test.images[:100].float() / 255, digits.test.labels[:100]
    path = [w * real + (1 - w) * real.roll(1, 0) for w in torch.linspace(0, 1, 21)]
    with torch.no_grad():
        sure = torch.stack([digits.twin(step).softmax(1).amax(1) for step in path])
        between = torch.stack(path)[sure.argmin(0), torch.arange(100)]
        answers = digits.twin(between).argmax(1)
    at_boundary = score_samples(digits.twin, between, answers, Scoring(), seed=0)
    whole = score_samples(digits.twin, real, labels, Scoring(), seed=0)
    assert whole.score.median() > 0.7 and at_boundary.score.median() < 0.5
    assert at_boundary.drop.mean() > 2 * whole.drop.mean()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"augmentations": 0}, "1 or more"),
        ({"perturbations": -1}, "0 or more"),
        ({"crop": 0.0}, "above 0"),
        ({"shift": 0.5}, "below 0.5"),
        ({"noise": float("nan")}, "noise is nan"),
        ({"radius": -0.1}, "radius is -0.1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        Scoring(**settings)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2).long(), "floating point"),
        (torch.zeros(0, 1, 8, 8), torch.zeros(0).long(), "at least one"),
        (torch.full((1, 1, 8, 8), 1.01), torch.zeros(1).long(), r"in \[0, 1\]"),
        (torch.full((1, 1, 8, 8), float("nan")), torch.zeros(1).long(), r"in \[0, 1\]"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(3).long(), "one for each image"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(2), "expected int64"),
        (torch.zeros(2, 1, 8, 8), torch.tensor([0, 10]), "10 classes"),
        (torch.zeros(2, 1, 8, 8), torch.tensor([-1, 3]), "10 classes"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2).long(), "cannot take"),
    ],
)
def test_what_are_no_samples_is_refused(images, labels, words):
    with pytest.raises(InputError, match=words):
        check_samples(built(), images, labels)


def test_a_network_without_filters_can_be_scored():
    flat = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), mean=0.5, std=0.5)
    found = score_samples(flat, pictures(9, 3), torch.zeros(3).long(), Scoring(), seed=0)
    assert found.score.shape == (3,)
