"""TSBD: which weights become zero against a plain loop, the tuning's gradient, and its choices."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from msgspec.structs import replace
from torch import nn

from bezoar import networks
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods import TSBD
from bezoar.methods.clean_choice import accuracy_of
from bezoar.methods.rnp_unlearning import Unlearning
from bezoar.methods.tsbd import GRID, along
from bezoar.methods.tsbd_reinitialisation import (
    Reinitialisation,
    neuron_changes,
    ranked,
    weight_changes,
    zeroed,
)
from bezoar.methods.tsbd_shortcuts import shortcuts
from bezoar.records import to_json
from bezoar.training import Recipe
from bezoar.units import find_units

SHORT = Recipe(epochs=1, batch_size=32, learning_rate=0.01)
QUICK = TSBD(unlearning=Unlearning(learning_rate=0.01, max_epochs=10), recipe=None)


def built(*layers, shape=(1, 8, 8)):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(*layers) if layers else networks.build("small-cnn", width=4)
    return Classifier(network, mean=0.3, std=0.35).trace(shape)


def moved(classifier, seed=1):
    """A copy whose parameters all went somewhere."""
    twin = classifier.copy()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in twin.network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return twin


def changes_of(classifier, sites=("conv", "linear")):
    units = find_units(classifier, sites=sites)
    return units, weight_changes(units, classifier.network, moved(classifier).network)


# -- stage 1 ---------------------------------------------------------------------------------------


def test_a_neurons_change_is_the_sum_over_its_weights():
    classifier = built()
    units, changes = changes_of(classifier)
    other, wanted = moved(classifier), []
    for conv, new in zip(classifier.network.convs, other.network.convs, strict=True):
        for old_filter, new_filter in zip(conv.weight.tolist(), new.weight.tolist(), strict=True):
            pairs = zip(np.ravel(new_filter), np.ravel(old_filter), strict=True)
            wanted.append(sum(abs(a - b) for a, b in pairs))
    assert neuron_changes(changes, "sum").tolist() == pytest.approx(wanted, rel=1e-4)
    assert len(units) == len(wanted)


def test_a_filter_with_more_inputs_does_not_win_for_that():
    """Summed changes of layers of different sizes were compared with one another."""
    rows = [torch.full((4, 9), 0.1), torch.full((4, 900), 0.1)]
    rows[0][2] = 0.2  # the only neuron that stands out among its own
    assert int(neuron_changes(rows, "sum").argmax()) >= 4
    assert int(neuron_changes(rows, "relative").argmax()) == 2


def test_a_layer_that_did_not_change_is_no_division_by_zero():
    found = neuron_changes([torch.zeros(3, 5), torch.ones(2, 5)], "relative")
    assert found.tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("m", [0.7, 1.0, 0.25])
def test_of_the_chosen_neurons_the_weights_that_changed_most_become_zero(m):
    classifier = built()
    units, changes = changes_of(classifier)
    chosen = [1, 5, 6, 13]
    made, count = zeroed(classifier, units, changes, torch.tensor(chosen), m)
    ranked_weights = sorted(  # plain: (change, convolution, filter, weight)
        (
            (change, site, unit - units.slices[site].start, place)
            for unit in chosen
            for site in [int(units.site_of[unit])]
            for place, change in enumerate(changes[site][unit - units.slices[site].start].tolist())
        ),
        reverse=True,
    )
    wanted = {entry[1:] for entry in ranked_weights[: int(m * len(ranked_weights))]}
    assert count == len(wanted)
    pairs = zip(classifier.network.convs, made.network.convs, strict=True)
    for site, (old, new) in enumerate(pairs):
        for unit in range(len(old.weight)):
            for place, (a, b) in enumerate(
                zip(
                    old.weight[unit].flatten().tolist(),
                    new.weight[unit].flatten().tolist(),
                    strict=True,
                )
            ):
                assert b == (0.0 if (site, unit, place) in wanted else a)


def test_nothing_but_weights_of_neurons_becomes_zero():
    classifier = built()
    units, changes = changes_of(classifier)
    made, _ = zeroed(classifier, units, changes, torch.arange(len(units)), 1.0)
    after = made.network.state_dict()
    for name, value in classifier.network.state_dict().items():
        if "convs" in name:
            assert not after[name].any()
        else:
            assert torch.equal(after[name], value)


def test_a_weight_that_did_not_change_stays():
    classifier = built()
    units = find_units(classifier, sites=("conv", "linear"))
    same = weight_changes(units, classifier.network, classifier.copy().network)
    made, count = zeroed(classifier, units, same, torch.arange(len(units)), 0.7)
    assert count == 0
    assert torch.equal(made.network.convs[1].weight, classifier.network.convs[1].weight)


def test_no_neurons_or_no_share_of_them_is_the_original():
    classifier = built()
    units, changes = changes_of(classifier)
    for neurons, m in ((torch.tensor([], dtype=torch.int64), 0.7), (torch.arange(3), 0.0)):
        made, count = zeroed(classifier, units, changes, neurons, m)
        assert count == 0
        assert torch.equal(made.network.convs[0].weight, classifier.network.convs[0].weight)


def test_a_depthwise_filter_goes_with_the_neuron_that_feeds_it():
    depthwise = nn.Conv2d(4, 8, 3, groups=4)
    classifier = built(nn.Conv2d(1, 4, 3), nn.ReLU(), depthwise, nn.Flatten(), nn.Linear(128, 3))
    units, changes = changes_of(classifier, sites=("conv",))
    assert len(units) == 4 and changes[0].shape == (4, 9 + 18)
    made, count = zeroed(classifier, units, changes, torch.tensor([2]), 1.0)
    assert count == 27
    assert not made.network[0].weight[2].any() and not made.network[2].weight[4:6].any()
    assert made.network[2].weight[[0, 1, 2, 3, 6, 7]].all()


def test_a_network_without_convolutions_has_hidden_units():
    classifier = built(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 3))
    units, changes = changes_of(classifier)
    assert len(units) == 6 and changes[0].shape == (6, 64)
    with pytest.raises(InputError, match="no units of the kinds conv"):
        find_units(classifier, sites=("conv",))


# -- shortcuts -------------------------------------------------------------------------------------


class Block(nn.Module):
    """A block whose shortcut is known to nobody by its name."""

    def __init__(self, *, in_place=False, kernel=1):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 6, 3, 1, 1), nn.Conv2d(6, 6, 3, 1, 1)
        self.way = nn.Conv2d(4, 6, kernel, 1, kernel // 2)
        self.norm, self.in_place = nn.BatchNorm2d(6), in_place

    def forward(self, x):
        h = self.norm(self.second(self.first(x).relu()))
        if self.in_place:
            h += self.way(x)
            return h.relu_()
        return torch.relu(self.way(x) + h)


class Branches(nn.Module):
    """Two ways of one convolution each."""

    def __init__(self, one, two):
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 6, one, 1, one // 2), nn.Conv2d(4, 6, two, 1, two // 2)

    def forward(self, x):
        return self.one(x) + self.two(x)


class Gate(nn.Module):
    """A product is no sum."""

    def __init__(self):
        super().__init__()
        self.body, self.gate, self.last = (nn.Conv2d(4, 6, k, 1, k // 2) for k in (3, 1, 3))
        self.last = nn.Conv2d(6, 6, 3, 1, 1)

    def forward(self, x):
        return self.last(self.body(x)) * self.gate(x).sigmoid()


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (Block(), {"1.way.weight"}),
        (Block(in_place=True), {"1.way.weight"}),
        (Block(kernel=3), {"1.way.weight"}),
        (Branches(3, 1), {"1.two.weight"}),
        (Branches(3, 3), set()),
        (Gate(), set()),
    ],
    ids=["block", "in place", "3x3", "a smaller branch", "equal branches", "a gate"],
)
def test_shortcuts_are_told_by_what_they_do(body, wanted):
    layers = (nn.Conv2d(1, 4, 3), body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    assert shortcuts(built(*layers)) == wanted


@pytest.mark.parametrize("name", ["resnet-8", "wrn-16-1", "gn-resnet-8", "plain-cnn", "vit-tiny"])
def test_shortcuts_of_our_networks_are_those_that_are_called_so(name):
    classifier = Classifier(networks.build(name, num_classes=3), mean=0.5, std=0.2)
    named = {
        key
        for key, value in classifier.network.named_parameters()
        if ("shortcut" in key or "project" in key) and value.ndim == 4
    }
    assert shortcuts(classifier.trace((3, 32, 32))) == named
    assert bool(named) == (name not in ("plain-cnn", "vit-tiny"))


def test_what_is_left_out_is_not_ranked():
    layers = (nn.Conv2d(1, 4, 3), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    classifier = built(*layers)
    units = find_units(classifier, sites=("conv",))
    order = ranked(units, torch.arange(float(len(units))), {"1.way.weight"})
    names = [units.label(unit) for unit in order.tolist()]
    assert len(order) == len(units) - 6 and not any("way" in name for name in names)
    assert order.tolist() == sorted(order.tolist(), reverse=True)
    everything = {site.scales[0].parameter for site in units.sites}
    assert len(ranked(units, torch.zeros(len(units)), everything)) == len(units)


# -- stage 2 ---------------------------------------------------------------------------------------

GRADIENTS = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]]), "c": torch.zeros(3)}


def test_the_way_has_length_r_over_all_tensors_together():
    found = along({}, GRADIENTS, r=0.5, normalise="global")
    assert found["a"].tolist() == pytest.approx([0.3, 0])
    assert found["b"].tolist() == [pytest.approx([0.4])]


def test_the_released_code_s_way_has_length_r_in_every_tensor():
    found = along({}, GRADIENTS, r=0.5, normalise="tensor")
    assert found["a"].tolist() == pytest.approx([0.5, 0])
    assert found["b"].tolist() == [pytest.approx([0.5])]


@pytest.mark.parametrize("normalise", ["global", "tensor"])
def test_a_gradient_of_zero_divides_nothing(normalise):
    zero = {name: torch.zeros_like(value) for name, value in GRADIENTS.items()}
    for given in (GRADIENTS, zero):
        found = along({}, given, r=0.5, normalise=normalise)
        assert all(bool(torch.isfinite(value).all()) for value in found.values())
        assert not found["c"].any()


@pytest.mark.parametrize("normalise", ["global", "tensor"])
def test_a_step_of_the_tuning_goes_along_the_mixed_gradient(normalise):
    """One step of plain SGD, against two passes by hand."""
    classifier = built()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8, generator=generator)
    images = ImageSet(pixels, torch.arange(12) % 10)
    recipe = Recipe(epochs=1, batch_size=12, learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    method = TSBD(n=0.0, r=0.05, alpha=0.7, normalise=normalise, recipe=recipe, augment="recipe")
    repaired = replace(method, unlearning=QUICK.unlearning).remove(classifier, images).classifier

    def slopes(model):
        model.network.train()
        loss = F.cross_entropy(model(images.images / 255), images.labels)
        return torch.autograd.grad(loss, list(model.network.parameters()))

    here, there = classifier.copy(), classifier.copy()
    first = slopes(here)
    whole = math.sqrt(sum(float(g.square().sum()) for g in first))
    with torch.no_grad():
        for parameter, g in zip(there.network.parameters(), first, strict=True):
            norm = whole if normalise == "global" else float(g.norm())
            parameter += 0.05 * g / norm
    second = slopes(there)
    names = [name for name, _ in classifier.network.named_parameters()]
    after = dict(repaired.network.named_parameters())
    for name, g, moved_g in zip(names, first, second, strict=True):
        wanted = classifier.network.get_parameter(name) - 0.1 * (0.3 * g + 0.7 * moved_g)
        torch.testing.assert_close(after[name], wanted, rtol=1e-4, atol=1e-5)


# -- the choice ------------------------------------------------------------------------------------


def test_n_is_the_last_candidate_above_the_floor(digits):
    repair = QUICK.remove(digits.planted, digits.clean, seed=0)
    record = repair.record
    (curve,) = [c for c in record["curves"] if c["name"] == "held-out accuracy with zeros"]
    floor = record["zeros"]["floor"]
    _, held_out = digits.clean.split(0.8, seed=0)
    assert floor == pytest.approx(0.8 * accuracy_of(digits.planted, held_out))
    assert curve["x"] == [0.0, *GRID][: len(curve["x"])]
    assert all(share >= floor for share in curve["y"][:-1]) and curve["y"][-1] < floor
    assert record["zeros"]["n"] == curve["x"][-2] > 0
    assert accuracy_of(repair.classifier, held_out) == pytest.approx(curve["y"][-2])
    zeros = sum(int((p == 0).sum()) for p in repair.classifier.network.parameters())
    assert zeros == record["zeros"]["weights"] > 0
    json.dumps(to_json(record), allow_nan=False)


def test_the_tolerance_decides_how_many_go(digits):
    shares = [
        replace(QUICK, tolerance=t).remove(digits.planted, digits.clean).record["zeros"]["n"]
        for t in (0.0, 0.5)
    ]
    assert shares[0] < shares[1]


def test_the_other_candidates_are_there_for_who_asks(digits):
    repair = replace(QUICK, n=0.1).remove(digits.planted, digits.clean, seed=0)
    found = list(repair.alternatives())
    assert [setting for setting, _ in found] == [f"n = {n:g}" for n in GRID if n != 0.1]
    zeros = [
        sum(int((p == 0).sum()) for p in classifier.network.parameters()) for _, classifier in found
    ]
    assert zeros == sorted(zeros) and zeros[0] < repair.record["zeros"]["weights"] < zeros[-1]


def test_a_given_n_says_that_nobody_knows_its_cost(digits):
    flags = replace(QUICK, n=0.05).remove(digits.planted, digits.clean).record["flags"]
    assert any("no held-out image says what the zeros cost" in flag for flag in flags)


def test_nothing_zeroed_is_said(digits):
    flags = replace(QUICK, n=0.0).remove(digits.planted, digits.clean).record["flags"]
    (told,) = (flag for flag in flags if "No weight was set to zero" in flag)
    assert "n, which was given" in told and not any("held-out" in flag for flag in flags)


def test_zeros_come_with_statistics_of_their_own(digits):
    """With the old ones a few zeros shift every channel behind them."""
    units = find_units(digits.planted, digits.clean.shape, sites=("conv",))
    made = Reinitialisation(
        digits.planted, units, moved(digits.planted), digits.clean, measure="sum", m=0.7
    )
    network = made.built(0.2).network
    assert not torch.equal(
        network.norms[0].running_mean, digits.planted.network.norms[0].running_mean
    )


def test_too_few_images_to_hold_some_out_are_refused(digits):
    with pytest.raises(InputError, match="too few"):
        QUICK.remove(digits.planted, digits.clean.subset(torch.arange(1)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": 1.5},
        {"m": -0.1},
        {"alpha": 2.0},
        {"tolerance": 1.0},
        {"held_out": 0.0},
        {"r": float("inf")},
        {"sites": ()},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    (name, _), *_ = wrong.items()
    with pytest.raises(InputError, match=rf"{name} is .*; expected|sites is empty; expected"):
        TSBD(**wrong)


def test_the_stop_of_the_published_unlearning_is_chance_whatever_the_classes():
    """The released code stops at 0.10, which a network of 43 classes passes far above chance."""
    settings = TSBD.published().unlearning
    assert settings.stop is None and settings.stop_over_chance == 1.0
    assert (settings.learning_rate, settings.momentum, settings.max_epochs) == (1e-4, 0.9, 1000)
    method = TSBD.published()
    assert (method.n, method.m, method.r, method.alpha) == (0.15, 0.7, 0.05, 0.7)
    assert (method.measure, method.normalise, method.sites) == ("sum", "tensor", ("conv",))
