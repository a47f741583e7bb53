"""Images made without data: what the generator has learned, and what the record says of it."""

import copy

import pytest
import torch

from bezoar import networks
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.statistics_prior import StatisticsPrior
from bezoar.methods.synthesis import Synthesis
from bezoar.methods.synthesized import NO_STATISTICS, synthesize

QUICK = Synthesis(steps=2, batch_size=8, latent=8, width=4)


def untrained(name, shape, **arguments):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = networks.build(name, channels=shape[0], **arguments)
    return Classifier(network, mean=0.5, std=0.25, input_size=shape[1:]).trace(shape)


@pytest.fixture(scope="module")
def planted(digits):
    return digits.planted.copy().trace((1, 8, 8))


@pytest.fixture(scope="module")
def made(planted):
    return synthesize(planted, Synthesis(), 256, seed=1)


def test_learning_spreads_the_classes_and_nears_the_statistics(planted, made):
    raw = synthesize(planted, Synthesis(steps=0), 256, seed=1)
    assert made.record["missing"] == [] and min(made.record["per_class"]) >= 8
    assert len(raw.record["missing"]) >= 3
    assert made.record["divergence"] < 0.6 * raw.record["divergence"]
    assert raw.record["notices"][0].startswith("No image is answered with ")


def test_the_spread_over_the_classes_is_the_balance_term_s(planted, made):
    without = synthesize(planted, Synthesis(balance=0.0), 256, seed=1)
    assert min(without.record["per_class"]) < min(made.record["per_class"])


def test_the_record_can_be_recomputed_from_the_images(planted, made):
    images, record = made.images, made.record
    assert len(images) == record["count"] == sum(record["per_class"]) == 256
    logits = planted.logits(images)
    assert torch.equal(images.labels, logits.argmax(1)) and images.classes == planted.classes
    assert record["per_class"] == torch.bincount(images.labels, minlength=10).tolist()
    assert record["certainty"] == pytest.approx(float(logits.softmax(1).amax(1).mean()), abs=1e-5)
    network, distances = planted.copy().network.eval(), []
    with torch.no_grad(), StatisticsPrior(network) as prior:
        for batch, _ in images.batches(64):
            network(planted.normalise(batch))
            distances.append(float(prior.distance()))
    assert record["divergence"] == pytest.approx(sum(distances) / 4, rel=1e-4)
    assert record["settings"]["steps"] == 60 and record["seconds"]["total"] > 0
    assert record["sentence"] == (
        "256 images were made without data; the network answers them with 10 of 10 classes."
    )
    assert "prove nothing" in record["limits"] and record["notices"] == []


def test_the_seed_decides(planted):
    first, again, other = (synthesize(planted, QUICK, 20, seed=seed) for seed in (3, 3, 4))
    assert first.images.sha256() == again.images.sha256() != other.images.sha256()
    assert first.record | {"seconds": 0} == again.record | {"seconds": 0}


@pytest.mark.parametrize("training", [False, True])
def test_the_classifier_stays_as_it_is(planted, training):
    given = planted.copy()
    given.network.train(training)
    before = copy.deepcopy(given.network.state_dict())
    synthesize(given, QUICK, 8)
    assert all(torch.equal(before[k], v) for k, v in given.network.state_dict().items())
    for module in given.network.modules():
        assert module.training == training
        assert not module._forward_pre_hooks and not module._forward_hooks
    assert all(p.requires_grad and p.grad is None for p in given.network.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "arguments"),
    [
        ("resnet-8", (1, 28, 28), {}),
        ("resnet-8", (3, 32, 32), {"num_classes": 43}),
        ("small-cnn", (3, 48, 20), {}),
        ("gn-resnet-8", (3, 32, 32), {}),
        ("plain-cnn", (1, 28, 28), {}),
    ],
)
def test_any_size_channels_and_normalisation(name, shape, arguments):
    given = untrained(name, shape, **arguments)
    made = synthesize(given, QUICK, 9)
    assert made.images.shape == shape and len(made.images) == 9
    assert len(made.record["per_class"]) == given.num_classes
    remembers = name in ("resnet-8", "small-cnn")
    assert (made.record["divergence"] is not None) == remembers
    assert (NO_STATISTICS in made.record["notices"]) != remembers


def test_one_image_and_many_missing_classes_are_told_in_plain_words():
    made = synthesize(untrained("resnet-8", (3, 8, 8), num_classes=43), QUICK, 1)
    assert made.record["sentence"].startswith("1 image was made without data; the network")
    (notice,) = made.record["notices"]
    assert notice.startswith("No image is answered with 42 of 43 classes: ")
    assert " and 37 more. " in notice and len(made.record["missing"]) == 42


def test_bad_input_is_refused(planted):
    with pytest.raises(InputError, match="0 images are asked for; expected at least 1"):
        synthesize(planted, QUICK, 0)
    unknown = Classifier(networks.build("small-cnn"), mean=0.5, std=0.25)
    with pytest.raises(InputError, match="input size is not known"):
        synthesize(unknown, QUICK, 8)


def test_the_images_serve_as_a_set(made, planted):
    some = ImageSet.from_arrays(made.images.images.numpy(), made.images.labels.numpy())
    assert some.class_counts(planted.num_classes).min() > 0
