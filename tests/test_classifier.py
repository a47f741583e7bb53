import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from bezoar import networks
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet

SHAPE = (3, 16, 16)


def body(features: int = 6) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, features, 3, padding=1), nn.BatchNorm2d(features), nn.ReLU())


class Pooled(nn.Module):
    def __init__(self, head: nn.Module):
        super().__init__()
        self.body, self.head = body(), head

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


class Wrapper(nn.Module):
    """Calls another network, as data-parallel and ensemble wrappers do."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


class Functional(nn.Module):
    """Applies the head as a function of a parameter, without an ``nn.Linear``."""

    def __init__(self):
        super().__init__()
        self.body = body()
        self.weight = nn.Parameter(torch.randn(5, 6))
        self.bias = nn.Parameter(torch.randn(5))

    def forward(self, x):
        return F.linear(self.body(x).mean((2, 3)), self.weight, bias=self.bias)


class Convolutional(nn.Module):
    """The head is a 1x1 convolution, before or after the average pooling."""

    def __init__(self, pool_first: bool):
        super().__init__()
        self.body, self.head, self.pool_first = body(), nn.Conv2d(6, 5, 1), pool_first

    def forward(self, x):
        h = self.body(x)
        if self.pool_first:
            return self.head(h.mean((2, 3), keepdim=True)).flatten(1)
        return self.head(h).mean((2, 3))


class AfterSoftmax(nn.Module):
    def __init__(self, log: bool):
        super().__init__()
        self.net, self.log = Pooled(nn.Linear(6, 5)), log

    def forward(self, x):
        return F.log_softmax(self.net(x), 1) if self.log else F.softmax(self.net(x), 1)


NETWORKS = {
    "linear": lambda: Pooled(nn.Linear(6, 5)),
    "no bias": lambda: Pooled(nn.Linear(6, 5, bias=False)),
    "two linear layers": lambda: Pooled(nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 5))),
    "dropout before it": lambda: Pooled(nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 5))),
    "through two wrappers": lambda: Wrapper(Wrapper(Pooled(nn.Linear(6, 5)))),
    "flattened without pooling": lambda: nn.Sequential(
        body(2), nn.Flatten(), nn.Linear(2 * 256, 5)
    ),
    "functional": Functional,
    "1x1 convolution after pooling": lambda: Convolutional(True),
    "1x1 convolution before pooling": lambda: Convolutional(False),
    "log softmax after it": lambda: AfterSoftmax(True),
    **{name: lambda name=name: networks.build(name, num_classes=5) for name in ("resnet-8",)},
}


def make(network: nn.Module) -> Classifier:
    return Classifier(network, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


@pytest.mark.parametrize("kind", NETWORKS)
def test_head_and_features_reproduce_the_logits(kind):
    torch.manual_seed(0)
    size = 32 if kind == "resnet-8" else 16
    classifier = make(NETWORKS[kind]()).trace((3, size, size))
    images = torch.rand(4, 3, size, size)
    weight, bias = classifier.head
    with classifier.evaluating(), torch.no_grad():
        features = classifier.features(images)
        logits = classifier(images)
    assert classifier.num_classes == 5
    assert features.shape == (4, weight.shape[1])
    gap = features @ weight.T + bias - logits
    # After a log-softmax the rows differ by a constant; nothing else may differ.
    assert torch.allclose(gap, gap[:, :1].expand_as(gap), atol=1e-5)
    if "softmax" not in kind:
        assert torch.allclose(gap, torch.zeros_like(gap), atol=1e-5)


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_shift_of_the_features_moves_the_logits_by_the_head(kind):
    torch.manual_seed(1)
    size = 32 if kind == "resnet-8" else 16
    classifier = make(NETWORKS[kind]()).trace((3, size, size))
    images = torch.rand(4, 3, size, size)
    weight, _ = classifier.head
    for shift in (torch.randn(weight.shape[1]), torch.randn(4, weight.shape[1])):
        with classifier.evaluating(), torch.no_grad():
            moved = classifier.logits_with_shift(images, shift) - classifier(images)
        expected = (shift @ weight.T).expand(4, -1)
        gap = moved - expected
        assert torch.allclose(gap, gap[:, :1].expand_as(gap), atol=1e-4)


def test_outputs_are_bit_identical_to_the_users_network():
    torch.manual_seed(2)
    network = NETWORKS["resnet-8"]()
    classifier = make(network)
    images = torch.rand(4, 3, 32, 32)
    mean, std = torch.tensor((0.4, 0.5, 0.6)), torch.tensor((0.2, 0.3, 0.4))
    network.eval()
    normalised = (images - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    assert torch.equal(classifier(images), network(normalised))
    classifier.trace((3, 32, 32))
    classifier.features(images)
    assert torch.equal(classifier(images), network(normalised))


def hooks_of(network: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules()
    )


@pytest.mark.parametrize("training", [True, False])
def test_the_users_network_is_left_as_it_was(training):
    torch.manual_seed(3)
    network = NETWORKS["dropout before it"]()
    network.train(training)
    network.body[1].train(not training)  # a mixed state must survive, too
    flags = [module.training for module in network.modules()]
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    classifier = make(network)
    classifier.trace(SHAPE)
    images = ImageSet.from_arrays(torch.randint(0, 256, (7, *SHAPE), dtype=torch.uint8))
    classifier.logits(images, batch_size=3)
    logits, features = classifier.survey(images, batch_size=3)
    classifier.split("body")
    assert logits.shape == (7, 5)
    assert features.shape == (7, 6)
    assert [module.training for module in network.modules()] == flags
    assert hooks_of(network) == 0
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[name])


class Breaks(nn.Module):
    """Raises on its second forward pass."""

    def __init__(self):
        super().__init__()
        self.net, self.calls = Pooled(nn.Linear(6, 5)), 0

    def forward(self, x):
        self.calls += 1
        if self.calls > 1:
            raise RuntimeError("out of order")
        return self.net(x)


def test_nothing_is_left_behind_after_an_exception():
    network = Breaks()
    network.train()
    classifier = make(network).trace(SHAPE)
    images = ImageSet.from_arrays(torch.zeros((2, *SHAPE), dtype=torch.uint8))
    for call in (
        lambda: classifier.logits(images),
        lambda: classifier.survey(images),
        lambda: classifier.features(torch.zeros(2, *SHAPE)),
        lambda: classifier.split("net"),
    ):
        with pytest.raises(RuntimeError, match="out of order"):
            call()
    assert network.training and network.net.training
    assert hooks_of(network) == 0
    assert torch.overrides._get_current_function_mode_stack() == []


def test_split_cuts_where_the_layer_cuts():
    torch.manual_seed(4)
    classifier = make(networks.build("wrn-16-1", num_classes=5)).trace((3, 32, 32))
    images = torch.rand(3, 3, 32, 32)
    halves = classifier.split("layers.2")
    with classifier.evaluating(), torch.no_grad():
        activations = halves.front(images)
        assert activations.shape == (3, 32, 16, 16)
        assert torch.allclose(halves.back(activations), classifier(images), atol=1e-5)
        assert not torch.allclose(halves.back(activations * 0), classifier(images))


def test_split_refuses_a_layer_with_a_way_around_it():
    classifier = make(networks.build("wrn-16-1", num_classes=5)).trace((3, 32, 32))
    with pytest.raises(InputError, match="passes around it"):
        classifier.split("layers.1.conv1")
    with pytest.raises(InputError, match="no module 'nope'"):
        classifier.split("nope")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: AfterSoftmax(False), "softmax"),
        (lambda: nn.Sequential(body(5), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "no linear layer"),
        (lambda: Pooled(nn.Sequential(nn.Linear(6, 5), nn.ReLU())), "other operations follow"),
        (lambda: Pooled(nn.Identity()), "no linear layer"),
        (lambda: body(), "expected logits of shape"),
        (
            lambda: Pooled(nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))),
            "parametrisation",
        ),
    ],
)
def test_a_network_without_a_linear_head_is_named(network, message):
    with pytest.raises(InputError, match=message):
        make(network()).trace(SHAPE)


def test_one_logit_is_named_and_not_taken_for_a_missing_head():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    with pytest.raises(InputError, match="answers with one logit; expected one for each class"):
        make(network).trace((3, 2, 2))


def test_a_wrong_image_size_is_one_sentence():
    classifier = make(NETWORKS["flattened without pooling"]())
    with pytest.raises(InputError, match="cannot take images of 3x20x20"):
        classifier.trace((3, 20, 20))
    fixed = Classifier(NETWORKS["linear"](), mean=0.0, std=1.0, input_size=(16, 16))
    with pytest.raises(InputError, match="20x20 and the network takes 16x16"):
        fixed.trace((3, 20, 20))
    with pytest.raises(InputError, match="1 channel"):
        make(NETWORKS["linear"]()).trace((1, 16, 16))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": 0, "std": 0}, "greater than 0"),
        ({"mean": float("nan"), "std": 1}, "finite"),
        ({"mean": "a", "std": 1}, "expected numbers"),
        ({"mean": (1, 2, 3), "std": (1, 2)}, "mean has 3 values and std 2"),
    ],
)
def test_a_broken_normalisation_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Classifier(nn.Identity(), **arguments)


def test_class_names_must_match_the_logits():
    classifier = Classifier(NETWORKS["linear"](), mean=0, std=1, classes=["a", "b"])
    with pytest.raises(InputError, match="2 class names were given and the network has 5"):
        classifier.trace(SHAPE)


def test_weights_that_are_not_numbers_are_refused():
    network = NETWORKS["linear"]()
    nn.init.constant_(network.head.weight, float("nan"))
    with pytest.raises(InputError, match="not finite"):
        make(network).trace(SHAPE)


def test_head_works_from_the_input_size_alone_and_says_when_it_cannot():
    sized = Classifier(NETWORKS["linear"](), mean=(0.5,) * 3, std=(0.5,) * 3, input_size=(16, 16))
    assert sized.head.weight.shape == (5, 6)
    with pytest.raises(InputError, match="input size is not known"):
        make(NETWORKS["linear"]()).head  # noqa: B018 (the property is the call under test)


class Viewed(nn.Module):
    """Flattens its map by a view, which torch refuses channels last."""

    def __init__(self, channels: int = 3):
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, 4, 3), nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4 * 12 * 12, 5)

    def forward(self, x):
        maps = self.second(F.relu(self.first(x)))
        return self.head(maps.view(len(maps), -1))


def channels_last(tensor):
    return tensor.contiguous(memory_format=torch.channels_last)


def is_laid_out(network):
    return network.second.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_that_views_its_maps_never_sees_channels_last(channels):
    torch.manual_seed(0)
    classifier = Classifier(Viewed(channels), mean=0.5, std=0.25).trace((channels, 16, 16))
    images = torch.rand(3, channels, 16, 16)
    expected = classifier(images)
    laid_out = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(classifier(laid_out), expected)
    assert torch.equal(classifier(channels_last(images)), expected)
    classifier.to_fast_layout()
    assert not is_laid_out(classifier.network) and torch.equal(classifier(images), expected)


def test_another_one_is_laid_out_when_asked_and_not_before():
    torch.manual_seed(0)

    class Reshaped(Viewed):
        def forward(self, x):
            return self.head(self.second(F.relu(self.first(x))).flatten(1))

    classifier = Classifier(Reshaped(), mean=0.5, std=0.25).trace(SHAPE)
    assert not is_laid_out(classifier.network), "tracing leaves the network as it is"
    images = torch.rand(3, *SHAPE)
    expected = classifier(images)
    twin = classifier.copy()
    twin.to_fast_layout()
    assert is_laid_out(twin.network) and not is_laid_out(classifier.network)
    assert torch.allclose(twin(images), expected, atol=1e-5)
    assert twin.normalise(channels_last(images)).is_contiguous(memory_format=torch.channels_last)


def test_a_group_norm_on_a_cpu_is_not_laid_out():
    """Its backward pass would end the process there."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(784, 5))
    classifier = Classifier(network, mean=0.5, std=0.25).trace(SHAPE)
    classifier.to_fast_layout()
    assert network[0].weight.is_contiguous()
    assert classifier.normalise(channels_last(torch.rand(2, *SHAPE))).is_contiguous()


class Named(nn.Module):
    """The head is a call, and the module has a flag of the name that a bias usually has."""

    def __init__(self):
        super().__init__()
        self.bias, self.w, self.offset = True, nn.Parameter(torch.randn(5, 6)), None

    def forward(self, x):
        rows = x.unfold(2, 8, 8).unfold(3, 16, 16).mean((4, 5)).flatten(1)
        return F.linear(rows, self.w, self.offset)


@pytest.mark.parametrize("kind", ["none", "parameter", "buffer", "convolution"])
def test_the_bias_of_the_head_is_the_one_that_it_is_called_with(kind):
    torch.manual_seed(0)
    network = Named()
    offset = torch.tensor([5.0, -5.0, 3.0, 1.0, 0.0])
    if kind == "parameter":
        network.offset = nn.Parameter(offset)
    elif kind == "buffer":
        del network.offset
        network.register_buffer("offset", offset)
    elif kind == "convolution":
        network = Convolutional(pool_first=True).eval()
    classifier = Classifier(network, mean=0.5, std=0.25).trace(SHAPE)
    images = torch.rand(7, *SHAPE)
    weight, bias = classifier.head
    expected = classifier.features(images) @ weight.T + bias
    assert torch.allclose(classifier(images), expected, atol=1e-5)
    assert bool(bias.any()) == (kind != "none")


def test_a_bias_that_is_computed_anew_is_refused():
    network = Named()
    network.offset = torch.ones(5)
    with pytest.raises(InputError, match="computes its bias anew"):
        Classifier(network, mean=0.5, std=0.25).trace(SHAPE)


class Auxiliary(nn.Module):
    """In training it gives the logits of a second head, too."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.other = body(), nn.Linear(6, 5), nn.Linear(6, 5)

    def forward(self, x):
        rows = self.body(x).mean((2, 3))
        return (self.head(rows), self.other(rows)) if self.training else self.head(rows)


def test_auxiliary_logits_of_training_are_passed_over():
    torch.manual_seed(0)
    classifier = Classifier(Auxiliary(), mean=0.5, std=0.25)
    classifier.network.train()
    images = torch.rand(7, *SHAPE)
    weight, bias = classifier.trace(SHAPE).head
    expected = classifier.features(images) @ weight.T + bias
    assert torch.allclose(classifier(images), expected, atol=1e-5)
    network = Auxiliary()
    network.forward = lambda x: (torch.zeros(len(x), 5),) * 2
    with pytest.raises(InputError, match="answers with tuple"):
        Classifier(network, mean=0.5, std=0.25).trace(SHAPE)


def test_torchscript_and_weights_without_gradients_are_refused():
    network = Pooled(nn.Linear(6, 5))
    scripted = torch.jit.script(copy.deepcopy(network.body))
    with pytest.raises(InputError, match="the network is TorchScript"):
        Classifier(scripted, mean=0.5, std=0.25)
    network.body = scripted
    with pytest.raises(InputError, match="part 'body' of the network is TorchScript"):
        Classifier(network, mean=0.5, std=0.25)
    with torch.inference_mode():
        frozen = Pooled(nn.Linear(6, 5))
    with pytest.raises(InputError, match=r"inference_mode.*copy\.deepcopy\(network\)"):
        Classifier(frozen, mean=0.5, std=0.25)
    assert Classifier(copy.deepcopy(frozen), mean=0.5, std=0.25).trace(SHAPE).num_classes == 5


def test_of_a_parallel_network_its_module_is_taken():
    network = Pooled(nn.Linear(6, 5))
    assert Classifier(nn.DataParallel(network), mean=0.5, std=0.25).network is network


def test_what_a_pass_or_a_pruning_left_in_a_module_does_not_keep_it_from_being_copied():
    network = Pooled(nn.Linear(6, 5))
    prune.l1_unstructured(network.body[0], "weight", 0.3)
    network.kept = network.body(torch.rand(2, *SHAPE))
    classifier = Classifier(network, mean=0.5, std=0.25).trace(SHAPE)
    images, twin = torch.rand(3, *SHAPE), classifier.copy()
    assert torch.equal(twin(images), classifier(images))
    assert network.kept.requires_grad and twin.network.kept is not network.kept


def test_a_network_that_cannot_be_copied_is_named():
    network = Pooled(nn.Linear(6, 5))
    network.lock = threading.Lock()
    with pytest.raises(InputError, match="the network cannot be copied: cannot pickle"):
        Classifier(network, mean=0.5, std=0.25).trace(SHAPE)


@pytest.mark.parametrize("kind", ["half", "double"])
def test_weights_of_another_precision_are_named(kind):
    network = getattr(Pooled(nn.Linear(6, 5)), kind)()
    number = {"half": "float16", "double": "float64"}[kind]
    with pytest.raises(InputError, match=rf"weights of type {number}; give network.float\(\)"):
        Classifier(network, mean=0.5, std=0.25).trace(SHAPE)


def test_a_copy_is_independent():
    classifier = make(NETWORKS["linear"]()).trace(SHAPE)
    twin = classifier.copy()
    with torch.no_grad():
        twin.network.head.weight.add_(1.0)
    assert not torch.equal(twin.head.weight, classifier.head.weight)
