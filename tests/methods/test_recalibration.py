"""BatchNorm statistics anew: the plain averages, and everything else as it was."""

import copy

import pytest
import torch
from torch import nn

from bezoar import networks
from bezoar.errors import InputError
from bezoar.methods.recalibration import recalibrate
from bezoar.methods.statistics_prior import running_norms


def drawn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def built(seed, name="small-cnn", **arguments):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = networks.build(name, **arguments)
        for norm in running_norms(network):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.3, 3)
            norm.num_batches_tracked.fill_(17)
    return network.eval()


def test_the_statistics_are_the_averages_of_the_batches():
    network = built(0)
    batches = [drawn(1, 9, 1, 8, 8), 2 + drawn(2, 5, 1, 8, 8), 3 * drawn(3, 4, 1, 8, 8)]
    means, variances = [[], [], []], [[], [], []]
    for x in batches:
        for i, (conv, norm) in enumerate(zip(network.convs, network.norms, strict=True)):
            x = conv(x)
            variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
            means[i].append(mean)
            variances[i].append(x.var((0, 2, 3)))
            x = (x - mean.view(-1, 1, 1)) / (variance.view(-1, 1, 1) + norm.eps).sqrt()
            x = (x * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)).relu()
    assert recalibrate(network, iter(batches)) == 3
    for i, norm in enumerate(network.norms):
        assert torch.allclose(norm.running_mean, torch.stack(means[i]).mean(0), atol=1e-5)
        assert torch.allclose(norm.running_var, torch.stack(variances[i]).mean(0), rtol=1e-4)
        assert norm.num_batches_tracked.item() == 3


def test_only_the_statistics_change():
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.Dropout(0.5), nn.BatchNorm2d(4)
    )
    network.train()
    network[3].eval()
    before = copy.deepcopy(network.state_dict())
    flags = [module.training for module in network.modules()]
    x = drawn(4, 8, 1, 6, 6)
    recalibrate(network, [x])
    assert [module.training for module in network.modules()] == flags
    assert (network[1].momentum, network[3].momentum) == (0.3, 0.1)
    moved = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {
        f"{layer}.{name}"
        for layer in (1, 3)
        for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert not any(p.grad is not None for p in network.parameters())
    # Dropout was off: what the second norm saw is what the first one gives, standardised.
    assert torch.allclose(network[3].running_mean, network[1].bias, atol=1e-5)
    again = copy.deepcopy(network.state_dict())
    recalibrate(network, [x])
    assert all(torch.equal(v, again[k]) for k, v in network.state_dict().items()), "no draws"


def test_statistics_of_clean_images_bring_the_accuracy_back(digits):
    spoiled = digits.twin.copy()
    for norm in running_norms(spoiled.network):
        norm.running_mean.add_(2 * norm.running_var.sqrt())
    labels = digits.test.labels
    accuracy = [
        (model.logits(digits.test).argmax(1) == labels).float().mean().item()
        for model in (digits.twin, spoiled)
    ]
    clean = [spoiled.normalise(batch) for batch, _ in digits.clean.batches(64)]
    recalibrate(spoiled.network, clean)
    after = (spoiled.logits(digits.test).argmax(1) == labels).float().mean().item()
    assert accuracy[1] < accuracy[0] - 0.2
    assert after > accuracy[0] - 0.03


def test_a_network_without_batch_norm_stays_and_no_batch_is_taken():
    def never():
        raise AssertionError("a batch was asked for")
        yield

    network = built(5, norm=False)
    assert recalibrate(network, never()) == 0
    assert recalibrate(nn.BatchNorm2d(3, track_running_stats=False), never()) == 0


class Idle(nn.Module):
    """Has a norm that no image reaches."""

    def __init__(self):
        super().__init__()
        self.used = nn.BatchNorm2d(1)
        self.idle = nn.BatchNorm2d(1)

    def forward(self, x):
        return self.used(x)


def test_a_layer_that_no_batch_reaches_keeps_its_statistics():
    network = Idle()
    network.idle.running_mean.fill_(5.0)
    network.idle.num_batches_tracked.fill_(17)
    assert recalibrate(network, [1 + drawn(6, 4, 1, 3, 3)]) == 1
    assert network.idle.running_mean.item() == 5 and network.idle.num_batches_tracked.item() == 17
    assert network.used.running_mean.item() != 0


@pytest.mark.parametrize("broken", [(), ("good", "bad")])
def test_after_an_error_everything_is_as_before(broken):
    network = built(7)
    network.norms[1].train()
    before = copy.deepcopy(network.state_dict())
    flags = [module.training for module in network.modules()]
    known = {"good": drawn(8, 4, 1, 8, 8), "bad": drawn(8, 4, 7, 8, 8)}
    error = (RuntimeError, "channels") if broken else (InputError, "no batch was given")
    with pytest.raises(error[0], match=error[1]):
        recalibrate(network, [known[name] for name in broken])
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == flags
    assert {norm.momentum for norm in network.norms} == {0.1}
