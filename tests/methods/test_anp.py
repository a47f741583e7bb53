import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods import ANP, anp, anp_masks
from bezoar.methods.anp import kept_units, up_to, walked_counts
from bezoar.methods.anp_masks import (
    MaskLearning,
    Masks,
    both_losses,
    learn_masks,
    random_start,
    worst_noise,
)
from bezoar.methods.clean_choice import accuracy_of
from bezoar.records import to_json
from bezoar.units import find_units

SHORT = MaskLearning(iterations=30, batch_size=64, epsilon=0.8)


@pytest.fixture(scope="module")
def pruned(digits):
    return ANP(masks=SHORT).remove(digits.planted, digits.clean, seed=0)


@pytest.fixture
def tiny():
    """(classifier, units, images, labels): float64, two norms, five classes."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(),
        nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.Tanh(),
        nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip
    for norm in (network[1], network[4]):
        norm.weight.data.uniform_(0.5, 1.5)
        norm.bias.data.uniform_(-1, 1)
    classifier = Classifier(network, mean=0.5, std=0.5, input_size=(6, 6))
    units = find_units(classifier)
    network.double().requires_grad_(False)
    images = torch.rand((6, 1, 6, 6), dtype=torch.float64)
    return classifier, units, images, torch.tensor([0, 1, 2, 3, 4, 0])


def by_hand(classifier, images, labels, scale, shift):
    """The loss of a network whose norms were multiplied, without any machinery."""
    network = copy.deepcopy(classifier.network)
    for norm, part in ((network[1], slice(0, 4)), (network[4], slice(4, 7))):
        norm.weight.data *= scale[part]
        norm.bias.data *= shift[part]
    return F.cross_entropy(network((images - 0.5) / 0.5), labels)


def state(classifier):
    return {name: value.clone() for name, value in classifier.network.state_dict().items()}


# -- the formulas ----------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_the_losses_are_those_of_the_network_with_changed_weights(tiny, training):
    classifier, units, images, labels = tiny
    classifier.network.train(training)
    masks = torch.rand(7, dtype=torch.float64)
    noise = 0.4 * (2 * torch.rand((2, 7), dtype=torch.float64) - 1)
    plain, perturbed = both_losses(classifier, units, images, labels, masks, noise)
    one = torch.ones(7, dtype=torch.float64)
    torch.testing.assert_close(plain, by_hand(classifier, images, labels, masks, one))
    torch.testing.assert_close(
        perturbed, by_hand(classifier, images, labels, masks + noise[0], 1 + noise[1])
    )


def test_the_gradient_of_the_masks_is_that_of_finite_differences(tiny):
    classifier, units, images, labels = tiny
    classifier.network.train()
    noise = 0.4 * (2 * torch.rand((2, 7), dtype=torch.float64) - 1)

    def objective(masks):
        plain, perturbed = both_losses(classifier, units, images, labels, masks, noise)
        return 0.2 * plain + 0.8 * perturbed

    masks = torch.rand(7, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(objective(masks), masks)
    step = 1e-6 * torch.eye(7, dtype=torch.float64)
    with torch.no_grad():
        differences = [float(objective(masks + d) - objective(masks - d)) / 2e-6 for d in step]
    assert gradient.tolist() == pytest.approx(differences, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("steps", "projected"), [(1, False), (1, True), (3, False), (3, True)])
def test_the_inner_steps_are_those_of_plain_code(tiny, steps, projected):
    classifier, units, images, labels = tiny
    classifier.network.train()
    settings = MaskLearning(epsilon=0.4, steps=steps, projected=projected)
    masks = torch.rand(7, dtype=torch.float64)
    start = random_start(7, 0.4, torch.Generator().manual_seed(0)).double()
    found = worst_noise(classifier, units, images, labels, masks, start, settings)
    expected = start.clone()
    for _ in range(steps):
        gradient = torch.zeros_like(expected)
        for kind in range(2):
            for unit in range(7):
                losses = []
                for sign in (1, -1):
                    moved = expected.clone()
                    moved[kind, unit] += sign * 1e-6
                    losses.append(
                        by_hand(classifier, images, labels, masks + moved[0], 1 + moved[1])
                    )
                gradient[kind, unit] = losses[0] - losses[1]
        expected = expected + 0.4 / steps * gradient.sign()
        if projected:
            expected = expected.clamp(-0.4, 0.4)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    assert (found.abs() > 0.4 + 1e-12).any() != projected


def test_the_noise_raises_the_loss(tiny):
    classifier, units, images, labels = tiny
    classifier.network.eval()
    masks, start = torch.ones(7, dtype=torch.float64), torch.zeros((2, 7), dtype=torch.float64)
    settings = MaskLearning(epsilon=0.1, steps=5)
    worst = worst_noise(classifier, units, images, labels, masks, start, settings)
    plain, perturbed = both_losses(classifier, units, images, labels, masks, worst)
    assert perturbed > plain + 0.003


def test_no_perturbation_with_epsilon_zero(tiny):
    classifier, units, images, labels = tiny
    start = torch.zeros((2, 7), dtype=torch.float64)
    settings = MaskLearning(epsilon=0.0)
    masks = torch.ones(7, dtype=torch.float64)
    assert not worst_noise(classifier, units, images, labels, masks, start, settings).any()


def test_the_start_fills_the_range():
    start = random_start(5000, 0.4, torch.Generator().manual_seed(0))
    assert start.shape == (2, 5000)
    assert -0.4 <= start.min() < -0.39 and 0.39 < start.max() <= 0.4
    assert abs(float(start.mean())) < 0.02


# -- the masks -------------------------------------------------------------------------------------


def test_masks_stay_within_zero_and_one_and_the_network_as_it_is(digits):
    before = state(digits.planted)
    units = find_units(digits.planted, digits.clean.shape)
    settings = MaskLearning(iterations=12, learning_rate=3.0, epsilon=0.8)
    masks = learn_masks(digits.planted, units, digits.clean, settings, seed=0)
    assert masks.values.min() == 0 and masks.values.max() == 1, "nothing had to be clipped"
    after = state(digits.planted)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(masks.plain) == len(masks.perturbed) == 12
    zero = masks.values == 0
    assert (masks.reached_zero[zero] <= 12).all() and (masks.reached_zero >= 1).all()


def test_running_statistics_do_not_drift_through_the_perturbed_passes(digits, monkeypatch):
    seen = []
    plain = anp_masks.both_losses

    def watched(classifier, *given):
        norms = [m for m in classifier.network.modules() if isinstance(m, nn.BatchNorm2d)]
        assert all(norm.training for norm in norms)
        losses = plain(classifier, *given)
        seen.append(torch.cat([norm.running_mean for norm in norms]).clone())
        return losses

    monkeypatch.setattr(anp_masks, "both_losses", watched)
    units = find_units(digits.planted, digits.clean.shape)
    settings = MaskLearning(iterations=3)
    learn_masks(digits.planted, units, digits.clean, settings, seed=0)
    original = torch.cat([norm.running_mean for norm in digits.planted.network.norms])
    assert len(seen) == 3 and all(torch.equal(means, original) for means in seen)


def test_without_noise_a_step_is_plain_gradient_descent_with_momentum(digits):
    few = digits.clean.subset(range(40))
    units = find_units(digits.planted, few.shape)
    settings = MaskLearning(
        iterations=3, batch_size=40, epsilon=0.0, trade_off=1.0, learning_rate=0.05
    )
    found = learn_masks(digits.planted, units, few, settings, seed=0).values
    twin = digits.planted.copy()
    twin.network.train()
    masks, velocity = torch.ones(len(units)), torch.zeros(len(units))
    for _ in range(3):
        masks.requires_grad_()
        logits = units.logits(twin, few.images.float() / 255, masks)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, few.labels), masks)
        velocity = 0.9 * velocity + gradient
        masks = (masks.detach() - 0.05 * velocity).clamp(0, 1)
    torch.testing.assert_close(found, masks, atol=1e-5, rtol=0)


def test_a_loss_that_is_not_finite_is_told(digits):
    broken = digits.planted.copy()
    units = find_units(broken, digits.clean.shape)
    with torch.no_grad():
        broken.network.fc.weight.fill_(torch.nan)
    with pytest.raises(InputError, match="ANP's masks diverged"):
        learn_masks(broken, units, digits.clean, MaskLearning(iterations=2), seed=0)


# -- the pruning -----------------------------------------------------------------------------------

MASKS = Masks(torch.tensor([0.5, 0.0, 1.0, 0.2, 0.0, 0.9]), torch.tensor([31, 9, 31, 31, 4, 31]))


def test_units_go_by_mask_and_those_at_zero_in_the_order_of_reaching_it():
    assert MASKS.order() == [4, 1, 3, 0, 5, 2]
    assert kept_units(MASKS, 0).tolist() == [1] * 6
    assert kept_units(MASKS, 1).tolist() == [1, 1, 1, 1, 0, 1]
    assert kept_units(MASKS, 3).tolist() == [1, 0, 1, 0, 0, 1]


def test_a_threshold_takes_masks_up_to_it():
    assert [up_to(MASKS, t) for t in (0.0, 0.19, 0.2, 0.5, 0.9)] == [2, 2, 3, 4, 5]


def test_the_walk_goes_unit_by_unit_leaves_masks_of_one_and_never_takes_all():
    assert walked_counts(MASKS) == [0, 1, 2, 3, 4, 5]
    ones, zeros = torch.ones(6), torch.zeros(6)
    assert walked_counts(Masks(ones, ones)) == [0]
    assert walked_counts(Masks(zeros, ones)) == [0, 1, 2, 3, 4, 5]
    many = walked_counts(Masks(torch.zeros(1000), torch.ones(1000)))
    assert many[:33] == list(range(33)) and many[33] == 34 and many[-1] == 999
    assert len(many) < 120


def test_pruned_units_are_exact_zeros_and_all_else_stays_to_the_bit(digits, pruned):
    before, after = state(digits.planted), state(pruned.classifier)
    names = pruned.record["pruning"]["pruned"]
    assert len(names) == pruned.record["pruning"]["count"] > 0
    for name in names:
        site, _, index = name.removesuffix("]").partition("[")
        before[f"{site}.weight"][int(index)] = 0.0
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_held_out_images_choose_and_have_no_part_in_the_masks(digits, pruned, monkeypatch):
    fitted, held_out = digits.clean.split(0.7, seed=0)
    record = pruned.record["pruning"]
    assert record["floor"] == pytest.approx(accuracy_of(digits.planted, held_out) - 0.05)
    after = accuracy_of(pruned.classifier, held_out)
    assert record["held_out_after"] == pytest.approx(after) and after >= record["floor"] - 1e-9
    given = []
    plain = anp.learn_masks

    def watched(classifier, units, clean, *rest, **options):
        given.append(clean.sha256())
        return plain(classifier, units, clean, *rest, **options)

    monkeypatch.setattr(anp, "learn_masks", watched)
    quick = MaskLearning(iterations=1)
    ANP(masks=quick).remove(digits.planted, digits.clean, seed=0)
    ANP(masks=quick, threshold=0.2).remove(digits.planted, digits.clean, seed=0)
    assert given == [fitted.sha256(), digits.clean.sha256()]


def test_a_fixed_threshold_prunes_every_mask_up_to_it(digits, monkeypatch):
    n = len(find_units(digits.planted, digits.clean.shape))
    values = torch.linspace(0, 1, n)
    monkeypatch.setattr(
        anp, "learn_masks", lambda *_, **__: Masks(values, torch.full((n,), 9), [1.0], [2.0])
    )
    repair = ANP(threshold=0.2).remove(digits.planted, digits.clean)
    assert repair.record["pruning"]["count"] == int((values <= 0.2).sum()) == 32
    assert repair.record["pruning"]["held_out_after"] is None
    assert repair.record["flags"] == [
        "The threshold was given, so no held-out image says what it costs."
    ]
    names = [name for name, _ in repair.alternatives()]
    assert names == [f"threshold {t / 100:.2f}" for t in range(5, 95, 5) if t != 20]
    for name, other in repair.alternatives():
        zeros = sum(int((norm.weight == 0).sum()) for norm in other.network.norms)
        assert zeros == int((values <= float(name.split()[1])).sum())


def test_where_nothing_is_pruned_that_is_said(digits):
    method = ANP(masks=MaskLearning(iterations=1, learning_rate=1e-6), threshold=0.0)
    repair = method.remove(digits.planted, digits.clean)
    assert repair.record["flags"][0] == "Nothing was pruned: no mask fell to 0."
    before, after = state(digits.planted), state(repair.classifier)
    assert all(torch.equal(before[name], after[name]) for name in before)


# -- settings and the record -----------------------------------------------------------------------


def test_the_published_settings_are_those_of_the_official_code():
    published = ANP.published()
    masks = published.masks
    assert (masks.epsilon, masks.steps, masks.projected, masks.trade_off) == (0.4, 1, False, 0.2)
    assert (masks.learning_rate, masks.momentum) == (0.2, 0.9)
    assert (masks.iterations, masks.batch_size) == (2000, 128)
    assert (masks.crop_padding, masks.flip) == (4, True)
    assert (published.sites, published.threshold) == ("norm", 0.2)


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (ANP, {"held_out": 0.0}, "held_out is 0.0; expected a share between 0 and 1"),
        (ANP, {"max_drop": 1.5}, r"max_drop is 1.5; expected a value in \[0, 1\]"),
        (ANP, {"threshold": -0.2}, "threshold is -0.2"),
        (MaskLearning, {"iterations": 0}, "iterations is 0; expected at least 1"),
        (MaskLearning, {"batch_size": 1}, "batch_size is 1; expected at least 2"),
        (MaskLearning, {"epsilon": -0.1}, "epsilon is -0.1"),
        (MaskLearning, {"trade_off": 1.2}, "trade_off is 1.2; expected a share"),
        (MaskLearning, {"momentum": 1.0}, "momentum 1.0"),
        (MaskLearning, {"learning_rate": 0.0}, "learning_rate is 0.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(kind, wrong, message):
    with pytest.raises(InputError, match=message):
        kind(**wrong)


def test_what_cannot_work_is_refused_before_the_work(digits, monkeypatch):
    monkeypatch.setattr(anp, "learn_masks", lambda *_: pytest.fail("it began to learn masks"))
    with pytest.raises(InputError, match="has no units of the kinds heads"):
        ANP(sites="heads").remove(digits.planted, digits.clean)
    with pytest.raises(InputError, match="ANP needs images to learn masks on and others"):
        ANP().remove(digits.planted, digits.clean.subset([0, 1]))
    with pytest.raises(InputError, match="ANP needs labelled images"):
        ANP().remove(digits.planted, ImageSet(digits.clean.images))


def test_the_record_is_plain_json(pruned):
    record = json.loads(json.dumps(to_json(pruned.record), allow_nan=False))
    assert record["units"] == 160 and [site[2] for site in record["unit_sites"]] == [32, 64, 64]
    assert record["masks"]["zero"] <= record["masks"]["at most 0.2"] <= record["masks"]["below 1"]
    curves = {curve["name"]: curve for curve in record["curves"]}
    assert len(curves["loss"]["y"]) == 30
    assert len(curves["loss under the worst perturbation"]["x"]) == 30
    walked = curves["held-out accuracy while pruning"]
    assert walked["x"][0] == 0 and record["pruning"]["count"] in walked["x"]
