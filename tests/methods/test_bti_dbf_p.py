"""BTI-DBF (P): the purifier in front, and what stays untouched behind it."""

import pytest
import torch
from msgspec.structs import replace
from torch import nn

from bezoar import networks
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods import BtiDbfP, bti_dbf_p, bti_dbf_recovering, bti_dbf_strength
from bezoar.methods.bti_dbf_decoupling import Decoupling
from bezoar.methods.bti_dbf_generators import GeneratorInversion, Pretraining
from bezoar.methods.bti_dbf_purifying import Purifying
from bezoar.methods.bti_dbf_recovering import Start
from bezoar.networks.generators import drawn
from bezoar.networks.trigger_generators import PublishedGenerator

QUICK = BtiDbfP(
    decoupling=Decoupling(steps=20),
    inversion=GeneratorInversion(steps=40),
    purifying=Purifying(recipe=replace(Purifying().recipe, epochs=1)),
    rounds=2,
    strong=None,
)


def use_null(monkeypatch, *strengths):
    monkeypatch.setattr(bti_dbf_strength, "null_strengths", lambda: strengths)


def same_weights(purified, classifier):
    behind, before = (n.state_dict() for n in (purified.network.network, classifier.network))
    assert behind.keys() == before.keys()
    return all(torch.equal(behind[name], before[name]) for name in before)


def pixels(images):
    return images.images[:20] / 255


def test_weights_and_statistics_behind_the_purifier_never_change(digits):
    repair = QUICK.remove(digits.planted, digits.clean, seed=0)
    assert same_weights(repair.classifier, digits.planted)
    assert len(repair.record["rounds"]) == 2
    some = pixels(digits.test)
    assert not torch.equal(repair.classifier.network.purify(some), some)
    assert not any(module.training for module in repair.classifier.network.modules())


def test_without_a_strong_trigger_the_purifier_stays_the_identity(digits, monkeypatch):
    use_null(monkeypatch, 50.0, 60.0, 70.0)
    repair = replace(QUICK, strong=0.2).remove(digits.planted, digits.clean, seed=0)
    assert same_weights(repair.classifier, digits.planted)
    some = pixels(digits.test)
    assert torch.equal(repair.classifier.network.purify(some), some)
    assert len(repair.record["rounds"]) == 1 and repair.record["curves"][0]["y"] == []
    assert repair.record["flags"][-1].endswith("was not trained: it leaves images as they are.")


def test_a_later_round_looks_through_the_purifier(digits, monkeypatch):
    fronts = []
    run = bti_dbf_p.recover

    def noted(*arguments, front, **options):
        fronts.append(front)
        return run(*arguments, front=front, **options)

    monkeypatch.setattr(bti_dbf_p, "recover", noted)
    repair = QUICK.remove(digits.planted, digits.clean, seed=0)
    assert fronts == [None, repair.classifier.network.purify]


def test_who_may_be_trained_is_as_before_and_the_purifier_may(digits):
    classifier = digits.planted.copy()
    next(classifier.network.parameters()).requires_grad_(False)
    method = replace(QUICK, rounds=1, inversion=GeneratorInversion(steps=2))
    network = method.remove(classifier, digits.clean).classifier.network
    flags = [parameter.requires_grad for parameter in network.network.parameters()]
    assert flags == [parameter.requires_grad for parameter in classifier.network.parameters()]
    assert all(parameter.requires_grad for parameter in network.purifier.parameters())


def test_the_cost_of_the_purifier_is_in_the_record(digits):
    repair = replace(QUICK, rounds=1).remove(digits.planted, digits.clean)
    cost, network = repair.record["cost"], repair.classifier.network
    assert cost["purifier parameters"] == sum(p.numel() for p in network.purifier.parameters())
    assert cost["milliseconds per image"] > 0 and cost["batch"] == 32


# -- the official code -----------------------------------------------------------------------------


def test_the_published_settings_are_those_of_the_official_code():
    published = BtiDbfP.published()
    assert (published.rounds, published.strong, published.held_out) == (5, None, 0)
    assert published.decoupling == Decoupling.published()
    assert published.inversion == GeneratorInversion.published()
    how = published.purifying
    assert (how.generator, how.recipe.epochs, how.recipe.learning_rate) == ("published", 30, 1e-3)
    assert (how.share, how.noise, how.limit) == (0.1, 0.03, 0.05)
    assert (how.pixels, how.far, how.alignment, how.distillation) == (1, 100, 1, 0)


def test_the_published_purifier_starts_where_the_generator_did_and_keeps_its_adam(monkeypatch):
    network = drawn(lambda: networks.build("small-cnn", channels=3, num_classes=4, width=8), 0)
    classifier = Classifier(network.eval(), mean=0.5, std=0.25)
    draw = torch.Generator().manual_seed(0)
    shown = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8, generator=draw)
    published = BtiDbfP.published()
    short = replace(published.purifying.recipe, epochs=1, batch_size=4)
    method = replace(
        published,
        decoupling=replace(published.decoupling, epochs=1),
        inversion=replace(published.inversion, epochs=1, pretraining=Pretraining(epochs=1)),
        purifying=replace(published.purifying, recipe=short),
        rounds=2,
    )
    purifiers, steps = [], []
    made, run = BtiDbfP._purifier, bti_dbf_p.fit

    def purifier_noted(self, behind, start, seed):
        purifier = made(self, behind, start, seed)
        assert purifier is not start.generator
        pairs = zip(purifier.parameters(), start.generator.parameters(), strict=True)
        purifiers.append(all(torch.equal(one, other) for one, other in pairs))
        return purifier

    def fit_noted(*arguments, optimizer, **options):
        result = run(*arguments, optimizer=optimizer, **options)
        steps.append((id(optimizer), {int(s["step"]) for s in optimizer.state.values()}))
        return result

    monkeypatch.setattr(BtiDbfP, "_purifier", purifier_noted)
    monkeypatch.setattr(bti_dbf_p, "fit", fit_noted)
    repair = method.remove(classifier, ImageSet(shown, torch.arange(8) % 4))
    assert purifiers == [True]
    assert [found for _, found in steps] == [{2}, {4}] and len(dict(steps)) == 1
    front = repair.classifier.network
    assert isinstance(front.purifier, PublishedGenerator)
    assert front.noise == pytest.approx(0.03 * 0.25)  # of normalised pixels, in pixels
    assert same_weights(repair.classifier, classifier)


@pytest.mark.parametrize("constraint", ["switch", "scaled"])
def test_only_the_switch_inverts_behind_the_purifier_without_its_noise(
    constraint, digits, monkeypatch
):
    """The official code's step has Q(G(x)) in it; the noise is there where images are purified."""
    inverted, judged = [], []
    run, count = bti_dbf_recovering.invert_generator, bti_dbf_recovering.count_votes

    def inversion_noted(*arguments, front, **options):
        inverted.append(front)
        return run(*arguments, front=front, **options)

    def count_noted(answer, *arguments):
        judged.append(answer)
        return count(answer, *arguments)

    monkeypatch.setattr(bti_dbf_recovering, "invert_generator", inversion_noted)
    monkeypatch.setattr(bti_dbf_recovering, "count_votes", count_noted)
    inversion = GeneratorInversion(steps=2, constraint=constraint, bound=0.5)
    purifying = replace(QUICK.purifying, noise=0.5)
    method = replace(QUICK, inversion=inversion, purifying=purifying)
    network = method.remove(digits.planted, digits.clean).classifier.network
    some = pixels(digits.test)
    with torch.no_grad():
        one, other = inverted[1](some), inverted[1](some)
        alone = network.purifier(some).clamp(0, 1)
        answers = [judged[1](some) for _ in range(2)]
    quiet = constraint == "switch"
    assert inverted[0] is None and torch.equal(one, other) == torch.equal(one, alone) == quiet
    assert not torch.equal(*answers), "users get answers with noise"


def test_of_a_generator_that_goes_on_only_the_current_trigger_is_shown(digits, monkeypatch):
    """As in the official code; where each round makes a new one, the purifier learns from all."""
    shown, make_loss = [], bti_dbf_p.purifying_loss

    def noted(original, stamps, *arguments, **options):
        shown.append([stamp.__self__.generator for stamp in stamps])
        return make_loss(original, stamps, *arguments, **options)

    def going_on(classifier, _known, settings, *_arguments, **_options):
        generator = settings.start(classifier, 0)
        return Start(generator, torch.optim.SGD(generator.parameters(), 0.1))

    monkeypatch.setattr(bti_dbf_p, "purifying_loss", noted)
    method = replace(QUICK, inversion=GeneratorInversion(steps=2))
    method.remove(digits.planted, digits.clean)
    assert [len(generators) for generators in shown] == [1, 2]
    shown.clear()
    monkeypatch.setattr(Start, "of", going_on)
    method.remove(digits.planted, digits.clean)
    (first,), (second,) = shown
    assert not torch.equal(first.pattern, second.pattern)


def test_a_published_purifier_needs_the_published_generator(digits):
    method = replace(QUICK, purifying=Purifying(generator="published"))
    with pytest.raises(InputError, match=r"use inversion\.generator=published as well"):
        method.remove(digits.planted, digits.clean)


# -- what cannot be done ---------------------------------------------------------------------------


def test_input_that_cannot_be_used_is_refused(digits):
    with pytest.raises(InputError, match="BTI-DBF needs labelled images"):
        QUICK.remove(digits.planted, ImageSet(digits.clean.images))
    first = torch.tensor([int((digits.clean.labels == k).nonzero()[0]) for k in range(10)])
    with pytest.raises(InputError, match="give at least two images of each class"):
        QUICK.remove(digits.planted, digits.clean.subset(first))
    # no position is left before the head, and nothing is wide
    pooled = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(1, 10))
    with pytest.raises(InputError, match="no single layer cuts this network"):
        QUICK.remove(Classifier(pooled, mean=0.3, std=0.35), digits.clean)


def test_a_network_that_was_never_traced_is_repaired(digits):
    """Its number of classes was not known when the record was made."""
    untraced = Classifier(digits.planted.copy().network, mean=0.3, std=0.35)
    method = replace(QUICK, rounds=1, purifying=Purifying(augment="recipe"))
    repair = method.remove(untraced, digits.clean.subset(torch.arange(60)))
    assert repair.record["rounds"][0]["reading"]["sentence"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"held_out": 1.0}, "held_out 1.0"),
        ({"strong": -0.1}, "strong is -0.1"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        BtiDbfP(**wrong)
