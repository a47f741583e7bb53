"""What a critic minimises, and one that learns.

    Wasserstein: E D(x̃) − E D(x) + w E (‖∇D(x̂)‖₂ − 1)²,   x̂ = εx + (1 − ε)x̃,  ε ~ U(0, 1)
    hinge:       E max(0, 1 − D(x)) + E max(0, 1 + D(x̃))

with public images x and a generator's x̃. Wasserstein with gradient penalty: Gulrajani et al. 2017,
arXiv 1704.00028 (w = 10); hinge: Lim and Ye 2017, arXiv 1705.02894. Either generator minimises
−E D(x̃).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bezoar.generators.curves import Curves

CriticLoss = Literal["hinge", "wasserstein"]


class LearningCritic:
    """A critic and its optimizer.

    Args:
        network: images (n, c, h, w) in [0, 1] to scores (n,), each of its own image alone.
        optimizer: of the network.
        loss: which.
        penalty: w; 0 does without the gradient penalty.
        draws: of ε, on the CPU.
        curves: of the training, kept with its state.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: CriticLoss,
        penalty: float,
        draws: torch.Generator,
        curves: Curves,
    ) -> None:
        self.network, self.optimizer = network, optimizer
        self.loss, self.penalty, self.draws, self.curves = loss, penalty, draws, curves

    def learn(self, real: Tensor, fake: Tensor) -> Tensor:
        """One step on public images and as many generated ones; returns the loss."""
        on_real, on_fake = self.network(torch.cat((real, fake))).chunk(2)
        loss = critic_loss(on_real, on_fake, self.loss)
        if self.penalty:
            share = torch.rand(len(real), 1, 1, 1, generator=self.draws).to(real.device)
            loss = loss + self.penalty * gradient_penalty(self.network, real, fake, share)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's stub lacks the type
        self.optimizer.step()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on."""
        parts = ("network", "optimizer", "curves")
        return {name: getattr(self, name).state_dict() for name in parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to where ``state_dict`` was called."""
        for name, own in state.items():
            getattr(self, name).load_state_dict(own)


def critic_loss(on_real: Tensor, on_fake: Tensor, kind: CriticLoss) -> Tensor:
    """The loss without penalty, from the scores (n,) of public and of generated images.

    >>> critic_loss(torch.tensor([0.5]), torch.tensor([-2.0]), "hinge").item()
    0.5
    """
    if kind == "hinge":
        return F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean()
    return on_fake.mean() - on_real.mean()


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
    """The mean of (‖∇D(x̂)‖₂ − 1)² over images x̂ = share · real + (1 − share) · fake.

    Args:
        critic: images (n, c, h, w) to scores (n,), each of its own image alone.
        real: (n, c, h, w).
        fake: the same.
        share: ε, (n, 1, 1, 1).
    """
    between = (share * real + (1 - share) * fake).detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    lengths: Tensor = slope.flatten(1).norm(dim=1)
    return (lengths - 1).square().mean()
