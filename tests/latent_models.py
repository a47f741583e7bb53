"""What the tests of the inversion share: a small smooth network, and a generator of digits."""

import math

import torch
from torch import nn

from bezoar.classifier import Classifier
from bezoar.generators.public_generator import PublicGenerator

LATENT = 6
SHAPE = (2, 5, 5)
CLASSES = 3


def seeded(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


class Smooth(nn.Module):
    """Convolution, BatchNorm with statistics of its own, tanh, mean: no kinks."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(SHAPE[0], 5, 3), nn.BatchNorm2d(5)
        self.fc = nn.Linear(5, CLASSES)
        nn.init.normal_(self.norm.running_mean, 0, 0.2)
        nn.init.normal_(self.fc.weight, 0, 2.0)

    def forward(self, x):
        return self.fc(torch.tanh(self.norm(self.conv(x))).mean((2, 3)))


def smooth_classifier(seed=0):
    return Classifier(seeded(Smooth, seed).eval(), mean=[0.4, 0.5], std=[0.2, 0.3])


def smooth_generator(critic=True, seed=1):
    pixels = math.prod(SHAPE)

    def make():
        network = nn.Sequential(nn.Linear(LATENT, pixels), nn.Sigmoid(), nn.Unflatten(1, SHAPE))
        judge = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 4), nn.Tanh(), nn.Linear(4, 1))
        return network, nn.Sequential(judge, nn.Flatten(0))

    network, judge = seeded(make, seed)
    return PublicGenerator(network, LATENT, SHAPE, critic=judge if critic else None)


def digits_generator(images, latent=16):
    """A linear generator with a sigmoid: principal components of the logits of ``images``."""
    pixels = images.float().div(255).flatten(1).clamp(0.05, 0.95).logit()
    mean = pixels.mean(0)
    _, scales, directions = torch.linalg.svd(pixels - mean, full_matrices=False)
    linear = nn.Linear(latent, pixels.shape[1])
    with torch.no_grad():
        linear.weight.copy_((scales[:latent, None] * directions[:latent]).T / len(pixels) ** 0.5)
        linear.bias.copy_(mean)
    shape = tuple(images.shape[1:])
    return PublicGenerator(
        nn.Sequential(linear, nn.Sigmoid(), nn.Unflatten(1, shape)), latent, shape, apart=True
    )
