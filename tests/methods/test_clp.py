import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from bezoar import networks
from bezoar.classifier import Classifier
from bezoar.datasets import open_dataset
from bezoar.errors import InputError
from bezoar.evaluation import evaluate
from bezoar.methods import CLP
from bezoar.methods.clp import highest_possible, outliers, spectral_norms
from bezoar.pools import open_pool
from bezoar.records import to_json


def built(name, size=32, channels=3, **options):
    torch.manual_seed(0)
    network = networks.build(name, num_classes=4, channels=channels, **options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after a training
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
    return Classifier(network, mean=[0.5] * channels, std=0.25, input_size=(size, size))


def layers(repair):
    return {layer["layer"]: layer for layer in repair.record["layers"]}


# -- the formulas ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 7, 3, 3), (5, 3, 7, 7), (4, 6, 1, 1), (4, 1, 3, 3), (5, 9)])
def test_the_norm_of_each_channel_is_its_largest_singular_value(shape):
    weight = torch.randn(shape)
    plain = [
        torch.linalg.svdvals(w.double().reshape(shape[1], -1)).max().item() for w in weight.unbind()
    ]
    assert spectral_norms(weight).tolist() == pytest.approx(plain, rel=1e-9)


def test_the_norm_is_the_spectral_one_and_not_that_of_the_flattened_filter():
    weight = torch.zeros(1, 2, 3, 3)
    weight[0, 0, 0, 0] = weight[0, 1, 1, 1] = 3.0  # two singular values of 3
    assert spectral_norms(weight).item() == pytest.approx(3.0)
    assert weight.norm().item() == pytest.approx(3.0 * math.sqrt(2))


def test_a_channel_above_mean_and_u_deviations_is_an_outlier():
    sigma = torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0, 3.0, 2.0, 9.0], dtype=torch.float64)
    deviations = (sigma - sigma.mean()) / sigma.std(unbiased=True)
    for u in (0.0, 0.3, 1.0, 2.0, 2.4):
        assert outliers(sigma, u).tolist() == [bool(z > u) for z in deviations]


def test_channels_that_are_all_the_same_have_no_outlier():
    assert not outliers(torch.full((30,), 0.1, dtype=torch.float64), 0.0).any()
    assert not outliers(torch.ones(1, dtype=torch.float64), 0.0).any()


@pytest.mark.parametrize("n", [2, 8, 10, 11, 64])
def test_one_value_among_equals_lies_as_far_out_as_any_can(n):
    sigma = torch.zeros(n, dtype=torch.float64)
    sigma[0] = 1.0
    z = float((sigma[0] - sigma.mean()) / sigma.std())
    assert highest_possible(n) == pytest.approx(z)
    assert outliers(sigma, 3.0).any() == (n >= 11)


def test_the_bound_of_a_channel_is_the_paper_s_with_the_norm_s_own_eps():
    classifier = built("resnet-8", width=8)
    norm, conv = classifier.network.layers[1].bn2, classifier.network.layers[1].conv2
    norm.eps = 0.3
    plain = torch.stack(
        [
            torch.linalg.svdvals(w.double().reshape(len(conv.weight[0]), -1)).max()
            * gamma.abs()
            / (var + 0.3).sqrt()
            for w, gamma, var in zip(conv.weight, norm.weight, norm.running_var, strict=True)
        ]
    )
    layer = layers(CLP().remove(classifier))["layers.1.bn2"]
    assert layer["mean"] == pytest.approx(plain.mean().item(), rel=1e-6)
    assert layer["std"] == pytest.approx(plain.std().item(), rel=1e-6)
    assert layer["measure"] == "weights and norm"


# -- what public ports get wrong -------------------------------------------------------------------


def test_a_dead_channel_makes_no_nan():
    classifier = built("small-cnn", size=8, channels=1)
    classifier.network.norms[1].running_var[3] = 0.0
    classifier.network.norms[1].weight.data[3] = 0.0  # 0 / 0 without an eps
    classifier.network.norms[1].running_var[4] = 0.0  # x / 0
    repair = CLP().remove(classifier)
    layer = layers(repair)["norms.1"]
    assert math.isfinite(layer["mean"]) and math.isfinite(layer["std"])
    assert layer["pruned"] == [4]  # what no clean image moves and a small change moves most
    assert all(bool(p.isfinite().all()) for p in repair.classifier.network.parameters())


def test_a_norm_is_paired_with_what_feeds_it_whatever_the_order_of_the_modules():
    class Reversed(nn.Module):
        """The last convolution that was made is not the one before the norm."""

        def __init__(self):
            super().__init__()
            self.second, self.first = nn.Conv2d(12, 12, 1), nn.Conv2d(1, 12, 3)
            self.norm, self.fc = nn.BatchNorm2d(12), nn.Linear(12, 3)

        def forward(self, x):
            return self.fc(self.second(self.norm(self.first(x)).relu()).mean((2, 3)))

    torch.manual_seed(0)
    network = Reversed()
    network.first.weight.data[5] *= 100
    network.second.weight.data[7] *= 100
    repair = CLP().remove(Classifier(network, mean=0.5, std=0.5, input_size=(6, 6)))
    assert layers(repair)["norm"]["pruned"] == [5]
    assert layers(repair)["second"]["pruned"] == [7]


def test_a_shortcut_s_norm_is_paired_with_the_shortcut_s_convolution():
    classifier = built("resnet-8")
    shortcut = classifier.network.layers[1].shortcut
    shortcut[0].weight.data[9] *= 50
    repair = CLP().remove(classifier)
    assert layers(repair)["layers.1.shortcut.1"]["pruned"] == [9]
    assert layers(repair)["layers.1.bn2"]["pruned"] == []


def test_a_norm_behind_a_sum_gets_no_convolution_that_does_not_feed_it():
    classifier = built("preact-resnet-18", width=16)
    repair = CLP().remove(classifier)
    norm = classifier.network.layers[1].bn1
    alone = norm.weight.double().abs() / (norm.running_var.double() + norm.eps).sqrt()
    layer = layers(repair)["layers.1.bn1"]
    assert layer["measure"] == "norm alone"
    assert layer["mean"] == pytest.approx(alone.mean().item())
    assert layers(repair)["layers.1.bn2"]["measure"] == "weights and norm"
    skipped = dict(repair.record["skipped_layers"])
    assert skipped["layers.0.conv2"] == (
        "no norm takes its channels one to one; it is a part of a sum"
    )
    assert "layers.0.conv1" not in skipped
    assert "are norms behind a sum and were judged by their scale alone" in str(
        repair.record["flags"]
    )


def test_the_published_settings_leave_such_norms_alone():
    assert CLP.published().u == 3.0
    repair = CLP.published().remove(built("preact-resnet-18", width=16))
    assert "layers.1.bn1" not in layers(repair) and "layers.1.bn2" in layers(repair)
    skipped = dict(repair.record["skipped_layers"])
    assert skipped["layers.1.bn1"] == "a norm that no single convolution feeds"


# -- networks the paper does not speak of ----------------------------------------------------------


def test_without_a_norm_the_weights_alone_are_judged_and_the_bias_goes_too():
    classifier = built("small-cnn", size=8, channels=1, norm=False)
    classifier.network.convs[1].weight.data[6] *= 30
    repair = CLP().remove(classifier)
    assert layers(repair)["convs.1"]["measure"] == "weights alone"
    conv = repair.classifier.network.convs[1]
    assert layers(repair)["convs.1"]["pruned"] == [6]
    assert not conv.weight[6].any() and conv.bias[6] == 0 and conv.bias[5] != 0


def test_group_norm_has_no_variance_of_a_channel():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.GroupNorm(2, 16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 4)
    )
    network[1].weight.data.uniform_(0.5, 1.5)
    repair = CLP(u=1.0).remove(Classifier(network, mean=0.5, std=0.5, input_size=(8, 8)))
    plain = network[1].weight.double().abs() * spectral_norms(network[0].weight)
    layer = layers(repair)["1"]
    assert layer["measure"] == "weights and scale"
    assert layer["mean"] == pytest.approx(plain.mean().item())


def test_layers_where_nothing_can_be_flagged_are_named():
    repair = CLP().remove(built("small-cnn", size=8, channels=1, width=5))
    narrow = [flag for flag in repair.record["flags"] if "too few channels" in flag]
    assert narrow == [
        "3 of 3 layers have too few channels for one to lie 3 standard deviations above the "
        "others (norms.0, norms.1, norms.2)."
    ]


# -- what is pruned --------------------------------------------------------------------------------


def test_gamma_and_beta_of_an_outlier_become_zero_and_all_else_stays_to_the_bit(digits):
    before = {k: v.clone() for k, v in digits.planted.network.state_dict().items()}
    repair = CLP(u=1.5).remove(digits.planted.trace((1, 8, 8)))
    assert len(repair.record["pruned"]) == sum(len(x["pruned"]) for x in repair.record["layers"])
    assert repair.record["pruned"]
    for name in repair.record["pruned"]:
        site, _, index = name.removesuffix("]").partition("[")
        before[f"{site}.weight"][int(index)] = before[f"{site}.bias"][int(index)] = 0.0
    after = repair.classifier.network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_it_needs_no_image_and_no_seed_changes_anything(digits):
    classifier = built("small-cnn", size=8, channels=1)
    states = [
        CLP(u=1.0).remove(classifier, images, seed=seed).classifier.network.state_dict()
        for images, seed in ((None, 0), (None, 1), (digits.clean, 2), (digits.clean.subset([]), 3))
    ]
    assert all(torch.equal(states[0][key], other[key]) for other in states for key in states[0])


def test_without_an_image_and_an_input_size_it_says_what_is_missing():
    network = networks.build("small-cnn", num_classes=4)
    with pytest.raises(InputError, match="the input size is not known yet"):
        CLP().remove(Classifier(network, mean=0.5, std=0.5))


def test_where_nothing_is_pruned_that_is_said(digits):
    repair = CLP(u=20.0).remove(digits.planted.trace((1, 8, 8)))
    assert repair.record["pruned"] == []
    assert repair.record["flags"][0].startswith("Nothing was pruned: no channel lies 20 standard")


def test_the_alternatives_are_the_sweep_of_u_each_network_once(digits):
    repair = CLP(u=1.5).remove(digits.planted.trace((1, 8, 8)))
    counts = dict(
        zip(repair.record["curves"][0]["x"], repair.record["curves"][0]["y"], strict=True)
    )
    assert len(counts) == 21 and counts[1.5] == len(repair.record["pruned"])
    found = list(repair.alternatives())
    assert [name for name, _ in found] == sorted(
        (name for name, _ in found), key=lambda name: -float(name.split()[-1])
    )
    zeros = [
        sum(int((norm.weight == 0).sum()) for norm in other.network.norms) for _, other in found
    ]
    assert zeros == [counts[float(name.split()[-1])] for name, _ in found]
    assert len(set(zeros)) == len(zeros) and counts[1.5] not in zeros
    assert {*zeros, counts[1.5]} == set(counts.values())


def test_the_record_is_plain_json():
    for classifier in (built("preact-resnet-18", width=8), built("small-cnn", 8, 1, width=2)):
        record = CLP().remove(classifier).record
        json.dumps(to_json(record), allow_nan=False)


@pytest.mark.parametrize("u", [-0.1, math.inf, math.nan])
def test_a_u_that_means_nothing_is_refused(u):
    with pytest.raises(InputError, match="expected a number of deviations, 0 or more"):
        CLP(u=u)


def test_it_removes_the_backdoor_of_a_network_wide_enough_for_it(data_folder):
    """On the digits no bound stands out; on a model of the pool's development half one does."""
    pool = open_pool(Path(__file__).parents[2] / "benchmarks" / "pool")
    (entry,) = (e for e in pool.half("development") if e.name.startswith("cifar10-resnet-8-bad"))
    classifier, attack = pool.load(entry, device="cpu").classifier, pool.attack(entry)
    images = open_dataset("cifar10", "test").sample(1000, seed=0)
    before = evaluate(classifier, images, attack)
    after = evaluate(CLP().remove(classifier).classifier, images, attack)
    assert before.asr >= 0.95 and after.asr <= 0.2
    assert after.acc >= before.acc - 0.05
