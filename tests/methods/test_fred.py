"""FreD as a method: where its samples go, what is kept apart, what is told, what is refused."""

import dataclasses
import json
import math

import pytest
import torch
from latent_models import digits_generator
from msgspec.structs import replace
from once_differentiable import Once
from public_digits import collage
from torch import nn

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.generators.adversarial_training import AdversarialTraining
from bezoar.images import ImageSet
from bezoar.methods import IBAU, FreD, fred, fred_sources
from bezoar.methods.fred_input_stability import InputStability
from bezoar.methods.fred_parameter_stability import ParameterStability
from bezoar.methods.fred_selection import Selection
from bezoar.methods.fred_settings import Inversion
from bezoar.methods.fred_sources import Samples
from bezoar.methods.i_bau_unlearning import PatternUnlearning
from bezoar.methods.pixel_inversion import PixelInversion
from bezoar.methods.universal_pattern import Ascent
from bezoar.records import to_json

QUICK = FreD(
    count=20,
    tried=1.0,
    fresh=50,
    training=AdversarialTraining(steps=2, width=4, latent=6, batch_size=8, flip=False),
    inversion=Inversion(iterations=2, candidates=64),
    selection=Selection(augmentations=1, perturbations=1),
    pixels=PixelInversion(iterations=2),
    removal=IBAU(
        ascent=Ascent(steps=2, batch_size=16),
        unlearning=PatternUnlearning(steps=1, batch_size=16),
        rounds=1,
    ),
    controls=(),
)
PUBLIC = "public images that took no part"
GENERATED = "fresh generated images"


@pytest.fixture(scope="module")
def public(digits):
    digits.planted.trace(digits.clean.shape)
    return collage(digits.train)


@pytest.fixture(scope="module")
def generator(public):
    return digits_generator(public.images)


@pytest.fixture
def learned(monkeypatch):
    """The sets that I-BAU is given, in order."""
    given = []
    remove = IBAU.remove

    def watched(self, classifier, clean, **how):
        given.append(clean)
        return remove(self, classifier, clean, **how)

    monkeypatch.setattr(IBAU, "remove", watched)
    return given


def rows(images):
    return {row.tobytes() for row in images.images.flatten(1).numpy()}


def never(*_arguments, **_options):
    raise AssertionError("work was begun")


# -- samples ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["inverted", "random", "public", "pixels"])
def test_each_source_gives_a_repair_and_a_record(source, digits, public, learned):
    suspect = digits.planted.copy().trace(public.shape)
    suspect.network.train()
    before = {name: tensor.clone() for name, tensor in suspect.network.state_dict().items()}
    shapes = public.images.clone()
    repair = replace(QUICK, samples=source).remove(suspect, public, seed=1)
    assert all(torch.equal(before[k], v) for k, v in suspect.network.state_dict().items())
    assert suspect.network.training and torch.equal(public.images, shapes)
    record = json.loads(json.dumps(to_json(repair.record), allow_nan=False))
    assert record["samples"] == source and len(learned) == 1
    assert (record["generator"] is not None) == (source in ("inverted", "random"))
    assert record["measured_on"]["images"] == PUBLIC
    assert record["agreement"]["synthetic"]["count"] == 50
    assert record["inversion"]["kept"] == sum(record["inversion"]["per_class"])
    assert rows(repair.synthetic) <= rows(learned[0])
    assert len(repair.synthetic) == record["inversion"]["kept"]
    assert set(record["seconds"]) == {"generator", "samples", "removal", "total"}
    assert any("in pixels, where nothing" in flag for flag in record["flags"]) == (
        source == "pixels"
    )


def test_a_generator_takes_the_place_of_public_images(digits, generator, learned):
    repair = QUICK.remove(digits.planted, generator, seed=1)
    record = repair.record
    assert record["measured_on"]["images"] == GENERATED
    assert record["generator"]["apart"] is True
    assert record["generator"]["sentence"] == generator.independence
    assert record["generator"]["kind"] == "a user's"
    assert "companions" not in record["inversion"], "there are no public images to take"
    assert len(learned[0]) == record["inversion"]["kept"]


def test_public_images_beside_the_samples_are_counted_apart(digits, public, learned):
    repair = replace(QUICK, companions=2.5).remove(digits.planted, public, seed=1)
    told = repair.record["inversion"]
    assert told["companions"]["per_class"] == [5] * 10, "2.5 for each of 2 a class"
    assert len(learned[0]) == told["kept"] + 50
    own = learned[0].subset(range(told["kept"]))
    assert rows(repair.synthetic) == rows(own), "companions are no samples"
    shuffled = repair.record["shuffling"]["per_class"]
    counts = own.labels.bincount().tolist()
    assert all(told["own"]["count"] == counts[int(k)] for k, told in shuffled.items())
    assert len(shuffled) == len(counts) - counts.count(0)

    alone = replace(QUICK, companions=0.0).remove(digits.planted, public, seed=1)
    assert "companions" not in alone.record["inversion"]
    assert len(learned[1]) == alone.record["inversion"]["kept"]


def test_what_is_compared_on_took_no_part(digits, learned, monkeypatch):
    drawn = torch.Generator().manual_seed(0)
    noise = ImageSet(torch.randint(0, 256, (80, 1, 8, 8), generator=drawn, dtype=torch.uint8))
    trained, fresh = [], []
    train, compare = fred.train_generator, fred.compared

    def training(images, *arguments, **how):
        trained.append(images)
        return train(images, *arguments, **how)

    def comparing(old, new, images, shown):
        fresh.append(images)
        assert len(shown) == len(images)
        return compare(old, new, images, shown)

    monkeypatch.setattr(fred, "train_generator", training)
    monkeypatch.setattr(fred, "compared", comparing)
    replace(QUICK, fresh=10, controls=("public",)).remove(digits.planted, noise, seed=1)
    assert len(trained[0]) == 64 and len(fresh[0]) == 10
    assert rows(fresh[0]) <= rows(noise) - rows(trained[0])
    for images in learned:
        assert rows(images) & rows(noise), "companions, and a control, are public images"
        assert not rows(fresh[0]) & rows(images)
    assert rows(fresh[1]) == rows(fresh[0]), "controls are compared on the same"


def test_generated_images_to_compare_on_are_others(digits, generator, learned, monkeypatch):
    made = []
    draw = fred_sources.random_images

    def drawing(*arguments):
        made.append(draw(*arguments))
        return made[-1]

    monkeypatch.setattr(fred_sources, "random_images", drawing)
    replace(QUICK, samples="random").remove(digits.planted, generator, seed=1)
    sampled, fresh = made
    assert len(fresh) == QUICK.fresh and rows(learned[0]) <= rows(sampled)
    assert not rows(fresh) & rows(sampled)


def test_the_record_is_the_same_again(digits, public):
    how = replace(QUICK, samples="public", controls=("pixels",))
    first, second = (how.remove(digits.planted, public, seed=4).record for _ in range(2))
    for record in (first, second):
        del record["seconds"]
    assert first == second


# -- controls --------------------------------------------------------------------------------------


def test_controls_are_repeated_removals_and_compared(digits, public, learned):
    how = replace(QUICK, controls=("public", "inverted", "random"))
    record = how.remove(digits.planted, public, seed=1).record
    assert [c["samples"] for c in record["controls"]] == ["public", "random"], "not with itself"
    for control in record["controls"]:
        assert set(control) == {"samples", "agreement", "changed"}
        assert control["agreement"]["count"] == control["changed"]["count"] == 50
    assert len(learned[1]) == 20, "as many, without companions"
    assert not rows(learned[2]) & rows(public)
    assert record["flags"][-1].startswith(("The same removal on", "No control did"))
    plain = QUICK.remove(digits.planted, public, seed=1).record
    assert plain["controls"] == []
    said = "".join(plain["flags"])
    assert "The same removal on" not in said and "No control did" not in said
    same = "agreement", "insensitivity", "diversity", "shuffling"
    assert all(plain[key] == record[key] for key in same), "controls change nothing else"


# -- what is told ----------------------------------------------------------------------------------


def test_classes_without_a_sample_are_named(digits, public):
    deaf = digits.planted.copy().trace(public.shape)
    bias = deaf.network.get_parameter(deaf.head.name.replace("weight", "bias"))
    with torch.no_grad():
        bias[[0, 2, 3, 5, 6, 7]] -= 1e4
    record = replace(QUICK, samples="public").remove(deaf, public, seed=1).record
    assert record["inversion"]["missing"] == [0, 2, 3, 5, 6, 7]
    said = "There is no sample of 6 of 10 classes (0, 2, 3, 5, 6 and 1 more); the repair may harm"
    assert any(flag.startswith(said) for flag in record["flags"])


def test_prototypes_are_told_from_samples_that_differ(digits, public, monkeypatch):
    answers = digits.planted.logits(public).argmax(1)
    one = [int(torch.nonzero(answers == k)[0]) for k in range(10)]
    alike = public.subset([row for row in one for _ in range(4)])
    labels = torch.arange(10).repeat_interleave(4)
    found = Samples(
        ImageSet(alike.images, labels, digits.planted.classes),
        {"kept": 40, "tried": 40, "per_class": [4] * 10, "missing": []},
    )
    unlike = replace(QUICK, samples="public").remove(digits.planted, public, seed=1)
    monkeypatch.setattr(FreD, "gather", lambda *_arguments, **_options: found)
    washed_out = QUICK.remove(digits.planted, public, seed=1)
    told = [any("prototypes" in f for f in r.record["flags"]) for r in (washed_out, unlike)]
    assert told == [True, False] and washed_out.record["diversity"]["ratio"] < 0.01


def test_a_network_without_convolutions_is_not_shuffled(public):
    torch.manual_seed(0)
    flat = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), mean=0.3, std=0.35)
    record = replace(QUICK, samples="public").remove(flat, public, seed=1).record
    assert record["shuffling"] is None


# -- presets and bad input -------------------------------------------------------------------------


def test_the_published_preset_is_released_code_and_the_two_stabilities():
    method = FreD.published()
    assert (method.samples, method.tried, method.companions) == ("inverted", 1.0, 0.0)
    assert method.training == AdversarialTraining.published()
    assert method.removal == IBAU.published() and method.pixels == PixelInversion.published()
    plain = Inversion.published()
    assert plain.input_weight == plain.parameter_weight == 0
    assert method.inversion == replace(plain, input_weight=0.3, parameter_weight=0.3)
    assert method.selection is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 0},
        {"fresh": 0},
        {"tried": 0.5},
        {"tried": math.inf},
        {"companions": -1.0},
        {"companions": math.nan},
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        FreD(**wrong)


GRADIENT = {"input": InputStability(form="gradient")}
SECOND = {"parameter": ParameterStability(form="second order")}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (GRADIENT, r"choose another inversion\.input\.form$"),
        (SECOND, r"choose another inversion\.parameter\.form$"),
        (GRADIENT | SECOND, r"inversion\.input\.form and another inversion\.parameter\.form$"),
        (GRADIENT | {"input_weight": 0.0}, None),
        ({}, None),
    ],
)
def test_a_form_that_differentiates_twice_is_refused_before_a_generator_is_trained(
    change, named, public, monkeypatch
):
    """It once ended in a RuntimeError, after the generator."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), Once(), nn.Linear(8, 4)).eval()
    suspect = Classifier(network, mean=0.3, std=0.35)
    monkeypatch.setattr(fred, "train_generator", never)
    method = replace(QUICK, inversion=replace(QUICK.inversion, **change))
    with pytest.raises(InputError if named else AssertionError, match=named or "work was begun"):
        method.remove(suspect, public)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_with_more_classes_than_samples_there_are_still_two_of_each(public, generator):
    """One of each once left no image that judges the removal, which failed after the search."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 30)).eval()
    suspect = Classifier(network, mean=0.3, std=0.35).trace(public.shape)
    method = replace(QUICK, count=30, selection=None)
    assert method.removal.held_out
    found = method.gather(suspect, generator, None)
    assert found.record["per_class"] == [2] * 30
    assert method.remove(suspect, generator).record["inversion"]["kept"] == 60
    all_learned = replace(method, removal=replace(method.removal, held_out=0.0))
    assert all_learned.gather(suspect, generator, None).record["per_class"] == [1] * 30


def test_public_images_are_asked_for_and_a_generator_was_given(digits, generator, monkeypatch):
    monkeypatch.setattr(FreD, "gather", never)
    with pytest.raises(InputError, match="samples=public takes public images"):
        replace(QUICK, samples="public").remove(digits.planted, generator)


def test_without_public_images_there_is_no_control_of_these(digits, generator):
    record = replace(QUICK, controls=("random", "public")).remove(digits.planted, generator).record
    assert [control["samples"] for control in record["controls"]] == ["random"]


def test_a_control_that_cannot_be_made_costs_no_repair(digits, public, monkeypatch):
    gather = FreD.gather

    def refuse(self, *given, **how):
        if self.samples == "random":
            raise InputError("there are too few")
        return gather(self, *given, **how)

    monkeypatch.setattr(FreD, "gather", refuse)
    record = replace(QUICK, controls=("random", "public")).remove(digits.planted, public).record
    assert [control["samples"] for control in record["controls"]] == ["public"]
    assert any("could not be made: there are too few" in flag for flag in record["flags"])


def test_a_generator_that_brings_images_gives_samples_companions(
    digits, generator, public, monkeypatch
):
    monkeypatch.setattr(fred, "train_generator", never)
    both = dataclasses.replace(generator, images=public)
    record = replace(QUICK, controls=("public",)).remove(digits.planted, both).record
    assert record["inversion"]["companions"]["kept"] > 0
    assert record["measured_on"]["images"] == PUBLIC
    assert [control["samples"] for control in record["controls"]] == ["public"]


@pytest.mark.parametrize("source", ["inverted", "random"])
def test_samples_of_a_generator_need_one(source, digits, public):
    with pytest.raises(InputError, match=f"samples={source} takes a generator"):
        replace(QUICK, samples=source).gather(digits.planted, None, public)


def test_public_samples_need_public_images(digits, generator):
    with pytest.raises(InputError, match="samples=public takes public images"):
        replace(QUICK, samples="public").gather(digits.planted, generator, None)


def test_samples_in_pixels_need_neither(digits):
    assert len(replace(QUICK, samples="pixels").gather(digits.planted, None, None).images) == 20


HANDFULS = [
    ("inverted", 1),
    ("inverted", 4),
    ("public", 2),
    ("public", 1),
]


@pytest.mark.parametrize(("source", "count"), HANDFULS)
def test_a_handful_of_public_images_is_refused(source, count, digits, public):
    with pytest.raises(InputError):
        replace(QUICK, samples=source).remove(digits.planted, public.subset(range(count)))
