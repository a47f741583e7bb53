"""The pretended accelerator computes as the CPU does, and is as strict as a GPU."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytestmark = pytest.mark.slow


def small():
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.0)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(54, 4))


def trained(device):
    """What three steps of training make of a network, and its logits."""
    network, images, labels = small().to(device), torch.rand(9, 3, 8, 8), torch.arange(9) % 4
    images, labels = images.to(device), labels.to(device)
    adam = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(3):
        adam.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        adam.step()
    return network, network.eval()(images)


def test_it_is_the_accelerator(device):
    assert torch.accelerator.current_accelerator().type == device.type
    assert torch.zeros(2).to(device).device == torch.zeros(2, device=device).device == device


def test_a_training_gives_the_bits_of_the_cpu(device):
    torch.manual_seed(1)
    network, logits = trained(device)
    torch.manual_seed(1)
    expected, wanted = trained("cpu")
    assert logits.device == device and torch.equal(logits.cpu(), wanted)
    for got, other in zip(
        network.state_dict().values(), expected.state_dict().values(), strict=True
    ):
        assert got.device == device and torch.equal(got.cpu(), other)


def test_views_copies_and_changes_in_place_share_memory_as_ever(device):
    numbers = torch.arange(12.0, device=device).view(3, 4)
    numbers[1:, ::2].mul_(2)
    expected = torch.arange(12.0).view(3, 4)
    expected[1:, ::2].mul_(2)
    assert torch.equal(numbers.cpu(), expected)
    twin = copy.deepcopy(numbers)
    twin.zero_()
    assert torch.equal(numbers.cpu(), expected)
    out = torch.empty(0, device=device)
    torch.cat([numbers, numbers], out=out)
    assert torch.equal(out.cpu(), expected.repeat(2, 1))


def test_generators_draw_what_those_of_the_cpu_draw(device):
    here, there = torch.Generator(device).manual_seed(3), torch.Generator().manual_seed(3)
    drawn = torch.randn(5, generator=here, device=device)
    assert torch.equal(drawn.cpu(), torch.randn(5, generator=there))
    torch.manual_seed(4)
    first = torch.rand(5, device=device)
    torch.manual_seed(4)
    assert torch.equal(first, torch.rand(5, device=device))


@pytest.mark.parametrize(
    "mixed",
    [
        lambda here, there: here + there,
        lambda here, there: F.conv2d(here, there),
        lambda here, there: torch.cat([here, there]),
        lambda here, there: F.mse_loss(here, there),
        lambda here, there: here.index_copy(0, torch.tensor([0]), here[:1]),
        lambda here, there: torch.where(there > 0, here, here),
    ],
)
def test_tensors_of_two_devices_do_not_meet(device, mixed):
    there = torch.rand(2, 2, 2, 2)
    with pytest.raises(RuntimeError, match="device"):
        mixed(there.to(device), there)


def test_numbers_and_indices_may_lie_elsewhere(device):
    here = torch.arange(4.0, device=device)
    assert (here * torch.tensor(2.0)).sum().item() == 12
    assert here[torch.tensor([2, 1])].tolist() == [2, 1]


def test_a_generator_draws_for_its_own_device_alone(device):
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, generator=torch.Generator(), device=device)
    with pytest.raises(RuntimeError, match="lies on cpu"):
        torch.rand(3, generator=torch.Generator(device))
