"""RNP's second use: the class that draws the unlearned images is the suspected target.

    y_t = argmax_k f(x; theta_hat)_k      on clean images x                    (Algorithm 1, line 5)

Paper: Li et al. 2023, arXiv 2305.14876; a single image and the end of the unlearning decide there.
Ours: the *lost* images, which the network answered rightly before and no longer does, and the share
of them that each class draws when three and two quarters of the accuracy are left
(``Unlearned.pull``). At the end every network falls somewhere; a backdoor draws from the start. The
mean over seeds and over both halves of the images steadies it. The score knows no number of
classes; a lost image can go to K - 1 of them:

    excess_k = ((K - 1) pull_k - 1) / (K - 2)       1: k draws all lost images, 0: as many as others

Its null is measured: the largest excess over the classes of networks without a backdoor
(``benchmarks/rnp_detection.py`` wrote ``data/rnp_null.json``). The follow-up code of the paper's
first author tests the variance of the histogram against 0.01 instead, which 100 classes can never
reach.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.rnp_unlearning import EARLY, Unlearned, Unlearning, unlearn
from bezoar.methods.statistics_prior import batch_norms
from bezoar.packaged import packaged
from bezoar.training import Progress, no_progress

NULL = "data/rnp_null.json"  # written by benchmarks/rnp_detection.py


@dataclass
class Exposure:
    """What repeated unlearning showed.

    Attributes:
        shares: for each class, the mean share of lost images that it draws; they sum to 1.
        runs: the shares of each run.
        fallbacks: the class that draws most, of each run.
        unlearned: the first run.
        first_half: the images it unlearned.
        second_half: the others.
        reached: how many runs reached the stop.
    """

    shares: tuple[float, ...]
    runs: tuple[tuple[float, ...], ...]
    fallbacks: tuple[int, ...]
    unlearned: Unlearned
    first_half: ImageSet
    second_half: ImageSet
    reached: int

    @property
    def fallback(self) -> int:
        """The class with the largest mean share."""
        return max(range(len(self.shares)), key=self.shares.__getitem__)

    def as_record(self) -> dict[str, Any]:
        """The figures."""
        return {
            "shares": list(self.shares),
            "excess": [excess(share, len(self.shares)) for share in self.shares],
            "fallbacks": list(self.fallbacks),
            "runs": len(self.runs),
            "runs that reached the stop": self.reached,
            "unlearning": self.unlearned.as_record(),
        }


def excess(share: float, classes: int) -> float:
    """How far a share of the lost images is from chance, whatever the number of classes.

    >>> excess(1.0, 43), excess(0.25, 5)
    (1.0, 0.0)
    """
    return ((classes - 1) * share - 1) / max(1, classes - 2)


def expose(
    classifier: Classifier,
    clean: ImageSet,
    settings: Unlearning,
    *,
    repeats: int,
    seed: int,
    progress: Progress = no_progress,
) -> Exposure:
    """Unlearns both halves of ``clean`` with each of ``repeats`` seeds, until half is lost.

    Raises:
        InputError: no labels, or fewer than four images.
    """
    clean.require_labels("RNP")
    if len(clean) < 4:
        raise InputError(
            f"{len(clean)} clean images cannot be halved; give at least two of each class"
        )
    halves = clean.split(0.5, seed=seed)
    if min(map(len, halves)) < 2:
        raise InputError("half of the clean images is too few; give at least two of each class")
    first: Unlearned | None = None  # the others are not kept: each holds four states
    shares, reached = [], 0
    for repeat in range(repeats):
        for part, half in enumerate(halves):
            what = f"RNP: unlearning, run {2 * repeat + part + 1} of {2 * repeats}"
            run = unlearn(
                classifier,
                half,
                settings,
                seed=seed + repeat,
                until=EARLY[-1],
                progress=progress,
                what=what,
            )
            shares.append(tuple(run.pull.tolist()))
            first, reached = first or run, reached + run.reached
    assert first is not None  # noqa: S101 (repeats is at least 1)
    return Exposure(
        shares=tuple(statistics.fmean(column) for column in zip(*shares, strict=True)),
        runs=tuple(shares),
        fallbacks=tuple(max(range(len(row)), key=row.__getitem__) for row in shares),
        unlearned=first,
        first_half=halves[0],
        second_half=halves[1],
        reached=reached,
    )


@functools.cache
def null_excesses(batch_norm: bool) -> tuple[float, ...]:
    """The largest excess of each measured network without a backdoor, in order.

    Args:
        batch_norm: of those with batch norms, or of those without any.
    """
    return tuple(packaged(NULL)["batch norm" if batch_norm else "no norm"])


def least_p_value(batch_norm: bool) -> float:
    """The smallest p-value that there can be: that of a network beyond all measured ones."""
    return 1 / (1 + len(null_excesses(batch_norm)))


def why_silent(network: nn.Module, classes: int, level: float) -> str:
    """Why no class can have a p-value of ``level`` or less, whatever it draws; empty if one can."""
    if classes < 3:
        return "of two classes one draws all the images that the other loses"
    if least_p_value(has_batch_norm(network)) > level:
        return "too few networks without batch norms were measured"
    return ""


def has_batch_norm(network: nn.Module) -> bool:
    """Whether the ascent normalises with batch statistics somewhere.

    Without that, networks without a backdoor fall into one class more often, and a common null
    would hide what unlearning shows of the others.
    """
    return bool(batch_norms(network))


def null_p_values(
    shares: Sequence[float], *, batch_norm: bool
) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """Scores and p-values of each class against the measured null, and the null in words.

    Scores are negative where a class draws more than the strongest one of networks without a
    backdoor, in standard deviations. The p-value of a class is the probability that the
    *largest* excess of such a network is as large, (1 + #{null >= excess}) / (1 + n), so it needs
    no correction for the number of classes.
    """
    null = null_excesses(batch_norm)
    mean, spread = statistics.fmean(null), statistics.stdev(null)
    found = [excess(share, len(shares)) for share in shares]
    scores = tuple((mean - value) / spread for value in found)
    p_values = tuple(
        (1 + sum(other >= value for other in null)) / (1 + len(null)) for value in found
    )
    words = (
        f"the largest excess of {len(null)} small networks without a backdoor and "
        f"{'with' if batch_norm else 'without'} batch norms (mean {mean:.2f}, standard deviation "
        f"{spread:.2f}, largest {null[-1]:.2f})"
    )
    return scores, p_values, words
