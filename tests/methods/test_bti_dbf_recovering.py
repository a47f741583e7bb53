"""One round: what is said about a recovered trigger, against counts by hand."""

from dataclasses import replace

import pytest
import torch

from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods import bti_dbf_recovering
from bezoar.methods.bti_dbf_decoupling import Decoupling, Half
from bezoar.methods.bti_dbf_generators import GeneratorInversion, Pretraining
from bezoar.methods.bti_dbf_recovering import CARRIED, Found, Start, recover, weaknesses
from bezoar.methods.bti_dbf_strength import strength_of, strength_test
from bezoar.methods.votes import Reading, Votes
from bezoar.networks.trigger_generators import PublishedGenerator

QUICK = Decoupling(steps=60), GeneratorInversion(steps=60)


@pytest.fixture(scope="module")
def parts(digits):
    return digits.clean.split(0.8, seed=0)


@pytest.fixture(scope="module")
def found(digits, parts):
    return recover(digits.planted, *parts, *QUICK, seed=0)


def answers(classifier, images):
    with classifier.evaluating(), torch.no_grad():
        return classifier(images)


def test_the_figures_are_those_of_held_out_images_of_other_classes(found, parts, digits):
    images, labels = parts[1].images / 255, parts[1].labels
    with torch.no_grad():
        stamped = found.inverted.stamp(images)
    before, after = answers(digits.planted, images), answers(digits.planted, stamped)
    shares = []
    for k in range(10):
        others = [
            int(after[i].argmax()) == k
            for i, label in enumerate(labels.tolist())
            if label != k and int(before[i].argmax()) == label
        ]
        shares.append(sum(others) / len(others))
    assert found.target == max(range(10), key=lambda k: shares[k]) == digits.attack.target
    assert found.carried == pytest.approx(shares[found.target]) and found.carried > 0.8
    assert found.strength == pytest.approx(strength_of(before, after, found.target), rel=1e-4)
    assert (found.score, found.p_value) == strength_test(found.strength)
    assert found.rms == pytest.approx(
        float((stamped - images).square().mean((1, 2, 3)).sqrt().mean()), rel=1e-4
    )


def test_the_smallest_size_is_where_the_trigger_stops_to_work(found, parts, digits):
    images, labels = parts[1].images / 255, parts[1].labels
    right = answers(digits.planted, images).argmax(1) == labels
    images = images[right & (labels != found.target)]
    with torch.no_grad():
        change = found.inverted.stamp(images) - images
    factor = found.smallest / float(change.square().mean((1, 2, 3)).sqrt().mean())
    assert 0.01 < factor < 1

    def carried(scale):
        hits = answers(digits.planted, images + scale * change).argmax(1) == found.target
        return float(hits.float().mean())

    assert carried(factor + 1e-4) >= CARRIED > carried(factor - 5e-4)


def test_without_labels_the_answers_of_the_network_stand_in(digits, parts):
    settings = Decoupling(steps=5), GeneratorInversion(steps=5)
    answered = [ImageSet(p.images, digits.planted.logits(p).argmax(1)) for p in parts]
    unlabelled = [ImageSet(p.images) for p in parts]
    first, second = (recover(digits.planted, *p, *settings, seed=0) for p in (answered, unlabelled))
    assert torch.equal(first.votes.answers, second.votes.answers)
    names = ("target", "carried", "strength", "p_value", "rms", "smallest")
    assert all(getattr(first, name) == getattr(second, name) for name in names)


def test_behind_a_purifier_its_answers_count(digits, parts):
    settings = Decoupling(steps=5), GeneratorInversion(steps=20)

    def blind(images):  # whatever comes in, the network sees one class
        return images[:1].detach().expand_as(images) + 0 * images

    found = recover(digits.planted, *parts, *settings, seed=0, front=blind)
    assert torch.count_nonzero(found.votes.answers.sum(0)) == 1


def test_a_second_trigger_leads_elsewhere(digits, parts, found):
    settings = Decoupling(steps=60), GeneratorInversion(steps=60)
    second = recover(digits.planted, *parts, *settings, seed=0, elsewhere=found)
    assert second.target != found.target
    assert found.target not in second.targets
    assert float(second.votes.shares()[found.target]) < 0.2


def test_one_round_needs_a_held_out_image(digits):
    with pytest.raises(InputError, match="give at least two images of each class"):
        recover(digits.planted, digits.clean, digits.clean.subset([]), *QUICK, seed=0)


def votes_of(*rows):
    return Votes(torch.tensor(rows))


def found_with(votes, reading, target=1):
    """A round of which nothing but the votes is there."""
    rest = dict.fromkeys(("decoupled", "inverted", "rms", "smallest", "strength"))
    rest |= {"carried": 0.0, "score": 0.0, "p_value": 0.5}
    return Found(votes=votes, reading=reading, target=target, **rest)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (([0, 100], [1, 99]), [1, -1]),  # one stray image makes the target no source
        (([0, 100], [60, 40]), [1, 0]),  # all-to-all: its own images leave
        (([0, 100], [0, 0]), [1, -1]),
    ],
)
def test_the_target_is_a_source_only_where_most_of_its_images_leave(rows, expected):
    found = found_with(votes_of(*rows), Reading("one target", (1,), ((0,),)))
    assert found.sources_lead().tolist() == expected


def test_where_each_class_is_led_and_what_share_of_it():
    votes = votes_of([2, 8, 0], [0, 10, 0], [1, 0, 0])
    one = found_with(votes, Reading("one target", (1,), ((0,),)))
    assert one.leads().tolist() == [1, -1, 0]  # no image of class 1 goes anywhere
    assert one.targets == (1,) and one.carried_into(1) == pytest.approx(8 / 11)
    several = found_with(votes, Reading("several targets", (1, 0), ((0,), (2,))))
    assert several.targets == (1, 0)
    assert several.carried_into(1) == pytest.approx(8 / 10)  # of class 0, which goes there
    assert several.carried_into(0) == 1.0
    assert several.carried_into(2) == 0.0
    none = found_with(votes, Reading("no target", (), ()))
    assert none.targets == (1,), "the class with the largest share stands in"


def test_weak_decoupling_is_told(found):
    """What is left of the map still answers, so the trigger may have moved what is benign."""
    weak, sound = (
        replace(found, decoupled=replace(found.decoupled, rest=Half(0.5, cross_entropy)))
        for cross_entropy in (0.1, 9.0)
    )
    assert weaknesses([sound]) == []
    (told,) = weaknesses([sound, weak])
    assert told.startswith("Benign features were hardly separated")


def test_its_record_has_the_names_of_the_classes_and_the_figures(found, digits):
    record = found.as_record(tuple("abcdefghij"))
    assert record["target_class"] == digits.attack.target and record["p"] == found.p_value
    assert "answered with e" in record["reading"]["sentence"]
    assert record["decoupling"]["images"] == found.decoupled.measured_on
    assert record["inversion"]["steps"] == 60


def test_only_the_published_generator_starts_trained_and_its_optimizer_is_kept(digits):
    assert Start.of(digits.planted, digits.clean, GeneratorInversion(), 0) == Start()
    settings = GeneratorInversion(generator="published", pretraining=Pretraining(epochs=1))
    images = ImageSet(torch.zeros(2, 1, 32, 32, dtype=torch.uint8), torch.tensor([0, 1]))
    classifier = digits.planted.copy().trace(images.shape)
    start = Start.of(classifier, images, settings, 0)
    assert isinstance(start.generator, PublishedGenerator)
    (group,) = start.optimizer.param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in start.generator.parameters()}


def test_the_published_generator_is_pretrained_on_the_layer_that_is_decoupled(digits, monkeypatch):
    layers = []

    def noted(_classifier, split, *_arguments, **_options):
        layers.append(split.layer)
        return PublishedGenerator(1, mean=[0.3], std=[0.35])

    monkeypatch.setattr(bti_dbf_recovering, "pretrain", noted)
    images = ImageSet(torch.zeros(2, 1, 32, 32, dtype=torch.uint8), torch.tensor([0, 1]))
    classifier = digits.planted.copy().trace(images.shape)
    settings = GeneratorInversion(generator="published")
    for layer in (None, "convs.1"):
        Start.of(classifier, images, settings, 0, layer=layer)
    assert layers == [classifier.split().layer, "convs.1"]
