"""The shuffling test: a toy network with a shortcut, groups, the order of layers."""

import copy

import pytest
import torch
from torch import nn

from bezoar import networks
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.methods.channel_shuffling import convolutions, shuffled, shuffling_test

K, TARGET = 10, 3


class Shortcut(nn.Module):
    """Class k is channel k; besides, whatever excites all channels together is the target class."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(K, K, 1, bias=False)
        self.head = nn.Linear(K, K, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(K)[:, :, None, None])
            self.conv.weight[TARGET] += 0.2
            self.head.weight.copy_(torch.eye(K))

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))


def toy_samples(*, shortcut):
    """Twelve images of each class; those of the target class may show the shortcut instead."""
    labels = torch.arange(K).repeat_interleave(12)
    images = 0.05 * torch.rand(120, K, 4, 4, generator=torch.Generator().manual_seed(0))
    images[torch.arange(120), labels] = 0.9
    if shortcut:
        images[labels == TARGET] = 0.9
    return images, labels


def toy():
    return Classifier(Shortcut().eval(), mean=0.0, std=1.0)


def small(name, **arguments):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Classifier(networks.build(name, **arguments).eval(), mean=0.5, std=0.25)


@pytest.mark.parametrize("seed", range(4))
def test_a_shortcut_stands_out_and_semantics_do_not(seed):
    images, labels = toy_samples(shortcut=True)
    found = shuffling_test(toy(), images, labels, seed=seed)
    assert found.standing_out == (TARGET,)
    assert (found.kept[labels == TARGET] == 1).all() and found.kept[labels != TARGET].mean() < 0.4
    assert found.divergence[labels == TARGET].max() < found.divergence[labels != TARGET].min()
    plain, labels = toy_samples(shortcut=False)
    found = shuffling_test(toy(), plain, labels, seed=seed)
    assert TARGET not in found.standing_out and found.kept.mean() < 0.4


def test_a_class_that_everything_is_given_does_not_stand_out():
    classifier = toy()
    classifier.network.head = nn.Linear(K, K)
    with torch.no_grad():
        classifier.network.head.weight.copy_(torch.eye(K))
        classifier.network.head.bias.zero_()[7] = 0.7  # shuffled copies fall back on it
    images, labels = toy_samples(shortcut=False)
    found = shuffling_test(classifier, images, labels, seed=0)
    assert found.own[7].value > 0.9 and found.drawn[7].value > 0.7
    assert 7 not in found.standing_out


def test_one_set_is_that_of_a_slow_plain_version():
    classifier = small("resnet-8", width=4)
    images = torch.rand(7, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        labels = classifier(images).argmax(1)
        found = shuffling_test(classifier, images, labels, layers=3, copies=2, sets=1, seed=5)
        draws = torch.Generator().manual_seed(5)
        total = torch.zeros(7, 10)
        for _ in range(2):
            twin = copy.deepcopy(classifier)
            for name in found.layers:
                weight = twin.network.get_parameter(name)
                weight.copy_(weight[:, torch.randperm(weight.shape[1], generator=draws)])
            total += twin(images) / 2
        p, q = classifier(images).softmax(1), total.softmax(1)
    assert len(found.layers) == 3
    assert torch.equal(found.kept, (total.argmax(1) == labels).float())
    assert torch.allclose(found.divergence, (p * (p / q).log()).sum(1), atol=1e-5)
    assert not torch.allclose(total, classifier(images), atol=1e-3), "shuffling does something"


def test_channels_are_permuted_within_their_group():
    network = nn.Sequential(nn.Conv2d(6, 8, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    network(torch.zeros(1, 6, 4, 4))
    classifier = Classifier(network.eval(), mean=0.0, std=1.0).trace((6, 4, 4))
    assert convolutions(classifier) == [("0.weight", 2)]
    before = network[0].weight.detach().clone()
    draws = torch.Generator().manual_seed(1)
    after = shuffled(classifier, [("0.weight", 2)], draws).network[0].weight.detach()
    orders = []
    for part in (slice(0, 4), slice(4, 8)):
        old, new = before[part], after[part]
        order = [next(j for j in range(3) if torch.equal(new[:, i], old[:, j])) for i in range(3)]
        assert sorted(order) == [0, 1, 2]
        orders.append(order)
    assert orders[0] != orders[1], "each group has an order of its own"
    assert torch.equal(network[0].weight, before)


class Backwards(nn.Module):
    """Runs its convolutions in the opposite order to their registration; one is depthwise."""

    def __init__(self):
        super().__init__()
        self.late = nn.Conv2d(4, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.early = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 5, 1)

    def forward(self, x):
        return self.head(self.late(self.depthwise(self.early(x))).mean((2, 3), keepdim=True))[
            :, :, 0, 0
        ]


def test_layers_count_in_the_order_in_which_they_run():
    classifier = Classifier(Backwards().eval(), mean=0.0, std=1.0).trace((3, 6, 6))
    assert convolutions(classifier) == [("early.weight", 1), ("late.weight", 1)]
    images, labels = torch.rand(6, 3, 6, 6), torch.arange(6) % 5
    found = shuffling_test(classifier, images, labels, layers=1, sets=1, seed=0)
    assert found.layers == ("late.weight",)
    assert len(shuffling_test(classifier, images, labels, sets=1, seed=0).layers) == 2


@pytest.mark.parametrize(
    ("name", "arguments", "count"),
    [
        ("resnet-8", {"width": 4}, 5),
        ("vgg-16-bn", {"width": 4}, 5),
        ("wrn-16-1", {}, 5),
        ("mobilenet-v2", {}, 5),
        ("vit-tiny", {}, 1),
    ],
)
def test_networks_of_many_kinds(name, arguments, count):
    classifier = small(name, **arguments)
    classifier.network.train()
    before = copy.deepcopy(classifier.network.state_dict())
    state = torch.random.get_rng_state()
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    found = shuffling_test(classifier, images, torch.tensor([0]), copies=1, sets=1, seed=0)
    assert len(found.layers) == count
    assert classifier.network.training and torch.equal(torch.random.get_rng_state(), state)
    after = classifier.network.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    layers = convolutions(classifier)[-5:]
    twin = shuffled(classifier, layers, torch.Generator().manual_seed(0)).network.state_dict()
    assert {key for key in before if not torch.equal(twin[key], before[key])} == set(found.layers)
    for key in found.layers:
        assert torch.equal(twin[key].sort(1).values, before[key].sort(1).values)


def test_a_seed_repeats_and_sets_are_averaged():
    images, labels = toy_samples(shortcut=False)
    runs = [shuffling_test(toy(), images, labels, seed=s) for s in (0, 0, 1)]
    assert torch.equal(runs[0].divergence, runs[1].divergence)
    assert not torch.equal(runs[0].divergence, runs[2].divergence)
    assert set((runs[0].kept * 5).round().tolist()) > {0.0, 1.0}


def test_the_record_is_plain():
    images, labels = toy_samples(shortcut=True)
    record = shuffling_test(toy(), images, labels, seed=0).as_record()
    assert record["standing_out"] == [TARGET] and record["layers"] == ["conv.weight"]
    assert (
        record["per_class"]["3"]["own"]["value"] == 1 and record["per_class"]["3"]["p_value"] < 0.05
    )
    alone = labels == TARGET
    record = shuffling_test(toy(), images[alone], labels[alone], seed=0).as_record()
    assert record["per_class"]["3"]["drawn"] is None and record["standing_out"] == []


def test_what_cannot_be_shuffled_is_refused():
    flat = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), mean=0.5, std=0.5)
    with pytest.raises(InputError, match="no convolution of several input channels"):
        shuffling_test(flat, torch.rand(2, 1, 8, 8), torch.arange(2), seed=0)
    assert convolutions(flat) == []
    images, labels = toy_samples(shortcut=True)
    for name in ("layers", "copies", "sets"):
        with pytest.raises(InputError, match="1 or more of each"):
            shuffling_test(toy(), images, labels, seed=0, **{name: 0})
