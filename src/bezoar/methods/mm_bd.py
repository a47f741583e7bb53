"""MM-BD: the largest margin that any input gives a class; no image is needed.

Idea: a network that learned a backdoor learned to be surer of the target class, on inputs with the
trigger, than it is of any class without one, and inputs with far more of the trigger than any
stamped image make it surer still. So for each class k the margin is climbed over all inputs,

    r_k = max over x in [0, 1]^d of  z_k(x) - max_{j != k} z_j(x),

from several random starts, and the class with an unusually large r_k is the suspect. Nothing is
said of what the trigger looks like, so any kind is covered that raises the margin.

Paper: Wang et al. 2024, "MM-BD: Post-Training Detection of Backdoor Attacks with Arbitrary Backdoor
Pattern Types Using a Maximum Margin Statistic", IEEE S&P, arXiv 2205.06900. The paper itself was
not at hand; objective, starts and steps are those of the official code (univ_bd.py): 30 uniformly
random starts, gradient steps of 0.01 (its momentum is forgotten at every step), at most 300 of
them, and the largest margin of the starts. ``published()`` does that.

Ours: Adam with a falling step, which reaches about the same margins in a tenth of the steps, from
three starts, all classes side by side; inputs are projected into [0, 1] after each step, where the
code clamps what the network sees; no early end where a step gains little. **The test is ours**: the
code fits a Gamma distribution to all margins but the largest. Here the square roots of the margins
are compared, each against the other classes (Rosner's test for one or two outliers,
``statistics``): margins of networks without a backdoor are skewed, more so with many classes, so
that untransformed ones give false alarms, and logarithms hide the smaller backdoors. The root was
chosen on the development half of our pool. A class that no input leads to (r_k <= 0) counts as 0.

Assumes one target class, or a few among many. Data: none; only the size of the inputs is needed.
Known failures: triggers that the network answers with no more certainty than real images (smooth,
low-frequency ones; WaNet), and faint noise in small networks; more than two target classes hide
each other; three classes or fewer cannot be tested; the climbed input is no trigger, so this
witness never proves anything alone. An attacker who bounds the activations while training lowers
r_k.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.method import Evidence, Method, Needs, methods
from bezoar.methods.progress_parts import part_of
from bezoar.statistics import one_or_two_small
from bezoar.training import Progress, no_progress
from bezoar.wording import ONE_OR_TWO, Words

MOST_CLASSES = 100  # with more, networks without a backdoor contradict its test (``scan_null``)
_WHAT = "MM-BD: climbing the margins of all classes"
_WORDS = Words(
    value="reciprocal of the margin",
    absent="no margin",
    absence="no input was found that leads to it",
    scores="standard deviations beyond the other classes",
    judged=ONE_OR_TWO,
    unusual="can be answered with unusual certainty",
    exceeds="can be answered with more certainty than backdoor-free models show",
    looks_for="some input makes the network unusually sure of",
)
_BATCH = 256  # inputs that are climbed side by side
_MOMENTS = (0.9, 0.99)  # of Adam; short runs have no time for the usual 0.999
_TINY = 1e-12

Logits = Callable[[Tensor], Tensor]


@methods.register("mm-bd")
class MMBD(Method, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The class of which some input makes the network unusually sure.

    Attributes:
        starts: random inputs for each class.
        steps: of the ascent.
        step_size: of the first step, in pixels of range [0, 1]; with ``gradient`` it multiplies the
            gradient.
        ascent: ``adam`` with a step that falls to 0, or ``gradient`` steps that stay (official
            code).
    """

    name: ClassVar[str] = "mm-bd"
    title: ClassVar[str] = "MM-BD, the largest margin of each class, without data"
    paper: ClassVar[str] = "Wang et al. 2024, IEEE S&P, arXiv 2205.06900"
    needs: ClassVar[Needs] = "nothing"
    layers: ClassVar[str] = "any differentiable network"
    cost: ClassVar[str] = "90 inputs a class through the network, forwards and backwards"
    inspects: ClassVar[bool] = True

    starts: int = 3
    steps: int = 30
    step_size: float = 0.1
    ascent: Literal["adam", "gradient"] = "adam"

    def __post_init__(self) -> None:
        if self.starts < 1 or self.steps < 1 or not 0 < self.step_size < math.inf:
            raise InputError(
                f"starts is {self.starts}, steps {self.steps} and step_size {self.step_size}; "
                "expected at least 1, at least 1, and more than 0"
            )

    @classmethod
    def published(cls) -> Self:
        """The ascent of the official code, with our test."""
        return cls(starts=30, steps=300, step_size=0.01, ascent="gradient")

    def inspect(
        self,
        classifier: Classifier,
        clean: ImageSet | None = None,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Evidence:
        """The largest margin of each class and its test.

        Of ``clean`` only the size of the images is read, for a classifier that does not know it.

        Raises:
            InputError: the input size of ``classifier`` is not known.
        """
        started = time.perf_counter()
        if clean is not None:
            classifier.trace(clean.shape)
        count, shape = classifier.num_classes, classifier.input_shape
        wanted = torch.arange(count).repeat_interleave(self.starts)
        generator = torch.Generator().manual_seed(seed)
        batches = torch.split(wanted.to(classifier.device), _BATCH)
        parts: list[Tensor] = []
        with classifier.evaluating():
            for number, classes in enumerate(batches):
                drawn = torch.rand((len(classes), *shape), generator=generator)
                part = part_of(progress, number / len(batches), (number + 1) / len(batches))
                parts.append(self.climb(classifier, drawn.to(classes.device), classes, part))
        margins = torch.cat(parts).double().reshape(count, self.starts)
        largest = margins.amax(1)
        outliers = one_or_two_small((-largest.clamp(min=0).sqrt()).tolist())
        progress(_WHAT, 1.0)
        record: dict[str, Any] = {
            "paper": self.paper,
            "configuration": self.configuration(),
            "margins": margins.tolist(),
            "seconds": {"total": time.perf_counter() - started},
        }
        return Evidence(
            method=self.name,
            statistic="Reciprocal of the largest margin that an input gives the class",
            values=tuple(1 / r if r > 0 else math.inf for r in largest.tolist()),
            scores=outliers.scores,
            p_values=outliers.p_values,
            null=(
                "square roots of the margins, each against the other classes, and against these "
                "without the largest: Student's t, corrected for picking one or two of C (Rosner's "
                "test)"
            ),
            record=record,
            words=_WORDS,
        )

    def climb(
        self,
        logits: Logits,
        inputs: Tensor,
        classes: Tensor,
        progress: Progress = no_progress,
    ) -> Tensor:
        """The largest margin on the way up from each input, (n,), on the CPU.

        Args:
            logits: the network, in eval mode: each input is climbed for itself.
            inputs: the starts, (n, c, h, w) in [0, 1].
            classes: what each is to lead to, (n,).
            progress: called with the share of the steps.
        """
        first, second = _MOMENTS
        mean, square = torch.zeros_like(inputs), torch.zeros_like(inputs)
        best = torch.full((len(inputs),), -math.inf, device=inputs.device)
        for step in range(1, self.steps + 1):
            with torch.enable_grad():
                inputs = inputs.detach().requires_grad_()
                reached = margins_of(logits(inputs).float(), classes)
                (slope,) = torch.autograd.grad(reached.sum(), inputs)
            best = torch.maximum(best, reached.detach())
            with torch.no_grad():
                if self.ascent == "gradient":
                    inputs = (inputs + self.step_size * slope).clamp(0, 1)
                else:
                    mean = first * mean + (1 - first) * slope
                    square = second * square + (1 - second) * slope.square()
                    moved = (mean / (1 - first**step)) / (
                        (square / (1 - second**step)).sqrt() + _TINY
                    )
                    falling = self.step_size * (1 - (step - 1) / self.steps)
                    inputs = (inputs + falling * moved).clamp(0, 1)
            progress(_WHAT, step / self.steps)
        with torch.no_grad():
            reached = margins_of(logits(inputs).float(), classes)
        return torch.maximum(best, reached).cpu()


def margins_of(logits: Tensor, classes: Tensor) -> Tensor:
    """z_k less the largest other logit: logits (n, C), classes k (n,), margins (n,).

    >>> margins_of(torch.tensor([[5.0, 2.0, 1.0], [5.0, 2.0, 1.0]]), torch.tensor([0, 2])).tolist()
    [3.0, -4.0]
    """
    own = F.one_hot(classes, logits.shape[1]).bool()
    return logits[own] - logits.masked_fill(own, -math.inf).amax(1)
