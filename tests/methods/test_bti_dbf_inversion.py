"""The trigger generator: its start, its bound, its objective, and where it leads."""

import math

import pytest
import torch
import torch.nn.functional as F
from halves import SHAPE, back, batches, front, nearly
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar import networks
from bezoar.attacks import Blend
from bezoar.classifier import Classifier
from bezoar.demo import DIGITS_RECIPE
from bezoar.errors import InputError
from bezoar.methods.bti_dbf_decoupling import Decoupled, Decoupling, Half, decouple
from bezoar.methods.bti_dbf_generators import (
    GeneratorInversion,
    Pretraining,
    generator_optimizer,
)
from bezoar.methods.bti_dbf_inversion import Inverted, invert_generator, natural_spread, pretrain
from bezoar.methods.generated_trigger import size
from bezoar.networks.generators import drawn
from bezoar.networks.trigger_generators import PublishedGenerator, ResidualGenerator
from bezoar.training import fit

SIZES = [(1, 28, 28), (3, 32, 32), (3, 40, 24), (1, 8, 8)]


def draw(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def untrained(shape, seed=0):
    """A network for images of ``shape`` that nobody has trained."""
    network = drawn(lambda: networks.build("small-cnn", channels=shape[0], width=8), seed)
    return Classifier(network.eval(), mean=0.3, std=0.35).trace(shape)


def masked(classifier, mask=None, seed=0):
    """The classifier with a mask that was drawn, not learned."""
    split = classifier.split()
    with torch.no_grad():
        shape = split.front(torch.zeros(1, *classifier.input_shape)).shape
    mask = draw(*shape, seed=seed) if mask is None else mask
    half = Half(1.0, 0.0)
    return Decoupled(split, mask, 0 * mask, half, half, half, 1, False, classifier.num_classes)


@pytest.fixture(scope="module")
def planted(digits):
    """The digits network with the patch, a mask that was drawn, and 60 images."""
    classifier = digits.planted.copy().trace(digits.clean.shape)
    return classifier, masked(classifier), digits.clean.images[:60] / 255


# -- the start -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SIZES)
def test_the_residual_generator_starts_next_to_the_identity(shape):
    before = torch.random.get_rng_state()
    classifier, x = untrained(shape), draw(4, *shape)
    one, again, other = (GeneratorInversion(features=4).start(classifier, s) for s in (1, 1, 2))
    with torch.no_grad():
        assert torch.equal(one(x), again(x)) and not torch.equal(one(x), other(x))
        torch.testing.assert_close(one(x) - x, one.pattern.expand_as(x), atol=1e-6, rtol=0)
        assert 0 < size(x, one(x)).max() < 2e-3
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_published_generator_takes_normalised_images_of_its_sizes():
    how = GeneratorInversion(generator="published")
    made = how.start(untrained((1, 32, 32)), 0)
    assert isinstance(made, PublishedGenerator)
    assert made.normalisation == {"mean": [0.3], "std": [0.35]}
    for shape in ((1, 28, 28), (3, 40, 24), (1, 16, 16)):
        with pytest.raises(InputError, match=f"{shape[1]}x{shape[2]}"):
            how.start(untrained(shape), 0)


# -- the bound -------------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None, max_examples=20)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(4, 12), st.integers(4, 12)),
    strength=st.floats(0, 20),
    bound=st.floats(0.01, 1) | st.none(),
    seed=st.integers(0, 999),
)
def test_no_image_is_changed_beyond_the_bound(shape, strength, bound, seed):
    generator = drawn(lambda: ResidualGenerator(*shape, features=2, depth=1), seed)
    with torch.no_grad():
        for tensor in (generator.pattern, generator.unet.last.weight):
            tensor.copy_(strength * (draw(*tensor.shape, seed=seed) - 0.5))
        x = draw(3, *shape, seed=seed)
        stamped, made = Inverted(generator, bound).stamp(x), generator(x)
    assert stamped.shape == x.shape and stamped.min() >= 0 and stamped.max() <= 1
    if bound is None:
        torch.testing.assert_close(stamped, made.clamp(0, 1))
    else:
        assert (size(x, stamped) <= bound * (1 + 1e-5)).all()


@pytest.mark.parametrize("shape", SIZES)
def test_images_of_any_size_get_a_trigger_within_the_bound(shape):
    classifier, x = untrained(shape), draw(6, *shape)
    how = GeneratorInversion(steps=4, batch_size=4, features=4, bound=0.02, pattern_rate=0.1)
    found = invert_generator(classifier, masked(classifier), x, how, seed=0)
    stamped = found.stamp(x).detach()
    assert (size(x, found.generator(x).detach()) > 0.05).all(), "the bound must matter"
    assert (size(x, stamped) <= 0.02 * (1 + 1e-5)).all() and (size(x, stamped) > 0.01).all()
    assert (found.steps, found.bound, found.pulled_back) == (4, 0.02, 0)
    assert math.isfinite(sum(found.moved + found.benign))


# -- the objective, against a plain loop -----------------------------------------------------------


def blurred(x):
    return F.avg_pool2d(x, 3, 1, 1)


def plain_loop(classifier, decoupled, x, how, *, purify=None, target=None, avoid=None):
    """Eq. (2), image by image, for a residual generator on ``small-cnn``; seed 5."""
    network, m = classifier.network, decoupled.mask[0]
    g = how.start(classifier, 5)
    rest = [p for name, p in g.named_parameters() if name != "pattern"]
    optimizers = [torch.optim.Adam([g.pattern], lr=how.pattern_rate)]
    optimizers.append(torch.optim.Adam(rest, lr=how.learning_rate if how.features else 0.0))
    stream = batches(len(x), how.batch_size, torch.Generator().manual_seed(5))
    maps = front(network, x).detach()
    spread = sum((a - maps.mean(0)).norm() for a in maps) / len(maps)
    moved, benign, pulled = [], [], 0
    for _ in range(how.steps):
        rows = next(stream)
        images = x[rows]
        made = g(images)
        shown = []
        for image, new in zip(images, made, strict=True):
            change = new - image
            rms = change.pow(2).sum().div(change.numel()).sqrt()
            if how.constraint == "scaled" and rms > how.bound:
                change = change * how.bound / rms
            scaled = (image + change).clamp(0, 1)
            shown.append(scaled if how.constraint == "scaled" else new)
        seen = torch.stack(shown)
        new_maps = front(network, seen if purify is None else purify(seen))
        logits = back(network, new_maps)
        d_ben = d_bd = 0.0
        for a, b in zip(maps[rows], new_maps, strict=True):
            for_ben, for_bd = m * a - m * b, (1 - m) * a - (1 - m) * b
            if how.distance == "norm":
                d_ben, d_bd = d_ben + for_ben.pow(2).sum().sqrt(), d_bd + for_bd.pow(2).sum().sqrt()
            else:
                d_ben, d_bd = d_ben + for_ben.pow(2).mean(), d_bd + for_bd.pow(2).mean()
        d_ben, d_bd = d_ben / len(rows), d_bd / len(rows)
        loss = -d_bd + how.benign_weight * d_ben
        passed = made if purify is None else purify(made)  # Q(G(x)) stands for G(x) everywhere
        d_pix = ((passed - images) / 0.35).pow(2).mean()
        if how.constraint == "switch" and (d_pix > how.bound**2 or d_ben > how.benign_limit):
            loss, pulled = d_pix, pulled + 1
        if target is not None:
            loss = loss - how.target_weight * logits.log_softmax(1)[:, target].mean()
        if avoid is not None:
            for z, k in zip(logits, avoid[rows].tolist(), strict=True):
                others = torch.cat([z[:k], z[k + 1 :]]).max()
                loss = loss + spread * torch.relu(z[k] - others + 1) / len(rows)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        moved.append(float(d_bd.detach()))
        benign.append(float(d_ben.detach()))
    network.zero_grad()
    return g, moved, benign, pulled / how.steps


SCALED = {"constraint": "scaled", "bound": 0.04}
SWITCH = {"constraint": "switch", "bound": 0.15}
CASES = {
    "norm": {**SCALED, "distance": "norm", "benign_weight": 0.3},
    "mean square": {**SCALED, "distance": "mean square", "benign_weight": 0.01},
    "pattern alone": {**SCALED, "distance": "norm", "features": 0},
    "switch": {**SWITCH, "distance": "mean square", "benign_weight": 0.01},
    "switch of features": {**SWITCH, "distance": "norm", "bound": 9.0, "benign_limit": 2.0},
    "target": {**SCALED, "target_weight": 2.0},
    "target, switch": {**SWITCH, "target_weight": 2.0},
    "avoid": {**SCALED, "bound": 0.2},
    "purifier": SCALED,
    "purifier, switch": {**SWITCH, "bound": 0.65, "distance": "mean square"},
}


@pytest.mark.parametrize("case", CASES)
def test_the_steps_are_those_of_the_formula(case, planted):
    classifier, decoupled, x = planted
    how = GeneratorInversion(**{"features": 4, "steps": 8, "batch_size": 25, **CASES[case]})
    with_it = {
        "purify": blurred if "purifier" in case else None,
        "target": 7 if "target" in case else None,
        "avoid": torch.arange(len(x)) % 10 if case == "avoid" else None,
    }
    g, moved, benign, pulled = plain_loop(classifier, decoupled, x, how, **with_it)
    with_it["front"] = with_it.pop("purify")
    found = invert_generator(classifier, decoupled, x, how, seed=5, **with_it)
    assert found.moved == pytest.approx(moved, rel=1e-3)
    assert found.benign == pytest.approx(benign, rel=1e-3)
    assert (found.pulled_back, found.steps) == (pulled, 8)
    assert (0 < pulled < 1) == ("switch" in case), "the switch must be on and off"
    with torch.no_grad():
        assert (found.generator(x) - x).abs().max() > 0.02
        assert nearly(found.generator(x), g(x))
    assert found.as_record()["pulled back"] == pulled


@pytest.mark.parametrize("kind", ["avoid", "target", "purifier"])
def test_each_term_makes_a_difference(kind, planted):
    classifier, decoupled, x = planted
    how = GeneratorInversion(steps=6, batch_size=30, bound=0.2, target_weight=5.0)
    term = {
        "avoid": {"avoid": classifier(x).argmax(1)},
        "target": {"target": 7},
        "purifier": {"front": blurred},
    }[kind]
    without, with_it = (
        invert_generator(classifier, decoupled, x, how, seed=5, **given) for given in ({}, term)
    )
    with torch.no_grad():
        assert (without.stamp(x) - with_it.stamp(x)).abs().max() > 0.02


def test_the_switch_pulls_back_beyond_the_bound_and_only_then(planted):
    classifier, decoupled, x = planted
    common = {"constraint": "switch", "distance": "mean square", "steps": 6, "batch_size": 30}

    def run(bound, limit, pattern):
        how = GeneratorInversion(**common, features=0, bound=bound, benign_limit=limit)
        start = how.start(classifier, 0)
        with torch.no_grad():
            start.pattern.add_(pattern)
            before = float(size(x, start(x)).mean())
        found = invert_generator(classifier, decoupled, x, how, seed=0, start=start)
        assert found.bound is None
        return found.pulled_back, float(size(x, start(x).detach()).mean()) - before

    pulled, change = run(0.1, 1e9, pattern=0.5)
    assert pulled == 1 and change < -0.05, "far outside, it only comes back"
    pulled, change = run(100.0, 1e9, pattern=0.0)
    assert pulled == 0 and change > 0.05, "far inside, it only pushes"
    assert run(100.0, 0.0, pattern=0.5)[0] == 1, "so it does for benign features"


# -- what is trained, and what is not --------------------------------------------------------------


def test_the_classifier_keeps_its_flags_values_and_no_gradients(planted):
    classifier, decoupled, x = planted
    parameters = list(classifier.network.parameters())
    parameters[0].requires_grad_(False)
    flags = [p.requires_grad for p in parameters]
    state = {name: value.clone() for name, value in classifier.network.state_dict().items()}
    classifier.network.zero_grad(set_to_none=True)
    how = GeneratorInversion(steps=3, target_weight=1.0)

    def fail(_images):
        assert not any(p.requires_grad for p in parameters)
        raise RuntimeError("out of order")

    try:
        invert_generator(classifier, decoupled, x, how, seed=0, target=1)
        assert [p.requires_grad for p in parameters] == flags
        assert all(p.grad is None for p in parameters)
        with pytest.raises(RuntimeError, match="out of order"):
            invert_generator(classifier, decoupled, x, how, seed=0, front=fail)
        assert [p.requires_grad for p in parameters] == flags
    finally:
        parameters[0].requires_grad_(True)
    for name, value in classifier.network.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("features", [0, 4])
def test_without_features_the_pattern_alone_is_trained(features, planted):
    classifier, decoupled, x = planted
    how = GeneratorInversion(steps=4, features=features, pattern_rate=0.03)
    before = how.start(classifier, 0).state_dict()
    found = invert_generator(classifier, decoupled, x, how, seed=0)
    changed = {n for n, v in found.generator.state_dict().items() if not torch.equal(v, before[n])}
    assert "pattern" in changed
    assert ("planes" in changed, "unet.last.weight" in changed) == (features > 0, features > 0)
    assert (changed == {"pattern"}) == (features == 0)
    assert not found.generator.training


def test_a_generator_can_be_gone_on_with(planted):
    classifier, decoupled, x = planted
    how = GeneratorInversion(steps=3, batch_size=60)
    start = how.start(classifier, 0)
    adam = generator_optimizer(start, how)
    one = invert_generator(classifier, decoupled, x, how, seed=0, start=start, optimizer=adam)
    two = invert_generator(classifier, decoupled, x, how, seed=0, start=start, optimizer=adam)
    for found in (one, two):
        assert found.generator is not start and not found.generator.training
    patterns = [found.generator.pattern for found in (one, two)]
    assert not torch.equal(*patterns), "the later round has changed the earlier one's trigger"
    assert torch.equal(patterns[1], start.pattern)
    assert {int(state["step"]) for state in adam.state.values()} == {6}
    assert two.moved[0] > one.moved[-1]


def test_a_seed_repeats_it_even_behind_a_purifier_that_draws(planted):
    classifier, decoupled, x = planted
    how = GeneratorInversion(steps=3, batch_size=20, crop_padding=1, flip=True)
    before = torch.random.get_rng_state()
    one, again, other = (
        invert_generator(
            classifier, decoupled, x, how, seed=s, front=lambda z: z + 0.1 * torch.randn_like(z)
        )
        for s in (3, 3, 4)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one.stamp(x), again.stamp(x)) and one.moved == again.moved
    assert not torch.allclose(one.stamp(x), other.stamp(x), atol=1e-2)


def test_progress_goes_in_tenths_to_one_and_epochs_are_passes(planted):
    classifier, decoupled, x = planted
    told = []
    how = GeneratorInversion(steps=None, epochs=10, batch_size=32, features=0)
    found = invert_generator(
        classifier, decoupled, x, how, seed=0, progress=lambda _what, share: told.append(share)
    )
    assert found.steps == 20 and told == [i / 10 for i in range(1, 11)]
    assert len(found.moved) == len(found.benign) == 10


# -- where it leads --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blended(digits):
    """Digits with a faint noise over the whole image as their trigger (seed 11)."""
    attack = Blend(target=4, ratio=0.3)
    classifier = Classifier(drawn(lambda: networks.build("small-cnn"), 11), mean=0.3, std=0.35)
    fit(classifier, attack.poison(digits.train, 0.1, seed=11).images, DIGITS_RECIPE, seed=11)
    return classifier, attack


@pytest.mark.parametrize("features", [0, 8])
def test_the_trigger_carries_held_out_images_to_the_target(features, blended, digits):
    classifier, attack = blended
    settings_ = Decoupling(steps=40, learning_rate=0.1, sparsity=2.0)
    decoupled = decouple(classifier, digits.clean, None, settings_, seed=0)
    x, others = digits.clean.images / 255, digits.test.labels != 4
    held_out = (digits.test.images / 255)[others]
    how = GeneratorInversion(
        steps=70, features=features, bound=0.2, benign_weight=0.3, pattern_rate=0.02
    )
    found = invert_generator(classifier, decoupled, x, how, seed=0)
    with torch.no_grad():
        assert (classifier(attack.stamp(held_out)).argmax(1) == 4).float().mean() > 0.95
        assert (classifier(held_out).argmax(1) == 4).float().mean() < 0.05
        answers = classifier(found.stamp(held_out)).argmax(1)
        first = Inverted(how.start(classifier, 0), 0.2).stamp(x)
        away = decoupled.split.front(first) - decoupled.split.front(x)
        start = float(((1 - decoupled.mask) * away).flatten(1).norm(dim=1).mean())
    assert (answers == 4).float().mean() > 0.9
    assert found.moved[-1] > 10 * start
    assert (size(held_out, found.stamp(held_out).detach()) <= 0.2 * (1 + 1e-5)).all()


def test_an_avoided_class_is_not_where_it_leads(blended, digits):
    classifier, _ = blended
    decoupled = masked(classifier.trace(digits.clean.shape), mask=torch.zeros(1, *SHAPE))
    x = digits.clean.images / 255
    how = GeneratorInversion(steps=40, features=0, bound=0.2, pattern_rate=0.02)
    avoid = torch.full((len(x),), 4)
    free, kept = (
        invert_generator(classifier, decoupled, x, how, seed=0, avoid=a) for a in (None, avoid)
    )
    with torch.no_grad():
        before, led, avoided = (
            int((classifier(images).argmax(1) == 4).sum())
            for images in (x, free.stamp(x), kept.stamp(x))
        )
    assert led > 0.8 * len(x) and avoided <= before
    assert kept.moved[-1] > 3 * kept.moved[0], "it moves features elsewhere"


def test_the_natural_spread_is_the_mean_distance_from_the_mean_map(planted):
    classifier, decoupled, x = planted
    with torch.no_grad():
        maps = front(classifier.network, x)
        mean = sum(maps) / len(maps)
        plain = sum(float((a - mean).pow(2).sum().sqrt()) for a in maps) / len(maps)
    assert natural_spread(decoupled, x) == pytest.approx(plain, rel=1e-5)


# -- pre-training ----------------------------------------------------------------------------------


def test_pretraining_teaches_the_published_generator_the_identity():
    classifier = untrained((3, 32, 32))
    x = F.interpolate(draw(4, 3, 4, 4), size=32, mode="bilinear")
    how = GeneratorInversion(generator="published", batch_size=4, pretraining=Pretraining(epochs=8))
    told, flags = [], [p.requires_grad for p in classifier.network.parameters()]
    made = pretrain(
        classifier, classifier.split(), x, how, seed=0, progress=lambda _w, s: told.append(s)
    )
    with torch.no_grad():
        errors = [float(size(x, g(x)).mean()) for g in (how.start(classifier, 0), made)]
    assert errors[1] < 0.6 * errors[0]
    assert told[-1] == 1 and not made.training
    assert [p.requires_grad for p in classifier.network.parameters()] == flags
    assert all(p.grad is None for p in classifier.network.parameters())


@pytest.mark.parametrize("limit", [1e-4, 10.0])
def test_a_step_of_pretraining_is_that_of_the_formula(limit, planted):
    classifier, decoupled, x = planted
    pre = Pretraining(epochs=3, learning_rate=0.01, limit=limit, far=100.0, near=0.01)
    how = GeneratorInversion(features=4, batch_size=60, pretraining=pre)
    g = how.start(classifier, 0)
    adam = torch.optim.Adam(g.parameters(), lr=0.01)
    stream = batches(60, 60, torch.Generator().manual_seed(0))
    for _ in range(3):
        images = x[next(stream)]
        made = g(images)
        old, new = front(classifier.network, images), front(classifier.network, made)
        p, q = (back(classifier.network, maps).softmax(1) for maps in (old, new))
        pixels = ((made - images) / 0.35).pow(2).mean()
        loss = (p * (p / q).log()).sum(1).mean() + (old - new).pow(2).mean()
        loss = loss + (pre.far if pixels > limit else pre.near) * pixels
        adam.zero_grad()
        loss.backward()
        adam.step()
    classifier.network.zero_grad()
    made = pretrain(classifier, decoupled.split, x, how, seed=0)
    with torch.no_grad():
        assert (made(x) - x).abs().max() > 5e-3
        assert nearly(made(x), g(x))


# -- settings and bad input ------------------------------------------------------------------------


def test_published_is_what_the_official_code_does():
    how = GeneratorInversion.published()
    assert (how.generator, how.constraint, how.distance) == ("published", "switch", "mean square")
    assert how.bound**2 == pytest.approx(0.3) and how.benign_limit == 3
    assert (how.benign_weight, how.target_weight) == (0.01, 1)
    assert (how.steps, how.epochs, how.batch_size, how.learning_rate) == (None, 30, 128, 1e-3)
    pre = how.pretraining
    assert (pre.epochs, pre.learning_rate, pre.limit, pre.far, pre.near) == (
        50,
        1e-3,
        0.1,
        100,
        0.01,
    )
    assert (how.crop_padding, how.flip) == (4, False)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"epochs": 0},
        {"batch_size": 0},
        {"bound": 0.0},
        {"bound": 1.5},
        {"bound": math.nan},
        {"features": -1},
        {"benign_weight": -0.1},
        {"target_weight": -1.0},
        {"crop_padding": -1},
        {"learning_rate": 0.0},
        {"pattern_rate": 0.0},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        GeneratorInversion(**wrong)


def test_no_images_are_refused(planted):
    classifier, decoupled, x = planted
    with pytest.raises(InputError, match="no clean images"):
        invert_generator(classifier, decoupled, x[:0], GeneratorInversion(), seed=0)
