"""TAC: its formulas against slow plain versions, its finding on the digits."""

import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from few_images import first_of_each
from torch import nn

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods import TAC
from bezoar.methods import tac as tac_module
from bezoar.methods.distilling import divergence
from bezoar.methods.tac import carried_shares, log_lengths
from bezoar.methods.tac_removal import Push, not_target, project_out, pushed_loss
from bezoar.methods.tac_solver import right_hand_sides, solve_minimal_shifts
from bezoar.records import to_json
from bezoar.training import History, Recipe

SHORT = Recipe(epochs=2, batch_size=64, learning_rate=0.005)
EXACT = TAC(quantile=None)  # eq. (1) as it stands: every image counts


def shortest_shifts(logits, weight):
    return solve_minimal_shifts(weight, right_hand_sides(logits))


def linear(weight, bias=None, *, side=1):
    """A classifier that is nothing but its head, over images of 1 x side x features pixels."""
    rows = torch.tensor(weight, dtype=torch.float32)
    network = nn.Sequential(nn.Flatten(), nn.Linear(rows.shape[1], len(rows)))
    with torch.no_grad():
        network[1].weight.copy_(rows)
        network[1].bias.copy_(torch.tensor(bias or [0.0] * len(rows)))
    return Classifier(network, mean=0.0, std=1.0)


# -- finding ---------------------------------------------------------------------------------------


def test_the_planted_class_comes_first_and_the_twin_has_none(digits):
    planted = TAC().inspect(digits.planted, digits.clean)
    assert planted.p_values.index(min(planted.p_values)) == digits.attack.target
    assert planted.values.index(min(planted.values)) == digits.attack.target
    assert planted.p_values[digits.attack.target] <= 0.01
    assert planted.carried[digits.attack.target] >= 0.8
    twin = TAC().inspect(digits.twin, digits.clean)
    assert min(twin.p_values) > 0.05


def test_finding_needs_no_labels(digits):
    labelled = TAC().inspect(digits.planted, digits.clean, seed=2)
    bare = TAC().inspect(digits.planted, ImageSet(digits.clean.images), seed=2)
    wrong = ImageSet(digits.clean.images, digits.clean.labels.flip(0))
    assert bare.values == labelled.values == TAC().inspect(digits.planted, wrong, seed=2).values
    assert bare.p_values == labelled.p_values
    assert bare.carried[digits.attack.target] >= 0.8  # of other images, divided without labels


def test_the_shift_it_reports_is_made_from_four_fifths_and_tried_on_the_rest(digits):
    evidence = EXACT.inspect(digits.planted, digits.clean, seed=5)
    default = TAC().inspect(digits.planted, digits.clean, seed=5)
    assert torch.equal(default.perturbations, evidence.perturbations)
    assert (np.array(default.values) < np.array(evidence.values)).all()
    known, rest = digits.clean.split(0.8, seed=5)
    logits, others = (digits.planted.logits(part).double() for part in (known, rest))
    weight = digits.planted.head.weight.double()
    for k, shift in enumerate(evidence.perturbations.double()):
        moved = logits + weight @ shift
        assert bool((moved[:, k] >= moved.amax(1) - 1e-3).all())
        shorter = logits + weight @ (0.98 * shift)
        assert not bool((shorter[:, k] >= shorter.amax(1) - 1e-6).all())
        elsewhere = others.argmax(1) != k
        inside = (others + weight @ shift)[elsewhere]
        share = float((inside[:, k] >= inside.amax(1) - 1e-4).double().mean())
        assert evidence.carried[k] == pytest.approx(share, abs=0.02)
    assert min(evidence.carried) < 1.0, "the rest took no part"


def test_where_no_image_is_left_nothing_is_said_to_be_carried(digits):
    one_each = first_of_each(digits.clean, 1)
    assert TAC().inspect(digits.planted, one_each).carried is None


def test_a_shift_of_the_features_is_what_the_network_would_compute(digits):
    """The logits it works with are those of the real network with the shift at the head."""
    evidence = EXACT.inspect(digits.planted, digits.clean)
    shift = evidence.perturbations[4]
    batch, _ = next(digits.clean.batches(32))
    with digits.planted.evaluating(), torch.no_grad():
        moved = digits.planted.logits_with_shift(batch, shift)
        plain = digits.planted(batch) + digits.planted.head.weight @ shift
    assert torch.allclose(moved, plain, atol=1e-4)


def test_the_variants_of_the_right_hand_side_are_never_longer_than_the_full_one(digits):
    def lengths(**settings):
        return np.array(TAC(**settings).inspect(digits.planted, digits.clean).values)

    full = lengths(right_hand_side="full", quantile=None)
    conditional = lengths(right_hand_side="conditional", quantile=None)
    quantile = lengths(quantile=0.9)
    assert np.array_equal(full, lengths(quantile=None))
    assert np.array_equal(quantile, lengths())
    assert (conditional <= full * (1 + 1e-9)).all()
    assert (quantile < conditional).all()
    assert np.allclose(lengths(quantile=1.0), conditional)


def test_the_record_says_what_was_done(digits):
    evidence = TAC(quantile=0.9).inspect(digits.planted, digits.clean)
    record = json.loads(json.dumps(to_json(evidence.record), allow_nan=False))
    assert record["configuration"]["quantile"] == 0.9
    assert "0.9 quantile" in record["right_hand_side"]
    assert sum(record["predicted_images"]) == len(digits.clean)
    assert record["kkt_residual"] < 1e-6
    assert record["norms"] == list(evidence.values)


def test_a_class_that_nothing_reaches_takes_no_part():
    # Class 4 lies in the middle of the others: its row is their mean, and its logit is lower.
    classifier = linear(
        [[4.0, 0], [-4, 0], [0, 4], [0, -4], [0, 0]], bias=[0.0, 0.0, 0.0, 0.0, -3.0]
    )
    pixels = torch.tensor([[255, 0], [0, 255], [200, 90], [80, 220]], dtype=torch.uint8)
    images = ImageSet(pixels.view(4, 1, 1, 2), torch.tensor([0, 2, 0, 2]))
    evidence = TAC().inspect(classifier, images)
    assert evidence.values[4] == math.inf and evidence.p_values[4] == 1.0
    assert math.isnan(evidence.scores[4])
    assert all(math.isfinite(value) for value in evidence.values[:4])
    with pytest.raises(InputError, match=r"no shift of the features .* into class 4"):
        TAC(target_class=4, recipe=SHORT).remove(classifier, images)


def test_log_lengths_leave_out_what_has_no_logarithm():
    solution = SimpleNamespace(norms=torch.tensor([1.0, math.e, 0.0, math.inf]).double())
    assert log_lengths(solution) == pytest.approx([0.0, 1.0, math.inf, math.inf], abs=1e-7)


def test_carried_shares_agree_with_a_plain_loop():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(50, 6, generator=generator)
    pushes = 3 * torch.randn(6, 6, generator=generator)
    wanted = []
    for k in range(6):
        others = [row for row in logits if int(row.argmax()) != k]
        carried = sum(int((row + pushes[k]).argmax()) == k for row in others)
        wanted.append(carried / len(others))
    assert 0 < min(wanted) + max(wanted) < 2, "the example would prove little"
    assert carried_shares(logits, pushes).tolist() == pytest.approx(wanted)


def test_a_tie_counts_as_carried_and_a_class_with_all_images_as_reached():
    logits = torch.tensor([[2.0, 0.0, 0.0], [3.0, 1.0, 1.0]])
    exactly = torch.tensor([[0.0, 0, 0], [-1, 1, 0], [0, 0, 1.999]])
    assert carried_shares(logits, exactly).tolist() == [1.0, 1.0, 0.0]


# -- the loss --------------------------------------------------------------------------------------


def log_softmax(row, temperature=1.0):
    row = [value / temperature for value in row]
    top = max(row)
    return [value - top - math.log(sum(math.exp(other - top) for other in row)) for value in row]


def plain_divergence(logits, wanted, temperature):
    p, q = log_softmax(wanted, temperature), log_softmax(logits, temperature)
    return temperature**2 * sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))


def plain_loss(settings, classifier, original, images, labels, shift, shares, target):
    """Eq. (3) with its switches, image by image, from features and head alone."""
    weight, bias = (tensor.double().numpy() for tensor in classifier.head)
    features = classifier.features(images).detach().double().numpy()
    wanted = original(images).detach().double().tolist()

    def logits(i, share):
        return (weight @ (features[i] + share * shift.double().numpy()) + bias).tolist()

    def answers_right(row, i):
        soft = plain_divergence(row, wanted[i], settings.temperature)
        truth = -log_softmax(row)[labels[i]]
        return (1 - settings.distillation) * truth + settings.distillation * soft

    count = len(labels)
    plain = sum(answers_right(logits(i, 0.0), i) for i in range(count)) / count
    if settings.pushed == "label":
        pushed = sum(answers_right(logits(i, shares[i]), i) for i in range(count)) / count
    else:
        others = [i for i in range(count) if labels[i] != target]
        shares_of_target = [math.exp(log_softmax(logits(i, shares[i]))[target]) for i in others]
        pushed = sum(-math.log(1 - share) for share in shares_of_target) / len(others)
    total = plain + settings.beta * pushed
    return total / (1 + settings.beta) if settings.weighting == "mean" else total


SWITCHES = list(
    itertools.product(
        [0.0, 2.5], ["sum", "mean"], ["full", "uniform"], [0.0, 0.4, 1.0], ["label", "not target"]
    )
)


@pytest.mark.parametrize(("beta", "weighting", "shift_scale", "distillation", "pushed"), SWITCHES)
def test_the_loss_agrees_with_a_slow_plain_version(
    beta, weighting, shift_scale, distillation, pushed, digits
):
    settings = TAC(
        beta=beta,
        weighting=weighting,
        shift_scale=shift_scale,
        distillation=distillation,
        pushed=pushed,
        temperature=3.0,
    )
    shift = 2 * torch.randn(64, generator=torch.Generator().manual_seed(1))
    some = [*torch.nonzero(digits.clean.labels == 4).flatten()[:2].tolist(), 0, 1, 2, 3, 4, 5, 6]
    images, labels = next(digits.clean.subset(some).batches(9))
    assert 2 <= int((labels == 4).sum()) < 9
    shares = [1.0] * 9
    if shift_scale == "uniform":
        shares = torch.rand(9, 1, generator=torch.Generator().manual_seed(7)).flatten().tolist()
    trained, original = digits.twin, digits.planted  # two networks, so that no term is zero
    push = Push(trained, digits.clean, 4, shift, shortest_shifts)
    loss = pushed_loss(settings, original, push)
    with trained.evaluating(), original.evaluating():
        measured = loss(trained, images, labels, torch.Generator().manual_seed(7))
        wanted = plain_loss(
            settings, trained, original, images, labels.tolist(), shift, shares, target=4
        )
    assert measured.item() == pytest.approx(wanted, rel=1e-4)


def test_only_images_of_other_classes_are_kept_from_the_target():
    logits = torch.tensor([[0.0, 50.0, 0.0], [0.0, 0.0, 0.0]])
    assert not_target(logits, torch.tensor([1, 1]), 1).item() == 0.0
    assert not_target(logits, torch.tensor([1, 0]), 1).item() == pytest.approx(math.log(1.5))
    # -log(1 - P) is 50 - log 2 here, and 1 - P is 0 in float32.
    assert not_target(logits, torch.tensor([0, 1]), 1).item() == pytest.approx(50 - math.log(2))


def test_the_loss_trains_the_network_and_not_the_original(digits):
    trained, original = digits.twin.copy(), digits.planted.copy()
    images, labels = next(digits.clean.batches(9))
    push = Push(trained, digits.clean, 4, torch.ones(64), shortest_shifts)
    value = pushed_loss(TAC(distillation=0.5), original, push)(
        trained, images, labels, torch.Generator()
    )
    value.backward()
    assert all(parameter.grad is not None for parameter in trained.network.parameters())
    assert all(parameter.grad is None for parameter in original.network.parameters())


def test_the_divergence_has_its_closed_form():
    # Two classes: p = sigmoid(2 / T) against q = 1/2.
    for temperature in (1.0, 2.0):
        p = 1 / (1 + math.exp(-2 / temperature))
        wanted = temperature**2 * (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)))
        measured = divergence(torch.zeros(3, 2), torch.tensor([[2.0, 0.0]] * 3), temperature)
        assert measured.item() == pytest.approx(wanted, rel=1e-6)
    same = torch.randn(5, 7)
    assert divergence(same, same + 3.0, 2.0).item() == pytest.approx(0.0, abs=1e-6)
    assert divergence(same, same.flip(1), 2.0).item() > 0.1


# -- removing --------------------------------------------------------------------------------------


@pytest.fixture
def fitted(monkeypatch):
    """Replaces the training: keeps what ``fit`` was given."""
    given = SimpleNamespace()

    def fit(classifier, images, recipe, **options):
        given.classifier, given.images, given.recipe = classifier, images, recipe
        given.options = options
        return History(loss=[0.0] * recipe.epochs)

    monkeypatch.setattr(tac_module, "fit", fit)
    return given


def trained_names(given):
    wanted = {id(parameter) for parameter in given.options["parameters"]}
    return {n for n, p in given.classifier.network.named_parameters() if id(p) in wanted}


@pytest.mark.parametrize("parameters", ["all", "head", "features"])
def test_what_trains_can_be_chosen(parameters, digits, fitted):
    TAC(parameters=parameters).remove(digits.planted, digits.clean)
    names = {name for name, _ in digits.planted.network.named_parameters()}
    head = {"fc.weight", "fc.bias"}
    wanted = {"all": names, "head": head, "features": names - head}[parameters]
    assert trained_names(fitted) == wanted


@pytest.mark.parametrize("project", [True, False])
def test_the_head_can_lose_the_direction_of_the_shift(project, digits, fitted):
    repair = TAC(quantile=None, project_head=project, target_class=4).remove(
        digits.planted, digits.clean
    )
    logits, weight = digits.planted.logits(digits.clean), digits.planted.head.weight
    shift = shortest_shifts(logits, weight).shifts[4].float()
    along = repair.classifier.head.weight @ shift / shift.norm()
    assert (float(along.abs().max()) < 1e-5) == project
    if project:
        before = digits.planted.head.weight
        gone = before - repair.classifier.head.weight
        assert torch.linalg.matrix_rank(gone, tol=1e-4) == 1
    else:
        assert torch.equal(repair.classifier.head.weight, digits.planted.head.weight)


def test_a_convolutional_head_loses_it_too_and_no_shift_takes_nothing():
    head = nn.Conv2d(6, 4, 1)
    network = nn.Sequential(nn.Conv2d(1, 6, 3), head, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier = Classifier(network, mean=0.0, std=1.0).trace((1, 8, 8))
    before, shift = head.weight.detach().clone(), torch.randn(6)
    project_out(classifier, torch.zeros(6))
    assert torch.equal(head.weight, before)
    project_out(classifier, shift)
    assert float((classifier.head.weight @ shift).abs().max()) < 1e-5
    assert head.weight.shape == before.shape


def test_without_a_class_the_one_with_the_shortest_shift_is_removed(digits, fitted):
    record = EXACT.remove(digits.planted, digits.clean).record
    assert record["target_class"] == digits.attack.target
    assert record["shift_norm"] == pytest.approx(min(record["norms"]), rel=1e-5)
    other = TAC(target_class=7).remove(digits.planted, digits.clean).record
    assert other["target_class"] == 7
    assert other["shift_norm"] == pytest.approx(record["norms"][7], rel=1e-5)


@pytest.mark.parametrize("target", [-1, 10])
def test_a_class_the_network_does_not_have_is_refused(target, digits, fitted):
    with pytest.raises(InputError, match=f"target_class is {target} and the network has 10"):
        TAC(target_class=target).remove(digits.planted, digits.clean)
    assert not hasattr(fitted, "classifier"), "before the training"


def test_only_augmentation_that_the_network_tolerates_is_used(digits, fitted):
    record = TAC().remove(digits.planted, digits.clean).record
    assert not fitted.recipe.flip, "mirrored digits are other digits"
    assert record["recipe"]["flip"] is False
    symmetric = linear([[1.0, 1.0], [-1.0, -1.0]], bias=[-1.0, 1.0])
    pixels = torch.tensor([[250, 200], [10, 40], [220, 210], [0, 30]], dtype=torch.uint8)
    images = ImageSet(pixels.view(4, 1, 1, 2), torch.tensor([0, 1, 0, 1]))
    TAC(target_class=0).remove(symmetric, images)
    assert fitted.recipe.flip, "this network answers mirrored images alike"
    wanted = Recipe(epochs=1, flip=True)
    TAC(augment="recipe", recipe=wanted).remove(digits.planted, digits.clean)
    assert fitted.recipe == wanted


def test_the_shift_follows_the_network_only_when_it_shall(digits):
    following = TAC(recipe=SHORT).remove(digits.planted, digits.clean).record
    fixed = TAC(recipe=SHORT, recompute=False).remove(digits.planted, digits.clean).record
    assert len(following["renewed_norms"]) == 1
    assert following["renewed_norms"][0] != following["shift_norm"]
    assert fixed["renewed_norms"] == []


def test_a_renewed_shift_is_cut_to_the_length_of_the_other_classes(digits):
    evidence = EXACT.inspect(digits.planted, digits.clean)
    shifts = shortest_shifts(
        digits.planted.logits(digits.clean), digits.planted.head.weight
    ).shifts.float()
    hardest = max(range(10), key=lambda k: evidence.values[k])
    push = Push(digits.planted, digits.clean, hardest, torch.zeros(64), shortest_shifts)
    push.renew(0)
    assert push.norms == [] and float(push.shift.norm()) == 0
    push.renew(1)
    others = sorted(value for k, value in enumerate(evidence.values) if k != hardest)
    assert float(push.shift.norm()) == pytest.approx(others[4], rel=1e-5)  # the median of nine
    full = shifts[hardest]
    assert torch.allclose(push.shift / push.shift.norm(), full / full.norm(), atol=1e-5)
    easiest = Push(digits.planted, digits.clean, 4, torch.zeros(64), shortest_shifts)
    easiest.renew(1)
    assert torch.allclose(easiest.shift, shifts[4], atol=1e-5)


def test_the_target_class_becomes_harder_to_reach(digits):
    recipe = Recipe(epochs=6, batch_size=32, learning_rate=0.01, clip_norm=5.0)
    repair = TAC(recipe=recipe, target_class=4).remove(digits.planted, digits.clean)
    before = TAC().inspect(digits.planted, digits.clean)
    after = TAC().inspect(repair.classifier, digits.clean)

    def against_the_others(values):
        return values[4] / np.median([value for k, value in enumerate(values) if k != 4])

    assert against_the_others(after.values) > 1.2 * against_the_others(before.values)


def test_the_curves_fit_the_epochs(digits):
    record = TAC(recipe=SHORT).remove(digits.planted, digits.clean).record
    assert record["curves"][0]["name"] == "training loss"
    for curve in record["curves"]:
        assert len(curve["x"]) == len(curve["y"]) <= SHORT.epochs
        assert all(math.isfinite(value) for value in curve["y"])


# -- settings --------------------------------------------------------------------------------------


def test_the_published_settings_are_loss_three_as_it_stands():
    method = TAC.published()
    assert method.distillation == 0.0
    assert (method.beta, method.weighting, method.shift_scale) == (1.0, "sum", "full")
    assert method.pushed == "label"
    assert method.quantile is None and method.parameters == "all" and not method.project_head
    assert not method.recompute
    assert method != TAC()


@pytest.mark.parametrize(
    "wrong",
    [
        {"beta": -0.1},
        {"distillation": 1.1},
        {"distillation": math.nan},
        {"temperature": 0.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InputError, match="expected beta >= 0"):
        TAC(**wrong)


@pytest.mark.parametrize("quantile", [0.0, 1.5, -1.0])
def test_a_quantile_is_a_share(quantile, digits):
    with pytest.raises(InputError, match=r"quantile .* lies outside"):
        TAC(quantile=quantile).inspect(digits.planted, digits.clean)
