"""I-BAU against a plain loop of the released algorithm, and its own rules."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from msgspec.structs import replace
from torch import nn

from bezoar import networks
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods import IBAU
from bezoar.methods.distilling import divergence
from bezoar.methods.i_bau_unlearning import PatternUnlearner, PatternUnlearning, rate_for
from bezoar.methods.implicit_hypergradient import Implicit
from bezoar.methods.universal_pattern import Ascent
from bezoar.records import to_json


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=24, classes=4):
    raw = torch.randint(0, 256, (count, 1, 8, 8), generator=draws(), dtype=torch.uint8)
    return ImageSet(raw, torch.arange(count) % classes)


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    network = networks.build("small-cnn", num_classes=4, width=4)
    found = Classifier(network, mean=0.3, std=0.35)
    with torch.no_grad():  # running statistics that are not the initial ones
        network.train()
        found(torch.rand(50, 1, 8, 8, generator=draws()))
    network.eval()
    logits = found.logits(images())
    name = found.head.name.replace("weight", "bias")
    with torch.no_grad():  # so that all four classes are among the answers
        network.get_parameter(name).sub_(logits.mean(0))
    return found


def unlearner(classifier, clean, settings, *, implicit=None, ascent=None, seed=0):
    wanted = classifier.logits(clean)
    ascent = ascent or Ascent()
    return PatternUnlearner(
        classifier, clean, wanted, settings, implicit or Implicit(), ascent, seed=seed
    )


MOMENT = IBAU(  # settings of its own, whatever the defaults are
    rounds=2,
    patterns=1,
    settled=None,
    budget=None,
    held_out=0.2,
    implicit=Implicit(terms=5),
    ascent=Ascent(steps=3, batch_size=8, start="zero"),
    unlearning=PatternUnlearning(
        steps=2, batch_size=8, fraction=0.25, labels="all", memory=1, strengths="full"
    ),
)


# -- the released algorithm ------------------------------------------------------------------------


def released(classifier, clean, *, size, fraction, seed):
    """One round of the released notebook, with plain loops; parameters after it, in order."""
    twin = classifier.copy()
    network, parameters = twin.network, list(twin.network.parameters())
    x, y = clean.images.float() / 255, clean.labels
    batches = [slice(start, start + size) for start in range(0, len(x), size)]
    delta = torch.zeros(1, *clean.shape)
    for rows in batches:
        delta.requires_grad_(True)
        own = twin(x[rows]).argmax(1)
        loss = -F.cross_entropy(twin(x[rows] + delta), own) + 0.001 * delta.square().sum()
        delta = (delta - 10 * torch.autograd.grad(loss, delta)[0]).detach()
    delta = delta[0] * min(1.0, 10 / math.sqrt(3072) * 8 / float(delta.norm()))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    places = draws(seed)
    for rows in batches:
        pattern = delta.clone().requires_grad_(True)
        patching = torch.zeros_like(x[rows])
        chosen = torch.randperm(len(patching), generator=places)[: int(len(patching) * fraction)]
        patching[chosen] = pattern
        outer = F.cross_entropy(twin(x[rows] + patching), y[rows])
        slope = torch.autograd.grad(outer, pattern, retain_graph=True, allow_unused=True)[0]
        direct = torch.autograd.grad(outer, parameters)
        first = batches[0]
        inner = -F.cross_entropy(twin(x[first] + pattern), y[first])
        inner = inner + 0.001 * pattern.square().sum()
        mapped = pattern - 0.1 * torch.autograd.grad(inner, pattern, create_graph=True)[0]
        v = torch.zeros_like(pattern)
        for _ in range(5):
            v = torch.autograd.grad(mapped, pattern, v, retain_graph=True)[0]
            v = v + (0 if slope is None else slope)
        # the bias of the head moves no gradient with respect to δ
        implicit = torch.autograd.grad(mapped, parameters, v, allow_unused=True)
        for parameter, a, b in zip(parameters, direct, implicit, strict=True):
            parameter.grad = a if b is None else a + b
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("fraction", [0.25, 0.01])
def test_the_published_preset_is_the_released_round(classifier, fraction):
    clean = images(count=28)  # two whole batches and a rest
    preset = IBAU.published()
    method = replace(
        preset,
        ascent=replace(preset.ascent, batch_size=12),
        unlearning=replace(preset.unlearning, batch_size=12, fraction=fraction),
    )
    repair = method.remove(classifier, clean, seed=5)
    wanted = released(classifier, clean, size=12, fraction=fraction, seed=6)
    before = list(classifier.network.parameters())
    after = list(repair.classifier.network.parameters())
    for old, new, plain in zip(before, after, wanted, strict=True):
        assert not torch.equal(old, new)
        # Adam's first steps have the sign of the gradient, so only their sum is compared tightly
        torch.testing.assert_close(new.detach(), plain, rtol=1e-4, atol=2e-5)
    bare = fraction == 0.01
    assert bool(repair.record["flags"]) == bare
    assert not bare or "3 of 3 batches" in repair.record["flags"][0]
    assert all(terms == (0 if bare else 5) for terms in repair.record["implicit"]["terms"])


def test_the_presets_are_what_they_say():
    cifar, gtsrb, resnet = IBAU.published(), IBAU.published_gtsrb(), IBAU.published_resnet()
    assert (cifar.ascent.optimizer, cifar.ascent.rate, cifar.ascent.clamp) == ("sgd", 10.0, False)
    assert cifar.ascent.projection == "end" and cifar.rounds == 1 and not cifar.shuffle
    assert (gtsrb.ascent.optimizer, gtsrb.ascent.rate, gtsrb.ascent.clamp) == ("adam", 1.0, True)
    assert gtsrb.unlearning == cifar.unlearning
    assert (resnet.unlearning.learning_rate, resnet.unlearning.batch_size) == (1e-4, 256)
    assert (resnet.rounds, resnet.ascent.projection) == (5, "none")
    for preset in (cifar, gtsrb, resnet):
        assert preset.implicit == Implicit() and preset.unlearning.distillation == 0
        assert preset.settled is preset.budget is None and preset.held_out == 0


# -- the outer problem -----------------------------------------------------------------------------


def test_without_patched_images_it_is_plain_fine_tuning(classifier):
    clean = images()
    settings = PatternUnlearning(fraction=0.0, labels="all", distillation=0.0)
    rows = torch.tensor([3, 1, 17, 8])
    found = unlearner(classifier, clean, settings).gradient(torch.full((1, 8, 8), 0.3), rows)
    loss = F.cross_entropy(classifier(clean.images[rows].float() / 255), clean.labels[rows])
    plain = torch.autograd.grad(loss, list(classifier.network.parameters()))
    for gradient, wanted in zip(found.gradients, plain, strict=True):
        assert torch.equal(gradient, wanted)
    assert found.terms == 0


@pytest.mark.parametrize("labels", ["all", "patched", "none"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_outer_loss_is_the_formula(classifier, labels, temperature):
    clean = images()
    settings = PatternUnlearning(
        fraction=0.3,
        labels=labels,
        distillation=0.7,
        temperature=temperature,
        strengths="full",
    )
    one = unlearner(classifier, clean, settings, seed=4)
    with torch.no_grad():  # otherwise the divergence from the original is 0
        for parameter in classifier.network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draws(1)))
    pattern = torch.rand(1, 8, 8, generator=draws(2)) - 0.5
    rows = torch.arange(10)
    found = one.gradient(pattern, rows)
    drawn = torch.randperm(10, generator=draws(4))
    chosen, others = drawn[:3], drawn[3:]
    x = clean.images[:10].float() / 255
    x[chosen] = (x[chosen] + pattern).clamp(0, 1)
    logits = classifier(x)
    each = F.cross_entropy(logits, clean.labels[:10], reduction="none")
    wanted = 0.7 * divergence(logits[others], one.wanted[others], temperature)
    if labels == "none":  # the original's answers to the plain images stand in for all of them
        wanted = 0.7 * divergence(logits, one.wanted[:10], temperature)
    else:
        wanted = wanted + (each.mean() if labels == "all" else each[chosen].sum() / 10)
    torch.testing.assert_close(found.value, wanted.detach())
    assert float(divergence(logits[others], one.wanted[others], temperature).detach()) > 1e-4


def worn(one, monkeypatch, patterns, steps):
    """What the images with a pattern got in the last round: (m, c, h, w), δ itself being 1."""
    seen = []
    monkeypatch.setattr(
        type(one), "_outer", lambda self, worn, *_rest: seen.append(worn) or (0 * worn).sum()
    )
    for pattern in patterns:
        seen.clear()
        rows = torch.arange(20)
        one._patterns = [*one._patterns, pattern][-one.settings.memory :]
        for _ in range(steps):
            one.gradient(pattern, rows)
    return torch.cat(seen).detach()


@pytest.mark.parametrize("memory", [1, 3])
@pytest.mark.parametrize("strengths", ["all", "full"])
def test_patterns_come_from_the_last_rounds_and_in_all_strengths(
    classifier, monkeypatch, memory, strengths
):
    settings = PatternUnlearning(fraction=0.5, memory=memory, strengths=strengths)
    one = unlearner(classifier, images(), settings, implicit=Implicit(terms=0))
    patterns = [torch.full((1, 8, 8), 10.0**k) for k in range(5)]
    got = worn(one, monkeypatch, patterns, 40)[:, 0, 0, 0]
    rounds = got.log10().ceil().round()  # strengths from 0.25 to 1 stay above a tenth
    assert set(rounds.tolist()) == set(range(5 - memory, 5))
    factors = got / 10**rounds
    if strengths == "full":
        torch.testing.assert_close(factors, torch.ones_like(factors))
    else:
        assert 0.25 <= factors.min() < 0.27 and 0.98 < factors.max() <= 1 + 1e-6
    shares = rounds.long().bincount(minlength=5)[5 - memory :] / len(rounds)
    assert (shares - 1 / memory).abs().max() < 0.1


@pytest.mark.parametrize(
    ("rounding", "fraction", "count", "patched"),
    [
        ("down", 0.01, 100, 1),
        ("down", 0.01, 99, 0),
        ("down", 0.01, 256, 2),
        ("nearest", 0.03, 64, 2),
        ("nearest", 0.03, 10, 1),
        ("nearest", 0.0, 64, 0),
        ("nearest", 1.0, 7, 7),
    ],
)
def test_how_many_images_carry_the_pattern(rounding, fraction, count, patched):
    settings = PatternUnlearning(rounding=rounding, fraction=fraction)
    assert settings.patched(count) == patched


def test_the_implicit_part_changes_the_gradient_and_is_told(classifier):
    clean, pattern = images(), torch.rand(1, 8, 8, generator=draws(2))
    settings = PatternUnlearning(fraction=0.5, labels="all")
    rows = torch.arange(12)
    found = [
        unlearner(classifier, clean, settings, implicit=implicit).gradient(pattern, rows)
        for implicit in (Implicit(terms=0), Implicit(), Implicit(solver="conjugate-gradient"))
    ]
    for one in found[1:]:
        assert float(one.ratio) > 0 and float(one.growth) > 0
        change = [a - b for a, b in zip(one.gradients, found[0].gradients, strict=True)]
        size = math.sqrt(sum(float(part.square().sum()) for part in change))
        whole = math.sqrt(sum(float(part.square().sum()) for part in found[0].gradients))
        assert size / whole == pytest.approx(float(one.ratio), rel=1e-3)


def test_the_learning_rate_falls_with_the_size_of_the_network():
    def network(count):
        return nn.Linear(count, 1, bias=False)

    assert rate_for(network(300_000)) == rate_for(network(1_000_000)) == pytest.approx(1e-3)
    assert rate_for(network(11_000_000)) == pytest.approx(1e-4)
    assert rate_for(network(round(math.sqrt(5) * 1e6))) == pytest.approx(math.sqrt(1e-7), rel=1e-5)


# -- the rounds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [MOMENT, IBAU.published(), IBAU.published_gtsrb()])
def test_running_statistics_stay_to_the_bit_and_scales_learn(classifier, method):
    repair = method.remove(classifier, images(), seed=1)
    old, new = classifier.network.state_dict(), repair.classifier.network.state_dict()
    buffers = {name for name, _ in classifier.network.named_buffers()}
    assert any("running" in name for name in buffers)
    for name in old:
        assert torch.equal(old[name], new[name]) == (name in buffers), name
    assert not repair.classifier.network.training


def test_running_statistics_can_be_taken_anew(classifier):
    repair = replace(MOMENT, norms="recalibrated").remove(classifier, images(), seed=1)
    frozen = MOMENT.remove(classifier, images(), seed=1)
    old, new = (r.classifier.network.state_dict() for r in (frozen, repair))
    assert any(not torch.equal(old[name], new[name]) for name in old if "running" in name)
    parameters = [name for name, _ in classifier.network.named_parameters()]
    assert all(torch.equal(old[name], new[name]) for name in parameters)


def test_rounds_end_when_a_fresh_pattern_changes_nothing(classifier):
    always = replace(MOMENT, settled=1.0, rounds=5).remove(classifier, images(), seed=1)
    assert len(always.record["rounds"]) == 2  # before and after the one round that is always played
    never = replace(MOMENT, rounds=3).remove(classifier, images(), seed=1)
    assert len(never.record["rounds"]) == 4
    assert len(never.record["implicit"]["growth"]) == 3 * 2


def test_a_round_that_changes_too_many_answers_is_undone(classifier):
    wild = replace(MOMENT, unlearning=replace(MOMENT.unlearning, learning_rate=0.3))
    kept = replace(wild, budget=0.0).remove(classifier, images(), seed=1)
    free = wild.remove(classifier, images(), seed=1)
    assert free.record["rounds"][-1]["agreement"] < 1
    before, after = (c.network.state_dict() for c in (classifier, kept.classifier))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any("was undone" in flag for flag in kept.record["flags"])
    assert len(kept.record["rounds"]) == 1


def test_a_round_looks_from_several_starts_and_learns_from_all(classifier, monkeypatch):
    played = []
    play = PatternUnlearner.play

    def watched(self, patterns, **options):
        played.append(list(patterns))
        play(self, patterns, **options)

    monkeypatch.setattr(PatternUnlearner, "play", watched)
    method = replace(MOMENT, patterns=3, ascent=replace(MOMENT.ascent, start="random"))
    method.remove(classifier, images(), seed=1)
    assert [len(patterns) for patterns in played] == [3, 3]
    assert not torch.equal(played[0][0], played[0][1])


@pytest.mark.parametrize(
    ("slowing", "expected"), [(True, [1.0, 1.0, 1.0, 0.5]), (False, [1.0] * 4)]
)
def test_the_rate_falls_in_the_second_half(classifier, monkeypatch, slowing, expected):
    paces = []

    def count(self, patterns, *, pace=1.0):
        paces.append(pace)

    monkeypatch.setattr(PatternUnlearner, "play", count)
    method = replace(MOMENT, rounds=4, slowing=slowing)
    method.remove(classifier, images(), seed=0)
    assert paces == pytest.approx(expected)


def test_a_pace_is_a_share_of_the_learning_rate(classifier):
    one = unlearner(classifier, images(), PatternUnlearning(steps=1, learning_rate=0.01))
    one.parameters[0].requires_grad_(True)
    one.play([torch.zeros(1, 8, 8)], pace=0.25)
    assert [group["lr"] for group in one.optimizer.param_groups] == [0.0025]


def test_a_group_norm_can_be_the_first_layer_where_no_image_carries_the_pattern():
    """Images whose channels come last in memory once ended the process."""
    torch.manual_seed(0)
    layers = (nn.GroupNorm(1, 3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    network = nn.Sequential(*layers).eval()
    found = Classifier(network, mean=0.3, std=0.35)
    raw = torch.randint(0, 256, (24, 8, 8, 3), generator=draws(), dtype=torch.uint8)
    clean = ImageSet(raw.permute(0, 3, 1, 2), torch.arange(24) % 4)
    repair = IBAU.published().remove(found, clean)
    assert "In 1 of 1 batches no image carries the pattern" in repair.record["flags"][0]
    assert not torch.equal(repair.classifier.network[0].weight, network[0].weight)


def test_what_judges_takes_no_part(classifier):
    """Other held-out images change what is measured, and nothing else."""
    clean, method = images(count=40), replace(MOMENT, held_out=0.25, shuffle=False)
    first = method.remove(classifier, clean, seed=2)
    held_out = clean.split(0.75, seed=2)[1]
    blank = clean.images.clone()
    for image in held_out.images:
        blank[(clean.images == image).flatten(1).all(1)] = 128
    second = method.remove(classifier, ImageSet(blank, clean.labels), seed=2)
    states = [r.classifier.network.state_dict() for r in (first, second)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert first.record["rounds"] != second.record["rounds"]


def test_the_record_is_complete(classifier):
    record = MOMENT.remove(classifier, images(), seed=1).record
    plain = json.loads(json.dumps(to_json(record), allow_nan=False))
    for one in plain["rounds"]:
        assert {"cross_entropy", "norm", "changed", "towards", "agreement", "led"} <= one.keys()
        assert len(one["towards"]) == 4
    assert plain["rounds"][0]["agreement"] == 1
    assert plain["suspected_target"] == plain["rounds"][0]["suspected_target"]
    assert plain["learning_rate"] == 1e-3
    assert set(plain["seconds"]) == {"ascending", "unlearning", "total"}
    parts = plain["seconds"]["ascending"] + plain["seconds"]["unlearning"]
    assert 0 < parts <= plain["seconds"]["total"]
    for curve in plain["curves"]:
        assert len(curve["x"]) == len(curve["y"]) > 1


def test_the_planted_class_is_suspected(digits):
    """The released ascent, which leaves every ball, names the class on digits."""
    repair = IBAU.published().remove(digits.planted, digits.clean, seed=0)
    assert repair.record["suspected_target"] == digits.attack.target
    assert repair.record["target_share"] > 0.8


# -- bad input -------------------------------------------------------------------------------------


def test_bad_input_is_refused_before_any_work(classifier, monkeypatch):
    def never(*_arguments, **_options):
        raise AssertionError("expensive work was begun")

    monkeypatch.setattr("bezoar.methods.i_bau.universal_ascent", never)
    clean = images()
    with pytest.raises(InputError, match="needs labelled images"):
        MOMENT.remove(classifier, ImageSet(clean.images))
    with pytest.raises(InputError, match="label 4"):
        MOMENT.remove(classifier, ImageSet(clean.images, clean.labels + 1))
    with pytest.raises(InputError, match="at least two images"):
        MOMENT.remove(classifier, clean.subset([0]))


def test_a_rate_that_breaks_the_network_is_told(classifier):
    wild = replace(MOMENT, unlearning=replace(MOMENT.unlearning, learning_rate=1e30))
    with pytest.raises(InputError, match=r"diverged.*unlearning\.learning_rate"):
        wild.remove(classifier, images(), seed=1)


@pytest.mark.parametrize(
    "wrong", [{"rounds": 0}, {"patterns": 0}, {"held_out": 1.0}, {"settled": 1.5}, {"budget": -0.1}]
)
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        IBAU(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": -1},
        {"batch_size": 0},
        {"memory": 0},
        {"labels": "none", "distillation": 0.0},
        {"fraction": 1.1},
        {"distillation": -1.0},
        {"clip_norm": -1.0},
        {"temperature": 0.0},
        {"inner_step": 0.0},
        {"learning_rate": 0.0},
    ],
)
def test_settings_of_the_unlearning_that_mean_nothing_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        PatternUnlearning(**wrong)
