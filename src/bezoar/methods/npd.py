"""NPD, neural polarizer: one linear layer inside a frozen network that filters the trigger out.

Idea: a trigger leaves its mark in some directions of the features. A 1x1 convolution P, the
identity at first, is put before a late layer and learns to weaken these directions; every weight of
the network stays. The trigger is not known, so each image gets its own small change that leads to
its most likely wrong class t (``npd_ascent``), and P has to undo what these changes do:

    min over P of  l1 CE(f_P(x), y) + l2 CE(f_P(x + delta), y) - l3 log(1 - p_k) - l4 log(1 - p_t)

where p are the probabilities of x + delta and k is the most likely class but y there.

Paper: Zhu, Wei, Zha, Wu, "Neural Polarizer: A Lightweight and Effective Backdoor Defense via
Purifying Poisoned Features", NeurIPS 2023, arXiv 2306.16697. Its body could not be reached; the
terms and ``published`` follow the authors' code in BackdoorBench.

Ours: P is linear, without a constant, and is folded into the weight of the layer behind it at the
end (``npd_layer``). The network keeps its keys and its size, and loads in the user's own code; the
released code saves a layer that a hook has to put in. For that the shift of the paper's BatchNorm
is left out, because a constant before a convolution that pads with zeros cannot be folded. Of the
BatchNorm its scale is kept: P = diag(s) K, both trained; its statistics are fixed at mean 0 and
variance 1, so that P really begins as the identity. Ours are also: the layer in other networks than
a PreActResNet-18, and by default the last convolution in the place of the first one of the last
block; a radius for every size of image; log(1 - p) from the logits, with gradients where p is close
to 1, where the code's log(1.0001 - p) has hardly any; by default smaller batches and a higher rate
that falls along a cosine, no warm-up, the label and not the network's answer to x as what x + delta
is to get (``wanted``), and a limit for the gradient's norm.

Everything runs in eval mode: running statistics stay. Data: labelled clean images, better as many
of each class (the code draws them so). Layers: a convolution of one group or a linear layer that
does not read the image. Known failures: what reaches the answer past the layer, through a shortcut,
is not filtered; a trigger that does not look like a small change of each image's own.
"""

from __future__ import annotations

import math
import time
from typing import Any, ClassVar, Self

import torch

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.epoch_curves import epoch_curves
from bezoar.methods.method import Method, Needs, Repair, methods
from bezoar.methods.npd_ascent import Ascent
from bezoar.methods.npd_layer import Late, Place, find_place, fold
from bezoar.methods.npd_training import TERMS, PolarizerTraining, Wanted
from bezoar.methods.progress_parts import part_of
from bezoar.training import History, Progress, Recipe, no_progress

_IDLE = 0.1  # share of the samples that must be led astray for the training to mean something


@methods.register("npd")
class NPD(Method, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A polarizer before a late layer, trained against targeted samples and folded into it.

    Attributes:
        layer: name of the module to stand before; None finds a late one.
        late: which one is found: the last ``convolution``, or the first one of its ``block`` (the
            paper's place).
        weights: l1 to l4 of the loss.
        wanted: what the changed images are to be taken for: their ``label``, or the ``answer`` that
            the network gives to the plain image at this step (released code).
        ascent: how the samples are found.
        recipe: how the polarizer is trained; its momentum is the plain one.
        warm_up: training on plain images before; None does without.
    """

    name: ClassVar[str] = "npd"
    title: ClassVar[str] = "Neural polarizer"
    paper: ClassVar[str] = "Zhu et al. 2023, arXiv 2306.16697"
    needs: ClassVar[Needs] = "labelled images"
    layers: ClassVar[str] = "a convolution of one group, or a linear layer behind the first one"
    cost: ClassVar[str] = "20 epochs on the clean images, each of them three passes"

    layer: str | None = None
    late: Late = "convolution"
    weights: tuple[float, float, float, float] = (1.0, 0.4, 0.4, 0.4)
    wanted: Wanted = "label"
    ascent: Ascent = Ascent()
    recipe: Recipe = Recipe(epochs=20, batch_size=32, learning_rate=0.05, clip_norm=5.0)
    warm_up: Recipe | None = None

    def __post_init__(self) -> None:
        if not all(0 <= weight < math.inf for weight in self.weights) or not any(self.weights):
            raise InputError(
                f"weights is {self.weights}; expected four numbers of 0 or more, one above 0"
            )

    @classmethod
    def published(cls) -> Self:
        """The released settings for CIFAR-10; the layer is found, and has no shift.

        The warm-up of the code, five epochs at 1e-4 without momentum, also takes the statistics of
        its BatchNorm, which has none here.
        """
        return cls(
            late="block",
            wanted="answer",
            ascent=Ascent.published(),
            recipe=Recipe(epochs=50, batch_size=128, learning_rate=0.01, schedule="constant"),
            warm_up=Recipe(
                epochs=5,
                batch_size=128,
                learning_rate=1e-4,
                schedule="constant",
                momentum=0.0,
                weight_decay=0.0,
            ),
        )

    def remove(
        self,
        classifier: Classifier,
        clean: ImageSet,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Repair:
        """Returns a copy with the polarizer in the weight of one layer.

        Raises:
            InputError: no labels, or some that the network has no logit for; no layer to stand
                before, or not the one that was asked for; or the training diverged.
        """
        clean.require_labels("NPD")
        clean.class_counts(classifier.trace(clean.shape).num_classes)
        started = time.perf_counter()
        place = find_place(classifier, self.layer, self.late)
        training = PolarizerTraining(
            classifier.copy(), place, self.ascent, self.weights, self.wanted
        )
        share = 0.0
        if self.warm_up is not None:
            share = self.warm_up.epochs / (self.warm_up.epochs + 3 * self.recipe.epochs)
            training.run(clean, self.warm_up, False, seed, part_of(progress, 0.0, share))
        history = training.run(clean, self.recipe, True, seed, part_of(progress, share, 1.0))
        polarizer = training.polarizer().detach()
        moved = polarizer - torch.eye(place.channels, device=polarizer.device)
        return Repair(
            fold(classifier, place, polarizer),
            {
                "layer": place.layer,
                "channels": place.channels,
                "moved": float(moved.norm() / math.sqrt(place.channels)),
                "led astray": training.led[-1],
                "flags": _flags(place, training.led),
                "curves": _curves(history, training),
                "seconds": {"training": time.perf_counter() - started},
            },
        )


def _flags(place: Place, led: list[float]) -> list[str]:
    flags = []
    if led[0] < _IDLE:
        flags.append(
            f"Only {led[0]:.0%} of the images could be led to another class in the first epoch; "
            "the polarizer had little to learn from. A larger radius leads more of them."
        )
    if not place.spatial:
        flags.append(
            f"The network has no late convolution to stand before; the polarizer is in the linear "
            f"layer {place.layer!r}."
        )
    return flags


def _curves(history: History, training: PolarizerTraining) -> list[dict[str, Any]]:
    lines = {"loss": history.loss, "share that was led astray": training.led}
    for number, name in enumerate(TERMS):
        lines[f"term {name}"] = [row[number] for row in training.terms]
    return epoch_curves(lines)
