"""Cutting networks in two: where, at what cost, and that they stay as they were."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bezoar import networks
from bezoar.classifier import Classifier
from bezoar.errors import InputError


class Mlp(nn.Module):
    def __init__(self, hidden=12):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, hidden), nn.ReLU())
        self.head = nn.Linear(hidden, 4)

    def forward(self, x):
        return self.head(self.body(x))


class InPlace(nn.Module):
    """Works in place on what the cut gives."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3, 2), nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.conv(x), inplace=True)
        return self.head(x.mean((2, 3)))


class ShapedBefore(nn.Module):
    """Reads the number of images before the cut and uses it behind."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3, 2), nn.Linear(6 * 9, 4)

    def forward(self, x):
        count = len(x)
        return self.head(self.conv(x).view(count, 54))


class Branched(nn.Module):
    """Ends in a sum of a branch that runs last and a way around it."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2)
        self.around = nn.Conv2d(6, 6, 1)
        self.branch = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.head(F.relu(self.around(x) + self.branch(x)).mean((2, 3)))


class Twice(nn.Module):
    """Runs one module twice in a pass, and one that gives a pair."""

    def __init__(self):
        super().__init__()
        self.stem, self.again = nn.Conv2d(3, 6, 3, 2), nn.Conv2d(6, 6, 1)
        self.pair, self.head = Pair(), nn.Linear(6, 4)

    def forward(self, x):
        x = self.again(F.relu(self.again(self.stem(x))))
        return self.head(self.pair(x)[0].mean((2, 3)))


class Pair(nn.Module):
    def forward(self, x):
        return F.relu(x), x


class AllAround(nn.Module):
    """No layer has all the information."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(3, 8), nn.Linear(3, 8)
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        x = x.mean((2, 3))
        return self.head(x) + self.one(x)[:, :4] * self.other(x)[:, :4]


ours = networks.build
NETWORKS = {
    "resnet-8": (ours, 16, "layers", (128, 4, 4)),
    "gn-resnet-8": (ours, 16, "layers", (128, 4, 4)),
    "wrn-16-1": (ours, 16, "bn", (64, 4, 4)),
    "vgg-16-bn": (functools.partial(ours, width=8), 32, "features.42", (64, 2, 2)),
    "mobilenet-v2": (ours, 16, "features", (1280, 2, 2)),
    "plain-cnn": (ours, 16, "layers", (128, 4, 4)),
    "small-cnn": (functools.partial(ours, channels=3), 8, "norms.2", (64, 4, 4)),
    "vit-tiny": (functools.partial(ours, input_size=16, width=48, depth=2), 16, "norm", (17, 48)),
    "MLP": (lambda _name: Mlp(), 8, "body", (12,)),
    "in place": (lambda _name: InPlace(), 8, "conv", (6, 3, 3)),
    "shaped before the cut": (lambda _name: ShapedBefore(), 8, "conv", (6, 3, 3)),
    "branched": (lambda _name: Branched(), 8, "stem", (6, 3, 3)),
    "twice": (lambda _name: Twice(), 8, "stem", (6, 3, 3)),
    "sloped": (lambda _name: Sloped(), 8, "conv", (6, 3, 3)),
}


def images(count, side, seed=0):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def cut(name):
    """A classifier in eval mode, its logits apart from each other, and five images."""
    build, side, layer, shape = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = build(name)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # statistics that fit: without them all answers are the same
    with torch.no_grad():
        network.train()((images(16, side) - 0.4) / 0.3)
    network.eval()
    classifier = Classifier(network, mean=0.4, std=0.3).trace((3, side, side))
    x = images(5, side, 99) * torch.linspace(0.2, 1, 5).view(-1, 1, 1, 1)
    return classifier, x, layer, shape


def left_behind(network):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_deepest_map_is_the_last_with_positions_and_the_halves_make_the_whole(name):
    classifier, x, layer, shape = cut(name)
    split = classifier.split()
    assert split.layer == layer
    with torch.no_grad():
        whole = classifier(x)
        maps, logits = split.both(x)
        assert whole.std(0).max() > 1e-3, "the answers must differ, or nothing is tested"
        assert maps.shape == (5, *shape)
        assert torch.equal(maps, split.front(x)) and torch.equal(logits, whole)
        for part in (maps, maps[:2], maps[3:4]):  # any number of activations
            expected = whole[:2] if len(part) == 2 else whole[3:4] if len(part) == 1 else whole
            torch.testing.assert_close(split.back(part), expected, rtol=1e-4, atol=1e-5)
        assert (split.back(maps.flip(0)) - whole).abs().max() > 1e-3
        torch.testing.assert_close(
            split.edited(x, lambda found: found.flip(0)), split.back(maps.flip(0))
        )
    assert left_behind(classifier.network) == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_behind_the_cut_one_blank_image_runs_through_the_layers_before_it(name):
    classifier, x, _, _ = cut(name)
    split, counts = classifier.split(), []
    maps = split.front(x)
    first = next(m for m in classifier.network.modules() if isinstance(m, nn.Conv2d | nn.Flatten))
    handle = first.register_forward_pre_hook(lambda _m, inputs: counts.append(len(inputs[0])))
    split.back(maps)
    handle.remove()
    assert counts == [5 if name == "shaped before the cut" else 1]


BEHIND = {  # written by hand
    "in place": lambda network, maps: network.head(F.relu(maps).mean((2, 3))),
    "resnet-8": lambda network, maps: network.fc(maps.mean((2, 3))),
    "vit-tiny": lambda network, maps: network.head(maps[:, 0]),
}


@pytest.mark.parametrize("name", BEHIND)
def test_activations_keep_their_values_and_get_gradients(name):
    classifier, x, _, _ = cut(name)
    split = classifier.split()
    maps = split.front(x).detach()
    before = maps.clone()
    maps.requires_grad_()
    (slope,) = torch.autograd.grad(split.back(maps).square().sum(), maps)
    (wanted,) = torch.autograd.grad(BEHIND[name](classifier.network, maps).square().sum(), maps)
    torch.testing.assert_close(slope, wanted)
    assert slope.abs().max() > 0
    assert torch.equal(maps.detach(), before)


def test_what_is_kept_of_a_pass_is_what_the_layer_gave():
    classifier, x, _, _ = cut("in place")
    split = classifier.split("conv")
    with torch.no_grad():
        expected = classifier.network.conv(classifier.normalise(x))
        assert (expected < 0).any(), "the rest of the network must have something to spoil"
        assert torch.equal(split.front(x), expected)
        assert torch.equal(split.both(x)[0], expected)


class Sloped(InPlace):
    """Negative entries matter a little to what is behind."""

    def forward(self, x):
        return self.head(F.leaky_relu(self.conv(x), 0.01).mean((2, 3)))


@pytest.mark.parametrize(
    ("name", "layer", "rectified"),
    [
        ("in place", "conv", True),
        ("small-cnn", "norms.2", True),
        ("wrn-16-1", "bn", True),
        ("vit-tiny", "norm", False),
        ("sloped", "conv", False),
    ],
)
def test_negative_entries_are_0_where_the_rest_does_not_see_them(name, layer, rectified):
    classifier, x, _, _ = cut(name)
    deepest, named = classifier.split(), classifier.split(layer)
    with torch.no_grad():
        raw, maps = named.front(x), deepest.front(x)
        assert deepest.layer == layer and (raw < 0).any(), "a named layer is taken as it is"
        assert torch.equal(maps, raw.relu() if rectified else raw)
        assert torch.equal(deepest.both(x)[0], maps)
        torch.testing.assert_close(deepest.back(maps), classifier(x), rtol=1e-4, atol=1e-5)
        seen = []
        deepest.edited(x, lambda found: seen.append(found) or found)
        assert torch.equal(seen[0], maps)


@pytest.mark.parametrize("layer", [None, "layers"])
def test_the_mode_of_every_module_and_all_values_stay(layer):
    classifier, x, _, _ = cut("resnet-8")
    network = classifier.network.train()
    network.layers[0].eval()  # a mixed state
    flags = [module.training for module in network.modules()]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    split = classifier.split(layer)
    assert [module.training for module in network.modules()] == flags
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    split.front(x)
    assert any(not torch.equal(v, state[n]) for n, v in network.state_dict().items()), (
        "the halves run in the mode that the network has"
    )


def test_nothing_stays_attached_after_an_exception():
    classifier, x, _, _ = cut("resnet-8")
    split = classifier.split()

    def fail(_maps):
        raise RuntimeError("out of order")

    with pytest.raises(RuntimeError, match="out of order"):
        split.edited(x, fail)
    with pytest.raises(IndexError):
        split.back(torch.zeros(2, 7))
    with pytest.raises(RuntimeError):
        split.front(torch.zeros(2, 1, 3))
    assert left_behind(classifier.network) == 0


@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [
        ("branched", "branch", "information also passes around it"),
        ("branched", "around", "information also passes around it"),
        ("twice", "again", "runs 2 times in one forward pass"),
        ("twice", "pair", "gives a tuple; expected one tensor"),
        ("MLP", "", "has no module ''; it has: body, body.0, body.1, body.2, head"),
        ("MLP", "body.3", "has no module 'body.3'"),
    ],
)
def test_a_layer_that_does_not_cut_is_refused_by_name(name, layer, message):
    classifier, *_ = cut(name)
    with pytest.raises(InputError, match=message):
        classifier.split(layer)
    assert left_behind(classifier.network) == 0


def test_a_network_that_no_layer_cuts_is_refused():
    torch.manual_seed(0)
    classifier = Classifier(AllAround(), mean=0.4, std=0.3)
    classifier._num_classes, classifier._input_shape = 4, (3, 8, 8)  # it has no linear head either
    classifier._head_name = "head.weight"
    with pytest.raises(InputError, match="no single layer cuts this network"):
        classifier.split()
