"""The cost of a purifier: who is timed, what is counted."""

import time

import pytest
import torch
from purified_models import purified
from torch import nn

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.methods import purifying_cost


class Slow(nn.Module):
    """Sleeps in its forward pass."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 3)
        self.seen = []

    def forward(self, x):
        self.seen.append(self.training)
        time.sleep(0.1)  # much longer than a busy machine delays it
        return self.fc(x.flatten(1))


def test_the_milliseconds_are_those_of_an_image_and_the_counts_those_of_the_parts():
    network = Slow()
    before = Classifier(network, mean=0.3, std=0.35)
    after = Classifier(purified(network), mean=0.3, std=0.35)
    network.train()
    cost = purifying_cost.measure(before, after, torch.rand(4, 1, 8, 8), runs=3)
    assert 25 <= cost["milliseconds per image without"] < 100
    assert cost["milliseconds per image without"] < cost["milliseconds per image"] < 300
    assert cost["parameters"] == 64 * 3 + 3
    own = sum(p.numel() for p in after.network.purifier.parameters())
    assert (cost["purifier parameters"], cost["batch"]) == (own, 4)
    assert network.seen == [False] * 8 and network.training  # two warm runs, three timed of each


def test_what_cannot_be_timed_is_refused():
    plain = Classifier(Slow(), mean=0.3, std=0.35)
    with pytest.raises(InputError, match="Slow has no purifier"):
        purifying_cost.measure(plain, plain, torch.rand(4, 1, 8, 8))
    after = Classifier(purified(Slow()), mean=0.3, std=0.35)
    with pytest.raises(InputError, match="at least one"):
        purifying_cost.measure(plain, after, torch.rand(0, 1, 8, 8))
