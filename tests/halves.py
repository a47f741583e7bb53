"""The two halves of ``small-cnn`` at its last norm, written by hand, for the digits models."""

import torch
import torch.nn.functional as F

SHAPE = (64, 4, 4)


def front(network, x, *, signed=False):
    """The map of images in [0, 1]: what the last norm gives, rectified as the network does next."""
    x = (x - 0.3) / 0.35
    for i in range(3):
        x = network.norms[i](network.convs[i](F.relu(x) if i else x))
    return x if signed else F.relu(x)


def back(network, maps):
    """The logits."""
    return network.fc(F.relu(maps).mean((2, 3)))


def batches(count, size, draws):
    """Indices of mini-batches in the order in which one generator draws them."""
    while True:
        order = torch.randperm(count, generator=draws).tolist()
        for first in range(0, count, size):
            yield order[first : first + size]


def nearly(got, expected, atol=2e-3, share=0.01):
    """Whether all numbers but a small share agree.

    Rounding turns a rare ReLU on or off, and the sign of a rare slope next to zero, of which Adam
    makes a whole step.
    """
    return float(((got - expected).abs() > atol).float().mean()) <= share


def same_slopes(network, by_hand):
    """Whether two networks have the same gradients, but for a ReLU that rounding turned."""
    for got, expected in zip(network.parameters(), by_hand.parameters(), strict=True):
        scale = expected.grad.norm() + 1e-3
        assert (got.grad - expected.grad).norm() < 5e-3 * scale
    return True
