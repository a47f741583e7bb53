"""What DHBE measures without data: networks whose answer to patterns is known."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bezoar.methods.dhbe_measuring import agreement_on, answers, changed_by_fresh_patterns
from bezoar.methods.dhbe_patterns import PatternFamily
from bezoar.networks.pattern_generators import PatternGenerator

IMAGE = (8, 8)


class Bright(nn.Module):
    """Class 0 or 2 by the mean of the right column; ``target`` where a 3×3 window is bright."""

    def __init__(self, target=1):
        super().__init__()
        self.target = target
        self.gain = nn.Parameter(torch.tensor(20.0))

    def forward(self, x):
        side = x[:, 0, :, -1].mean(1)
        window = F.avg_pool2d(x, 3, 1).amax((1, 2, 3))
        logits = [side, self.gain * (window - 1.2), -side]
        order = {1: (0, 1, 2), 2: (0, 2, 1)}[self.target]
        return torch.stack([logits[i] for i in order], 1)


def drawn(count, seed=0):
    return 0.3 * torch.randn(count, 1, *IMAGE, generator=torch.Generator().manual_seed(seed))


def fresh(seed=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator = PatternGenerator(1, 3, latent=16, width=8)
    return [
        PatternFamily(
            generator,
            IMAGE,
            scale=torch.full((1, 1, 1), 3.0),
            each=True,
            learning_rate=1e-2,
            device=torch.device("cpu"),
            seed=seed,
        )
    ]


def changed(network, images, steps=60, seed=1):
    return changed_by_fresh_patterns(network, images, fresh(seed), steps=steps, batch_size=64)


@pytest.mark.parametrize("target", [1, 2])
def test_a_network_with_a_trigger_is_led_to_its_class(target):
    network, images = Bright(target).eval(), drawn(256)
    assert float((answers(network, images) == target).float().mean()) < 0.02
    untaught, taught = changed(network, images, steps=0), changed(network, images)
    assert taught.towards == target and taught.led > 0.3
    assert taught.led > 2 * untaught.led
    assert taught.share.count == 256 and taught.share.value >= taught.led * 0.98


def test_the_led_share_is_one_of_the_images_of_other_classes():
    """Half of the images are of the class already: all the others can be led, half can change."""

    class Away(nn.Module):
        def forward(self, x):
            # Images are 0 or 1 everywhere; whatever is added to them, the answer becomes class 1.
            base, added = x.mean((1, 2, 3)).round(), (x - x.round()).abs().sum((1, 2, 3))
            towards = torch.maximum(base, (added > 1e-3).to(x) + 0 * added)
            return torch.stack([1 - towards, towards, towards - 5], 1)

    images = torch.zeros(64, 1, *IMAGE)
    images[::2] = 1
    result = changed(Away(), images, steps=1)
    assert (result.towards, result.led) == (1, 1.0) and result.share.value == 0.5


def test_a_network_that_ignores_its_input_is_not_changed():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    nn.init.zeros_(network[1].weight)
    result = changed(network.eval(), drawn(64), steps=3)
    assert (result.share.value, result.share.count, result.led) == (0.0, 64, 0.0)


def test_a_seed_repeats():
    network, images = Bright().eval(), drawn(128)
    assert changed(network, images, 5) == changed(network, images, 5)
    assert changed(network, images, 5) != changed(network, images, 5, seed=2)


def test_the_network_is_left_as_it_was():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    network.eval()[0].requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    flags = [parameter.requires_grad for parameter in network.parameters()]
    with torch.no_grad():  # of the caller: the generators learn all the same
        changed(network, drawn(64), 3)
    assert [parameter.requires_grad for parameter in network.parameters()] == flags
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module.training for module in network.modules())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_agreement_is_counted():
    images = torch.zeros(1000, 1, 1, 1)
    images[:130] = 1

    class Threshold(nn.Module):
        def __init__(self, at):
            super().__init__()
            self.at = at

        def forward(self, x):
            return torch.stack([torch.full((len(x),), self.at), x.flatten()], 1)

    rate = agreement_on(images, Threshold(0.5), Threshold(2.0))
    assert (rate.value, rate.count) == (0.87, 1000)
    assert agreement_on(images, Threshold(0.5), Threshold(0.6)).value == 1.0


def test_few_images_of_other_classes_tell_no_share():
    """All but three images show class 0; whatever moves, a share of three says nothing."""

    class Mostly(nn.Module):
        def forward(self, x):
            return F.one_hot((x.amax((1, 2, 3)) < 0).long(), 3).float() + 0 * x.sum()

    images = torch.full((64, 1, *IMAGE), 0.1)
    images[:3] = -0.1
    found = changed_by_fresh_patterns(Mostly(), images, fresh(), steps=0, batch_size=32)
    assert found.share.value > 0 and found.led == 0.0
