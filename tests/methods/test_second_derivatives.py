"""What makes a network differentiable twice: same values, derivatives that plain PyTorch lacks."""

import pytest
import torch
import torch.nn.functional as F
from once_differentiable import Once
from torch import nn

from bezoar import networks
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.methods.second_derivatives import check_twice_differentiable, second_derivatives
from bezoar.networks.vision import import_timm


class Gated(nn.Module):
    """A squeeze-and-excitation gate, as in MobileNetV3."""

    def __init__(self):
        super().__init__()
        self.gate, self.head = nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x):
        flat = x.flatten(1)
        return self.head(flat * F.hardsigmoid(self.gate(flat)))


def classifier(network):
    return Classifier(network, mean=0.0, std=1.0)


def built(kind):
    torch.manual_seed(0)
    if kind == "gate":
        return Gated(), torch.rand(2, 3, 2, 2)
    network = networks.build("vit-tiny", num_classes=4, input_size=8, width=24, depth=2)
    return network.eval(), torch.rand(2, 3, 8, 8)


def curvature(network, x):
    x = x.requires_grad_(True)
    (slope,) = torch.autograd.grad(network(x).logsumexp(1).sum(), x, create_graph=True)
    return torch.autograd.grad(slope.square().sum(), x)[0]


@pytest.mark.parametrize("kind", ["gate", "attention"])
def test_it_gives_second_derivatives_where_there_were_none(kind):
    if kind == "attention":
        try:
            import_timm()
        except InputError:
            pytest.skip("timm is not installed")
    network, x = built(kind)
    with pytest.raises(RuntimeError, match="not implemented"):
        curvature(network, x.clone())
    with second_derivatives():
        found = curvature(network, x.clone())
        again = network(x)
    assert found.abs().max() > 0
    torch.testing.assert_close(again, network(x), rtol=1e-4, atol=1e-5)
    check_twice_differentiable(classifier(network), x, instead="give up")
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_second_derivative_of_the_gate_is_that_of_finite_differences():
    network, x = built("gate")
    network, x = network.double(), x.double()

    def slope(y):
        y = y.clone().requires_grad_(True)
        return torch.autograd.grad(network(y).logsumexp(1).sum(), y)[0]

    with second_derivatives():
        y = x.clone().requires_grad_(True)
        (first,) = torch.autograd.grad(network(y).logsumexp(1).sum(), y, create_graph=True)
        (found,) = torch.autograd.grad(first[0, 0, 0, 0], y)
    change = torch.zeros_like(x)
    change[0, 1, 1, 0] = 1e-5
    wanted = (slope(x + change) - slope(x - change))[0, 0, 0, 0] / 2e-5
    assert float(found[0, 1, 1, 0]) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("kind", [nn.ReLU, nn.ELU, nn.SiLU, nn.Hardswish, nn.ReLU6])
def test_activations_in_place_have_the_same_second_derivatives(kind):
    results = []
    for inplace in (False, True):
        torch.manual_seed(0)
        body = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), kind(inplace=inplace))
        network = nn.Sequential(*body, nn.Flatten(), nn.Linear(36, 3)).double().eval()
        results.append(curvature(network, torch.rand(2, 3, 5, 5, dtype=torch.float64)))
    torch.testing.assert_close(*results)


def test_what_cannot_be_differentiated_twice_is_named():
    network = nn.Sequential(nn.Flatten(), Once(), nn.Linear(4, 3))
    told = "cannot be differentiated twice: .*differentiate twice.*; leave it out$"
    with pytest.raises(InputError, match=told):
        check_twice_differentiable(
            classifier(network), torch.rand(2, 1, 2, 2), instead="leave it out"
        )


def test_other_errors_stay_what_they_are_and_linear_networks_pass():
    linear = classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    check_twice_differentiable(linear, torch.rand(2, 1, 2, 2), instead="give up")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        check_twice_differentiable(linear, torch.rand(2, 1, 3, 3), instead="give up")
    assert torch.overrides._get_current_function_mode_stack() == []
