"""Repairs by a method that takes public images: what it is given, who judges, what is claimed."""

import json

import pytest
import torch
from data_free_methods import Shake
from public_methods import TOLD, Borrow
from torch import nn

from bezoar import pipeline
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.generators.public_generator import PublicGenerator
from bezoar.images import ImageSet
from bezoar.judging import judge_repair
from bezoar.methods import (
    TAC,
    Repair,
    is_data_free,
    methods,
    takes_no_task_image,
    takes_public,
)
from bezoar.records import to_json
from bezoar.wording import UNMEASURED


@pytest.fixture(autouse=True)
def borrow(monkeypatch):
    monkeypatch.setitem(methods._things, "borrow", Borrow)
    Borrow.given.clear()


@pytest.fixture
def planted(digits):
    classifier = digits.planted.copy()
    return Classifier(classifier.network, mean=0.3, std=0.35, input_size=(8, 8))


def noise(count=40, shape=(1, 8, 8), labels=False, seed=0):
    drawn = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=drawn)
    given = torch.randint(0, 3, (count,), generator=drawn) if labels else None
    return ImageSet(images, given, notices=["One file was left out."])


def small_generator(shape=(1, 8, 8), apart=True):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        values = shape[0] * shape[1] * shape[2]
        network = nn.Sequential(nn.Linear(5, values), nn.Sigmoid(), nn.Unflatten(1, shape))
    return PublicGenerator(network, 5, shape, apart=apart, origin={"kind": "toy", "count": 7})


def plain(record):
    return json.loads(json.dumps(to_json(record), allow_nan=False))


# -- what the method is given ----------------------------------------------------------------------


def test_public_images_come_without_labels_and_nothing_of_the_task(planted):
    public = noise(labels=True)
    repair = pipeline.clean(planted, method="borrow", public=public, seed=3)
    (given,) = Borrow.given
    assert isinstance(given, ImageSet) and given.labels is None
    assert torch.equal(given.images, public.images) and public.labels is not None
    record = plain(repair.record)
    assert record["public"] == {
        "kind": "images",
        "count": 40,
        "sha256": ImageSet(public.images).sha256(),
    }
    assert record["images"] is record["scan"] is record["before"] is record["agreement"] is None
    assert record["judged_on"] == "no images" and record["accepted"]
    assert record["fitted_on"] == {"count": 0, "of": 0}
    assert record["method"]["reason"] == "It was asked for; it takes no image of the task."
    assert record["notices"] == ["Public images: One file was left out."]
    assert repair.synthetic is not None and len(repair.synthetic) == 20


@pytest.mark.parametrize("apart", [True, None, False])
def test_a_generator_comes_as_it_is_and_the_record_says_what_it_is_worth(apart, planted):
    generator = small_generator(apart=apart)
    record = plain(pipeline.clean(planted, method="borrow", public=generator).record)
    (given,) = Borrow.given
    z = generator.latents(3, torch.Generator().manual_seed(1))
    assert torch.equal(given(z), generator(z))
    assert record["public"] == {
        "kind": "generator",
        "images": None,
        "latent": 5,
        "apart": apart,
        "independence": generator.independence,
        "origin": {"kind": "toy", "count": 7},
    }
    assert record["notices"] == []


def test_methods_without_public_images_have_none_in_their_record(planted):
    record = pipeline.clean(planted, method=Shake()).record
    assert record["public"] is None


def test_the_needs_of_a_method_decide_what_it_takes():
    assert takes_public(Borrow()) and not takes_public(Shake()) and not takes_public(TAC())
    assert not is_data_free(Borrow())
    assert [takes_no_task_image(method) for method in (Borrow(), Shake(), TAC())] == [True] * 2 + [
        False
    ]


# -- images of the task only judge -----------------------------------------------------------------


@pytest.mark.parametrize("labelled", [True, False])
def test_all_images_of_the_task_judge_and_none_is_given_to_the_method(labelled, digits):
    images = digits.clean if labelled else ImageSet(digits.clean.images)
    method = Borrow(size=0.3)
    repair = pipeline.clean(digits.planted, images, method=method, public=noise(), seed=1)
    record = plain(repair.record)
    (given,) = Borrow.given
    assert len(given) == 40
    assert record["judged_on"] == ("labelled images" if labelled else "unlabelled images")
    assert record["fitted_on"] == {"count": 0, "of": 300}
    old, new = (c.logits(digits.clean).argmax(1) for c in (digits.planted, repair.classifier))
    assert record["agreement"]["value"] == pytest.approx(float((old == new).float().mean()))
    assert record["agreement"]["count"] == 300 and record["scan"] and record["rescan"]
    if labelled:
        right = float((new == digits.clean.labels).float().mean())
        assert record["after"]["accuracy"]["value"] == pytest.approx(right)


def test_images_that_judge_may_not_be_among_the_public_ones(digits):
    mixed = ImageSet(torch.cat([noise(5).images, digits.clean.images[[7, 2, 7]]]))
    with pytest.raises(InputError, match="3 of the 8 public images are also among the images"):
        pipeline.clean(digits.planted, digits.clean, method="borrow", public=mixed)
    assert Borrow.given == []


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [False, True])
def test_a_method_that_needs_public_images_says_so_and_how(images, planted, digits):
    given = digits.clean if images else None
    message = r"the method 'borrow' needs public images.*\(--public\).*\(--generator\)"
    with pytest.raises(InputError, match=message):
        pipeline.clean(planted, given, method="borrow")


@pytest.mark.parametrize(
    ("method", "who"),
    [("tac", "the method 'tac'"), (Shake(), "the method 'shake'")],
)
def test_public_images_that_nobody_takes_are_refused(method, who, planted, digits):
    message = f"{who} takes no public images and no generator; .*--method.*: .*borrow"
    with pytest.raises(InputError, match=message):
        pipeline.clean(planted, digits.clean, method=method, public=noise())


def test_images_of_both_kinds_and_no_method_are_refused(planted, digits):
    with pytest.raises(InputError, match=r"and no method; leave out --public .*: borrow"):
        pipeline.clean(planted, digits.clean, public=noise())


@pytest.mark.parametrize(
    ("public", "message"),
    [
        (noise(shape=(3, 8, 8)), "public images are 3x8x8 and the network takes 1x8x8"),
        (noise(shape=(1, 16, 16)), "public images are 1x16x16 and the network takes 1x8x8"),
        (small_generator((3, 8, 8)), "generator makes images of 3x8x8 and the network takes 1x8x8"),
        (noise(0), "there are no public images"),
        ("folder/", "public is a str; expected an ImageSet or a PublicGenerator"),
    ],
    ids=["channels", "size", "generator", "none", "text"],
)
def test_what_does_not_fit_is_refused_before_the_work(public, message, planted):
    with pytest.raises(InputError, match=message):
        pipeline.clean(planted, method="borrow", public=public)
    assert Borrow.given == []


def test_the_model_must_say_what_it_takes_although_public_images_have_a_size(digits):
    classifier = Classifier(digits.planted.copy().network, mean=0.3, std=0.35)
    with pytest.raises(InputError, match="without images, the model itself must say"):
        pipeline.clean(classifier, method="borrow", public=noise())


# -- what is claimed -------------------------------------------------------------------------------


def test_what_was_measured_instead_is_told_in_the_words_of_the_method(planted):
    record = pipeline.clean(planted, method="borrow", public=noise()).record
    assert record["outcome"] == (
        f"{UNMEASURED}: no clean image of the task was given, so neither accuracy nor the "
        "backdoor's removal could be verified. Measured instead: the old and the new model answer "
        "95.0 % (95 %: 93.5 to 96.2) of 1000 fresh generated images with the same class; recovered "
        "patterns change the class of 77.0 % of fresh generated images before and 3.0 % after. "
        "Fresh generated images are no images of the task and recovered patterns are not the "
        "attacker's: this shows how far the method reached its own goal, and no more."
    )


@pytest.mark.parametrize("odd", [None, "x", [], {}, {"images": None}])
def test_odd_words_fall_back_to_those_that_always_fit(odd, digits):
    digits.planted.trace((1, 8, 8))
    told = {"agreement": TOLD["agreement"], "measured_on": odd}
    repair = Repair(digits.planted.copy(), told)
    judged = judge_repair(digits.planted, repair, None, max_accuracy_drop=0.05)
    assert "of 1000 synthetic images with" in judged.told
    assert "generated triggers are not the attacker's" in judged.told
