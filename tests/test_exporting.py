"""Exported networks: any batch, the same logits, nothing left behind, refused in time."""

import copy

import pytest
import torch
from purified_models import purified
from torch import nn

from bezoar import intake, networks
from bezoar.errors import InputError
from bezoar.intake.exporting import exported
from bezoar.networks.generators import drawn
from bezoar.networks.purified import Purified
from bezoar.networks.trigger_generators import PublishedGenerator

SHAPE = (1, 8, 8)


def images(count, size=8):
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(count))


def network():
    return drawn(lambda: networks.build("small-cnn"), 0).eval()


@pytest.mark.parametrize("behind", [False, True])
def test_an_exported_network_answers_batches_of_any_size_as_before(tmp_path, behind):
    model = purified(network()) if behind else network()
    intake.write_exported(model, SHAPE, tmp_path / "m.pt2")
    program = torch.export.load(tmp_path / "m.pt2").module()
    for count in (1, 2, 7):
        with torch.no_grad():
            torch.testing.assert_close(program(images(count)), model(images(count)))
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt2"]


def test_a_published_purifier_with_noise_draws_the_same_noise():
    front = drawn(lambda: PublishedGenerator(1, mean=[0.3], std=[0.35]), 0)
    model = Purified(network(), front, mean=0.3, std=0.35, noise=0.03).eval()
    program = exported(model, (1, 32, 32)).module()
    with torch.random.fork_rng(), torch.no_grad():
        answers = []
        for one in (model, program):
            torch.manual_seed(0)
            answers.append((one(images(3, 32)), one(images(3, 32))))
    torch.testing.assert_close(answers[0], answers[1])
    assert not torch.equal(*answers[0])


def test_nothing_is_left_on_the_network():
    model = purified(network()).train()
    model.network.fc.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    draws = torch.get_rng_state()
    exported(model, SHAPE)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not model.network.fc.weight.requires_grad and model.purifier.pattern.requires_grad
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), draws)


class Peeks(nn.Module):
    """Asks the values of the images which way to go."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 3)

    def forward(self, x):
        return self.fc(x.flatten(1) if x.sum() > 0 else -x.flatten(1))


class Counts(Peeks):
    """Has the size of the batch as a Python number."""

    def forward(self, x):
        return self.fc(x.reshape(len(x), 64))


@pytest.mark.parametrize("kind", [Peeks, Counts])
def test_a_network_that_cannot_be_exported_is_refused_in_one_sentence(kind, capfd, tmp_path):
    torch.save(kind().state_dict(), tmp_path / "plain.pt")
    weights = intake.read_weights(tmp_path / "plain.pt")
    with pytest.raises(InputError, match=r"cannot be exported.*do without --export") as caught:
        intake.check_exportable(kind(), SHAPE, tmp_path / "m.pt2", weights)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", ""), "what torch says itself stays inside"


def test_the_ending_and_the_place_are_checked(tmp_path):
    torch.save(network().state_dict(), tmp_path / "plain.pt")
    weights = intake.read_weights(tmp_path / "plain.pt")
    for name, message in (("m.onnx", r"ends in \.pt2"), ("nowhere/m.pt2", "does not exist")):
        with pytest.raises(InputError, match=message):
            intake.check_exportable(network(), SHAPE, tmp_path / name, weights)
    intake.check_exportable(network(), SHAPE, tmp_path / "m.pt2", weights)
    assert [path.name for path in tmp_path.iterdir()] == ["plain.pt"]
