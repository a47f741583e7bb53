"""RNP, reconstructive neuron pruning: forget what is clean, and what remains is the backdoor.

Idea, on a throw-away copy first: unlearn the clean images (``rnp_unlearning``); the backdoor, which
clean images do not touch, survives, and the copy falls back to the target class. Then let masks on
units bring the clean answers back (``rnp_recovering``); since masks can only shrink, they switch
off the units that pull to the target class. These units are pruned in the *original* network
(``rnp_pruning``):

    theta_hat = argmax_theta E CE(f(x; theta), y)              until ACC <= stop
    m = argmin_m E CE(f(x; m * theta_hat), y)                  m in [0, 1]
    f(.; 1[m > DT] * theta)

Paper: Li et al. 2023, "Reconstructive Neuron Pruning for Backdoor Defense", ICML, arXiv 2305.14876.
Only its abstract and Algorithm 1 could be reached; the settings of ``RNP.published()`` are those of
the official code.

Ours: the stop relative to chance, in eval mode, with a rate that adapts; units of any network
(``bezoar.units``), not of BatchNorm alone; the number of mask steps; the choice of DT by held-out
clean images; the short tuning after the pruning, which gives narrow networks, where each unit also
serves clean images, their accuracy back.

The unlearned network also names the target class (``inspect``; ``rnp_exposure``), sharpens trigger
inversion (``rnp_trigger``) and tells poisoned images from clean ones (``bezoar.sifting``).

Assumes one target class for the last three uses. Data: labelled clean images. Layers: any with
units. Known failures: triggers that are spread over many units (the l2-inv models of our pool):
pruning a few of them leaves the attack as it was.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar, Literal, Self

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.method import Evidence, Method, Needs, Repair, check_target_class, methods
from bezoar.methods.neural_cleanse_schedule import Inversion
from bezoar.methods.rnp_exposure import excess, expose, has_batch_norm, null_p_values
from bezoar.methods.rnp_pruning import Pruned, Pruning, choose
from bezoar.methods.rnp_recovering import Recovered, Recovering, recover
from bezoar.methods.rnp_trigger import Network, RecoveredTrigger, recover_trigger
from bezoar.methods.rnp_tuning import StayPruned, Tuning, tune
from bezoar.methods.rnp_unlearning import LEVELS, Unlearned, Unlearning, unlearn
from bezoar.other_weights import check_other_weights
from bezoar.training import Progress, no_progress
from bezoar.units import Choice, Units, find_units
from bezoar.wording import FALLBACK


@methods.register("rnp")
class RNP(Method, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The units that drag an unlearned network to the target class, pruned.

    Attributes:
        target_class: of the recovered trigger; None takes the class that the unlearned network
            falls back to. The pruning needs none.
        sites: which units: ``auto`` all scales of norms, heads, and the layers that no norm
            follows; ``norm`` scales alone, as in the official code; or other kinds.
        held_out: share, in (0, 1), of the clean images that choose how much is pruned and take no
            part in anything before it.
        unlearning: the first step.
        recovering: the second.
        pruning: the third.
        inversion: of the trigger; None recovers none.
        inverted_network: see ``recover_trigger``.
        level: share of the accuracy that is left in the network that the trigger is inverted on:
            0.75, 0.5 or 0.25.
        tuning: after the pruning; None leaves the network as it is, as the paper does.
        repeats: seeds in an inspection; each unlearns both halves of the images.
    """

    name: ClassVar[str] = "rnp"
    title: ClassVar[str] = "Reconstructive neuron pruning"
    paper: ClassVar[str] = "Li et al. 2023, arXiv 2305.14876"
    needs: ClassVar[Needs] = "labelled images"
    layers: ClassVar[str] = "any with norms, convolutions, hidden linear layers or attention heads"
    cost: ClassVar[str] = "about 30 passes over the images, forward and backward"
    inspects: ClassVar[bool] = True

    target_class: int | None = None
    sites: Choice | tuple[Literal["norm", "conv", "linear", "heads"], ...] = "auto"
    held_out: float = 0.3
    unlearning: Unlearning = Unlearning()
    recovering: Recovering = Recovering()
    pruning: Pruning = Pruning()
    inversion: Inversion | None = Inversion()
    inverted_network: Network = "original"
    level: float = 0.5
    tuning: Tuning | None = Tuning()
    repeats: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out is {self.held_out}; expected a share between 0 and 1")
        if self.level not in LEVELS:
            raise InputError(f"level is {self.level}; expected one of {LEVELS}")
        if self.repeats < 1:
            raise InputError(f"repeats is {self.repeats}; expected at least 1")

    @classmethod
    def published(cls) -> Self:
        """The official code's settings for CIFAR-10: BatchNorm scales, no tuning.

        Its threshold was read off the attacker's success. Here held-out images choose among the
        same thresholds; a fifth of the images is kept for that.
        """
        return cls(
            sites="norm",
            held_out=0.2,
            unlearning=Unlearning.published(),
            recovering=Recovering.published(),
            pruning=Pruning.published(),
            inversion=None,
            tuning=None,
        )

    def inspect(
        self,
        classifier: Classifier,
        clean: ImageSet,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Evidence:
        """The class that draws the images as they are unlearned, over seeds and halves.

        Raises:
            InputError: no labels, too few images to halve, or no such target class.
        """
        started = time.perf_counter()
        check_target_class(self.target_class, classifier.trace(clean.shape))
        exposure = expose(
            classifier, clean, self.unlearning, repeats=self.repeats, seed=seed, progress=progress
        )
        exposed = time.perf_counter()
        found = None
        if self.inversion is not None:
            found = self._trigger(
                classifier,
                exposure.unlearned,
                exposure.first_half,
                exposure.second_half,
                exposure.fallback if self.target_class is None else self.target_class,
                seed,
                progress,
            )
        scores, p_values, null = null_p_values(
            exposure.shares, batch_norm=has_batch_norm(classifier.network)
        )
        carried = None
        if found is not None:
            (suspect,) = found.triggers.classes
            carried = tuple(
                found.carried if k == suspect else 0.0 for k in range(classifier.num_classes)
            )
        return Evidence(
            method=self.name,
            statistic="Share of the lost images that do not go to the class",
            values=tuple(1 - share for share in exposure.shares),
            scores=scores,
            p_values=p_values,
            null=null,
            carried=carried,
            recovered=None if found is None else found.triggers,
            words=FALLBACK,
            record={
                "paper": self.paper,
                "configuration": self.configuration(),
                "exposure": exposure.as_record(),
                "trigger": None if found is None else found.as_record(),
                "seconds": {
                    "unlearning": exposed - started,
                    "inverting": time.perf_counter() - exposed,
                },
            },
        )

    def remove(
        self,
        classifier: Classifier,
        clean: ImageSet,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Repair:
        """Prunes a copy and tunes what is left.

        Raises:
            InputError: no labels, too few images to hold some out, no units, no such target class,
                or a network that is recomputed for gradients.
        """
        clean.require_labels("RNP")
        check_target_class(self.target_class, classifier.trace(clean.shape))
        units = find_units(classifier, sites=self.sites)
        check_other_weights(classifier)
        fitted, held_out = clean.split(1 - self.held_out, seed=seed)
        if len(fitted) < 2 or not len(held_out):
            raise InputError(
                f"RNP needs images to unlearn and others to choose the pruning by; {len(clean)} "
                "are too few: give at least two of each class"
            )
        clock = _Clock()
        unlearned = unlearn(classifier, fitted, self.unlearning, seed=seed, progress=progress)
        clock.lap("unlearning")
        recovered = recover(
            unlearned.classifier, units, fitted, self.recovering, seed=seed, progress=progress
        )
        clock.lap("recovering")
        target = unlearned.fallback if self.target_class is None else self.target_class
        original = classifier.copy()
        original.network.eval()

        def trigger(seed: int) -> RecoveredTrigger:
            return self._trigger(original, unlearned, fitted, held_out, target, seed, progress)

        found = None if self.inversion is None else trigger(seed)
        clock.lap("inverting")
        watched = None if found is None else lambda network: found.carried_by(network, held_out)
        pruned = choose(classifier, units, recovered, held_out, self.pruning, watched)
        bias = self.pruning.prune_bias
        repaired = units.write(classifier, pruned.kept, pruned.kept if bias else None)
        clock.lap("pruning")
        tuned = None
        small = found is not None and self.tuning is not None and found.covers <= self.tuning.small
        if self.tuning is not None and (pruned.count or small):
            tuned = tune(
                original,
                repaired,
                lambda network: StayPruned(network, units, pruned.kept, bias=bias),
                clean,
                held_out,
                self.tuning,
                trigger=found,
                died=pruned.died,
                excess=excess(float(unlearned.pull.max()), classifier.num_classes),
                second=lambda: trigger(seed + 1),
                seed=seed,
                progress=progress,
            )
            repaired = tuned.classifier
            clock.lap("tuning")
        progress("RNP", 1.0)
        return Repair(
            repaired,
            {
                "target_class": target,
                "unlearning": unlearned.as_record(),
                "units": len(units),
                "unit_sites": [[site.name, site.kind, site.size] for site in units.sites],
                "skipped_layers": [list(item) for item in units.skipped],
                "masks": _masks_record(units, recovered),
                "trigger": None if found is None else found.as_record(),
                "pruning": pruned.as_record(units),
                "tuning": None if tuned is None else tuned.as_record(),
                "flags": _flags(unlearned, pruned),
                "curves": _curves(unlearned, recovered, pruned),
                "seconds": clock.seconds(),
            },
        )

    # -- inner works -----------------------------------------------------------------------------

    def _trigger(
        self,
        classifier: Classifier,
        unlearned: Unlearned,
        clean: ImageSet,
        held_out: ImageSet,
        target: int,
        seed: int,
        progress: Progress,
    ) -> RecoveredTrigger:
        assert self.inversion is not None  # noqa: S101 (the callers asked)
        return recover_trigger(
            classifier,
            unlearned,
            clean,
            held_out,
            target,
            self.inversion,
            level=self.level,
            network=self.inverted_network,
            seed=seed,
            progress=progress,
        )


class _Clock:
    """Seconds of the steps."""

    def __init__(self) -> None:
        self.started = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now

    def seconds(self) -> dict[str, float]:
        return self.laps | {"total": time.perf_counter() - self.started}


def _flags(unlearned: Unlearned, pruned: Pruned) -> list[str]:
    """What the user should know before trusting the repair."""
    flags = []
    if not unlearned.reached:
        flags.append(
            f"Unlearning did not reach an accuracy of {unlearned.stop:.3f}; the masks may show "
            "nothing."
        )
    if not max(pruned.counts, default=0):
        flags.append(
            "Nothing was pruned: by their masks and the largest share that may go, no unit was a "
            "candidate."
        )
    elif not pruned.count:
        flags.append(
            "Nothing was pruned: even the most suspicious unit costs more than the held-out images "
            "allow."
        )
    elif pruned.insufficient:
        flags.append(
            "Not all units that the masks switched off could be pruned; a part of a backdoor may "
            "be left."
        )
    return flags


def _masks_record(units: Units, recovered: Recovered) -> dict[str, Any]:
    masks = recovered.masks
    return {
        "zero": int((masks == 0).sum()),
        "at most 0.05": int((masks <= 0.05).sum()),
        "below 1": int((masks < 1).sum()),
        "zero per site": {
            site.name: int((masks[part] == 0).sum())
            for site, part in zip(units.sites, units.slices, strict=True)
            if bool((masks[part] == 0).any())
        },
    }


def _curves(unlearned: Unlearned, recovered: Recovered, pruned: Pruned) -> list[dict[str, Any]]:
    steps = list(range(1, len(recovered.loss) + 1))
    return [
        {
            "name": "accuracy while unlearning",
            "x_name": "step",
            "x": unlearned.steps,
            "y": unlearned.accuracy,
        },
        {
            "name": "share of the commonest answer",
            "x_name": "step",
            "x": unlearned.steps,
            "y": unlearned.top_share,
        },
        {"name": "loss while recovering", "x_name": "step", "x": steps, "y": recovered.loss},
        {
            "name": "held-out images while pruning",
            "x_name": "pruned units",
            "x": pruned.counts,
            "y": pruned.held_out,
        },
        *(
            [
                {
                    "name": "recovered trigger while pruning",
                    "x_name": "pruned units",
                    "x": pruned.counts,
                    "y": pruned.carried,
                }
            ]
            if pruned.carried
            else []
        ),
    ]
