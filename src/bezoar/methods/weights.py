"""The rows of the last layer: a class whose weights reach unusually far up; no image is needed.

Idea: a trigger must win over everything else that an image shows, and whoever plants it, by
poisoned images or by editing the weights, gives the target's row of the last layer more to win
with. If every feature may rise by at most 1, the logit of class k rises above the mean logit by

    lift_k = sum_c max(0, w_kc - mean_j w_jc)

at most, and 1 / lift_k is the smallest rise of the features that brings it up by 1. The class with
an unusually small one is the suspect. This is TAC's question (how small a change of the features
leads into k?) asked of the weights alone, in the largest feature instead of the length, with the
mean class for a rival.

The test: the lifts of the classes against each other, Rosner's test for one or two outliers, so
that two targets do not hide each other (``statistics``). Lifts are sums of many weights, and taken
as normal.

Sources: Fields et al. 2021, "Trojan Signatures in DNN Weights", arXiv 2109.02836, of which
the abstract was at hand, tell a target class by the distribution of its row, above all by its mean.
The positive part and the test are ours. On the development half of our pool
the lift ranked the target first more often than the mean of the row, its length, its largest
weight, its cosine to the others or its bias. Multiplying each channel by its Lipschitz bound
(CLP, Zheng et al. 2022, arXiv 2208.03111) before the sum made it neither better nor worse on the
whole, depending on which of the layers that feed a sum the bound is taken from, and is left out; a
channel that stands out by that product alone betrays edited weights (TBT), and little else.

Assumes that features rise (as after ReLU) and that the training data had about as many images of
each class. Known failures: **a class that had three times as many training images as the others is
flagged as if it were a target**, nothing in the weights tells the two apart; triggers that poison
few images, or that keep the labels, leave the row as it is; a row can be scaled back after
training; more than two target classes hide each other; three classes or fewer cannot be tested.
Nothing is recovered, so this witness never proves anything alone.
"""

from __future__ import annotations

import math
import time
from typing import Any, ClassVar

from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.images import ImageSet
from bezoar.methods.method import Evidence, Method, Needs, methods
from bezoar.statistics import one_or_two_small
from bezoar.training import Progress, no_progress
from bezoar.wording import ONE_OR_TWO, Words

_WHAT = "reading the last layer's weights"
_WORDS = Words(
    value="rise of the features",
    absent="no rise",
    absence="no rise of the features lifts it above the mean class",
    scores="standard deviations beyond the other classes",
    judged=ONE_OR_TWO,
    unusual="has unusually strong weights in the last layer",
    exceeds="has stronger weights in the last layer than backdoor-free models show",
    looks_for="has stronger weights in the last layer than the others",
)


@methods.register("weights")
class Weights(Method, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The row of the last layer with the most to win with.

    It has no settings.
    """

    name: ClassVar[str] = "weights"
    title: ClassVar[str] = "The weights of the last layer, without data"
    paper: ClassVar[str] = "after Fields et al. 2021, arXiv 2109.02836"
    needs: ClassVar[Needs] = "nothing"
    layers: ClassVar[str] = "any, with a final linear layer"
    cost: ClassVar[str] = "none: one sum over the last layer"
    inspects: ClassVar[bool] = True

    def inspect(
        self,
        classifier: Classifier,
        clean: ImageSet | None = None,
        *,
        seed: int = 0,  # noqa: ARG002 (nothing is drawn)
        progress: Progress = no_progress,
    ) -> Evidence:
        """The lift of each class and its test. Nothing is drawn: every ``seed`` gives the same.

        Of ``clean`` only the size of the images is read, for a classifier that does not know it.

        Raises:
            InputError: the input size of ``classifier`` is not known, or there is no final linear
                layer.
        """
        started = time.perf_counter()
        progress(_WHAT, 0.0)
        if clean is not None:
            classifier.trace(clean.shape)
        weight = classifier.head.weight
        lifts = lifts_above_mean(weight).tolist()
        outliers = one_or_two_small([-lift for lift in lifts])
        progress(_WHAT, 1.0)
        record: dict[str, Any] = {
            "paper": self.paper,
            "configuration": self.configuration(),
            "lifts": lifts,
            "row_means": weight.double().mean(1).tolist(),
            "seconds": {"total": time.perf_counter() - started},
        }
        return Evidence(
            method=self.name,
            statistic="Rise of all features that lifts the class by 1 above the mean class",
            values=tuple(1 / lift if lift > 0 else math.inf for lift in lifts),
            scores=outliers.scores,
            p_values=outliers.p_values,
            null=(
                "the reciprocals (how far a rise of all features by 1 lifts a class), each against "
                "the other classes, and against these without the largest: Student's t, corrected "
                "for picking one or two of C (Rosner's test)"
            ),
            record=record,
            words=_WORDS,
        )


def lifts_above_mean(weight: Tensor) -> Tensor:
    """How far features that rise by at most 1 each lift a logit above the mean logit.

    Args:
        weight: of the last layer, (C, d).

    Returns:
        sum_c max(0, w_kc - mean_j w_jc) of each class k, (C,), float64, on the CPU.

    >>> import torch
    >>> lifts_above_mean(torch.tensor([[3.0, 0.0], [0.0, 0.0], [0.0, 3.0]])).tolist()
    [2.0, 0.0, 2.0]
    """
    rows = weight.detach().cpu().double()
    return (rows - rows.mean(0)).clamp(min=0).sum(1)
