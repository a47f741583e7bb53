"""A network with other weights: the same function, and no gradients of another one."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bezoar import networks
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods import ANP, FTSAM, NPD, RNP, fred_parameter_stability, rnp
from bezoar.methods.anp_masks import MaskLearning
from bezoar.other_weights import check_other_weights, logits_with
from bezoar.training import Recipe

SHAPE = (3, 8, 8)


class Checkpointed(nn.Module):
    """Its middle is computed anew on the way back, in the older kind of checkpoint or the newer."""

    def __init__(self, reentrant=None):
        super().__init__()
        self.reentrant = reentrant
        self.stem = nn.Conv2d(3, 6, 3)
        self.middle = nn.Sequential(nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.stem(x)
        if self.reentrant is None:
            x = self.middle(x)
        else:
            x = checkpoint(self.middle, x, use_reentrant=self.reentrant)
        return self.head(x.mean((2, 3)))


def make(reentrant=None):
    torch.manual_seed(0)
    return Classifier(Checkpointed(reentrant), mean=0.5, std=0.25).trace(SHAPE)


def other(classifier, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (p.detach() + 0.1 * torch.randn(p.shape, generator=generator)).requires_grad_()
        for name, p in classifier.network.named_parameters()
    }


@pytest.mark.parametrize("training", [False, True])
def test_logits_and_gradients_are_those_of_a_network_with_these_weights(training):
    classifier, images = make(), torch.rand(9, *SHAPE)
    classifier.network.train(training)
    weights, twin = other(classifier), classifier.copy()
    with torch.no_grad():
        for name, parameter in twin.network.named_parameters():
            parameter.copy_(weights[name])
    logits, expected = logits_with(classifier, images, weights), twin(images)
    torch.testing.assert_close(logits, expected)
    found = torch.autograd.grad(logits.square().sum(), list(weights.values()))
    wanted = torch.autograd.grad(expected.square().sum(), list(twin.network.parameters()))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_checkpointed_network_is_refused_where_gradients_are_asked_for(reentrant, training):
    classifier = make(reentrant)
    classifier.network.train(training)
    with pytest.raises(InputError, match=r"gradient checkpointing.*set_grad_checkpointing"):
        logits_with(classifier, torch.rand(4, *SHAPE), other(classifier))
    with pytest.raises(InputError, match="gradient checkpointing"):
        check_other_weights(classifier)
    with torch.no_grad():
        plain, values = make(), other(classifier)
        plain.network.train(training)
        images = torch.rand(4, *SHAPE)
        assert torch.equal(
            logits_with(classifier, images, values), logits_with(plain, images, values)
        )


def test_what_fails_otherwise_says_so_itself():
    classifier = make()
    wrong = other(classifier) | {"head.weight": torch.zeros(4, 5, requires_grad=True)}
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        logits_with(classifier, torch.rand(4, *SHAPE), wrong)


def test_a_network_is_tried_in_its_mode_and_stays_as_it_is():
    classifier = make()
    classifier.network.train()
    before = {name: t.clone() for name, t in classifier.network.state_dict().items()}
    with torch.no_grad():
        check_other_weights(classifier)
    assert classifier.network.training
    assert all(torch.equal(before[n], t) for n, t in classifier.network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in classifier.network.parameters())


@pytest.mark.parametrize(
    "method",
    [
        ANP(masks=MaskLearning(iterations=2)),
        RNP(),
        NPD(recipe=Recipe(epochs=1, batch_size=16, learning_rate=0.01)),
        FTSAM(recipe=Recipe(epochs=1, batch_size=16, learning_rate=0.01)),
    ],
    ids=lambda method: method.name,
)
def test_methods_refuse_it_before_long_work(method, monkeypatch):
    def unlearned(*_arguments, **_options):
        raise AssertionError("this takes long")

    monkeypatch.setattr(rnp, "unlearn", unlearned)
    images = ImageSet(torch.randint(256, (40, *SHAPE), dtype=torch.uint8), torch.arange(40) % 4)
    with pytest.raises(InputError, match="gradient checkpointing"):
        method.remove(make(False), images)


def test_the_stability_of_parameters_refuses_it():
    settings = fred_parameter_stability.ParameterStability()
    images, labels = torch.rand(4, *SHAPE), torch.tensor([0, 1, 2, 3])
    with pytest.raises(InputError, match="gradient checkpointing"):
        fred_parameter_stability.virtual_step(make(True), images, labels, settings)


@pytest.mark.parametrize("name", ["resnet-8", "vit-tiny"])
def test_plain_networks_pass(name):
    network = networks.build(name, num_classes=4)
    check_other_weights(Classifier(network, mean=0.5, std=0.25).trace((3, 32, 32)))
