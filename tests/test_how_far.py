"""Networks on the line through a repair, and the walk along it."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from bezoar import how_far
from bezoar.classifier import Classifier
from bezoar.how_far import SHARES, between, mean_of, walk


@dataclass
class Said:
    balance: float


def small(seed, norm=True):
    torch.manual_seed(seed)
    layers = [nn.Flatten(), nn.Linear(4, 3)]
    if norm:
        layers += [nn.BatchNorm1d(3)]
        layers[-1].running_mean.normal_()
        layers[-1].running_var.uniform_(0.1, 9.0)
        layers[-1].num_batches_tracked.fill_(seed)
    network = nn.Sequential(*layers).eval()
    return Classifier(network, mean=[0.0], std=[1.0], classes=["a", "b", "c"])


def weights(classifier):
    return classifier.network.state_dict()


def valley(at):
    """A judge that likes the network nearest to the share ``at`` best, and what it was asked."""
    one, other = small(1), small(2)
    first, last = (weights(c)["1.weight"] for c in (one, other))
    asked = []

    def weigh(classifier):
        way = (weights(classifier)["1.weight"] - first) / (last - first)
        asked.append(round(float(way.median()), 4))
        return Said(abs(math.log(asked[-1] / at)))

    share, network, said = walk(one, other, weigh)
    return share, asked, network is other, said.balance


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0, 1.7])
def test_every_tensor_lies_on_the_line_and_variances_go_geometrically(share):
    one, other = small(1), small(2)
    before = {k: v.clone() for k, v in weights(other).items()}
    made = weights(between(one, other, share))
    for name, value in weights(one).items():
        if name == "2.num_batches_tracked":
            assert int(made[name]) == 2, "a count is the repair's"
        elif name == "2.running_var":
            assert torch.allclose(made[name], value ** (1 - share) * before[name] ** share)
            assert (made[name] > 0).all()
        else:
            assert torch.allclose(made[name], (1 - share) * value + share * before[name], atol=1e-6)
        assert torch.equal(before[name], weights(other)[name]), "the repair stays as it is"


def test_a_variance_of_zero_stays_finite():
    one, other = small(1), small(2)
    one.network[2].running_var.zero_()
    assert all(v.isfinite().all() for v in weights(between(one, other, 1.7)).values())


def test_a_tensor_under_two_names_moves_once():
    """Tied weights, as of two heads that share one matrix."""
    one, other = small(1), small(2)
    for classifier in (one, other):
        classifier.network.append(nn.Linear(3, 3)).append(nn.Linear(3, 3))
        classifier.network[4].weight = classifier.network[3].weight
    first, last = (weights(c)["3.weight"] for c in (one, other))
    made = weights(between(one, other, 0.6))
    assert torch.allclose(made["3.weight"], 0.4 * first + 0.6 * last)
    assert made["3.weight"].data_ptr() == made["4.weight"].data_ptr(), "they stay tied"


@pytest.mark.parametrize("at", SHARES)
def test_the_walk_ends_in_the_valley_and_asks_little(at):
    share, asked, same, balance = valley(at)
    assert share == at and balance == pytest.approx(0, abs=1e-3)
    assert same == (at == 1)
    assert asked[0] == 1 and len(asked) == len(set(asked)) <= len(SHARES)
    below = [s for s in asked if s < 1]
    assert len(below) == 1 or at < 1, "upwards only where the first step down was no better"


def test_a_gain_of_nearly_nothing_is_noise():
    asked = []

    def weigh(_):
        asked.append(1)
        return Said(0.1 - 0.9 * how_far.LEAST * (len(asked) > 1))

    one, other = small(1), small(2)
    assert walk(one, other, weigh)[:2] == (1.0, other) and len(asked) == 3


def test_what_is_no_number_is_never_better():
    said = iter([0.5, math.nan, math.nan])
    one, other = small(1), small(2)
    assert walk(one, other, lambda _: Said(next(said)))[0] == 1.0


def test_a_repair_with_other_tensors_is_the_only_one_there_is():
    asked = []
    one, other = small(1, norm=False), small(2)
    found = walk(one, other, lambda c: asked.append(c) or Said(1.0))
    assert found[:2] == (1.0, other) and asked == [other]


class Renamed(nn.Sequential):
    """Its state dict holds copies under other names, and what is no tensor."""

    def state_dict(self, *args, **options):
        state = super().state_dict(*args, **options)
        return {f"net.{name}": value.clone() for name, value in state.items()} | {"version": 2}


def test_a_state_dict_of_its_own_does_not_keep_a_network_from_the_line():
    one, other = (Classifier(Renamed(*small(seed).network), mean=0.0, std=1.0) for seed in (1, 2))
    made = between(one, other, 0.25)
    first, second, found = (c.network[1].weight for c in (one, other, made))
    assert torch.allclose(found, 0.75 * first + 0.25 * second)
    assert walk(one, other, lambda c: Said(float(c.network[1].weight.equal(second))))[0] != 1.0


def test_the_mean_of_three_networks_is_that_of_their_tensors_and_variances_are_geometric():
    three = [small(seed) for seed in (1, 2, 3)]
    before = [{k: v.clone() for k, v in weights(c).items()} for c in three]
    made = weights(mean_of(three))
    for name in before[0]:
        values = torch.stack([state[name].double() for state in before])
        if name == "2.running_var":
            assert torch.allclose(made[name].double(), values.log().mean(0).exp())
        elif name != "2.num_batches_tracked":
            assert torch.allclose(made[name].double(), values.mean(0), atol=1e-6)
    for classifier, state in zip(three, before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in weights(classifier).items())
    assert mean_of(three[:1]) is three[0]
