"""The repair of a network in which nothing was found, for whoever asks for one all the same.

Where no class is suspected, there is no sign to repair by: what the triggers of the most unusual
class still carry says nothing about a backdoor that the scan did not see, and a repair that is
chosen by a hundred images because it seems to cost nothing is often just a lucky one. So one repair
is made, joint unlearning of that class's triggers, and it goes a fixed part of the way
(``how_far``), or less where the held-out images say that this costs too much. Ours.

On the pool's development half, as if nothing had been found, 0.6 of the way cost six backdoor-free
networks 0.4 points in the mean and 0.9 at most, and left an ASR of 14 % in twelve backdoored ones;
the whole way 1.5, 2.4 and 8 % (``benchmarks/precaution_shares.py``). On the held-out half, where it
goes less far at times, it cost six networks 0.5 points in the mean and 1.5 at most over two draws
of images.

Assumes that the most unusual class is the target. Known failures: another target, of which nothing
is unlearned.
"""

from __future__ import annotations

import time

from bezoar.accuracy_loss import Baseline
from bezoar.classifier import Classifier
from bezoar.how_far import between
from bezoar.images import ImageSet
from bezoar.methods import JointUnlearning, Repair
from bezoar.surviving import Survivors
from bezoar.training import Progress, no_progress
from bezoar.trying import Trial, Unlearning, Weighed

SHARES = (0.6, 0.5, 0.4, 0.3)  # of the way; the first that seems cheap enough is taken
LIMIT = 0.01  # largest loss of accuracy


def repair_as_precaution(
    original: Classifier,
    known: ImageSet,
    held_out: ImageSet,
    survivors: Survivors,
    *,
    max_accuracy_drop: float,
    seed: int,
    progress: Progress = no_progress,
) -> Trial:
    """Unlearns the triggers of the most unusual class, a part of the way.

    Args:
        original: stays as it is.
        known: labelled images that the repair works on.
        held_out: labelled images that judge it.
        survivors: the triggers of the original's most unusual class.
        max_accuracy_drop: largest loss of accuracy, in [0, 1]; where even the shortest way seems to
            cost more, that one is returned.
        seed: of the repair, and of the views that it is measured on.
        progress: called with what is done and its share.

    Raises:
        InputError: the unlearning diverged.
    """
    started = time.perf_counter()
    method = JointUnlearning(target_class=survivors.suspects[0])
    step = Unlearning(method, survivors, runs=1)  # as the shares were measured
    repair = step.remove(original, known, seed=seed, progress=progress)
    baseline = Baseline(original, held_out, seed=seed)
    for share in SHARES:
        network = between(original, repair.classifier, share)
        loss = baseline.loss(network)
        if loss.value <= max_accuracy_drop:
            break
    weighed = Weighed(loss, survivors.left(network), max_accuracy_drop)
    made = Repair(network, repair.record, repair.evidence)
    return Trial((step,), made, weighed, share, time.perf_counter() - started)
