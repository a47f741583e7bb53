"""Where samples come from: whose labels they have, how many of each class, what is told of them."""

import pytest
import torch
from latent_models import digits_generator
from msgspec.structs import replace
from public_digits import collage
from torch import nn

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods import fred_sources
from bezoar.methods.fred_selection import Selection
from bezoar.methods.fred_settings import Inversion
from bezoar.methods.pixel_inversion import PixelInversion

QUICK = Inversion(iterations=6, candidates=64, batch_size=40)
LENIENT = Selection(least_score=-1.0, least_confidence=0.0, similarity=1.0, augmentations=2)


@pytest.fixture(scope="module")
def public(digits):
    digits.planted.trace(digits.clean.shape)
    return collage(digits.train)


@pytest.fixture(scope="module")
def generator(public):
    return digits_generator(public.images)


def inverted(digits, generator, selection=LENIENT, classifier=None, per_class=3, tried=2.0):
    classifier = classifier or digits.planted
    return fred_sources.inverted(
        classifier, generator, QUICK, selection, per_class=per_class, tried=tried, seed=0
    )


def rows(images):
    return {row.tobytes() for row in images.images.flatten(1).numpy()}


def from_everywhere(digits, generator, public, seed=0):
    planted = digits.planted
    return {
        "inverted": fred_sources.inverted(
            planted, generator, QUICK, LENIENT, per_class=3, tried=1.0, seed=seed
        ),
        "random": fred_sources.at_random(planted, generator, per_class=3, seed=seed),
        "public": fred_sources.labelled(planted, public, per_class=3, seed=seed),
        "pixels": fred_sources.in_pixels(
            planted, PixelInversion(iterations=3), per_class=3, seed=seed
        ),
    }


# -- labels and numbers ----------------------------------------------------------------------------


def test_public_images_have_the_suspect_s_answers_as_labels(digits, public):
    wrong = ImageSet(public.images, torch.zeros(len(public), dtype=torch.long))
    for given in (public, wrong):
        found = fred_sources.labelled(digits.planted, given, per_class=7, seed=0)
        answers = digits.planted.logits(found.images).argmax(1)
        assert torch.equal(found.images.labels, answers)
        assert found.record["per_class"] == [7] * 10 == answers.bincount(minlength=10).tolist()
        assert rows(found.images) <= rows(public) and len(rows(found.images)) == 70
        assert (found.record["kept"], found.record["tried"]) == (70, 1000)
        assert found.record["missing"] == [] and found.images.classes == digits.planted.classes


def test_of_a_rare_class_all_there_are_are_taken(digits, public):
    answers = digits.planted.logits(public).argmax(1)
    few = torch.nonzero(answers == 2).flatten()[:4]
    others = torch.nonzero((answers != 2) & (answers != 5)).flatten()
    given = public.subset(torch.cat([others, few]))
    found = fred_sources.labelled(digits.planted, given, per_class=9, seed=0)
    assert found.record["per_class"] == [9, 9, 4, 9, 9, 0, 9, 9, 9, 9]
    assert found.record["missing"] == [5]


def test_random_images_are_the_generator_s_with_the_suspect_s_answers(digits, generator):
    found = fred_sources.at_random(digits.planted, generator, per_class=4, seed=3)
    assert torch.equal(found.images.labels, digits.planted.logits(found.images).argmax(1))
    counts = found.images.labels.bincount(minlength=10)
    assert found.record["per_class"] == counts.tolist() and counts.max() == 4
    drawn = fred_sources.random_images(digits.planted, generator, 8 * 4 * 10, 3)
    assert found.record["tried"] == len(drawn) and rows(found.images) <= rows(drawn)
    z = generator.latents(320, torch.Generator().manual_seed(3))
    assert torch.equal(drawn.images, (generator(z) * 255).round().byte()) and drawn.labels is None


def test_inverted_samples_have_the_wanted_classes(digits, generator):
    found = inverted(digits, generator)
    labels = found.images.labels
    answers = digits.planted.logits(found.images).argmax(1)
    assert (answers == labels).float().mean() >= 0.9  # of pixels in whole steps, so not all
    counts = labels.bincount(minlength=10)
    assert found.record["per_class"] == counts.tolist() and counts.max() == 3
    assert found.record["kept"] == len(labels) >= 20 and found.record["tried"] == 60
    assert found.record["missing"] == torch.nonzero(counts == 0).flatten().tolist()


def test_samples_in_pixels_are_as_many_of_each_class_as_wanted(digits):
    how = PixelInversion(iterations=3)
    found = fred_sources.in_pixels(digits.planted, how, per_class=2, seed=0)
    assert torch.equal(found.images.labels, torch.arange(10).repeat_interleave(2))
    assert found.record["per_class"] == [2] * 10 and found.record["tried"] == 20
    assert found.record["search"]["settings"]["iterations"] == 3


def test_a_seed_repeats_each_and_another_does_not(digits, generator, public):
    one, two, other = (from_everywhere(digits, generator, public, seed) for seed in (0, 0, 1))
    for source, found in one.items():
        assert torch.equal(found.images.images, two[source].images.images), source
        assert rows(found.images) != rows(other[source].images), source


# -- what is told ----------------------------------------------------------------------------------


def test_what_is_told_of_the_search_is_of_the_samples_that_were_kept(digits, generator):
    record = inverted(digits, generator).record
    names = {"confidence", "unnaturalness", "noise", "moved_loss", "stability"}
    assert set(record["quantiles"]) == names
    for values in record["quantiles"].values():
        assert values == sorted(values) and len(values) == 3
    strict = inverted(digits, generator, replace(LENIENT, least_score=0.9), per_class=1, tried=6.0)
    scores = [r["quantiles"]["stability"][1] for r in (strict.record, record)]
    assert scores[0] > scores[1]
    assert sum(record["shares"].values()) == pytest.approx(1)
    assert record["images_per_minute"] > 0 and record["selection"]["given"] == 60


def test_without_a_selection_all_that_was_searched_is_kept(digits, generator):
    """Where the suspect answers otherwise, too: as released, samples have the wanted labels."""
    deaf = digits.planted.copy().trace(digits.clean.shape)
    bias = deaf.network.get_parameter(deaf.head.name.replace("weight", "bias"))
    with torch.no_grad():
        bias[3] -= 1e4
    found = inverted(digits, generator, None, deaf)
    record = found.record
    assert torch.equal(found.images.labels, torch.arange(10).repeat_interleave(3))
    assert not (deaf.logits(found.images).argmax(1) == 3).any()
    assert record["kept"] == record["tried"] == 30 and record["per_class"] == [3] * 10
    assert record["selection"] is None and record["short"] == record["missing"] == []
    assert set(record["quantiles"]) == {"confidence", "unnaturalness", "noise", "moved_loss"}


def test_short_classes_are_told_by_index_though_all_have_one_name(digits, generator):
    network = digits.planted.copy().network
    alike = Classifier(network, mean=0.3, std=0.35, classes=["digit"] * 10, input_size=(8, 8))
    alike.trace((1, 8, 8))
    record = inverted(digits, generator, replace(LENIENT, least_score=2.0), alike).record
    assert record["short"] == list(range(10))


def test_companions_follow_the_samples(digits, generator, public):
    samples = fred_sources.at_random(digits.planted, generator, per_class=2, seed=0)
    more = fred_sources.labelled(digits.planted, public, per_class=5, seed=0)
    both = fred_sources.accompanied(samples, more)
    own = samples.record["kept"]
    assert len(both.images) == own + 50 and both.record["kept"] == own
    assert torch.equal(both.images.images[:own], samples.images.images)
    assert torch.equal(both.images.labels[own:], more.images.labels)
    assert both.record["companions"] == more.record and both.record["tried"] == 160


# -- bad input -------------------------------------------------------------------------------------


def test_no_sample_at_all_is_told(digits, generator):
    head = digits.planted.copy()
    with torch.no_grad():  # a network that answers nothing but class 0 ...
        head.network.get_parameter(head.head.name).zero_()
        head.network.get_parameter(head.head.name.replace("weight", "bias")).copy_(
            torch.tensor([1.0] + [0.0] * 9)
        )
    only = inverted(digits, generator, classifier=head)
    assert only.record["missing"] == list(range(1, 10))
    with torch.no_grad():  # ... or nothing at all
        head.network.get_parameter(head.head.name.replace("weight", "bias")).fill_(float("nan"))
    with pytest.raises(InputError, match="finite numbers"):
        inverted(digits, generator, classifier=head)
    with pytest.raises(InputError, match="no sample is left to learn from"):
        fred_sources.as_samples(digits.planted, torch.rand(0, 1, 8, 8), torch.zeros(0).long())


def test_a_generator_of_another_size_is_refused(digits):
    wide = digits_generator(torch.randint(0, 256, (40, 1, 8, 10), dtype=torch.uint8), latent=4)
    flat = Classifier(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), mean=0.3, std=0.35, input_size=(8, 8)
    )
    with pytest.raises(InputError, match="8x10"):
        inverted(digits, wide, classifier=flat)
