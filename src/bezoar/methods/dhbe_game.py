"""The game of DHBE: two adversaries at once, and a student between them.

    max_G min_S D:    D = mean |T(x) - S(x)|                  what T knows is copied, all of it
    max_Gp min_S R:   R = mean |S(x) - S(x + pad(p) / std)|   no pattern of a family counts

One iteration: k steps of the student on D + λR, one of the sample generator on -D and its priors,
one of the pattern generators on -R; every step on fresh draws. Constant are: in the student's step
x, p, T(x) and R's clean branch; in a pattern generator's step x and its clean branch. In the sample
generator's step gradients pass through T and S into x.

Source: Yan et al. 2023, arXiv 2306.08009, figure 2, and the released code. Exact savings (ours),
tested against a plain loop: networks that do not learn get no gradients; ``x + pad(p) / std`` needs
no detour through pixels; and where calls cost more than sums (not on a CPU), all of an iteration's
student batches are generated in one call, and clean and stamped images share the student's forward,
each with its own batch statistics (``grouped_statistics``).

Ours, and not the published game: a squared R, several families of patterns in one batch, a position
for each image, and running statistics that only clean synthetic images change.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bezoar.methods.dhbe_losses import gap, sensitivity
from bezoar.methods.dhbe_patterns import PatternFamily, ascend, mixed_stamps
from bezoar.methods.synthesis import SampleSource
from bezoar.networks.grouped_norm import grouped_statistics
from bezoar.training import gradients_only_for


@dataclass(frozen=True)
class Rules:
    """How the game is played.

    Attributes:
        iterations: how many; each has ``student_steps`` of the student.
        student_steps: k.
        insensitivity: λ, the weight of R.
        distance: of R, ``absolute`` (published) or ``squared`` (ours), where a large change of a
            few answers counts for more than small changes of all.
        adversary: weight of -D for the sample generator.
        statistics: whose forwards change the student's running statistics: ``all`` (published), or
            only those on ``clean`` images in its own steps (ours).
        schedule: of all learning rates: factor for the share of the game that is played, in [0, 1).
        together: one call for several batches; the same numbers (to rounding).
    """

    iterations: int
    student_steps: int
    insensitivity: float
    distance: Literal["absolute", "squared"]
    adversary: float
    statistics: Literal["all", "clean"]
    schedule: Callable[[float], float]
    together: bool = False


@dataclass
class Curves:
    """What was seen in each iteration.

    Attributes:
        gap: D, in its last student step.
        sensitivity: R, in the pattern generators' step.
        size: mean |T(x)|, the scale of both.
        classes: share of the classes that T gives to the generator's batch.
    """

    gap: list[Tensor] = field(default_factory=list)
    sensitivity: list[Tensor] = field(default_factory=list)
    size: list[Tensor] = field(default_factory=list)
    classes: list[Tensor] = field(default_factory=list)


class Game:
    """The players and one iteration of their game.

    Args:
        teacher: frozen and in eval mode.
        student: is trained; in train mode, but for layers that were set otherwise.
        optimizer: of the student.
        source: of synthetic images, with the sample generator and its optimizer.
        families: of patterns, each with its generator and optimizer; a batch is shared evenly.
        rules: of the game.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        optimizer: torch.optim.Optimizer,
        source: SampleSource,
        families: Sequence[PatternFamily],
        rules: Rules,
    ) -> None:
        self.teacher, self.student, self.optimizer = teacher, student, optimizer
        self.source, self.families, self.rules = source, tuple(families), rules
        self.curves = Curves()
        optimizers = (optimizer, source.optimizer, *(f.optimizer for f in self.families))
        self._rates = [(group, group["lr"]) for o in optimizers for group in o.param_groups]

    def play(self, iteration: int) -> None:
        """One iteration; the number, from 0, sets the learning rates."""
        factor = self.rules.schedule(iteration / self.rules.iterations)
        for group, rate in self._rates:
            group["lr"] = factor * rate
        for images, wanted, stamps in self._batches():
            found = self._student_step(images, wanted, stamps)
        self.curves.gap.append(found)
        with gradients_only_for(self.student, []):
            with self._without_updates():
                logits = self.source.step(self.student, self.rules.adversary)
            self.curves.size.append(logits.abs().mean())
            # Not by bincount, for whose result a GPU's queue would have to be waited for.
            classes = torch.arange(logits.shape[1], device=logits.device)
            held = (logits.argmax(1, keepdim=True) == classes).any(0)
            self.curves.classes.append(held.float().mean())
            self.curves.sensitivity.append(self._pattern_step())

    @torch.no_grad()
    def _batches(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each student step: images, the teacher's logits on them, what is added to them."""
        steps, together = self.rules.student_steps, self.rules.together
        images = self.source.images(steps, together=together)
        batches = images.chunk(steps)
        if together:
            wanted = self.teacher(images).chunk(steps)
        else:
            wanted = tuple(self.teacher(batch) for batch in batches)
        size = self.source.settings.batch_size
        stamps = mixed_stamps(self.families, size, steps, together=together)
        return list(zip(batches, wanted, stamps, strict=True))

    def _student_step(self, images: Tensor, wanted: Tensor, stamps: Tensor) -> Tensor:
        clean, stamped = self._both(images, images + stamps)
        distance = gap(clean, wanted)
        change = sensitivity(clean, stamped, squared=self.rules.distance == "squared")
        loss = distance + self.rules.insensitivity * change
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's stub lacks the type
        self.optimizer.step()
        return distance.detach()

    def _both(self, images: Tensor, stamped: Tensor) -> tuple[Tensor, Tensor]:
        """The student's logits, each set normalised by its own batch statistics."""
        everything = self.rules.statistics == "all"
        if self.rules.together:
            updating = None if everything else (0,)
            with grouped_statistics(self.student, 2, updating=updating):
                first, second = self.student(torch.cat((images, stamped))).chunk(2)
            return first, second
        clean = self.student(images)
        with self._without_updates():
            return clean, self.student(stamped)

    def _pattern_step(self) -> Tensor:
        size = self.source.settings.batch_size
        images = self.source.images()
        with self._without_updates():
            with torch.no_grad():
                clean = self.student(images)
            changed = self.student(images + mixed_stamps(self.families, size)[0])
        change = sensitivity(clean, changed, squared=self.rules.distance == "squared")
        ascend(self.families, change)
        return change.detach()

    def record(self) -> dict[str, Any]:
        """The curves, as reports draw them."""
        names = {
            "gap": "distance from the original on synthetic images",
            "sensitivity": "sensitivity to generated patterns",
            "size": "mean size of the original's logits",
            "classes": "share of the classes in a synthetic batch",
        }
        steps = list(range(1, len(self.curves.gap) + 1))
        return {
            "curves": [
                {
                    "name": name,
                    "x_name": "iteration",
                    "x": steps,
                    "y": [float(value) for value in getattr(self.curves, key)],
                }
                for key, name in names.items()
            ]
        }

    def _without_updates(self) -> contextlib.AbstractContextManager[None]:
        """Batch statistics as ever; running ones stay where only clean steps may change them."""
        updating = None if self.rules.statistics == "all" else ()
        return grouped_statistics(self.student, 1, updating=updating)


def falling_cosine(share: float) -> float:
    """Half a cosine from 1 to 0 (ours)."""
    return 0.5 * (1 + math.cos(math.pi * share))


def steps_down(share: float) -> float:
    """The published schedule: a tenth after 60 % of the game, another tenth after 80 %.

    >>> steps_down(0.0), steps_down(0.6), steps_down(0.8)
    (1.0, 0.1, 0.01)
    """
    return 1.0 if share < 0.6 else 0.1 if share < 0.8 else 0.01
