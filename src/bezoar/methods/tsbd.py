"""TSBD, two-stage backdoor defense: weights that unlearning changes most go, the rest is tuned.

Idea: as a network unlearns *clean* images, the neurons whose weights change most are those that
change most as it unlearns the backdoor, too. So a copy unlearns the clean images (RNP's first
step), the weights that changed most in the neurons that changed most become 0 in the original
(``tsbd_reinitialisation``), and what was lost is tuned back. Neurons of a network with a backdoor
also have larger gradients, so the tuning punishes the norm of the gradient:

    g = (1 - alpha) grad L(w) + alpha grad L(w + r grad L(w) / ||grad L(w)||)

Paper: Lin, Liu, Wei, Li, Xiong, "Unveiling and Mitigating Backdoor Vulnerabilities based on
Unlearning Weight Changes and Backdoor Activeness", NeurIPS 2024, arXiv 2405.20291. Its body was
not read; formulas and ``published()`` follow the released code. That code repairs with every n,
measures each with the attacker's trigger, and chooses none.

Ours: n is the last of the code's candidates before the accuracy on held-out images falls below a
floor; it is measured with the zeros in place and BatchNorm statistics of the clean images, before
the tuning, which brings accuracy back. The unlearning stops relative to chance (the code: at 0.10,
chance for ten classes) and adapts its rate; the direction has one norm for all tensors together
(the code: one for each, and a gradient of zero divides by zero); a neuron is compared with its own
layer; shortcuts are told by tracing; weight decay, a falling rate, smaller batches, a limit for the
gradient's norm, and the augmentation that the network tolerates.

Data: labelled clean images. Layers: convolutions and hidden linear layers. Known failures: in
narrow networks the neurons that unlearning changes serve clean images as well, so accuracy allows
few of them; what is left of the backdoor is then up to the tuning.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.clean_choice import accuracy_of, last_above
from bezoar.methods.epoch_curves import epoch_curves
from bezoar.methods.method import Method, Needs, Repair, methods
from bezoar.methods.moved_weights import Weights, loss_at_moved_weights, norm_of
from bezoar.methods.rnp_unlearning import Unlearned, Unlearning, unlearn
from bezoar.methods.tolerated import recipe_for
from bezoar.methods.tsbd_reinitialisation import Measure, Reinitialisation
from bezoar.training import Progress, Recipe, fit, no_progress
from bezoar.units import find_units

GRID = (0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 0.9)  # n, in the released code


@methods.register("tsbd")
class TSBD(Method, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Zeros where unlearning changed most, and tuning that keeps gradients small.

    Attributes:
        unlearning: of the clean images; RNP's default, so that both can share one.
        sites: which layers have neurons.
        measure: what orders them; see ``neuron_changes``.
        n: share of the neurons, in [0, 1]; None lets held-out images choose among ``GRID``.
        m: share of the weights of these neurons that becomes 0, in [0, 1].
        tolerance: share of the held-out accuracy that the zeros may cost before the tuning.
        held_out: share of the images that chooses n; the unlearning is of the others, the tuning
            uses all. With a fixed n all images are unlearned.
        r: how far the weights move along the gradient.
        alpha: weight of the gradient there, in [0, 1].
        normalise: the direction has norm 1 as a whole (``global``) or in every tensor.
        recipe: of the tuning; its label smoothing counts. None leaves the zeroed network.
        augment: ``tolerated`` uses the flips and shifts that cost the original network no accuracy,
            ``recipe`` what the recipe says.
    """

    name: ClassVar[str] = "tsbd"
    title: ClassVar[str] = "Two-stage backdoor defense"
    paper: ClassVar[str] = "Lin et al. 2024, arXiv 2405.20291"
    needs: ClassVar[Needs] = "labelled images"
    layers: ClassVar[str] = "any with convolutions or hidden linear layers"
    cost: ClassVar[str] = "about 10 epochs of unlearning, 20 of tuning with two passes a step"
    sweeps: ClassVar[bool] = True

    unlearning: Unlearning = Unlearning()
    sites: tuple[Literal["conv", "linear"], ...] = ("conv", "linear")
    measure: Measure = "relative"
    n: float | None = None
    m: float = 0.7
    tolerance: float = 0.2
    held_out: float = 0.2
    r: float = 0.05
    alpha: float = 0.7
    normalise: Literal["global", "tensor"] = "global"
    recipe: Recipe | None = Recipe(epochs=20, batch_size=32, learning_rate=0.01, clip_norm=5.0)
    augment: Literal["tolerated", "recipe"] = "tolerated"

    def __post_init__(self) -> None:
        for name in ("n", "m", "alpha"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"{name} is {value}; expected a share in [0, 1]")
        if not 0 <= self.tolerance < 1:
            raise InputError(f"tolerance is {self.tolerance}; expected a share in [0, 1)")
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out is {self.held_out}; expected a share between 0 and 1")
        if not 0 <= self.r < math.inf:
            raise InputError(f"r is {self.r}; expected a finite distance of 0 or more")
        if not self.sites:
            raise InputError("sites is empty; expected 'conv', 'linear' or both")

    @classmethod
    def published(cls) -> Self:
        """The released code's settings for CIFAR-10, and n = 0.15 (from memory).

        Its stop of 0.10 is chance for ten classes, and is taken as that; its tests of the stop come
        after each epoch of 2500 images, here after as many steps. The momentum of the tuning is
        Nesterov's here, and what has ``shortcut`` in its name there is told by tracing.
        """
        return cls(
            unlearning=Unlearning(
                learning_rate=1e-4,
                momentum=0.9,
                weight_decay=0.0,
                batch_size=256,
                max_epochs=1000,
                stop_over_chance=1.0,
                check_every=10,
                adapt=False,
                crop_padding=4,
                flip=True,
            ),
            sites=("conv",),
            measure="sum",
            n=0.15,
            normalise="tensor",
            recipe=Recipe(
                epochs=21,
                batch_size=256,
                learning_rate=0.01,
                schedule="constant",
                weight_decay=0.0,
                crop_padding=4,
                flip=True,
            ),
            augment="recipe",
        )

    def remove(
        self,
        classifier: Classifier,
        clean: ImageSet,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Repair:
        """Returns a copy with zeros in it, tuned.

        Raises:
            InputError: no labels, too few images, no such layers, or a training diverged.
        """
        clean.require_labels("TSBD")
        units = find_units(classifier, clean.shape, sites=self.sites)
        fitted, held_out = clean, None
        if self.n is None:
            fitted, held_out = clean.split(1 - self.held_out, seed=seed)
        if len(fitted) < 2 or (held_out is not None and not len(held_out)):
            raise InputError(
                f"TSBD needs images to unlearn and others to choose n by; {len(clean)} are too "
                "few: give at least two of each class"
            )
        started = time.perf_counter()
        unlearned = unlearn(classifier, fitted, self.unlearning, seed=seed, progress=progress)
        zeros = Reinitialisation(
            classifier, units, unlearned.classifier, fitted, measure=self.measure, m=self.m
        )
        done_unlearning = time.perf_counter()

        chosen: dict[str, Any] = {"tried": [], "accuracy": [], "floor": None}
        if held_out is None:
            n = self.n or 0.0
            repaired = zeros.built(n)
        else:
            floor = (1 - self.tolerance) * accuracy_of(classifier, held_out)
            choice = last_above(floor, [0.0, *GRID], zeros.built, held_out)
            n, repaired, chosen = choice.setting, choice.classifier, choice.as_record()
        done_choosing = time.perf_counter()
        recipe = self._tolerated(classifier, clean, seed)
        losses = self._tuned(repaired, clean, recipe, seed, progress)

        def others() -> Iterator[tuple[str, Classifier]]:
            seen = {len(zeros.neurons(n))}
            for other in GRID:
                if (count := len(zeros.neurons(other))) not in seen:
                    seen.add(count)
                    made = zeros.built(other)
                    self._tuned(made, clean, recipe, seed, no_progress)
                    yield f"n = {other:g}", made

        gone = zeros.zeros(n)
        done = time.perf_counter()
        progress("TSBD", 1.0)
        record: dict[str, Any] = {
            "unlearning": unlearned.as_record(),
            "neurons": len(zeros.order),
            "unit_sites": [[site.name, site.kind, site.size] for site in units.sites],
            "skipped_layers": [list(item) for item in units.skipped],
            "shortcuts": sorted(zeros.left_out),
            "zeros": {
                "n": n,
                "neurons": len(zeros.neurons(n)),
                "weights": gone,
                "chosen": [units.label(unit) for unit in zeros.neurons(n).tolist()],
                "floor": chosen["floor"],
            },
            "flags": _flags(unlearned, gone, fixed=held_out is None),
            "curves": _curves(unlearned, zeros.nwc, chosen, losses),
            "seconds": {
                "unlearning": done_unlearning - started,
                "choosing": done_choosing - done_unlearning,
                "tuning": done - done_choosing,
                "total": done - started,
            },
        }
        return Repair(repaired, record, alternatives=others)

    # -- inner works -----------------------------------------------------------------------------

    def _tolerated(self, classifier: Classifier, clean: ImageSet, seed: int) -> Recipe | None:
        if self.recipe is None:
            return None
        return recipe_for(self.recipe, self.augment, classifier, clean, seed=seed)

    def _tuned(
        self,
        network: Classifier,
        clean: ImageSet,
        recipe: Recipe | None,
        seed: int,
        progress: Progress,
    ) -> list[float]:
        """Tunes in place; the loss of each epoch."""
        if recipe is None:
            return []
        way = functools.partial(along, r=self.r, normalise=self.normalise)
        smoothing = recipe.label_smoothing
        history = fit(
            network,
            clean,
            recipe,
            seed=seed,
            loss=loss_at_moved_weights(way, share=self.alpha, label_smoothing=smoothing),
            progress=progress,
            what="TSBD: tuning",
        )
        return history.loss


def along(
    _weights: Weights, gradients: Weights, *, r: float, normalise: Literal["global", "tensor"]
) -> Weights:
    """The way of length r along the gradient; 0 where the gradient is."""
    if normalise == "tensor":
        return {name: r / norm_of([slope]) * slope for name, slope in gradients.items()}
    length = r / norm_of(gradients.values())
    return {name: length * slope for name, slope in gradients.items()}


def _flags(unlearned: Unlearned, gone: int, *, fixed: bool) -> list[str]:
    """What the user should know before trusting the repair."""
    flags = []
    if not unlearned.reached:
        flags.append(
            f"Unlearning did not reach an accuracy of {unlearned.stop:.3f}; the changes of the "
            "weights may show nothing."
        )
    if not gone:
        chosen = "even the fewest neurons cost more than the held-out images allow"
        why = "n, which was given, is too small for it" if fixed else chosen
        flags.append(f"No weight was set to zero: {why}. What was done is fine-tuning.")
    elif fixed:
        flags.append("n was given, so no held-out image says what the zeros cost.")
    return flags


def _curves(
    unlearned: Unlearned, nwc: Tensor, chosen: dict[str, Any], losses: list[float]
) -> list[dict[str, Any]]:
    curves = [
        {
            "name": "accuracy while unlearning",
            "x_name": "step",
            "x": unlearned.steps,
            "y": unlearned.accuracy,
        },
        {
            "name": "weight change of the neurons",
            "x_name": "neuron",
            "x": list(range(1, len(nwc) + 1)),
            "y": nwc.tolist(),
        },
        *epoch_curves({"loss while tuning": losses}),
    ]
    if chosen["tried"]:
        curves.append(
            {
                "name": "held-out accuracy with zeros",
                "x_name": "share of the neurons",
                "x": chosen["tried"],
                "y": chosen["accuracy"],
            }
        )
    return curves
