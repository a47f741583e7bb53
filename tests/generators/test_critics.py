"""The losses of critics, against closed forms and finite differences."""

import pytest
import torch
from torch import nn

from bezoar.generators.critics import LearningCritic, critic_loss, gradient_penalty
from bezoar.generators.curves import Curves


def seeded(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Scores(nn.Module):
    """A smooth critic: a two-layer network on flattened images."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(seeded(12, 5, seed=1) - 0.5)
        self.second = nn.Parameter(seeded(5, seed=2) - 0.5)

    def forward(self, images):
        return torch.tanh(images.flatten(1) @ self.first) @ self.second


def test_the_penalty_of_a_linear_critic_is_known():
    weight = seeded(3, 2, 2) * 4
    value = gradient_penalty(
        lambda images: (images * weight).sum((1, 2, 3)),
        seeded(6, 3, 2, 2, seed=1),
        seeded(6, 3, 2, 2, seed=2),
        seeded(6, 1, 1, 1, seed=3),
    )
    assert value.item() == pytest.approx((float(weight.norm()) - 1) ** 2)


def test_the_penalty_against_finite_differences_in_images_and_weights():
    critic = Scores()
    real, fake = seeded(4, 3, 2, 2, seed=3), seeded(4, 3, 2, 2, seed=4)
    share = seeded(4, 1, 1, 1, seed=5)

    def plain():
        total = 0.0
        for a, b, s in zip(real, fake, share, strict=True):
            at = (s * a + (1 - s) * b).flatten()
            slope = []
            for place in range(len(at)):
                step = torch.zeros_like(at)
                step[place] = 1e-5
                up, down = (critic((at + sign * step).view(1, 3, 2, 2)) for sign in (1, -1))
                slope.append((up - down).item() / 2e-5)
            total += (sum(value**2 for value in slope) ** 0.5 - 1) ** 2
        return total / len(real)

    value = gradient_penalty(critic, real, fake, share)
    assert value.item() == pytest.approx(plain(), rel=1e-6)
    value.backward()
    with torch.no_grad():
        critic.first[2, 3] += 1e-4
        up = plain()
        critic.first[2, 3] -= 2e-4
        down = plain()
    assert critic.first.grad[2, 3].item() == pytest.approx((up - down) / 2e-4, rel=1e-3)


def test_the_share_is_that_of_public_images():
    real, fake = torch.full((1, 1, 1, 1), 3.0), torch.zeros(1, 1, 1, 1)
    value = gradient_penalty(
        lambda images: images.square().sum((1, 2, 3)), real, fake, torch.full((1, 1, 1, 1), 1.0)
    )
    assert value.item() == pytest.approx((2 * 3 - 1) ** 2)


def test_losses_by_hand():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0])
    assert float(critic_loss(real, fake, "hinge")) == pytest.approx((0 + 1) / 2 + (0 + 2) / 2)
    assert float(critic_loss(real, fake, "wasserstein")) == pytest.approx(-1 - 1)


@pytest.mark.parametrize("kind", ["hinge", "wasserstein"])
def test_a_step_lowers_the_loss_and_raises_public_above_made_images(kind):
    critic = Scores().float()
    learning = LearningCritic(
        critic,
        torch.optim.SGD(critic.parameters(), 0.1 if kind == "hinge" else 0.01),
        kind,
        10.0 if kind == "wasserstein" else 0.0,
        torch.Generator().manual_seed(0),
        Curves("x", ("a",), 1),
    )
    real = seeded(20, 3, 2, 2, seed=6).float()
    fake = real.flip(1) * 0.5
    losses = [float(learning.learn(real, fake)) for _ in range(80)]
    assert losses[-1] < losses[0] - 0.1
    assert (critic(real).mean() - critic(fake).mean()).item() > 0.1
