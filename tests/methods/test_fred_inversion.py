"""Inversion in latent space: its gradient, plain inversion as a special case, order, and effect."""

import msgspec
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from latent_models import (
    LATENT,
    SHAPE,
    digits_generator,
    smooth_classifier,
    smooth_generator,
)
from torch import nn

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.generators.public_generator import PublicGenerator
from bezoar.methods import fred_objective
from bezoar.methods.fred_input_stability import (
    InputStability,
    adversarial_shift,
    divergences,
    input_instability,
)
from bezoar.methods.fred_inversion import Inversion, arranged, descended, invert
from bezoar.methods.fred_objective import Objective, Stopwatch, halves
from bezoar.methods.fred_parameter_stability import ParameterStability, parameter_instability

LABELS = torch.tensor([2, 0, 1, 1, 0, 2])
PLAIN = Inversion(
    iterations=8, candidates=0, input_weight=0, parameter_weight=0, normalise_prior=False
)
FULL = Inversion(iterations=8, candidates=20, batch_size=4)


@pytest.fixture
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def but(given, **changes):
    return msgspec.structs.replace(given, **changes)


def draws(seed=3):
    return torch.Generator().manual_seed(seed)


def objective(how, classifier=None, generator=None, labels=LABELS, pattern=None):
    classifier = classifier or smooth_classifier()
    classifier.network.requires_grad_(False)
    generator = generator or smooth_generator()
    watch = Stopwatch(torch.device("cpu"))
    return Objective(classifier, generator, labels, how, draws(), pattern=pattern, watch=watch)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("critic", [True, False])
@pytest.mark.parametrize(
    ("noise", "step"),
    [("adversarial", "first order"), ("gaussian", "second order"), ("gradient", "sharpness")],
)
def test_the_gradient_is_that_of_the_sum_of_all_terms_in_one_graph(noise, step, critic):
    how = Inversion(
        iterations=10,
        plain=0.0,
        ramp=0.0,
        stability_every=2,
        prior_weight=3.0,
        class_weight=5.0,
        input_weight=0.5,
        parameter_weight=0.7,
        input=InputStability(form=noise),
        parameter=ParameterStability(form=step, length=0.05),
    )
    classifier, generator = smooth_classifier(), smooth_generator(critic)
    z = torch.randn(6, LATENT, generator=draws(1)).requires_grad_()
    images = generator(z)
    prior = generator.unnaturalness(z, images)
    (slope,) = torch.autograd.grad(prior.sum(), images if critic else z, retain_graph=True)
    logits = classifier(images)
    support, query = halves(LABELS)
    unsure = input_instability(classifier, images, LABELS, logits, how.input, draws()).sum()
    moved = parameter_instability(classifier, images, LABELS, support, query, how.parameter).mean()
    total = 3 * (prior / slope.flatten(1).norm(dim=1)).sum()
    total = total + 5 * F.cross_entropy(logits, LABELS, reduction="sum")
    total = total + 2 * 5 * (0.5 * unsure + 0.7 * 6 * moved)
    (expected,) = torch.autograd.grad(total, z)
    ours = objective(how, classifier, generator)
    assert torch.allclose(ours.gradient(z), expected)
    # The second iteration goes without the stabilities.
    ours.gradient(z)
    assert {name: len(points) for name, points in ours.curves.items()} == {
        "prior": 2,
        "class": 2,
        "input stability": 1,
        "parameter stability": 1,
    }


def plain_loop(how, classifier, generator, z):
    """Plain inversion by the book: the whole loss, backward, a step, a clip."""
    z = z.clone().requires_grad_()
    velocity = torch.zeros_like(z)
    adam = torch.optim.Adam([z], how.learning_rate)
    for _ in range(how.iterations):
        images = generator(z)
        loss = F.cross_entropy(classifier(images), LABELS)
        loss = 100 * loss - generator.critic(images).mean()
        adam.zero_grad()
        loss.backward()
        if how.optimizer == "adam":
            adam.step()
        else:  # the released code of KED-DMI
            before = velocity
            velocity = 0.9 * velocity - how.learning_rate * z.grad
            z.data += -0.9 * before + 1.9 * velocity
        z.data.clamp_(-how.clip, how.clip)
    return z.detach(), generator(z).detach()


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("optimizer", ["adam", "nesterov"])
def test_without_the_stabilities_it_is_plain_inversion(optimizer):
    how = but(PLAIN, optimizer=optimizer, clip=1.0, iterations=12)
    classifier, generator = smooth_classifier(), smooth_generator()
    start = generator.latents(len(LABELS), draws(7))
    z, images = plain_loop(how, classifier, generator, start)
    found = invert(classifier, generator, LABELS, how, seed=7)
    # Adam divides by the size of its gradients, but for a tiny constant.
    assert torch.allclose(found.latents, z, atol=1e-6)
    assert torch.allclose(found.images, images, atol=1e-6)
    assert (found.latents - start.clamp(-1, 1)).abs().max() > 1e-2
    assert float(found.latents.abs().max()) == 1.0
    assert set(found.record["shares"]).isdisjoint({"input stability", "parameter stability"})


def test_the_published_preset_has_the_numbers_of_the_released_code():
    preset = Inversion.published()
    assert (preset.iterations, preset.learning_rate, preset.optimizer) == (2400, 0.02, "nesterov")
    assert (preset.class_weight, preset.prior_weight, preset.normalise_prior) == (100, 1, False)
    assert (preset.clip, preset.candidates, preset.batch_size) == (1.0, 0, 60)
    assert preset.input_weight == preset.parameter_weight == 0


@settings(derandomize=True, max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=60), st.sampled_from([4, 8, 16]))
def test_batches_and_their_halves_hold_each_class_evenly(labels, batch_size):
    labels = torch.tensor(labels)
    batches = arranged(labels, batch_size, seed=1)
    assert sorted(torch.cat(batches).tolist()) == list(range(len(labels)))
    assert len(batches) == -(-len(labels) // batch_size)
    assert all(2 <= len(rows) <= batch_size for rows in batches)
    for rows in batches:
        support, query = halves(labels[rows])
        assert 0 <= len(support) - len(query) <= 1
        both = [torch.bincount(labels[rows][half], minlength=7) for half in (support, query)]
        assert (both[0] - both[1]).abs().max() <= 1


def test_batches_of_balanced_labels_are_balanced_and_many_classes_come_in_pairs():
    labels = torch.arange(10).repeat(50)
    counts = torch.stack([labels[rows].bincount() for rows in arranged(labels, 256, seed=0)])
    assert counts.sum(1).tolist() == [250, 250]
    assert int(counts.max() - counts.min()) <= 2
    many = torch.arange(100).repeat(4)
    for rows in arranged(many, 40, seed=0):
        assert (many[rows].bincount(minlength=100) % 2 == 0).all()


@pytest.mark.parametrize("every", [1, 2, 3])
def test_both_halves_are_asked_whatever_the_interval(every, monkeypatch):
    asked = []

    def seen(classifier, images, labels, support, query, *rest, **named):
        asked.append(tuple(query.tolist()))
        return parameter_instability(classifier, images, labels, support, query, *rest, **named)

    monkeypatch.setattr(fred_objective, "parameter_instability", seen)
    ours = objective(but(FULL, iterations=12, stability_every=every, plain=0.0, ramp=0.0))
    descended(ours, torch.zeros(6, LATENT), ours.settings, lambda _: None)
    first, second = (tuple(half.tolist()) for half in halves(LABELS))
    assert asked == ([second, first] * 12)[: 12 // every]


@pytest.mark.usefixtures("double")
def test_a_sample_feels_its_batch_through_parameter_stability_alone():
    start = torch.randn(6, LATENT, generator=draws(1))

    def alone_and_together(how):
        whole = descended(objective(how), start, how, lambda _: None)
        # Gaussian noise is drawn for a batch, so only the first rows of one get the same.
        part = descended(objective(how, labels=LABELS[:2]), start[:2], how, lambda _: None)
        return whole[:2], part

    gradient = but(FULL, iterations=6, input=InputStability(form="gradient"), plain=0.0)
    assert torch.allclose(*alone_and_together(but(gradient, parameter_weight=0)))
    whole, part = alone_and_together(gradient)
    assert (whole - part).abs().max() > 1e-4


def test_starting_points_are_the_candidates_that_a_class_likes_best():
    classifier, generator = smooth_classifier(), smooth_generator()
    with torch.no_grad():
        classifier.network.fc.bias[1] = -1e4  # every candidate's probability is rounded to 0
        how = but(FULL, iterations=0, candidates=30)
        drawn = generator.latents(30, draws(5)).clamp(-2, 2)
        logs = classifier(generator(drawn)).log_softmax(1)
    labels = torch.tensor([1, 0, 0, 1, 0])
    found = invert(classifier, generator, labels, how, seed=5)
    for k, count in ((0, 3), (1, 2)):
        best = logs[:, k].argsort(descending=True)[:count]
        assert torch.equal(found.latents[labels == k], drawn[best])
        assert len(found.latents[labels == k].unique(dim=0)) == count
    assert torch.allclose(found.images, generator(found.latents).detach())


def test_the_prior_has_no_unit_and_pulls():
    classifier, generator = smooth_classifier(), smooth_generator()
    loud = PublicGenerator(
        generator.network, LATENT, SHAPE, critic=nn.Sequential(generator.critic, Loud())
    )
    how = but(FULL, iterations=10, class_weight=0.0, prior_weight=1.0)

    def found(generator, how):
        return invert(classifier, generator, LABELS, how, seed=0)

    quiet = found(generator, how)
    assert torch.allclose(quiet.latents, found(loud, how).latents, atol=1e-5)
    # Without the normalisation and beside another term, the unit decides.
    raw = but(how, class_weight=1.0, normalise_prior=False)
    assert not torch.allclose(found(generator, raw).latents, found(loud, raw).latents, atol=1e-2)
    start = found(generator, but(how, iterations=0))
    lower = quiet.diagnostics["unnaturalness"] < start.diagnostics["unnaturalness"]
    assert lower.all()
    bare = smooth_generator(critic=False)
    assert float(found(bare, how).latents.norm()) < float(
        found(bare, but(how, iterations=0)).latents.norm()
    )


class Loud(nn.Module):
    def forward(self, x):
        return 1000 * x


def test_the_same_seed_gives_the_same_and_nothing_that_was_given_changes(digits):
    generator = digits_generator(digits.clean.images)
    classifier = digits.planted.copy()
    classifier.network.train()
    classifier.network.convs[0].weight.requires_grad_(False)

    def states():
        both = (*classifier.network.state_dict().values(), *generator.network.state_dict().values())
        flags = [parameter.requires_grad for parameter in classifier.network.parameters()]
        modes = [module.training for module in classifier.network.modules()]
        return [value.clone() for value in both], flags, modes

    before, labels = states(), torch.arange(10).repeat(2)
    around = torch.random.get_rng_state()
    how = but(FULL, iterations=6, batch_size=10, candidates=64)
    first = invert(classifier, generator, labels, how, seed=1)
    again = invert(classifier, generator, labels, how, seed=1)
    other = invert(classifier, generator, labels, how, seed=2)
    assert torch.equal(first.images, again.images) and torch.equal(first.latents, again.latents)
    assert not torch.equal(first.images, other.images)
    assert torch.equal(around, torch.random.get_rng_state())
    after = states()
    assert all(torch.equal(*pair) for pair in zip(before[0], after[0], strict=True))
    assert before[1:] == after[1:]
    assert all(parameter.grad is None for parameter in classifier.network.parameters())


@pytest.fixture(scope="module")
def searched(digits):
    """Plain inversion, one with more weight on the class, and the stabilised one."""
    generator = digits_generator(digits.clean.images)
    labels = torch.arange(10).repeat(4)
    plain = Inversion(
        iterations=40, learning_rate=0.02, candidates=0, input_weight=0, parameter_weight=0
    )
    settings = {
        "start": but(plain, iterations=0),
        "plain": but(plain, candidates=128),
        "weighty": but(plain, candidates=128, class_weight=300),
        "stabilised": but(
            plain, candidates=128, input_weight=1.0, parameter_weight=1.0, stability_every=1
        ),
        "unguided": plain,
    }
    return labels, {
        name: invert(digits.planted, generator, labels, how, seed=0)
        for name, how in settings.items()
    }


def test_an_independent_network_sees_more_of_the_classes_after_the_search(digits, searched):
    labels, found = searched

    def accuracy(name):
        with torch.no_grad(), digits.twin.evaluating():
            return float((digits.twin(found[name].images).argmax(1) == labels).float().mean())

    assert accuracy("start") < 0.3
    assert accuracy("unguided") > accuracy("start") + 0.3
    assert accuracy("stabilised") > 0.9  # from the best of a few candidates


def test_stabilised_samples_are_firmer_than_plain_ones_and_than_more_class_weight(digits, searched):
    _, found = searched

    def worst_case(images):
        with digits.planted.evaluating():
            with torch.no_grad():
                logits = digits.planted(images)
            how = InputStability(steps=5)
            shift = adversarial_shift(digits.planted, images, logits, how, draws())
            return float(divergences(logits, digits.planted(images + shift)).mean().detach())

    for other in ("plain", "weighty"):
        firm, loose = found["stabilised"], found[other]
        assert worst_case(firm.images) < 0.9 * worst_case(loose.images)
        for name in ("noise", "moved loss"):
            assert firm.diagnostics[name].mean() < 0.9 * loose.diagnostics[name].mean()
        apart = firm.diagnostics["confidence"].mean() - loose.diagnostics["confidence"].mean()
        assert abs(float(apart)) < 0.01


def test_the_record_and_the_parts_hold_what_was_done():
    classifier, generator = smooth_classifier(), smooth_generator()
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])
    parts, shares = [], []
    found = invert(
        classifier,
        generator,
        labels,
        but(FULL, iterations=10),
        seed=0,
        finished=lambda *part: parts.append(part),
        progress=lambda what, share: shares.append(share),
    )
    assert [number for number, _, _ in parts] == [0, 1, 2]
    for _, rows, part in parts:
        assert torch.equal(found.images[rows], part.images)
        assert torch.equal(found.latents[rows], part.latents)
        assert torch.equal(found.labels[rows], part.labels)
        for name, values in part.diagnostics.items():
            assert torch.equal(found.diagnostics[name][rows], values)
    assert torch.equal(found.labels, labels)
    assert shares == sorted(shares) and len(shares) == 30 and shares[-1] == 1.0
    with torch.no_grad():
        logits = classifier(found.images)
    assert torch.allclose(
        found.diagnostics["confidence"], logits.softmax(1)[torch.arange(9), labels], atol=1e-5
    )
    assert set(found.diagnostics["steps"].tolist()) == {10.0}
    record = msgspec.json.decode(msgspec.json.encode(found.record))
    assert record["batches"] == [len(rows) for _, rows, _ in parts]
    assert sum(record["shares"].values()) == pytest.approx(1)
    assert record["images per minute"] == pytest.approx(9 * 60 / record["seconds"])
    assert "parameter stability" in record["shares"]
    curves = {curve["name"]: curve for curve in record["curves"]}
    assert curves["class"]["x"] == list(range(10))
    assert curves["input stability"]["x"] == [4, 6, 8]  # 3 has no weight yet, odd ones are left out
    by_hand = sum(
        len(part.labels) * curve["y"][-1]
        for _, _, part in parts
        for curve in part.record["curves"]
        if curve["name"] == "class"
    )
    assert curves["class"]["y"][-1] == pytest.approx(by_hand / 9)


def test_a_universal_pattern_is_stamped_on_the_half_that_moves_the_weights():
    how = but(FULL, iterations=0, parameter=ParameterStability(length=0.05))

    def losses(pattern):
        found = invert(
            smooth_classifier(), smooth_generator(), LABELS, how, seed=0, pattern=pattern
        )
        return found.diagnostics["moved loss"]

    assert torch.equal(losses(None), losses(torch.zeros(SHAPE)))
    assert not torch.allclose(losses(None), losses(0.3 * torch.rand(SHAPE, generator=draws())))


def test_a_single_sample_is_found_without_parameter_stability():
    found = invert(smooth_classifier(), smooth_generator(), torch.tensor([1]), but(PLAIN), seed=0)
    assert found.images.shape == (1, *SHAPE) and "moved loss" not in found.diagnostics


@pytest.mark.parametrize(
    ("labels", "settings", "pattern", "message"),
    [
        (torch.tensor([0, 3]), {}, None, "labels go from 0 to 3.*3 classes"),
        (torch.tensor([-1, 0]), {}, None, "labels go from -1"),
        (torch.tensor([0.0, 1.0]), {}, None, "float32.*class index"),
        (torch.tensor([], dtype=torch.long), {}, None, "at least one"),
        (torch.tensor([1]), {}, None, "at least two, or parameter_weight 0"),
        (
            torch.zeros(6, dtype=torch.long),
            {"candidates": 5},
            None,
            "class 0 needs 6.*candidates 0",
        ),
        (LABELS, {}, torch.zeros(1, 5, 5), r"pattern has shape \(1, 5, 5\)"),
    ],
)
def test_what_cannot_be_inverted_is_refused(labels, settings, pattern, message):
    with pytest.raises(InputError, match=message):
        invert(
            smooth_classifier(),
            smooth_generator(),
            labels,
            but(FULL, **settings),
            seed=0,
            pattern=pattern,
        )


def test_a_search_that_leaves_all_numbers_is_refused():
    how = but(FULL, learning_rate=1e30, clip=float("inf"))
    with pytest.raises(InputError, match="smaller learning rate than 1e"):
        invert(smooth_classifier(), smooth_generator(critic=False), LABELS, how, seed=0)


def test_a_generator_of_another_size_is_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    classifier = Classifier(network, mean=0.5, std=0.2, input_size=(2, 2))
    with pytest.raises(InputError, match=r"5x5 and the network takes"):
        invert(classifier, smooth_generator(), LABELS, FULL, seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 5}, "batch_size is 5; expected an even number"),
        ({"batch_size": 2}, "4 or more"),
        ({"clip": 0.0}, "clip is 0.0"),
        ({"iterations": -1}, "iterations is -1"),
        ({"stability_every": 0}, "stability_every is 0"),
        ({"input_weight": -0.1}, "input_weight is -0.1"),
        ({"plain": 1.5}, "plain is 1.5; expected a share"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Inversion(**settings)
