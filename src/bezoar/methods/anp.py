"""ANP, adversarial neuron pruning: units through which small changes of weights break the answers.

Idea: in a network with a backdoor a small change of a few units' weights is enough to send every
image to the target class, without any trigger. Masks are learned that keep the answers right under
the worst such change (``anp_masks``), and the units whose masks fell are pruned:

    min over m in [0, 1]^n
        alpha L(m w, b) + (1 - alpha) max_{|d|, |x| <= eps} L((m + d) w, (1 + x) b);
    f(.; 1[m > t] w, b)

Paper: Wu and Wang 2021, "Adversarial Neuron Pruning Purifies Backdoored Deep Models", NeurIPS,
arXiv 2110.14430. Its text could not be reached; settings follow the official code, which prints the
attacker's success for all t and chooses none. The fixed t = 0.2 of ``published()`` is from memory.

Ours: units of any network (``bezoar.units``), not of BatchNorm alone; an inner maximum that stays
within eps, and half of the eps; a tenth of the iterations, on half as many images; and the
threshold: units go one by one in the order of their masks, those at 0 in the order of reaching it,
while the accuracy on held-out clean images allows it (``clean_choice``).

Data: labelled clean images. Layers: any with units. Known failures: the threshold decides
everything, and clean images know only what it costs; networks without a backdoor lose accuracy up
to the same limit; with few iterations the masks are not yet two heaps, one near 0 and one near 1.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.anp_masks import MaskLearning, Masks, learn_masks
from bezoar.methods.clean_choice import accuracy_of, last_above
from bezoar.methods.method import Method, Needs, Repair, methods
from bezoar.training import Progress, no_progress
from bezoar.units import Choice, Units, find_units

_GRID = tuple(step / 20 for step in range(1, 19))  # 0.05 to 0.9, as in the official code


@methods.register("anp")
class ANP(Method, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The units that an adversary of the weights would use, pruned.

    Attributes:
        sites: which units: ``auto`` all scales of norms, heads, and the layers that no norm
            follows; ``norm`` scales alone, as in the official code; or other kinds.
        masks: how they are learned.
        threshold: prunes every mask up to this value, in [0, 1], whatever it costs; None lets
            held-out images choose.
        max_drop: what their accuracy may lose, in [0, 1].
        held_out: share, in (0, 1), of the clean images that choose the threshold and take no part
            in the masks. With a fixed threshold the masks are learned on all.
    """

    name: ClassVar[str] = "anp"
    title: ClassVar[str] = "Adversarial neuron pruning"
    paper: ClassVar[str] = "Wu and Wang 2021, arXiv 2110.14430"
    needs: ClassVar[Needs] = "labelled images"
    layers: ClassVar[str] = "any with norms, convolutions, hidden linear layers or attention heads"
    cost: ClassVar[str] = "200 steps on 64 images, each three times forward and backward"
    sweeps: ClassVar[bool] = True

    sites: Choice | tuple[Literal["norm", "conv", "linear", "heads"], ...] = "auto"
    masks: MaskLearning = MaskLearning()
    threshold: float | None = None
    max_drop: float = 0.05
    held_out: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out is {self.held_out}; expected a share between 0 and 1")
        for name in ("max_drop", "threshold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"{name} is {value}; expected a value in [0, 1]")

    @classmethod
    def published(cls) -> Self:
        """The official code's settings for CIFAR-10 and a fixed threshold of 0.2 (from memory).

        The code draws batches with replacement; here they are epochs.
        """
        return cls(sites="norm", masks=MaskLearning.published(), threshold=0.2)

    def remove(
        self,
        classifier: Classifier,
        clean: ImageSet,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Repair:
        """Returns a pruned copy.

        Raises:
            InputError: no labels, or one that the network has no class for, too few images, or no
                units.
        """
        clean.require_labels("ANP")
        clean.class_counts(classifier.trace(clean.shape).num_classes)
        units = find_units(classifier, clean.shape, sites=self.sites)
        fitted, held_out = clean, None
        if self.threshold is None:
            fitted, held_out = clean.split(1 - self.held_out, seed=seed)
        if len(fitted) < 2 or (held_out is not None and not len(held_out)):
            raise InputError(
                f"ANP needs images to learn masks on and others to choose the threshold by; "
                f"{len(clean)} are too few: give at least two of each class"
            )
        started = time.perf_counter()
        masks = learn_masks(classifier, units, fitted, self.masks, seed=seed, progress=progress)
        learned = time.perf_counter()

        def built(count: float) -> Classifier:
            made = units.write(classifier, kept_units(masks, int(count)))
            made.network.eval()
            return made

        chosen: dict[str, Any] = {"tried": [], "accuracy": [], "floor": None}
        if held_out is None:
            count = up_to(masks, self.threshold or 0.0)
            repaired = built(count)
        else:
            floor = accuracy_of(classifier, held_out) - self.max_drop
            choice = last_above(floor, walked_counts(masks), built, held_out)
            count, repaired, chosen = int(choice.setting), choice.classifier, choice.as_record()

        def others() -> Iterator[tuple[str, Classifier]]:
            seen = {count}
            for threshold in _GRID:
                other = up_to(masks, threshold)
                if other not in seen:
                    seen.add(other)
                    yield f"threshold {threshold:.2f}", built(other)

        done = time.perf_counter()
        progress("ANP", 1.0)
        ordered = masks.values.sort().values
        record: dict[str, Any] = {
            "units": len(units),
            "unit_sites": [[site.name, site.kind, site.size] for site in units.sites],
            "skipped_layers": [list(item) for item in units.skipped],
            "masks": {
                "zero": up_to(masks, 0.0),
                "at most 0.2": up_to(masks, 0.2),
                "at most 0.9": up_to(masks, 0.9),
                "below 1": int((masks.values < 1).sum()),
            },
            "pruning": {
                "count": count,
                "of": len(units),
                "threshold": float(ordered[count - 1]) if count else None,
                "floor": chosen["floor"],
                "held_out_before": chosen["accuracy"][0] if chosen["accuracy"] else None,
                "held_out_after": _of(chosen, count),
                "pruned": _labels(units, kept_units(masks, count)),
            },
            "flags": self._flags(count),
            "curves": _curves(masks, chosen),
            "seconds": {
                "masks": learned - started,
                "pruning": done - learned,
                "total": done - started,
            },
        }
        return Repair(repaired, record, alternatives=others)

    def _flags(self, count: int) -> list[str]:
        """What the user should know before trusting the repair."""
        flags = []
        if not count and self.threshold is None:
            flags.append(
                "Nothing was pruned: even the units with the smallest masks cost more than the "
                "held-out images allow."
            )
        elif not count:
            flags.append(f"Nothing was pruned: no mask fell to {self.threshold:g}.")
        if self.threshold is not None:
            flags.append("The threshold was given, so no held-out image says what it costs.")
        return flags


def kept_units(masks: Masks, count: int) -> Tensor:
    """The factors (n,): 0 for the first ``count`` units in the order of the masks, 1 for others."""
    kept = torch.ones(len(masks.values))
    kept[masks.order()[:count]] = 0
    return kept


def up_to(masks: Masks, threshold: float) -> int:
    """How many masks are at most ``threshold``."""
    return int((masks.values <= threshold).sum())


def walked_counts(masks: Masks) -> list[int]:
    """How many units go at each point of the walk: none, one, two, and so on; never all.

    Masks of 1 stay. Where many units are gone single ones matter little, and points are skipped.
    """
    counts = [0]
    most = min(int((masks.values < 1).sum()), len(masks.values) - 1)
    while counts[-1] < most:
        counts.append(min(most, counts[-1] + max(1, counts[-1] // 16)))
    return counts


def _of(chosen: dict[str, Any], count: int) -> float | None:
    found: list[float] = chosen["accuracy"]
    return found[chosen["tried"].index(count)] if found else None


def _labels(units: Units, kept: Tensor) -> list[str]:
    return [units.label(unit) for unit in torch.nonzero(kept == 0).flatten().tolist()]


def _curves(masks: Masks, chosen: dict[str, Any]) -> list[dict[str, Any]]:
    steps = list(range(1, len(masks.plain) + 1))
    curves = [
        {"name": "loss", "x_name": "iteration", "x": steps, "y": masks.plain},
        {
            "name": "loss under the worst perturbation",
            "x_name": "iteration",
            "x": steps,
            "y": masks.perturbed,
        },
    ]
    if chosen["tried"]:
        curves.append(
            {
                "name": "held-out accuracy while pruning",
                "x_name": "pruned units",
                "x": chosen["tried"],
                "y": chosen["accuracy"],
            }
        )
    return curves
